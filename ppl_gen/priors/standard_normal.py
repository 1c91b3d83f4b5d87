"""The standard normal prior."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """p(z) = N(0, I), which most models have as their own prior.

    >>> StandardNormal(2).prior().log_prob(torch.zeros(2))  # -log(2 pi)
    tensor(-1.8379)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def prior(self) -> dist.TorchDistribution:
        """p(z), event [latent_dim]."""
        return dist.Normal(self.loc, self.scale).to_event(1)
