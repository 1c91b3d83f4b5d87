"""Antithetic gradients of binary draws, without the noise that chose them."""

from typing import Any

from torch import Tensor

from ppl_gen.inference.objectives.arm import ARM, antithetic
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import loss_with

__all__ = ["Disarm"]


class Disarm(ARM):
    """The ELBO with the DisARM gradient (Dong, Mnih and Tucker 2020, equation 7; found independently as U2G by Yin et
    al. 2020): that of `arm`, with its expectation over u given the two values z = 1[u < sigmoid(l)] and
    z' = 1[1 - u < sigmoid(l)],

        (1/2) (f(z') - f(z)) (-1)^z 1[z != z'] sigmoid(|l|).

    It is unbiased, for binary sites, and needs no derivative with respect to z. Its variance is at most that of `arm`,
    and its cost is the same.

    :param num_particles: K, the number of pairs over which it is averaged.
    """

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
