"""`load`: model, guide and data of a run as separate objects."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ppl_gen.data.splits import Data
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json


class Loaded(NamedTuple):
    """The four results of `load`, by name."""

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
    """Model, guide, data and configuration of a run. Model and guide are in eval mode until `train()` is called:
    without dropout, and with the moments that batch normalization has learned.

    :param guide: the `file.py:Class`, the class or the instance of the guide, if the run was fitted with your own. It
        must be handed over again: a run directory never runs code.
    :param model: the model, if it is your own.
    :param prior: the prior, if it is your own.
    :param data: the images, if the run was fitted to images of your own.
    :param checkpoint: `last`: the weights after the last epoch; `best`: those after the epoch with the best validation
        ELBO.
    :raises BadInput: for a directory that is no run, a damaged checkpoint, or one that does not match its config.
    """
    fitted = Fitted.open(run, Given(model, guide, prior, data=data), checkpoint=checkpoint, device=device)
    return Loaded(fitted.model.eval(), fitted.guide.eval(), fitted.data, fitted.directory.config)
