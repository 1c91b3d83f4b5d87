"""Values of discrete units that the guide does not draw: log p(x) is low, and nothing else tells."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import Tensor

import ppl_gen
from ppl_gen.core.errors import MISSED
from ppl_gen.inference.neighbours import missed_values
from ppl_gen.inference.settling import LEFT, SETTLED, settled_log_px

COPIED = 5  # bits of z that x shows with near certainty
X = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]).float()
TRUTH = -COPIED * math.log(2)


def _bits(free: float) -> tuple[Any, Any]:
    """A bit that x says nothing of, beside bits that it copies. The guide gives the free bit these log-odds of 1."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((COPIED + 1,), 0.5)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=(2 * z[..., 1:] - 1) * 20).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            logits = torch.cat([torch.full((len(x), 1), free), (2 * x - 1) * 30], -1)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    return model, guide


def _categories(free: float) -> tuple[Any, Any]:
    """The same for a category, of which there are four."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("k", dist.Categorical(torch.ones(4) / 4))
            z = pyro.sample("z", dist.Bernoulli(torch.full((COPIED,), 0.5)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=(2 * z - 1) * 20).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("k", dist.Categorical(logits=torch.tensor([0.0, free, free, free])))
            pyro.sample("z", dist.Bernoulli(logits=(2 * x - 1) * 30).to_event(1))

    return model, guide


def _one_hot(free: float) -> tuple[Any, Any]:
    """The same for two one-hot units of two values each. The guide misses values of the second."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("k", dist.OneHotCategorical(torch.ones(2, 2) / 2).to_event(1))
            z = pyro.sample("z", dist.Bernoulli(torch.full((COPIED,), 0.5)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=(2 * z - 1) * 20).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            logits = torch.tensor([[0.0, 0.0], [0.0, free]])
            pyro.sample("k", dist.OneHotCategorical(logits=logits).to_event(1))
            pyro.sample("z", dist.Bernoulli(logits=(2 * x - 1) * 30).to_event(1))

    return model, guide


@pytest.mark.parametrize("make", [_bits, _categories, _one_hot])
@pytest.mark.parametrize("free", [-9.0, -15.0, -60.0, -110.0])
def test_what_the_guide_never_draws_is_told(make: Any, free: float) -> None:
    """log p(x) is low by log 2, or by log 4, and all weights are alike. Bits of which both are certain are no fault."""
    found = ppl_gen.log_marginal_likelihood(*make(free), X, num_samples=500)
    assert found.at_least and found.untrusted.all() and any(MISSED in note for note in found.notes())
    assert found.more_entries("importance")["missed_values"] == 1.0
    if free < -9:
        assert float((found.log_px - TRUTH).max()) < -0.69


@pytest.mark.parametrize("make", [_bits, _categories])
def test_such_an_image_is_not_settled(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor by the mixture with the prior, whose samples seldom copy all of many bits."""
    monkeypatch.setitem(globals(), "COPIED", 30)
    x = torch.bernoulli(torch.full((4, 30), 0.5))
    found = settled_log_px(*make(-15.0), x)
    assert found.outcome.tolist() == [LEFT] * 4 and found.at_least
    assert float((found.log_px + 30 * math.log(2)).max()) < -0.69
    found = settled_log_px(*make(0.0), x)
    assert found.outcome.tolist() == [SETTLED] * 4
    torch.testing.assert_close(found.log_px, torch.full((4,), -30 * math.log(2)).double(), atol=0.15, rtol=0)


@pytest.mark.parametrize("make", [_bits, _categories, _one_hot])
@pytest.mark.parametrize("free", [0.0, -1.0, 2.0])
def test_a_guide_that_draws_all_is_trusted(make: Any, free: float) -> None:
    found = ppl_gen.log_marginal_likelihood(*make(free), X, num_samples=500)
    assert found.doubted is not None and not found.doubted.any()
    assert not any(MISSED in note for note in found.notes())
    assert "missed_values" not in found.more_entries("importance")
    torch.testing.assert_close(found.log_px, torch.full((3,), TRUTH).double(), atol=0.3, rtol=0)


def test_one_image_of_many_and_other_latents() -> None:
    """Image 7 alone; a continuous site beside; units in an event of two dimensions; none that is discrete."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((2, 3), 0.5)).to_event(2))
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a + 0 * z.sum((-2, -1)), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            logits = torch.zeros(len(x), 2, 3)
            logits[x == 7.0, 1, 2] = -40.0
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(2))
            pyro.sample("a", dist.Normal(x / 2, 0.5**0.5))

    x = torch.arange(9.0)
    missed = missed_values(model, guide, x, num_samples=100)
    assert missed is not None and missed.nonzero().flatten().tolist() == [7]

    def continuous(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("a", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def normal(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("a", dist.Normal(x / 2, 0.5**0.5))

    assert missed_values(continuous, normal, x, num_samples=100) is None

    def counts(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            n = pyro.sample("n", dist.Binomial(3, probs=torch.full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(0.0 * n, 1.0), obs=x)

    def few_counts(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("n", dist.Binomial(torch.full((len(x),), 3.0), logits=-9.0 + 0 * x))

    missed = missed_values(counts, few_counts, x, num_samples=100)
    assert missed is not None and missed.all()

    planar = transforms.planar(1)

    def without_inverse(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x), 2, 3), 0.5)).to_event(2))
            flow = dist.TransformedDistribution(dist.Normal(x[:, None] / 2, 0.7).to_event(1), [planar])
            pyro.sample("a", flow)

    def of_a_vector(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((2, 3), 0.5)).to_event(2))
            a = pyro.sample("a", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(a[..., 0], 1.0), obs=x)

    assert missed_values(of_a_vector, without_inverse, x, num_samples=100) is None
    assert ppl_gen.log_marginal_likelihood(of_a_vector, without_inverse, x, num_samples=100).doubted is None
