"""k-hat: the shape of a generalized Pareto distribution of the largest weights, or of the lowest terms of the ELBO."""

import math

import numpy as np
import torch
from torch import Tensor

_FIT_BLOCK = 2**13  # values in the tails of the images whose k-hat is computed at once
_ROUNDING, _ROUNDING_OF_DOUBLES = 1e-6, 1e-14  # log weights that differ by less, relatively, count as equal


def khat(log_weights: Tensor) -> Tensor:
    """PSIS k-hat [images] of log weights [S, images] (Vehtari et al. 2024, appendix G): the numbers of `arviz_stats`,
    which fits one image at a time.

    NaN for fewer than 25 samples, and if fewer than half of the weights in the tail differ, as with a discrete z of few
    values. A Pareto distribution has no ties, and a fit to ties rates one huge weight among equal ones as harmless.
    """
    result = np.full(log_weights.shape[1], np.nan)
    if len(log_weights) >= 25:
        size = min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights)))  # of the tail
        weights = np.sort(log_weights.double().cpu().numpy().T)
        with np.errstate(all="ignore"):  # of infinite weights
            tail = weights[:, -math.ceil(size) :]
            single = (weights == weights.astype(np.float32)).all(1)[:, None]  # numbers of float32, whatever their type
            rounding = np.where(single, _ROUNDING, _ROUNDING_OF_DOUBLES)
            differ = np.diff(tail) > rounding * np.maximum(np.abs(tail[:, 1:]), 1)
            spread = weights[:, -1] - weights[:, 0] > _ROUNDING
            fitted = np.flatnonzero(spread & (differ.mean(1) >= 0.5))
            above = np.exp(weights[:, -math.floor(size) - 1 :] - weights[:, -1:])
            above = above[:, 1:] - above[:, :1]
            block = max(1, _FIT_BLOCK // above.shape[1])
            for start in range(0, len(fitted), block):
                images = fitted[start : start + block]
                result[images] = _pareto_shape(above[images])
    return torch.from_numpy(result)


def _pareto_shape(above: np.ndarray) -> np.ndarray:
    """The shape [images] of generalized Pareto distributions of sorted values above 0, [images, n] (Zhang and Stephens
    2009), with a prior: ten values that have shape 1/2."""
    n = above.shape[1]
    points = 30 + int(n**0.5)
    b = 1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    b = b / (3 * above[:, int(n / 4 + 0.5) - 1, None]) + 1 / above[:, -1:]
    shape = np.log1p(-b[:, :, None] * above[:, None]).mean(-1)
    likelihood = n * (np.log(-b / shape) - shape - 1)
    top = likelihood.max(1, keepdims=True)
    total = np.where(np.isinf(top), top, np.log(np.exp(likelihood - top).sum(1, keepdims=True)) + top)
    weight = np.exp(likelihood - total)
    kept = weight >= 10 * np.finfo(float).eps
    order, counts = np.argsort(~kept, kind="stable"), kept.sum(1)
    weight, b = (np.take_along_axis(each, order, 1) for each in (weight, b))
    mean = np.zeros(len(above))
    for count in np.unique(counts):  # in groups: numpy's sums of equal length round as those of one image
        rows = counts == count
        share = weight[rows, :count]
        mean[rows] = (b[rows, :count] * (share / share.sum(1, keepdims=True))).sum(1)
    return (n * np.log1p(-mean[:, None] * above).mean(1) + 5) / (n + 10)


def lower_tail(log_w: Tensor, num_images: int) -> Tensor:
    """k-hat of the distances of log weights [S, images] to the largest, of the first images; NaN for all others. If it
    is above 1, the mean log weight is -infinity; above 1/2, its variance is infinite."""
    few = log_w[:, :num_images]
    below = khat((few.max(0).values - few).clamp(min=1e-12).log()).where(few.isfinite().all(0), math.nan)
    return torch.cat([below, torch.full((log_w.shape[1] - len(below),), math.nan, dtype=torch.float64)])
