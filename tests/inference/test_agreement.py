"""Which of two estimates is too low: by how much, and how often by chance."""

import math
from dataclasses import replace

import pytest
import torch
from estimates import low
from torch import Tensor

from ppl_gen.inference.agreement import FALSE_ALARMS, above, bound
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.importance import log_mean_weight_with_errors, weight_statistics

F64 = torch.float64


def _estimate(values: list[float], mc_var: float = 1e-4, bias: float = 0.0) -> Estimate:
    return low(torch.tensor(values, dtype=F64), mc_var, bias)


def _by_importance(sd: float, num_samples: int, images: int) -> Estimate:
    """log p(x) = 0 of log-normal weights."""
    log_w = sd * torch.randn(num_samples, images, dtype=F64) - sd**2 / 2
    return _of_weights(log_w)


def _of_weights(log_w: Tensor) -> Estimate:
    log_px, mc_var, bias, _ = log_mean_weight_with_errors(log_w)
    values = {"log_px": log_px, "log_px_mc_var": mc_var, "log_px_bias": bias}
    return Estimate(estimator="test", num_samples=len(log_w), **values)


def test_the_larger_beyond_its_error_shows_the_other_too_low() -> None:
    low, high = _estimate([-10.0, -10.0]), _estimate([-9.0, -10.01])
    assert above(low, high).images.tolist() == [True, False]
    assert not above(high, low).images.any()
    assert not above(low, low).any
    assert not above(low, _estimate([-9.99, -10.01])).any  # by 0.7 errors


def test_a_stated_bias_is_no_excuse_beyond_the_variance() -> None:
    """Annealing of one effective chain states a bias of many nats."""
    stated, elbo = _estimate([58.42], mc_var=0.2, bias=-8.0), bound(torch.tensor([66.0], dtype=F64))
    assert above(stated, elbo).images.all()
    assert not above(_estimate([58.42], mc_var=0.2, bias=-0.1), _estimate([58.5])).any


def test_what_many_images_share_is_seen_together() -> None:
    """A fifth of a nat on each of 100 images, where each is known to 0.1: no image alone, and all together."""
    low, high = _estimate([-10.0] * 100, 0.01), _estimate([-9.8] * 100, 0.01)
    assert not above(low, high).images.any()
    assert above(low, high).together


def test_few_images_are_seen_beside_many_that_are_silent() -> None:
    """2 % are 6 nats above, by a single large weight each, and the others 3 below: their mean is the smaller."""
    low = _estimate([0.0] * 500)
    high = _estimate([-3.0] * 500, 1.0, -20.0)
    high.log_px[:10] = 6.0
    assert float(high.log_px.mean()) < 0 and not above(low, high).images.any()
    assert above(low, high).together


def test_an_unknown_error_is_silent_of_the_lower_alone() -> None:
    unknown = _estimate([-10.0], math.nan, math.nan)
    assert not above(unknown, _estimate([0.0])).any
    assert above(_estimate([-30.0]), unknown).images.all()  # by Markov's inequality
    assert not above(_estimate([-12.0]), unknown).any
    assert not above(_estimate([-1.0]), bound(torch.tensor([-math.inf], dtype=F64))).any


@pytest.mark.parametrize(
    ("low", "high"),
    [((0.5, 1000), (0.5, 50)), ((0.1, 1000), (1.5, 50)), ((0.5, 1000), (3.0, 50)), ((0.3, 16), (0.5, 1000))],
    ids=["regular", "uneven", "heavy", "few chains"],
)
def test_false_alarms(low: tuple[float, int], high: tuple[float, int]) -> None:
    """Of 500 comparisons of 20 images, both right: at three tests of 1e-3 each 1.5 alarms are expected, and more than 7
    have a probability of 3e-4. With weights of standard deviation 3 the larger is far too low, with 16 chains the
    variance is hardly known."""
    torch.manual_seed(0)
    assert FALSE_ALARMS == 1e-3
    alarms = sum(above(_by_importance(*low, 20), _by_importance(*high, 20)).any for _ in range(500))
    assert alarms <= 7


def test_alarms_of_weights_that_are_rarely_large() -> None:
    """The larger estimate finds a spike of weight with a probability of 2 % an image: then it is 4 nats too high, by
    one weight, and its own error does not show it. 500 comparisons of 20 images, as above."""
    torch.manual_seed(1)

    def rare() -> Estimate:
        log_w: Tensor = torch.where(torch.rand(50, 20, dtype=F64) < 4e-4, math.log(2500 * 0.9), math.log(0.1))
        return _of_weights(log_w)

    low = _estimate([0.0] * 20, 1e-6)
    assert sum(above(low, rare()).any for _ in range(500)) <= 7


def test_alarms_of_samples_that_are_all_the_same() -> None:
    """The posterior has z = 0 alone, and the guide a share of 0.7 % elsewhere. Of 2,000 images two have 1,000 samples
    of 0: their error is 0, and they are 0.007 nats too high. 40 comparisons at 2e-3: more than two alarms have a
    probability of 8e-5."""
    torch.manual_seed(2)
    truth, alarms = bound(torch.zeros(2000, dtype=F64)), 0
    chances = torch.full((1000, 2000), 0.993, dtype=F64)
    for _ in range(40):
        log_w = torch.where(torch.bernoulli(chances) == 1, -math.log(0.993), -60.0).double()
        log_px, mc_var, bias, ess = log_mean_weight_with_errors(log_w)
        values = {"log_px": log_px, "log_px_mc_var": mc_var, "log_px_bias": bias, "ess": ess}
        found = Estimate(estimator="test", num_samples=1000, khat=torch.full_like(ess, math.nan), **values)
        found = replace(found, largest=1 / ess)
        alarms += above(truth, found).any
    assert alarms <= 2


def test_an_unknown_khat_shows_nothing_by_its_error() -> None:
    """One sample with nearly all of the weight: the error is 1, and the value is six errors too high."""
    log_w = torch.full((1000, 2), math.log(0.1), dtype=F64)
    log_w[0, 0] = math.log(4e5)
    found = Estimate(estimator="test", num_samples=1000, **weight_statistics(log_w))
    assert float(found.log_px[0]) > 5.9 and float(found.log_px_mc_var[0]) < 1.01
    assert not above(_estimate([0.0, 0.0], 0.0), found).any
