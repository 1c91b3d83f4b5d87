"""What the documentation of the library says beside its code, which `test_readme.py` runs."""

import importlib
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ppl_gen
from ppl_gen import Run
from ppl_gen.__main__ import commands
from ppl_gen.core.glossary import TERMS

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(
        page
        for page in (ROOT / "docs").rglob("*")
        if page.suffix in (".md", ".py", ".ipynb") and "_build" not in page.parts
    ),
]
SOURCES = [*(ROOT / "ppl_gen").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]


def _exists(name: str) -> bool:
    """Whether a dotted name leads to a module, or to an attribute or a field of what is in one."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for part in parts[1:]:
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        if part in getattr(found, "__annotations__", {}):
            return True
        try:
            found = importlib.import_module(f"{found.__name__}.{part}")
        except (ImportError, AttributeError):
            return False
    return True


def _today(page: Path) -> str:
    """The text of a page, without the old names in a list of what moved: `old` → `new`."""
    return re.sub(r"^.*→", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda page: str(page.relative_to(ROOT)))
def test_names_exist(page: Path) -> None:
    text = _today(page)
    for name in set(re.findall(r"\bppl_gen(?:\.[A-Za-z_]\w*)+", text)):
        added = f"# {name.replace('.', '/')}.py\n" in text  # a file that the page has the reader write
        assert added or name.rpartition(".")[2].isupper() or _exists(name), name


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", _today(page), flags=re.DOTALL | re.MULTILINE)
    for name in set(re.findall(r"(?<![\w/.~])[a-z_]+(?:/\w+)*/\w+\.(?:py|md)\b", text)):
        roots = (ROOT, ROOT / "ppl_gen", page.parent)
        assert any((root / name).exists() for root in roots), name
    for name in set(re.findall(r"(?<![\w/])test_\w+\.py\b", text)):
        assert list((ROOT / "tests").rglob(name)), name


def test_the_checks_of_names_can_fail() -> None:
    assert _exists("ppl_gen.inference.pair.Pair.terms") and _exists("ppl_gen.Estimate.khat")
    assert not _exists("ppl_gen.traces") and not _exists("ppl_gen.inference.pair.Pear")


@pytest.mark.parametrize("page", ["docs/library.md", "docs/reference/api.md"])
def test_every_public_name_is_documented(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in ppl_gen.__all__:
        assert re.search(rf"\b{name}\b", text), name


def test_another_tracker(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's class for Weights & Biases, with a stand-in for the package."""
    logged: list[tuple[str, int, dict[str, float]]] = []

    def init(**options: Any) -> Any:
        assert options["config"]["model"] == "mixture" and options["resume"] == "allow"
        return SimpleNamespace(log=lambda curves, step: logged.append((options["id"], step, curves)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n# weights_and_biases\.py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert code is not None
    names: dict[str, Any] = {}
    exec(compile(code[1], "weights_and_biases.py", "exec"), names)
    tracker = names["WeightsAndBiases"]("guides")
    options = {"epochs": 2, "num_components": 2, "num_samples": 10, "train_size": 100}
    run = Run.fit("mixture", data="digits", out="tracked", quiet=True, on_epoch=tracker, **options)
    assert [(name, step) for name, step, _ in logged] == [("tracked", 1), ("tracked", 2)]
    last = run.metrics.iloc[-1]
    assert logged[-1][2]["validation/elbo"] == last["validation.elbo"] and logged[-1][2]["loss"] == last["loss"]


def test_the_glossary_is_made_from_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("conf").glossary_page()
    assert page == (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert len({term.anchor for term in TERMS}) == len(TERMS)
    for term in TERMS:
        assert not term.more or (ROOT / "docs" / term.more.partition("#")[0]).exists()
        if f"## {term.name}\n" in page:
            assert re.sub(r"[^\w\- ]", "", term.name.lower()).replace(" ", "-") == term.anchor


@pytest.mark.parametrize("command", commands())
def test_help_is_whole_sentences(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of help ends where the next word does not fit. Every option has a text, on a page of the site."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    conf = importlib.import_module("conf")
    for name in ("COLUMNS", "NO_COLOR", "TERM"):
        monkeypatch.setenv(name, "")  # it sets them
    printed = conf.printed_help(command, conf.SHOWN.get(command, []))
    lines = printed.splitlines()[3:]
    width = max(len(line) for line in lines if line.startswith(" " * 8))
    for line, following in pairwise(lines):
        indent = re.match(r" {8,}", line)
        if indent and following.startswith(indent[0]) and following[len(indent[0])] != " ":
            assert len(line) + len(following.split()[0]) + 1 > width - 3, (line, following)
    page = conf.command_page(command)
    options = re.findall(r"^:::\{(?:option|describe)\} (.*)\n(.*)\n:::", page, re.MULTILINE)
    assert len(options) == page.count("\n:::{") >= 2 and len(page.split()) <= 1500
    for name, text in options:
        assert re.match(r"[A-Zp]", text) or text.startswith("file.py"), name
        assert "None" not in name + text
        assert "<" not in text, name  # a placeholder would be read as an element of HTML, and not be seen
