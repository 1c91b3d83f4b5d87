"""A variational autoencoder whose prior is a mixture of Gaussians, one for each cluster."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.nets import Activation, mlp


class GaussianMixtureVAE(nn.Module):
    """p(y) = Categorical, p(z | y) = N(mu_y, diag sigma_y^2) and p(x | z) = prod_d Bernoulli(x_d; decoder(z)_d): Jiang
    et al. (2017, VaDE), equations 1 to 5.

    The cluster y is summed out, so that a guide samples z alone: the weights are sum_y p(y) p(z | y) p(x | z) /
    q(z | x). `responsibilities` shows which cluster explains an image.

    >>> model = GaussianMixtureVAE(64, latent_dim=2, num_components=3)
    >>> model.prior()
    MixtureSameFamily(
      Categorical(logits: torch.Size([3])),
      Independent(Normal(loc: torch.Size([3, 2]), scale: torch.Size([3, 2])), 1))
    >>> model.model(n=4).shape
    torch.Size([4, 64])

    :param data_mean: mean training pixel [data_dim]; the output bias starts at its log-odds.
    :param latent_dim: Number of units of z.
    :param num_components: Number of clusters, the values of y.
    :param hidden_dims: Units of the decoder's hidden layers, from the image to z.
    :param activation: Nonlinearity between layers.
    """

    def __init__(
        self,
        data_dim: int,
        data_mean: Tensor | None = None,
        *,
        latent_dim: int = 20,
        num_components: int = 10,
        hidden_dims: tuple[int, ...] = (512,),
        activation: Activation = "relu",
    ):
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be at least 1")
        require(num_components >= 1, "num_components", num_components, "must be at least 1")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        super().__init__()
        self.hidden_dims, self.activation = hidden_dims, activation
        self.decoder = mlp([latent_dim, *reversed(hidden_dims), data_dim], activation)
        if data_mean is not None:
            output: Any = self.decoder[-1]
            with torch.no_grad():
                output.bias.copy_(torch.logit(data_mean))
        self.logits = nn.Parameter(torch.zeros(num_components))
        # Means are as far apart as samples of N(0, I), so that no two clusters start alike.
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def cluster(self) -> dist.Categorical:
        """p(y), a cluster in 0 … K - 1."""
        return dist.Categorical(logits=self.logits)

    def given(self, y: Tensor) -> dist.TorchDistribution:
        """p(z | y) for y [...], event [latent_dim]."""
        return dist.Normal(self.loc[y], self.log_scale[y].exp()).to_event(1)

    def prior(self) -> dist.TorchDistribution:
        """p(z) = sum_y p(y) p(z | y), event [latent_dim]."""
        return dist.MixtureSameFamily(self.cluster(), self.given(torch.arange(len(self.logits))))

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z [..., latent_dim], event [data_dim]."""
        return BernoulliVector(self.decoder(z))

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, y, z) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            y = pyro.sample("y", self.cluster(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.given(y))
            return pyro.sample("x", self.likelihood(z), obs=x)
