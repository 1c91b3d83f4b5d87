"""Ranks of z among samples of the guide, and coverage of its intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, NARROW, VERMILION, styled
from ppl_gen.inference.ranks import POINTS

CAPTIONS = {
    "calibration_ranks": Caption(
        "Ranks of the z that the images were drawn with, among samples of the guide: the ECDF minus the diagonal. "
        "A curve inside the band is calibrated. For a unit: a curve that rises first and falls last means too "
        "narrow, the reverse means too wide, an arch means shifted. For the density: below the band means too "
        "narrow, above it too wide. For log p(x | z): below the band means that the guide's z fit the image too "
        "little, above it too well.",
        "Up to six panels with the difference between the ECDF of ranks and the diagonal, without and with importance "
        "weights, over a simultaneous band",
    ),
    "calibration_coverage": Caption(
        "How often the guide's intervals and regions hold the z that the image was drawn with, against the "
        "nominal share. Below the diagonal the guide is too narrow.",
        "Curves of coverage against nominal coverage, without and with importance weights, beside the diagonal",
    ),
}
_PANELS = 6
_BEFORE: dict[str, Any] = {"color": BLUE, "linestyle": "-"}
_AFTER: dict[str, Any] = {"color": VERMILION, "linestyle": "--"}


@styled
def rank_ecdfs(
    names: Sequence[str], before: np.ndarray, after: np.ndarray | None, low: np.ndarray, high: np.ndarray, summary: Json
) -> Figure:
    """ECDF less the diagonal, of both functions of all units and of the units with the smallest p-values.

    :param before: ranks [images, quantities] among samples of the guide; `after` with importance weights.
    :param low: lower limit of the ECDF at `POINTS`; `high` is the upper one.
    """
    p_values = np.array([each["p"] for each in summary["before"]["quantities"]])
    units = [index for index, name in enumerate(names) if name not in ("density", "likelihood")]
    worst = sorted(units, key=lambda index: p_values[index])[: _PANELS - 2]
    shown = [*(index for index in range(len(names)) if index not in units), *sorted(worst)]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(NARROW, 1.0 + 1.45 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    x = np.concatenate([[0], POINTS, [1]])
    for axes, index in zip(grid.flat, shown, strict=False):
        limits = (np.concatenate([[0], side - POINTS, [0]]) for side in (low, high))
        axes.fill_between(x, *limits, color="0.85", label=f"{1 - summary['false_alarm_rate']:.0%} band")
        axes.axhline(0, color="0.5", linewidth=0.7)
        for ranks, style, label in ((before, _BEFORE, "guide"), (after, _AFTER, "weighted")):
            if ranks is not None:
                below = np.searchsorted(np.sort(ranks[:, index]), POINTS, side="right") / len(ranks)
                label = label if after is not None else "exact posterior"
                axes.plot(x, np.concatenate([[0], below - POINTS, [0]]), label=label, **style)
        what = {"density": "density, all units", "likelihood": "log p(x | z), all units"}
        axes.set_title(what.get(names[index], names[index]))
        axes.grid()
        axes.sharey(grid[min(1, list(shown).index(index) // 2), 0])  # the functions of all units, or the units
    for column in grid.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel("rank")
    for axes in grid[:, 0]:
        axes.set_ylabel("ECDF − rank")
    more = f", the {len(worst)} of {len(units)} units furthest off" if len(units) > len(worst) else ""
    figure.suptitle(f"Ranks of z on {summary['num_images']:,} images from the model{more}")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def coverage(summary: Json) -> Figure:
    """Coverage against its nominal level, of regions of all units on the left and of intervals of single units on the
    right."""
    figure = Figure(figsize=(NARROW, 3.3), layout="constrained")
    grid = figure.subplots(1, 2, sharex=True, sharey=True)
    titles = {"joint": "highest-density regions,\nall units", "central": "central intervals,\nmean over units"}
    for axes, (key, text) in zip(grid, titles.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8, label="nominal")
        for part, style, marker, label in (("before", _BEFORE, "o", "guide"), ("after", _AFTER, "s", "weighted")):
            if part in summary:
                found = summary[part]["coverage"]
                label = label if "after" in summary else "exact posterior"
                means, errors = ([each[of] for each in found[key]] for of in ("mean", "se"))
                axes.errorbar(found["levels"], means, errors, fmt=marker, label=label, **style)
        axes.set_title(text)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 0.9], ["0", "", "0.5", "", "0.9"])
        axes.set_xlabel("nominal share")
        axes.grid()
    grid[0].set_ylabel("share of z inside")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Coverage on {summary['num_images']:,} images from the model")
    return figure
