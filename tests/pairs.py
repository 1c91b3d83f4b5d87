"""Pyro pairs whose log p(x) is known, and how estimates are held to it."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture


class LinearGaussian(nn.Module):
    """p(z) = N(0, I), p(x | z) = N(W z, noise^2 I), in float64; log p(x) and p(z | x) in closed form."""

    def __init__(self, data_dim: int = 5, latent_dim: int = 2, noise: float = 0.7):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(data_dim, latent_dim, generator=generator, dtype=torch.float64))
        self.noise = noise

    def prior(self) -> dist.Distribution:
        return dist.Normal(torch.zeros(self.weight.shape[1], dtype=torch.float64), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(z @ self.weight.T, self.noise).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def log_px(self, x: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.noise**2 * torch.eye(len(self.weight), dtype=torch.float64)
        return dist.MultivariateNormal(torch.zeros(len(self.weight), dtype=torch.float64), covariance).log_prob(x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        precision = torch.eye(self.weight.shape[1], dtype=torch.float64) + self.weight.T @ self.weight / self.noise**2
        covariance = torch.linalg.inv(precision)
        return dist.MultivariateNormal(x @ self.weight @ covariance / self.noise**2, covariance)


class ExactGuide(nn.Module):
    """The posterior of a `LinearGaussian`, flattened by `widen`."""

    def __init__(self, model: LinearGaussian, widen: float = 1.0):
        super().__init__()
        self.target, self.widen = model, widen

    def encode(self, x: Tensor) -> Tensor:
        return x

    def posterior(self, context: Tensor) -> dist.Distribution:
        exact = self.target.posterior(context)
        return dist.MultivariateNormal(exact.loc, exact.covariance_matrix * self.widen**2)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


class TwoLayers(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1): p(x) = N(0, 3), with a pixel plate for good measure."""

    pixels = 3

    def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        with pyro.plate("images", n if x is None else len(x), dim=-1):
            upper = pyro.sample("upper", dist.Normal(zero, 1))
            lower = pyro.sample("lower", dist.Normal(upper, 1))
            with pyro.plate("pixels", self.pixels, dim=-2):
                pyro.sample("x", dist.Normal(lower, 1), obs=None if x is None else x.T)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            lower = pyro.sample("lower", dist.Normal(x.mean(1) * 0.8, 0.8))
            pyro.sample("upper", dist.Normal(lower / 2, 1.0))

    def log_px(self, x: Tensor) -> Tensor:
        covariance = torch.eye(self.pixels, dtype=torch.float64) + 2
        return dist.MultivariateNormal(torch.zeros(self.pixels, dtype=torch.float64), covariance).log_prob(x)


class TwoModes(nn.Module):
    """z ~ N(0, I), x_1 ~ N((1 + z_1)^2, noise^2), x_i ~ N(z_i, noise^2): for x_1 = r^2 the posterior has a mode where
    z_1 = r - 1, and another where z_1 = -r - 1, of exp(-2 r) times its probability. In float64."""

    def __init__(self, latent_dim: int = 1, noise: float = 0.3):
        super().__init__()
        self.latent_dim, self.noise = latent_dim, noise

    def prior(self) -> dist.Distribution:
        return dist.Normal(torch.zeros(self.latent_dim, dtype=torch.float64), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        mean = torch.cat([(1 + z[..., :1]).square(), z[..., 1:]], -1)
        return dist.Normal(mean, self.noise).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def log_px_by_quadrature(self, x: Tensor) -> Tensor:
        """By a fine grid over z_1; the other coordinates are normal."""
        z = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
        joint = dist.Normal((1 + z).square(), self.noise).log_prob(x[:, 0]) + dist.Normal(0.0, 1.0).log_prob(z)
        rest = dist.Normal(0.0, math.sqrt(1 + self.noise**2)).log_prob(x[:, 1:]).sum(1)
        return joint.logsumexp(0) + math.log(24 / 20000) + rest


class DiagonalNormal(nn.Module):
    """A guide of independent normal units, with `encode(x)` from images to [loc, log scale]."""

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


class OneMode(DiagonalNormal):
    """A guide in one of the modes of a `TwoModes`: nearly the posterior there, and nowhere else."""

    def __init__(self, model: TwoModes, sign: int, widen: float = 1.2):
        super().__init__()
        self.target, self.sign, self.widen = [model], sign, widen

    def encode(self, x: Tensor) -> Tensor:
        noise = self.target[0].noise
        root = x[:, :1].clamp(min=0.1).sqrt()
        precision = 1 + (2 * root / noise) ** 2
        shrink = 1 / (1 + noise**2)
        # z_1 where the likelihood is largest, drawn to the prior's mean
        loc = torch.cat([(self.sign * root - 1) * (1 - 1 / precision), shrink * x[:, 1:]], -1)
        scale = torch.cat([precision.rsqrt(), torch.full_like(x[:, 1:], math.sqrt(shrink) * noise)], -1)
        return torch.cat([loc, (self.widen * scale).log()], -1)


def gauss_hermite(model: nn.Module, x: Tensor, latent_dim: int, nodes: int = 100) -> Tensor:
    """log p(x) of a model with p(z) = N(0, I) by quadrature on a grid."""
    import numpy as np

    points, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(*[points] * latent_dim).reshape(-1, latent_dim)
    log_weights = torch.cartesian_prod(*[weights.log() - math.log(2 * math.pi) / 2] * latent_dim)
    log_weights = log_weights.reshape(-1, latent_dim).sum(1)
    log_px: Tensor = (model.likelihood(grid[:, None]).log_prob(x) + log_weights[:, None]).logsumexp(0)  # type: ignore[operator]
    return log_px


def within(found: Tensor, exact: Tensor, mc_var: Tensor, *, largest: float, bias: Tensor | float = 0.0) -> None:
    """Every estimate is within 4 Monte Carlo standard errors, plus its stated bias, of what is exact: one that is right
    is not with probability 6e-5, so that a test of 16 of them fails by chance at 1e-3.

    :param mc_var: Monte Carlo variances of `found`.
    :param largest: above every standard error and every bias, in the same units: an estimate that says that it knows
        nothing is within its error of anything.
    """
    error, bias = mc_var.sqrt(), torch.as_tensor(bias).abs()
    assert bool((error < largest).all()), f"standard errors up to {float(error.max()):.3g}"
    assert bool((bias < largest).all()), f"biases up to {float(bias.max()):.3g}"
    off = (found - exact).abs()
    assert bool((off <= 4 * error + bias).all()), f"{float((off / error).max()):.1f} standard errors off"


def log_px_within(found: Any, exact: Tensor, *, largest: float) -> None:
    """`within` for log p(x), its variance and its bias, as every estimator of it returns them."""
    within(found.log_px, exact, found.log_px_mc_var, largest=largest, bias=found.log_px_bias)


def number(value: float) -> Tensor:
    """In float64."""
    return torch.tensor(value, dtype=torch.float64)


def one_site(prior: dist.Distribution, likelihood: Callable[[Tensor], dist.Distribution]) -> Callable[[Tensor], None]:
    """A model of one latent site."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


def near_guide(x: Tensor) -> None:
    """q(z | x) = N(x - 1, 1.2^2)."""
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x.double() - 1, 1.2))


def standard_guide(x: Tensor) -> None:
    """q(z | x) = N(0, 1)."""
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))


def integral(x: Tensor, log_joint: Callable[[Tensor, Tensor], Tensor], low: float, high: float) -> Tensor:
    """log of the integral of exp(log_joint(z, x)) over z by the midpoint rule, for each x."""
    edges = torch.linspace(low, high, 400_001, dtype=torch.float64)
    z = (edges[1:] + edges[:-1]) / 2
    return torch.stack([(log_joint(z, each)).logsumexp(0) + math.log(edges[1] - edges[0]) for each in x])


def random_mixture(pixels: int, components: int = 4) -> Mixture:
    """A mixture of Bernoullis with random parameters."""
    model = Mixture(pixels, num_components=components).double()
    with torch.no_grad():
        model.level.normal_(0, 5)
        model.weight.normal_(0, 2)
        model.bias.normal_()
    return model


def random_belief_net(pixels: int, units: int = 3) -> BeliefNet:
    """A sigmoid belief net with random parameters."""
    model = BeliefNet(pixels, latent_dim=units).double()
    with torch.no_grad():
        model.logits.normal_()
        model.weight.normal_(0, 2)
        model.bias.normal_()
    return model


def by_conditioning(model: Any, supports: dict[str, list[float]], x: Tensor, *args: Tensor) -> Tensor:
    """log sum_z p(x, z) with one call of the model for each image and each state; differentiable."""
    result = []
    for image in range(len(x)):
        one, *rest = (each[image : image + 1] for each in (x, *args))
        joint = []
        for values in itertools.product(*supports.values()):
            known = {
                name: torch.tensor([value], dtype=torch.float64) for name, value in zip(supports, values, strict=True)
            }
            with pyro.validation_enabled(False):
                trace = pyro.poutine.trace(pyro.poutine.condition(model, known)).get_trace(one, *rest)
                joint.append(trace.log_prob_sum())
        result.append(torch.stack(joint).logsumexp(0))
    return torch.stack(result)
