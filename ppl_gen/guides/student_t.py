"""A guide with heavier tails than a Gaussian."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_gen.errors import require
from ppl_gen.guides.amortized import Amortized


class StudentT(Amortized):
    """q(z | x) = prod_m t(z_m; df, mu(x)_m, sigma(x)_m). Where the guide's tails are lighter than the posterior's,
    single importance weights dominate all others; these are never lighter than a Gaussian's.

    :param df: degrees of freedom; the smaller, the heavier the tails. A variance exists above 2.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str | None,
        model: nn.Module,
        *,
        df: float = 5.0,
        **body: Any,
    ):
        require(df > 0, "guide.df", df, "must be above 0")
        super().__init__(data_shape, latent_name, model, 2 * latent_dim, **body)
        self.df = df

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.StudentT(self.df, loc, log_scale.exp()).to_event(1)
