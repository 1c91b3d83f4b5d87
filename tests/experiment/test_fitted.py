"""A run that is opened is the run that was fitted: with which code and which images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import FEW, Laplace
from torch import Tensor

import ppl_gen
from ppl_gen import compare, evaluate, fit
from ppl_gen.core.errors import BadInput
from ppl_gen.models.vae import VAE
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def test_the_step_of_the_weights(elsewhere: Path, x: Tensor) -> None:
    """Results record it: also those of a run that was fitted in the same process, and has not been opened."""
    run = Run.fit("vae", data=x, out="run", **FEW)
    assert run.directory.loaded is None and run.fitted.step == Run.open("run", data=x).fitted.step == 4


def test_a_file_of_images_is_known_by_its_content(elsewhere: Path, call: Call) -> None:
    """Another draw under the same name: evaluating says so, and what was evaluated on either cannot be compared."""
    images = np.random.default_rng(0).random((2, 60, 12)) < 0.3
    np.save("mine.npy", images[0])
    mixture = ("mixture", "--data", "mine.npy", "--epochs", "1", "--num-components", "2")
    assert call(fit.command, *mixture, "--out", "first")[0] == 0
    status, _, err = call(evaluate.command, "first")
    assert status == 0 and "has changed" not in err
    assert call(fit.command, *mixture, "--num-components", "3", "--out", "second")[0] == 0
    assert call(compare.command, "first", "second")[0] == 0

    np.save("mine.npy", images[1])
    assert call(evaluate.command, "second")[2].startswith("warning: mine.npy has changed since the run was fitted\n")
    assert "warning: mine.npy has changed since the run was started" in call(fit.command, "--resume", "second")[2]
    status, _, err = call(compare.command, "first", "second")
    assert status == 2 and "first and second cannot be compared: the images' SHA-256 is" in err


def test_a_run_directory_cannot_name_code(elsewhere: Path, finished: Path, call: Call) -> None:
    """Not even with an edited config.json: a file is run only if the user names it."""
    import shutil

    shutil.copytree(finished, "run")
    Path("evil.py").write_text("open('ran', 'w')")
    original = Path("run/config.json").read_text(encoding="utf-8")
    for kind in ("model", "guide"):
        Path("run/config.json").write_text(json.dumps(json.loads(original) | {kind: "evil.py:Code"}))
        status, _, err = call(evaluate.command, "run")
        assert status == 2 and f"name it again: --{kind} evil.py:Code" in err
    assert not Path("ran").exists()


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


def test_results_are_of_the_weights_of_the_checkpoint(elsewhere: Path, x: Tensor) -> None:
    """Another fit of the same instance, or the user, has changed them: nothing is computed, and nothing is written."""
    model = VAE((4, 5), latent_dim=1, hidden_dims=(8,))
    few = {name: FEW[name] for name in ("epochs", "num_samples", "quiet")} | {"data": x}
    first = Run.fit(model, guide=Laplace(20, 1), out="first", **few)
    before = (first.path / "evaluation.json").read_bytes()
    second = Run.fit(model, guide=Laplace(20, 1), out="second", **few)
    calls: list[Callable[[Run], Any]] = [
        lambda run: run.evaluate(quiet=True),
        lambda run: run.log_px(x[:3]),
        lambda run: run.latents(x[:3]),
        lambda run: run.sample(num_images=2),
    ]
    for each in calls:
        with pytest.raises(
            BadInput, match="first: the weights of its model and guide have changed since they were saved"
        ):
            each(first)
        each(second)
    assert (first.path / "evaluation.json").read_bytes() == before
    with torch.no_grad():
        second.model.decoder[0].bias += 1  # type: ignore[index, union-attr, operator]
    with pytest.raises(BadInput, match="second: the weights"):
        second.evaluate(quiet=True)
    again = Run.open("first", model=VAE((4, 5), latent_dim=1, hidden_dims=(8,)), guide=Laplace(20, 1), data=x)
    assert first.evaluation is not None
    assert again.evaluate(quiet=True).elbo.mean == pytest.approx(first.evaluation.elbo.mean)
