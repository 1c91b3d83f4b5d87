"""Statistical tests that find estimates of log p(x) that are too low.

Importance sampling, annealing, the ELBO and the IWAE bounds are all low in expectation: E[exp(estimate)] <= p(x). If
one of two estimates is larger by more than chance explains, the other is therefore too low. There are two tests:

- A t-test uses the Monte Carlo errors and the stated biases of both estimates, with Student's t for the smaller number
  of samples. It is not used with a second opinion from few samples: the weights of that are bounded, and where all of
  them are large by chance, its estimated error is too small.
- Markov's inequality, P(exp(estimate) > c p(x)) <= 1/c, holds for any weights and needs no error of the larger
  estimate. For independent images it also holds for the product over i of 1 - b + b exp(estimate_i) / p(x_i), for any
  0 <= b <= 1, because the expectation of each factor is at most 1. The product is a test by betting with stake b. It
  detects many small differences as well as few large ones, and an image on which the larger estimate is far too low
  costs it no more than a factor of 1 - b.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_gen.inference.estimate import Estimate

FALSE_ALARMS = 1e-3
"""Rate of false alarms of each test below, over all images of an estimate."""

_BETS = (0.5, 0.1, 0.01, 0.001)  # stakes b; their products are averaged
_ROUNDING = 1e-3  # nats; a smaller difference may be rounding in float32
_MANY = 30  # images; by the central limit theorem, the error of the mean over as many is reliable


def bound(log_px: Tensor, mc_var: Tensor | None = None, num_samples: int | None = None) -> Estimate:
    """A lower bound of log p(x), such as the ELBO, as an `Estimate` without a bias.

    :param log_px: values [images].
    :param mc_var: their Monte Carlo variances [images]; None for 0.
    """
    zero = torch.zeros_like(log_px)
    variance = zero if mc_var is None else mc_var
    return Estimate(estimator="bound", log_px=log_px, log_px_mc_var=variance, log_px_bias=zero, num_samples=num_samples)


class Above(NamedTuple):
    """Result of a test: images on which one estimate is significantly above another."""

    images: Tensor
    """Flagged images; bool [images]. By chance, any of them is flagged at most once in 1 / FALSE_ALARMS comparisons."""
    together: bool
    """True if the images as a whole are flagged. That detects a small difference that many images share."""
    by_bets: bool
    """True if they are flagged by the bets, which are on all images. The t-test is of those whose k-hat is fine."""

    @property
    def any(self) -> bool:
        """True if an image, or all of them together, are flagged."""
        return self.together or bool(self.images.any())


def above(low: Estimate, high: Estimate) -> Above:
    """Test if `high` shows that `low` is too low. Images on which the error of `low` is unknown are not flagged."""
    difference = high.log_px - low.log_px - _ROUNDING
    # To first order the bias of log-mean-exp is half of its variance. A larger stated bias must not excuse `low`.
    bias = torch.minimum(low.log_px_bias.abs(), low.log_px_mc_var)
    variances, biases = low.log_px_mc_var + high.log_px_mc_var, bias + high.log_px_bias.abs()
    rate = FALSE_ALARMS / len(difference)  # Bonferroni: an image is tested at this rate
    counts = [math.inf if each.num_samples is None else each.num_samples for each in (low, high)]
    excess = difference - _errors(rate, counts[0]) * low.log_px_mc_var.sqrt() - bias
    images = excess > -math.log(rate)  # Markov's inequality, image by image
    reliable = ~(high.khat_too_high | high.khat_unknown)
    if high.error_is_reliable:
        error = _errors(rate, min(counts)) * variances.sqrt() + biases
        images |= reliable & (difference > error - math.log(rate) / counts[1])
    # All images together: by the error of the mean, and by the bets, averaged over the stakes.
    error = _errors(FALSE_ALARMS) * variances[reliable].sum().sqrt() + biases[reliable].sum()
    error = error - math.log(FALSE_ALARMS) / counts[1]
    mean = bool(difference[reliable].sum() > error)
    mean = mean and (high.error_is_reliable or int(reliable.sum()) >= _MANY)
    excess = excess.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    won = torch.stack([torch.logaddexp(excess + math.log(b), excess.new_tensor(math.log1p(-b))).sum() for b in _BETS])
    by_bets = bool(won.logsumexp(0) - math.log(len(_BETS)) > -math.log(FALSE_ALARMS))
    return Above(images, mean or by_bets, by_bets)


def too_high(estimate: Estimate, most: Tensor) -> Above:
    """Test if an estimate is above the largest values that are possible. With few samples, images whose k-hat is fine
    are high by selection, and others low: if the t-test flags them together, the mean of all must be above, too.

    :param most: the largest possible log p(x) [images].
    """
    found = above(bound(most), estimate)
    difference = estimate.log_px - most
    whole = bool(difference[difference.isfinite()].mean() > 0)
    return found._replace(together=found.by_bets or (found.together and whole))


def above_in_mean(low: Estimate, high: Estimate) -> bool:
    """True if the mean of `high` is larger by more than 4 Monte Carlo errors. Stated biases are ignored."""
    variance = (low.log_px_mc_var + high.log_px_mc_var).nan_to_num(nan=0.0)
    return bool((high.log_px - low.log_px).sum() > 4 * variance.sum().sqrt())


def _errors(rate: float, num_samples: float = math.inf) -> float:
    """The number of standard errors that a mean of `num_samples` exceeds with this probability."""
    from scipy.special import ndtri, stdtrit  # the same numbers as of scipy.stats, whose import takes longer than a fit

    return -float(ndtri(rate) if num_samples == math.inf else stdtrit(num_samples - 1, rate))
