"""The posterior of factor analysis in closed form."""

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import LinearGaussianModel, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.networks.observed import any_missing, is_missing


class ExactGaussian(nn.Module):
    """q(z | x) = p(z | x) = N(A^-1 V psi^(-1/2) (x - mu), A^-1), with A = I + V V^T, for a model with W = V psi^(1/2):
    Tipping and Bishop (1999), equation 6, where W is the transpose of W here. The guide has no parameters of its own.
    log p(x, z) - log q(z | x) is log p(x) for every z. Pixels that are missing (NaN) are left out of x, V and psi, so
    that q is p(z | x_obs), with an A for each image.

    >>> from ppl_gen.models.factor_analysis import FactorAnalysis
    >>> model = FactorAnalysis(16, latent_dim=2)
    >>> guide = ExactGaussian("z", model)
    >>> x = model.model(n=3)
    >>> q = guide.posterior(guide.encode(x))
    >>> z = q.sample()
    >>> log_w = model.likelihood(z).log_prob(x) + model.prior().log_prob(z) - q.log_prob(z)
    >>> torch.allclose(log_w, model.log_px(x).float(), rtol=1e-3)
    True

    :param model: a `FactorAnalysis`.
    """

    takes_missing: ClassVar = True

    def __init__(self, latent_name: str, model: nn.Module):
        super().__init__()
        if not offers(model, LinearGaussianModel):
            raise BadInput(f"the guide exact-gaussian needs the model factor-analysis, not {type(model).__name__}")
        self.latent_name = latent_name
        self.model = model

    def _precision(self) -> Tensor:
        """A [latent_dim, latent_dim]."""
        v = self.model.scaled_weight
        return _plus_identity(v @ v.T)

    def encode(self, x: Tensor) -> Tensor:
        """Posterior mean [images, latent_dim] of images [images, data_dim]. With missing pixels, the posterior's
        precision A follows it, [images, latent_dim + latent_dim^2]."""
        v = self.model.scaled_weight
        if not any_missing(x):
            standard = (x - self.model.loc) * (-self.model.log_psi / 2).exp()
            return torch.linalg.solve(self._precision(), v @ standard.T).T
        missing = is_missing(x)
        seen = (~missing).to(v.dtype)
        # NaN is replaced before anything is computed: a gradient of 0 times NaN would be NaN.
        standard = (torch.where(missing, 0.0, x) - self.model.loc) * (-self.model.log_psi / 2).exp() * seen
        precision = _plus_identity(torch.einsum("id,nd,jd->nij", v, seen, v))
        mean = torch.linalg.solve(precision, (standard @ v.T).unsqueeze(-1)).squeeze(-1)
        return torch.cat([mean, precision.flatten(1)], 1)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is what `encode` returns."""
        units = len(self.model.scaled_weight)
        if context.shape[-1] == units:
            return dist.MultivariateNormal(context, precision_matrix=self._precision())
        mean, precision = context[..., :units], context[..., units:].unflatten(-1, (units, units))
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))


def _plus_identity(product: Tensor) -> Tensor:
    """I + V V^T from products [..., n, n]. It is symmetric to the last bit: a check of Pyro would refuse the difference
    that rounding makes where numbers are large."""
    return torch.eye(product.shape[-1], dtype=product.dtype, device=product.device) + (product + product.mT) / 2
