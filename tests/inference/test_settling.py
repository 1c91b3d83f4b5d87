"""log p(x) to a stated tolerance, against closed forms, enumeration and quadrature; float64."""

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian, OneMode, TwoLayers, TwoModes, random_belief_net
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.annealed import annealed_log_px
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.settling import (
    ANNEALED,
    FEWEST,
    LEFT,
    SETTLED,
    SettledEstimate,
    Settling,
    _annealed,
    check,
    settled_log_px,
)


class Narrow(nn.Module):
    """The posterior of a `LinearGaussian`, scaled by 0.7 and moved by an amount that differs between images."""

    def __init__(self, model: LinearGaussian):
        super().__init__()
        self.target = model

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            exact = self.target.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.loc + 0.1 * x[:, :1], exact.covariance_matrix * 0.49))


def _linear(count: int, latent_dim: int = 2) -> tuple[LinearGaussian, Tensor]:
    model = LinearGaussian(latent_dim=latent_dim).requires_grad_(False)
    torch.manual_seed(0)
    return model, model.model(n=count)


def _belief_net(count: int) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model = random_belief_net(pixels=6, units=4)
    guide = Bernoulli(6, torch.full((6,), 0.5), 4, "z").double()
    return model, guide, model.model(n=count)


def _off(found: SettledEstimate, exact: Tensor) -> int:
    """Number of settled images whose error exceeds the tolerance."""
    return int(((found.log_px - exact).abs() > found.settling.tolerance)[found.outcome != LEFT].sum())


def test_the_tolerance_holds_at_its_rate_on_a_linear_model() -> None:
    """At a rate of 5 %, 7 of 30 images are off by chance with probability 6e-4."""
    model, x = _linear(30)
    exact = model.log_px(x)
    found = settled_log_px(model, Narrow(model), x, settling=Settling(most_samples=2**12))
    assert (found.outcome == SETTLED).double().mean() > 0.9
    assert _off(found, exact) < 7
    assert not found.at_least or (found.outcome == LEFT).any()


def test_the_tolerance_holds_at_its_rate_on_a_belief_net() -> None:
    """The same of a discrete z, which no temperature spreads. The guide is not trained."""
    model, guide, x = _belief_net(40)
    assert check(model, guide, Batch(x, (), {})) == 1
    found = settled_log_px(model, guide, x, settling=Settling(most_samples=2**12))
    assert (found.outcome == SETTLED).double().mean() > 0.9
    assert _off(found, exact_log_px(model, x)) < 8


def test_the_samples_of_the_pilot_do_not_enter_the_estimate() -> None:
    """The mean weight is p(x) in expectation, although S depends on the pilot (4 standard errors: 6e-5)."""
    model, x = _linear(1)
    x = x.expand(100, -1)
    found = settled_log_px(model, Narrow(model), x, settling=Settling(0.13, 2**10), anneal=False)
    assert len(found.samples.unique()) > 1
    ratio = (found.log_px - model.log_px(x)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(x))


def test_an_exact_guide_is_settled_at_once() -> None:
    """All weights of the guide are equal: the mixture alone is uncertain."""
    model, x = _linear(8)
    found = settled_log_px(model, ExactGuide(model), x)
    assert bool((found.outcome == SETTLED).all()) and not found.at_least
    torch.testing.assert_close(found.log_px, model.log_px(x))
    assert int(found.samples.max()) <= 1024


def test_an_image_that_is_left_has_the_value_with_the_smaller_error() -> None:
    """Though the mixture is too uncertain for the tolerance, the exact guide's value is kept, which agrees with it."""
    model, x = _linear(40)
    found = settled_log_px(model, ExactGuide(model), x, settling=Settling(tolerance=2e-4), anneal=False)
    assert found.at_least and bool((found.outcome == LEFT).any())
    torch.testing.assert_close(found.log_px, model.log_px(x))


def test_a_guide_in_the_lesser_mode_settles_nothing() -> None:
    """It is 4.4 nats low and k-hat trusts every image; samples of the prior contradict it (each of 10 images is missed
    with probability below 1e-3)."""
    model = TwoModes(1)
    torch.manual_seed(0)
    x = 4.8 + 0.3 * torch.randn(10, 1, dtype=torch.float64)
    exact = model.log_px_by_quadrature(x)
    found = settled_log_px(model, OneMode(model, -1), x, settling=Settling(most_samples=2**11), anneal=False)
    assert _off(found, exact) == 0
    assert float((found.log_px - exact).abs().median()) < 1


def test_few_samples_leave_images() -> None:
    """They are "at least", and recorded so."""
    model, x = _linear(10)
    found = settled_log_px(model, Narrow(model), x, settling=Settling(0.01, FEWEST), anneal=False)
    assert bool((found.outcome == LEFT).all()) and found.at_least and bool(found.untrusted.all())
    entry = found.entry(True)
    assert entry["settled"]["fraction_left"] == 1 and entry["settled"]["num_left"] == 10
    assert entry["tolerance"] == 0.01 and "num_samples" not in entry
    assert entry["settled"]["samples"] == {"median": FEWEST, "largest": FEWEST, "total": 3 * FEWEST * 10}
    assert bool((found.variables("settled")["num_samples_settled"].values == FEWEST).all())


def test_the_pilot_ends_where_no_number_of_samples_would_do() -> None:
    model, x = _linear(10)
    found = settled_log_px(model, Narrow(model), x, settling=Settling(0.001, 2**11), anneal=False)
    assert bool((found.drawn == 2 * (128 + 256) + 2**11).all())


def test_images_that_are_left_are_annealed() -> None:
    """If that is cheap enough; it settles all of a linear model to half a nat, at a rate of 5 % (3 of 6: 2e-3)."""
    model, x = _linear(6)
    few = settled_log_px(model, Narrow(model), x, settling=Settling(0.5, FEWEST), anneal=False)
    left = replace(few, outcome=torch.full_like(few.outcome, LEFT), log_px_mc_var=few.log_px_mc_var + 1)
    assert _annealed(model, x, left) is left  # too expensive
    found = _annealed(model, x, replace(left, drawn=left.drawn + 10**6))
    assert bool((found.outcome == ANNEALED).all())
    assert int(((found.log_px - model.log_px(x)).abs() > 0.5).sum()) < 3


def test_the_same_seed_gives_the_same_numbers() -> None:
    model, x = _linear(4)
    values = []
    for _ in range(2):
        torch.manual_seed(1)
        values.append(settled_log_px(model, Narrow(model), x, settling=Settling(0.2), anneal=False))
    assert torch.equal(values[0].log_px, values[1].log_px) and torch.equal(values[0].samples, values[1].samples)


@pytest.mark.parametrize("latent_dim", [1, 2, 20])
def test_the_temperature_doubles_the_variance_of_an_exact_guide(latent_dim: int) -> None:
    """E[w^2] / E[w]^2 is 2 for a normal posterior and proposals t times as wide."""
    model, x = _linear(3, latent_dim)
    t = check(model, ExactGuide(model), Batch(x, (), {}))
    assert (t**2 / math.sqrt(2 * t**2 - 1)) ** latent_dim == pytest.approx(2)


def test_units_of_all_sites_and_plates_count() -> None:
    """Two sites of one unit have the temperature of one site of two."""
    model = TwoLayers()
    t = check(model, model, Batch(torch.zeros(3, 3, dtype=torch.float64), (), {}))
    assert (t**2 / math.sqrt(2 * t**2 - 1)) ** 2 == pytest.approx(2)


def test_several_sites_and_one_image() -> None:
    model = TwoLayers()
    torch.manual_seed(0)
    x = torch.randn(3, 3, dtype=torch.float64)
    for images in (x, x[:1]):
        found = settled_log_px(model, model, images, settling=Settling(0.2))
        assert bool((found.outcome == SETTLED).all()) and float((found.log_px - model.log_px(images)).abs().max()) < 0.4


def test_what_cannot_settle_is_refused() -> None:
    model, _, x = _belief_net(3)
    with pytest.raises(BadInput, match="samples no z"):
        settled_log_px(model, Enumerated(), x)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tolerance": 0.0}, "tolerance 0.0"),
        ({"tolerance": math.nan}, "tolerance nan"),
        ({"most_samples": 10}, "most.samples 10: must be at least 128"),
    ]
    for options, message in wrong:
        with pytest.raises(BadInput, match=message):
            Settling(**options)
    assert Settling(most_samples=600).steps == [128, 256, 512]


class _Angles(nn.Module):
    """Three angles, whose cosines and sines a linear decoder sees; the guide is too narrow, and off by a little."""

    def prior(self) -> dist.Distribution:
        return dist.VonMises(torch.zeros(3).double(), torch.full((3,), 0.5).double()).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        weight = torch.linspace(-1, 1, 48, dtype=torch.float64).reshape(6, 8)
        return dist.Bernoulli(logits=torch.cat([z.cos(), z.sin()], -1) @ weight).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
        with pyro.plate("data", n if x is None else len(x)):
            pyro.sample("x", self.likelihood(pyro.sample("z", self.prior())), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            around = (x[:, :3] - 0.5) * 3
            pyro.sample("z", dist.VonMises(around, torch.full_like(around, 0.7)).to_event(1))


def test_angles_are_not_spread() -> None:
    """A guide that a temperature spreads beyond a half turn has the density of other angles, and log p(x) was half a
    nat too high. The truth is a sum over a grid, which is exact for smooth functions of angles."""
    torch.manual_seed(0)
    pair, x = _Angles(), torch.bernoulli(torch.full((6, 8), 0.5, dtype=torch.float64))
    assert check(pair.model, pair.guide, Batch(x, (), {})) == 1
    with pytest.raises(BadInput, match="needs latent sites that are continuous and unbounded"):
        proposal_log_px(pair.model, [pair.guide], x, num_samples=100, temperature=1.5)
    with pytest.raises(BadInput, match="annealing needs a latent that is continuous and unbounded"):
        annealed_log_px(pair, x)
    turn = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24) - math.pi
    z = torch.cartesian_prod(turn, turn, turn)
    terms = pair.likelihood(z[:, None]).log_prob(x) + pair.prior().log_prob(z)[:, None]
    truth = terms.logsumexp(0) + 3 * math.log(2 * math.pi / 24)
    found = settled_log_px(pair.model, pair.guide, x)
    assert (found.outcome == SETTLED).all()
    torch.testing.assert_close(found.log_px, truth, atol=0.1, rtol=0)
