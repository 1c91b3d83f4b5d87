"""Small fits: from Python and by command, compared, and interrupted."""

import os
import signal
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.experiment.state import tensors_of
from ppl_gen.run import Run
from ppl_gen.training.loop import train

SMALL = TrainingOptions(epochs=3, batch_size=64)
PLAIN = ("--data", "digits", "--train-size", "200", "--epochs", "2", "--num-samples", "50")
"""Options of a small fit of any model."""
_LITTLE = ("--data", "digits", "--train-size", "60", "--epochs", "1", "--num-samples", "30")
SHORT = (*_LITTLE, "--binarization", "threshold")
"""The same for an even smaller fit, of pixels that are not drawn."""
QUICK = (*PLAIN, "--hidden-dims", "16", "--latent-dim", "1")
"""Of a small fit of a VAE. The latent space is a line: drawing a plane of it takes longer than the fit."""


def small_config(options: TrainingOptions = SMALL, **guide_options: Any) -> Config:
    return Config(
        model_options={"latent_dim": 3, "hidden_dims": (16,)},
        guide_options=guide_options,
        data=DataOptions(data="digits", train_size=200),
        training=options,
    )


def fit_pair(
    path: Path, data: Data, options: TrainingOptions = SMALL, **guide_options: Any
) -> tuple[RunDirectory, nn.ModuleDict]:
    model, guide = assemble(small_config(options, **guide_options), data)
    run = RunDirectory.create(path, "run", CONFIG) if not path.exists() else RunDirectory.open(path)
    train(Fitted(small_config(options, **guide_options), model, guide, data, Given(), run), quiet=True)
    return run, nn.ModuleDict({"model": model, "guide": guide})


def without_times(run: RunDirectory) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in run.metrics()]


def same(one: nn.ModuleDict, other: nn.ModuleDict) -> bool:
    ours, theirs = tensors_of(one), tensors_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a Ctrl-C during a later step."""
    batch, count = Data.batch, 0

    def counting(self: Data, index: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, index)

    monkeypatch.setattr(Data, "batch", counting)


FEW: dict[str, Any] = {"epochs": 2, "num_samples": 20, "hidden_dims": (8,), "latent_dim": 1, "quiet": True}
"""Arguments of `Run.fit` for a small fit of a VAE."""


CONFIG: dict[str, Any] = {
    "model": "vae",
    "guide": "normal",
    "data": {"data": "digits", "binarization": "dynamic"},
    "data_name": "digits",
    "training": {"objective": "elbo"},
    "num_samples": 20,
}
"""What a `config.json` has at least."""


class Laplace(nn.Module):
    """A guide of one's own."""

    def __init__(self, data_dim: int, latent_dim: int, *, units: int = 5):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(data_dim, units), nn.ELU(), nn.Linear(units, 2 * latent_dim))

    def guide(self, x: Tensor) -> None:
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(loc, log_scale.exp()).to_event(1))


def weights(run: Run) -> dict[str, Tensor]:
    content = run.directory.load_checkpoint()
    assert content is not None
    return {name: tensor for name, tensor in content[0].items() if name.startswith("last.")}


def same_runs(one: Run, other: Run) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
