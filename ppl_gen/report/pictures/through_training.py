"""Samples from the same noise, before, during and after training."""

import math
import re

import torch

from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.images import through_training
from ppl_gen.report.pictures import Drawn, as_images
from ppl_gen.training.monitor import SAMPLES

ABOUT = "samples through training"


def draw(fitted: Fitted) -> Drawn:
    """Samples from the same noise, which were saved before, during and after training."""
    found, pixels = fitted.directory.arrays(SAMPLES), math.prod(fitted.data.shape)
    for name, values in found.items():
        whole = len(values) > 0 and math.prod(values.shape[1:]) == pixels if values.ndim > 1 else False
        if not (whole and re.fullmatch(r"epoch_\d{1,9}", name)):
            fitted.directory.leave_out(SAMPLES, f"{name} holds no images of {pixels} pixels from an epoch")
            return
    if found:
        kept = {int(name.removeprefix("epoch_")): torch.from_numpy(values) for name, values in found.items()}
        images = {epoch: as_images(kept[epoch], fitted.data) for epoch in sorted(kept)}
        yield "through_training", through_training(images)
