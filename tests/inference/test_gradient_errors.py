"""Bias and variance of normal draws whose bias and covariance are known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import f

from ppl_gen.inference.gradient_errors import _positive, gradient_errors

SCALES = torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1], dtype=torch.float64)


def test_errors_are_what_they_say() -> None:
    """Over 400 repetitions the mean of each estimate is its true value, within 4 of its standard errors, and the mean
    of its squared standard error is its variance, within a quarter: 3.5 standard errors of a normal's variance."""
    exact = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    bias = torch.tensor([0.5, 0.0, -0.5, 0.2, 0.0], dtype=torch.float64)
    repeated = [
        gradient_errors(exact + bias + SCALES * torch.randn(200, 5, dtype=torch.float64), exact) for _ in range(400)
    ]
    for name, truth in (("bias", bias.square().sum()), ("variance", SCALES.square().sum())):
        values = torch.tensor([getattr(each, name) for each in repeated])
        claimed = torch.tensor([getattr(each, f"{name}_se") for each in repeated]).square().mean()
        assert abs(float(values.mean() - truth)) < 4 * float(values.std()) / math.sqrt(400)
        assert 0.75 < float(claimed / values.var()) < 1.25


SPECTRA = {
    "five": (SCALES, 30),
    "one": (torch.ones(1), 30),
    "equal": (torch.ones(40), 60),
    "one large": (torch.tensor([1.0, *[0.14] * 50]), 200),
    "more than draws": (torch.linspace(1.0, 0.1, 150), 50),
}
"""Standard deviations, and numbers of draws. Of `one large`, Satterthwaite's approximation has three times the rate."""


@pytest.mark.parametrize("name", SPECTRA)
def test_the_test_for_bias_keeps_its_rate(name: str) -> None:
    """At most 1 % and 5 % of 1,500 false alarms, by chance exceeded once in 16,000 (4 standard errors) for normal
    counts; and it sees a bias."""
    scales, draws = SPECTRA[name]
    zero = torch.zeros(len(scales))
    p = [gradient_errors(scales * torch.randn(draws, len(scales)).double(), zero).p for _ in range(1500)]
    for rate in (0.01, 0.05):
        found = sum(each < rate for each in p) / len(p)
        assert found < rate + 4 * math.sqrt(rate * (1 - rate) / len(p))
    assert sum(each < 0.5 for each in p) / len(p) > 0.45  # nor is it far from its rate
    assert gradient_errors(scales * torch.randn(1000, len(scales)).double() + 0.3, zero).p < 1e-5


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 4), (1, 299), (5, 20), (50, 5000)])
def test_a_ratio_of_two_sums_is_that_of_f(numerator: int, denominator: int) -> None:
    for value in (0.5, 1.0, 2.0, 4.0):
        weights = np.array([*[1.0] * numerator, -value * numerator / denominator])
        found = _positive(weights, np.array([*[1.0] * numerator, float(denominator)]))
        assert found == pytest.approx(f.sf(value, numerator, denominator), abs=1e-6)


def test_draws_without_noise() -> None:
    exact = torch.ones(3)
    found = gradient_errors(exact.expand(20, 3), exact)
    assert (found.bias, found.variance, found.p, found.cosine) == (0.0, 0.0, 1.0, pytest.approx(1.0))
    off = gradient_errors((2 * exact).expand(20, 3), exact)
    assert (off.bias, off.p) == (pytest.approx(3.0), 0.0)
    assert off.relative_to(3.0).bias == pytest.approx(1.0) and math.isnan(
        gradient_errors(exact.expand(20, 3), 0 * exact).cosine
    )
