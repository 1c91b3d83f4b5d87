"""Which of several estimates of log p(x) is too low.

Importance sampling, annealing, the ELBO and the IWAE bounds are all low in expectation: exp(estimate) has an
expectation of at most p(x). The larger of two therefore shows that the other is too low, where it is larger by more
than chance makes it. Two things tell:

- the Monte Carlo errors of both, by Student's t of the smaller number of samples, and the biases that both state. Not
  of a second opinion from few samples, whose weights are bounded: its error is small when all are large by chance;
- the larger estimate alone, by Markov's inequality: P(exp(estimate) > c p(x)) <= 1/c. It holds for any weights, and
  takes no error of the larger estimate. Over independent images it holds for the product over i of
  1 - b + b exp(estimate_i) / p(x_i), with any stake 0 <= b <= 1. That is a bet on "too low", whose expectation is at
  most 1 where no estimate is too low. The product sees many small differences, and few large ones, beside images of
  which the larger estimate knows nothing.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_gen.inference.estimate import Estimate

FALSE_ALARMS = 1e-3
"""Rate at which each of the tests below flags an estimate that is right, over all its images."""

_BETS = (0.5, 0.1, 0.01, 0.001)
_ROUNDING = 1e-3  # nats: no difference below it counts
_MANY = 30  # images, whose errors add up to one that is known


def bound(log_px: Tensor, mc_var: Tensor | None = None, num_samples: int | None = None) -> Estimate:
    """A lower bound of log p(x) [images], such as the ELBO, with the Monte Carlo variance that it has; it states no
    bias."""
    zero = torch.zeros_like(log_px)
    variance = zero if mc_var is None else mc_var
    return Estimate(estimator="bound", log_px=log_px, log_px_mc_var=variance, log_px_bias=zero, num_samples=num_samples)


class Above(NamedTuple):
    """Where one estimate is above another beyond chance."""

    images: Tensor
    """bool [images]: at most once in 1 / FALSE_ALARMS comparisons by chance is any of them flagged."""
    together: bool
    """Likewise for all images together, which sees a small difference that many of them share."""

    @property
    def any(self) -> bool:
        return self.together or bool(self.images.any())


def above(low: Estimate, high: Estimate) -> Above:
    """Where `high` shows that `low` is too low. An image whose `low` has an unknown error is not flagged."""
    difference = high.log_px - low.log_px - _ROUNDING
    # To first order a bias is half of the variance. What is stated beyond that is no excuse for being too low.
    bias = torch.minimum(low.log_px_bias.abs(), low.log_px_mc_var)
    variances, biases = low.log_px_mc_var + high.log_px_mc_var, bias + high.log_px_bias.abs()
    rate = FALSE_ALARMS / len(difference)
    counts = [math.inf if each.num_samples is None else each.num_samples for each in (low, high)]
    excess = difference - _errors(rate, counts[0]) * low.log_px_mc_var.sqrt() - bias
    images = excess > -math.log(rate)
    if high.error_is_reliable:
        images |= difference > _errors(rate, min(counts)) * variances.sqrt() + biases
    mean = bool(difference.sum() > _errors(FALSE_ALARMS) * variances.sum().sqrt() + biases.sum())
    mean = mean and (high.error_is_reliable or len(difference) >= _MANY)
    excess = excess.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    won = torch.stack([torch.logaddexp(excess + math.log(b), excess.new_tensor(math.log1p(-b))).sum() for b in _BETS])
    return Above(images, mean or bool(won.logsumexp(0) - math.log(len(_BETS)) > -math.log(FALSE_ALARMS)))


def above_in_mean(low: Estimate, high: Estimate) -> bool:
    """True if the mean of `high` is the larger by more than 4 Monte Carlo errors, whatever biases are stated."""
    variance = (low.log_px_mc_var + high.log_px_mc_var).nan_to_num(nan=0.0)
    return bool((high.log_px - low.log_px).sum() > 4 * variance.sum().sqrt())


def _errors(rate: float, num_samples: float = math.inf) -> float:
    """Number of its standard errors by which a mean of `num_samples` is above what it should be at this rate."""
    from scipy.stats import norm, t

    return float(norm.isf(rate) if num_samples == math.inf else t.isf(rate, num_samples - 1))
