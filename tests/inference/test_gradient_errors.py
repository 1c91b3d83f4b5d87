"""Bias and variance of normal draws whose bias and covariance are known."""

import math

import pytest
import torch

from ppl_gen.inference.gradient_errors import gradient_errors

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


def test_the_test_for_bias_keeps_its_rate() -> None:
    """At most 5 % of 1,000 false alarms, by chance exceeded once in 16,000 (4 standard errors); and it sees a bias."""
    p = [gradient_errors(SCALES * torch.randn(30, 5).double(), torch.zeros(5)).p for _ in range(1000)]
    assert sum(each < 0.05 for each in p) / 1000 < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1000)
    assert gradient_errors(SCALES * torch.randn(1000, 5).double() + 0.3, torch.zeros(5)).p < 1e-6


def test_draws_without_noise() -> None:
    exact = torch.ones(3)
    found = gradient_errors(exact.expand(20, 3), exact)
    assert (found.bias, found.variance, found.p, found.cosine) == (0.0, 0.0, 1.0, pytest.approx(1.0))
    off = gradient_errors((2 * exact).expand(20, 3), exact)
    assert (off.bias, off.p) == (pytest.approx(3.0), 0.0)
    assert off.relative_to(3.0).bias == pytest.approx(1.0) and math.isnan(
        gradient_errors(exact.expand(20, 3), 0 * exact).cosine
    )
