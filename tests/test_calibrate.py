"""`calibrate`: what is typed, what is written, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import REFUSED, read, refused
from pages import Page

import ppl_gen
from ppl_gen import calibrate, fit
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import guide_calibration
from ppl_gen.inference.simulation import simulated_ranks

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.painted
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


# The guide of a run ------------------------------------------------------------------------------------------------

SMALL = ("--num-images", "60", "--num-samples", "40")


@pytest.mark.painted
@pytest.mark.parametrize("name", ["mixture", "belief-net", "vae"])
def test_the_guide_of_a_run(three_runs: Path, call: Call, name: str) -> None:
    status, out, err = call(calibrate.command, name, *SMALL)
    assert status == 0, err
    found = read(f"{name}/calibration.json")
    assert found["before"]["verdict"] in out and f"written to {name}" in out
    sampled = name == "vae"
    assert ("after" in found) == ("ess" in found) == sampled
    assert found["estimator"] == ("importance" if sampled else "exact")
    count = {"mixture": 1, "belief-net": 3, "vae": 2}[name]
    names = [each["name"] for each in found["before"]["quantities"]]
    site = names[0].partition("[")[0]
    units = [site] if count == 1 else [f"{site}[{unit}]" for unit in range(count)]
    assert names == [*units, "density", "likelihood"] and found["before"]["units_outside"]["of"] == count
    for picture in ("calibration_ranks", "calibration_coverage"):
        assert (Path(name) / "figures" / f"{picture}.png").stat().st_size > 5_000
    page = Page((Path(name) / "report.html").read_text(encoding="utf-8"))
    assert "Is the guide calibrated?" in page.texts["h2"]
    assert "Ranks of the z that the images were drawn with" in page.texts["figcaption"]
    assert page.commands("calibrate") == [[name, *(SMALL if sampled else SMALL[:2])]]


def test_the_same_seed_gives_the_same_verdict(three_runs: Path) -> None:
    run = ppl_gen.Run.open("vae")
    first, again = (run.calibrate(num_images=30, num_samples=20, quiet=True) for _ in range(2))
    assert first.summary | {"seconds": 0} == again.summary | {"seconds": 0}
    assert np.array_equal(first.ranks.before, again.ranks.before)
    assert repr(first) and first._repr_html_().startswith("<pre>")


def test_a_comparison_has_the_verdicts(three_runs: Path, call: Call) -> None:
    assert ppl_gen.Comparison("vae").rows[0].calibration is None
    found = ppl_gen.Run.open("vae").calibrate(num_images=30, num_samples=20, quiet=True).summary
    verdicts = f"{found['before']['verdict']} → {found['after']['verdict']}"
    comparison = ppl_gen.Comparison(["vae"])
    assert comparison.frame["calibration"][0] == verdicts and verdicts in str(comparison)
    assert "calibration: verdict on the guide's samples" in str(comparison)
    # Of other weights.
    content = read("vae/calibration.json") | {"checkpoint": "best"}
    Path("vae/calibration.json").write_text(json.dumps(content), encoding="utf-8")
    assert ppl_gen.Comparison("vae").rows[0].calibration is None


def test_labels_are_those_of_the_split(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of them at random: 30 of ten classes; the first 30 may be of one."""
    Path("labelled.py").write_text(LABELLED, encoding="utf-8")
    mine = ("--guide", "labelled.py:Labelled")
    quick = ("--data", "digits", "--train-size", "150", "--epochs", "1", "--num-samples", "20", "--latent-dim", "1")
    quick += ("--hidden-dims", "4")
    assert call(fit.command, "vae", *mine, *quick, "--out", "run")[0] == 0
    used = []

    def simulated(pair: Any, x: Any, labels: Any, **options: Any) -> Any:
        used.append(labels)
        return simulated_ranks(pair, x, labels, **options)

    monkeypatch.setattr(guide_calibration, "simulated_ranks", simulated)
    assert call(calibrate.command, "run", *mine, "--num-images", "30")[0] == 0
    assert call(calibrate.command, "run", *mine, "--num-images", "300")[0] == 0
    labels = load_data(DataOptions("digits")).test.labels
    assert labels is not None
    some, all_of_them = (each.to(labels.dtype) for each in used)
    assert not torch.equal(some, labels[:30])
    assert torch.equal(all_of_them.sort().values, labels.sort().values)
    refused(call, calibrate.command, "run", *mine, "--num-images", "301", words=["--num-images 301", "labels for 300"])


LABELLED = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Labelled(nn.Module):
    def __init__(self, data_dim, latent_dim, latent_name):
        super().__init__()
        self.latent_name, self.mean = latent_name, nn.Linear(data_dim + 1, latent_dim)

    def guide(self, x, y):
        mean = self.mean(torch.cat([x, y.unsqueeze(1).to(x.dtype)], 1))
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, dist.Normal(mean, 0.5).to_event(1))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(each for each in REFUSED if each[0] and not each[0][0].startswith("-")),
        (("vae", "--num-images", "19"), ["--num-images 19", "at least 20"]),
        (("vae", "--num-samples", "19"), ["--num-samples 19", "at least 20"]),
        (("vae", "--false-alarm-rate", "1"), ["--false-alarm-rate 1", "between 0 and 1"]),
    ],
)
def test_bad_input(three_runs: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    refused(call, calibrate.command, *arguments, words=words)
