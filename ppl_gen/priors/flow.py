"""The normalizing flow as prior."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.flows import Autoregressive, FlowDistribution


class Flow(nn.Module):
    """p(z) is the distribution of z = f(e) for e ~ N(0, I), where f is composed of spline couplings: Durkan et al.
    (2019). The density of z takes one pass through each coupling, and a sample takes two.

    >>> prior = Flow(2, num_transforms=2).prior()
    >>> z = prior.sample((5,))
    >>> z.shape, prior.log_prob(z).shape
    (torch.Size([5, 2]), torch.Size([5]))

    :param num_transforms: Number of couplings. They transform one half of z and the other half in turn.
    :param transform_dims: Units of the hidden layers of each coupling's network.
    :param num_bins: Number of bins of a spline. A spline covers [-5, 5].
    """

    zeros: Tensor

    def __init__(
        self,
        latent_dim: int,
        *,
        num_transforms: int = 4,
        transform_dims: tuple[int, ...] = (128, 128),
        num_bins: int = 8,
    ):
        require(num_transforms >= 1, "prior.num_transforms", num_transforms, "must be at least 1")
        require(min(transform_dims, default=1) >= 1, "prior.transform_dims", transform_dims, "at least 1 unit each")
        require(num_bins >= 2, "prior.num_bins", num_bins, "must be at least 2")
        super().__init__()
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
        self.transforms = nn.ModuleList(
            Autoregressive(
                latent_dim, 0, reverse=bool(index % 2), passes=2, num_bins=num_bins, hidden_dims=transform_dims
            )
            for index in range(num_transforms)
        )

    def prior(self) -> dist.TorchDistribution:
        """p(z), event [latent_dim]."""
        base = dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1)
        # Inverted: training needs the density of z, so the direction from z to e is the one that takes a single pass.
        return FlowDistribution(base, [transform().inv for transform in self.transforms])
