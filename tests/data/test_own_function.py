"""Images from a function in a user's file: `--data file.py:function`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen import Run, compare, evaluate, fit, sweep
from ppl_gen.core.errors import BadInput

Call = Callable[..., tuple[int, str, str]]
MINE = """
import torch


def images():
    rows = torch.arange(100) % 5
    return torch.nn.functional.one_hot(rows, 5)[:, :, None].expand(-1, 5, 4).float(), rows


def others():
    return 1 - images()[0]


def broken():
    return 1 / 0


nothing = None
"""
SMALL = ("--epochs", "1", "--num-components", "2", "--num-samples", "10")


@pytest.fixture
def run(elsewhere: Path, call: Call) -> Path:
    Path("mine.py").write_text(MINE)
    assert call(fit.command, "mixture", "--data", "mine.py:images", *SMALL, "--out", "run")[0] == 0
    return elsewhere / "run"


def test_it_is_named_again_when_the_run_is_opened(run: Path, call: Call) -> None:
    """No code is run because a run directory points to it."""
    config = json.loads((run / "config.json").read_text())
    assert config["data_name"] == "mine.py:images" and len(config["data_sha256"]) == 64
    again = f"error: {run.name}: was fitted to the images of mine.py:images; name it again: --data mine.py:images\n"
    assert call(evaluate.command, "run") == (2, "", again)
    assert call(fit.command, "--resume", "run", "--epochs", "2") == (2, "", again)
    assert call(evaluate.command, "run", "--data", "mine.py:images")[0] == 0
    assert "--data</span> <span>mine.py:images" in (run / "report.html").read_text()
    assert call(fit.command, "--resume", "run", "--epochs", "2", "--data", "mine.py:images")[0] == 0
    opened = Run.open(run, data="mine.py:images")
    assert opened.data.shape == (5, 4) and opened.data.test.labels is not None
    assert call(compare.command, "run")[0] == 0  # what reads numbers alone needs no images


def test_other_images_are_refused(run: Path, call: Call) -> None:
    for command in (evaluate.command, fit.command):
        named = ("--resume", "run") if command is fit.command else ("run",)
        status, _, err = call(command, *named, "--data", "mine.py:others")
        assert status == 2 and "was fitted to other images" in err, command


def test_a_sweep_goes_on_with_it(run: Path, call: Call) -> None:
    options = ("mixture", "--seeds", "1", "--out", "swept", "--", "--data", "mine.py:images", *SMALL)
    assert call(sweep.command, *options)[0] == 0
    weights = {path: path.stat().st_mtime_ns for path in Path("swept").rglob("checkpoint.*")}
    assert weights
    assert call(sweep.command, *options)[0] == 0
    assert weights == {path: path.stat().st_mtime_ns for path in weights}  # there was nothing to fit
    status, _, err = call(sweep.command, *options, "--epochs", "2")
    assert status == 2 and "was made with other options: epochs is 1, not 2" in err


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "fails: ZeroDivisionError"),
        ("missing", "has no function 'missing'"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_bad_functions(elsewhere: Path, call: Call, name: str, why: str) -> None:
    Path("mine.py").write_text(MINE)
    status, out, err = call(fit.command, "mixture", "--data", f"mine.py:{name}", *SMALL)
    assert status == 2 and out == "" and why in err and len(err.splitlines()) == 1
    with pytest.raises(BadInput, match=why):
        Run.fit("mixture", data=f"mine.py:{name}", epochs=1, quiet=True)
    assert not Path("runs").exists()
