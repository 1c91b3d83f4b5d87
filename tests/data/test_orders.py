"""Orders that are computed number by number. Each statistical test has a false-alarm rate of 1e-6, and a fixed seed."""

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_gen.data.orders import Order, permuted, uniform

RATE = 1e-6


def test_every_number_is_there_once() -> None:
    for total in (*range(1, 200), 1023, 1024, 1025, 65_537, 250_000):
        assert (np.sort(permuted(np.arange(total), total, seed=total)) == np.arange(total)).all(), total


def test_a_place_has_its_number_whatever_is_read_with_it() -> None:
    total = 3 * 10**11
    places = np.array([0, 1, total // 2, total - 1])
    together = permuted(places, total, seed=5)
    assert together.tolist() == [int(permuted(places[k : k + 1], total, seed=5)[0]) for k in range(4)]
    assert ((together >= 0) & (together < total)).all() and len(set(together.tolist())) == 4
    assert together.tolist() != permuted(places, total, seed=6).tolist()


def test_the_permutation_of_a_seed_never_changes() -> None:
    assert permuted(np.arange(8), 8, seed=1).tolist() == [1, 2, 6, 0, 3, 4, 7, 5]
    found = uniform(np.arange(3, dtype=np.uint64), seed=1) * 2**24
    assert found.tolist() == [10831867, 5430712, 11404321]


@pytest.mark.parametrize("total", [7, 12, 30])
def test_numbers_are_uniform_over_seeds(total: int) -> None:
    """Which number stands at each place, and which pair stands at the first two places, by chi-squared."""
    seeds = 2000
    found = np.stack([permuted(np.arange(total), total, seed) for seed in range(seeds)])
    counts = np.stack([np.bincount(column, minlength=total) for column in found.T])
    expected = seeds / total
    statistic = ((counts - expected) ** 2 / expected).sum()
    # Rows and columns of the table have fixed sums. Its entries are not independent: (N - 1)^2 degrees of freedom, and
    # a statistic that is N / (N - 1) times that of independent counts.
    assert stats.chi2.sf(statistic * (total - 1) / total, (total - 1) ** 2) > RATE
    pairs = np.bincount(found[:, 0] * total + found[:, 1], minlength=total**2).reshape(total, total)
    assert stats.chisquare(pairs[~np.eye(total, dtype=bool)]).pvalue > RATE


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_neighbours_are_independent(seed: int) -> None:
    """In one long order: correlations of a number with its place and with the next number, and the share of halves."""
    total = 200_000
    found = permuted(np.arange(total), total, seed)
    bound = stats.norm.isf(RATE / 2)
    assert abs(np.corrcoef(np.arange(total), found)[0, 1]) * total**0.5 < bound
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) * total**0.5 < bound
    order = found.reshape(200, -1)  # each thousand is a sample without replacement
    high = (order >= total // 2).sum(1)
    variance = 1000 * 0.25 * (total - 1000) / (total - 1)
    assert stats.chi2.sf(((high - 500) ** 2).sum() / variance, 199) > RATE


def test_random_numbers_are_uniform_and_independent() -> None:
    count = 1_000_000
    found = uniform(np.arange(count, dtype=np.uint64), seed=3)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() < 1
    assert stats.chisquare(np.bincount((found * 256).astype(int), minlength=256)).pvalue > RATE
    bound = stats.norm.isf(RATE / 2)
    for step in (1, 64, 784):
        assert abs(np.corrcoef(found[:-step], found[step:])[0, 1]) * (count - step) ** 0.5 < bound
    other = uniform(np.arange(count, dtype=np.uint64), seed=4)
    assert abs(np.corrcoef(found, other)[0, 1]) * count**0.5 < bound


def test_parts_of_an_order() -> None:
    order = Order(100, seed=9)
    whole = order[:]
    assert torch.equal(order[torch.tensor([3, 99, 3])], whole[[3, 99, 3]])
    assert torch.equal(order[-7:], whole[-7:]) and torch.equal(order[90:200], whole[90:])
    part = order.cut(20, 70).cut(5, 1000)
    assert len(part) == 45 and torch.equal(part[:], whole[25:70]) and torch.equal(part[:3], whole[25:28])
    assert len(order.cut(60, 40)) == 0
    assert torch.equal(Order(5, seed=None).cut(1, 4)[:], torch.tensor([1, 2, 3]))
