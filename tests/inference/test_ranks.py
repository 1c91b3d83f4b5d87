"""The test of uniform ranks against simulation, ArviZ, and written-out values."""

import itertools

import numpy as np
import pytest
import torch

from ppl_gen.inference.ranks import POINTS, band, holm, p_value, rank


def test_p_values_are_exact_by_enumeration() -> None:
    """Two ranks fall into any two of the 50 cells between the points with the same probability. So each p-value that
    occurs is the share of the 2,500 cases with a p-value of at most that."""
    cells = np.arange(50) / 50 + 0.01
    found = np.array([[p_value(np.array([a, b])) if a <= b else 0 for b in cells] for a in cells])
    found = np.triu(found) + np.triu(found, 1).T
    for p in np.unique(found)[::20]:
        assert (found <= p * (1 + 1e-9)).mean() == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("count", [50, 1000])
def test_the_band_is_left_at_its_rate(count: int) -> None:
    """By 2,000 simulated ECDFs: at most 5 %, and not far less, within 4 standard errors (1 in 16,000); and where, and
    only where, the p-value is at most 5 %."""
    low, high = band(count, 0.05)
    ranks = np.sort(np.random.default_rng(1).uniform(size=(2000, count)), 1)
    ecdf = np.stack([np.searchsorted(each, POINTS, side="right") / count for each in ranks])
    outside = ((ecdf < low - 1e-9) | (ecdf > high + 1e-9)).any(1)
    error = np.sqrt(0.05 * 0.95 / 2000)
    assert 0.035 - 4 * error < outside.mean() < 0.05 + 4 * error
    for each, left in itertools.islice(zip(ranks, outside, strict=True), 100):
        assert (p_value(each) <= 0.05) == left


def test_the_band_is_that_of_arviz() -> None:
    """`arviz.stats.ecdf_utils.ecdf_confidence_band(200, POINTS, POINTS, prob=0.95, method="optimized")` of ArviZ 0.23.4
    at the 1st, 10th, 25th and 49th point, up to one rank: its optimizer is not exact."""
    theirs = ([0.0, 0.125, 0.4, 0.945], [0.055, 0.285, 0.6, 1.0])
    for ours, side in zip(band(200, 0.05), theirs, strict=True):
        assert np.abs(ours[[0, 9, 24, 48]] - side).max() < 1.01 / 200


def test_what_departs_has_a_small_p_value() -> None:
    uniform = (np.arange(400) + 0.5) / 400
    assert p_value(uniform) > 0.999
    for departing in (uniform**1.3, 0.5 + 0.8 * (uniform - 0.5), np.repeat([0.01, 0.99], 200)):
        assert p_value(departing) < 1e-3


def test_ranks_are_written_out() -> None:
    """Weights 0.1, 0.2, 0.3, 0.4 of values 1, 2, 2, 3; the value itself has weight 0.25."""
    values = torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=torch.float64).reshape(4, 1, 1)
    weights = torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64)
    noise = torch.tensor([[0.5]])
    for own, expected in ((0.0, 0.125), (1.5, 0.1 + 0.125), (2.0, 0.1 + 0.5 * 0.75), (9.0, 1.125)):
        found = rank(values, torch.tensor([[own]], dtype=torch.float64), noise, weights, 0.25)
        assert float(found) == pytest.approx(expected / 1.25)
    near = torch.tensor([[2.0 + 1e-7]], dtype=torch.float64)
    tied, apart = (rank(values, near, noise, weights, 0.25, tolerance) for tolerance in (1e-6, 0.0))
    assert float(tied) == pytest.approx((0.1 + 0.5 * 0.75) / 1.25)
    assert float(apart) == pytest.approx((0.6 + 0.5 * 0.25) / 1.25)


def test_ranks_of_exchangeable_values_are_uniform() -> None:
    """Continuous ones and ties: false alarms at 1 in 1,000 each."""
    torch.manual_seed(0)
    for values in (torch.randn(21, 2000, 1), torch.randint(3, (21, 2000, 1)).float()):
        weights = torch.full((20, 2000), 1 / 20)
        found = rank(values[1:], values[0], torch.rand(2000, 1), weights, 1 / 20)
        assert p_value(found[:, 0].numpy()) > 1e-3


def test_holm_rejects_at_most_at_its_rate() -> None:
    """All hypotheses true, in 4,000 families of 5 that depend on each other: any is rejected in at most 5 %, within 4
    standard errors (1 in 16,000)."""
    rng = np.random.default_rng(0)
    shared = rng.uniform(size=(4000, 1))
    families = np.where(rng.uniform(size=(4000, 5)) < 0.5, shared, rng.uniform(size=(4000, 5)))
    rejected = np.mean([any(holm(list(each), 0.05)) for each in families])
    assert rejected < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 4000)
