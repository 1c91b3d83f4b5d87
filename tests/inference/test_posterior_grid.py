"""Posteriors on grids, held to closed forms and to the ELBO."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian, TwoModes
from scipy import stats
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.exact_gaussian import ExactGaussian
from ppl_gen.guides.grid import Grid
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.posterior_grid import GridPosterior, posterior_grids
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.vae import VAE

DOUBLE = torch.float64
MODEL = LinearGaussian()
X = torch.randn(2, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """A guide that has nothing but `guide`, with a distribution that depends on the posterior of `MODEL`."""

    def __init__(self, distribution: Callable[[dist.MultivariateNormal], Any]):
        super().__init__()
        self.distribution = distribution

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.distribution(MODEL.posterior(x)))


def found(model: Any, guide: Any, x: Tensor) -> list[GridPosterior]:
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x)
    return posterior_grids(model, pair, x)


def deviations(exact: dist.MultivariateNormal) -> Tensor:
    return exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt().expand_as(exact.loc)


def shifted(exact: dist.MultivariateNormal) -> Any:
    return dist.Normal(exact.loc + 0.2, 0.7 * deviations(exact)).to_event(1)


def test_divergences_between_gaussians_have_closed_forms() -> None:
    """Of the posterior of factor analysis with two units and of a wider guide, and of a narrow guide far away."""
    torch.manual_seed(0)
    model = FactorAnalysis(16, latent_dim=2).double()
    x = torch.randn(2, 16, dtype=DOUBLE)
    exact = ExactGaussian("z", model)
    posterior = exact.posterior(exact.encode(x))

    class Guide(nn.Module):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.posterior(x))

        def posterior(self, x: Tensor) -> Any:
            at = exact.posterior(exact.encode(x))
            return dist.MultivariateNormal(at.mean + self.shift, self.scale**2 * torch.eye(2, dtype=DOUBLE))

    guide = Guide()
    for guide.shift, guide.scale in ((0.3, 1.5), (-1.0, 0.01)):
        q = guide.posterior(x)
        divergence = torch.distributions.kl_divergence
        forward, reverse = (divergence(*each).detach() for each in ((q, posterior), (posterior, q)))
        for one, kl, other in zip(found(model, guide, x), forward, reverse, strict=True):
            assert one.guide_to_exact == pytest.approx(float(kl), rel=1e-6, abs=1e-4)
            assert one.exact_to_guide == pytest.approx(float(other), rel=1e-6, abs=1e-4)
    assert [each.log_px for each in found(model, guide, x)] == pytest.approx(model.log_px(x).tolist(), abs=1e-6)


def test_densities_and_regions_are_those_of_the_gaussians() -> None:
    """The region of mass m of a Gaussian of two units ends where its log-density is log(1 - m) below the largest."""
    masses = [0.5, 0.9, 0.99]
    posterior = MODEL.posterior(X)
    for index, one in enumerate(found(MODEL, Plain(shifted), X)):
        assert one.guide is not None
        for density, truth in ((one.exact, posterior), (one.guide, shifted(posterior))):
            points = torch.cartesian_prod(*density.axes).unsqueeze(1)
            log_density = truth.log_prob(points.expand(-1, len(X), -1))[:, index]
            torch.testing.assert_close(density.log_density.flatten(), log_density, atol=1e-5, rtol=1e-6)
            center = truth.mean[index].expand(len(X), -1)
            levels = truth.log_prob(center)[index].detach() + torch.log1p(-torch.tensor(masses, dtype=DOUBLE))
            reached = -torch.expm1(levels - density.levels(masses))  # 0 if the levels are right
            assert bool((reached.abs() * (1 - torch.tensor(masses)) < 0.01).all())


def test_the_gap_is_the_divergence() -> None:
    """KL(q || p) = log p(x) - ELBO, of a posterior with two modes; the ELBO from 40,000 samples (2 images, each within
    4.5 errors: false alarms 1e-5)."""
    model = TwoModes(latent_dim=2, noise=0.5)
    x = torch.tensor([[0.8, 0.3], [1.3, -0.2]], dtype=DOUBLE)

    class Guide(nn.Module):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.3 * x, 0.6).to_event(1))

    with evaluating():
        pair = Pair.read(model, Guide(), x)
        torch.manual_seed(0)
        weights = pair.terms(x, num_samples=40_000).log_weight
    for one, each in zip(found(model, Guide(), x), weights.T, strict=True):
        gap, error = one.log_px - float(each.mean()), float(each.std()) / math.sqrt(len(each))
        assert one.guide_to_exact > 0.5 and abs(gap - one.guide_to_exact) < 4.5 * error


def test_any_distribution_has_its_divergences() -> None:
    """A mixture of a wide and a narrow part, and heavy tails, whose divergence has a closed form."""
    posterior = MODEL.posterior(X)

    def student(exact: dist.MultivariateNormal) -> Any:
        return dist.StudentT(5.0, exact.loc, 0.5).to_event(1)

    precision = torch.linalg.inv(posterior.covariance_matrix)
    mean_square = 0.25 * 5 / 3 * float(precision[0].trace().detach())
    entropy = 2 * (float(stats.t(5).entropy()) + math.log(0.5))
    log_det = float(torch.logdet(2 * math.pi * posterior.covariance_matrix[0]).detach())
    expected = -entropy + (log_det + mean_square) / 2
    for one in found(MODEL, Plain(student), X[:1]):
        assert one.guide_to_exact == pytest.approx(expected, abs=1e-3)

    def mixture(exact: dist.MultivariateNormal) -> Any:
        logits = torch.tensor([0.0, 0.0], dtype=DOUBLE).expand(len(exact.loc), 2)
        scales = torch.tensor([[0.1, 0.1], [1.0, 1.0]], dtype=DOUBLE).expand(len(exact.loc), 2, 2)
        parts = dist.Normal(exact.loc.unsqueeze(1).expand_as(scales), scales).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)

    q = mixture(posterior)
    with torch.no_grad():
        z = posterior.sample((100_000,))
        differences = posterior.log_prob(z) - q.log_prob(z)
    error = differences.std(0) / math.sqrt(len(z))
    for index, one in enumerate(found(MODEL, Plain(mixture), X)):  # each within 4.5 errors: false alarms 1e-5
        assert abs(one.exact_to_guide - float(differences[:, index].mean())) < 4.5 * float(error[index])


def test_a_divergence_that_is_not_finite_is_not_given() -> None:
    def student(exact: dist.MultivariateNormal) -> Any:
        return dist.StudentT(2.0, exact.loc, 0.5).to_event(1)

    def uniform(exact: dist.MultivariateNormal) -> Any:
        return dist.Uniform(exact.loc - 1, exact.loc + 1).to_event(1)

    (heavy,) = found(MODEL, Plain(student), X[:1])
    assert math.isnan(heavy.guide_to_exact) and math.isfinite(heavy.exact_to_guide)
    (bounded,) = found(MODEL, Plain(uniform), X[:1])
    assert bounded.exact_to_guide == math.inf and math.isfinite(bounded.guide_to_exact)


def test_a_guide_that_samples_nothing_leaves_the_posterior_alone() -> None:
    torch.manual_seed(0)
    model = VAE((4, 4), latent_dim=2, hidden_dims=(8,))
    before = torch.get_rng_state()
    (one,) = found(model, Grid(2, "z", model), torch.ones(1, 16))
    assert one.guide is None and math.isnan(one.guide_to_exact) and math.isnan(one.exact_to_guide)
    cells = torch.outer(*torch.stack([torch.gradient(axis)[0] for axis in one.exact.axes]))
    assert float((one.exact.log_density.exp() * cells).sum()) == pytest.approx(1, abs=0.01)
    assert torch.equal(torch.get_rng_state(), before)


def test_models_of_another_z_are_refused() -> None:
    model = LinearGaussian(latent_dim=3)
    with pytest.raises(BadInput, match="a z of two units"):
        found(model, ExactGuide(model), X)
