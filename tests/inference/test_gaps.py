"""The two gaps against closed forms: a linear Gaussian model under a mean-field guide; float64."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_gen.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.flow import Flow
from ppl_gen.guides.hierarchical import Hierarchical
from ppl_gen.inference.gaps import Search, gaps, has_own_weights
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.hierarchical_vae import HierarchicalVAE

F64 = torch.float64
SEARCH = Search(learning_rate=0.02, num_samples=20, window=50, patience=5)


class MeanField(nn.Module):
    """q(z | x) = N(A x, diag exp(s)^2), not trained at all."""

    def __init__(self, latent_dim: int = 2, data_dim: int = 5):
        super().__init__()
        self.loc = nn.Parameter(0.1 * torch.randn(latent_dim, data_dim, dtype=F64))
        self.log_scale = nn.Parameter(torch.full((latent_dim,), -0.5, dtype=F64))

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x @ self.loc.T, self.log_scale.expand(len(x), -1)], -1)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


def test_parts_are_those_in_closed_form() -> None:
    """The best diagonal Gaussian has the posterior's mean and the inverse diagonal of its precision. The search may end
    short of it, by no more than 0.02 nats here; errors of the Monte Carlo bounds within 4 of their own."""
    model = LinearGaussian()
    guide, x = MeanField(), model.model(n=6).detach()
    found = gaps(model, guide, x, num_samples=4000, search=SEARCH)
    with torch.no_grad():
        posterior = model.posterior(x)
        q: Any = guide.posterior(guide.encode(x)).base_dist
        amortized = dist.MultivariateNormal(q.loc, torch.diag_embed(q.scale.square()))
        precision = torch.linalg.inv(posterior.covariance_matrix)
        best = dist.MultivariateNormal(posterior.loc, torch.diag_embed(1 / precision.diagonal(dim1=-2, dim2=-1)))
        approximation = kl_divergence(best, posterior)
        whole = kl_divergence(amortized, posterior)
    error = 4 * found.approximation_mc_var.sqrt()
    assert bool(found.settled.all())
    assert bool(((found.approximation - approximation).abs() < error + 0.02).all())
    assert (
        float(found.approximation.mean() - approximation.mean())
        > -4 * float(found.approximation_mc_var.sum().sqrt()) / 6
    )
    torch.testing.assert_close(found.log_px - found.elbo, found.approximation + found.amortization)
    assert float((found.log_px - found.elbo).mean()) == pytest.approx(float(whole.mean()), rel=0.1)
    assert float(found.amortization.mean()) > 0.5 > 10 * float(approximation.mean()) > 0


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
    """A copy of the flow for each image reaches further than contexts do, and leaves the guide alone."""
    torch.manual_seed(0)
    model = LinearGaussian()
    guide = Flow((5,), 2, "z", model, transform_dims=(8,), num_features=2, hidden_dims=(4,)).double()
    x = model.model(n=2).detach()
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    search = Search(learning_rate=0.02, num_samples=20, window=50, patience=2, most_windows=15)
    contexts = gaps(model, guide, x, num_samples=4000, search=search)
    copies = gaps(model, guide, x, num_samples=4000, search=search, own_weights=True)
    slack = 4 * (contexts.best_elbo_mc_var + copies.best_elbo_mc_var).sum().sqrt() / 2
    assert float(contexts.amortization.mean()) > 1
    assert float(copies.best_elbo.mean()) > float(contexts.best_elbo.mean() - slack)
    assert float(copies.approximation.mean()) < 0.2
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
