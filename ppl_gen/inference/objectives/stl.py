"""The evidence lower bound, "sticking the landing"."""

from typing import ClassVar

from torch import Tensor

from ppl_gen.core.contracts import Draws
from ppl_gen.core.errors import require
from ppl_gen.inference.pair import Terms

__all__ = ["STL"]


class STL:
    """The mean of K ELBOs, (1/K) sum_k log w_k, with the guide's gradient through z only: the score of q, whose mean
    is zero, is left out. The variance of the gradient vanishes if the guide is the exact posterior (Roeder et al. 2017,
    equation 8).

    :param num_particles: K.
    """

    draws: ClassVar[Draws] = "frozen-guide"

    def __init__(self, *, num_particles: int = 1):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        self.num_particles = num_particles

    def surrogate(self, terms: Terms) -> Tensor:
        """The mean log weight [images]."""
        return terms.log_weight.mean(0)
