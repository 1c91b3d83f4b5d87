"""log p(x), exactly, and p(z | x); and estimates that are held to them, in float64."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import by_conditioning, log_px_within, random_belief_net, random_mixture
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference import exact
from ppl_gen.inference.exact import exact_log_px, state_posterior
from ppl_gen.inference.pair import Pair
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.state_sums import binary_states
from ppl_gen.run import Run

F64 = torch.float64
SLOPE = torch.tensor([0.1, 1.0, 2.0, 3.0], dtype=F64)
THREE = torch.tensor([0.2, 0.3, 0.5], dtype=F64)
MODELS = [pytest.param(random_mixture, id="mixture"), pytest.param(random_belief_net, id="belief-net")]


def test_what_cannot_be_enumerated() -> None:
    def continuous(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(BadInput, match=r"^continuous: latent site 'z' \(Normal\) has no finite support"):
        exact_log_px(continuous, torch.zeros(3))

    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Poisson(1.0)), 1.0), obs=x)

    with pytest.raises(BadInput, match=r"'z' \(Poisson\) has no finite support.*importance sampling with a guide"):
        exact_log_px(counts, torch.zeros(3))

    def another_for_each(x: Tensor, count: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Binomial(count, 0.3)), 1.0), obs=x)

    with pytest.raises(BadInput, match=r"'z' \(Binomial\) has a support that differs between images"):
        exact_log_px(another_for_each, torch.zeros(3), torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(BadInput, match="does not sample 'z'"):
        Pair.read(continuous, Enumerated(), torch.zeros(3))


@pytest.mark.parametrize("make", MODELS)
def test_posterior_over_states(make: Any) -> None:
    """Bayes' rule with every pixel given, and with those alone that are visible."""
    model = make(5)
    x = binary_states(5, F64)
    _, posterior = state_posterior(model, x)
    torch.testing.assert_close(posterior.sum(0), torch.ones(32, dtype=F64))
    # p(z) = sum_x p(z | x) p(x)
    marginal = (posterior * exact_log_px(model, x).exp()).sum(1)
    states, _ = state_posterior(model, x)
    torch.testing.assert_close(marginal, model.prior().log_prob(states).exp().detach(), rtol=1e-10, atol=1e-12)
    visible = torch.tensor([1, 4])
    likelihood = model.likelihood(states.unsqueeze(1)).select(visible)
    partial = (likelihood.log_prob(x[:, visible]) + model.prior().log_prob(states).unsqueeze(-1)).softmax(0)
    joint = posterior * exact_log_px(model, x).exp()
    group = x[:, 1] * 2 + x[:, 4]
    for value in range(4):
        summed = joint[:, group == value].sum(1)
        torch.testing.assert_close(partial[:, group == value][:, 0], summed / summed.sum(), rtol=1e-10, atol=1e-12)


class _Responsibilities(nn.Module):
    """The exact posterior of a model with one enumerable site, as a guide that samples."""

    def __init__(self, target: Any):
        super().__init__()
        self.target = target

    def guide(self, x: Tensor) -> None:
        states, posterior = state_posterior(self.target, x)
        with pyro.plate("data", len(x)):
            index = dist.Categorical(posterior.T)
            pyro.sample("z", index if states.dim() == 1 else _States(index, states))


class _States(dist.TorchDistribution):
    """Rows of `states`, chosen by a categorical."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = BernoulliVector.support
    has_enumerate_support = True

    def __init__(self, index: Any, states: Tensor):
        self.index, self.states = index, states
        super().__init__(index.batch_shape, states.shape[1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_States":
        return _States(self.index.expand(batch_shape), self.states)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.states[self.index.sample(sample_shape)]

    def log_prob(self, value: Tensor) -> Tensor:
        weights = 2 ** torch.arange(value.shape[-1], dtype=value.dtype)
        return self.index.log_prob((value * weights).sum(-1))


@pytest.mark.parametrize("make", MODELS)
def test_exact_posterior_as_guide_gives_constant_weights(make: Any) -> None:
    model, x = make(6), torch.bernoulli(torch.full((5, 6), 0.5, dtype=F64))
    weights = ppl_gen.log_weights(model, _Responsibilities(model), x, num_samples=40)
    torch.testing.assert_close(weights, exact_log_px(model, x).expand(40, 5), rtol=0, atol=1e-11)


def test_prior_is_the_proposal_of_an_enumerated_pair() -> None:
    """log w = log p(x | z), z ~ p(z): the mean weight is p(x), within the errors of estimates of 6 images."""
    model, x = random_belief_net(5), torch.bernoulli(torch.full((6, 5), 0.5, dtype=F64))
    estimates = ppl_gen.log_marginal_likelihood(model, Enumerated(), x, num_samples=20_000)
    log_px_within(estimates, exact_log_px(model, x), largest=0.04)
    torch.testing.assert_close(estimates.kl, torch.zeros(6, dtype=F64))


def test_importance_sampling_covers_the_exact_value() -> None:
    """M = 8 units and an untrained guide: the 95 % interval of log p(x), S = 1,000, covers the exact value at a rate in
    [0.91, 0.98] over 200 repetitions (binomial tails below 1 %), once the estimated bias is taken off. What bias is
    left is smaller than a fifth of the standard error."""
    model = random_belief_net(12, units=8)
    with torch.no_grad():
        model.weight.mul_(0.5)
    guide = Bernoulli(12, torch.full((12,), 0.5), 8, "z").double()
    x = model.model(n=1).detach()
    truth = exact_log_px(model, x)
    repeated = x.expand(200, -1).contiguous()  # each row has samples of its own
    estimates = ppl_gen.log_marginal_likelihood(model, guide, repeated, num_samples=1000)
    error = estimates.log_px - estimates.log_px_bias - truth
    se = estimates.log_px_mc_var.sqrt()
    assert 0.91 <= (error.abs() < 1.96 * se).double().mean() <= 0.98
    # 200 repetitions know the mean error to a 14th of a standard error; 4 of these are allowed.
    assert error.mean().abs() < 0.2 * se.mean() + 4 * error.std() / math.sqrt(200)
    assert estimates.ess.median() > 20  # a proposal worth testing on


@pytest.mark.parametrize("units", [4, 6])
def test_bound_and_estimate_lie_below_the_exact_value(units: int) -> None:
    """ELBO < L_10 < L_1000 < log p(x) + 4 Monte Carlo errors, on the mean of 50 images."""
    model = random_belief_net(10, units=units)
    guide = Bernoulli(10, torch.full((10,), 0.5), units, "z").double()
    x = model.model(n=50).detach()
    estimates = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=1000)
    exact = exact_log_px(model, x)
    bounds = [estimates.iwae[k].mean() for k in (1, 10, 100, 1000)]
    assert bounds == sorted(bounds)
    error = estimates.log_px_mc_var.sum().sqrt() / 50
    assert bounds[-1] < exact.mean() + 4 * error
    assert error < 0.03


class _Labelled(nn.Module):
    def __init__(self, log_px: Any):
        super().__init__()
        self.log_px = log_px

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3, dtype=F64)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


@pytest.mark.parametrize("num_images", [5, 1003])  # in two blocks
def test_labels_reach_log_px(num_images: int) -> None:
    """A `log_px(x, y)` is given y; a `log_px(x)` is not asked where the model takes y; one that is wrong is refused."""
    x, y = torch.randn(num_images, dtype=F64), torch.arange(num_images, dtype=F64) / num_images
    weights = torch.tensor([0.7, 0.3], dtype=F64).log()
    asked = []

    def right(x: Tensor, y: Tensor | float = 0.0) -> Tensor:
        asked.append(len(x))
        return (weights + dist.Normal(torch.tensor([0.0, 1.0], dtype=F64), 1.0).log_prob((x - y)[:, None])).logsumexp(1)

    for log_px, calls in ((right, True), (lambda x: right(x), False)):
        asked.clear()
        model = _Labelled(log_px)
        few = by_conditioning(model.model, {"z": [0.0, 1.0]}, x[-3:], y[-3:])
        torch.testing.assert_close(exact_log_px(model, x, y)[-3:], few)
        assert bool(asked) == calls
        pair = Pair.read(model, Enumerated(), x, y)
        torch.testing.assert_close(torch.cat(list(exact.exact_blocks(model, None, pair, x, y)))[-3:], few)
    for wrong in (lambda x, y: right(x), lambda x, y: right(x, y) + 0.01):
        with pytest.raises(BadInput, match=r"log_px\(x\) and the sum over states disagree"):
            exact_log_px(_Labelled(wrong), x, y)
    with pytest.raises(BadInput, match=r"must return \[images\], \[3\], but returns \[3, 1\]"):
        exact_log_px(_Labelled(lambda x, y: right(x, y)[:, None]), x, y)
    with pytest.raises(BadInput, match=r"log_px\(x\) fails: ZeroDivisionError"):
        exact_log_px(_Labelled(lambda x, y: 1 / 0), x, y)


def test_a_log_px_without_labels_is_no_closed_form_of_a_continuous_model() -> None:
    class Continuous(nn.Module):
        def model(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

        def guide(self, x: Tensor, y: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x - y, 1.0))

        def log_px(self, x: Tensor) -> Tensor:
            return dist.Normal(0.0, 2**0.5).log_prob(x)

    pair_of, x = Continuous(), torch.zeros(3)
    assert exact.closed_form(pair_of) and not exact.closed_form(pair_of, x)
    with pytest.raises(BadInput, match="takes fewer arguments"):
        list(exact.exact_blocks(pair_of, pair_of, Pair.read(pair_of, pair_of, x, x), x, x))


def test_what_a_model_raises_is_told_in_a_sentence() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(1000)))
            if len(z) > 1 and (z == z[0]).all():  # in a state that all images share; in one draw of 2 images in 1000
                raise RuntimeError("not these")
            pyro.sample("x", dist.Normal(z.float().view(len(x)), 1.0), obs=x)

    torch.manual_seed(1)
    with pytest.raises(BadInput, match=r"^model fails when its latent sites are enumerated: RuntimeError: not these"):
        exact_log_px(model, torch.zeros(6))


def test_a_likelihood_that_does_not_broadcast_has_no_posterior_over_states() -> None:
    class Flattened:
        def prior(self) -> Any:
            return dist.Categorical(THREE)

        def likelihood(self, z: Tensor) -> Any:
            return dist.Normal(z.double().view(-1, 1) * SLOPE, 1.0).to_event(1)

    for count in (1, 3, 5):
        with pytest.raises(BadInput, match=r"likelihood\(z\) does not broadcast over states"):
            state_posterior(Flattened(), torch.zeros(count, 4, dtype=F64))


class _Claims(nn.Module):
    """One standard normal unit and two binary pixels that do not depend on it, with a `log_px` that a test gives."""

    def __init__(self, claim: Any):
        super().__init__()
        self.claim, self.logit = claim, nn.Parameter(torch.zeros(2))

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Any:
        with pyro.plate("data", n if x is None else len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return pyro.sample(
                "x", dist.Bernoulli(logits=self.logit.expand(n if x is None else len(x), 2)).to_event(1), obs=x
            )

    def log_px(self, x: Tensor) -> Any:
        return self.claim(x)


class _PriorGuide(nn.Module):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (lambda x: torch.full((len(x),), -100.0), "log_px.x. of image . is -100, but importance samples find -1.38"),
        (lambda x: torch.full((len(x),), 2 * math.log(0.5) - 2), "importance samples find -1.38"),
        (
            lambda x: torch.full((len(x),), 2 * math.log(0.5) + 0.3),
            "that the model draws is -1.08.*from its z is -1.38",
        ),
        (lambda x: torch.full((len(x), 1), -1.0), r"must return \[images\], \[8\], but returns \[8, 1\]"),
        (lambda x: torch.tensor(-1.0), r"returns \[\]"),
        (lambda x: -1.0, "returns float"),
        (lambda x: torch.full((len(x),), math.nan), "not finite"),
        (lambda x: torch.full((len(x),), 5.0), "a log-probability is at most 0"),
    ],
)
def test_a_closed_form_that_cannot_be_true(elsewhere: Any, claim: Any, message: str) -> None:
    """It is refused, before training where eight images show it."""
    x = torch.rand(200, 1, 2).round()
    with pytest.raises(BadInput, match=message):
        Run.fit(_Claims(claim), guide=_PriorGuide(), data=x, epochs=1, num_samples=20, quiet=True)


def test_a_closed_form_that_is_true(elsewhere: Any) -> None:
    run = Run.fit(
        _Claims(lambda x: torch.full((len(x),), 2 * math.log(0.5))),
        guide=_PriorGuide(),
        data=torch.rand(200, 1, 2).round(),
        learning_rate=1e-9,
        epochs=1,
        num_samples=20,
        quiet=True,
    )
    assert run.evaluation is not None and run.evaluation.summary["log_px"]["estimator"] == "exact"


def test_what_samples_refute() -> None:
    """A sum of small differences counts, as one large one does; rounding does not."""
    truth = torch.full((1000,), -90.0, dtype=F64)
    exact.check_against_samples(None, truth, truth + 5e-4)
    exact.check_against_samples(None, truth, truth - 50)
    exact.check_against_samples(None, truth, truth.index_fill(0, torch.tensor([3]), -90.0 + 13))
    for wrong in (truth + 0.02, truth.index_fill(0, torch.tensor([3]), -90.0 + 22)):
        with pytest.raises(BadInput, match="correct log_px, or leave it out"):
            exact.check_against_samples(None, truth, wrong)


def test_what_upper_bounds_refute() -> None:
    """The other direction; a bound that is infinite shows nothing."""
    upper = torch.full((100,), -90.0, dtype=F64)
    exact.check_against_bounds(None, upper + 5e-4, upper)
    exact.check_against_bounds(None, upper - 50, upper)
    exact.check_against_bounds(None, upper + 1, upper.index_fill(0, torch.tensor([3]), math.inf))
    for wrong in (upper + 0.2, upper.index_fill(0, torch.tensor([3]), -90.0 + 20)):
        with pytest.raises(BadInput, match=r"correct log_px, or what model\(x=None\) draws"):
            exact.check_against_bounds(None, wrong, upper)
