"""Gradients of a mixture of Gaussians whose components are far apart, against quadrature; float64."""

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import images, make
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.mixture import DiagonalMixture
from ppl_gen.inference.elbos import PartialScoreELBO, SampledELBO, ScaleLatents
from ppl_gen.inference.gaps import Search, gaps
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair

F64 = torch.float64
COPIES = 4000
GRID = torch.linspace(-16, 16, 1001, dtype=F64)
STEP = float(GRID[1] - GRID[0])


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 6.0).to_event(1))
        pyro.sample("x", dist.Normal((z / 3).sin(), 0.7).to_event(1), obs=x)


def _log_joint(z: Tensor, x: float, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    prior = dist.Normal(torch.zeros((), dtype=F64), 6.0).log_prob(z)
    return prior, dist.Normal((z / 3).sin(), 0.7).log_prob(torch.tensor(x, dtype=F64))


def _context(distance: float) -> Tensor:
    """Logits of three weights, means and log scales; the third component is narrow, and in the middle."""
    return torch.tensor([0.4, -0.3, -1.2, -distance / 2, distance / 2, 0.3, 0.1, -0.1, -0.2], dtype=F64)


def _mixture(context: Tensor) -> DiagonalMixture:
    logits, locs, log_scales = context.unflatten(-1, (3, 3)).unbind(-2)
    return DiagonalMixture(locs.unsqueeze(-1), log_scales.exp().unsqueeze(-1), logits)


class Copies(nn.Module):
    """A guide with a context of its own for each image, and so a gradient for each."""

    def __init__(self, context: Tensor, count: int):
        super().__init__()
        self.context = nn.Parameter(context.expand(count, -1).clone())

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", _mixture(self.context[torch.arange(len(x)) % len(self.context)]))


def _truth(name: str, context: Tensor, x: float, alpha: float) -> tuple[float, Tensor]:
    """The objective by the trapezoidal rule, and its gradient."""
    context = context.clone().requires_grad_()
    log_q = _mixture(context).log_prob(GRID.unsqueeze(-1))
    prior, likelihood = _log_joint(GRID, x)
    weight = likelihood + prior - log_q
    if name in ("elbo", "stl", "beta"):
        beta = 3.0 if name == "beta" else 1.0
        value = (log_q.exp() * (likelihood + beta * (prior - log_q))).sum() * STEP
    else:  # of two samples
        power = 1 - alpha
        both = torch.logaddexp(power * weight.unsqueeze(1), power * weight) - math.log(2)
        value = (log_q.exp() * log_q.exp().unsqueeze(1) * both / power).sum() * STEP**2
    (gradient,) = torch.autograd.grad(value, context)
    return float(value.detach()), gradient


OBJECTIVES = [("elbo", 1), ("elbo", 5), ("stl", 1), ("stl", 3), ("beta", 1), ("iwae", 2), ("dreg", 2), ("renyi", 2)]


@pytest.mark.parametrize("distance", [2.0, 10.0, 16.0])
@pytest.mark.parametrize("name, particles", OBJECTIVES)
def test_gradient_is_that_of_the_integral(name: str, particles: int, distance: float) -> None:
    """Every element within 4.5 standard errors of 4,000 draws (false alarms of 7e-6 each), which know the largest of
    the weights' to a fifth; and the objective itself to 0.2 nats. With samples in one call, and one by one."""
    torch.manual_seed(0)
    context, x = _context(distance), 0.6
    value, truth = _truth(name, context, x, 0.5 if name == "renyi" else 0.0)
    guide, batch = Copies(context, COPIES), torch.full((COPIES, 1), x, dtype=F64)
    pair = Pair.read(_model, guide, batch)
    assert pair.vectorized and pair.scored == ("z",)
    elbo = bind(construct(name, num_particles=particles, beta=3.0 if name == "beta" else None), pair, batch)
    losses = []
    for vectorized in (True, False):
        pair = replace(pair, vectorized=vectorized)
        if not vectorized:
            elbo = bind(construct(name, num_particles=particles, beta=3.0 if name == "beta" else None), pair, batch)
        loss = elbo.differentiable_loss(pair.model, pair.guide, batch)
        (draws,) = torch.autograd.grad(-loss, guide.context)
        error = draws.std(0) / COPIES**0.5
        assert ((draws.mean(0) - truth).abs() < 4.5 * error + 1e-6).all(), (draws.mean(0), truth, error)
        largest = truth[:3].abs().max()
        assert error[:3].max() < 0.2 * largest, (error, truth)
        losses.append(-float(loss.detach()) / COPIES)
    assert losses[0] == pytest.approx(value, abs=0.2) and losses[1] == pytest.approx(value, abs=0.2)


def test_pyros_own_objective() -> None:
    """Stock `Trace_ELBO` reads `score_parts`: unbiased, with more noise; and so is `loss_form` of ours."""
    torch.manual_seed(0)
    context = _context(16.0)
    _, truth = _truth("elbo", context, 0.6, 0.0)
    guide, batch = Copies(context, COPIES), torch.full((COPIES, 1), 0.6, dtype=F64)
    pair = Pair.read(_model, guide, batch)
    elbo = construct("elbo")
    ours = bind(elbo, pair, batch)
    assert isinstance(ours, PartialScoreELBO) and ours.num_particles == 2
    of_terms = elbo.loss_form(pair)
    assert isinstance(of_terms, SampledELBO) and of_terms.num_particles == 2
    sampled = bind(of_terms, pair, batch)
    for each in (Trace_ELBO(), sampled):
        (draws,) = torch.autograd.grad(-each.differentiable_loss(pair.model, pair.guide, batch), guide.context)
        assert ((draws.mean(0) - truth).abs() < 4.5 * draws.std(0) / COPIES**0.5 + 1e-6).all()
    torch.manual_seed(1)
    (ours_draws,) = torch.autograd.grad(-ours.differentiable_loss(pair.model, pair.guide, batch), guide.context)
    torch.manual_seed(1)
    (their_draws,) = torch.autograd.grad(-sampled.differentiable_loss(None, None, batch), guide.context)
    torch.testing.assert_close(ours_draws, their_draws)


def test_annealed_kl_term() -> None:
    """With the latent sites scaled, as --kl-warmup does: the gradient of E[log p(x | z)] - 0.3 KL."""
    torch.manual_seed(0)
    context = _context(10.0).requires_grad_()
    log_q = _mixture(context).log_prob(GRID.unsqueeze(-1))
    prior, likelihood = _log_joint(GRID, 0.6)
    value = (log_q.exp() * (likelihood + 0.3 * (prior - log_q))).sum() * STEP
    (truth,) = torch.autograd.grad(value, context)
    guide, batch = Copies(context.detach(), COPIES), torch.full((COPIES, 1), 0.6, dtype=F64)
    pair = Pair.read(_model, guide, batch)
    scale = ScaleLatents()
    scale.scale = 0.3
    functions = [scale(f) for f in (pair.model, pair.guide)]
    loss = bind(construct("elbo"), pair, batch).differentiable_loss(*functions, batch)
    (draws,) = torch.autograd.grad(-loss, guide.context)
    assert ((draws.mean(0) - truth).abs() < 4.5 * draws.std(0) / COPIES**0.5 + 1e-6).all()


@pytest.mark.parametrize("name", ["stl", "dreg"])
def test_gradient_vanishes_at_the_posterior(name: str) -> None:
    """Where the guide is the posterior, of every draw: a prior that is the mixture, and an x that says nothing."""
    context = _context(10.0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", _mixture(context))
            pyro.sample("x", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1), obs=x)

    guide, x = Copies(context, 50), torch.zeros(50, 1, dtype=F64)
    loss = bind(construct(name, num_particles=3), Pair.read(model, guide, x), x).differentiable_loss(None, None, x)
    (gradient,) = torch.autograd.grad(loss, guide.context)
    assert float(gradient.abs().max()) < 1e-10


def test_a_path_between_far_components_is_refused() -> None:
    """`rsample` by itself has no objective to tell of a choice. Along each coordinate, a third component may bridge."""
    far = _context(8.0).requires_grad_()
    near = torch.cat([far[:5], torch.tensor([0.0], dtype=F64), far[6:]])
    with torch.no_grad():
        assert _mixture(far).rsample().isfinite().all()
    assert _mixture(near).rsample().requires_grad
    alone = torch.cat([far[:5], torch.tensor([4.0], dtype=F64), far[6:]])
    with pytest.raises(BadInput, match="standard deviations apart"):
        _mixture(alone).rsample()


def test_gaps_move_the_weights() -> None:
    """Contexts that climb find the weights of a posterior with two far modes: the divergence that is left is small."""

    class Two(nn.Module):
        def prior(self) -> Any:
            return dist.Normal(torch.zeros(1), 8.0).to_event(1)

        def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
            with pyro.plate("data", n if x is None else len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal((z.abs() - 6) + 0.15 * z.sign(), 0.5).to_event(1), obs=x)

    class Guide(nn.Module):
        def encode(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 0.0, -6.0, 6.0, -0.7, -0.7]).expand(len(x), -1)

        def posterior(self, context: Tensor) -> DiagonalMixture:
            logits, locs, log_scales = context.unflatten(-1, (3, 2)).unbind(-2)
            return DiagonalMixture(locs.unsqueeze(-1), log_scales.exp().unsqueeze(-1), logits)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.posterior(self.encode(x)))

    torch.manual_seed(0)
    found = gaps(Two(), Guide(), torch.full((2, 1), 0.3), num_samples=4000, search=Search(num_samples=20))
    assert float(found.approximation.mean()) < 0.02


def test_two_kinds_of_choice_in_one_guide() -> None:
    """A site that is not reparametrized takes the score-function objective, which would leave the choice out."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + k.unsqueeze(-1), 1.0).to_event(1), obs=x)

    context = nn.Parameter(_context(10.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(torch.tensor(0.5, dtype=F64)))
            pyro.sample("z", _mixture(context.expand(len(x), -1)))

    x = torch.zeros(4, 1, dtype=F64)
    pair = Pair.read(model, guide, x)
    with pytest.raises(BadInput, match=r"a discrete choice in 'z'.*use vimco or rws"):
        bind(construct("elbo"), pair, x)
    for name in ("vimco", "rws"):
        loss = bind(construct(name, num_particles=3), pair, x).differentiable_loss(None, None, x)
        assert torch.autograd.grad(loss, context)[0].isfinite().all()


def test_weights_of_an_encoder_are_trained() -> None:
    """Through a whole pair, each parameter of the encoder has a gradient by every objective."""
    model, guide = make("mixture", 2)
    x = images(5)
    pair = Pair.read(model, guide, x)
    for name, particles in OBJECTIVES:
        loss = bind(construct(name, num_particles=particles), pair, x).differentiable_loss(pair.model, pair.guide, x)
        gradients = torch.autograd.grad(loss, list(guide.parameters()))
        assert all(bool((gradient != 0).any()) for gradient in gradients)
    with torch.no_grad():
        assert pair.terms(x, num_samples=3).score is None
