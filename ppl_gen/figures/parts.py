"""The parts of a model, one image each: components of a mixture, weights of a unit."""

from collections.abc import Sequence

import numpy as np

from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption

_MOST = 60

CAPTIONS = {
    "components": Caption(
        "Components, the most probable first",
        "A grid of mean images, one for each of at most 60 components, with its probability above",
    ),
    "weights": Caption(
        "What each unit adds to the pixels' log-odds",
        "A grid of images in grey levels, one for each of at most 60 latent units, with the probability that it is 1 "
        "above",
    ),
    "posterior": Caption(
        "Posterior probabilities of the units",
        "Five images, each beside bars of the exact p(z = 1 | x) of every unit, with a mark for the prior's and, if it "
        "has one, for the guide's",
    ),
    "interpolation": Caption("From one z to another", "A row of images that go over into one another"),
}


def parts(images: np.ndarray, captions: Sequence[str], title: str) -> Figure:
    """Images [n, height, width] with a caption each, the first 60. Values in [0, 1]: black is 1. If some are negative:
    grey is 0, black the largest absolute value, and white its negative."""
    shown = images[:_MOST]
    signed = bool(images.min() < 0)
    limit = float(np.abs(shown).max()) or 1.0
    low, high = (-limit, limit) if signed else (0.0, 1.0)
    columns = min(10, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(max(5.0, 0.92 * columns + 0.6), 1.08 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    picture = None
    for index, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if index < len(shown):
            picture = axes.imshow(shown[index], cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(captions[index], fontsize=7, pad=2)
    assert picture is not None
    label = "log-odds" if signed else "mean of the pixel"
    figure.colorbar(picture, ax=grid, label=label, fraction=0.03, aspect=30)
    more = f", {_MOST} of {len(images)}" if len(images) > _MOST else ""
    figure.suptitle(title + more, fontsize=10)
    return figure


def unit_marginals(images: np.ndarray, exact: np.ndarray, guide: np.ndarray | None, prior: np.ndarray) -> Figure:
    """Posterior probabilities of binary units beside their images.

    :param images: images [n, height, width].
    :param exact: exact posterior probabilities [n, units], by enumeration.
    :param guide: probabilities of the guide [n, units]; None if it has none.
    :param prior: prior probabilities [units].
    """
    count, units = exact.shape
    figure = Figure(figsize=(8, 1.15 * count + 0.9), layout="constrained")
    grid = figure.subplots(count, 2, squeeze=False, width_ratios=[1, 7], sharex="col")
    where = np.arange(units)
    for row, (left, axes) in enumerate(grid):
        left.imshow(images[row], cmap="gray_r", vmin=0, vmax=1)
        left.set_axis_off()
        axes.bar(where, exact[row], 0.8, color="0.75", edgecolor="black", linewidth=0.4, label="exact p(z = 1 | x)")
        if guide is not None:
            axes.plot(where, guide[row], "kx", markersize=5, label="guide q(z = 1 | x)")
        axes.plot(where, prior, "k_", markersize=7, label="prior p(z = 1)")
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([0, 0.5, 1])
    grid[-1, 1].set_xlabel("unit")
    grid[-1, 1].xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*grid[0, 1].get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
    figure.suptitle(f"Posterior of the {units} units", x=0.02, ha="left", fontsize=10)
    return figure
