"""The gap between bound and log p(x), image by image."""

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ppl_gen.core.tables import fixed
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import NARROW, VERMILION, styled

CAPTIONS = {
    "gap_histogram": Caption(
        "How far the ELBO is from log p(x), image by image: a histogram of the gap log p(x) − ELBO over the test "
        "images. The dashed line is the mean. Hatched bars, if any, are images whose log p(x) is not settled: "
        "their gap is at least this.",
        "A histogram over images of log p(x) − ELBO, with a dashed line at its mean",
    ),
}

_LEAST = 0.02  # smallest range of an axis in nats: differences below it are rounding


def captions(summary: Json) -> dict[str, Caption]:
    """`CAPTIONS` with numbers from an `evaluation.json`."""
    return {
        name: caption.with_numbers(f"; its mean is {fixed(summary['gap']['mean'])} nats")
        for name, caption in CAPTIONS.items()
    }


@styled
def gap_histogram(gap: np.ndarray, untrusted: np.ndarray, at_least: bool = False) -> Figure:
    """Histogram over images of log p(x) - ELBO in nats. Images whose log p(x) is only a lower bound are hatched.
    Infinite gaps are counted in the title alone.

    :param at_least: True if the mean is only a lower bound, even if no single image is known to be.
    """
    finite = np.isfinite(gap)
    infinite = int((~finite).sum())
    gap, untrusted = (gap[finite], untrusted[finite]) if finite.any() else (np.zeros(1), np.zeros(1, bool))
    figure = Figure(figsize=(NARROW, 2.9), layout="constrained")
    axes = figure.subplots()
    spread = (gap.min(), max(gap.max(), gap.min() + _LEAST))
    bins = np.histogram_bin_edges(gap, bins=min(60, max(5, len(gap) // 10)), range=spread)
    trusted, _ = np.histogram(gap[~untrusted], bins)
    rest, _ = np.histogram(gap[untrusted], bins)
    style: dict[str, Any] = {"width": np.diff(bins), "align": "edge", "edgecolor": "black", "linewidth": 0.4}
    shown = "log p(x) is settled" if untrusted.any() else "gap is at least this" if at_least else None
    axes.bar(bins[:-1], trusted, color="0.7", label=shown, **style)
    if untrusted.any():
        label = f"not settled, at least this ({untrusted.mean():.1%})"
        axes.bar(bins[:-1], rest, bottom=trusted, color="white", hatch="////", label=label, **style)
    axes.set_ylim(0, 1.22 * (trusted + rest).max())  # room for the name of the line
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    mean, right = float(gap.mean()), float(gap.mean()) > sum(spread) / 2
    axes.axvline(mean, color=VERMILION, linestyle="--")
    axes.annotate(
        f"mean {fixed(mean)}".replace("-", "−"),
        (mean, 0.98),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-4 if right else 4, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        color=VERMILION,
    )
    axes.set_xlabel("gap: log p(x) − ELBO, nats")
    axes.set_ylabel("images")
    axes.set_title("Gap of the ELBO, image by image" + (f"; {infinite} infinite" if infinite else ""))
    if shown is not None:
        figure.legend(loc="outside lower center", ncols=2)
    return figure
