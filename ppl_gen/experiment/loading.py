"""A run's model, guide and data, as separate objects."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ppl_gen.data.splits import Data
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json


class Loaded(NamedTuple):
    """What `load` returns."""

    model: nn.Module
    guide: nn.Module
    data: Data
    config: Json


def load(
    run: str | Path,
    guide: Any = None,
    *,
    model: Any = None,
    prior: Any = None,
    data: Any = None,
    checkpoint: Checkpoint = "last",
    device: str = "cpu",
) -> Loaded:
    """Model, guide, data and configuration of a run; model and guide as for evaluation, without dropout and with the
    moments that batch normalization has learned, until `train()` is called.

    :param guide: the `file.py:Class`, the class or the instance of a run that was fitted with a guide of your own. It
        must be given again: code is never run because a run directory points to it.
    :param model: likewise for a model of your own.
    :param prior: likewise for a prior.
    :param data: the images, again, of a run that was fitted to images of your own.
    :param checkpoint: the last weights, or those of the epoch with the best validation ELBO.
    :raises BadInput: for a directory that is no run, a damaged checkpoint, or one that does not match its config.
    """
    fitted = Fitted.open(run, Given(model, guide, prior, data=data), checkpoint=checkpoint, device=device)
    return Loaded(fitted.model.eval(), fitted.guide.eval(), fitted.data, fitted.directory.config)
