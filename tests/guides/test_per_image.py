"""Guides with parameters for each image: training, and the test images, which are fitted with the model fixed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Call, refused
from fits import same_runs, weights
from torch import Tensor

import ppl_gen
from ppl_gen import calibrate, evaluate, fill, fit, splice
from ppl_gen.core.errors import BadInput
from ppl_gen.training import rows
from ppl_gen.training.optimizer import OneOptimizer

TRAIN, TEST = 24, 6
_SEEDED = torch.Generator().manual_seed(0)
IMAGES = torch.rand(TRAIN + TEST, 3, 3, generator=_SEEDED)
BINARY = (IMAGES > 0.5).float()
ROWS = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints


class Rows(nn.Module):
    """`pyro.param` statements with a row for each image, beside a network that all share."""

    def __init__(self, num_images, data_dim, latent_dim):
        super().__init__()
        self.shape = (num_images, latent_dim)
        self.net = nn.Sequential(nn.BatchNorm1d(data_dim), nn.Linear(data_dim, latent_dim))

    def guide(self, x, y=None, *, index):
        loc = pyro.param("loc", torch.zeros(self.shape))
        scale = pyro.param("scale", torch.ones(self.shape), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc[index] + self.net(x), scale[index]).to_event(1))
'''


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short fit of the test images, for tests that do not need its end."""
    monkeypatch.setattr(rows, "_STEPS", 3)


def split(images: Tensor = BINARY, test: int = TEST) -> dict[str, Tensor]:
    return {"train": images[:TRAIN], "validation": images[:2], "test": images[TRAIN : TRAIN + test]}


HOW: dict[str, Any] = {"epochs": 3, "batch_size": 10, "num_samples": 20, "hidden_dims": (4,), "latent_dim": 1}
HOW |= {"quiet": True, "binarization": "static"}


def test_the_posterior_of_each_test_image_is_found(elsewhere: Path) -> None:
    """In factor analysis with one unit the posterior is a Gaussian. So the gap can be closed, up to the noise of the
    steps, while an untrained guide is nats away."""
    how: dict[str, Any] = {"epochs": 2, "latent_dim": 1, "num_samples": 200, "quiet": True, "binarization": "none"}
    run = ppl_gen.Run.fit("factor-analysis", guide="per-image", data=split(IMAGES), out="run", **how)
    assert run.evaluation is not None
    model: Any = run.model
    exact = model.log_px(run.data.targets("test")).detach()
    gaps = exact - torch.from_numpy(run.evaluation.to_xarray()["elbo"].values)
    assert float(gaps.max()) < 0.01, gaps
    guide: Any = run.guide
    with torch.no_grad():
        guide.rows[TRAIN:] = 0
    untrained = run.fitted.images("test")
    worse = ppl_gen.log_marginal_likelihood(run.model, run.guide, *untrained, num_samples=200).elbo
    assert float((exact - worse).mean()) > 0.1


def test_test_images_change_neither_the_model_nor_other_rows(elsewhere: Path, short: None) -> None:
    """Two fits that differ in their test images alone."""
    one, other = (
        ppl_gen.Run.fit("vae", guide="per-image", data=split(test=count), out=str(count), **HOW) for count in (4, TEST)
    )
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("last.model."))
    mine, its = ours["last.guide.rows"], theirs["last.guide.rows"]
    assert torch.equal(mine[:TRAIN], its[:TRAIN]) and len(mine) == TRAIN + 4 and len(its) == TRAIN + TEST
    assert bool((its[TRAIN:] != its[:TRAIN].mean(0)).any(1).all()), "every test image has moved from where it started"


def test_param_statements_with_rows(elsewhere: Path, short: None) -> None:
    """A class in a file, whose network is shared: that is as it was when training ended."""
    Path("rows.py").write_text(ROWS)
    one, other = (
        ppl_gen.Run.fit("vae", guide="rows.py:Rows", data=split(test=count), out=str(count), **HOW)
        for count in (4, TEST)
    )
    ours, theirs = weights(one), weights(other)
    of_rows = {name for name in ours if "param:" in name}
    assert len(of_rows) == 2 and all(len(theirs[name]) == TRAIN + TEST for name in of_rows)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - of_rows)
    assert all(torch.equal(ours[name][:TRAIN], theirs[name][:TRAIN]) for name in of_rows)
    assert all(bool((theirs[name][TRAIN:].diff(dim=0) != 0).any()) for name in of_rows)
    again = ppl_gen.Run.open("4", guide="rows.py:Rows", data=split(test=4)).evaluate(num_samples=20, quiet=True)
    assert one.evaluation is not None and again.log_px.mean == one.evaluation.log_px.mean


@pytest.mark.parametrize("step", [5, 8, 10])  # in the second epoch, the last epoch, and the fit of the test images
def test_interrupted_and_resumed_equals_undisturbed(
    elsewhere: Path, short: None, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = ppl_gen.Run.fit("vae", guide="per-image", data=split(), out="whole", **HOW)
    with monkeypatch.context() as patched:
        interrupt_at(step, patched)
        with pytest.raises(KeyboardInterrupt):
            ppl_gen.Run.fit("vae", guide="per-image", data=split(), out="stopped", **HOW)
    resumed = ppl_gen.Run.open("stopped", data=split()).resume(quiet=True)
    assert same_runs(whole, resumed)
    assert whole.evaluation is not None and resumed.evaluation is not None
    assert whole.evaluation.log_px.mean == resumed.evaluation.log_px.mean


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a Ctrl-C at a step of the optimizer, of training or of the test images."""
    count, take = 0, OneOptimizer.__call__

    def counting(self: OneOptimizer, *args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)
        take(self, *args, **kwargs)

    monkeypatch.setattr(OneOptimizer, "__call__", counting)


def test_batches_of_test_images_do_not_depend_on_the_training_images(
    elsewhere: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few training images make small batches of them alone: the six test images are one batch, of three steps."""
    steps, take = [], OneOptimizer.__call__

    def counting(self: OneOptimizer, *args: Any, **kwargs: Any) -> None:
        steps.append(self)
        take(self, *args, **kwargs)

    monkeypatch.setattr(OneOptimizer, "__call__", counting)
    data = {"train": BINARY[:2], "validation": BINARY[:2], "test": BINARY[TRAIN:]}
    ppl_gen.Run.fit("vae", guide="per-image", data=data, out="run", **HOW)
    assert len(steps) == HOW["epochs"] + 3


def test_more_epochs_are_those_of_a_longer_run(elsewhere: Path, short: None) -> None:
    """The rows of test images start afresh, so an earlier fit of theirs leaves no trace."""
    how = {**HOW, "schedule": "constant"}
    longer = ppl_gen.Run.fit("vae", guide="per-image", data=split(), out="longer", **{**how, "epochs": 4})
    ppl_gen.Run.fit("vae", guide="per-image", data=split(), out="short", **{**how, "epochs": 2})
    resumed = ppl_gen.Run.open("short", data=split()).resume(4, quiet=True)
    assert same_runs(longer, resumed)


def test_uses_of_a_run(elsewhere: Path, short: None, call: Call) -> None:
    """What has an answer, and what needs q(z | x) of other images, in one line."""
    how: dict[str, Any] = {**HOW, "data": "digits", "train_size": 30, "latent_dim": 2, "epochs": 1}
    run = ppl_gen.Run.fit("vae", guide="per-image", out="run", **how)
    assert "reconstructions" in {each.name.partition(".")[0] for each in Path("run/figures").iterdir()}
    on_training = run.evaluate(split="train", num_samples=20, quiet=True)
    assert on_training.summary["num_images"] == 30 and on_training.summary.get("sandwich_importance") is None
    assert len(run.sample(source="image", image=3, num_images=4)) == 4
    who = "PerImage has parameters for each"
    refused(call, evaluate.command, "run", "--split", "validation", words=["--split validation", who])
    refused(call, evaluate.command, "run", "--gaps", words=["--gaps", who])
    refused(call, evaluate.command, "run", "--sandwich", "5", words=["--sandwich 5", who])
    refused(call, calibrate.command, "run", words=["calibrate", who])
    refused(call, fill.command, "run", words=["fill", who])
    refused(call, splice.command, "run", words=["splice", who])
    with pytest.raises(BadInput, match=who):
        run.log_px(torch.zeros(2, 8, 8))
    new = ("vae", "--guide", "per-image", "--data", "digits", "--out", "new")
    refused(call, fit.command, *new, "--patience", "3", words=["--patience 3", "validation"])
    refused(call, fit.command, *new, "--objective", "wake-sleep", words=[who])
    refused(call, fit.command, *new, "--guide.step", "0", words=["--guide.step 0"])


def test_redrawn_images_are_told(elsewhere: Path, short: None, call: Call) -> None:
    """Parameters of an image fit no single binarization of it, if it is drawn anew at every step."""
    how = ("--train-size", "20", "--epochs", "1", "--num-samples", "5", "--hidden-dims", "4", "--latent-dim", "1")
    command = ("vae", "--guide", "per-image", "--data", "digits", *how)
    status, _, err = call(fit.command, *command, "--out", "run")
    assert status == 0 and "warning: --binarization dynamic" in err and "--binarization static" in err
    status, _, err = call(fit.command, *command, "--binarization", "static", "--out", "other")
    assert status == 0 and "warning" not in err
