"""The parts of a model, one image each: components of a mixture, weights of a unit."""

from collections.abc import Sequence

import numpy as np

from ppl_gen.figures.canvas import Figure, frame
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, SMALL, VERMILION, WIDTH, styled

_MOST = 60

CAPTIONS = {
    "components": Caption(
        "Components of the mixture, the most probable first: the mean image of each (black is 1). Above it: its "
        "probability p(z = k).",
        "A grid of mean images, one for each of at most 60 components, with its probability above",
    ),
    "weights": Caption(
        "What each unit adds to the log-odds of the pixels. Grey is nothing, darker is more, lighter is less. "
        "Above it: the prior probability p(z = 1) of the unit.",
        "A grid of images in grey levels, one for each of at most 60 latent units, with the probability that it is 1 "
        "above",
    ),
    "posterior": Caption(
        "Posterior probability of each unit, for five test images. Bars: the exact p(z = 1 | x). Crosses: the "
        "guide, if it has one. Dashes: the prior.",
        "Five images, each beside bars of the exact p(z = 1 | x) of every unit, with a mark for the prior's and, if it "
        "has one, for the guide's",
    ),
    "interpolation": Caption(
        "G(z) in equal steps from one z to another. The ends are two of 500 samples: among the ten that the "
        "discriminator takes most for real, the two whose pixels differ most.",
        "A row of nine images that go over into one another",
    ),
}


@styled
def parts(images: np.ndarray, captions: Sequence[str], title: str) -> Figure:
    """Images [n, height, width] with a caption each, the first 60. Values in [0, 1]: black is 1. If some are negative:
    grey is 0, black the largest absolute value, and white its negative. Color images [n, height, width, 3] are drawn as
    they are if none of their values is negative, else the mean of their channels is."""
    signed = bool(images.min() < 0)
    shown = images[:_MOST].mean(-1) if signed and images.ndim == 4 else images[:_MOST]
    limit = float(np.abs(shown).max()) or 1.0
    low, high = (-limit, limit) if signed else (0.0, 1.0)
    columns = min(len(shown), 10 if len(shown) <= 10 or len(shown) > 25 else 5)  # a short row, or a square
    rows = -(-len(shown) // columns)
    cell = min(0.8, (WIDTH - 0.2 - 0.6 * signed) / columns)
    width = min(WIDTH, max(3.2, cell * columns + 0.2 + 0.6 * signed))
    figure = Figure(figsize=(width, (cell + 0.12) * rows + 0.35), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    picture = None
    for index, axes in enumerate(grid.flat):
        frame(axes)
        axes.set_visible(index < len(shown))
        if index < len(shown):
            picture = axes.imshow(shown[index], cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(captions[index], fontsize=SMALL, pad=2)
    if signed:
        assert picture is not None
        figure.colorbar(picture, ax=grid, label="log-odds", fraction=0.04, aspect=max(10, 8 * rows))
    more = f", {_MOST} of {len(images)}" if len(images) > _MOST else ""
    figure.suptitle(title + more)
    return figure


@styled
def unit_marginals(images: np.ndarray, exact: np.ndarray, guide: np.ndarray | None, prior: np.ndarray) -> Figure:
    """Posterior probabilities of binary units beside their images.

    :param images: images [n, height, width].
    :param exact: exact posterior probabilities [n, units], by enumeration.
    :param guide: probabilities of the guide [n, units]; None if it has none.
    :param prior: prior probabilities [units].
    """
    count, units = exact.shape
    figure = Figure(figsize=(WIDTH, 0.8 * count + 0.7), layout="constrained")
    grid = figure.subplots(count, 2, squeeze=False, width_ratios=[1, 8], sharex="col")
    where = np.arange(units)
    for row, (left, axes) in enumerate(grid):
        left.imshow(images[row], cmap="gray_r", vmin=0, vmax=1)
        left.set_axis_off()
        axes.bar(where, exact[row], 0.8, color="0.8", edgecolor="black", linewidth=0.4, label="exact p(z = 1 | x)")
        if guide is not None:
            axes.plot(where, guide[row], "x", color=VERMILION, markeredgewidth=1.4, label="guide q(z = 1 | x)")
        axes.plot(where, prior, "_", color=BLUE, markersize=7, markeredgewidth=1.6, label="prior p(z = 1)")
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([0, 0.5, 1])
    grid[-1, 1].set_xlabel("unit")
    grid[-1, 1].xaxis.get_major_locator().set_params(integer=True)
    figure.supylabel("probability of 1")
    figure.legend(*grid[0, 1].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure
