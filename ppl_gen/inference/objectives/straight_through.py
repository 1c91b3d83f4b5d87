"""The straight-through gradient of discrete draws."""

from typing import Any, ClassVar

from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, check_choices, loss_through

__all__ = ["StraightThrough"]


class StraightThrough:
    """The ELBO at samples of z, with dz / dl := d E[z] / dl for the log-odds or log-probabilities l of the guide:
    the draw counts as its mean in the backward pass (Bengio, Leonard and Courville 2013, section 3.1).

    Biased for the guide, unless log p(x, z) is linear in every z. The model's gradient is unbiased. The model must be
    differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "biased"

    def __init__(self, *, num_particles: int = 1):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        self.num_particles = num_particles

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_choices(self, pair, x, *args, differentiable=True)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images."""
        return loss_through(pair, x, *args, num_samples=self.num_particles, draw=self.draw)

    def draw(self, choice: Choice) -> Tensor:
        """A sample, with the gradient of its mean."""
        return with_gradient_of(choice.sample(), choice.mean)
