"""The two gaps against closed forms: a linear Gaussian model under a mean-field guide; float64."""

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimates import low
from pairs import DiagonalNormal, ExactGuide, LinearGaussian, OneMode, TwoModes
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.flow import Flow
from ppl_gen.guides.hierarchical import Hierarchical
from ppl_gen.inference.gaps import Gaps, Search, gaps, has_own_weights
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.hierarchical_vae import HierarchicalVAE

F64 = torch.float64
TRUSTED = {"num_samples": 1000, "ess": torch.full((3,), 500.0), "khat": torch.zeros(3)}
SEARCH = Search(learning_rate=0.05, num_samples=20, window=50, patience=3)


class MeanField(DiagonalNormal):
    """q(z | x) = N(A x, diag exp(s)^2), not trained at all."""

    def __init__(self, latent_dim: int = 2, data_dim: int = 5):
        super().__init__()
        self.loc = nn.Parameter(0.1 * torch.randn(latent_dim, data_dim, dtype=F64))
        self.log_scale = nn.Parameter(torch.full((latent_dim,), -0.5, dtype=F64))

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x @ self.loc.T, self.log_scale.expand(len(x), -1)], -1)


def _correlated(closeness: float) -> LinearGaussian:
    """Both latents move the pixels in nearly the same direction, and the noise is small: a posterior in which they are
    correlated by 0.8 or more."""
    model = LinearGaussian(noise=0.3)
    with torch.no_grad():
        model.weight[:, 1] = model.weight[:, 0] + model.weight[:, 1] / closeness
        model.weight /= 2
    return model


class InSmallUnits(MeanField):
    """The same, with means in thousandths: a step of Adam moves them a thousandth as far."""

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x) * torch.tensor([1000.0, 1000.0, 1.0, 1.0], dtype=F64)

    def posterior(self, context: Tensor) -> Any:
        return super().posterior(context * torch.tensor([0.001, 0.001, 1.0, 1.0], dtype=F64))


def test_a_context_that_travels_has_not_converged() -> None:
    """Though what it gains in a window is lost in the noise: its optimum is 400 windows of steps away or more."""
    model, guide = _correlated(1 / 1.3), InSmallUnits()
    x = model.model(n=6).detach() + 3.0
    found = gaps(model, guide, x, num_samples=100, search=replace(SEARCH, most_windows=30))
    assert not found.settled.any()


def test_parts_are_those_in_closed_form() -> None:
    """The best diagonal Gaussian has the posterior's mean and the inverse diagonal of its precision: it leaves half a
    nat to a posterior so correlated, and this encoder another 1.3. The mean of each part is found to 10 %, and each
    image's within 4 errors of the Monte Carlo bounds and 0.02 nats, by which the search may end short. The encoder is
    wide, and its weights have no tail. The best contexts' have, and at 7 of 60 other seeds their log p(x) was by chance
    the larger: then k-hat and an error above 0.1 say so, and this test fails; at none was a mean off by 10 %."""
    model, guide = _correlated(1 / 1.3), MeanField()
    x = model.model(n=8).detach()
    with torch.no_grad():
        guide.loc.copy_(0.96 * model.posterior(torch.eye(5, dtype=F64)).loc.T)
        guide.log_scale.copy_(model.posterior(x[:1]).variance[0].log() / 2 + 0.1)
    found = gaps(model, guide, x, num_samples=3000, search=SEARCH)
    with torch.no_grad():
        posterior = model.posterior(x)
        q: Any = guide.posterior(guide.encode(x)).base_dist
        amortized = dist.MultivariateNormal(q.loc, torch.diag_embed(q.scale.square()))
        precision = torch.linalg.inv(posterior.covariance_matrix)
        best = dist.MultivariateNormal(posterior.loc, torch.diag_embed(1 / precision.diagonal(dim1=-2, dim2=-1)))
        approximation = kl_divergence(best, posterior)
        amortization = kl_divergence(amortized, posterior) - approximation
    assert bool(found.settled.all()) and not found.untrusted.any()
    for part, mc_var, exact in (
        (found.approximation, found.approximation_mc_var, approximation),
        (found.amortization, found.amortization_mc_var, amortization),
    ):
        assert float(exact.mean()) > 0.5
        assert float(part.mean()) == pytest.approx(float(exact.mean()), rel=0.1)
        assert float(mc_var.sqrt().max()) < 0.1
        assert bool(((part - exact).abs() < 4 * mc_var.sqrt() + 0.02).all())
    # No context has a bound above the best one's.
    over = found.best_elbo - (model.log_px(x).detach() - approximation)
    assert float(over.mean()) < 4 * float(found.best_elbo_mc_var.sum().sqrt()) / 8
    torch.testing.assert_close(found.log_px - found.elbo, found.approximation + found.amortization)


def test_nothing_is_left_of_the_exact_posterior() -> None:
    model = LinearGaussian()
    x = model.model(n=3).detach()
    found = gaps(model, ExactGuide(model), x, num_samples=50, search=Search(window=2, patience=1, most_windows=3))
    # The context of that guide is the image: six steps of 1e-3 away from it cannot raise the bound, nor lower it much.
    torch.testing.assert_close(found.elbo, model.log_px(x).detach())
    torch.testing.assert_close(found.log_px, found.elbo, rtol=0, atol=1e-2)
    assert bool((found.amortization.abs() < 1e-2).all())


def test_modules_are_left_as_they_were() -> None:
    model = LinearGaussian()
    guide, x = MeanField(), model.model(n=2).detach()
    before = {name: parameter.clone() for name, parameter in guide.state_dict().items()}
    state = torch.get_rng_state()
    gaps(model, guide, x, num_samples=30, search=Search(window=2, patience=1, most_windows=2))
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in guide.parameters())
    assert not torch.equal(state, torch.get_rng_state())  # noise is the caller's to seed


def test_weights_of_its_own_help_a_flow() -> None:
    """A small flow as it was made has no member near a posterior so correlated: contexts alone leave 0.4 nats an image.
    A copy of its weights for each image reaches it to 0.1, and leaves the guide alone. Both against the exact log p(x),
    and far beyond the errors of the bounds, 0.02."""
    torch.manual_seed(0)
    model = _correlated(1 / 0.8)
    guide = Flow((5,), 2, "z", model, transform_dims=(8,), num_features=2, hidden_dims=(4,)).double()
    x = model.model(n=2).detach()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    search = Search(learning_rate=0.05, num_samples=20, window=40, patience=2, most_windows=8)
    contexts = gaps(model, guide, x, num_samples=2000, search=search)
    copies = gaps(model, guide, x, num_samples=2000, search=search, own_weights=True)
    for found in (contexts, copies):
        assert float(found.amortization.mean()) > 1
        assert float(found.best_elbo_mc_var.sqrt().max()) < 0.03
    left = [model.log_px(x) - found.best_elbo for found in (contexts, copies)]
    assert bool((left[0] > 0.3).all()) and bool((left[1].abs() < 0.1).all())
    assert bool((copies.best_elbo > contexts.best_elbo + 0.2).all())
    assert float(contexts.approximation.mean()) > 0.3 and float(copies.approximation.mean()) < 0.1
    assert all(torch.equal(before[name], value) for name, value in guide.state_dict().items())


def test_other_guides_are_refused() -> None:
    net, x = BeliefNet(4, latent_dim=2), torch.ones(2, 4)
    with pytest.raises(BadInput, match="can be reparametrized"):
        gaps(net, Bernoulli(4, torch.full((4,), 0.5), 2, "z"), x)
    vae = HierarchicalVAE(4, latent_dims=(2, 2), hidden_dims=(3, 3))
    with pytest.raises(BadInput, match="one latent site"):
        gaps(vae, Hierarchical(4, vae), x)


def test_the_context_is_not_the_models() -> None:
    """A model may take a second argument; it keeps its default."""

    class Shifted(LinearGaussian):
        def model(self, x: Tensor | None = None, shift: Any = 0.0, *, n: int = 1) -> Tensor:
            with pyro.plate("data", n if x is None else len(x)):
                z = pyro.sample("z", self.prior())
                return pyro.sample("x", dist.Normal(z @ self.weight.T + shift, self.noise).to_event(1), obs=x)

    plain, shifted, guide = LinearGaussian(data_dim=2), Shifted(data_dim=2), MeanField(data_dim=2)
    x = plain.model(n=2).detach()
    few = Search(window=2, patience=1, most_windows=2)
    results = []
    for model in (plain, shifted):
        torch.manual_seed(0)
        results.append(gaps(model, guide, x, num_samples=30, search=few))
    torch.testing.assert_close(results[0].best_elbo, results[1].best_elbo)


def test_whose_weights_they_are() -> None:
    torch.manual_seed(0)
    model = LinearGaussian()
    x = model.model(n=2).detach()
    flow = Flow((5,), 2, "z", model, transform_dims=(8,), num_features=2, hidden_dims=(4,)).double()
    flow.requires_grad_(False)
    planar = Flow((5,), 2, "z", model, transform="planar", hidden_dims=(4,)).double()
    assert has_own_weights(flow, x) and not has_own_weights(planar, x) and not has_own_weights(MeanField(), x)
    assert not any(parameter.requires_grad for parameter in flow.parameters())


def test_a_mode_that_the_search_does_not_reach_is_said() -> None:
    """The encoder sits in the lesser of two modes, 4.4 nats low; no context of the search leaves it, and k-hat is
    excellent. A second opinion tells: the sum of both gaps is at least what is reported."""
    model = TwoModes()
    torch.manual_seed(0)
    x = 4.8 + 0.3 * torch.randn(20, 1, dtype=F64)
    exact = model.log_px_by_quadrature(x)
    found = gaps(model, OneMode(model, -1), x, num_samples=1000, search=SEARCH)
    assert float(found.amortization.mean()) < 0.2
    assert bool(((exact - found.best_elbo) > 3.5).all())
    assert found.missed is not None and bool(found.missed.any())
    assert bool(found.untrusted.all())
    assert float(found.log_px.mean()) > float(found.best_elbo.mean()) + 1
    found = gaps(model, OneMode(model, 1), x, num_samples=1000, search=SEARCH)
    assert found.missed is not None and not found.missed.any()


def test_another_estimate_counts_where_it_is_the_larger() -> None:
    """On all images if its mean is, else on the images where it is above beyond chance."""
    some = torch.tensor([-10.0, -10.0, -10.0], dtype=F64)
    small = torch.full_like(some, 1e-4)
    found = Gaps(low(some, estimator="importance", **TRUSTED), some - 1, some - 0.5, small, small, settled=some < 0)
    assert not found.untrusted.any()
    annealed = low(torch.tensor([-20.0, -10.0, -8.0], dtype=F64), bias=-1e-4, estimator="annealed")
    new = found.compared_with(annealed)
    assert new.log_px.tolist() == [-10, -10, -8] and new.untrusted.any()
    assert new.estimator == "importance"
    raised = found.compared_with(replace(annealed, log_px=annealed.log_px + 3))
    assert raised.log_px.tolist() == [-10, -7, -5] and raised.estimator == "annealed"
