"""How far is the bound? Rows of bounds and estimates on one axis in nats, from the ELBO to log p(x)."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from ppl_gen.core.tables import fixed
from ppl_gen.evaluation.distances import Distance, Distances, Level, Sandwich
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLACK, BLUE, GREEN, PURPLE, VERMILION, styled

CAPTIONS = {
    "how_far": Caption(
        "How far the bound is from log p(x): ELBO, IWAE bounds and estimates of log p(x) on one axis",
        "A line from the ELBO to log p(x), with a mark for each bound and estimate",
    )
}

# Inches. One unit of the vertical axes is an inch, so that rows of different heights are drawn to scale.
_WIDTH, _SIDE, _BETWEEN, _MARGIN = 5.0, 1.35, 0.25, 0.14
_TITLE, _BELOW = 0.34, 0.5
_LINE, _STRIP, _TIER, _GAP = 0.175, 0.27, 0.155, 0.08
_PT = 1 / 72
_MOST = 200  # rows of a picture: a file of more than 65,536 pixels cannot be written
_LEAST = 0.02  # smallest range of an axis in nats: differences below it are rounding

_MARKS: dict[str, dict[str, Any]] = {
    "elbo": {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 7},
    "iwae": {"marker": "|", "color": "black", "markersize": 10, "markeredgewidth": 1.6},
    "importance": {"marker": "s", "color": BLUE, "markersize": 7},
    "annealed": {"marker": "^", "color": VERMILION, "markersize": 8},
    "mixed": {"marker": "P", "color": GREEN, "markersize": 8},
    "prior": {"marker": "v", "color": PURPLE, "markersize": 8},
    "quadrature": {"marker": "D", "color": "black", "markersize": 8},
    "exact": {"marker": "*", "color": "black", "markersize": 13},
}
_OWN: dict[str, Any] = {"marker": "X", "color": "0.35", "markersize": 8}  # an estimator of the user's own
_OF = {
    "probability": "log p(x), nats per image",
    "density": "log density of x, nats per image",
    "cross-entropy": "cross-entropy of grey values, nats per image",
}


# The caption ---------------------------------------------------------------------------------------------------


def captions(found: Distances) -> dict[str, Caption]:
    """`CAPTIONS` with the numbers of the picture."""
    return {"how_far": caption(found)}


def caption(found: Distances) -> Caption:
    """The caption of `how_far`, from the same argument. It says what the bars are, and what is left out."""
    count, found = len(found.rows), _drawn(found)
    text = [_what(found), *_bars(found), *_side(found)]
    if any(_has_arrow(row, level) for row in found.rows for level in row.levels):
        text.append("An arrow to the right: log p(x) is at least this.")
    if _axis(found.rows, 1.0).cuts:
        text.append("A grey band cuts the axis where it has no mark; the scale is the same on both sides.")
    for row in found.rows:
        if row.left_out:
            text.append(f"{row.label} has no mark for {', '.join(row.left_out)}: the mean is not finite.")
    if count > len(found.rows):
        text.append(f"The best {len(found.rows)} of {count:,} rows are drawn.")
    lines = "; ".join(_in_words(row) for row in found.rows)
    return Caption(" ".join(text), f"A line for each row, from the lowest bound to the largest value: {lines}")


def _drawn(found: Distances) -> Distances:
    """The content of the picture: the best rows."""
    return found._replace(rows=found.rows[:_MOST])


def _what(found: Distances) -> str:
    """The first sentence."""
    images = found.images
    kinds = [
        name
        for present, name in (
            (any(level.name == "elbo" for level in _levels(found.rows)), "ELBO"),
            (any(level.name == "iwae" for level in _levels(found.rows)), "IWAE bounds"),
            (any(level.name not in ("elbo", "iwae") for level in _levels(found.rows)), "estimates of log p(x)"),
        )
        if present
    ]
    return f"How far the bound is from log p(x): {_listed(kinds)}, means over {images.words(',')}{images.binarized}."


def _bars(found: Distances) -> list[str]:
    """What the horizontal bars are, and how wide."""
    reference = found.reference
    barred = [level for row in found.rows for level in _barred(row)]
    widths = [level.half_width for level in barred if level.half_width]
    if reference is None or not widths:
        return ["No interval is drawn: the values of single images are not recorded, or there is one image."]
    of = "its own log p(x)" if len(found.rows) == 1 else f"log p(x) of {found.rows[0].label}"
    over = "other images and seeds" if found.several_seeds else "other images, not for other seeds"
    unknown = any(level.half_width is None for level in barred)
    unpaired = [row.label for row in found.rows if not row.paired]
    widest = max(widths)
    width = "below ± 0.0001" if widest < 0.00005 else f"± {fixed(widest, 2 if widest >= 0.01 else 4)}"
    return [
        f"Bars, on the ELBO and the best log p(x) of each row, are 95 % intervals of the difference to {of} "
        f"({reference.label}; dashed), paired image by image; they hold for {over}. The widest is "
        f"{width} nats, and a bar that is not seen is shorter than its mark.",
        *([f"The bars of {_listed(unpaired)} are not paired: their images may be others."] if unpaired else []),
        *(["There is no bar where the values of single images are not recorded."] if unknown else []),
    ]


def _side(found: Distances) -> list[str]:
    """What the panel of bounds from both sides shows."""
    bounds = [each for row in found.rows for each in row.sandwiches]
    if not bounds:
        return []
    counts = sorted({each.num_images for each in bounds})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    exact = "; the star is the known mean of log p(x)" if any(each.exact is not None for each in bounds) else ""
    colours = "; an estimator has the colour of its mark" if len({each.label for each in bounds}) > 1 else ""
    return [
        f"On the right, on {number} other images, which each model draws itself: the lower and the upper bound of "
        f"log p(x), in nats above the lower one, with their distance ± its standard error{colours}{exact}."
    ]


def _in_words(row: Distance) -> str:
    """A row as text: its levels, its gap and its bounds from both sides."""
    words = ", ".join(f"{each.label} {'at least ' if each.at_least else ''}{fixed(each.mean)}" for each in row.levels)
    bounds = "".join(
        f", on images from the model between {fixed(each.lower)} and {fixed(each.upper)} by {each.label}"
        for each in row.sandwiches
    )
    return f"{row.label}: {words or 'no finite value'}{bounds}"


def _has_arrow(row: Distance, level: Level) -> bool:
    """True for a mark with an arrow: log p(x) is larger, by how much is unknown."""
    return level.at_least and not any(each.known for each in row.levels)


def _barred(row: Distance) -> list[Level]:
    """The levels whose intervals are drawn: the ELBO and the best log p(x). Those of all levels would overlap."""
    return [level for level in row.levels if level.name == "elbo" or level == row.best]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _levels(rows: Iterable[Distance]) -> list[Level]:
    return [level for row in rows for level in row.levels]


# The picture ---------------------------------------------------------------------------------------------------


class _Label(NamedTuple):
    """The name of a level below its mark."""

    text: str
    x: float
    """Centre of the text in nats; `mark` is the place of the mark."""
    mark: float
    tier: int


@styled
def how_far(found: Distances) -> Figure:
    """Rows of marks on one axis in nats, the best row first: ELBO, IWAE bounds, estimates of log p(x), the exact value
    where it is known. The gap stands at the right of a row. A mark is named where it first occurs.

    A horizontal bar through an ELBO or the best log p(x) of a row is the 95 % interval of its difference to the best
    log p(x) of the first row, which is dashed. If the bar of a log p(x) crosses the dashed line, the difference may be
    chance. An arrow means at least. Rows with bounds from both sides have them in a panel of their own, since they are
    of other images. Of more than 200 rows, the best 200 are drawn.
    """
    found = _drawn(found)
    has_side = any(row.sandwiches for row in found.rows)
    width = _WIDTH - 2 * _MARGIN - (_SIDE + _BETWEEN if has_side else 0)
    scale = _axis(found.rows, width)
    figure = Figure(figsize=(_WIDTH, 1))
    labels = _labels(figure, found.rows, scale)
    heads = [fill(row.label, 32 if has_side else 52) for row in found.rows]
    head_heights = [
        _LINE * max(head.count("\n") + 1, len(row.sandwiches)) for row, head in zip(found.rows, heads, strict=True)
    ]
    heights = [
        above + _STRIP + _TIER * (1 + max((each.tier for each in named), default=-1)) + _GAP
        for above, named in zip(head_heights, labels, strict=True)
    ]
    total = sum(heights)
    figure.set_size_inches(_WIDTH, total + _TITLE + _BELOW + (_LINE if has_side else 0))
    axes = _panel(figure, _MARGIN, width, total)
    _set_scale(axes, scale, 0.16)
    axes.set_xlabel(_OF.get(found.images.observation, "nats per image"))
    side = _panel(figure, _WIDTH - _MARGIN - _SIDE, _SIDE, total) if has_side else None
    top = 0.0
    for row, head, above, named, height in zip(found.rows, heads, head_heights, labels, heights, strict=True):
        middle = top + above + _STRIP / 2
        axes.text(0, top, head, transform=axes.get_yaxis_transform(), va="top", fontweight="bold")
        axes.text(1, top, _gap_text(row), transform=axes.get_yaxis_transform(), va="top", ha="right")
        _draw_row(axes, row, middle)
        if found.reference is not None:
            ends = [middle - _STRIP / 2, middle + _STRIP / 2]
            axes.plot([found.reference.mean] * 2, ends, color="black", linestyle="--", linewidth=0.8, zorder=0.5)
        _draw_labels(axes, named, middle)
        if side is not None:
            _draw_sandwiches(side, row.sandwiches, top, middle)
        top += height
    if side is not None:
        _finish_side(side, [each for row in found.rows for each in row.sandwiches])
    images = found.images
    title = f"How far is the bound?  {images.words(',')}"
    figure.text(_MARGIN / _WIDTH, 1 - 0.08 / figure.get_figheight(), title, va="top")
    return figure


class _Scale(NamedTuple):
    """The axis in pieces of one scale, with cuts between them."""

    knots: list[float]
    """Both ends of each piece in nats, from left to right."""
    places: list[float]
    """The same in inches."""

    def place(self, nats: Any) -> Any:
        """Inches of a value. Beyond the ends, the scale goes on."""
        per_nat = (self.places[1] - self.places[0]) / (self.knots[1] - self.knots[0])
        beyond = np.minimum(nats - self.knots[0], 0) + np.maximum(nats - self.knots[-1], 0)
        return np.interp(nats, self.knots, self.places) + per_nat * beyond

    def nats(self, place: Any) -> Any:
        """The value at a place; the inverse of `place`."""
        per_inch = (self.knots[1] - self.knots[0]) / (self.places[1] - self.places[0])
        beyond = np.minimum(place - self.places[0], 0) + np.maximum(place - self.places[-1], 0)
        return np.interp(place, self.places, self.knots) + per_inch * beyond

    @property
    def cuts(self) -> list[tuple[float, float]]:
        """The ends of each cut in nats."""
        return list(zip(self.knots[1:-1:2], self.knots[2::2], strict=True))


def _axis(rows: Sequence[Distance], width: float) -> _Scale:
    """The axis of the rows. A stretch without a mark that is more than twice as long as all that is drawn is cut, so
    that the gaps of rows far apart are still seen."""
    pieces = _extents(rows)
    drawn = sum(high - low for low, high in pieces)
    if drawn < _LEAST:  # single values: what is to be seen is the distance between them
        pieces = [(pieces[0][0], pieces[-1][1])]
    kept = pieces[:1]
    for low, high in pieces[1:]:
        if low - kept[-1][1] > 2 * drawn:
            kept.append((low, high))
        else:
            kept[-1] = (kept[-1][0], high)
    total = max(sum(high - low for low, high in kept), _LEAST)
    pad = 0.04 * total
    kept = [(low - pad, high + 2 * pad) for low, high in kept]  # room for an arrow at the right
    cut = 2 * pad
    per_nat = width / (sum(high - low for low, high in kept) + cut * (len(kept) - 1))
    places, at = [], 0.0
    for low, high in kept:
        places += [at, at + (high - low) * per_nat]
        at = places[-1] + cut * per_nat
    return _Scale([end for piece in kept for end in piece], places)


def _extents(rows: Sequence[Distance]) -> list[tuple[float, float]]:
    """The ends of all rows, those that overlap as one, from left to right. Bars may be very wide, from few seeds: they
    are cut off beyond the length of the longest row."""
    means = [[level.mean for level in row.levels] for row in rows if row.levels] or [[0.0]]
    longest = max(max(each) - min(each) for each in means)
    if longest < _LEAST:
        longest = max(max(map(max, means)) - min(map(min, means)), _LEAST)
    ends = []
    for row in rows:
        barred = _barred(row)
        reach = [(each.mean, min((each.half_width or 0) * (each in barred), longest)) for each in row.levels]
        ends += [(min(mean - bar for mean, bar in reach), max(mean + bar for mean, bar in reach))] if reach else []
    merged: list[tuple[float, float]] = []
    for low, high in sorted(ends or [(0.0, 0.0)]):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


def _panel(figure: Figure, left: float, width: float, height: float) -> Any:
    """Axes at a place in inches, whose vertical unit is an inch, downwards."""
    whole = figure.get_figheight()
    axes = figure.add_axes((left / _WIDTH, _BELOW / whole, width / _WIDTH, height / whole))
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.grid(axis="x")
    return axes


def _set_scale(axes: Any, scale: _Scale, inside: float) -> None:
    """Set an axis, its ticks and its cuts. Ticks are at least `inside` inches from the ends, so that no number is cut
    off, and no number touches another."""
    axes.set_xscale("function", functions=(scale.place, scale.nats))
    axes.set_xlim(scale.knots[0], scale.knots[-1])
    width, ticks = scale.places[-1], list[float]()
    for number in range(0, len(scale.knots), 2):
        low, high = scale.knots[number : number + 2]
        length = scale.places[number + 1] - scale.places[number]
        for tick in MaxNLocator(max(2, round(length / 0.75)), steps=[1, 2, 5, 10]).tick_values(low, high):
            place = scale.place(tick)
            apart = not ticks or place - scale.place(ticks[-1]) > 0.4
            if low <= tick <= high and inside <= place <= width - inside and apart:
                ticks.append(tick)
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks)
    for low, high in scale.cuts:
        axes.axvspan(low, high, color="0.9", zorder=0)


def _gap_text(row: Distance) -> str:
    if row.gap is None:
        return "no gap" if row.levels and all(level.known for level in row.levels) else ""
    return f"gap {'≥ ' if row.gap_at_least else ''}{fixed(row.gap).replace('-', '−')}"


def _draw_row(axes: Any, row: Distance, middle: float) -> None:
    """The line of a row, and its marks over their intervals."""
    means = [level.mean for level in row.levels]
    if not means:
        return
    axes.plot([min(means), max(means)], [middle, middle], color="0.7", linewidth=2, zorder=1)
    for order, level in enumerate(row.levels):
        style = _MARKS.get(level.name, _OWN)
        if level in _barred(row) and level.half_width:
            ends = [level.mean - level.half_width, level.mean + level.half_width]
            axes.plot(ends, [middle] * 2, color=BLACK, linewidth=1.2, marker="|", markersize=7, zorder=2)
        axes.plot(level.mean, middle, linestyle="none", zorder=3 + order / 100, **style)
        if _has_arrow(row, level):
            axes.annotate(
                "",
                (level.mean, middle),
                xytext=(17, 0),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": style["color"], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0},
                zorder=2.5,
            )


def _draw_sandwiches(axes: Any, bounds: Sequence[Sandwich], top: float, middle: float) -> None:
    """Bounds from both sides, in nats above the lower one."""
    if not bounds:
        return
    for number, each in enumerate(bounds):
        color = _MARKS["importance" if each.label.startswith("importance") else "annealed"]["color"]
        at = middle + 0.11 * number
        axes.plot([0, each.width], [at, at], color=color, linewidth=2, marker="|", markersize=9, markeredgewidth=1.6)
        if each.exact is not None:
            axes.plot(each.exact - each.lower, at, **_MARKS["exact"] | {"markersize": 9})
        digits = 3 if each.width < 0.0095 else 2
        text = fixed(each.width, digits) + ("" if each.se is None else f" ± {fixed(each.se, digits)}")
        axes.text(0, top + _LINE * number, text, transform=axes.get_yaxis_transform(), va="top", color=color)


def _finish_side(axes: Any, bounds: Sequence[Sandwich]) -> None:
    widest = max(*(each.width for each in bounds), _LEAST)
    _set_scale(axes, _Scale([-0.06 * widest, 1.06 * widest], [0.0, _SIDE]), 0.06)
    axes.set_xlabel("upper − lower bound")
    axes.set_title("images of the model", loc="left")


# Names of the marks --------------------------------------------------------------------------------------------


def _labels(figure: Figure, rows: Sequence[Distance], scale: _Scale) -> list[list[_Label]]:
    """The names below the marks of each row. A kind of mark is named where it first occurs. Names that would overlap
    go to lower tiers."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    width = scale.places[-1]
    named: set[str] = set()
    found = []
    for row in rows:
        taken: dict[int, float] = {}
        labels = []
        for level in sorted(row.levels, key=lambda each: each.mean):
            if level.label in named:
                continue
            named.add(level.label)
            text = figure.text(0, 0, level.label)
            half = text.get_window_extent(renderer).width / figure.dpi / 2
            text.remove()
            x = min(max(scale.place(level.mean), half), width - half)
            tier = next(t for t in range(99) if taken.get(t, 0.0) <= x - half + 1e-9)
            taken[tier] = x + half + 0.06
            labels.append(_Label(level.label, scale.nats(x), level.mean, tier))
        found.append(labels)
    return found


def _draw_labels(axes: Any, labels: Sequence[_Label], middle: float) -> None:
    for each in labels:
        y = middle + _STRIP / 2 + _TIER * each.tier
        plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the lines from marks to lower names
        axes.text(each.x, y, each.text, va="top", ha="center", bbox=plain)
        if each.tier:
            axes.plot([each.mark, each.mark], [middle + 0.07, y + 0.01], color="0.5", linewidth=0.6, zorder=0.5)
