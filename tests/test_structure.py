"""Imports point down only: commands -> (training, inference, figures) -> (models, guides) -> (distributions, nets)."""

import ast
from pathlib import Path

import pytest

import ppl_gen

ROOT = Path(ppl_gen.__file__).parent
BASE = {"errors"}
ALLOWED = {
    "models/": {"distributions", "nets", *BASE},
    "guides/": {"guides", "distributions", "flows", "nets", *BASE},
    "priors/": {"flows", *BASE},
    "inference/": {"inference", "distributions", "memory", *BASE},
    "figures/": {"figures", "inference", "data", "runs", *BASE},
    "networks/": BASE,
    "nets.py": BASE,
    "flows.py": BASE,
    "distributions.py": {"networks", *BASE},
    "data.py": {"sources", *BASE},
    "sources.py": BASE,
    "runs.py": BASE,
    "errors.py": set(),
    "progress.py": set(),
    "memory.py": set(),
    "parallel.py": BASE,
    "cli.py": BASE,
    "components.py": BASE,
    "batches.py": {"state", *BASE},
    "capture.py": {"state", *BASE},
    "state.py": {"runs", *BASE},
    "training.py": {
        "batches",
        "capture",
        "data",
        "inference",
        "memory",
        "parallel",
        "progress",
        "runs",
        "state",
        *BASE,
    },
    "summaries.py": {"inference", "runs", *BASE},
    "report.py": {"runs", "summaries", *BASE},
    "loading.py": {"components", "data", "inference", "runs", "state", "training", *BASE},
}
COMMANDS = {
    "fit.py",
    "evaluate.py",
    "splice.py",
    "fill.py",
    "responsibilities.py",
    "compare.py",
    "sweep.py",
    "calibrate.py",
    "sample.py",
    "quality.py",
    "__init__.py",
}


def _imports(path: Path) -> set[str]:
    """The package's modules that a file imports, by the first name below the package."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ppl_gen"):
            names += [
                f"{node.module}.{alias.name}" if node.module == "ppl_gen" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("ppl_gen.")]
    return {name.split(".")[1] for name in names}


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in sorted(ROOT.rglob("*.py"))])
def test_imports(path: str) -> None:
    if path in COMMANDS:
        return
    allowed = next(rooms for start, rooms in ALLOWED.items() if path.startswith(start))
    assert _imports(ROOT / path) <= allowed


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.rglob("figures/*.py")), *sorted(Path("benchmarks").rglob("*.py"))], ids=str
)
def test_no_legend_depends_on_speed(path: Path) -> None:
    """A legend without a place warns where finding one takes a second, as it may on a busy machine."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    legends = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "legend"]
    assert all("loc" in {keyword.arg for keyword in node.keywords} for node in legends)
