"""The floors of the package: every folder imports only from folders below it."""

import ast
from pathlib import Path

import pytest

import ppl_gen
from ppl_gen.__main__ import commands

ROOT = Path(ppl_gen.__file__).parent
FLOORS = (
    {"core"},
    {"data"},
    {"networks"},
    {"models", "guides", "priors"},
    {"inference"},
    {"experiment"},
    {"training"},
    {"evaluation"},
    {"figures"},
    {"report"},
    {"run", "comparison"},
    set(commands()),
)
"""From the lowest to the highest. A command imports no command."""
SAME = {"guides", "priors", "models"} | {"comparison", "run"}
"""Neighbours on a floor that may know each other: a comparison fits runs."""
FILES = sorted(path for path in ROOT.rglob("*.py") if path not in (ROOT / "__init__.py", ROOT / "__main__.py"))


def _room(path: Path) -> str:
    """The folder or the file directly below the package."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """The rooms that a file imports, but for its own. What is imported for types alone does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in typing for inner in ast.walk(node)}
    names = []
    for node in (node for node in ast.walk(tree) if id(node) not in skipped):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ppl_gen"):
            names += [
                f"{node.module}.{alias.name}" if node.module == "ppl_gen" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("ppl_gen.")]
    return {name.split(".")[1] for name in names if not name.endswith("__version__")} - {_room(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    level = next(level for level, rooms in enumerate(FLOORS) if _room(path) in rooms)
    below = set().union(*FLOORS[:level])
    own = FLOORS[level] & SAME if _room(path) in SAME else set()
    assert _imports(path) <= below | own


def test_every_folder_is_on_a_floor() -> None:
    rooms = {_room(path) for path in FILES}
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_two(path: Path) -> None:
    """A file of more than ten screens, a class of more than four and a function of more than one and a half are asking
    to be two things."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 560
    for node in ast.walk(ast.parse(text)):
        lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0) + 1
        if isinstance(node, ast.FunctionDef):
            assert lines <= 75, f"{node.name}: {lines} lines"
        elif isinstance(node, ast.ClassDef):
            assert lines <= 400, f"{node.name}: {lines} lines"


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.rglob("figures/*.py")), *sorted(Path("benchmarks").rglob("*.py"))], ids=str
)
def test_no_legend_depends_on_speed(path: Path) -> None:
    """A legend without a place warns where finding one takes a second, as it may on a busy machine."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    legends = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "legend"]
    assert all("loc" in {keyword.arg for keyword in node.keywords} for node in legends)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_are_looked_at_in_one_place(path: Path) -> None:
    """`Path.exists` and its like raise for a name that is too long, and for a folder without permission."""
    called = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = {each.attr for each in called if isinstance(each, ast.Attribute)}
    assert _room(path) == "core" or not names & {"exists", "is_file", "is_dir"}
