"""Bias and variance of a gradient estimator, from independent draws and the exact gradient."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GradientErrors:
    """Bias and variance of a gradient estimator, with Monte Carlo errors. Lengths are Euclidean."""

    bias: float
    """Unbiased estimate of the squared length of E[g] - exact, which may be below 0."""
    bias_se: float
    p: float
    """p-value of the hypothesis that the bias is 0."""
    variance: float
    """Trace of the covariance of g: the mean squared length of g - E[g]."""
    variance_se: float
    cosine: float
    """Mean cosine of the angle between g and the exact gradient; NaN if that is 0."""
    cosine_se: float

    def relative_to(self, square: float) -> "GradientErrors":
        """The same with squared lengths in units of `square`, such as the squared length of the exact gradient."""
        scaled = [value / square for value in (self.bias, self.bias_se, self.variance, self.variance_se)]
        return GradientErrors(scaled[0], scaled[1], self.p, scaled[2], scaled[3], self.cosine, self.cosine_se)


def gradient_errors(draws: Tensor, exact: Tensor) -> GradientErrors:
    """Compare independent draws of a gradient with the exact one.

    With the mean error m and the empirical covariance S of R draws, m . m exceeds the squared bias by tr(S) / R in
    expectation, which is taken off. The result is the U-statistic mean_{r != s} (g_r - exact) . (g_s - exact). Its
    variance is 4 b'Sb / R + 2 tr(S^2) / R^2 for a bias b.

    Without bias, R m . m is a sum of squares of normal variables, weighted by the eigenvalues of S. Its p-value is that
    of an F distribution with tr(S)^2 / tr(S^2) and R - 1 times as many degrees of freedom (Satterthwaite's
    approximation).

    >>> _ = torch.manual_seed(0)
    >>> found = gradient_errors(torch.randn(500, 9) + torch.tensor([0.5] + [0.0] * 8), torch.ones(9))
    >>> abs(found.bias - (0.25 + 8)) < 4 * found.bias_se, found.p < 1e-9
    (True, True)

    :param draws: [draws, parameters].
    :param exact: [parameters].
    """
    from scipy.stats import f

    count, errors = len(draws), draws.double() - exact.double()
    mean = errors.mean(0)
    centered = errors - mean
    gram = centered @ centered.T
    variance = float(gram.trace()) / (count - 1)
    spread = float(gram.square().sum() - gram.diagonal().square().sum()) / (count * (count - 1))  # tr(S^2)
    square = float(mean.square().sum())
    along = float((centered @ mean).var()) - spread / count  # b'Sb; the mean's own noise is taken off
    bias_se = math.sqrt(4 * max(along, 0.0) / count + 2 * spread / (count * (count - 1)))
    p = float(square == 0)
    if variance > 0:
        freedom = max(variance**2 / max(spread, np.finfo(float).tiny), 1.0)
        p = float(f.sf(count * square / variance, freedom, freedom * (count - 1)))
    lengths = gram.diagonal() * count / (count - 1)
    cosines = torch.nn.functional.cosine_similarity(draws.double(), exact.double(), dim=1, eps=0.0)
    cosines[(draws == 0).all(1) & bool((exact != 0).any())] = 0.0  # a gradient of 0 points nowhere
    return GradientErrors(
        bias=square - variance / count,
        bias_se=bias_se,
        p=p,
        variance=variance,
        variance_se=float(lengths.std()) / math.sqrt(count),
        cosine=float(cosines.mean()),
        cosine_se=float(cosines.std()) / math.sqrt(count),
    )
