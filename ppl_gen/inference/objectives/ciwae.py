"""A mean of the evidence lower bound and the importance-weighted bound."""

from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.pair import Terms

__all__ = ["CIWAE"]


class CIWAE:
    """beta ELBO + (1 - beta) L_K, both from the same K samples: the combination importance-weighted autoencoder
    (Rainforth et al. 2018). It is `iwae` at beta = 0 and `elbo` at beta = 1. A larger beta raises the signal-to-noise
    ratio of the guide's gradient and loosens the bound.

    :param num_particles: K.
    :param beta: Weight of the ELBO.
    """

    def __init__(self, *, num_particles: int = 50, beta: float = 0.5):
        require(num_particles > 1, "num_particles", num_particles, "ciwae needs at least 2 samples; try 50")
        require(0 <= beta <= 1, "beta", beta, "must be from 0 to 1 for ciwae")
        self.num_particles, self.beta = num_particles, beta

    def surrogate(self, terms: Terms) -> Tensor:
        """The weighted mean of the two bounds [images]."""
        return self.beta * terms.log_weight.mean(0) + (1 - self.beta) * log_mean_weight(terms.log_weight)
