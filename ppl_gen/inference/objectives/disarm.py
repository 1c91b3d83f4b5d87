"""Antithetic gradients of binary draws, without the noise that chose them."""

from typing import Any, ClassVar

from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.learning_signals import parts_of
from ppl_gen.inference.objectives.arm import antithetic
from ppl_gen.inference.objectives.loss import name_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Part, check_choices, loss_with
from ppl_gen.inference.thinning import check_noise

__all__ = ["Disarm"]


class Disarm:
    """The ELBO with the DisARM gradient (Dong, Mnih and Tucker 2020, equation 7; found independently as U2G by Yin et
    al. 2020): that of `arm`, with its expectation over u given the two values z = 1[u < sigmoid(l)] and
    z' = 1[1 - u < sigmoid(l)],

        (1/2) (f(z') - f(z)) (-1)^z 1[z != z'] sigmoid(|l|).

    It is unbiased, for binary sites, and needs no derivative with respect to z. Its variance is at most that of `arm`,
    and its cost is the same.

    :param num_particles: K, the number of pairs over which it is averaged.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 1):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        self.num_particles = num_particles
        self.parts: dict[str, Part] = {}

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_choices(self, pair, x, *args, kinds=("binary",))
        check_noise(f"--objective {name_of(self)}", pair, x, *args, instead="rloo")
        self.parts = parts_of(pair, x, *args)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images."""
        how: dict[str, Any] = {"num_samples": self.num_particles, "parts": self.parts}
        found, noise, differences = antithetic(pair, x, *args, **how)
        gradients = {}
        for name, choice in found.choices.items():
            z, mean = found.values[name], choice.mean
            differ = (1 - noise[name] < mean).to(z.dtype) != z
            gradients[name] = differences[name] / 2 * (1 - 2 * z) * differ * choice.logits.abs().sigmoid()
        return loss_with(found, gradients)
