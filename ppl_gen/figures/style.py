"""The one style of all pictures: sizes, colours and marks of lines, and names beside lines instead of legends.

A function that draws is `styled`. A picture is at most `WIDTH` inches wide, so that no page shrinks it; one whose text
should be readable on a phone is `NARROW`, with its panels below each other.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
from matplotlib.ticker import FuncFormatter

P = ParamSpec("P")
Drawn = TypeVar("Drawn")

WIDTH, NARROW = 6.5, 4.8
"""Inches."""

# Okabe and Ito (2008): colours that people with any colour vision tell apart. Lines differ in marks and dashes as well.
BLACK, BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
LINES: tuple[dict[str, Any], ...] = (
    {"color": BLACK, "marker": "o", "linestyle": "-"},
    {"color": BLUE, "marker": "s", "linestyle": "--"},
    {"color": VERMILION, "marker": "^", "linestyle": "-."},
    {"color": GREEN, "marker": "D", "linestyle": (0, (1, 1.3))},
    {"color": PURPLE, "marker": "v", "linestyle": (0, (6, 1.5))},
    {"color": ORANGE, "marker": "X", "linestyle": (0, (4, 1.2, 1, 1.2, 1, 1.2))},
)

SMALL, _POINTS = 8.0, 9.0
"""Sizes of text in points; `SMALL` is for ticks, the cells of a table and the numbers below images."""
STYLE: dict[str, Any] = {
    "font.size": _POINTS,
    "axes.titlesize": _POINTS,
    "axes.labelsize": _POINTS,
    "figure.titlesize": _POINTS,
    "figure.labelsize": _POINTS,
    "legend.fontsize": _POINTS,
    "legend.title_fontsize": _POINTS,
    "legend.frameon": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "hatch.linewidth": 0.6,
}
"""Settings of matplotlib, in force only while a picture is made or written."""


def styled(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """The function, with `STYLE` in force while it draws."""

    @wraps(draw)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing


class Name(NamedTuple):
    """The name of a line, to be written beside its end."""

    text: str
    x: float
    y: float
    color: str


def name_lines(axes: Any, names: Sequence[Name]) -> None:
    """Write the names of lines to the right of the axes, each at the height of the end of its line. Names that would
    overlap are moved apart, with a thin line from the name to the end. The limits of the axes have to be final."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=limits[0], ylim=limits[1])
    whole = axes.get_position().height * axes.figure.get_figheight() * 72
    names = sorted(names, key=lambda each: each.y)
    ends = [axes.transAxes.inverted().transform(axes.transData.transform((each.x, each.y))) for each in names]
    heights = [1.25 * _POINTS / whole * (1 + each.text.count("\n")) for each in names]
    for each, end, place in zip(names, ends, spread([float(y) for _, y in ends], heights), strict=True):
        moved = abs(place - end[1]) > 0.3 * 1.25 * _POINTS / whole or end[0] < 0.98
        axes.annotate(
            each.text,
            (each.x, each.y),
            xytext=(1.05 if moved else 1.025, place),
            textcoords="axes fraction",
            va="center",
            ha="left",
            color=each.color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": each.color,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),  # from the left of the name: no line crosses another name
            }
            if moved
            else None,
        )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places of labels of these heights that do not overlap, with the least squared distance to the wanted places,
    which increase. (Isotonic regression by pooling neighbours.)"""
    offsets, total = [], 0.0
    for index, height in enumerate(heights):
        total += (height + heights[index - 1]) / 2 if index else 0.0
        offsets.append(total)
    pools: list[list[float]] = []
    for place, offset in zip(wanted, offsets, strict=True):
        pools.append([place - offset])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [_mean(pool) + offset for (pool, offset) in zip((p for p in pools for _ in p), offsets, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def plain(axis: Any) -> None:
    """Write the numbers of a logarithmic axis without powers, which would be too small to read: 0.01, 1, 1,000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9f}".rstrip("0").rstrip(".").replace("-", "−")))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
