"""The importance-weighted bound for the model, and its mean over groups for the guide."""

from torch import Tensor

from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.objectives.miwae import MIWAE
from ppl_gen.inference.pair import Terms

__all__ = ["PIWAE"]


class PIWAE(MIWAE):
    """L_MK of all samples for the model, as `IWAE`, and the mean over M groups of L_K for the guide, as `MIWAE`: the
    partially importance-weighted autoencoder (Rainforth et al. 2018). The model has the tighter bound, and the guide
    the gradient with the higher signal-to-noise ratio. The reported number is L_MK.

    :param num_particles: M K.
    :param groups: Number M of groups that the samples are divided into.
    """

    def surrogate(self, terms: Terms) -> Tensor:
        """L_MK [images]."""
        return log_mean_weight(terms.log_weight)

    def guide_surrogate(self, terms: Terms) -> Tensor:
        """The mean of L_K over the groups [images]."""
        return super().surrogate(terms)
