"""log p(x) by quadrature over z, for models whose z has one to three continuous units.

A grid over z is a finite support, so that a sum over states is log p(x) up to the error of the grid:

    log p(x) = log integral p(z) p(x | z) dz ~ log sum_g h p(z_g) p(x | z_g)

with the midpoints z_g of cells of volume h. For a smooth integrand that vanishes at the ends, the error of the midpoint
rule decreases exponentially with 1 / h (Trefethen and Weideman 2014, section 5): halving the step raises it to the
fourth power. p(x | z_g) of many images is a matrix product of images and grid points.

1. The range of the grid is that of samples of the prior. It is extended while a cell at its end has a part of p(x, z)
   of some image that is not negligible.
2. Cells are halved along every unit. Those that are negligible for an image keep their coarse value. "Negligible"
   allows for a peak between the midpoints: the differences among neighboring cells say how steep log p(x, z) is there.
3. Neighboring cells form a tile, with the images that need any of its cells. The decoder runs once for a tile.
4. An image is settled when its log p(x) moves by less than the tolerance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.errors import BadInput, as_bad_input, require
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Advance
from ppl_gen.inference.callables import as_images, evaluating, forked_rng, matmul_precision, modules_of, name_of
from ppl_gen.inference.densities import ABSOLUTE, RELATIVE
from ppl_gen.inference.estimate import Estimate, Variable
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import numbers_held
from ppl_gen.inference.supports import is_discrete, support

MOST_UNITS = 3
_PRIOR_SAMPLES = 10_000
_FIRST_CELLS = {1: 64, 2: 24, 3: 16}  # cells along each unit of the first grid, by the number of units
_MOST_FIRST_CELLS = 2**18  # cells of the first grid after extension
_TILE = 64  # cells of a tile, before they are halved
_POINTS_IMAGES = 2**26  # pairs of grid point and image in memory at a time
_NUMBERS = 2**24  # numbers of the decoder's output, or of a broadcast log-density, in memory at a time
_LARGEST_SHARE = 0.7  # share of p(x) in one cell, above which a grid is too coarse to be believed


@dataclass(frozen=True)
class Quadrature:
    """Settings of quadrature."""

    tolerance: float = 0.01
    """Largest change of an image's log p(x), in nats, when the step is halved for the last time. The error is far
    smaller if the decoder is smooth."""

    def __post_init__(self) -> None:
        require(0 < self.tolerance < math.inf, "quadrature.tolerance", self.tolerance, "must be a number above 0")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuadratureEstimate(Estimate):
    """log p(x) by quadrature. It has no Monte Carlo error."""

    estimator: str = "quadrature"
    words: str = "quadrature"
    change: Tensor
    """Change of log p(x) when the step was halved for the last time, in nats [images]: a bound of the error, unless the
    grid misses a peak."""
    work: int
    """Number of evaluations of p(x | z): pairs of image and grid point."""

    def settings_entry(self) -> dict[str, Any]:
        return {**self.settings, "largest_change": float(self.change.max()), "points_per_image": self.points_per_image}

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        title = "change of log p(x) when the step of quadrature was halved for the last time"
        return {f"change{suffix}": Variable(self.change, title)}

    @property
    def points_per_image(self) -> int:
        """Mean number of grid points for an image."""
        return self.work // max(1, len(self.log_px))


class TooMuchWork(BadInput):
    """Quadrature takes more operations than are allowed."""

    def __init__(self, name: str, work: float, most_work: float):
        super().__init__(f"{name}: quadrature takes about {work:.1e} operations, and {most_work:.1e} are allowed")
        self.work = work


def quadrature_log_px(
    model: Any,
    x: Tensor,
    *,
    quadrature: Quadrature | None = None,
    most_work: float = math.inf,
    progress: Advance | None = None,
) -> QuadratureEstimate:
    """log p(x) in nats by quadrature, to a stated tolerance.

    The result does not depend on torch's generator, which is left as it was.

    >>> from ppl_gen.models.factor_analysis import FactorAnalysis
    >>> model = FactorAnalysis(16, latent_dim=2).double()
    >>> x = torch.randn(3, 16, dtype=torch.float64)
    >>> (quadrature_log_px(model, x).log_px - model.log_px(x)).abs().max() < 1e-9
    tensor(True)

    :param model: a module with `prior()` and `likelihood(z)` for one latent site of one to three continuous units.
        `likelihood(z)` is called with z [points, 1, units], or with z [points, units] if it does not support that.
    :param x: images [N, ...].
    :param most_work: operations that may be spent, in multiplications; see `importance_work`.
    :param progress: called with the number of images just done.
    :raises BadInput: for a model that does not fit, and for log p(x) that does not settle.
    :raises TooMuchWork: if `most_work` does not suffice.
    """
    quadrature = quadrature or Quadrature()
    x = as_images(x, model)
    keep_freed_memory()
    with evaluating(model), matmul_precision(), forked_rng(x):
        check(model)
        torch.manual_seed(0)  # of the prior's samples, which set the range
        integrand = Integrand(model, x)
        refinement = _Refinement(integrand, x, quadrature.tolerance, most_work, progress)
        refinement.run()
    return QuadratureEstimate(
        log_px=refinement.log_px,
        log_px_mc_var=torch.zeros_like(refinement.log_px),
        log_px_bias=torch.zeros_like(refinement.log_px),
        change=refinement.change,
        work=refinement.pairs,
        settings={"tolerance": quadrature.tolerance},
    )


def check(model: Any) -> None:
    """Raise `BadInput` for a model that quadrature does not support."""
    name = name_of(model)
    if not offers(model, HasDensity):
        raise BadInput(f"{name}: quadrature takes a model of one latent site, with prior() and likelihood(z)")
    prior = model.prior()
    units = math.prod(prior.event_shape)
    if is_discrete(prior):
        raise BadInput(f"{name}: quadrature takes a continuous latent; a finite one is enumerated")
    if not 1 <= units <= MOST_UNITS or prior.batch_shape:
        what = f"{units} units" if not prior.batch_shape else f"a batch {list(prior.batch_shape)} of priors"
        raise BadInput(
            f"{name}: quadrature takes a latent of 1 to {MOST_UNITS} units and one prior() for all, not {what}"
        )


def why_no_quadrature(pair: Pair, model: Any, *args: Tensor) -> str | None:
    """The reason why quadrature does not support a pair, as a sentence; None if it does.

    :param args: labels, if model or guide take them.
    """
    name = pair.model_name
    if args:
        return f"{name}: quadrature takes a model and a guide without labels"
    if len(pair.latent) != 1 or len(pair.observed) != 1 or pair.max_plate_nesting != 1 or pair.masked:
        has = f"{', '.join(pair.latent)} and observes {', '.join(pair.observed)}"
        return f"{name}: quadrature takes one latent and one observed site, in the plate of images alone; it has {has}"
    try:
        with evaluating(model):
            check(model)
    except BadInput as error:
        return error.sentence
    return None


def importance_work(model: Any, x: Tensor, num_samples: int) -> float:
    """Multiplications that importance sampling of images x takes, roughly: a decoder's parameters and an image's pixels
    for every sample."""
    return float(len(x)) * num_samples * (_parameters(model) + _pixels(x))


def _parameters(model: Any) -> int:
    """Number of a model's parameters, which is the number of multiplications of a dense decoder."""
    return sum(p.numel() for module in modules_of(model) for p in module.parameters(recurse=False))


def _pixels(x: Tensor) -> int:
    return math.prod(x.shape[1:])


# The integrand -----------------------------------------------------------------------------------------------------


class Integrand:
    """log p(x, z) of images as a function of unbounded coordinates u of z, with log |dz / du|. If z may have any real
    values, u is z."""

    def __init__(self, model: HasDensity, x: Tensor):
        self.model, self.prior = model, model.prior()
        with as_bad_input(f"{name_of(model)}: prior() has no unbounded coordinates"):
            self.transform = _to_values(self.prior)
            drawn = self.coordinates(self.prior.sample((_PRIOR_SAMPLES,)))
        drawn = torch.where(drawn.isfinite(), drawn, math.nan)  # such as at the ends of an interval, by rounding
        self.units = drawn.shape[1]
        self.low, self.high = (drawn.nan_to_num(nan=sign * math.inf).mul(sign).amin(0).mul(sign) for sign in (1, -1))
        if not bool((self.low < self.high).all()):
            raise BadInput(f"{name_of(model)}: samples of prior() are all alike, so that it has no density")
        self.together = self._broadcasts(drawn[:2].nan_to_num(), x[:3])
        self.numbers = numbers_held(self._likelihood(drawn[:1].nan_to_num()), 1) if self.together else _pixels(x)

    def coordinates(self, z: Tensor) -> Tensor:
        """u [points, units] of z [points, ...]."""
        return self.transform.inv(z).reshape(len(z), -1)

    def values(self, u: Tensor) -> Tensor:
        """z [points, ...] of u [points, units]."""
        return self.transform(u.reshape(-1, *self.transform.inverse_shape(self.prior.event_shape)))

    def __call__(self, u: Tensor, x: Tensor) -> Tensor:
        """log p(x, z) + log |dz / du| in nats, [points, images]; -inf where p(z) is 0.

        :param u: [points, units].
        :param x: images [images, ...].
        """
        if self.together:
            per_point = max(_pixels(x), len(x) * self.numbers)
        else:
            per_point = _pixels(x)
        with as_bad_input(f"{name_of(self.model)}: log p(x, z) on a grid fails"):
            found = [self._block(block, x) for block in u.split(max(1, _NUMBERS // per_point))]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _block(self, u: Tensor, x: Tensor) -> Tensor:
        z = self.values(u)
        log_prior = self.prior.log_prob(z).reshape(len(u))
        inner = u.reshape(-1, *self.transform.inverse_shape(self.prior.event_shape))
        log_prior = log_prior + self.transform.log_abs_det_jacobian(inner, z).reshape(len(u), -1).sum(1)
        if self.together:
            likelihood = self._likelihood(u).log_prob(x)
        else:
            alone = self.model.likelihood(z)
            likelihood = torch.stack([alone.log_prob(image.expand(len(u), *image.shape)) for image in x], 1)
        total = likelihood + log_prior.unsqueeze(1)
        if bool(total.isnan().any()):  # p(x | z) may be NaN where p(z) is 0
            possible = (log_prior > -math.inf).unsqueeze(1) & total.isnan()
            if bool(possible.any()):
                raise BadInput("log p(x, z) is NaN at a grid point")
            total = total.nan_to_num(nan=-math.inf)
        return total

    def _likelihood(self, u: Tensor) -> Any:
        """p(x | z) with a dimension for images, batch [points, 1]."""
        return self.model.likelihood(self.values(u).unsqueeze(1))

    def _broadcasts(self, u: Tensor, x: Tensor) -> bool:
        """True if `likelihood(z)` supports z [points, 1, ...]. It is compared with z [points, ...] on a few images."""
        z = self.values(u)
        with as_bad_input(f"{name_of(self.model)}: likelihood(z) fails"):
            alone = torch.stack(
                [self.model.likelihood(z).log_prob(image.expand(len(z), *image.shape)) for image in x], 1
            )
        if alone.shape != (len(z), len(x)):
            raise BadInput(
                f"{name_of(self.model)}: likelihood(z).log_prob(x) for {len(z)} values of z and as many images is "
                f"{list(alone.shape[:1])}: its batch must be the values of z, and its event an image"
            )
        try:
            among = self._likelihood(u).log_prob(x)
        except Exception:  # user code
            return False
        return among.shape == alone.shape and torch.allclose(among, alone, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def _to_values(prior: Distribution) -> Transform:
    """The map from unbounded coordinates to values of a prior; the identity if these may be any real numbers."""
    constraint = support(prior)
    if type(constraint).__name__ == "MixtureSameFamilyConstraint":  # torch has no map for it
        constraint = constraint.base_constraint  # type: ignore[union-attr]
    return biject_to(constraints.real if constraint is None else constraint)


# The grid ----------------------------------------------------------------------------------------------------------


@dataclass
class _Tile:
    """Neighboring cells, which are to be halved, and the images that need them."""

    centers: Tensor
    """Midpoints of the cells [cells, units]."""
    images: Tensor
    """Numbers of the images in the block [images]."""
    slack: Tensor
    """Differences of log p(x, z) among each cell and its neighbors [cells, images]."""


@dataclass
class _Block:
    """Images whose grids are refined together. Tensors are [images]."""

    rows: Tensor
    """Numbers of the images."""
    tiles: list[_Tile]
    step: Tensor
    """Lengths of the tiles' cells [units]."""
    outside: Tensor
    """log of the sum over the cells outside of the tiles, float64."""
    log_px: Tensor
    """log p(x) on the grid of the tiles' cells, float64."""
    peaks: Tensor
    """Location of the largest cell [images, units]."""

    @property
    def pairs(self) -> int:
        """Number of pairs of cell and image."""
        return sum(tile.slack.numel() for tile in self.tiles)

    def of(self, images: Tensor) -> "_Block":
        """The block of some of its images, given by their numbers in it."""
        number = torch.full((len(self.rows),), -1, device=images.device)
        number[images] = torch.arange(len(images), device=images.device)
        tiles = []
        for tile in self.tiles:
            chosen = number[tile.images] >= 0
            if bool(chosen.any()):
                tiles.append(_Tile(tile.centers, number[tile.images[chosen]], tile.slack[:, chosen]))
        each = (self.outside, self.log_px, self.peaks)
        return _Block(self.rows[images], tiles, self.step, *(values[images] for values in each))


class _Refinement:
    """The refinement of the grid until every image is settled. Results are in `log_px` and `change` [images]."""

    def __init__(self, integrand: Integrand, x: Tensor, tolerance: float, most_work: float, progress: Advance | None):
        self.integrand, self.x, self.tolerance = integrand, x, tolerance
        self.most_work, self.progress = most_work, progress
        self.log_px, self.change = (torch.full((len(x),), math.nan, dtype=torch.float64) for _ in range(2))
        self.pairs = self.done = 0
        self.work = 0.0
        self.point_work, self.pair_work = _parameters(integrand.model), _pixels(x)
        self.negligible = -math.log(torch.finfo(x.dtype).eps)
        """A cell that is so many nats below the largest is lost in the rounding of the sum."""
        halves = torch.tensor([-0.25, 0.25], dtype=x.dtype, device=x.device)
        self.halves = torch.cartesian_prod(*[halves] * integrand.units).reshape(-1, integrand.units)
        """Midpoints of the 2^units halves of a cell, in units of its lengths."""

    def run(self) -> None:
        """Settle every image."""
        low, step, counts, peaks = self._first_grid()
        centers = _midpoints(low, step, counts)
        for rows in _by_location(peaks, max(1, _POINTS_IMAGES // len(centers))):
            queue = [self._first_block(rows, centers, step, counts)]
            while queue:
                block = queue.pop()
                if block.pairs * len(self.halves) <= _POINTS_IMAGES:
                    queue += self._halved(block)
                elif len(block.rows) > 1:
                    queue += [block.of(part) for part in _by_location(block.peaks, math.ceil(len(block.rows) / 2))]
                else:
                    raise BadInput(
                        f"{name_of(self.integrand.model)}: log p(x) of image {int(block.rows)} does not settle to "
                        f"{self.tolerance:g} nats on a grid of {_POINTS_IMAGES:,} points"
                    )

    def _evaluate(self, centers: Tensor, step: Tensor, x: Tensor) -> Tensor:
        """log of the cells' parts of p(x), [cells, images]."""
        self.pairs += len(centers) * len(x)
        self.work += len(centers) * (self.point_work + len(x) * self.pair_work)
        # The other images may take as much as those that are settled.
        expected = self.work * len(self.x) / self.done if self.done >= max(1, len(self.x) // 20) else self.work
        if expected > self.most_work:
            raise TooMuchWork(name_of(self.integrand.model), expected, self.most_work)
        return self.integrand(centers, x).add_(float(step.double().log().sum()))

    # The first grid ------------------------------------------------------------------------------------------------

    def _first_grid(self) -> tuple[Tensor, Tensor, list[int], Tensor]:
        """The first grid: its lower corner and the lengths of its cells [units], the numbers of cells along each unit,
        and the location of each image's largest cell [images, units].

        The range is extended by a quarter as long as a cell at an end is not negligible for some image.
        """
        units, cells_along = self.integrand.units, _FIRST_CELLS[self.integrand.units]
        low, step = self.integrand.low.clone(), (self.integrand.high - self.integrand.low) / cells_along
        counts = [cells_along] * units
        while True:
            if math.prod(counts) > _MOST_FIRST_CELLS:
                times = " x ".join(f"{count / cells_along:.0f}" for count in counts)
                raise BadInput(
                    f"{name_of(self.integrand.model)}: quadrature finds no end of p(x, z), which is not negligible on "
                    f"{times} times the range of the prior"
                )
            centers = _midpoints(low, step, counts)
            peaks, ends = [], torch.zeros(2, units, dtype=torch.bool)
            for x in self.x.split(max(1, _POINTS_IMAGES // len(centers))):
                cells = self._evaluate(centers, step, x)
                largest = cells.max(0)
                peaks.append(centers[largest.indices])
                least = (largest.values - self.negligible).clamp_min(torch.finfo(cells.dtype).min)  # if p(x) is 0
                matters = (cells >= least).any(1).reshape(counts).cpu()
                for unit in range(units):
                    ends[0, unit] |= matters.select(unit, 0).any()
                    ends[1, unit] |= matters.select(unit, -1).any()
            if not bool(ends.any()):
                return low, step, counts, torch.cat(peaks)
            for unit, count in enumerate(counts):
                more = math.ceil(count / 4)
                low[unit] -= step[unit] * more * ends[0, unit].to(low)
                counts[unit] += more * int(ends[:, unit].sum())

    def _first_block(self, rows: Tensor, centers: Tensor, step: Tensor, counts: list[int]) -> _Block:
        """The block of some images, with tiles of the first grid."""
        cells = self._evaluate(centers, step, self.x[rows])
        largest = cells.max(0)
        slack = _largest_difference(cells.reshape(*counts, -1)).reshape(cells.shape)
        needed = (
            cells + slack >= largest.values - self.negligible
        ) | slack.isinf()  # infinite at an edge of p(x, z) = 0
        outside = torch.full_like(cells[0], -math.inf, dtype=torch.float64)
        block = _Block(rows, [], step, outside, cells.logsumexp(0).double(), centers[largest.indices])
        images = torch.arange(len(rows), device=rows.device)
        groups = [group.to(rows.device) for group in _cubes(counts, _TILE)]
        block.tiles = self._tiles(cells, needed, groups, centers, images, slack, outside)
        return block

    def _tiles(
        self,
        cells: Tensor,
        needed: Tensor,
        groups: Sequence[Tensor],
        centers: Tensor,
        images: Tensor,
        slack: Tensor,
        outside: Tensor,
    ) -> list[_Tile]:
        """The tiles of those cells of each group that some image needs. The sum over all other cells is added to
        `outside` [images of the block].

        :param cells: log of the cells' parts of p(x), [cells, images].
        :param needed: cells that each image needs, bool [cells, images].
        :param groups: numbers of cells.
        :param images: numbers of the images in the block.
        :param slack: differences, [cells, images].
        """
        tiles, inside = [], torch.zeros_like(needed)
        for group in groups:
            group = group[needed[group].any(1)]
            if len(group):
                chosen = needed[group].any(0)
                pairs = group.unsqueeze(1), chosen.nonzero().flatten()
                inside[pairs] = True
                tiles.append(_Tile(centers[group], images[chosen], slack[pairs]))
        rest = cells.masked_fill(inside, -math.inf).logsumexp(0).double()
        outside[images] = torch.logaddexp(outside[images], rest)
        return tiles

    # Finer grids ---------------------------------------------------------------------------------------------------

    def _halved(self, block: _Block) -> list[_Block]:
        """Halve the cells of a block. Returns a block of the images that are not settled, if there are any."""
        x, step = self.x[block.rows], block.step / 2
        # Halves of one kind, such as all lower left ones, are a grid of the parents' step.
        kinds = torch.full((len(self.halves), len(x)), -math.inf, dtype=torch.float64, device=x.device)
        largest, peaks = torch.full_like(kinds[0], -math.inf, dtype=x.dtype), block.peaks.clone()
        evaluated = []
        for tile in block.tiles:
            centers = (tile.centers.unsqueeze(1) + self.halves * block.step).reshape(-1, len(step))
            cells, images = self._evaluate(centers, step, x[tile.images]), tile.images
            evaluated.append((centers, cells))
            families = cells.reshape(-1, len(self.halves), len(images))
            kinds[:, images] = torch.logaddexp(kinds[:, images], families.logsumexp(0).double())
            found = cells.max(0)
            higher = found.values > largest[images]
            largest[images[higher]] = found.values[higher]
            peaks[images[higher]] = centers[found.indices[higher]]
        total = torch.logaddexp(block.outside, kinds.logsumexp(0))
        # Together with the grid of the parents, the grids of one kind have every phase relative to a peak. They cannot
        # all agree by accident.
        coarser = torch.logaddexp(block.outside, kinds + math.log(len(kinds)))
        change = (torch.cat([coarser, block.log_px.unsqueeze(0)]) - total).abs().nan_to_num(nan=math.inf).amax(0)
        change[(total == -math.inf) & (block.log_px == -math.inf)] = 0
        settled = (change <= self.tolerance) & ~(largest - total > math.log(_LARGEST_SHARE))
        self._settle(block.rows[settled], total[settled], change[settled])
        tiles = []
        for tile, (centers, cells) in zip(block.tiles, evaluated, strict=True):
            chosen = ~settled[tile.images]
            if bool(chosen.any()):
                images, cells, before = tile.images[chosen], cells[:, chosen], tile.slack[:, chosen]
                needed, slack = self._needed(cells, largest[images], before)
                groups = needed.any(1).nonzero().flatten().split(_TILE)
                tiles += self._tiles(cells, needed, groups, centers, images, slack, block.outside)
        remaining = (~settled).nonzero().flatten()
        each = (block.outside, total, peaks)
        return [_Block(block.rows, tiles, step, *each).of(remaining)] if len(remaining) else []

    def _needed(self, cells: Tensor, largest: Tensor, slack_before: Tensor) -> tuple[Tensor, Tensor]:
        """Cells to halve for each image, bool [cells, images]: those whose part of p(x) may not be negligible, given
        how much it differs nearby. Returns them with these differences [cells, images].

        The differences are those among the halves of the parent cell. They are zero if the halves lie symmetrically
        about a ridge that is much narrower than the step. For a quadratic log p(x, z), a quarter of the differences on
        the previous grid is enough in that case.
        """
        families = cells.reshape(-1, len(self.halves), cells.shape[1])
        empty = families == -math.inf
        at_edge = empty & (slack_before.isinf() | ~empty.all(1)).unsqueeze(1)
        spread = families.amax(1) - families.masked_fill(empty, math.inf).amin(1)
        slack = torch.maximum(spread, slack_before.nan_to_num(posinf=0.0) / 4).unsqueeze(1)
        needed = (families + slack >= largest - self.negligible) | at_edge
        slack = slack.expand_as(families).masked_fill(at_edge, math.inf)
        return needed.reshape(cells.shape), slack.reshape(cells.shape)

    def _settle(self, rows: Tensor, log_px: Tensor, change: Tensor) -> None:
        rows = rows.cpu()
        self.log_px[rows], self.change[rows] = log_px.cpu(), change.cpu()
        self.done += len(rows)
        if self.progress is not None and len(rows):
            self.progress(len(rows))


def _midpoints(low: Tensor, step: Tensor, counts: list[int]) -> Tensor:
    """Midpoints of the cells of a regular grid [cells, units], the last unit fastest."""
    sides = [torch.arange(count, dtype=low.dtype, device=low.device) for count in counts]
    return low + (torch.cartesian_prod(*sides).reshape(-1, len(counts)) + 0.5) * step


def _cubes(counts: list[int], size: int) -> list[Tensor]:
    """Numbers of the cells of a regular grid in cubes of up to `size` cells."""
    side = round(size ** (1 / len(counts)))
    groups = [torch.arange(math.prod(counts)).reshape(counts)]
    for unit in range(len(counts)):
        groups = [part for group in groups for part in group.split(side, unit)]
    return [group.flatten() for group in groups]


def _largest_difference(values: Tensor) -> Tensor:
    """The largest absolute difference between a cell and its neighbors on a regular grid.

    :param values: [cells along unit 1, ..., images].
    """
    found = torch.zeros_like(values)
    for unit in range(values.dim() - 1):
        inner = values.shape[unit] - 1
        difference = values.diff(dim=unit).abs().nan_to_num(nan=0.0, posinf=math.inf)  # NaN between empty cells
        for start in (0, 1):
            side = found.narrow(unit, start, inner)
            side.copy_(torch.maximum(side, difference))
    return found


def _by_location(peaks: Tensor, most: int) -> list[Tensor]:
    """Numbers of images in groups of up to `most` with neighboring peaks [images, units]: halves along the unit with
    the largest spread, and again."""

    def halved(rows: Tensor) -> list[Tensor]:
        if len(rows) <= most:
            return [rows]
        spread = peaks[rows].amax(0) - peaks[rows].amin(0)
        order = peaks[rows, int(spread.argmax())].argsort(stable=True)
        return [group for half in order.tensor_split(2) for group in halved(rows[half])]

    return halved(torch.arange(len(peaks), device=peaks.device))
