"""The diagonal Gaussian guide."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_gen.guides.amortized import Amortized


class Normal(Amortized):
    """q(z | x) = N(mu(x), diag sigma(x)^2), one network with two heads: Kingma and Welling (2014), equation 9."""

    def __init__(
        self, data_shape: tuple[int, ...], latent_dim: int, latent_name: str | None, model: nn.Module, **body: Any
    ):
        super().__init__(data_shape, latent_name, model, 2 * latent_dim, **body)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
