"""p(z | x) and q(z | x) of single images on grids of a z with two continuous units, and the divergences between them.

Each density has a grid of its own, where its mass is:

1. Coarse grids find a box with 99 % of the mass.
2. Cells of the grid are equal in t, with z = center + half the box's length * sinh(t) for each unit. They grow
   exponentially outside the box, so that the grid covers heavy tails. It ends where an integral does not need more.
3. The number of cells is doubled until integrals settle. For a smooth density the error of the midpoint rule decreases
   exponentially with the number of cells.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.arguments import Batch, as_images
from ppl_gen.inference.integrand import Integrand
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.quadrature import Quadrature, check, quadrature_log_px
from ppl_gen.inference.refinement import largest_difference
from ppl_gen.inference.signatures import name_of

LogDensity = Callable[[Tensor], Tensor]
"""A log-density of points: [points, 2] -> [points]."""

_TOLERANCE = 0.001  # error of an integral that is good enough: nats, relative above 1
_LARGEST_ERROR = 0.01  # error above which a value is not given
_CELLS = (64, 128, 256, 512)  # cells along each unit, until the tolerance is met
_COARSE_CELLS = 24
_OUTSIDE = 0.01  # mass outside of the box
_LARGEST_SHARE = 0.05  # share of a coarse cell in the mass, above which a peak may be narrower than a cell
_MOST_BOXES = 50
_NEGLIGIBLE = 1e-5  # of the cells at one end of a grid: mass, and part of a divergence
_MOST_T = 12.0  # end of a grid: 80,000 times the box
_POINTS = 4096  # points of a guide's density in memory at a time
_SAMPLES = 200  # of the guide, to find where its mass is


@dataclass(frozen=True, eq=False)
class GridDensity:
    """A density of z on a grid."""

    axes: Tensor
    """Coordinates of the grid along each unit [2, cells]."""
    log_density: Tensor
    """Logarithm of the normalized density, float64 [cells of the first unit, cells of the second unit]."""

    def levels(self, masses: Sequence[float]) -> Tensor:
        """log of the density on the border of each highest-density region, [masses].

        :param masses: masses of the regions, each between 0 and 1.
        """
        ordered, order = self.log_density.flatten().sort(descending=True)
        lengths = torch.stack([torch.gradient(each)[0] for each in self.axes.double()])
        mass = ordered.exp() * torch.outer(*lengths).flatten()[order]
        reached = mass.cumsum(0) - mass / 2  # a border through the midpoint of a cell halves it
        at = torch.searchsorted(reached, torch.tensor(masses, dtype=reached.dtype, device=reached.device))
        return ordered[at.clamp(max=len(ordered) - 1)]


@dataclass(frozen=True, eq=False)
class GridPosterior:
    """p(z | x) of an image, and q(z | x) if the guide has a density."""

    exact: GridDensity
    """p(z | x)."""
    guide: GridDensity | None
    """q(z | x)."""
    log_px: float
    """log p(x) in nats, the normalizing constant of p(z | x)."""
    guide_to_exact: float
    """KL(q(z | x) || p(z | x)) in nats, which is log p(x) - ELBO; NaN without a guide, or if it does not settle."""
    exact_to_guide: float
    """KL(p(z | x) || q(z | x)) in nats; NaN likewise. It is infinite if q is 0 where p is not."""


def posterior_grids(model: Any, pair: Pair, x: Tensor, *args: Any) -> list[GridPosterior]:
    """p(z | x) and q(z | x) of each image on grids, with both divergences by quadrature.

    The grid of p(z | x) is checked: the sum over it must be log p(x) by `quadrature_log_px`. The result does not depend
    on torch's generator, which is left as it was.

    >>> from ppl_gen.guides.exact_gaussian import ExactGaussian
    >>> from ppl_gen.models.factor_analysis import FactorAnalysis
    >>> model = FactorAnalysis(16, latent_dim=2).double()
    >>> x = torch.randn(1, 16, dtype=torch.float64)
    >>> pair = Pair.read(model, ExactGaussian("z", model), x)
    >>> (found,) = posterior_grids(model, pair, x)
    >>> abs(found.guide_to_exact) < 1e-6, found.guide.levels([0.5, 0.9]).shape
    (True, torch.Size([2]))

    :param model: a module with `prior()` and `likelihood(z)` for one latent vector of two continuous, unbounded units.
    :param pair: the pair of this model and a guide. If the guide samples nothing, there is p(z | x) alone.
    :param x: images [N, ...].
    :param args: further arguments of the guide.
    :raises BadInput: for a model that does not fit, and for a posterior that is not found.
    """
    x = as_images(x, model)
    with evaluating(model, pair.guide), matmul_precision(), forked_rng(x):
        check(model)
        if model.prior().event_shape != (2,):
            raise BadInput(f"{name_of(model)}: posteriors can be drawn only for a z of two units")
        log_px = quadrature_log_px(model, x, quadrature=Quadrature(_LARGEST_ERROR)).log_px.tolist()
        seed_torch(0)
        integrand = Integrand(model, x)
        images = Batch(x, args, {}).blocks(1)
        return [_of_image(integrand, pair, one, value) for (_, one), value in zip(images, log_px, strict=True)]


def _of_image(integrand: Integrand, pair: Pair, image: Batch, log_px: float) -> GridPosterior:
    """p(z | x) and q(z | x) of one image [1, ...]."""
    exact, guide = _exact(integrand, image.x), None if pair.enumerated else _guide(pair, image)
    found = _integrate(exact, guide, _box(exact, integrand.low, integrand.high), log_px)
    if found.error > _LARGEST_ERROR:
        raise BadInput(f"{pair.model_name}: p(z | x) of an image is not found on a grid: its integral is off")
    if guide is None:
        return GridPosterior(found.density, None, log_px, math.nan, math.nan)
    drawn = pair.draw(image.x, *image.args, num_samples=_SAMPLES)[0][pair.latent[0]].reshape(_SAMPLES, 2)
    if not bool(drawn.isfinite().all()):
        raise BadInput(f"{pair.guide_name}: draws z that are not finite")
    margin = (drawn.amax(0) - drawn.amin(0)).clamp(min=1e-6)
    box = _box(guide, drawn.amin(0) - margin, drawn.amax(0) + margin)
    of_guide = _integrate(guide, exact, box, 0.0)
    difference = of_guide.difference if of_guide.error <= _LARGEST_ERROR else math.nan
    return GridPosterior(found.density, of_guide.density, log_px, difference + log_px, found.difference - log_px)


def _exact(integrand: Integrand, x: Tensor) -> LogDensity:
    """log p(x, z) of one image as a function of z."""
    return lambda points: integrand(points, x).squeeze(1).double()


def _guide(pair: Pair, image: Batch) -> LogDensity:
    """log q(z | x) of one image as a function of z."""
    name = pair.latent[0]

    def log_density(points: Tensor) -> Tensor:
        found = []
        for part in points.split(_POINTS):
            z = part.unsqueeze(1) if pair.vectorized else part
            found.append(pair.log_guide({name: z}, image.x, *image.args, num_samples=len(part)).flatten())
        if bool(torch.cat(found).isnan().any()):
            raise BadInput(f"{pair.guide_name}: log q(z | x) is NaN at a grid point")
        return torch.cat(found).double()

    return log_density


# Where the mass is -------------------------------------------------------------------------------------------------


def _midpoints(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Midpoints of equal cells between two corners, along each unit [2, cells]."""
    steps = (torch.arange(cells, dtype=low.dtype, device=low.device) + 0.5) / cells
    return torch.lerp(low.unsqueeze(1), high.unsqueeze(1), steps)


def _box(log_density: LogDensity, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper corner [2] of a box with 99 % of the mass of a density that is not much longer than needed.

    :param low: lower corner of a first box, which need not have the mass; `high` is the upper corner.
    """
    for _ in range(_MOST_BOXES):
        before = high - low
        low, high, inside = _next_box(log_density, low, high)
        if inside and bool((high - low > 0.7 * before).all()):
            return low, high
    raise BadInput("a density has no end on a grid")


def _next_box(log_density: LogDensity, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Shrink a box to the mass of a density, or extend it to where it may have more. Returns its corners, and whether
    it was not extended."""
    points = torch.cartesian_prod(*_midpoints(low, high, _COARSE_CELLS))
    values = log_density(points).reshape(_COARSE_CELLS, _COARSE_CELLS)
    ordered, order = values.flatten().sort(descending=True)
    shares = ordered.softmax(0)
    if not bool(shares[0] > 0):
        raise BadInput("a density is 0, or not finite, on all of a grid")
    needed = torch.zeros_like(order, dtype=torch.bool)
    needed[order[: int((1 - shares.cumsum(0) >= _OUTSIDE).sum()) + 1]] = True
    needed = needed.reshape(values.shape)
    if shares[0] > _LARGEST_SHARE:
        # A peak may lie between midpoints. The differences among neighbors say how steep the density is.
        steepness = largest_difference(values.unsqueeze(-1), at_edge=0.0).squeeze(-1)
        needed = needed | (values + steepness >= ordered[0] + math.log(_OUTSIDE))
    ends = [needed.any(1 - unit).nonzero().flatten()[[0, -1]] for unit in range(2)]
    first, last = (torch.stack([end[side] for end in ends]).to(low) for side in (0, 1))
    below, above = first == 0, last == _COARSE_CELLS - 1
    step, more = (high - low) / _COARSE_CELLS, _COARSE_CELLS / 4
    return (
        low + step * torch.where(below, -more, first - 1),
        low + step * torch.where(above, _COARSE_CELLS + more, last + 2),
        not bool((below | above).any()),
    )


# Integrals ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Integrals:
    """Integrals over a density that need not be normalized."""

    density: GridDensity
    error: float
    """Error of the logarithm of its integral, which is known."""
    difference: float
    """Mean, under the density, of its logarithm less the logarithm of another density; NaN if it does not settle."""


class _Values(NamedTuple):
    """Values at the cells of a grid, the second unit fastest."""

    axes: Tensor
    """Midpoints along each unit [2, cells]."""
    log_density: Tensor
    log_masses: Tensor
    """log of the density times the area of the cell."""
    differences: Tensor
    """The logarithm of the density less that of the other."""


def _integrate(own: LogDensity, other: LogDensity | None, box: tuple[Tensor, Tensor], log_total: float) -> _Integrals:
    """Integrals over a density, with as many cells as it takes to settle.

    :param own: log of the density.
    :param other: log of the other density. Without one, it is taken to be 1.
    :param log_total: log of the density's integral, which is known.
    """
    center, scale = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2

    def evaluate(low: Tensor, high: Tensor, cells: int) -> _Values:
        """Values on a grid with equal cells in t between two corners."""
        t = _midpoints(low, high, cells)
        axes = center.unsqueeze(1) + scale.unsqueeze(1) * t.sinh()
        lengths = ((high - low) / cells * scale).unsqueeze(1) * t.cosh()
        points, log_cells = torch.cartesian_prod(*axes), torch.cartesian_prod(*lengths.double().log()).sum(1)
        log_own = own(points)
        return _Values(axes, log_own, log_own + log_cells, log_own if other is None else log_own - other(points))

    low, high, ends = _range(evaluate, torch.ones_like(center))
    for cells in _CELLS:
        found = evaluate(low, high, cells)
        sums = _sums(found.log_masses, found.differences)
        changes = _changes(found, sums)
        error = max(abs(sums[0] - log_total), changes[0])
        change = changes[1] / max(1.0, abs(sums[1]))
        tolerance = _TOLERANCE if cells < _CELLS[-2] else _LARGEST_ERROR
        if error <= tolerance and (change <= tolerance or not ends):
            break
    return _Integrals(
        GridDensity(found.axes.cpu(), (found.log_density - sums[0]).reshape(cells, cells).cpu()),
        math.inf if math.isnan(error) else error,
        sums[1] if ends and change <= _LARGEST_ERROR else math.nan,
    )


def _range(evaluate: Callable[[Tensor, Tensor, int], _Values], one: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Lower and upper end of t along each unit, outside of which integrals have no more parts, and whether there is
    such an end."""
    low, high = -one, one.clone()
    while True:
        found = evaluate(low, high, _COARSE_CELLS)
        shares = found.log_masses.softmax(0)
        parts = shares * (1 + found.differences.abs().nan_to_num(posinf=0.0))
        parts = parts.nan_to_num().reshape(_COARSE_CELLS, _COARSE_CELLS)
        rows = torch.stack([parts.sum(1), parts.sum(0)])
        below, above = rows[:, 0] > _NEGLIGIBLE, rows[:, -1] > _NEGLIGIBLE
        if not bool((below | above).any()):
            return low - 0.25, high + 0.25, True  # light tails end here
        if float(torch.maximum(-low, high).max()) >= _MOST_T:
            return low, high, False
        low, high = low - 0.5 * below, high + 0.5 * above


def _sums(log_masses: Tensor, differences: Tensor) -> tuple[float, float]:
    """log of the sum of masses, and the mean of differences under them."""
    log_total = log_masses.logsumexp(0)
    return float(log_total), float(_weighted((log_masses - log_total).exp(), differences))


def _weighted(masses: Tensor, differences: Tensor) -> Tensor:
    """The sum of masses times differences. Where a mass is 0, so is the product."""
    return torch.where(masses > 0, masses * differences, 0.0).sum()


def _changes(values: _Values, sums: tuple[float, float]) -> tuple[float, float]:
    """Largest change of both `_sums` between a grid and the four grids of every second of its cells along each unit."""
    half = values.axes.shape[1] // 2
    grids = [each.reshape(half, 2, half, 2) for each in (values.log_masses + math.log(4), values.differences)]
    changes = [0.0, 0.0]
    for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        coarse = _sums(*(each[:, first, :, second].flatten() for each in grids))
        # Both may be infinite, and then are equal. A change that is NaN is too large.
        found = [0.0 if one == other else abs(one - other) for one, other in zip(sums, coarse, strict=True)]
        changes = [math.inf if math.isnan(new) else max(old, new) for old, new in zip(changes, found, strict=True)]
    return changes[0], changes[1]
