"""Ranks that ought to be uniform, and the test of whether they are.

Let z* and x come from the model, and z_1 … z_S from q(z | x). If q(z | x) = p(z | x), then z* and the samples are
exchangeable, and the rank of any function of z* among its values at the samples is uniform (Talts et al. 2018,
theorem 1). `rank` places it in (0, 1), ties broken at random, so that it is uniform whatever the number of samples.

The test compares the empirical distribution function (ECDF) of N ranks with the diagonal at fixed points. At each
point the number of ranks below is binomial. The statistic is the smallest two-sided binomial tail probability over all
points, and its distribution is computed exactly by a recursion over the points (Säilynoja, Bürkner and Vehtari
2022). So the p-value and the simultaneous band need no simulation.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy.special import bdtr, gammaln
from torch import Tensor

POINTS = np.arange(1, 50) / 50
"""Points at which an ECDF is compared with the diagonal."""

Array = np.ndarray


def rank(
    values: Tensor, own: Tensor, noise: Tensor, weights: Tensor, own_weight: float, tolerance: float = 0
) -> Tensor:
    """The rank of a value among weighted samples, in (0, 1): the weight below it, plus a random part of its own weight
    and that of ties, over the weight of all. [images, quantities], float64.

    With equal weights and `own_weight` = 1 / samples this is (number below + noise (1 + ties)) / (samples + 1), which
    is uniform for exchangeable values::

        >>> samples, weights = torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), torch.full((3, 1), 1 / 3)
        >>> rank(samples, torch.tensor([[2.5]]), torch.tensor([[0.5]]), weights, 1 / 3)
        tensor([[0.6250]], dtype=torch.float64)

    :param values: values at the samples, [samples, images, quantities].
    :param own: the value to rank [images, quantities].
    :param noise: uniform numbers [images, quantities], which break ties.
    :param weights: weights of the samples [samples, images]. Each column adds up to 1.
    :param own_weight: weight of the value itself; 0 if it is among the samples.
    :param tolerance: relative difference, of numbers of at least 1, up to which two values count as equal.
    """
    margin = tolerance * own.abs().clamp(min=1) if tolerance else torch.zeros_like(own)
    each = weights.double().unsqueeze(-1)
    below = (each * (values < own - margin)).sum(0)
    tied = (each * ((values - own).abs() <= margin)).sum(0)
    return (below + noise.double() * (tied + own_weight)) / (1 + own_weight)


# The test ----------------------------------------------------------------------------------------------------------


def p_value(ranks: Array) -> float:
    """Probability, under uniformity, that the ECDF of as many ranks departs from the diagonal at least as far as that
    of these ranks [images] does::

        >>> round(p_value(np.arange(0.5, 100) / 100), 2), p_value(np.full(100, 0.5)) < 1e-9
        (1.0, True)
    """
    tails = _tails(len(ranks))
    counts = np.searchsorted(np.sort(ranks), POINTS, side="right")
    return _probability_beyond(len(ranks), float(tails[np.arange(len(POINTS)), counts].min()))


def band(count: int, rate: float) -> tuple[Array, Array]:
    """Lower and upper limits of the ECDF of `count` uniform ranks at `POINTS`. It leaves them with a probability of at
    most `rate`, and then `p_value` is at most `rate`."""
    low, high = np.log(rate / len(POINTS)) - 1, np.log(rate) + 1  # of log statistic: Bonferroni's, and a single test's
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_beyond(count, float(np.exp(middle))) <= rate else (low, middle)
    first, last = _limits(count, float(np.exp(low)))
    return first / count, last / count


def holm(p_values: list[float], rate: float) -> list[bool]:
    """The hypotheses that are rejected when all are tested together: some true one is with a probability of at most
    `rate`, however the tests depend on each other (Holm 1979)::

        >>> holm([0.001, 0.04, 0.02], 0.05)
        [True, True, True]
        >>> holm([0.001, 0.04, 0.03], 0.05)
        [True, False, False]
    """
    rejected = [False] * len(p_values)
    for passed, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > rate / (len(p_values) - passed):
            break
        rejected[index] = True
    return rejected


@lru_cache(4)
def _tails(count: int) -> Array:
    """Two-sided tail probability of each number of ranks below each point [points, count + 1]."""
    numbers, points = np.arange(count + 1), POINTS[:, None]
    below = bdtr(numbers, count, points)
    above = 1 - np.pad(below, ((0, 0), (1, 0)))[:, :-1]
    return 2 * np.minimum(below, above)


def _limits(count: int, statistic: float) -> tuple[Array, Array]:
    """The least and the largest number of ranks below each point whose tail probability exceeds a statistic."""
    inside = _tails(count) > statistic * (1 + 1e-9)
    return inside.argmax(1), count - inside[:, ::-1].argmax(1)


def _probability_beyond(count: int, statistic: float) -> float:
    """Probability that the smallest tail probability over all points is at most a statistic."""
    if not bool((_tails(count) > statistic * (1 + 1e-9)).any(1).all()):
        return 1.0
    log_factorial = gammaln(np.arange(count + 1) + 1.0)
    before, probability, left = np.zeros(1, int), np.ones(1), 0.0
    for point, first, last in zip(POINTS, *_limits(count, statistic), strict=True):
        # Given the number below the last point, each of the others is below this one with the same probability.
        now, share = np.arange(first, last + 1), (point - left) / (1 - left)
        rest, more = count - before[:, None], now - before[:, None]
        possible = more >= 0
        more = np.where(possible, more, 0)
        log_pmf = log_factorial[rest] - log_factorial[more] - log_factorial[rest - more]
        log_pmf += more * np.log(share) + (rest - more) * np.log1p(-share)
        probability = probability @ np.where(possible, np.exp(log_pmf), 0.0)
        before, left = now, point
    return float(min(1.0, max(0.0, 1 - probability.sum())))
