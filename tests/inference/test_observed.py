"""Pairs on images with missing pixels, against marginals in closed form."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.exact_gaussian import ExactGaussian
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.annealed import Annealing, annealed_log_px
from ppl_gen.inference.enumeration import TraceEnum
from ppl_gen.inference.exact import exact_log_px, state_posterior
from ppl_gen.inference.observed import observe, restore
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.quadrature import quadrature_log_px
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.mixture import Mixture
from ppl_gen.models.vae import VAE

PIXELS = 6
NAN = torch.nan


def _incomplete(x: Tensor) -> Tensor:
    missing = torch.rand(x.shape) < 0.5
    missing[0, :2] = torch.tensor([True, False])
    return x.masked_fill(missing, NAN)


def _of_marginals(model: FactorAnalysis, x: Tensor) -> Tensor:
    """log p(x_obs) of each image: the normal distribution of its observed pixels."""
    weight, psi = model.weight.double(), model.psi.double()
    covariance, found = weight.T @ weight + psi.diag(), []
    for image in x.double():
        seen = ~image.isnan()
        if not seen.any():
            found.append(image.new_zeros(()))
            continue
        marginal = torch.distributions.MultivariateNormal(model.loc.double()[seen], covariance[seen][:, seen])
        found.append(marginal.log_prob(image[seen]))
    return torch.stack(found)


@pytest.fixture
def linear() -> tuple[FactorAnalysis, ExactGaussian, Tensor]:
    model = FactorAnalysis(PIXELS, latent_dim=2)
    guide = ExactGaussian("z", model)
    x = _incomplete(model.model(n=7).detach())
    observe(model, guide)
    return model, guide, x


def test_the_marginal_of_factor_analysis(linear: tuple[FactorAnalysis, ExactGaussian, Tensor]) -> None:
    """The closed form is that of the observed pixels, and with the exact posterior every weight is p(x_obs)."""
    model, guide, x = linear
    expected = _of_marginals(model, x).detach()
    torch.testing.assert_close(model.log_px(x).detach(), expected)
    weights = ppl_gen.log_weights(model, guide, x, num_samples=20)
    torch.testing.assert_close(weights.double(), expected.expand(20, -1), rtol=1e-4, atol=1e-3)


def test_the_gradient_is_that_of_the_marginal(linear: tuple[FactorAnalysis, ExactGaussian, Tensor]) -> None:
    """At the exact posterior the gradient of every bound by log p(x_obs) has no noise of z in its model part."""
    model, guide, x = linear
    parameters = list(model.parameters())
    expected = torch.autograd.grad(_of_marginals(model, x).sum(), parameters)
    ours = torch.autograd.grad(model.log_px(x).sum(), parameters)
    sampled = torch.autograd.grad(Pair.read(model, guide, x).terms(x, num_samples=3).elbo.sum(), parameters)
    for one, other, drawn in zip(expected, ours, sampled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        # log p(x, z) - log q(z | x) is log p(x_obs) for every z and every parameter.
        torch.testing.assert_close(one, drawn, rtol=1e-3, atol=1e-2)


def test_estimators_of_the_marginal(linear: tuple[FactorAnalysis, ExactGaussian, Tensor]) -> None:
    """A wide guide, quadrature and annealing find the same log p(x_obs). Four standard errors."""
    model, _, x = linear
    guide = Normal((PIXELS,), 2, "z", model)
    observe(model, guide)
    expected = _of_marginals(model, x).detach()
    torch.testing.assert_close(quadrature_log_px(model, x).log_px, expected, atol=2e-3, rtol=0)
    found = annealed_log_px(model, x, guide=guide, annealing=Annealing(num_temperatures=20))
    for estimate in (found, ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=5000)):
        error = 4 * estimate.log_px_mc_var.sqrt() + estimate.log_px_bias.abs() + 1e-3
        assert ((estimate.log_px - expected).abs() <= error).all()


@pytest.mark.parametrize("name", ["mixture", "belief-net"])
def test_sums_over_states(name: str) -> None:
    """Brute force, state by state and pixel by pixel."""
    model: Any
    model = Mixture(PIXELS, num_components=3) if name == "mixture" else BeliefNet(PIXELS, latent_dim=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1.5)
    x = _incomplete(torch.bernoulli(torch.full((8, PIXELS), 0.5)))
    observe(model, Nothing())
    states = model.prior().enumerate_support(expand=False)
    on = model.likelihood(states).mean.double()
    p = torch.where(x.isnan(), 1.0, torch.where(x == 1, on.unsqueeze(1), 1 - on.unsqueeze(1))).prod(-1)
    joint = p * model.prior().log_prob(states).double().exp().unsqueeze(1)
    expected = joint.sum(0).log()
    torch.testing.assert_close(exact_log_px(model, x), expected.detach(), rtol=1e-5, atol=1e-5)
    posterior = state_posterior(model, x)[1]
    torch.testing.assert_close(posterior.double(), joint / joint.sum(0), rtol=1e-4, atol=1e-5)
    # Training by enumeration ascends the same number.
    pair = Pair.read(model, Nothing(), x)
    loss = TraceEnum(pair, x).differentiable_loss(pair.model, pair.guide, x)
    assert float(loss.detach()) == pytest.approx(-float(expected.detach().sum()), rel=1e-4)
    gradients = [torch.autograd.grad(each, list(model.parameters())) for each in (-expected.sum(), loss)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class Nothing(nn.Module):
    """A guide that leaves z to enumeration."""

    def guide(self, x: Tensor) -> None:
        pass


class Own(nn.Module):
    """A model of one's own, which knows of no masks; with an inner plate of pixels, or with an event."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.net = kind, nn.Linear(2, PIXELS)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
        with pyro.plate("data", n if x is None else len(x), dim=-2 if self.kind == "plate" else -1):
            shape = (1, 2) if self.kind == "plate" else (2,)
            z = pyro.sample("z", dist.Normal(torch.zeros(shape), 1.0).to_event(1))
            if self.kind == "plate":
                with pyro.plate("pixels", PIXELS, dim=-1):
                    pyro.sample("x", dist.Bernoulli(logits=self.net(z).squeeze(-2)), obs=x)
            elif self.kind == "rounded":
                pyro.sample(
                    "x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=None if x is None else x.round() > 0
                )
            else:
                logits = self.net(z).unflatten(-1, (2, 3))
                pyro.sample(
                    "x", dist.Bernoulli(logits=logits).to_event(2), obs=None if x is None else x.reshape(-1, 2, 3)
                )


class OwnGuide(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.net = kind, nn.Linear(PIXELS, 2)
        self.seen: list[Tensor] = []

    def guide(self, x: Tensor) -> None:
        self.seen.append(x)
        with pyro.plate("data", len(x), dim=-2 if self.kind == "plate" else -1):
            loc = self.net(x).unsqueeze(-2) if self.kind == "plate" else self.net(x)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("kind", ["event", "plate"])
def test_a_model_of_ones_own(kind: str) -> None:
    model, guide = Own(kind), OwnGuide(kind)
    x = _incomplete(torch.bernoulli(torch.full((7, PIXELS), 0.5)))
    observe(model, guide)
    pair = Pair.read(model, guide, x)
    terms = pair.terms(x, num_samples=5)
    z = terms.latents["z"]
    logits = model.net(z)
    pixels = dist.Bernoulli(logits=logits).log_prob(x.nan_to_num(0))
    torch.testing.assert_close(terms.log_likelihood, torch.where(x.isnan(), 0.0, pixels).sum(-1))
    assert guide.seen and all(torch.equal(seen, seen.nan_to_num(0)) for seen in guide.seen)
    assert terms.elbo.isfinite().all()


def test_a_model_that_loses_nan_is_refused() -> None:
    model, guide = Own("rounded"), OwnGuide("event")
    x = _incomplete(torch.bernoulli(torch.full((7, PIXELS), 0.5)))
    observe(model, guide)
    with pytest.raises(BadInput, match=r"observes 0 missing pixels \(NaN\) of"):
        Pair.read(model, guide, x)


def test_complete_images_have_the_same_numbers() -> None:
    model, x = VAE((PIXELS,), latent_dim=2, hidden_dims=(4,)), torch.bernoulli(torch.full((5, PIXELS), 0.5))
    guide = Normal((PIXELS,), 2, "z", model)
    torch.manual_seed(0)
    before = ppl_gen.log_weights(model, guide, x, num_samples=9)
    observe(model, guide)
    torch.manual_seed(0)
    torch.testing.assert_close(ppl_gen.log_weights(model, guide, x, num_samples=9), before)
    images = x.clone()
    images[0, 0] = NAN
    kinds = type(model), type(guide)
    restore(model)
    restore(guide)
    assert (type(model), type(guide)) == (VAE, Normal) != kinds
    with pytest.raises(BadInput):  # as before: NaN is no missing pixel for a pair of which nothing says so
        ppl_gen.log_weights(model, guide, images, num_samples=9)


def test_a_closed_form_that_knows_nothing_of_missing_pixels_is_withdrawn() -> None:
    class Closed(VAE):
        def log_px(self, x: Tensor) -> Tensor:
            return x.sum(1)

    model = Closed((PIXELS,), latent_dim=2, hidden_dims=(4,))
    observe(model, Nothing())
    assert model.log_px is None  # type: ignore[comparison-overlap]
    restore(model)
    assert callable(model.log_px)


class Chain(nn.Module):
    """Pixels each of which depends on the one before it, as in a decoder that sees x."""

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            before = torch.zeros(n if x is None else len(x), PIXELS)
            if x is not None:
                before = torch.cat([before[:, :1], x[:, :-1].nan_to_num()], 1)
            return pyro.sample("x", dist.Bernoulli(logits=3 * (2 * before - 1) + z).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.2).to_event(1))


def test_pixels_that_depend_on_missing_ones_are_refused() -> None:
    """The density would be that of images whose missing pixels are 0."""
    model, guide = Chain(), Chain()
    x = torch.bernoulli(torch.full((20, PIXELS), 0.5))
    whole = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20)
    observe(model, guide)
    assert torch.isfinite(whole.log_px).all()
    with pytest.raises(BadInput, match="Chain computes the density of observed pixels from missing ones"):
        ppl_gen.log_marginal_likelihood(model, guide, _incomplete(x), num_samples=20)
    assert ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20).log_px.isfinite().all()
