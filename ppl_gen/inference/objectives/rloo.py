"""The score function with a leave-one-out baseline."""

from typing import ClassVar

from torch import Tensor

from ppl_gen.core.contracts import Draws, ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.densities import minus_leave_one_out_mean
from ppl_gen.inference.pair import Terms

__all__ = ["RLOO"]


class RLOO:
    """The ELBO, with REINFORCE for the guide and a leave-one-out baseline,

        (1/K) sum_k (log w_k - mean_{j != k} log w_j) grad log q(z_k | x),

    with log w = log p(x, z) - log q(z | x) (Kool, van Hoof and Welling 2019, equation 8; Mnih and Rezende 2016, section
    2.5). It is unbiased, for any guide with a density, and needs no derivative with respect to z.

    :param num_particles: K, at least 2.
    """

    draws: ClassVar[Draws] = "detached"
    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 2):
        require(num_particles > 1, "num_particles", num_particles, "rloo needs at least 2 samples")
        self.num_particles = num_particles

    def surrogate(self, terms: Terms) -> Tensor:
        """log p(x, z) and the scores [images]."""
        score = minus_leave_one_out_mean(terms.log_weight) * terms.log_guide
        return (terms.log_likelihood + terms.log_prior + score).mean(0)

    def bound(self, terms: Terms) -> Tensor:
        """The ELBO [images]."""
        return terms.log_weight.mean(0)
