"""Pairs that strangers wrote, whose gradient or bound an objective would get wrong: it is right, or refused."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.objectives.renyi import Renyi
from ppl_gen.inference.pair import Pair


def _beside(z: Tensor) -> Tensor:
    return torch.cat([2 * z - 1, torch.ones_like(z)], -1)


def _into(z: Tensor) -> Tensor:
    found = torch.ones(*z.shape[:-1], 2, dtype=z.dtype)
    found[..., :1] = 2 * z - 1
    return found


class Bit(nn.Module):
    """One bit, whose pixel is near it."""

    def __init__(self, features: Callable[[Tensor], Tensor]):
        super().__init__()
        self.w, self.a, self.features = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.5)), features

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5])).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.w * self.features(z)[..., :1]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.a.expand(len(x), 1)).to_event(1))


def test_a_bit_that_is_written_into_a_tensor() -> None:
    """Pyro's graph does not see what depends on it: the score function of `elbo` would leave the likelihood out, and
    point the other way. It is refused; with torch.cat it is right, and `rloo` is right in both cases: no mean of 100
    gradients is off by 5 standard errors (false alarms below 1e-5)."""
    torch.manual_seed(0)
    x, a, w = torch.ones(500, 1), torch.tensor(0.5, requires_grad=True), torch.tensor(2.0)
    q = a.sigmoid()
    exact = torch.autograd.grad(
        q * F.logsigmoid(w) + (1 - q) * F.logsigmoid(-w) - q * q.log() - (1 - q) * (1 - q).log(), a
    )[0]
    for features, name in ((_beside, "elbo"), (_beside, "rloo"), (_into, "rloo"), (_into, "nvil")):
        own = Bit(features)
        pair = Pair.read(own.model, own.guide, x)
        elbo = bind(construct(name), pair, x)
        losses = (elbo.differentiable_loss(pair.model, pair.guide, x) / len(x) for _ in range(100))
        found = -torch.stack([torch.autograd.grad(loss, own.a)[0] for loss in losses])
        assert (found.mean() - exact).abs() < 5 * found.std() / 10, (features, name)
    own = Bit(_into)
    with pytest.raises(BadInput, match="'x' may depend on 'z' in a way that Pyro does not follow"):
        bind(construct("elbo"), Pair.read(own.model, own.guide, x), x)


class Noise(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h + torch.randn_like(h) if self.training else h


class Functional(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, self.training)


class Rare(nn.Module):
    """Noise that one run of 100 images has once."""

    def forward(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.01, self.training)


class Idle(nn.Module):
    """Numbers that no density depends on."""

    def forward(self, h: Tensor) -> Tensor:
        return h + 0 * torch.randn_like(h)


class Noisy(nn.Module):
    """A guide with noise beside z, and its model."""

    def __init__(self, noise: nn.Module, binary: bool):
        super().__init__()
        self.net, self.noise, self.w, self.binary = nn.Linear(4, 1), noise, nn.Linear(1, 4), binary

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(torch.tensor([0.5])) if self.binary else dist.Normal(torch.zeros(1), 1.0)
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.w(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        h = self.noise(self.net(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", (dist.Bernoulli(logits=h) if self.binary else dist.Normal(h, 0.5)).to_event(1))


@pytest.mark.parametrize("noise", [Noise, Functional, Rare, nn.Dropout])
@pytest.mark.parametrize(("name", "binary"), [("stl", False), ("dreg", False), ("arm", True), ("disarm", True)])
def test_noise_beside_z(noise: type[nn.Module], name: str, binary: bool) -> None:
    """The guide would be run twice, with other noise: the bound would be above log p(x), or the gradient biased."""
    x = torch.bernoulli(torch.full((6, 4), 0.5))
    own = Noisy(noise(), binary)
    with pytest.raises(BadInput, match=rf"objective {name}: .* has noise beside z, such as dropout; use "):
        bind(construct(name), Pair.read(own.model, own.guide, x), x)
    quiet, idle = Noisy(nn.BatchNorm1d(1), binary).eval(), Noisy(Idle(), binary)
    for each in (quiet, idle):
        assert bind(construct(name), Pair.read(each.model, each.guide, x), x)
    assert not any(each.training for each in quiet.modules())  # as before
    assert bind(construct("rloo" if binary else "iwae"), Pair.read(own.model, own.guide, x), x)


class Encoding(nn.Module):
    """A model that has the encoder of its guide."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64))
        self.encoder = nn.Parameter(torch.full((3, 1), 0.05, dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w, 1.0).to_event(1), obs=x)


class Reading(nn.Module):
    """A guide that reads it there, from a list."""

    def __init__(self, model: Encoding):
        super().__init__()
        self.of, self.log_scale = [model], nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.of[0].encoder, self.log_scale.exp()).to_event(1))


@pytest.mark.parametrize("options", [{}, {"backward": 1}])
def test_a_guide_that_reads_parameters_of_the_model(options: dict[str, Any]) -> None:
    """`dreg` has the gradient of L_2 by quadrature over both samples: no parameter is off by 5 standard errors (false
    alarms below 1e-5), and the score, which it must not have, would be seen."""
    torch.manual_seed(0)
    model, x = Encoding(), torch.tensor([[1.0, 0.2, 1.5], [-2.0, 1.0, 0.5]], dtype=torch.float64)
    guide = Reading(model)
    nodes, weights = (torch.tensor(each) for each in np.polynomial.hermite_e.hermegauss(60))
    share = weights / weights.sum()
    z = x @ model.encoder + guide.log_scale.exp() * nodes[:, None, None]

    def log_normal(value: Tensor, mean: Any, scale: Any) -> Tensor:
        log_scale = torch.as_tensor(scale, dtype=value.dtype).log()
        return (-0.5 * ((value - mean) / scale) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)

    log_w = log_normal(x, z @ model.w, 1.0) + log_normal(z, 0.0, 1.0)
    log_w = log_w - log_normal(z, x @ model.encoder, guide.log_scale.exp())
    pairs = torch.stack(torch.broadcast_tensors(log_w[:, None], log_w[None])).logsumexp(0) - math.log(2)
    exact = torch.autograd.grad(((share[:, None] * share)[..., None] * pairs).sum(), model.encoder)[0].flatten()
    many = x.repeat(500, 1)
    pair = Pair.read(model, guide, many)
    loss = bind(construct("dreg", num_particles=2, options=options), pair, many)
    losses = (loss.differentiable_loss(pair.model, pair.guide, many) / 500 for _ in range(20))
    draws = -torch.stack([torch.autograd.grad(each, model.encoder)[0].flatten() for each in losses])
    se = draws.std(0) / math.sqrt(20)
    assert ((draws.mean(0) - exact).abs() < 7 * se).all() and (se < 0.1 * exact.abs().max()).all()


@pytest.mark.parametrize("alpha", [0.5, -3.0, 2.0, 1 + 1e-3, 1 - 1e-5, 1 + 1e-6, 1 - 1e-7])
def test_the_renyi_bound_near_the_elbo(alpha: float) -> None:
    """In float32 as with 50 digits, also where the exponent is nearly 0, with its gradient; and other orders are
    refused."""
    from mpmath import mp, mpf

    log_w = (torch.randn(10, 5, generator=torch.Generator().manual_seed(0)) * 3 - 90).requires_grad_()
    terms: Any = type("T", (), {"log_weight": log_w})
    found = Renyi(num_particles=10, alpha=alpha).surrogate(terms)
    mp.dps = 50
    for image in range(5):
        powers = [mp.exp((1 - mpf(alpha)) * mpf(float(each))) for each in log_w.detach()[:, image]]
        assert float(found.detach()[image]) == pytest.approx(
            float(mp.log(sum(powers) / 10) / (1 - mpf(alpha))), abs=3e-5
        )
    slopes = torch.autograd.grad(found.sum(), log_w)[0]
    torch.testing.assert_close(slopes, ((1 - alpha) * log_w.detach()).softmax(0), rtol=1e-3, atol=1e-5)
    for none in (math.nan, math.inf):
        with pytest.raises(BadInput, match="alpha"):
            Renyi(alpha=none)


AFFINE, SIGMOID = torch.distributions.transforms.AffineTransform, torch.distributions.transforms.SigmoidTransform
ZERO, ONE = torch.zeros(1), torch.ones(1)
ENDS: dict[str, tuple[Any, Callable[[Tensor], Any], bool]] = {
    "uniform": (dist.Uniform(ZERO, 2.0), lambda b: dist.Uniform(ZERO, b), True),
    "scaled": (
        dist.Uniform(ZERO, 2.0),
        lambda b: dist.TransformedDistribution(dist.Beta(ONE, ONE), [AFFINE(0.0, b)]),
        True,
    ),
    "pareto": (dist.Exponential(ONE), lambda b: dist.Pareto(b, ONE), True),
    "exponential": (dist.Exponential(ONE), lambda b: dist.Exponential(b), False),
    "normal": (
        dist.Normal(ZERO, 1.0),
        lambda b: dist.TransformedDistribution(dist.Normal(ZERO, 1.0), [AFFINE(b, b)]),
        False,
    ),
    # Its density vanishes at the ends: they may move.
    "logit-normal": (
        dist.Uniform(ZERO, 2.0),
        lambda b: dist.TransformedDistribution(dist.Normal(ZERO, 1.0), [SIGMOID(), AFFINE(0.0, b)]),
        False,
    ),
}  # prior, guide of a parameter, and whether the ends of the guide's support move


def _around_z(prior: Any, q: Callable[[], Any], x: Tensor) -> Pair:
    """x ~ N(z, 1) for one z of a prior, under a guide that is the same for all images."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", prior.expand([len(x), 1]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", q().expand([len(x), 1]).to_event(1))

    return Pair.read(model, guide, x)


@pytest.mark.parametrize("name", ENDS)
def test_a_support_that_changes_with_parameters(name: str) -> None:
    """For Uniform(0, b) the score has the mean -1/b, which `stl` would leave out, and score functions take for 0. The
    gradient of a reparametrized ELBO is right."""
    prior, q, moves = ENDS[name]
    b = torch.ones(1, requires_grad=True)

    x = torch.full((4, 1), 0.5)
    pair = _around_z(prior, lambda: q(b), x)
    for objective in ("stl", "dreg", "rloo", "nvil", "vimco", "rws"):
        if moves:
            with pytest.raises(BadInput, match="the support of 'z' in guide changes with its parameters"):
                bind(construct(objective), pair, x)
        else:
            bind(construct(objective), pair, x)
    for objective in ("elbo", "iwae"):
        bind(construct(objective), pair, x)


@pytest.mark.parametrize("kind", [dist.MixtureOfDiagNormals, dist.MixtureOfDiagNormalsSharedCovariance])
def test_mixtures_of_pyro_with_a_wrong_gradient_are_refused(kind: Any) -> None:
    """That of the weights is; score functions do not need it, and fixed weights have none."""
    weights = torch.zeros(2, requires_grad=True)
    scale = torch.ones(2, 2) if kind is dist.MixtureOfDiagNormals else torch.ones(2)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            locs = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).expand(len(x), 2, 2)
            pyro.sample("z", kind(locs, scale.expand(len(x), *scale.shape), weights.expand(len(x), 2)))

    x = torch.full((4, 2), 0.5)
    pair = Pair.read(model, guide, x)
    for objective in ("elbo", "beta", "stl", "iwae", "dreg"):
        with pytest.raises(BadInput, match=f"samples of {kind.__name__} .* have a wrong gradient"):
            bind(construct(objective), pair, x)
    bind(construct("rloo"), pair, x)
    weights.requires_grad_(False)
    bind(construct("elbo"), pair, x)


def test_a_closed_form_of_torch_that_is_wrong() -> None:
    """That of ContinuousBernoulli and Uniform(0, 1) is infinite; the mean over samples is 0.03. Right ones pass."""

    x = torch.zeros(3, 1)
    wrong = _around_z(dist.Uniform(ZERO, 1.0), lambda: dist.ContinuousBernoulli(torch.tensor([0.3])), x)
    with pytest.raises(BadInput, match=r"Pyro's KL divergence of image 0 is inf, .* over samples is 0\.0"):
        bind(construct("elbo-analytic-kl"), wrong, x)
    estimate = log_marginal_likelihood(wrong.model, wrong.guide, x, num_samples=200)
    assert {"kl", "elbo"} <= estimate.more_entries("importance").keys()
    assert not {"kl_analytic", "elbo_analytic_kl"} & estimate.more_entries("importance").keys()
    assert "kl_analytic" not in estimate.variables("importance")
    for prior, q in (
        (dist.Normal(ZERO, 1.0), dist.Normal(ONE, 2.0)),
        (dist.Gamma(ONE, ONE), dist.Gamma(2 * ONE, ONE)),
        (dist.Beta(ONE, ONE), dist.Beta(3 * ONE, ONE)),
        (dist.Exponential(ONE), dist.Gamma(2 * ONE, 2 * ONE)),
    ):
        right = _around_z(prior, lambda q=q: q, x)
        bind(construct("elbo-analytic-kl"), right, x)
        estimate = log_marginal_likelihood(right.model, right.guide, x, num_samples=200)
        assert "kl_analytic" in estimate.more_entries("importance")
