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

    Without bias, R m . m is a sum of squares of normal variables, weighted by the eigenvalues of the covariance
    (`_p_of_no_bias`).

    >>> _ = torch.manual_seed(0)
    >>> found = gradient_errors(torch.randn(500, 9) + torch.tensor([0.5] + [0.0] * 8), torch.ones(9))
    >>> abs(found.bias - (0.25 + 8)) < 4 * found.bias_se, found.p < 1e-9
    (True, True)

    :param draws: [draws, parameters].
    :param exact: [parameters].
    """
    count, errors = len(draws), draws.double() - exact.double()
    mean = errors.mean(0)
    centered = errors - mean
    gram = centered @ centered.T
    variance = float(gram.trace()) / (count - 1)
    spread = float(gram.square().sum() - gram.diagonal().square().sum()) / (count * (count - 1))  # tr(S^2)
    square = float(mean.square().sum())
    along = float((centered @ mean).var()) - spread / count  # b'Sb; the mean's own noise is taken off
    bias_se = math.sqrt(4 * max(along, 0.0) / count + 2 * spread / (count * (count - 1)))
    p = _p_of_no_bias(gram, square, spread) if variance > 0 else float(square == 0)
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


_ALONE = 100  # eigenvalues; the smaller ones count as one


def _p_of_no_bias(gram: Tensor, square: float, spread: float) -> float:
    """Probability that the squared length of the mean of R draws without bias is at least `square`, for normal noise
    with the eigenvalues of the empirical covariance. Those scatter more than the true ones, and are moved together
    until their squares sum to `spread`. The error of their sum is that of a chi-squared variable.

    :param gram: products [R, R] of the draws less their mean.
    :param spread: unbiased estimate of tr(S^2).
    """
    count = len(gram)
    eigenvalues = torch.linalg.eigvalsh(gram).cpu().numpy()[::-1] / (count - 1)
    eigenvalues = eigenvalues[eigenvalues > 1e-9 * eigenvalues[0]]
    total, mean = float(eigenvalues.sum()), float(eigenvalues.mean())
    spread = min(max(spread, total * mean), total**2)  # of equal eigenvalues, and of a single one
    scatter = float(np.square(eigenvalues - mean).sum())
    if scatter > 0:
        near = mean + math.sqrt((spread - total * mean) / scatter) * (eigenvalues - mean)
        eigenvalues = near.clip(0) * (total / near.clip(0).sum())
    rest, degrees = eigenvalues[_ALONE:], np.ones(min(len(eigenvalues), _ALONE) + 1)
    weights = np.append(eigenvalues[:_ALONE], 0.0)
    if rest.sum() > 0:
        weights[-1], degrees[-1] = np.square(rest).sum() / rest.sum(), rest.sum() ** 2 / np.square(rest).sum()
    freedom = total**2 / spread * (count - 1)
    return _positive(np.append(weights, -count * square / freedom), np.append(degrees, freedom))


def _positive(weights: np.ndarray, degrees: np.ndarray) -> float:
    """Probability that a weighted sum of independent chi-squared variables is above 0 (Imhof 1961, equation 3.2).

    >>> round(_positive(np.array([1.0, -4.0 / 10]), np.array([1.0, 10.0])), 4)  # F above 4, with 1 and 10 degrees
    0.0734
    """
    from scipy.integrate import quad

    weights = weights / math.sqrt(degrees @ np.square(weights))

    def integrand(u: float) -> float:
        scaled = weights * u
        return math.sin(degrees @ np.arctan(scaled) / 2) * math.exp(-degrees @ np.log1p(scaled * scaled) / 4) / u

    return min(max(0.5 + quad(integrand, 0, math.inf, limit=1000)[0] / math.pi, 0.0), 1.0)
