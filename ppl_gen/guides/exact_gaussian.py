"""The posterior of factor analysis, in closed form."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.errors import BadInput


class ExactGaussian(nn.Module):
    """q(z | x) = p(z | x) = N(A^-1 V psi^(-1/2) (x - mu), A^-1), A = I + V V^T, of a model with W = V psi^(1/2):
    Tipping and Bishop (1999), equation 6 (with W there the transpose of W here). It has no parameters of its own. log
    p(x, z) - log q(z | x) is log p(x) for every z.

    :param latent_name: name of the model's latent site.
    :param model: a `FactorAnalysis`.
    """

    def __init__(self, latent_name: str, model: nn.Module):
        super().__init__()
        if not all(hasattr(model, name) for name in ("scaled_weight", "log_psi", "loc")):
            raise BadInput(f"the guide exact-gaussian is that of factor-analysis, not of {type(model).__name__}")
        self.latent_name = latent_name
        self.model: Any = model

    def _precision(self) -> Tensor:
        v = self.model.scaled_weight
        return torch.eye(len(v), dtype=v.dtype, device=v.device) + v @ v.T

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean [images, latent_dim] of images [images, data_dim]."""
        standard = (x - self.model.loc) * (-self.model.log_psi / 2).exp()
        return torch.linalg.solve(self._precision(), self.model.scaled_weight @ standard.T).T

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of the posterior's mean, event [latent_dim]."""
        return dist.MultivariateNormal(context, precision_matrix=self._precision())

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
