"""The straight-through gradient of relaxed draws."""

from typing import Any, ClassVar

from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, check_choices, hard, loss_through, noise_for, relaxed

__all__ = ["StraightThroughGumbel"]


class StraightThroughGumbel:
    """The ELBO at samples of z, each with the gradient of the relaxed draw from the same noise (Jang, Gu and Poole
    2017, section 2.2): the straight-through Gumbel-softmax.

    Biased for the guide. The model's gradient is unbiased. The model must be differentiable with respect to z.

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
        """-ELBO, summed over the images."""
        return loss_through(pair, x, *args, num_samples=self.num_particles, draw=self.draw)

    def draw(self, choice: Choice) -> Tensor:
        """The value that noise chooses, with the gradient of the relaxed one."""
        noise = noise_for(choice)
        return with_gradient_of(hard(choice, noise), relaxed(choice, noise, self.temperature))
