"""A small calibration: a check of the estimators, and of the command itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen import calibrate
from ppl_gen.evaluation import calibration
from ppl_gen.evaluation.use_options import CalibrateOptions

Call = Callable[..., tuple[int, str, str]]


def test_errors_are_what_they_say() -> None:
    """40 repetitions on 3 images: what is exact is exact; importance sampling's bias is within 4 of its standard errors
    of the first-order one, -var / (2 S), and its interval covers at a rate in [0.85, 1] (120 estimates); the prior
    alone is far worse on four continuous latents, and low beyond 4 standard errors."""
    options = CalibrateOptions(repetitions=40, num_images=3, num_samples=200, num_temperatures=50)
    rows = {(row.model, row.estimator): row for row in calibration.calibrate(options, quiet=True)}
    assert len(rows) == 14
    for (_, estimator), row in rows.items():
        if estimator.startswith("exact"):
            assert row.rmse < 1e-10
            assert row.coverage is None
        else:
            assert row.coverage is not None
            # Of all estimates, of which the means of 40 repetitions vary less.
            assert row.rmse > abs(row.bias) > 0
            assert row.rmse**2 >= (row.bias**2 + 39 * row.bias_se**2) * (1 - 1e-9) > 0
    for model in ("factor analysis", "belief net"):
        row = rows[model, "importance, S = 200"]
        assert abs(row.bias + row.rmse**2 / 2) < 4 * row.bias_se
        assert row.coverage is not None
        assert row.coverage >= 0.85
    prior = rows["factor analysis", "prior, S = 200"]
    assert prior.rmse > 20 * rows["factor analysis", "importance, S = 200"].rmse
    assert prior.bias < -4 * prior.bias_se < 0
    annealed = rows["factor analysis", "annealed, 16 chains x 50 temperatures"]
    assert annealed.rmse < prior.rmse / 2


def test_the_same_seed_gives_the_same_rows(elsewhere: Path, call: Call) -> None:
    small = ("--repetitions", "2", "--num-images", "1", "--num-samples", "25", "--num-temperatures", "3")
    first = call(calibrate.command, *small, "--out", "a/b")
    assert first[0] == 0, first[2]
    assert call(calibrate.command, *small, "--out", "c")[0] == 0
    written = json.loads((elsewhere / "a" / "b" / "calibration.json").read_text(encoding="utf-8"))
    again = json.loads((elsewhere / "c" / "calibration.json").read_text(encoding="utf-8"))
    for one, other in zip(written["rows"], again["rows"], strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
    assert (elsewhere / "a" / "b" / "calibration.png").stat().st_size > 10_000
    for row in written["rows"]:
        assert row["estimator"] in first[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--repetitions", "1"), "--repetitions 1: must be at least 2"),
        (("--num-samples", "10"), "--num-samples 10: must be at least 25"),
        (("--seed", "-1"), "--seed -1"),
        (("--out", "file"), "--out file: cannot be made"),
    ],
)
def test_bad_options(elsewhere: Path, call: Call, options: tuple[str, ...], message: str) -> None:
    (elsewhere / "file").write_text("")
    status, _, err = call(calibrate.command, *options)
    assert status == 2
    assert message in err
