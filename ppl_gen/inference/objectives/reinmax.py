"""The second-order straight-through gradient of discrete draws."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, check_choices, loss_through

__all__ = ["Reinmax"]


class Reinmax:
    """The ELBO at samples of z, with the gradient of ReinMax (Liu et al. 2023, algorithm 2): for the probabilities p of
    the guide and pi_1 = (z + p) / 2, the draw counts as 2 pi_1 - p / 2 in the backward pass, as functions of the
    log-odds or log-probabilities.

    Biased for the guide. For one site it is exact where log p(x, z) is quadratic in z; `straight-through` is exact only
    where it is linear. The model's gradient is unbiased. The model must be differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    :param temperature: Temperature of p in pi_1. At least 1 in the paper.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "biased"

    def __init__(self, *, num_particles: int = 1, temperature: float = 1.0):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        self.num_particles, self.temperature = num_particles, temperature

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_choices(self, pair, x, *args, differentiable=True)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images."""
        return loss_through(pair, x, *args, num_samples=self.num_particles, draw=self.draw)

    def draw(self, choice: Choice) -> Tensor:
        """A sample, with the gradient of 2 pi_1 - p / 2."""
        logits, value = choice.logits, choice.sample()
        binary = choice.kind == "binary"
        scaled = logits.detach() / self.temperature
        middle = (value + (scaled.sigmoid() if binary else scaled.softmax(-1))) / 2
        eps = torch.finfo(middle.dtype).eps
        # Logits of pi_1 that have the gradient of the guide's logits.
        at = torch.logit(middle, eps) if binary else middle.clamp(min=eps).log()
        moved = with_gradient_of(at, logits)
        first = moved.sigmoid() if binary else moved.softmax(-1)
        return with_gradient_of(value, 2 * first - choice.mean / 2)
