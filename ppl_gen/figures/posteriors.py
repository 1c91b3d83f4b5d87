"""The exact posterior of a z of two units, with the guide's over it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, styled

MASSES = (0.5, 0.9, 0.99)
"""Masses of the highest-density regions that are drawn."""

_COLUMNS = 3
_GREYS = ("0.58", "0.76", "0.9")  # of the regions of `MASSES`
_STYLES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)))
_WINDOW = 1.3  # side of a panel, relative to that of the regions in it
_INSET = 0.22  # side of the image in a corner, relative to that of the panel


@dataclass(frozen=True)
class Regions:
    """A density of z for each image, on grids."""

    axes: np.ndarray
    """Coordinates along each unit [images, 2, cells]."""
    log_density: np.ndarray
    """log of the density [images, cells of the first unit, cells of the second unit]."""
    levels: np.ndarray
    """log of the density on the borders of the highest-density regions [images, masses], in the order of `MASSES`."""


@dataclass(frozen=True)
class Posteriors:
    """p(z | x) of a few images, and q(z | x) if the guide has a density."""

    images: np.ndarray
    """Images [images, height, width]."""
    exact: Regions
    guide: Regions | None
    kl: np.ndarray
    """KL(q || p) and KL(p || q) in nats [images, 2]; NaN without a guide."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The content as arrays by name, as `posteriors.npz` has them."""
        found = {"images": self.images, "kl": self.kl}
        for name, regions in (("exact", self.exact), ("guide", self.guide)):
            if regions is not None:
                found |= {f"{name}_{part}": values for part, values in vars(regions).items()}
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Posteriors":
        """The inverse of `arrays`."""
        parts = ("axes", "log_density", "levels")
        exact, guide = (
            Regions(*(arrays[f"{name}_{part}"] for part in parts)) if f"{name}_axes" in arrays else None
            for name in ("exact", "guide")
        )
        if exact is None:
            raise KeyError("exact_axes")
        return cls(arrays["images"], exact, guide, arrays["kl"])


def caption(found: Mapping[str, Posteriors]) -> Caption:
    """The caption of `posteriors`, from the same arguments."""
    lines = []
    for label, each in found.items():
        if each.guide is not None:
            numbers = (f"{_written(one)} and {_written(other)}" for one, other in each.kl)
            lines.append(f"{label + ', ' if label else ''}{'; '.join(numbers)}")
    text = (
        "In grey, the exact p(z | x) of the first {} images of the test split: regions of the highest density with "
        "50, 90 and 99 % of its mass"
    )
    alt = "A panel for each image: grey regions of p(z | x)"
    if lines:
        text += (
            ". Lines: the same regions of the guide's q(z | x). In nats, KL(q ‖ p), which is the gap log p(x) − ELBO "
            "of this image, and KL(p ‖ q)"
        )
        alt += f", with lines around regions of q(z | x). KL(q || p) and KL(p || q): {'. '.join(lines)}"
    return Caption(text.format(len(next(iter(found.values())).images)), alt)


CAPTIONS = {
    "posteriors": Caption(
        "Grey: the exact p(z | x) of the first six images of the test split, as regions of the highest density "
        "with 50, 90 and 99 % of its mass. Lines: the same regions of q(z | x), if the guide has a density. "
        "Numbers, in nats: KL(q ‖ p), which is the gap log p(x) − ELBO of this image, and KL(p ‖ q).",
        "A panel for each image: grey regions of p(z | x), with lines around regions of q(z | x)",
    )
}


@styled
def posteriors(found: Mapping[str, Posteriors]) -> Figure:
    """Panels for the same images, with a row for each guide: p(z | x) in grey, and q(z | x) as lines.

    The panels of an image have the same axes. With more than three images, further rows follow.

    :param found: posteriors by the label of their guide; one label may be empty.
    """
    count = len(next(iter(found.values())).images)
    blocks = [range(first, min(first + _COLUMNS, count)) for first in range(0, count, _COLUMNS)]
    rows = len(blocks) * len(found)
    limits = [each for one in found.values() for each in (one.exact, one.guide) if each is not None]
    figure = Figure(figsize=(5.0, 0.9 + 1.85 * rows), layout="compressed")
    grid = figure.subplots(rows, min(_COLUMNS, count), squeeze=False)
    for number, images in enumerate(blocks):
        for row, (label, each) in enumerate(found.items()):
            panels = grid[number * len(found) + row]
            for axes in panels[len(images) :]:
                axes.set_axis_off()
            for axes, image in zip(panels, images, strict=False):
                _panel(axes, each, image, limits)
            named = [*wrap(label, 24, max_lines=3, placeholder="…"), "z[1]"]
            panels[0].set_ylabel("\n".join(named))
    for axes in grid[-1]:
        axes.set_xlabel("z[0]")
    guides = len(limits) > len(found)
    title = "Exact posterior p(z | x)" + (" and guide q(z | x); KL in nats" if guides else "")
    figure.suptitle(title)
    shares = [f"{mass:.0%}" for mass in MASSES]
    keys: list[Any] = [Patch(color=grey, label=f"p: {share}") for grey, share in zip(_GREYS, shares, strict=True)]
    if guides:
        for style, share in zip(_STYLES, shares, strict=True):
            keys.append(Line2D([], [], color=BLUE, linestyle=style, label=f"q: {share}"))
        keys = [keys[i] for i in (0, 3, 1, 4, 2, 5)]  # columns of the legend are filled first
    figure.legend(handles=keys, loc="outside lower center", ncols=len(MASSES))
    return figure


def _panel(axes: Any, found: Posteriors, image: int, limits: Sequence[Regions]) -> None:
    """Draw the regions of one image.

    :param limits: the regions that the axes have room for.
    """
    grid, levels = _contoured(found.exact, image)
    axes.contourf(*grid, levels=[*levels, np.inf], colors=_GREYS[::-1])
    if found.guide is not None:
        grid, levels = _contoured(found.guide, image)
        axes.contour(*grid, levels=levels, colors=BLUE, linestyles=_STYLES[::-1], linewidths=1.5)
        forward, reverse = map(_written, found.kl[image])
        axes.set_title(f"KL(q‖p) {forward}\nKL(p‖q) {reverse}")
    points = [_inside(each, image) for each in limits]
    low, high = np.min([each.min(0) for each in points], 0), np.max([each.max(0) for each in points], 0)
    side = _WINDOW * (high - low).max()
    start = (low + high - side) / 2
    axes.set_xlim(start[0], start[0] + side)
    axes.set_ylim(start[1], start[1] + side)
    axes.set_aspect("equal")
    axes.locator_params(nbins=3)
    shares = (np.concatenate(points) - start) / side
    corners = [(x, y) for x in (0, 1 - _INSET) for y in (1 - _INSET, 0)]
    hidden = [int(((shares >= corner) & (shares <= np.add(corner, _INSET))).all(1).sum()) for corner in corners]
    show(axes.inset_axes((*corners[int(np.argmin(hidden))], _INSET, _INSET)), found.images[image])


def _contoured(regions: Regions, image: int) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], list[float]]:
    """What to draw contours of, and their levels, which increase."""
    levels = [float(level) for level in regions.levels[image][::-1]]
    for index in range(1, len(levels)):  # levels of a uniform density are equal
        levels[index] = max(levels[index], np.nextafter(levels[index - 1], np.inf))
    log_density = np.maximum(regions.log_density[image], levels[0] - 20)
    return (*regions.axes[image], log_density.T), levels


def _inside(regions: Regions, image: int) -> np.ndarray:
    """Points [n, 2] of the grid in the largest region."""
    first, second = np.nonzero(regions.log_density[image] >= regions.levels[image].min())
    return np.stack([regions.axes[image][0][first], regions.axes[image][1][second]], 1)


def _written(value: float) -> str:
    """A divergence in nats for a title. Rounding may have made one that is 0 negative."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{max(value, 0.0):,.2f}" if value < 100 else f"{value:,.0f}"
