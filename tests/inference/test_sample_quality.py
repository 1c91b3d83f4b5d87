"""Distances between sets of points against closed forms and sums written out; float64."""

import math

import pytest
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.inference.sample_quality import frechet_distance, kernel_distance, nearest, precision_recall

F64 = torch.float64


def _with_moments(mean: Tensor, covariance: Tensor, count: int = 40) -> Tensor:
    """Points [count, features] whose mean and covariance are these."""
    points = torch.randn(count, len(mean), dtype=F64)
    points = points - points.mean(0)
    whitened = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_known_moments() -> None:
    """Covariances that share their axes: |m - m'|^2 + sum (s - s')^2 with the scales s along them."""
    axes, _ = torch.linalg.qr(torch.randn(3, 3, dtype=F64))
    scales = torch.tensor([[1.0, 2.0, 0.5], [3.0, 1.0, 0.1]], dtype=F64)
    means = torch.randn(2, 3, dtype=F64)
    a, b = (_with_moments(mean, axes * scale.square() @ axes.T) for mean, scale in zip(means, scales, strict=True))
    expected = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
    assert frechet_distance(a, b)[0] == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(a, a)[0] == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_any_covariances() -> None:
    """The trace of (C C')^(1/2) is the sum of the roots of the eigenvalues of C C', which is not symmetric."""
    a, b = (torch.randn(50, 4, dtype=F64) @ torch.randn(4, 4, dtype=F64) for _ in range(2))
    roots = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * roots
    assert frechet_distance(a, b)[0] == pytest.approx(float(expected), rel=1e-9)


def test_frechet_error() -> None:
    """Its standard error is that of the samples: within a factor of two of the spread over 200 sets of them."""
    a = torch.randn(500, 2, dtype=F64)
    found = [frechet_distance(a, torch.randn(500, 2, dtype=F64) + 1) for _ in range(200)]
    spread = float(torch.tensor([value for value, _ in found]).std())
    assert spread / 2 < sum(error for _, error in found) / 200 < 2 * spread


def test_kernel_distance_is_unbiased() -> None:
    """Of two distributions over three points each, against the sum over all pairs of them: within 4 standard errors
    over 400 sets of 40 points; so is its own error, on average, within a third of the spread."""
    support = torch.randn(2, 3, 2, dtype=F64)
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=F64)

    def kernel(i: int, j: int) -> float:
        return float(weights[i] @ (support[i] @ support[j].T / 2 + 1) ** 3 @ weights[j])

    expected = kernel(0, 0) + kernel(1, 1) - 2 * kernel(0, 1)
    found = []
    for _ in range(400):
        a, b = (support[i][weights[i].multinomial(40, replacement=True)] for i in (0, 1))
        found.append(kernel_distance(a, b))
    values = torch.tensor([value for value, _ in found])
    spread = float(values.std())
    assert abs(float(values.mean()) - expected) < 4 * spread / math.sqrt(400)
    assert spread * 2 / 3 < sum(error for _, error in found) / 400 < spread * 4 / 3


def test_points_in_the_order_of_their_classes() -> None:
    """Two sets of the same ten clusters: the distances are within 4 of their errors of 0, or of those of mixed points;
    in blocks of one cluster each the kernel distance was 100 errors away, and the Fréchet distance had 10 errors."""
    a, b = (torch.arange(10).repeat_interleave(40)[:, None] + 0.1 * torch.randn(400, 3, dtype=F64) for _ in range(2))
    value, error = kernel_distance(a.flip(0), b)
    assert abs(value) < 4 * error
    mixed = b[torch.randperm(400)]
    for distance in (kernel_distance, frechet_distance):
        (found, its), (expected, other) = distance(a, b), distance(a, mixed)
        assert abs(found - expected) <= 4 * math.hypot(its, other)
        assert other / 3 < its < 3 * other


def test_precision_and_recall_as_they_are_defined() -> None:
    data, samples = torch.randn(30, 2, dtype=F64), 1.5 * torch.randn(25, 2, dtype=F64) + 0.5

    def inside(points: Tensor, manifold: Tensor) -> float:
        count = 0
        for point in points:
            for center in manifold:
                others = sorted(float((center - other).norm()) for other in manifold if other is not center)
                if float((center - point).norm()) <= sorted(others)[3]:  # itself is among them
                    count += 1
                    break
        return count / len(points)

    precision, recall = precision_recall(data, samples, k=3)
    assert precision[0] == pytest.approx(inside(samples, data))
    assert recall[0] == pytest.approx(inside(data, samples))
    assert precision[1] == pytest.approx(math.sqrt(precision[0] * (1 - precision[0]) / 25))


def test_precision_and_recall_of_a_collapse() -> None:
    """Samples of one of two clusters are precise, and miss half of the data; noise about both is the reverse."""
    centers = torch.tensor([[0.0, 0.0], [100.0, 0.0]], dtype=F64)
    data = centers.repeat(50, 1) + torch.randn(100, 2, dtype=F64)
    precision, recall = precision_recall(data, torch.randn(100, 2, dtype=F64))
    assert precision[0] > 0.8 and 0.35 < recall[0] <= 0.5
    precision, recall = precision_recall(data, 200 * torch.randn(100, 2, dtype=F64))
    assert precision[0] < 0.2 and recall[0] > 0.8


def test_nearest() -> None:
    points, others = torch.tensor([[0.0, 0.0], [5.0, 5.0]]), torch.tensor([[5.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    distances, which = nearest(points, others)
    assert which.tolist() == [2, 0]
    torch.testing.assert_close(distances, torch.tensor([1.0, 1.0]))


def test_too_few_points_are_refused() -> None:
    few, many = torch.randn(19, 2), torch.randn(20, 2)
    for score in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(BadInput, match="at least 20 points"):
            score(many, few)
    with pytest.raises(BadInput, match="more than 30 points"):
        precision_recall(many, many, k=30)
