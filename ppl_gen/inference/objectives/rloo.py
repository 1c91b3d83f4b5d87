"""The score function with a leave-one-out baseline."""

from typing import Any, ClassVar

from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.densities import add, minus_leave_one_out_mean
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.learning_signals import parts_of, scores_of
from ppl_gen.inference.objectives.loss import check_draws
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Part

__all__ = ["RLOO"]


class RLOO:
    """The ELBO, with REINFORCE for the guide and a leave-one-out baseline,

        (1/K) sum_k (log w_k - mean_{j != k} log w_j) grad log q(z_k | x),

    with log w = log p(x, z) - log q(z | x) (Kool, van Hoof and Welling 2019, equation 8; Mnih and Rezende 2016, section
    2.5). It is unbiased, for any guide with a density, and needs no derivative with respect to z. Of several discrete
    sites, each has its own signal: the terms of log w that it changes (`Sampled.signal`).

    :param num_particles: K, at least 2.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 2):
        require(num_particles > 1, "num_particles", num_particles, "rloo needs at least 2 samples")
        self.num_particles = num_particles
        self.parts: dict[str, Part] = {}

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_draws(self, pair, "detached", x, *args)
        self.parts = parts_of(pair, x, *args)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images."""
        found = scores_of(pair, x, *args, num_samples=self.num_particles, parts=self.parts)
        scores = [minus_leave_one_out_mean(signal) * log_q for signal, log_q in found.of_sites]
        return with_gradient_of(-found.log_weight.mean(0).sum(), -(found.log_joint + add(scores)).mean(0).sum())
