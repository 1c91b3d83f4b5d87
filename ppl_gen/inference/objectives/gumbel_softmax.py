"""Relaxed draws of discrete sites."""

from typing import Any, ClassVar

from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import check_choices, noise_for, relaxed, sampled

__all__ = ["GumbelSoftmax"]


class GumbelSoftmax:
    """log p(x, z) - log q(z | x) at relaxed z = softmax((l + g) / temperature), or the sigmoid for binary sites, with
    Gumbel or logistic noise g and the log-probabilities l of the guide (Jang, Gu and Poole 2017, equation 2). The
    log-probabilities of discrete z are continued linearly to values between 0 and 1.

    What is maximized is no bound on log p(x), and its gradient is a biased one of the ELBO, for guide and model. The
    bias falls and the variance rises as the temperature falls. The model must be differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    :param temperature: Temperature of the relaxation.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "biased"

    def __init__(self, *, num_particles: int = 1, temperature: float = 0.5):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        self.num_particles, self.temperature = num_particles, temperature

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_choices(self, pair, x, *args, differentiable=True)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """Minus the relaxed objective, summed over the images."""
        found = sampled(
            pair,
            x,
            *args,
            num_samples=self.num_particles,
            draw=lambda choice: relaxed(choice, noise_for(choice), self.temperature),
        )
        return -found.log_weight.mean(0).sum()
