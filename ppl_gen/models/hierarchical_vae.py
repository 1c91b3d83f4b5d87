"""A variational autoencoder with several stochastic layers."""

from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.nets import Activation, mlp


class HierarchicalVAE(nn.Module):
    """p(z_L) = N(0, I), p(z_l | z_{l+1}) = N(mu(z_{l+1}), diag sigma(z_{l+1})^2) and
    p(x | z_1) = prod_d Bernoulli(x_d; decoder(z_1)_d): Burda et al. (2016), section 5. The defaults are the sizes of
    its two layers. The latent sites are "z1", next to the image, "z2", …

    >>> model = HierarchicalVAE(64, latent_dims=(5, 3, 2), hidden_dims=(20, 10, 10))
    >>> model.model(n=4).shape
    torch.Size([4, 64])

    :param data_mean: mean training pixel [data_dim]; the output bias starts at its log-odds.
    :param latent_dims: Number of latent units of each stochastic layer: z_1, z_2, ….
    :param hidden_dims: Units of the hidden layers: two layers of the first number between x and z_1, two of the second
        between z_1 and z_2, ….
    :param activation: Nonlinearity between layers.
    """

    default_guide = "hierarchical"

    def __init__(
        self,
        data_dim: int,
        data_mean: Tensor | None = None,
        *,
        latent_dims: tuple[int, ...] = (100, 50),
        hidden_dims: tuple[int, ...] = (200, 100),
        activation: Activation = "tanh",
    ):
        require(len(latent_dims) > 0 and min(latent_dims) >= 1, "latent_dims", latent_dims, "at least 1 unit per layer")
        same = len(hidden_dims) == len(latent_dims) and min(hidden_dims) >= 1
        require(same, "hidden_dims", hidden_dims, "as many sizes as --latent-dims, of at least 1 unit")
        super().__init__()
        self.latent_dims, self.hidden_dims, self.activation = latent_dims, hidden_dims, activation
        self.decoder = mlp([latent_dims[0], hidden_dims[0], hidden_dims[0], data_dim], activation)
        if data_mean is not None:
            output: Any = self.decoder[-1]
            with torch.no_grad():
                output.bias.copy_(torch.logit(data_mean))
        self.layers = nn.ModuleList(
            mlp([upper, hidden, hidden, 2 * lower], activation)
            for (lower, upper), hidden in zip(pairwise(latent_dims), hidden_dims[1:], strict=True)
        )
        self.register_buffer("top_loc", torch.zeros(latent_dims[-1]), persistent=False)

    top_loc: Tensor

    def top_prior(self) -> dist.TorchDistribution:
        """p(z_L), event [latent_dims[-1]]."""
        return dist.Normal(self.top_loc, torch.ones_like(self.top_loc)).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z_1, …, z_L) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        depth = len(self.latent_dims)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample(f"z{depth}", self.top_prior())
            for layer in range(depth - 1, 0, -1):
                loc, log_scale = self.layers[layer - 1](z).chunk(2, -1)
                z = pyro.sample(f"z{layer}", dist.Normal(loc, log_scale.exp()).to_event(1))
            return pyro.sample("x", BernoulliVector(self.decoder(z)), obs=x)
