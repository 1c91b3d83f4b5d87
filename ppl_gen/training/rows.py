"""Parameters of the guide for each image: those of the test images are fitted with the model fixed.

A training image has its parameters fitted while the model is trained. The rows of the test images, which training never
asks for, are fitted afterwards by the same objective and optimizer, one batch after the other. They start from the mean
row of the training images, so that nothing depends on an earlier fit of the same rows.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from ppl_gen.core.interrupts import Interrupted
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import seed_torch
from ppl_gen.experiment.assembling import arguments
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.inference.modes import forked_rng, frozen, same_modes
from ppl_gen.inference.pair import Pair
from ppl_gen.training.batches import batches, num_batches
from ppl_gen.training.optimizer import OneOptimizer

_STEPS = 1000
_STREAM = 0x2545F4914F6CDD1D  # noise that is independent of training's


class RowsOfTestImages:
    """The parameters of the test images, of a pair that asks for `index`.

    :param gradient: as `SVI(loss_and_grads=…)` takes it.
    :param size: images of a batch.
    :param least: smallest number of images in a batch.
    """

    def __init__(self, fitted: Fitted, pair: Pair, gradient: Callable[..., Any], size: int, least: int):
        self.fitted, self.pair, self.gradient = fitted, pair, gradient
        self.size, self.least, self.count = size, least, len(fitted.data.test)

    @property
    def num_steps(self) -> int:
        """Number of steps that `fit` takes."""
        return _STEPS * num_batches(self.count, self.size, self.least)

    def batch(self, rows: Tensor) -> tuple[Any, ...]:
        """Test images with the further arguments of the pair."""
        fitted = self.fitted
        further = arguments(fitted.model, fitted.guide, fitted.data, "test")
        return fitted.data.targets("test", rows), *further(rows)

    def fit(self, interrupted: Interrupted, progress: Progress) -> None:
        """Fit the parameters of the test images. Torch's generators are restored.

        :raises KeyboardInterrupt: after an interrupt. The next start fits them again.
        """
        options, images = self.fitted.config.training, self.fitted.data.test.images
        own = self.parameters()
        others = [each for each in self.fitted.trained.parameters() if not any(each is row for row in own)]
        modules = self.fitted.trained
        with forked_rng(images), frozen(*others), pyro.validation_enabled(False), same_modes(modules):
            modules.eval()  # as they are evaluated: batch statistics do not follow the test images
            seed_torch((options.seed + _STREAM) % 2**63)
            for parameter in own:
                training, test = parameter.detach().tensor_split([len(self.fitted.data.train)])
                test.copy_(training.mean(0, keepdim=True))
            for rows in batches(torch.arange(self.count), self.size, self.least, images.device):
                optimizer, batch = OneOptimizer(own, options), self.batch(rows)
                svi = SVI(self.pair.model, self.pair.guide, optimizer, loss=None, loss_and_grads=self.gradient)
                for step in range(_STEPS):
                    optimizer.set_rate(options.learning_rate * (1 + math.cos(math.pi * step / _STEPS)) / 2)
                    svi.step(*batch)
                    progress.advance()
                    progress.note("parameters of the test images", every=10)
                    if interrupted.is_set():
                        raise KeyboardInterrupt

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the guide with a row for each image. Their gradient for a few images is zero in all other
        rows."""
        fitted, few = self.fitted, torch.arange(min(2, self.count), device=self.fitted.data.test.images.device)
        first = len(fitted.data.train)
        total = first + self.count
        asked = [each for each in fitted.guide.parameters() if each.requires_grad and each.dim() and len(each) == total]
        with forked_rng(fitted.data.test.images), pyro.validation_enabled(False):
            self.gradient(self.pair.model, self.pair.guide, *self.batch(few))
        found = [each for each in asked if each.grad is not None and not _others(each.grad, first, len(few)).any()]
        for parameter in fitted.trained.parameters():
            parameter.grad = None
        return found


def _others(gradient: Tensor, first: int, count: int) -> Tensor:
    """The rows of a gradient but for `count` from `first` on."""
    return torch.cat([gradient[:first], gradient[first + count :]])
