"""Distances between samples and data in a feature space: Fréchet distance, kernel distance, precision and recall.

None of them is a likelihood: a model that has memorized the training images gets a perfect result.
"""

import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput

_ROWS = 1000  # rows of a matrix of distances that are in memory at a time
_BLOCKS = 10  # blocks of points, for standard errors


def frechet_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Squared Fréchet distance between normal distributions with the means and covariances of two sets (Heusel et al.
    2017, equation 6), and its standard error over the second set, by a jackknife that leaves out a tenth at a time. The
    distance is biased upwards, in units of the features' variance by about (number of features)^2 / (number of points).

    :param a: points [N, features].
    :param b: points [M, features], at least 20.
    """
    _check(a, b)
    one, blocks = _moments(a), _blocks(b, seed=0)
    left_out = [_frechet(one, _moments(torch.cat([*blocks[:i], *blocks[i + 1 :]]))) for i in range(_BLOCKS)]
    return _frechet(one, _moments(b)), float(torch.tensor(left_out).std(correction=0)) * (_BLOCKS - 1) ** 0.5


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [features] and covariance [features, features] in float64."""
    points = points.double()
    return points.mean(0), points.T.cov().reshape(points.shape[1], points.shape[1])


def _frechet(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))."""
    (mean, covariance), (mean_b, covariance_b) = one, other
    values, axes = torch.linalg.eigh(covariance)
    root = axes * values.clamp(min=0).sqrt() @ axes.T
    # C_a^(1/2) C_b C_a^(1/2) is symmetric and has the eigenvalues of C_a C_b.
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    return float((mean - mean_b).square().sum() + covariance.trace() + covariance_b.trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy with the kernel (x y / features + 1)^3, unbiased (Binkowski et al. 2018,
    equation 4): the mean over ten disjoint pairs of random blocks, and its standard error.

    :param a: points [N, features], at least 20.
    :param b: points [M, features], at least 20.
    """
    _check(a, b)
    pairs = zip(_blocks(a.double(), seed=1), _blocks(b.double(), seed=0), strict=True)
    found = torch.stack([_discrepancy(*pair) for pair in pairs])
    return float(found.mean()), float(found.std()) / _BLOCKS**0.5


def _blocks(points: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Points [N, features] in ten blocks at random: in the order of a file, a block may be of one class. Two sets have
    different seeds: with one, rows that are alike because of their place would share a block."""
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    return points[order.to(points.device)].tensor_split(_BLOCKS)


def _discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy; the diagonal of the kernel is left out."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.trace()) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def precision_recall(data: Tensor, samples: Tensor, k: int = 3) -> tuple[tuple[float, float], tuple[float, float]]:
    """Precision, the share of samples that lie in the manifold of the data; and recall, the share of data that lie in
    the manifold of the samples. Each has a standard error over the points that are counted. The manifold of a set is
    the union of balls around its points, with the distance to the k-th neighbour as radius (Kynkäänniemi et al. 2019,
    equations 1 and 2).

    :param data: points [N, features], more than k.
    :param samples: points [M, features], more than k.
    """
    _check(data, samples)
    if min(len(data), len(samples)) <= k:
        raise BadInput(f"precision and recall: need more than {k} points of each kind")
    return _inside(samples, data, k), _inside(data, samples, k)


def _inside(points: Tensor, manifold: Tensor, k: int) -> tuple[float, float]:
    """Share of points in the manifold of a set, with its standard error."""
    points, manifold = points.double(), manifold.double()
    # Each point is its own nearest neighbour.
    radii = torch.cat([torch.cdist(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(_ROWS)])
    share = float(
        torch.cat([(torch.cdist(rows, manifold) <= radii).any(1) for rows in points.split(_ROWS)]).double().mean()
    )
    return share, (share * (1 - share) / len(points)) ** 0.5


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each point [N, features] to its nearest neighbour among others [M, features], and the index of that
    neighbour, both [N]."""
    found = [torch.cdist(rows, others).min(1) for rows in points.split(_ROWS)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def _check(a: Tensor, b: Tensor) -> None:
    """Raise `BadInput` for too few points."""
    if min(len(a), len(b)) < 2 * _BLOCKS:
        raise BadInput(f"sample quality: needs at least {2 * _BLOCKS} points of each kind")
