"""The notebook of the documentation, run reduced, cell by cell, as a kernel does."""

import ast
import json
import linecache
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
REDUCED = {
    "epochs=100": "epochs=1",
    "seeds=3": "seeds=1",
    "epochs=50": "epochs=6",
    'data="digits",': 'data="digits", train_size=150, num_samples=20,',
}


def _cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _run(source: str, number: int, names: dict[str, Any]) -> Any:
    """Run a cell. Returns the value of its last line, if that is an expression."""
    file = f"<cell {number}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # as a kernel keeps it
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        exec(compile(source, file, "exec"), names)
        return None
    exec(compile(ast.Module(body, []), file, "exec"), names)
    return eval(compile(ast.Expression(last.value), file, "eval"), names)


def test_the_notebook(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for number, source in enumerate(_cells()):
        for whole, part in REDUCED.items():
            source = source.replace(whole, part)
        shown.append(_run(source, number, names))
    tables = [each._repr_html_() for each in shown if hasattr(each, "_repr_html_")]
    assert sum(table is not None and table.startswith("<") for table in tables) == 6  # a Figure has none, but an image
    assert [each._repr_png_()[:4] for each in shown if hasattr(each, "_repr_png_")] == [b"\x89PNG"]
    config = json.loads(Path("runs/guides/vae-laplace-0/config.json").read_text(encoding="utf-8"))
    assert config["guide"] == "class:Laplace" and len(config["guide_sha256"]) == 64
    assert len(names["comparison"].frame) == 4 and len(names["small"].metrics) == 6
    assert "upside down:  8 images" in capsys.readouterr().out


def test_the_notebook_is_executed() -> None:
    """Every cell that shows something has its output, and none an error."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert len(outputs) >= 8 and {output["output_type"] for output in outputs} == {"execute_result", "stream"}
    ten = next(source for source in _cells() if "Comparison.fit" in source)
    assert len(ten.strip().splitlines()) <= 10
