"""Ranks of z* against closed forms: exact guides are uniform, scaled and shifted ones are what one computes."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from scipy.stats import chi2, norm
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.guides.exact_gaussian import ExactGaussian
from ppl_gen.inference.exact import state_posterior
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.ranks import p_value
from ppl_gen.inference.simulation import SimulatedRanks, enumerated_ranks, simulated_ranks
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.mixture import Mixture

F64 = torch.float64
RARE = 1e-4
"""False-alarm rate of each test of uniformity."""


def ranks_of(model: Any, guide: Any, pixels: int, count: int = 600, num_samples: int = 100) -> SimulatedRanks:
    x = torch.zeros(count, pixels, dtype=F64)
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:4])
        if pair.enumerated:
            return enumerated_ranks(pair, model, x)
        return simulated_ranks(pair, x, num_samples=num_samples, chunk_size=50_000)


def p_values(ranks: Tensor) -> list[float]:
    return [p_value(column.numpy()) for column in ranks.T]


def beyond(ranks: Tensor, expected: np.ndarray, at: np.ndarray) -> float:
    """How far the ECDF is from the expected one, in standard errors."""
    ecdf = (ranks.numpy()[:, None] <= at).mean(0)
    return float((np.abs(ecdf - expected) / np.sqrt(expected * (1 - expected) / len(ranks))).max())


class Shifted(ExactGuide):
    """The exact posterior, shifted by half a standard deviation of its first unit."""

    def posterior(self, context: Tensor) -> dist.Distribution:
        exact = self.target.posterior(context)
        shift = torch.zeros_like(exact.loc)
        shift[..., 0] = 0.5 * exact.covariance_matrix[..., 0, 0].sqrt()
        return dist.MultivariateNormal(exact.loc + shift, exact.covariance_matrix)


class Prior(nn.Module):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))


def test_the_exact_guide_is_uniform_with_and_without_weights() -> None:
    """Five units of factor analysis, and two functions of them, twice: 14 tests at 1e-4 each, together below 1.4e-3.
    Its weights are all equal, and so are its ranks."""
    model = FactorAnalysis(12, latent_dim=5).double()
    with torch.no_grad():
        model.scaled_weight.normal_()
        model.log_psi.normal_(0, 0.3)
    found = ranks_of(model, ExactGaussian("z", model), 12)
    assert found.names == ("z[0]", "z[1]", "z[2]", "z[3]", "z[4]", "density", "likelihood")
    assert found.after is not None and found.ess is not None
    assert min(p_values(found.before) + p_values(found.after)) > RARE
    torch.testing.assert_close(found.ess, torch.full((600,), 100.0, dtype=F64))
    torch.testing.assert_close(found.before[:, :5], found.after[:, :5])


@pytest.mark.parametrize("scale", [0.7, 1.5])
def test_a_scaled_guide_has_the_ranks_that_one_computes(scale: float) -> None:
    """As the samples grow many, the rank of a unit is the normal distribution function at (z* - mean) / (scale sd), and
    z* lies in the region of mass c with probability F(scale^2 F^-1(c)), F of chi^2 with 2 units. 4.5 standard errors at
    9 points each (1 in 5,000 for all 27), beside which the step of 1/1000 is small."""
    model = LinearGaussian()
    found = ranks_of(model, ExactGuide(model, scale), 5, num_samples=1000)
    at = np.arange(1, 10) / 10
    for unit in (0, 1):
        assert beyond(found.before[:, unit], norm.cdf(scale * norm.ppf(at)), at) < 4.5
    assert beyond(found.before[:, 2], chi2.cdf(scale**2 * chi2.ppf(at, 2), 2), at) < 4.5
    assert max(p_values(found.before)) < 1e-6


@pytest.mark.parametrize("wrong", ["wide", "shifted", "narrow"])
def test_weights_repair_what_the_samples_reach(wrong: str) -> None:
    """Guides that are 1.3 times too wide, shifted by half a standard deviation, and 0.7 times too wide: with 1,000
    samples weighted ranks are uniform (4 tests at 1e-4). With 20 samples those of the narrow one are not."""
    model = LinearGaussian()
    guides = {"wide": ExactGuide(model, 1.3), "shifted": Shifted(model), "narrow": ExactGuide(model, 0.7)}
    found = ranks_of(model, guides[wrong], 5, count=600, num_samples=1000)
    assert found.after is not None
    assert min(p_values(found.before)) < 1e-6 and min(p_values(found.after)) > RARE
    if wrong == "narrow":
        few = ranks_of(model, guides[wrong], 5, count=600, num_samples=20).after
        assert few is not None and min(p_values(few)) < 1e-6


def test_a_shift_moves_the_mean_of_the_ranks() -> None:
    """By P(Z < -0.5 / sqrt 2) - 1/2 for a shift of half a standard deviation, where Z is the difference of two
    independent posterior samples; within 4.5 standard errors (1 in 150,000)."""
    model = LinearGaussian()
    mean = float(ranks_of(model, Shifted(model), 5).before[:, 0].mean())
    assert abs(mean - norm.cdf(-0.5 / math.sqrt(2))) < 4.5 / math.sqrt(12 * 600)


def test_the_prior_is_found_by_the_likelihood_alone() -> None:
    """Ranks of z among samples of the prior are uniform: 3 tests at 1e-4."""
    model = LinearGaussian()
    *of_z, likelihood = p_values(ranks_of(model, Prior(), 5).before)
    assert min(of_z) > RARE and likelihood < 1e-9


def belief_net() -> BeliefNet:
    torch.manual_seed(3)
    model = BeliefNet(10, latent_dim=4).double()
    with torch.no_grad():
        model.logits.normal_(0, 0.5)
        model.weight.normal_(0, 2)
        model.bias.normal_()
    return model


def mixture() -> Mixture:
    torch.manual_seed(0)
    model = Mixture(10, num_components=5).double()
    with torch.no_grad():
        model.weight.normal_(0, 1)
    return model


@pytest.mark.parametrize("model", [belief_net(), mixture()], ids=["belief net", "mixture"])
def test_ranks_in_an_enumerated_posterior_are_uniform(model: Any) -> None:
    """At most 6 tests at 1e-4 each."""
    found = ranks_of(model, Enumerated(), 10, count=2000)
    assert found.after is None and found.ess is None
    assert found.names[-2:] == ("density", "likelihood")
    assert min(p_values(found.before)) > RARE


class Marginals(nn.Module):
    """Independent units with the marginals of the exact posterior."""

    def __init__(self, model: BeliefNet):
        super().__init__()
        self.model = model

    def guide(self, x: Tensor) -> None:
        states, posterior = state_posterior(self.model, x)
        probabilities = (posterior.T @ states).clamp(1e-6, 1 - 1e-6)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(probabilities).to_event(1))


def test_right_marginals_have_uniform_units_and_a_wrong_joint() -> None:
    """Each unit has the exact probability, so that its ranks are uniform (4 tests at 1e-4). Any of the units explains
    the pixels, so that they depend on each other in p(z | x), which the density of all units shows. Weights repair it:
    6 more tests."""
    model = belief_net()
    with torch.no_grad():
        model.logits.fill_(-1)
        model.weight.fill_(3)
        model.bias.fill_(-2)
    found = ranks_of(model, Marginals(model), 10, count=1000, num_samples=200)
    *units, density, _ = p_values(found.before)
    assert found.after is not None
    assert min(units) > RARE and density < 1e-9
    assert min(p_values(found.after)) > RARE


class TwoSites(nn.Module):
    """b ~ Bernoulli(0.3), z | b ~ N(2 b, 1), two pixels x ~ N(z, 1); the guide is exact."""

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        offset = 0.0 if y is None else y.double()
        with pyro.plate("data", n if x is None else len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3, dtype=F64)))
            z = pyro.sample("z", dist.Normal(2 * b + offset, 1))
            return pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 2), 1).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        offset = torch.zeros(len(x), dtype=F64) if y is None else y.double()
        mean = x.mean(1) - offset
        odds = math.log(0.3 / 0.7) + (mean**2 - (mean - 2) ** 2) / 2 / 1.5
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=odds))
            pyro.sample("z", dist.Normal((2 * x.mean(1) + 2 * b + offset) / 3, math.sqrt(1 / 3)))


@pytest.mark.parametrize("labelled", [False, True])
def test_several_sites_and_labels(labelled: bool) -> None:
    """A discrete and a continuous site, and labels that move z: 8 tests at 1e-4."""
    pair, x = TwoSites(), torch.zeros(2000, 2, dtype=F64)
    labels = [torch.arange(2000) % 3] if labelled else []
    with evaluating(pair):
        read = Pair.read(pair, pair, x[:4], *(each[:4] for each in labels))
        found = simulated_ranks(read, x, *labels, num_samples=100, chunk_size=50_000)
    assert found.names == ("b", "z", "density", "likelihood")
    assert found.after is not None
    assert min(p_values(found.before) + p_values(found.after)) > RARE


def test_pairs_that_cannot_be_ranked_are_refused() -> None:
    class Regression(LinearGaussian):
        def model(self, x: Tensor, *, n: int = 1) -> Tensor:  # type: ignore[override]
            return super().model(x, n=len(x))

    model = Regression()
    with pytest.raises(BadInput, match="Regression cannot draw images"):
        ranks_of(model, ExactGuide(model), 5, count=20)
    net = belief_net()
    with evaluating(net), pytest.raises(BadInput, match="Enumerated samples no z"):
        x = torch.zeros(20, 10, dtype=F64)
        simulated_ranks(Pair.read(net, Enumerated(), x[:4]), x, num_samples=20)


def test_chunks_bound_memory_and_not_the_result() -> None:
    """The number of samples at a time changes noise alone: 4 tests at 1e-4."""
    model, x = LinearGaussian(), torch.zeros(100, 5, dtype=F64)
    guide, done = ExactGuide(model), list[int]()
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:4])
        found = simulated_ranks(pair, x, num_samples=50, chunk_size=100, progress=done.append)
    assert found.before.shape == (100, 4) and sum(done) == 100
    assert min(p_values(found.before)) > RARE
