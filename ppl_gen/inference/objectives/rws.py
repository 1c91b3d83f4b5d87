"""Reweighted wake-sleep, with the wake phase for the guide."""

from typing import ClassVar

from torch import Tensor

from ppl_gen.core.contracts import Draws
from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.pair import Terms
from ppl_gen.inference.thinning import check_backward

__all__ = ["RWS"]


class RWS:
    """Reweighted wake-sleep, "wake-wake" (Bornschein and Bengio 2015, equations 4 and 6). Model and guide ascend the
    log-probability of the samples, weighted by w~_k = w_k / sum_j w_j: sum_k w~_k log p(x, z_k) and
    sum_k w~_k log q(z_k | x).

    For the model this is the gradient of L_K. For the guide it is the gradient of -KL(p(z | x) || q(z | x)), not of a
    bound. Both are biased at finite K. The reported number is L_K.

    :param num_particles: K.
    :param backward: Samples that the model's gradient goes through, fewer than K, drawn by weight: the expected
        gradient is the same (Burda et al. 2016, section 3). All by default.
    """

    draws: ClassVar[Draws] = "detached"

    def __init__(self, *, num_particles: int = 10, backward: int | None = None):
        require(num_particles > 1, "num_particles", num_particles, "rws needs at least 2 samples; try 10")
        check_backward(backward, num_particles)
        self.num_particles, self.backward = num_particles, backward

    def surrogate(self, terms: Terms) -> Tensor:
        """The weighted log-probabilities [images]."""
        share = terms.log_weight.detach().softmax(0)
        return (share * (terms.log_likelihood + terms.log_prior + terms.log_guide)).sum(0)

    def bound(self, terms: Terms) -> Tensor:
        """L_K [images]."""
        return log_mean_weight(terms.log_weight)
