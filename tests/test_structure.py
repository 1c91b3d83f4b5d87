"""Imports point down only: commands -> report -> (training, inference, figures) -> (models, guides) -> (distributions,
nets)."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ppl_gen

ROOT = Path(ppl_gen.__file__).parent
BASE = {"core", "errors"}
ALLOWED = {
    "core/": set(),
    "models/": {"distributions", "nets", *BASE},
    "guides/": {"guides", "distributions", "flows", "nets", *BASE},
    "priors/": {"flows", *BASE},
    "inference/": {"inference", "distributions", "memory", *BASE},
    "figures/": {"figures"},
    "nets.py": BASE,
    "flows.py": BASE,
    "distributions.py": BASE,
    "data.py": {"data_options", "sources", *BASE},
    "data_options.py": BASE,
    "experiment/": {"experiment", "components", "data", "data_options", "inference", *BASE},
    "evaluation/": {"evaluation", "components", "experiment", "inference", "runs", *BASE},
    "comparison.py": {"evaluation", "figures", "report", *BASE},
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
        "core",
        "data",
        "experiment",
        "inference",
        "memory",
        "parallel",
        "progress",
        "runs",
        "state",
        *BASE,
    },
    "summaries.py": {"inference", "runs", *BASE},
    # Of evaluate.py, the defaults of its options.
    "report/": {"report", "figures", "inference", "core", "data", "runs", "summaries", "evaluate", *BASE},
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
    """The package's modules that a file imports, by the first name below the package. Contracts name types of all
    floors, and import none of them when they run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.parent.name == "core":
        tree.body = [
            each for each in tree.body if not (isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING")
        ]
    names = []
    for node in ast.walk(tree):
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


def test_every_file_is_in_the_package() -> None:
    """What an installation has beside Python files: templates, style and script of the pages."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]
    kept = {
        path
        for folder, globs in patterns.items()
        for glob in globs
        for path in (ROOT.parent / folder.replace(".", "/")).glob(glob)
    }
    others = {path for path in ROOT.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert kept == others and {path.suffix for path in kept} == {".jinja", ".css", ".js"}


@pytest.mark.parametrize("module", ["report", "figures.captions", "figures.comparison", "core.commands"])
def test_what_starts_without_torch(module: str) -> None:
    code = f"import sys, ppl_gen.{module}; assert 'torch' not in sys.modules and 'pyro' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
