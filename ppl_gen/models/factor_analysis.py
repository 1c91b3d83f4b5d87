"""Factor analysis and probabilistic PCA: a continuous latent vector, and log p(x) in closed form."""

import math
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require, require_choice
from ppl_gen.networks.observed import any_missing, is_missing

Noise = Literal["diagonal", "isotropic"]


class FactorAnalysis(nn.Module):
    """p(z) = N(0, I) and p(x | z) = N(W^T z + mu, diag psi). This is factor analysis. With one psi for all pixels it is
    probabilistic PCA: Tipping and Bishop (1999), equations 1 to 6. p(x) = N(mu, W^T W + diag psi) is a density.

    The parameter V is learned in place of W = V psi^(1/2), so that a pixel's loadings and its noise change together:
    psi differs between pixels by many orders of magnitude.

    >>> model = FactorAnalysis(16, latent_dim=2)
    >>> x = model.model(n=5)
    >>> model.log_px(x).shape, model.weight.shape, model.psi.shape
    (torch.Size([5]), torch.Size([2, 16]), torch.Size([16]))

    :param data_examples: training images [n, data_dim], whose PCA the parameters start from.
    :param data_mean: mean training pixel [data_dim], where mu starts.
    :param latent_dim: Number of latent units (factors).
    :param noise: Variance of the noise. diagonal: one for each pixel (factor analysis). isotropic: one for all pixels
        (probabilistic PCA).
    """

    default_guide = "exact-gaussian"
    takes_missing: ClassVar = True
    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 0.03,
        "schedule": "cosine",
        "batch_size": 500,
        "epochs": 30,
    }
    data_defaults: ClassVar[dict[str, Any]] = {"binarization": "dequantized"}

    def __init__(
        self,
        data_dim: int,
        data_examples: Tensor | None = None,
        data_mean: Tensor | None = None,
        *,
        latent_dim: int = 20,
        noise: Noise = "diagonal",
    ):
        require(
            1 <= latent_dim < data_dim, "latent_dim", latent_dim, f"must be at least 1 and below {data_dim}, the pixels"
        )
        require_choice("noise", noise, Noise)
        super().__init__()
        examples = torch.randn(2 * data_dim, data_dim) if data_examples is None else data_examples
        loadings, psi = _pca(examples, latent_dim)
        if noise == "isotropic":
            psi = psi.mean().reshape(1)
        self.scaled_weight = nn.Parameter(loadings / psi.sqrt())
        self.log_psi = nn.Parameter(psi.log())
        self.loc = nn.Parameter(examples.mean(0) if data_mean is None else data_mean.clone())
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_dim), persistent=False)

    prior_loc: Tensor
    prior_scale: Tensor

    @property
    def weight(self) -> Tensor:
        """W [latent_dim, data_dim]."""
        return self.scaled_weight * (self.log_psi / 2).exp()

    @property
    def psi(self) -> Tensor:
        """Noise variance of each pixel [data_dim]."""
        return self.log_psi.exp().expand(len(self.loc))

    def prior(self) -> dist.TorchDistribution:
        """p(z), event [latent_dim]."""
        return dist.Normal(self.prior_loc, self.prior_scale).to_event(1)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z [..., latent_dim], event [data_dim]."""
        return dist.Normal(z @ self.weight + self.loc, (self.log_psi / 2).exp()).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def log_px(self, x: Tensor) -> Tensor:
        """log p(x) in nats [images], in float64, of images [images, data_dim]. Of images with missing pixels (NaN),
        log p(x_obs): the marginal of a normal distribution leaves out their rows and columns."""
        weight, psi, loc = self.weight.double(), self.psi.double(), self.loc.double()
        missing = is_missing(x)
        if not any_missing(x):
            return dist.LowRankMultivariateNormal(loc, weight.T, psi).log_prob(x.double())
        # By Woodbury's identity, with A = I + V_obs V_obs^T, as in the guide exact-gaussian.
        seen, v = (~missing).double(), weight / psi.sqrt()
        standard = (torch.where(missing, 0.0, x.double()) - loc) / psi.sqrt() * seen
        precision = torch.eye(len(v), dtype=v.dtype, device=v.device) + torch.einsum("id,nd,jd->nij", v, seen, v)
        cholesky, projected = torch.linalg.cholesky(precision), (standard @ v.T).unsqueeze(-1)
        explained = torch.linalg.solve_triangular(cholesky, projected, upper=False).square().sum((1, 2))
        log_det = seen @ (2 * math.pi * psi).log() + 2 * cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
        return -(log_det + standard.square().sum(1) - explained) / 2


def _pca(examples: Tensor, latent_dim: int) -> tuple[Tensor, Tensor]:
    """The most likely W [latent_dim, data_dim] of probabilistic PCA (Tipping and Bishop 1999, equations 7 and 8), and
    the variance of each pixel [data_dim] that W does not explain."""
    centered = (examples - examples.mean(0)).double()
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(examples))  # ascending
    rest = variances[:-latent_dim].mean()
    loadings = (axes[:, -latent_dim:] * (variances[-latent_dim:] - rest).clamp(min=1e-6).sqrt()).T
    # A pixel that never varies would start at psi = 0, and log psi would stay at minus infinity.
    psi = (centered.square().mean(0) - loadings.square().sum(0)).clamp(min=1e-4)
    return loadings.float(), psi.float()
