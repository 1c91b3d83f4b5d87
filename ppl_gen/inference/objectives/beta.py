"""The evidence lower bound with a weight of the KL term."""

import math
from typing import Any

from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from ppl_gen.core.contracts import Loss
from ppl_gen.core.errors import require
from ppl_gen.inference.elbos import PartialScoreELBO, SampledELBO, TraceEnumSampled, WeightedKL, particle_options
from ppl_gen.inference.objectives.loss import check_reparametrized, check_sampled
from ppl_gen.inference.pair import Pair

__all__ = ["Beta"]


class Beta:
    """E_q[log p(x | z)] - beta KL(q(z | x) || p(z)) (Higgins et al. 2017, equation 4), both terms sampled. A lower
    bound on log p(x) for beta >= 1 only.

    :param num_particles: K, the number of samples over which it is averaged.
    :param beta: Weight of the KL term.
    """

    def __init__(self, *, num_particles: int = 1, beta: float = 4.0):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        require(0 < beta < math.inf, "beta", beta, "must be above 0")
        self.num_particles, self.beta = num_particles, beta

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_sampled(self, pair)
        check_reparametrized(self, pair)

    def elbo(self, pair: Pair, x: Tensor, *args: Any) -> ELBO:
        """`Trace_ELBO` in which the log-densities of latent sites, in model and guide, are multiplied by beta."""
        if pair.partly_enumerated:
            return WeightedKL(TraceEnumSampled(pair, self.num_particles), self.beta)
        elbo = (PartialScoreELBO if pair.scored else Trace_ELBO)(**particle_options(pair, self.num_particles))
        return WeightedKL(elbo, self.beta)

    def loss_form(self, pair: Pair) -> Loss | None:
        return SampledELBO(pair, self.num_particles, beta=self.beta)
