"""The importance-weighted bound for the model, and its mean over groups for the guide."""

from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.pair import Terms

__all__ = ["PIWAE"]


class PIWAE:
    """L_MK of all samples for the model, as `IWAE`, and the mean over M groups of L_K for the guide, as `MIWAE`: the
    partially importance-weighted autoencoder (Rainforth et al. 2018). The model has the tighter bound, and the guide
    the gradient with the higher signal-to-noise ratio. The reported number is L_MK.

    :param num_particles: M K.
    :param groups: Number M of groups that the samples are divided into.
    """

    def __init__(self, *, num_particles: int = 8, groups: int = 2):
        require(groups >= 1, "objective.groups", groups, "must be at least 1")
        rule = f"must be a multiple of the {groups} groups; try {4 * groups}"
        require(num_particles >= 1 and num_particles % groups == 0, "num_particles", num_particles, rule)
        self.num_particles, self.groups = num_particles, groups

    def surrogate(self, terms: Terms) -> Tensor:
        """L_MK [images]."""
        return log_mean_weight(terms.log_weight)

    def guide_surrogate(self, terms: Terms) -> Tensor:
        """The mean of L_K over the groups [images]."""
        return log_mean_weight(terms.log_weight.unflatten(0, (self.groups, -1)), 1).mean(0)
