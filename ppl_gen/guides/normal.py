"""The diagonal Gaussian guide."""

import pyro.distributions as dist
from torch import Tensor

from ppl_gen.guides.amortized import Amortized


class Normal(Amortized):
    """q(z | x) = N(mu(x), diag sigma(x)^2), one network with two heads: Kingma and Welling (2014), equation 9."""

    def context_dim(self) -> int:
        return 2 * self.latent_dim

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
