"""Guides with few parameters, for pairs whose log weights and gradients are written out by hand; float64."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pairs import LinearGaussian
from torch import Tensor, nn

F64 = torch.float64


class Affine(nn.Module):
    """q(z | x) = N(A x, diag exp(s)^2), for `LinearGaussian`."""

    def __init__(self, model: LinearGaussian):
        super().__init__()
        data_dim, latent_dim = model.weight.shape
        self.a = nn.Parameter(0.3 * torch.randn(latent_dim, data_dim, dtype=F64))
        self.s = nn.Parameter(0.3 * torch.randn(latent_dim, dtype=F64) - 0.5)

    def distribution(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x @ self.a.T, self.s.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.distribution(x))

    def log_weights(self, model: LinearGaussian, x: Tensor, count: int) -> Tensor:
        """log p(x, z) - log q(z | x) [count, images], from the noise that a vectorized pair draws."""
        q = self.distribution(x).expand([count, len(x)])
        z = q.rsample()
        return model.prior().log_prob(z) + model.likelihood(z).log_prob(x) - q.log_prob(z)


class Repeated(Affine):
    """Near the posterior, with a scale of its own for each repetition of an image, and so a gradient for each.

    :param wider: added to the logarithm of the scale of the posterior.
    """

    def __init__(self, model: LinearGaussian, repetitions: int, wider: float):
        super().__init__(model)
        exact = model.posterior(torch.eye(3, dtype=F64))
        with torch.no_grad():
            self.a.copy_(exact.loc.T + 0.02)
            scale = exact.covariance_matrix[0].diagonal().log() / 2 + wider
        self.s = nn.Parameter(scale.detach().expand(repetitions, -1).clone())

    def distribution(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Normal(x @ self.a.T, self.s[: len(x)].exp()).to_event(1)


class TwoLayerGuide(nn.Module):
    """q(lower | x) q(upper | lower), for `TwoLayers`: gradients also pass from upper through lower."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.4, 0.3, -0.1], dtype=F64))

    def guide(self, x: Tensor) -> None:
        a, b, c, d = self.w
        with pyro.plate("images", len(x), dim=-1):
            lower = pyro.sample("lower", dist.Normal(a * x.mean(1), b.exp()))
            pyro.sample("upper", dist.Normal(c * lower, d.exp()))


def gradient(loss: Tensor, module: nn.Module, **options: Any) -> Tensor:
    """The gradient of a loss in all parameters of a module, as one vector."""
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(module.parameters()), **options)])
