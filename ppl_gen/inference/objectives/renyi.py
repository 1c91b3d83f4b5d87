"""The Rényi bound."""

import math

import torch
from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.objectives.loss import log_mean_weight
from ppl_gen.inference.pair import Terms

__all__ = ["Renyi"]


class Renyi:
    """1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha), with reparametrized samples (Li and Turner 2016, equation 13).
    It is L_K at alpha = 0, and the ELBO in the limit alpha = 1. With infinite K it is a lower bound on log p(x) for
    alpha > 0 and an upper bound for alpha < 0. With finite K it is lower in expectation.

    :param num_particles: K.
    :param alpha: Order of the Rényi divergence.
    """

    def __init__(self, *, num_particles: int = 50, alpha: float = 0.5):
        require(num_particles > 1, "num_particles", num_particles, "renyi needs at least 2 samples; try 50")
        require(math.isfinite(alpha) and alpha != 1, "alpha", alpha, "must be a number other than 1, which is elbo")
        self.num_particles, self.alpha = num_particles, alpha

    def surrogate(self, terms: Terms) -> Tensor:
        """The Rényi bound [images]."""
        log_weight = terms.log_weight
        # Near alpha = 1, the rounding of large numbers would be divided by 1 - alpha.
        center = log_weight.detach().mean(0)
        scaled = (1 - self.alpha) * (log_weight - center).double()
        close = scaled.abs().amax(0) < 1
        mean = torch.where(close, torch.where(close, scaled, 0.0).expm1().mean(0).log1p(), log_mean_weight(scaled))
        return center + (mean / (1 - self.alpha)).to(log_weight.dtype)
