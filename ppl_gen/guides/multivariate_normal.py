"""Gaussian guides with correlations."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.errors import require
from ppl_gen.guides.amortized import Amortized

_START = 0.01


class MultivariateNormal(Amortized):
    """q(z | x) = N(mu(x), L(x) L(x)^T), L lower triangular with a positive diagonal, so that the covariance is any:
    Kingma and Welling (2019), section 2.5.1. Or N(mu(x), F(x) F(x)^T + diag sigma(x)^2), F with `rank` columns, whose
    parameters grow with the latent size instead of its square: Ong, Nott and Smith (2018).

    :param rank: columns of F; 0 for L.
    """

    below: Tensor

    def __init__(self, *supplied: Any, rank: int = 0, **amortized: Any):
        require(rank >= 0, "guide.rank", rank, "must be at least 0")
        self.rank = rank
        super().__init__(*supplied, **amortized)
        below = torch.tril_indices(self.latent_dim, self.latent_dim, -1)
        self.register_buffer("below", below[0] * self.latent_dim + below[1], persistent=False)
        # The many entries off the diagonal start near 0: at the scale of the others they would drown it in noise.
        last = [module for module in self.encoder.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter[2 * self.latent_dim :] *= _START

    def context_dim(self) -> int:
        covariances = self.latent_dim * self.rank if self.rank else self.latent_dim * (self.latent_dim - 1) // 2
        return 2 * self.latent_dim + covariances

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of mu, log sigma or the logarithm of the diagonal of L, and the entries of F or of L below its diagonal.
        Those of a row are in units of its sigma."""
        loc, log_scale, rest = context.split(
            [self.latent_dim, self.latent_dim, context.shape[-1] - 2 * self.latent_dim], -1
        )
        scale = log_scale.exp()
        if self.rank:
            factor = rest.unflatten(-1, (self.latent_dim, self.rank)) * scale.unsqueeze(-1)
            return dist.LowRankMultivariateNormal(loc, factor, scale.square())
        square = torch.zeros(*rest.shape[:-1], self.latent_dim**2, dtype=rest.dtype, device=rest.device)
        square = square.index_copy(-1, self.below, rest).unflatten(-1, (self.latent_dim, self.latent_dim))
        unit = torch.eye(self.latent_dim, dtype=rest.dtype, device=rest.device)
        return dist.MultivariateNormal(loc, scale_tril=(square + unit) * scale.unsqueeze(-1))
