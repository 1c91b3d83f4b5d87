"""Small fits of the bundled digits: trained without a command, compared, and interrupted."""

import os
import signal
from pathlib import Path
from typing import Any

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
from ppl_gen.training.loop import train

SMALL = TrainingOptions(epochs=3, batch_size=64)
PLAIN = ("--data", "digits", "--train-size", "200", "--epochs", "2", "--num-samples", "50")
"""Options of a small fit of any model."""
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
    run = RunDirectory.create(path, "run", {}) if not path.exists() else RunDirectory.open(path)
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
