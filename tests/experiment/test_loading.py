"""A run that is loaded is the run that was fitted."""

import json
from pathlib import Path

import torch

import ppl_gen


def test_load_gives_the_pair_that_was_evaluated(finished: Path) -> None:
    model, guide, data, config = ppl_gen.load(finished)
    assert config["model"] == "vae" and data.name == "digits"
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    result = ppl_gen.log_marginal_likelihood(model, guide, data.targets("test"), num_samples=50)
    assert result.log_px.mean().item() == summary["log_px"]["mean"]
    assert "by importance sampling, S = 50" in str(result)


def test_loaded_modules_are_for_evaluation(finished: Path) -> None:
    """Not in training mode, whatever their parts do in it."""
    model, guide, _, _ = ppl_gen.load(finished)
    assert not any(module.training for part in (model, guide) for module in part.modules())
