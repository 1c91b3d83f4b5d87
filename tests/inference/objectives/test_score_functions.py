"""Gradient estimators for discrete z against the gradient of what they estimate, written out over every z."""

import itertools
import math
from typing import Any

import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.elbos import ScoreFunctionELBO
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.objectives.rws import RWS
from ppl_gen.inference.objectives.vimco import VIMCO
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.vae import VAE
from ppl_gen.networks.distributions import BernoulliVector

F64 = torch.float64
UNITS, PIXELS = 2, 4


def _tiny(baseline: Any = "none") -> tuple[BeliefNet, Bernoulli, Tensor]:
    model = BeliefNet(PIXELS, latent_dim=UNITS).double()
    guide = Bernoulli(PIXELS, torch.full((PIXELS,), 0.5), UNITS, "z", baseline=baseline, baseline_dim=3).double()
    with torch.no_grad():
        for parameter in (*model.parameters(), *guide.encoder.parameters()):
            parameter.normal_()
    return model, guide, torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=F64)


def _log_weights(model: BeliefNet, guide: Bernoulli, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) - log q(z | x) and log q(z | x) for z [..., UNITS]."""
    log_q = guide.posterior(guide.encode(x)[0]).log_prob(z)
    return model.prior().log_prob(z) + model.likelihood(z).log_prob(x[0]) - log_q, log_q


def _every_draw(monkeypatch: pytest.MonkeyPatch, particles: int) -> Tensor:
    """Make the guide draw all combinations of `particles` values of z, one for each image of a batch."""
    states = list(itertools.product([0.0, 1.0], repeat=UNITS))
    draws = torch.tensor(list(itertools.product(states, repeat=particles)), dtype=F64).transpose(0, 1)
    monkeypatch.setattr(BernoulliVector, "sample", lambda self, shape=(): draws)
    return draws


def _parameters(model: nn.Module, guide: Bernoulli) -> list[nn.Parameter]:
    return [*model.parameters(), *guide.encoder.parameters()]


@pytest.mark.parametrize("particles", [2, 3])
def test_vimco_is_unbiased(particles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimator's mean over every draw of every sample is the gradient of L_K, in model and guide."""
    model, guide, x = _tiny()
    pair = Pair.read(model, guide, x)
    draws = _every_draw(monkeypatch, particles)
    log_w, log_q = _log_weights(model, guide, x, draws)
    chance = log_q.sum(0).exp()
    assert chance.sum().item() == pytest.approx(1)
    bound = (chance * (log_w.logsumexp(0) - math.log(particles))).sum()
    expected = torch.autograd.grad(bound, _parameters(model, guide))

    repeated = x.expand(draws.shape[1], -1)
    vimco = VIMCO(num_particles=particles)
    terms = pair.terms(repeated, num_samples=particles, detach=True)
    each = terms.log_weight.logsumexp(0) - math.log(particles)
    torch.testing.assert_close(each, log_w.logsumexp(0) - math.log(particles))
    torch.testing.assert_close(vimco.bound(terms), each)
    mean = (chance.detach() * vimco.surrogate(terms)).sum()
    for ours, true in zip(torch.autograd.grad(mean, _parameters(model, guide)), expected, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)
    # What SVI sees: minus the sum of the bounds, with that gradient.
    loss = bind(vimco, pair, x).differentiable_loss(None, None, repeated)
    torch.testing.assert_close(loss, -each.sum())


def test_reweighted_wake_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are normalized image by image; the model climbs log p(x, z), the guide log q(z | x)."""
    model, guide, x = _tiny()
    pair = Pair.read(model, guide, x)
    draws = _every_draw(monkeypatch, 2)
    repeated = x.expand(draws.shape[1], -1)
    loss = bind(RWS(num_particles=2), pair, x).differentiable_loss(None, None, repeated)
    ours = torch.autograd.grad(loss, _parameters(model, guide))
    log_w, log_q = _log_weights(model, guide, x, draws)
    torch.testing.assert_close(loss, -(log_w.logsumexp(0) - math.log(2)).sum())
    share = log_w.detach().softmax(0)
    by_hand = -(share * (log_w + log_q)).sum() - (share * log_q).sum()
    for mine, true in zip(ours, torch.autograd.grad(by_hand, _parameters(model, guide)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("baseline", ["none", "constant", "network"])
def test_score_function_is_unbiased(baseline: str) -> None:
    """The mean gradient of 40 batches of 500 is that of the ELBO, within 5 standard errors of each of 17 parameters
    (false alarms below 1e-4), with any baseline; the baseline's own gradient is that of its squared error, from the
    same noise: -2 sum_i (log w_i - b(x_i)) db."""
    model, guide, x = _tiny(baseline)
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=UNITS)), dtype=F64)
    log_w, log_q = _log_weights(model, guide, x, states)
    parameters = _parameters(model, guide)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad((log_q.exp() * log_w).sum(), parameters)])
    pair = Pair.read(model, guide, x)
    elbo = bind(construct("elbo"), pair, x)
    assert isinstance(elbo, ScoreFunctionELBO)
    repeated = x.expand(500, -1)
    gradients = []
    for _ in range(40):
        loss = elbo.differentiable_loss(model.model, guide.guide, repeated) / 500
        gradients.append(torch.cat([-g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]))
    stacked = torch.stack(gradients)
    error, se = stacked.mean(0) - expected, stacked.std(0) / math.sqrt(40)
    assert (error.abs() < 5 * se + 1e-12).all()
    assert se.norm() < 0.1 * expected.norm()
    if guide.baseline is not None:
        baseline: Any = guide.baseline
        with torch.no_grad():
            baseline.level.fill_(-0.7)
        images = torch.bernoulli(torch.full((500, PIXELS), 0.5, dtype=F64))
        torch.manual_seed(1)
        loss = elbo.differentiable_loss(model.model, guide.guide, images)
        torch.manual_seed(1)
        signal = pair.terms(images, detach=True).log_weight[0].detach()
        error = signal - baseline(images - guide.data_mean)
        own = list(baseline.parameters())
        slopes = torch.autograd.grad(loss, own)
        for ours, true in zip(slopes, torch.autograd.grad(error.square().sum(), own), strict=True):
            torch.testing.assert_close(ours, true)
        torch.testing.assert_close(dict(zip(own, slopes, strict=True))[baseline.level], -2 * PIXELS * error.sum())


def test_samples_are_detached() -> None:
    """For a guide that can be reparametrized too, no gradient passes through z."""
    model = VAE((3, 3), latent_dim=2, hidden_dims=(4,))
    guide = Normal((3, 3), 2, "z", model)
    terms = Pair.read(model, guide, torch.zeros(4, 9)).terms(torch.zeros(4, 9), num_samples=3, detach=True)
    inputs = list(guide.parameters())
    assert all(g is None for g in torch.autograd.grad(terms.log_likelihood.sum(), inputs, allow_unused=True))
    assert any(g is not None for g in torch.autograd.grad(terms.log_guide.sum(), inputs, allow_unused=True))


@pytest.mark.parametrize("name", ["elbo", "vimco", "rws"])
def test_trains_through_svi(name: str) -> None:
    """A few hundred steps of Pyro's SVI raise the bound."""
    torch.manual_seed(1)
    model, guide = BeliefNet(6, latent_dim=3), Bernoulli(6, torch.full((6,), 0.5), 3, "z")
    x = torch.bernoulli(torch.tensor([[0.9] * 3 + [0.1] * 3, [0.1] * 3 + [0.9] * 3])[torch.arange(64) % 2])
    pair = Pair.read(model, guide, x)
    elbo = bind(construct(name, num_particles=1 if name == "elbo" else 5), pair, x)
    adam = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=0.02)

    def step(parameters: Any, *args: Any, **kwargs: Any) -> None:
        adam.step()
        adam.zero_grad()

    def loss_and_grads(model: Any, guide: Any, x: Tensor) -> Tensor:
        loss = elbo.differentiable_loss(model, guide, x)
        loss.backward()
        return loss

    svi = SVI(pair.model, pair.guide, _optimizer(step), loss=elbo.differentiable_loss, loss_and_grads=loss_and_grads)
    losses = [svi.step(x) / 64 for _ in range(300)]
    assert sum(losses[-20:]) / 20 < sum(losses[:20]) / 20 - 0.5


def _optimizer(step: Any) -> Any:
    from pyro.optim import PyroOptim

    class Once(PyroOptim):
        def __init__(self) -> None: ...

        def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
            step(params)

    return Once()


@pytest.mark.parametrize(
    ("name", "particles", "message"),
    [
        ("vimco", 1, "num_particles 1: vimco needs at least 2"),
        ("rws", 1, "num_particles 1: rws needs at least 2"),
        ("elbo-analytic-kl", 1, "cannot be reparametrized; use elbo, vimco or rws"),
        ("vimko", 5, "did you mean 'vimco'"),
    ],
)
def test_refused(name: str, particles: int, message: str) -> None:
    model, guide, x = _tiny()
    with pytest.raises(BadInput, match=message):
        bind(construct(name, num_particles=particles), Pair.read(model, guide, x), x)


@pytest.mark.parametrize(("name", "particles"), [("vimco", 5), ("elbo", 2), ("elbo-analytic-kl", 1)])
def test_enumeration_samples_nothing(name: str, particles: int) -> None:
    model, _, x = _tiny()
    with pytest.raises(BadInput, match="nothing is sampled; use elbo with 1 particle"):
        bind(construct(name, num_particles=particles), Pair.read(model, Enumerated(), x), x)
