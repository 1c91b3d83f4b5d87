"""Verdicts on ranks whose distribution is known, and their rate."""

import math

import pytest
import torch
from torch import Tensor

from ppl_gen.evaluation.guide_calibration import calibration_table, judge

NAMES = ("z[0]", "z[1]", "density", "likelihood")


def ranks(seed: int = 0, count: int = 400) -> Tensor:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stretched(ranks: Tensor, scale: float, shift: float = 0.0) -> Tensor:
    """The ranks of a normal posterior among samples of a normal guide of `scale` times its standard deviation, whose
    mean is lower by `shift` of its own."""
    normal = torch.distributions.Normal(0.0, 1.0)
    return normal.cdf(normal.icdf(ranks.clamp(1e-9, 1 - 1e-9)) / scale + shift)


def test_the_verdict_on_uniform_ranks_is_a_false_alarm_at_its_rate() -> None:
    """At most 5 % of 200 runs, passed by chance once in 16,000: 4 standard errors above."""
    verdicts = [judge(NAMES, ranks(seed, count=30), 0.05)["verdict"] for seed in range(200)]
    assert sum(verdict != "calibrated" for verdict in verdicts) / 200 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({0: lambda u: stretched(u, 0.7)}, "too narrow"),
        ({0: lambda u: stretched(u, 1.5), 1: lambda u: stretched(u, 1.5)}, "too wide"),
        ({1: lambda u: u.pow(1.5)}, "shifted"),
        *(({0: lambda u, by=by: stretched(u, 1.0, by)}, "shifted") for by in (0.5, -1.0, 3.0, -6.0)),
        ({0: lambda u: stretched(u, 1.0, 3.0), 2: lambda u: u.pow(0.1)}, "shifted"),
        ({0: lambda u: stretched(u, 0.4, 0.2)}, "too narrow"),
        ({0: lambda u: stretched(u, 2.0, 0.2)}, "too wide"),
        ({2: lambda u: u.pow(0.6)}, "too narrow"),
        ({2: lambda u: u.pow(1.6)}, "too wide"),
        ({2: lambda u: torch.where(u < 0.5, 0.3 * u, 1 - 0.3 * (1 - u))}, "not calibrated"),
        ({3: lambda u: u.pow(0.5)}, "fits the image too little"),
        ({3: lambda u: u.pow(2)}, "fits the image too well"),
        ({0: lambda u: stretched(u, 0.7), 3: lambda u: u.pow(0.5)}, "too narrow"),
        ({0: lambda u: stretched(u, 0.6), 1: lambda u: u.pow(2)}, "too narrow, shifted"),
        ({0: lambda u: stretched(u, 0.7), 1: lambda u: stretched(u, 1.5)}, "not calibrated"),
    ],
)
def test_the_word_is_that_of_the_departure(changed: dict, verdict: str) -> None:  # type: ignore[type-arg]
    found = ranks()
    for column, change in changed.items():
        found[:, column] = change(found[:, column])
    judged = judge(NAMES, found, 0.05)
    assert judged["verdict"] == verdict
    departing = {each["name"] for each in judged["quantities"] if each["is"] is not None}
    assert departing == {NAMES[column] for column in changed}


def test_coverage_is_written_out() -> None:
    """Four images. Central intervals of 0.5 hold ranks from 0.25 to 0.75, regions of 0.5 those of up to 0.5."""
    found = torch.tensor([[0.3, 0.5, 0.4, 0.5], [0.1, 0.6, 0.6, 0.5], [0.9, 0.2, 0.7, 0.5], [0.5, 0.5, 0.1, 0.5]])
    judged = judge(NAMES, found, 0.05)["coverage"]
    at = judged["levels"].index(0.5)
    assert judged["central"][at]["mean"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert judged["joint"][at] == {"mean": 0.5, "se": 0.25}


def test_the_table_names_what_departs() -> None:
    found = ranks()
    found[:, 0] = stretched(found[:, 0], 0.5)
    about = {"model": "vae", "guide": "normal", "num_images": 400, "false_alarm_rate": 0.05, "seconds": 1.0}
    about |= {"estimator": "importance", "num_samples": 100, "resolution": 0.07, "ess": {"median": 9.5, "min": 1.0}}
    text = calibration_table(about | {"before": judge(NAMES, found, 0.05), "after": judge(NAMES, ranks(), 0.05)})
    for words in (
        "400 images from the model; the z of each is ranked among 100 samples of the guide",
        "too narrow: z[0]",
        "below about 7.0%",
        "median 9.5, least 1.0",
        "at most 5%",
    ):
        assert words in text
    grey = about | {"grey": True, "before": judge(NAMES, ranks(), 0.05), "estimator": "exact"}
    assert "fitted to grey images" in calibration_table(grey) and "exact p(z | x)" in calibration_table(grey)
