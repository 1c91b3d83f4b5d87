"""Samples from the same noise, before, during and after training."""

import torch

from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.images import through_training
from ppl_gen.report.pictures import Drawn, as_images
from ppl_gen.training.monitor import SAMPLES

ABOUT = "samples through training"


def draw(fitted: Fitted) -> Drawn:
    """Samples from the same noise, which were saved before, during and after training."""
    kept = {int(name.removeprefix("epoch_")): values for name, values in fitted.directory.arrays(SAMPLES).items()}
    if kept:
        images = {epoch: as_images(torch.from_numpy(kept[epoch]), fitted.data) for epoch in sorted(kept)}
        yield "through_training", through_training(images)
