"""Refinement of a grid over z until log p(x) of every image settles, as `ppl_gen.inference.quadrature` describes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import free_memory
from ppl_gen.core.progress import Advance
from ppl_gen.inference.integrand import Integrand, num_parameters, num_pixels
from ppl_gen.inference.signatures import name_of

_FIRST_CELLS = {1: 64, 2: 24, 3: 16}  # cells along each unit of the first grid, by the number of units
_MOST_FIRST_CELLS = 2**18  # cells of the first grid after extension
_TILE = 64  # cells of a tile, before they are halved
_POINTS_IMAGES = 2**26  # pairs of grid point and image in memory at a time
_FEW = 32  # images; with fewer, p(x, z) is looked at anywhere in a cell, too, since no others show what it hides
_OSCILLATES = 0.6  # ratio of the differences on a grid to those on the one before, which had twice the step
_ROUGH = 0.5  # share of the differences between halves in p(x), above which a grid does not follow p(x, z)
_LARGEST_SHARE = 0.7  # share of p(x) in one cell, above which a grid is too coarse to be believed


class NoEnd(BadInput):
    """The integrand does not fall beyond the range of the prior's samples."""


class TooMuchWork(BadInput):
    """Quadrature takes more operations than are allowed."""

    def __init__(self, name: str, work: float, most_work: float):
        super().__init__(f"{name}: quadrature takes about {work:.1e} operations, but {most_work:.1e} are allowed")
        self.work = work


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
    first: bool = False
    """True for the tiles of the first grid."""

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
        outside, log_px, peaks = (values[images] for values in (self.outside, self.log_px, self.peaks))
        return _Block(self.rows[images], tiles, self.step, outside, log_px, peaks, self.first)


class Refinement:
    """The refinement of the grid until every image is settled. Results are in `log_px` and `change` [images]."""

    def __init__(self, integrand: Integrand, x: Tensor, tolerance: float, most_work: float, progress: Advance | None):
        self.integrand, self.x, self.tolerance = integrand, x, tolerance
        self._require_memory()
        self.most_work, self.progress = most_work, progress
        self.generator = torch.Generator().manual_seed(0)
        self.log_px, self.change = (torch.full((len(x),), math.nan, dtype=torch.float64) for _ in range(2))
        self.pairs = self.done = 0
        self.work = 0.0
        self.point_work, self.pair_work = num_parameters(integrand.model), num_pixels(x)
        self.negligible = -math.log(torch.finfo(integrand.dtype).eps)
        """A cell that is so many nats below the largest is lost in the rounding of the sum."""
        halves = torch.tensor([-0.25, 0.25], dtype=integrand.dtype, device=x.device)
        self.halves = torch.cartesian_prod(*[halves] * integrand.units).reshape(-1, integrand.units)
        """Midpoints of the 2^units halves of a cell, in units of its lengths."""

    def _require_memory(self) -> None:
        """Raise `BadInput` if memory does not suffice for four arrays of pairs of grid point and image."""
        pairs = min(_POINTS_IMAGES, len(self.x) * _MOST_FIRST_CELLS)
        needed, free = 4 * pairs * self.integrand.dtype.itemsize, free_memory(self.x.device)
        if needed > free:
            raise BadInput(
                f"{name_of(self.integrand.model)}: quadrature of {len(self.x)} images takes up to {needed / 1e9:,.1f} "
                f"GB, but {free / 1e9:,.1f} GB are free; use fewer images, or --estimator importance"
            )

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
        low, high = (end.to(self.integrand.dtype, copy=True) for end in (self.integrand.low, self.integrand.high))
        step = (high - low) / cells_along
        counts = [cells_along] * units
        while True:
            if math.prod(counts) > _MOST_FIRST_CELLS:
                times = " x ".join(f"{count / cells_along:.0f}" for count in counts)
                raise NoEnd(
                    f"{name_of(self.integrand.model)}: p(x, z) has no end within {times} times the range of the prior"
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
        slack = largest_difference(cells.reshape(*counts, -1)).reshape(cells.shape)
        # Midpoints that are in step with an oscillation of p(x, z) hide it. Points anywhere in each cell do not.
        for _ in range(math.ceil(_FEW / len(rows))):
            slack = torch.maximum(slack, self._anywhere(centers, step, self.x[rows], cells))
        most = slack.nan_to_num(posinf=0.0).amax(0) if len(rows) < _FEW else slack
        needed = (
            cells + torch.maximum(slack, most) >= largest.values - self.negligible
        ) | slack.isinf()  # infinite at an edge of p(x, z) = 0
        outside = torch.full_like(cells[0], -math.inf, dtype=torch.float64)
        block = _Block(rows, [], step, outside, cells.logsumexp(0).double(), centers[largest.indices], True)
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
        largest, peaks = torch.full_like(kinds[0], -math.inf, dtype=self.integrand.dtype), block.peaks.clone()
        differences = torch.full((len(step), len(x)), -math.inf, dtype=torch.float64, device=x.device)
        evaluated = []
        for tile in block.tiles:
            centers = (tile.centers.unsqueeze(1) + self.halves * block.step).reshape(-1, len(step))
            cells, images = self._evaluate(centers, step, x[tile.images]), tile.images
            evaluated.append((centers, cells))
            families = cells.reshape(-1, len(self.halves), len(images))
            kinds[:, images] = torch.logaddexp(kinds[:, images], families.logsumexp(0).double())
            differences[:, images] = torch.logaddexp(differences[:, images], self._differences(families))
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
        # A grid that is in step with an oscillation of p(x, z) has the same sum on every phase. Its halves differ.
        rough = (differences.amax(0) - kinds.logsumexp(0)) > math.log(_ROUGH)
        settled = (change <= self.tolerance) & ~rough & ~(largest - total > math.log(_LARGEST_SHARE))
        self._settle(block.rows[settled], total[settled], change[settled])
        tiles = []
        for tile, (centers, cells) in zip(block.tiles, evaluated, strict=True):
            chosen = ~settled[tile.images]
            if bool(chosen.any()):
                images, cells, before = tile.images[chosen], cells[:, chosen], tile.slack[:, chosen]
                hidden = self._anywhere(centers, step, x[images], cells) if len(block.rows) < _FEW else None
                needed, slack = self._needed(cells, largest[images], before, hidden, block.first)
                groups = needed.any(1).nonzero().flatten().split(_TILE)
                tiles += self._tiles(cells, needed, groups, centers, images, slack, block.outside)
        remaining = (~settled).nonzero().flatten()
        each = (block.outside, total, peaks)
        return [_Block(block.rows, tiles, step, *each).of(remaining)] if len(remaining) else []

    def _differences(self, families: Tensor) -> Tensor:
        """log of the sum of absolute differences between the two halves along each unit, [units, images].

        :param families: log of the parts of p(x) of the halves of each cell, [cells, halves, images].
        """
        halves = families.reshape(-1, *[2] * (families.shape[1].bit_length() - 1), families.shape[-1])
        found = []
        for unit in range(1, halves.dim() - 1):
            one, other = halves.unbind(unit)
            high, low = torch.maximum(one, other), torch.minimum(one, other)
            apart = high + torch.log1p(-(low - high).exp()).nan_to_num(nan=0.0)  # NaN where both are -inf
            found.append(apart.flatten(0, -2).logsumexp(0).double())
        return torch.stack(found)

    def _anywhere(self, centers: Tensor, step: Tensor, x: Tensor, cells: Tensor) -> Tensor:
        """Differences of log p(x, z) between the midpoints of cells and one random point in each, [cells, images].

        :param cells: log of the cells' parts of p(x), by their midpoints.
        """
        shift = torch.rand(centers.shape, generator=self.generator, dtype=torch.float64) - 0.5
        differ = (self._evaluate(centers + shift.to(centers) * step, step, x) - cells).abs()
        return differ.nan_to_num(nan=0.0, posinf=math.inf)

    def _needed(
        self, cells: Tensor, largest: Tensor, slack_before: Tensor, hidden: Tensor | None, first: bool
    ) -> tuple[Tensor, Tensor]:
        """Cells to halve for each image, bool [cells, images]: those whose part of p(x) may not be negligible, given
        how much it differs nearby. Returns them with these differences [cells, images].

        The differences are those among the halves of the parent cell. They are zero if the halves lie symmetrically
        about a ridge that is much narrower than the step: for a quadratic log p(x, z), a quarter of the differences on
        the previous grid is then enough. They may be small by chance where p(x, z) oscillates within the cells. The
        largest in the tile is not: as long as a grid does not follow an oscillation, its ratio to that on the previous
        grid stays near 1, and it counts for all cells of the tile.

        :param hidden: as `_anywhere` returns it, if there are few images.
        :param first: the grid before is the first one, whose differences are along one unit alone.
        """
        families = cells.reshape(-1, len(self.halves), cells.shape[1])
        empty = families == -math.inf
        at_edge = empty & (slack_before.isinf() | ~empty.all(1)).unsqueeze(1)
        spread = families.amax(1) - families.masked_fill(empty, math.inf).amin(1)
        if hidden is not None:
            spread = torch.maximum(spread, hidden.nan_to_num(posinf=0.0).reshape(families.shape).amax(1))
        before = slack_before.nan_to_num(posinf=0.0)
        most = spread.nan_to_num(nan=0.0, neginf=0.0).amax(0)
        wider = self.integrand.units if first else 1
        ratio = (most / (wider * before.amax(0)).clamp(min=torch.finfo(before.dtype).tiny)).clamp(0.25, 1)
        slack = torch.maximum(spread, before * ratio).maximum(most * (ratio > _OSCILLATES)).unsqueeze(1)
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


def largest_difference(values: Tensor, at_edge: float = math.inf) -> Tensor:
    """The largest absolute difference between a cell and its neighbors on a regular grid.

    :param values: [cells along unit 1, ..., images].
    :param at_edge: difference to a cell with -inf.
    """
    found = torch.zeros_like(values)
    for unit in range(values.dim() - 1):
        inner = values.shape[unit] - 1
        difference = values.diff(dim=unit).abs().nan_to_num(nan=0.0, posinf=at_edge)  # NaN between empty cells
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
