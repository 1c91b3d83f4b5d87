"""Pairs whose guide samples some sites, while others are summed in the model or enumerated by the guide."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.elbos import TraceEnumSampled, WeightedKL
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.importance import log_mean_weight_with_errors
from ppl_gen.inference.objectives import bind, construct
from ppl_gen.inference.pair import Pair

F64 = torch.float64
SIGMAS = 5
"""Standard errors; a false alarm once in 1.7 million numbers."""


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class Switched(nn.Module):
    """y ~ Categorical, z ~ N(mean_y, 0.7), x ~ N(z w + 0.3 y, I): p(x) is a mixture of Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(_tensor(0.1, 0.2, 0.3, 0.4).log())
        self.means = nn.Parameter(_tensor(-2.0, 0.5, 1.0, 3.0))
        self.slope = nn.Parameter(_tensor(1.0, -0.5, 0.3))

    def likelihood(self, y: Tensor, z: Tensor) -> dist.Distribution:
        return dist.Normal(z.unsqueeze(-1) * self.slope + 0.3 * y.unsqueeze(-1), 1.0).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.means[y.long()], 0.7))
            pyro.sample("x", self.likelihood(y, z), obs=x)

    def log_joint(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        prior = self.logits.log_softmax(0)[y] + dist.Normal(self.means[y], 0.7).log_prob(z)
        return prior + self.likelihood(y, z).log_prob(x)

    def log_px(self, x: Tensor) -> Tensor:
        covariance = torch.eye(3, dtype=F64) + 0.49 * torch.outer(self.slope, self.slope)
        states = torch.arange(4)
        means = self.means[:, None] * self.slope + 0.3 * states[:, None]
        each = dist.MultivariateNormal(means, covariance).log_prob(x[:, None])
        return (self.logits.log_softmax(0) + each).logsumexp(1)


class Guide(nn.Module):
    """Samples z alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(_tensor(1.5))
        self.shift = nn.Parameter(_tensor(0.1, 0.4, -0.2, 0.3))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(5.0, 0.3 * x.sum(-1), self.scale[0]))


class EnumeratingGuide(Guide):
    """Enumerates y, and samples a z for each."""

    enumerate: str | None = "parallel"

    def value(self, x: Tensor) -> dist.Distribution:
        return dist.Categorical(logits=x.sum(-1, keepdim=True) * self.shift)

    def given(self, x: Tensor, y: Tensor) -> dist.Distribution:
        return dist.StudentT(5.0, 0.3 * x.sum(-1) + self.shift[y.long()], self.scale[0])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.value(x), infer={"enumerate": self.enumerate})
            pyro.sample("z", self.given(x, y))


class SamplingGuide(EnumeratingGuide):
    """Samples y and z."""

    enumerate = None


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=F64)


def test_the_sites_are_told_apart(x: Tensor) -> None:
    model = Switched()
    left, enumerating, sampling = (Pair.read(model, each(), x) for each in (Guide, EnumeratingGuide, SamplingGuide))
    assert (left.latent, left.summed, left.enumerated_in_guide) == (("z",), ("y",), ())
    assert (enumerating.latent, enumerating.summed, enumerating.enumerated_in_guide) == (("y", "z"), (), ("y",))
    assert (sampling.latent, sampling.partly_enumerated) == (("y", "z"), False)
    assert all(pair.vectorized for pair in (left, enumerating, sampling))
    assert left.reparametrized and enumerating.reparametrized and not sampling.reparametrized


def test_weights_are_sums_over_what_the_guide_leaves(x: Tensor) -> None:
    """By hand, at the z that were drawn: log sum_y p(x, y, z) - log q(z | x)."""
    model, guide = Switched(), Guide()
    with torch.no_grad():
        terms = Pair.read(model, guide, x).terms(x, num_samples=7)
        z = terms.latents["z"][..., 0]
        states = torch.arange(4)[:, None, None]
        log_q = dist.StudentT(5.0, 0.3 * x.sum(-1), 1.5).log_prob(z)
        expected = model.log_joint(x, states, z).logsumexp(0) - log_q
        prior = (model.logits.log_softmax(0)[states] + dist.Normal(model.means[states], 0.7).log_prob(z)).logsumexp(0)
    torch.testing.assert_close(terms.log_weight, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.log_prior, prior, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.evidence, expected, rtol=1e-12, atol=1e-12)


def test_a_guide_that_enumerates_draws_z_for_each_value(x: Tensor) -> None:
    """By hand: log sum_y p(x, y, z_y) / q(z_y | x, y), and sum_y q(y | x) [log p(x, y, z_y) - log q(y, z_y | x)]."""
    model, guide = Switched(), EnumeratingGuide()
    pair = Pair.read(model, guide, x)
    with torch.no_grad():
        torch.manual_seed(0)
        terms = pair.terms(x, num_samples=7)
        torch.manual_seed(0)
        drawn = pair.by_value(7, ppl_gen.inference.arguments.Batch(x, (), {}))
        z, states = drawn.values["z"], torch.arange(4)[:, None, None]
        assert z.shape == (4, 7, 6) and len(z.unique()) == z.numel()
        joint, log_y = model.log_joint(x, states, z), guide.value(x).log_prob(states)
        log_z = guide.given(x, states).log_prob(z)
    torch.testing.assert_close(terms.log_weight, (joint - log_z).logsumexp(0), rtol=1e-12, atol=1e-12)
    evidence = (log_y.exp() * (joint - log_y - log_z)).sum(0)
    torch.testing.assert_close(terms.evidence, evidence, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.latents["z"][..., 0], (log_y.exp() * z).sum(0), rtol=1e-12, atol=1e-12)
    assert bool((terms.log_weight > terms.evidence).all())  # Jensen's inequality


@pytest.mark.parametrize("guide", [Guide, EnumeratingGuide, SamplingGuide])
def test_log_px_is_that_of_the_mixture(x: Tensor, guide: Any) -> None:
    torch.manual_seed(1)
    model = Switched()
    estimate = ppl_gen.log_marginal_likelihood(model, guide(), x, num_samples=5000)
    error = (estimate.log_px - model.log_px(x).detach()) / estimate.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(estimate.log_px_mc_var.max()) < 0.01


@pytest.mark.parametrize("guide", [Guide, EnumeratingGuide])
def test_the_posterior_of_the_enumerated_site(x: Tensor, guide: Any) -> None:
    """p(x, y) of each y; its error by the delta method."""
    torch.manual_seed(8)
    model, count = Switched(), 4000
    with torch.no_grad():
        log_w = Pair.read(model, guide(), x).log_weights_by_value("y", x, num_samples=count)
        covariance = torch.eye(3, dtype=F64) + 0.49 * torch.outer(model.slope, model.slope)
        means = model.means[:, None] * model.slope + 0.3 * torch.arange(4)[:, None]
        exact = model.logits[:, None] + dist.MultivariateNormal(means[:, None], covariance).log_prob(x)
    estimate, variance, *_ = log_mean_weight_with_errors(log_w.movedim(1, 0).flatten(1))
    error = (estimate - exact.flatten()) / variance.sqrt()
    assert log_w.shape == (4, count, 6) and float(error.abs().max()) < SIGMAS


def test_the_elbo_of_an_enumerating_guide_is_that_of_a_sampling_one(x: Tensor) -> None:
    """It has no noise of y. The IWAE bound of one sample is above it."""
    torch.manual_seed(2)
    one, other = (
        ppl_gen.log_marginal_likelihood(Switched(), each(), x, num_samples=5000)
        for each in (EnumeratingGuide, SamplingGuide)
    )
    error = (one.elbo - other.elbo) / (one.elbo_mc_var + other.elbo_mc_var).sqrt()
    assert float(error.abs().max()) < SIGMAS
    assert bool((one.elbo_mc_var < other.elbo_mc_var).all()) and bool((one.iwae[1] > one.elbo + 0.1).all())


@pytest.mark.parametrize("guide", [Guide, EnumeratingGuide])
def test_value_and_gradient_are_those_of_pyro(x: Tensor, guide: Any) -> None:
    """`TraceEnum_ELBO` of Pyro draws the same noise in the same order."""
    found = []
    for ours in (True, False):
        model, q = Switched(), guide()
        elbo: Any = TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        if ours:
            elbo = TraceEnumSampled(Pair.read(model, q, x), 3)
        torch.manual_seed(4)
        loss = elbo.differentiable_loss(model.model, q.guide, x)
        found.append([loss, *torch.autograd.grad(loss, [*model.parameters(), *q.parameters()], allow_unused=True)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_likely_state_of_small_prior_is_kept_in_float32() -> None:
    """Pyro subtracts the maximum of each factor, so that the state that explains x vanishes."""
    logits, means = torch.tensor([0.0, -120.0]), torch.tensor([-20.0, 20.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(means[y.long()] + 0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.full((3,), 20.0)
    exact = -120 - 0.5 * math.log(2 * math.pi)
    found = -TraceEnumSampled(Pair.read(model, guide, x), 1).loss(model, guide, x) / 3
    pyros = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, x) / 3
    assert found == pytest.approx(exact, abs=1e-3)
    assert pyros < exact - 10 or math.isinf(pyros)  # what this is a test of


def test_a_score_where_samples_are_not_reparametrized(x: Tensor) -> None:
    """The gradient of a guide that samples a discrete y, while another site is summed, is that of enumeration."""
    x, table = x[:2, 0], _tensor(-1.0, 0.5, 2.0)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(_tensor(0.2, 0.3, 0.5)))
            k = pyro.sample("k", dist.Bernoulli(0.3 + 0.2 * y), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(table[y.long()] + k, 1.0), obs=x)

    logits = torch.zeros(3, dtype=F64, requires_grad=True)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=logits))

    states, one = torch.arange(3), torch.arange(2, dtype=F64)
    q = logits.log_softmax(0)
    prior = _tensor(0.2, 0.3, 0.5).log() + q * 0
    inner = dist.Bernoulli((0.3 + 0.2 * states)[:, None]).log_prob(one) + dist.Normal(
        table[states][:, None] + one, 1.0
    ).log_prob(x[:, None, None])
    exact = (q.exp() * (prior + inner.logsumexp(2) - q)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    pair = Pair.read(model, guide, x)
    assert (pair.summed, pair.reparametrized) == (("k",), False)
    torch.manual_seed(5)
    loss = bind(construct("elbo", num_particles=2), pair, x)
    found = []
    for _ in range(400):
        (gradient,) = torch.autograd.grad(-loss.differentiable_loss(model, guide, x), logits)
        found.append(gradient)
    each = torch.stack(found)
    error = (each.mean(0) - expected) / (each.std(0) / math.sqrt(len(each)))
    assert float(error.abs().max()) < SIGMAS


def test_the_weight_of_the_kl_term(x: Tensor) -> None:
    model, guide = Switched(), EnumeratingGuide()
    pair = Pair.read(model, guide, x)
    torch.manual_seed(6)
    loss = WeightedKL(TraceEnumSampled(pair, 2), 0.25).loss(pair.model, pair.guide, x)
    torch.manual_seed(6)
    terms = pair.terms(x, num_samples=2)
    expected = (terms.log_likelihood - 0.25 * (terms.log_guide - terms.log_prior)).mean(0).sum()
    assert loss == pytest.approx(-float(expected.detach()), rel=1e-12)


def test_inner_plates_and_masks(x: Tensor) -> None:
    """A component for each pixel, of which some are masked: the sum is a product over pixels."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(_tensor(0.0)[0], 1.0))
            with pyro.plate("pixels", 3, dim=-1), pyro.poutine.mask(mask=x > -0.5):
                y = pyro.sample("y", dist.Bernoulli(torch.sigmoid(z)), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(2 * y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x[:, :1], 1.5))

    pair = Pair.read(model, guide, x)
    for vectorized in (True, False):
        assert pair.vectorized
        with torch.no_grad():
            terms = replace(pair, vectorized=vectorized).terms(x, num_samples=4)
        z = terms.latents["z"]
        states = _tensor(0.0, 1.0)
        each = dist.Bernoulli(torch.sigmoid(z).unsqueeze(-1)).log_prob(states) + dist.Normal(2 * states, 1.0).log_prob(
            x.unsqueeze(-1)
        )
        pixels = torch.where(x > -0.5, each.logsumexp(-1), 0.0).sum(-1)
        expected = pixels + (dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(x[:, :1], 1.5).log_prob(z))[..., 0]
        torch.testing.assert_close(terms.log_weight, expected, rtol=1e-10, atol=1e-10)


def test_a_guide_whose_samples_are_drawn_one_by_one(x: Tensor) -> None:
    """This model refuses a dimension of samples beside that of y."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.sigmoid(x[:, 0])), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x.sum(-1) + y, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(_tensor(0.3)[0]))
            z = pyro.sample("z", dist.Normal(_tensor(0.0)[0], 1.0))
            assert z.dim() <= 2 or z.shape[-2] == 1
            pyro.sample("x", dist.Normal((z + y).unsqueeze(-1) * torch.ones(3), 1.0).to_event(1), obs=x)

    pair = Pair.read(model, guide, x)
    assert not pair.vectorized
    torch.manual_seed(0)
    estimate = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=3000)
    ones = torch.ones(3, dtype=F64)
    each = [
        math.log(p) + dist.MultivariateNormal(k * ones, torch.eye(3, dtype=F64) + torch.outer(ones, ones)).log_prob(x)
        for k, p in ((0.0, 0.7), (1.0, 0.3))
    ]
    error = (estimate.log_px - torch.stack(each).logsumexp(0)) / estimate.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS


def test_a_chain_under_markov(x: Tensor) -> None:
    """The forward algorithm, with an empty guide; and with a guide that samples a z which all steps share."""
    start, move = _tensor(0.5, 0.2, 0.3), torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]], dtype=F64)
    x = torch.cat([x, x], 1)

    def chain(x: Tensor, z: Tensor) -> None:
        state = None
        for step in pyro.markov(range(x.shape[1])):
            probabilities = start if state is None else move[state.long()]
            state = pyro.sample(f"y_{step}", dist.Categorical(probabilities), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{step}", dist.Normal(state.to(F64) + z, 1.0), obs=x[:, step])

    def forward(x: Tensor, z: Tensor) -> Tensor:
        emitted = dist.Normal(torch.arange(3, dtype=F64) + z[..., None], 1.0)
        total = start.log() + emitted.log_prob(x[:, :1])
        for step in range(1, x.shape[1]):
            total = (total[..., None] + move.log()).logsumexp(-2) + emitted.log_prob(x[:, step, None])
        return total.logsumexp(-1)

    def alone(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            chain(x, _tensor(0.0)[0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            chain(x, pyro.sample("z", dist.Normal(_tensor(0.0)[0], 1.0)))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1), 1.0))

    torch.testing.assert_close(exact_log_px(alone, x), forward(x, torch.zeros(6, dtype=F64)), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        terms = Pair.read(model, guide, x).terms(x, num_samples=3)
    z = terms.latents["z"][..., 0]
    expected = forward(x, z) + dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(x.mean(1), 1.0).log_prob(z)
    torch.testing.assert_close(terms.log_weight, expected, rtol=1e-10, atol=1e-10)


# What is refused ---------------------------------------------------------------------------------------------------


def _with(site: dict[str, Any], broadcasts: bool = True) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(_tensor(0.3)[0]), **site)
            z = pyro.sample("z", dist.Normal(y, 1.0))
            y = y if broadcasts else y.flatten()[: len(x)]
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x[:, 0])

    return model


def _samples_z(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, 0], 1.0))


def test_what_is_refused(x: Tensor) -> None:
    marked = {"infer": {"enumerate": "parallel"}}
    with pytest.raises(BadInput, match=r"does not sample 'y'.*to sum over its values, mark it with infer="):
        Pair.read(_with({}), _samples_z, x)
    assert Pair.read(config_enumerate(_with({})), _samples_z, x).summed == ("y",)
    with pytest.raises(BadInput, match=r"^model: 'y' cannot be enumerated in parallel \(.*further dimensions on the"):
        Pair.read(_with(marked, broadcasts=False), _samples_z, x)

    def inner(x: Tensor, in_guide: bool = False) -> None:
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("pixels", 3, dim=-1):
                pyro.sample("y", dist.Bernoulli(_tensor(0.3)[0]), **(marked if in_guide else {}))
            z = pyro.sample("z", dist.Normal(_tensor(0.0)[0], 1.0))
            if not in_guide:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, :1])

    with pytest.raises(BadInput, match="in a plate inside the plate 'data', where only the model can sum"):
        Pair.read(inner, lambda x: inner(x, True), x)


def test_objectives_of_a_guide_that_enumerates(x: Tensor) -> None:
    """Only those whose gradient reaches q(y | x)."""
    pair = Pair.read(Switched(), EnumeratingGuide(), x)
    for name in ("iwae", "dreg", "stl", "vimco", "rws", "wake-sleep"):
        with pytest.raises(BadInput, match=r"enumerates 'y'.*q\(y \| x\), which would not be trained; use elbo"):
            bind(construct(name, num_particles=2), pair, x)
    for name in ("elbo", "beta"):
        bind(construct(name), pair, x)
    with pytest.raises(BadInput, match="no closed-form KL"):
        bind(construct("elbo-analytic-kl"), pair, x)


@pytest.mark.parametrize("name", ["iwae", "dreg", "stl", "vimco", "rws", "renyi"])
def test_objectives_of_a_guide_that_leaves_a_site(x: Tensor, name: str) -> None:
    """They are those of the pair whose model has the mixture for p(z), and a mixture for p(x | z)."""

    class Collapsed(Switched):
        def model(self, x: Tensor) -> None:
            states = torch.arange(4)
            with pyro.plate("data", len(x)):
                mixture = dist.Categorical(logits=self.logits)
                prior = dist.MixtureSameFamily(mixture, dist.Normal(self.means, 0.7))
                z = pyro.sample("z", prior)
                joint = mixture.logits + dist.Normal(self.means, 0.7).log_prob(z.unsqueeze(-1))
                each = dist.Normal(z[..., None, None] * self.slope + 0.3 * states[:, None], 1.0).to_event(1)
                components = dist.Categorical(logits=joint)
                pyro.sample("x", dist.MixtureSameFamily(components, each), obs=x)

    found = []
    for model in (Switched(), Collapsed()):
        guide = Guide()
        pair = Pair.read(model, guide, x)
        loss = bind(construct(name, num_particles=3), pair, x)
        torch.manual_seed(7)
        value = loss.differentiable_loss(pair.model, pair.guide, x)
        parameters = [*model.parameters(), guide.scale]
        found.append([value, *torch.autograd.grad(value, parameters)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
