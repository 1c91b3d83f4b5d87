"""`calibrate`: what is typed, what is written, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen import calibrate

Call = Callable[..., tuple[int, str, str]]


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
