"""Squared bias of gradient estimators against their variance."""

import math
from typing import Any

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, SMALL, VERMILION, WIDTH, plain, spread, styled

CAPTIONS = {
    "gradients": Caption(
        "Squared bias against variance of gradient estimators for the parameters that the title names. Both are "
        "relative to the squared length of the exact gradient of the ELBO, which is the star at the origin. The axes "
        "are linear up to the dotted lines "
        "and logarithmic beyond. Open circles: the bias cannot be told from zero, and the whisker ends at the largest "
        "one that two standard errors allow. The area of a mark is the processor time of a step.",
        "Marks of gradient estimators: squared bias upward, variance to the right, the exact gradient at the origin",
    )
}


@styled
def bias_against_variance(summary: Json) -> Figure:
    """A panel for each set of weights, with a mark for each estimator of the guide's gradient; of the model's, if the
    guide has no parameters of its own.

    :param summary: the content of `gradients.json`.
    """
    order = {"initial": 0, "trained": 1}
    points = sorted(summary["points"], key=lambda point: order[point["at"]])
    part = "guide" if all("guide" in point["norm"] for point in points) else "model"
    figure = Figure(figsize=(WIDTH, 0.5 + 3.3 * len(points)), layout="constrained")
    grid = figure.subplots(len(points), 1, squeeze=False)
    for axes, point in zip(grid.flat, points, strict=True):
        _panel(axes, point, part)
    return figure


def _panel(axes: Any, point: Json, part: str) -> None:
    rows = point["rows"]
    found = [row[part] for row in rows]
    # Below these limits the axes are linear: nothing has a smaller variance, or a bias that could be seen.
    errors = sorted(each["bias_se"] for each in found)
    limits = [min(each["variance"] for each in found), errors[len(errors) // 2]]
    across, up = (10.0 ** math.floor(math.log10(max(limit, 1e-12))) for limit in limits)
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    for row, each in zip(rows, found, strict=True):
        color = VERMILION if each["biased"] else BLUE
        if not each["biased"]:
            axes.plot([each["variance"]] * 2, [0, _top(each)], color=color, linewidth=0.8)
        size, face = 50 * row["seconds"] / seconds, color if each["biased"] else "white"
        place = [each["variance"]], [_height(each)]
        axes.scatter(*place, s=size, color=face, edgecolors=color, linewidths=1, zorder=3, clip_on=False)
    axes.plot([0], [0], "*", color="black", markersize=10, clip_on=False, zorder=4)
    axes.annotate("exact", (0, 0), xytext=(8, 6), textcoords="offset points", fontsize=SMALL)
    axes.set_xscale("symlog", linthresh=across, linscale=0.5)
    axes.set_yscale("symlog", linthresh=up, linscale=0.5)
    axes.set_xlim(0, 3 * max(each["variance"] for each in found))
    axes.set_ylim(0, 10 * max(_top(each) for each in found))
    for draw, limit in ((axes.axvline, across), (axes.axhline, up)):
        draw(limit, color="0.5", linestyle=":", linewidth=0.8)
    axes.set_xlabel("variance / |exact gradient|²")
    axes.set_ylabel("squared bias / |exact gradient|²")
    when = "before training" if point["at"] == "initial" else f"after {point['step']:,} steps"
    axes.set_title(f"Gradient of the {part} {when}")
    for axis in (axes.xaxis, axes.yaxis):
        plain(axis)
    axes.grid()
    axes.figure.draw_without_rendering()  # sets the size of the axes, which names are moved apart by
    _name(axes, rows, part)


def _name(axes: Any, rows: list[Json], part: str) -> None:
    """Write the names beside the marks. Those of marks on the axis go upward from the end of their whisker, and are
    moved apart where they would overlap."""
    width = axes.get_position().width * axes.figure.get_figwidth() * 72
    on_axis = []
    for row in rows:
        each = row[part]
        height = _height(each)
        x = axes.transAxes.inverted().transform(axes.transData.transform((each["variance"], height)))[0]
        if not each["biased"]:
            on_axis.append((float(x), _top(each), row))
            continue
        axes.annotate(
            row["objective"],
            (each["variance"], height),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right" if x > 0.85 else "center" if x > 0.15 else "left",
            va="bottom",
            fontsize=SMALL,
        )
    on_axis.sort(key=lambda each: each[0])
    places = spread([x for x, _, _ in on_axis], [1.4 * SMALL / width] * len(on_axis))
    for place, (_, top, row) in zip(places, on_axis, strict=True):
        y = axes.transAxes.inverted().transform(axes.transData.transform((0, top)))[1]
        axes.annotate(
            row["objective"],
            (row[part]["variance"], top),
            xytext=(place, float(y) + 0.03),
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=SMALL,
            arrowprops={"arrowstyle": "-", "color": BLUE, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )


def _height(found: Json) -> float:
    """The height of a mark: the squared bias, or 0 where it cannot be told from that."""
    return max(float(found["bias"]), 0.0) if found["biased"] else 0.0


def _top(found: Json) -> float:
    """The largest squared bias that two standard errors allow."""
    return max(float(found["bias"]), 0.0) + 2 * float(found["bias_se"])
