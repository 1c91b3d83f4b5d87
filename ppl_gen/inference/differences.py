"""Differences between methods, with confidence intervals.

A method (a row of a comparison) is trained from one or more seeds. All methods are evaluated on the same images. Seeds
are the unit of repetition. The difference between two methods has three independent errors: of the mean over the seeds
of the first method, of the mean over the seeds of the second, and of the mean over images of the paired difference.

Let the errors be normal, with variances s_1^2, s_2^2, … that are estimated with d_1, d_2, … degrees of freedom. Their
sum lies within ± sqrt(t_1^2 s_1^2 + t_2^2 s_2^2 + …) with at least the confidence for which Student's t with d_i
degrees of freedom gives t_i (Banerjee 1960), for any true variances. (Given the estimates, P(|sum| <= h) is a concave
function of h^2 over the true variance. The bound follows by Jensen's inequality.) Welch's t-test has one number of
degrees of freedom for the sum, which is an approximation: with two seeds in one row and five in the other, its 95 %
interval covers 89 %.

The reference row of the differences is chosen after the fact, as the best one. Bonferroni's inequality over all pairs
of rows allows for any choice.
"""

from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Difference of one row from another, in nats. For `values` [..., seeds, images], each field is [...]."""

    mean: np.ndarray
    se: np.ndarray
    """Standard error over images of the mean over seeds."""
    se_seeds: np.ndarray
    """Standard error over seeds; NaN if either row has one seed."""
    half_width: np.ndarray
    """Half-width of the confidence interval around `mean`. If `se_seeds` is a number, the interval is of the difference
    between methods, for other seeds and images. If it is NaN, it is of the difference between two sets of weights, for
    other images."""


def critical(degrees: int, num_rows: int) -> float:
    """Critical value of Student's t for one of all pairwise differences between rows. All intervals hold together with
    95 % confidence.

    :param degrees: degrees of freedom; NaN is returned for 0.
    :param num_rows: number of rows.

    >>> [round(critical(degrees, num_rows=2), 2) for degrees in (1, 2, 4, 9999)]
    [12.71, 4.3, 2.78, 1.96]
    >>> [round(critical(4, num_rows), 2) for num_rows in (3, 6, 12)]
    [3.96, 6.25, 9.26]
    """
    from scipy.special import stdtrit  # which takes longer to import than a few runs to compare

    pairs = max(1, num_rows * (num_rows - 1) // 2)
    return -float(stdtrit(degrees, (1 - CONFIDENCE) / pairs / 2)) if degrees > 0 else np.nan


def variance_over_seeds(values: np.ndarray) -> np.ndarray:
    """Squared standard error over seeds of the mean of values [..., seeds, images]; NaN for one seed."""
    return variance_over_images(values.mean(-1))  # the mean over images takes the place of an image


def variance_over_images(values: np.ndarray) -> np.ndarray:
    """Squared standard error of the mean of values [..., images]; NaN for one image."""
    count = values.shape[-1]
    return values.var(-1, ddof=1) / count if count > 1 else np.full(values.shape[:-1], np.nan)


def difference(values: np.ndarray, others: np.ndarray, num_rows: int, paired: bool = True) -> Difference:
    """The mean of values [..., seeds, images] minus the mean of others [..., other seeds, images], paired by image.

    :param num_rows: number of rows that these two were chosen from.
    :param paired: False if the two are of different images, whose errors are independent. Their numbers may differ.
    """
    means = values.mean(-2), others.mean(-2)
    samples = [means[0] - means[1]] if paired else list(means)
    images = [(variance_over_images(each), each.shape[-1] - 1) for each in samples]
    seeds = [(variance_over_seeds(each), each.shape[-2] - 1) for each in (values, others)]
    over_images, over_seeds = (sum(variance for variance, _ in errors) for errors in (images, seeds))
    counted = images + (seeds if all(degrees > 0 for _, degrees in seeds) else [])
    squared = sum(critical(degrees, num_rows) ** 2 * variance for variance, degrees in counted)
    mean = samples[0].mean(-1) if paired else means[0].mean(-1) - means[1].mean(-1)
    return Difference(mean, np.sqrt(over_images), np.sqrt(over_seeds), np.sqrt(squared))
