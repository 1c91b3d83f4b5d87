"""An evaluation as a person reads it, also one of an earlier version."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from estimates import ABOUT, annealed, bidirectional, importance, sampled

from ppl_gen.evaluation.entries import entry_of, primary
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.table import rows, table
from ppl_gen.inference.estimate import Estimate
from ppl_gen.report.main_result import main_result


def _notes(summary: dict[str, Any]) -> dict[str, str]:
    return {row.label: row.note for row in rows(summary)}


def _summary(**found: Estimate) -> dict[str, Any]:
    return Evaluation.of(found, list(found)[-1], ABOUT).summary


def test_a_narrower_guide_is_said() -> None:
    summary = _summary(importance=replace(importance(-10.0, -12.0), narrower=True))
    assert summary["log_px"]["at_least"] and summary["gap"]["at_least"] and summary["narrower"]
    assert "leaves out a part of the prior's support" in _notes(summary)["support"]


def test_unknown_khat_is_no_high_one() -> None:
    """Three kinds, three numbers; in the files of earlier versions two of them are one."""
    khat = torch.tensor([0.9] * 2 + [math.nan] * 10 + [0.1] * 8, dtype=torch.float64)
    once = torch.tensor([0.0] * 7 + [0.5] * 13, dtype=torch.float64)
    estimate = replace(importance(-10, -12), khat=khat, largest=once)
    summary = _summary(importance=estimate)
    kinds = [summary["khat"][f"fraction_{name}"] for name in ("above_threshold", "unknown", "fine")]
    assert kinds == [2 / 20, 5 / 20, 13 / 20]
    assert "above 0.67: 10.0% of images; unknown: 25.0%; fine: 65.0%" in _notes(summary)["Pareto k-hat"]
    for kind in ("unknown", "fine"):
        del summary["khat"][f"fraction_{kind}"]
    assert "above 0.67 or unknown: " in _notes(summary)["Pareto k-hat"]
    few = replace(estimate, khat=khat * math.nan, largest=once + 1)
    summary = _summary(importance=few)
    assert summary["khat"]["fraction_unknown"] == 1 and "median" not in summary["khat"]
    assert _notes(summary)["Pareto k-hat"] == "unknown for all images"


def test_bits_per_dimension() -> None:
    """-nats / (784 log 2): lower bounds in nats are upper bounds in bits. Without levels there are none."""
    found = {"importance": replace(importance(-10.0, -12.0), narrower=True)}
    summary = Evaluation.of(found, "importance", ABOUT, dim=784).summary
    bits = summary["bits_per_dim"]
    nats = 784 * math.log(2)
    assert bits["dim"] == 784 and bits["log_px"]["mean"] == pytest.approx(-summary["log_px"]["mean"] / nats)
    assert bits["elbo"]["se"] == pytest.approx(summary["elbo"]["se"] / nats)
    assert f"log p(x) at most {10 / nats:.3f}" in _notes(summary)["bits per dimension"]
    assert "ELBO is 0.022, and log p(x) is at most 0.018" in main_result(summary, ["run"]).text
    plain = _summary(importance=importance(-10, -12))
    assert "bits_per_dim" not in plain and "bits" not in table(plain) + main_result(plain, ["run"]).text


def test_the_primary_estimate_has_a_name() -> None:
    """Several proposals are importance sampling, too; the guide's own stands beside it."""
    proposal = {"prior_share": 0.5, "temperature": 1.0, "guides": ["own"]}
    mixed = sampled(-10.5, estimator="importance", settings={"proposal": proposal})
    summary = _summary(importance=importance(-10, -12), mixed=mixed)
    assert primary(summary) == "mixed" and primary(_summary(importance=importance(-10, -12))) == "importance"
    entry = entry_of(summary, "importance")
    assert entry is not None and entry["mean"] == -10 and entry_of(summary, "annealed") is None
    assert "S = 1000 importance samples from guide, 50% prior; effective 500.0" in table(summary)


OLD: dict[str, Any] = {
    "model": "vae",
    "guide": "normal",
    "data": "digits",
    "split": "test",
    "binarization": "dynamic",
    "checkpoint": "last",
    "num_images": 300,
    "observation": "probability",
    "elbo": {"mean": -30.0, "se": 0.5, "mc_se": 0.01},
    "reconstruction": {"mean": -25.0, "se": 0.5},
    "kl": {"mean": 5.0, "se": 0.1},
    "iwae": {"1": {"mean": -30.0, "se": 0.5}, "10": {"mean": -29.0, "se": 0.5}},
    "log_px": {"mean": -28.5, "se": 0.5, "mc_se": 0.02, "bias": -0.1, "estimator": "importance", "num_samples": 9},
    "gap": {"mean": 1.5, "se": 0.05, "at_least": True},
    "ess": {"median": 10.0, "min": 1.5},
    "khat": {"median": 0.6, "fraction_above_0.7": 0.4, "threshold": 0.4, "fraction_above_threshold": 0.75},
    "num_parameters": 1234,
    "seconds": 2.0,
}
"""An evaluation as the first version wrote it."""


def test_an_old_evaluation_prints_as_it_did() -> None:
    """Without a jackknife, a second opinion, images without a k-hat, or a statement but on the gap."""
    text = """\
vae, guide normal: 300 test images of digits, binarization dynamic
nats per image ± standard error over images; larger is better
  ELBO                              -30.00 ± 0.50   mean of 9 samples
    reconstruction                  -25.00 ± 0.50
    KL                                5.00 ± 0.10
  IWAE bound, k = 10                -29.00 ± 0.50
  log p(x)               at least   -28.50 ± 0.50   S = 9 importance samples; Monte Carlo error 0.02, \
estimated bias -0.10
  gap: log p(x) - ELBO   at least     1.50 ± 0.05
  effective sample size  median 10.0, least 1.5 of 9
  Pareto k-hat           median 0.60; above 0.40 or unknown: 75.0% of images
  parameters             1,234
  evaluation took        2 s"""
    assert str(Evaluation.from_json(copy.deepcopy(OLD))) == text
    exact = {key: OLD[key] for key in (*list(OLD)[:9], "num_parameters", "seconds")}
    exact["log_px"] = {"mean": -30.0, "se": 0.5, "estimator": "exact"}
    assert "  log p(x)                          -30.00 ± 0.50   exact" in str(Evaluation.from_json(exact))


def test_what_was_recorded_stays() -> None:
    """An old statement is not judged again by what is known now."""
    evaluation = Evaluation.from_json(copy.deepcopy(OLD))
    assert evaluation.log_px.at_least and evaluation.gap is not None and evaluation.gap.at_least
    later = copy.deepcopy(OLD)
    later["log_px"]["at_least"] = False
    assert not Evaluation.from_json(later).log_px.at_least


def test_a_number_that_does_not_exist_is_none_in_json() -> None:
    summary = copy.deepcopy(OLD)
    summary["elbo"] = {"mean": None, "se": None, "mc_se": None}
    evaluation = Evaluation.from_json(summary)
    assert "  ELBO                                 nan          mean of 9 samples" in str(evaluation)
    assert math.isnan(evaluation.elbo.mean) and str(evaluation.elbo) == "nan"


@pytest.mark.parametrize("name", ["annealed", "prior"])
def test_each_estimator_is_told(name: str) -> None:
    others = {"annealed": annealed(-10, bidirectional=bidirectional()), "prior": sampled(-10.5, estimator="prior")}
    told = {
        "annealed": "annealed, 16 chains x 1000 temperatures from the prior; Monte Carlo error 0.04, estimated bias",
        "prior": "S = 1000 importance samples from the prior; effective 500.0; Monte Carlo error 0.0022, estimated",
    }
    found = [row.note for row in rows(_summary(importance=importance(-10, -12), **{name: others[name]}))]
    assert any(note.startswith(told[name]) for note in found), found


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("units", [0, 3])
def test_a_collapsed_posterior_is_told(finished: Path, units: int) -> None:
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8")) | {"active_units": units}
    assert ("z is not used: its mean is the same for every image; --kl-warmup" in table(summary)) == (units == 0)
