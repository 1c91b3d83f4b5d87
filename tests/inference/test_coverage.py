"""A guide that leaves the support of the prior, or covers a part of it."""

import math

import pyro
import pyro.distributions as dist
import torch
from pairs import integral, log_px_within, near_guide, number, one_site, standard_guide
from torch import Tensor

import ppl_gen
from ppl_gen.inference.coverage import leaves_support
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair

DOUBLE = torch.float64


def test_leaving_the_support_is_seen_before_training() -> None:
    x = torch.zeros(4, dtype=DOUBLE)
    for guide, left in ((near_guide, "z"), (standard_guide, "z")):
        with evaluating():
            pair = Pair.read(one_site(dist.Exponential(number(1.0)), lambda z: dist.Normal(z, 1.0)), guide, x)
            assert leaves_support(pair, x) == left
    with evaluating():
        pair = Pair.read(one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Normal(z, 1.0)), near_guide, x)
        assert leaves_support(pair, x) is None


def test_a_narrower_guide_is_at_least() -> None:
    """A guide of bounded support under a normal prior in 20 dimensions: 10 nats are missing, which k-hat cannot see."""
    zero = torch.zeros(20, dtype=DOUBLE)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Uniform(x / 1.09 - 0.25, x / 1.09 + 0.25).to_event(1))

    x = torch.linspace(-2, 2, 160, dtype=DOUBLE).reshape(8, 20)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=500)
    exact = dist.Normal(0.0, math.sqrt(1.09)).log_prob(x).sum(1)
    assert bool((found.log_px < exact - 5).all()) and found.at_least
    assert "at least" in str(found) and "leaves out a part of the prior's support" in str(found)


def test_an_elbo_is_minus_infinity_whatever_was_drawn() -> None:
    """A normal guide has mass below 0, where Exponential(1) has none, though none of 200 samples is there: the ELBO and
    the bounds of fewer samples are -inf, and log p(x) is right (2 images, each within 4 errors: false alarms 1e-4)."""
    prior = dist.Exponential(number(1.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x.double(), 0.9))

    x = torch.tensor([5.0, 6.0], dtype=DOUBLE)
    model = one_site(prior, lambda z: dist.Normal(z, 1.0))
    torch.manual_seed(0)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=1000)
    exact = integral(x, lambda z, each: prior.log_prob(z) + dist.Normal(z, 1.0).log_prob(each), 0, 40)
    log_px_within(found, exact, largest=0.1)
    assert bool((found.elbo == -math.inf).all() and (found.kl == math.inf).all())
    assert [bool((found.iwae[k] == -math.inf).all()) for k in (1, 10, 100, 1000)] == [True, True, True, False]
