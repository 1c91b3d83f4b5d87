"""The mean over groups of the importance-weighted bound."""

from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.pair import Terms

__all__ = ["MIWAE"]


class MIWAE:
    """(1/M) sum_m L_K(m): the mean over M groups of samples of their importance-weighted bounds of K samples each. It
    is the multiply importance-weighted autoencoder (Rainforth et al. 2018), `elbo` at K = 1 and `iwae` at M = 1. For M
    K samples in all, more groups raise the signal-to-noise ratio of the guide's gradient and loosen the bound.

    :param num_particles: M K.
    :param groups: Number M of groups that the samples are divided into.
    """

    def __init__(self, *, num_particles: int = 8, groups: int = 2):
        require(groups >= 1, "objective.groups", groups, "must be at least 1")
        rule = f"must be a multiple of the {groups} groups; try {4 * groups}"
        require(num_particles >= 1 and num_particles % groups == 0, "num_particles", num_particles, rule)
        self.num_particles, self.groups = num_particles, groups

    def surrogate(self, terms: Terms) -> Tensor:
        """The mean of L_K over the groups [images]."""
        return log_mean_weight(terms.log_weight.unflatten(0, (self.groups, -1)), 1).mean(0)
