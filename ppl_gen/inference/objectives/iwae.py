"""The importance-weighted bound."""

from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.pair import Terms
from ppl_gen.inference.thinning import check_backward

__all__ = ["IWAE"]


class IWAE:
    """L_K = log (1/K) sum_k w_k with w_k = p(x, z_k) / q(z_k | x) and z_k ~ q(z | x) (Burda et al. 2016, equation 8),
    with the gradient through reparametrized samples (equation 13). The signal-to-noise ratio of the guide's gradient
    falls as 1 / sqrt(K) (Rainforth et al. 2018).

    :param num_particles: K.
    :param backward: Samples that the gradient goes through, fewer than K, drawn by weight: the expected gradient is the
        same (Burda et al. 2016, section 3). All by default.
    """

    def __init__(self, *, num_particles: int = 50, backward: int | None = None):
        require(num_particles > 1, "num_particles", num_particles, "iwae needs at least 2 samples; try 50")
        check_backward(backward, num_particles)
        self.num_particles, self.backward = num_particles, backward

    def surrogate(self, terms: Terms) -> Tensor:
        """L_K [images]."""
        return log_mean_weight(terms.log_weight)
