"""Guides that leave out a part of the prior's support: their estimate lacks a part of p(x), and says so whether or not
draws of the prior show it; and other numbers that are not log p(x)."""

import math
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_gen import Run, log_marginal_likelihood
from ppl_gen.core.errors import NARROWER, BadInput

Function = Callable[[Tensor], None]


def _pair(
    prior: Callable[[Tensor], dist.Distribution], guide: Callable[[Tensor], dist.Distribution]
) -> tuple[Function, Function]:
    """A normal x around z."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x))
            pyro.sample("x", dist.Normal(z.to(x.dtype), 0.5), obs=x)

    def proposal(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide(x))

    return model, proposal


W = torch.linspace(-10, 10, 200)
CASES = {
    "an interval of a half-line": (lambda x: dist.Exponential(1.0), lambda x: dist.Uniform(torch.zeros(len(x)), 8.0)),
    "the upper half of an interval": (lambda x: dist.Uniform(0.0, 10.0), lambda x: dist.Uniform(5 + 0 * x, 10.0)),
    "few of all counts": (lambda x: dist.Poisson(3.0), lambda x: dist.Binomial(12, probs=torch.full((len(x),), 0.85))),
    "10 of 100 categories": (
        lambda x: dist.Categorical(1 / torch.arange(1, 101.0) ** 4),
        lambda x: dist.Categorical(logits=-0.5 * (x[:, None] - torch.arange(10.0)) ** 2),
    ),
    "categories of probability 0": (
        lambda x: dist.Categorical(logits=torch.zeros(200)),
        lambda x: dist.Categorical(logits=(-((x[:, None] - W) ** 2)).masked_fill(W < 0, -math.inf)),
    ),
    "a hard choice": (
        lambda x: dist.Categorical(logits=torch.zeros(20)),
        lambda x: dist.Categorical(probs=torch.eye(20)[x.round().long().clamp(0, 19)]),
    ),
    "a hard bit": (lambda x: dist.Bernoulli(0.5), lambda x: dist.Bernoulli(probs=(x > 0).float())),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_at_least(case: str) -> None:
    """On every image, from every seed, though few draws of the prior are there or none."""
    model, guide = _pair(*CASES[case])
    for seed in range(3):
        pyro.set_rng_seed(seed)
        found = log_marginal_likelihood(model, guide, torch.full((8,), 7.0), num_samples=100)
        assert found.at_least and found.untrusted.all() and NARROWER in found.notes()


COVERING = {
    "a longer interval": (lambda x: dist.Uniform(1.0, 2.0), lambda x: dist.Uniform(0 * x, 10.0)),
    "more counts": (lambda x: dist.Binomial(12, probs=0.5), lambda x: dist.Poisson(3 + 0 * x)),
    "all categories": (
        lambda x: dist.Categorical(logits=torch.zeros(9).masked_fill(torch.arange(9) > 6, -math.inf)),
        lambda x: dist.Categorical(
            logits=(-((x[:, None] - torch.arange(9)) ** 2)).masked_fill(torch.arange(9) > 6, -math.inf)
        ),
    ),
    "a certain bit": (lambda x: dist.Bernoulli(0.5), lambda x: dist.Bernoulli(logits=30 + 0 * x)),
}  # of rounding alone, sigmoid(30) is 1


@pytest.mark.parametrize("case", COVERING)
def test_a_guide_that_covers_the_prior_is_not_called_narrower(case: str) -> None:
    found = log_marginal_likelihood(*_pair(*COVERING[case]), torch.full((8,), 1.5), num_samples=100)
    assert not found.narrower and NARROWER not in found.notes()


def test_a_guide_that_exceeds_the_prior_for_some_images() -> None:
    """The ELBO of these is -inf, and that of the others is not, wherever they stand."""
    model, guide = _pair(
        lambda x: dist.Uniform(0.0, 1.0), lambda x: dist.Uniform(torch.zeros(len(x)), torch.where(x > 0.7, 2.0, 1.0))
    )
    x = torch.tensor([0.9, 0.2, 0.3, 0.4])
    for each in (x, x.flip(0)):
        found = log_marginal_likelihood(model, guide, each, num_samples=200)
        assert (found.elbo.isinf() == (each > 0.7)).all() and found.log_px.isfinite().all()


def test_the_order_of_the_images_does_not_matter() -> None:
    """The guide leaves out a part for the last images alone; or for one of many."""
    model, guide = _pair(
        lambda x: dist.Uniform(0.0, 1.0), lambda x: dist.Uniform(torch.zeros(len(x)), torch.where(x < 0.7, 1.0, 0.7))
    )
    x = torch.tensor([0.3, 0.4, 0.5, 0.6, 0.2, 0.8, 0.8, 0.8])
    assert all(log_marginal_likelihood(model, guide, each, num_samples=50).at_least for each in (x, x.flip(0)))
    x = torch.full((900,), 0.5)
    assert not log_marginal_likelihood(model, guide, x, num_samples=50).narrower
    x[777] = 0.9
    assert log_marginal_likelihood(model, guide, x, num_samples=50).narrower


def test_the_second_opinion_says_what_it_may_not_see() -> None:
    """A mode of half of the prior's mass is not seen on one image: it adds log 2, of which no test of few samples is
    sure."""
    halves = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-5.0, 5.0]), 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", halves)
            pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 5) / 2, 0.72))

    found = log_marginal_likelihood(model, guide, torch.tensor([5.0]))
    truth = math.log(2) - 0.5 * math.log(2 * math.pi * 2) - math.log(2)  # two modes, each half of the mass
    assert found.mean < truth + 0.01 and not found.at_least
    assert any("a larger one that adds little" in note for note in found.notes())


def test_an_infinite_density_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x", dist.Beta(z.sigmoid()[..., None] * torch.ones(3) + 0.1, 2 * torch.ones(3)).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.tensor([[0.1, 0.5, 0.2], [0.0, 0.5, 0.2]])
    with pytest.raises(BadInput, match=r"log p\(x \| z\) of model is infinite for image 1: a density has no bound"):
        log_marginal_likelihood(model, guide, x)


def test_a_factor_of_the_model_is_told() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("penalty", -5 * z**2)
            pyro.sample("x", dist.Bernoulli(logits=z), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 0.4))

    found = log_marginal_likelihood(model, guide, torch.tensor([0.0, 1.0]))
    assert found.observation == "unnormalized" and "the model has a factor" in str(found)


def test_an_evaluation_of_such_a_guide_is_written(tmp_path: Path) -> None:
    """With its note, and `untrusted` of every image."""

    class Rate(nn.Module):
        def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
            with pyro.plate("data", n if x is None else len(x)):
                z = pyro.sample("z", dist.Exponential(torch.ones(1)).to_event(1))
                return pyro.sample("x", dist.Bernoulli(logits=(z / 2 - 2).expand(*z.shape[:-1], 4)).to_event(1), obs=x)

    class Box(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.end = nn.Parameter(torch.tensor(8.0))

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Uniform(torch.zeros(len(x), 1), self.end).to_event(1))

    x = torch.bernoulli(torch.full((60, 4), 0.3))
    run = Run.fit(
        Rate(),
        guide=Box(),
        data={"train": x[:40], "test": x[40:]},
        epochs=1,
        num_samples=60,
        quiet=True,
        out=tmp_path / "run",
    )
    assert run.evaluation is not None and run.evaluation.log_px.at_least and NARROWER in str(run.evaluation)
    assert run.evaluation.to_dataframe()["untrusted"].all()


def test_a_known_label_leaves_nothing_out() -> None:
    """The model's factor excludes the values that the guide never draws, and is no weight."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(3)))
            pyro.factor("label", torch.where(y == 1, 0.0, -math.inf))
            pyro.sample("x", dist.Normal(y.float(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(probs=torch.tensor([0.0, 1.0, 0.0])))

    found = log_marginal_likelihood(model, guide, torch.tensor([0.0, 1.0]), num_samples=50)
    assert not found.narrower and found.observation == "density"
    torch.testing.assert_close(
        found.log_px, (dist.Normal(1.0, 1.0).log_prob(torch.tensor([0.0, 1.0])) - math.log(3)).double()
    )
