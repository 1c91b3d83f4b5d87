"""Variational inference with Monte Carlo objectives: the importance-weighted bound for any guide."""

from typing import ClassVar

from torch import Tensor

from ppl_gen.core.contracts import Draws
from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight, vimco_signal
from ppl_gen.inference.pair import Terms
from ppl_gen.inference.thinning import check_backward

__all__ = ["VIMCO"]


class VIMCO:
    """L_K, as `IWAE`, with an unbiased gradient that does not pass through z (Mnih and Rezende 2016): the score
    function of each sample times its learning signal,

        sum_k (L - L_-k) grad log q(z_k | x) + sum_k w~_k grad log w_k    (equations 4, 5 and 7 to 10),

    with normalized weights w~_k, and L_-k the bound with log w_k replaced by the mean of the other log weights, which
    does not depend on z_k.

    :param num_particles: K.
    :param backward: Samples that the model's gradient goes through, fewer than K, drawn by weight: the expected
        gradient is the same (Burda et al. 2016, section 3). All by default.
    """

    draws: ClassVar[Draws] = "detached"

    def __init__(self, *, num_particles: int = 50, backward: int | None = None):
        require(num_particles > 1, "num_particles", num_particles, "vimco needs at least 2 samples; try 50")
        check_backward(backward, num_particles)
        self.num_particles, self.backward = num_particles, backward

    def surrogate(self, terms: Terms) -> Tensor:
        """L_K and the scores [images]."""
        return log_mean_weight(terms.log_weight) + (vimco_signal(terms.log_weight) * terms.log_guide).sum(0)

    def bound(self, terms: Terms) -> Tensor:
        """L_K [images]."""
        return log_mean_weight(terms.log_weight)
