"""An evaluation of so many images that its values lie in several files; of seven images each here."""

import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from ppl_gen import compare, evaluate, fit
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.run import Run


@pytest.fixture
def run(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Evaluation, "write", partialmethod(Evaluation.write, most=7))
    return Path(shutil.copytree(fitted, tmp_path / "run"))


@pytest.mark.drawn
def test_the_commands_go_on_to_pictures_and_pages(run: Path, call: Any) -> None:
    """`evaluate`, `fit` that goes on, and `compare` end without an error, and with the pictures of an evaluation."""
    for picture in ("how_far", "gap_histogram"):
        (run / "figures" / f"{picture}.png").unlink(missing_ok=True)
    code, out, err = call(evaluate.command, str(run), "--num-samples", "30", "--num-images", "20")
    assert code == 0 and "error" not in err, err
    assert len(list(run.glob("evaluation-*.nc"))) == 3 and not (run / "evaluation.nc").exists()
    assert "at least" in out and {"how_far.png", "gap_histogram.png"} <= {each.name for each in run.glob("figures/*")}
    before = [each.read_bytes() for each in run.glob("evaluation*")]
    code, out, err = call(fit.command, "--resume", str(run))
    assert code == 0 and "log p(x)" in out, err
    assert [each.read_bytes() for each in run.glob("evaluation*")] == before  # it is not made again
    code, out, err = call(compare.command, str(run))
    assert code == 0 and "log p(x)" in out, err
    assert (run / "report.html").exists()


def test_from_python(run: Path) -> None:
    """The values that were just computed are at hand; those that are read again lie in the files."""
    opened = Run.open(run)
    found = opened.evaluate(num_samples=30, num_images=20, quiet=True)
    assert len(found.to_dataframe()) == 20
    again = Run.open(run).evaluation
    assert again is not None and again.log_px.mean == found.log_px.mean and again.images is None
    assert opened.figures["gap_histogram"]
