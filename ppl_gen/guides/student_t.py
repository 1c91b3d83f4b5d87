"""A guide with heavier tails than a Gaussian."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor

from ppl_gen.errors import require
from ppl_gen.guides.amortized import Amortized


class StudentT(Amortized):
    """q(z | x) = prod_m t(z_m; df, mu(x)_m, sigma(x)_m). Where the guide's tails are lighter than the posterior's,
    single importance weights dominate all others; these are never lighter than a Gaussian's.

    :param df: degrees of freedom; the smaller, the heavier the tails. A variance exists above 2.
    """

    def __init__(self, *supplied: Any, df: float = 5.0, **amortized: Any):
        require(df > 0, "guide.df", df, "must be above 0")
        super().__init__(*supplied, **amortized)
        self.df = df

    def context_dim(self) -> int:
        return 2 * self.latent_dim

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.StudentT(self.df, loc, log_scale.exp()).to_event(1)
