"""An evaluation as a person reads it."""

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
    """Three kinds, three numbers."""
    khat = torch.tensor([0.9] * 2 + [math.nan] * 10 + [0.1] * 8, dtype=torch.float64)
    once = torch.tensor([0.0] * 7 + [0.5] * 13, dtype=torch.float64)
    estimate = replace(importance(-10, -12), khat=khat, largest=once)
    summary = _summary(importance=estimate)
    kinds = [summary["khat"][f"fraction_{name}"] for name in ("above_threshold", "unknown", "fine")]
    assert kinds == [2 / 20, 5 / 20, 13 / 20]
    assert "above 0.67: 10.0% of images; unknown: 25.0%; fine: 65.0%" in _notes(summary)["Pareto k-hat"]
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


def test_a_number_that_does_not_exist_is_none_in_json() -> None:
    summary = _summary(importance=importance(-10, -12))
    summary["elbo"] = {"mean": None, "se": None, "mc_se": None}
    evaluation = Evaluation(summary)
    assert "  ELBO                                 nan          mean of 1000 samples" in str(evaluation)
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
