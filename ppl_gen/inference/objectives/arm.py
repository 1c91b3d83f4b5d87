"""Antithetic gradients of binary draws."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.learning_signals import parts_of
from ppl_gen.inference.objectives.loss import broadcast_weights, name_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, Part, Sampled, check_choices, given, loss_with, sampled
from ppl_gen.inference.thinning import check_noise

__all__ = ["ARM"]


class ARM:
    """The ELBO with the augment-REINFORCE-merge gradient (Yin and Zhou 2019, theorem 1): for f = log p(x, z) -
    log q(z | x), log-odds l, and one uniform u for each unit,

        d E[f] / dl = E[(f(1[u > sigmoid(-l)]) - f(1[u < sigmoid(l)])) (u - 1/2)].

    It is unbiased, for binary sites, and needs no derivative with respect to z. It takes two values of f. For several
    layers, each layer is turned given the samples of the layers before it, and those after it are drawn again: one more
    value of f for each layer. f is then the terms that the layer changes (`Sampled.signal`).

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
        found, noise, differences = antithetic(pair, x, *args, num_samples=self.num_particles, parts=self.parts)
        return loss_with(found, {name: differences[name] * (u - 0.5) for name, u in noise.items()})


def antithetic(
    pair: Pair, x: Tensor, *args: Any, num_samples: int, parts: Mapping[str, Part]
) -> tuple[Sampled, Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Samples z = 1[u < sigmoid(l)] of binary sites; the uniform u of each site; and for each site the difference
    f(1[u > sigmoid(-l)]) - f(z), which broadcasts with the site's value, for the site's learning signal f."""
    noise: dict[str, Tensor] = {}

    def draw(choice: Choice) -> Tensor:
        noise[choice.name] = torch.rand_like(choice.logits)
        return (noise[choice.name] < choice.mean).to(choice.logits.dtype)

    found = sampled(pair, x, *args, num_samples=num_samples, draw=draw, parts=parts)
    differences, before = {}, dict[str, Tensor]()
    for name, choice in found.choices.items():
        turned = (1 - noise[name] < choice.mean).to(choice.logits.dtype)
        with torch.no_grad():
            others = given({**before, name: turned}, Choice.sample)
            other = sampled(pair, x, *args, num_samples=num_samples, draw=others, parts=parts)
            difference = other.signal(name) - found.signal(name)
        differences[name] = broadcast_weights(pair, difference, name, turned)
        before[name] = found.values[name]
    return found, noise, differences
