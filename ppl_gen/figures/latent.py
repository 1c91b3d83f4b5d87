"""Pictures of a continuous latent space."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import EllipseCollection
from matplotlib.ticker import MaxNLocator

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.images import mosaic
from ppl_gen.figures.style import BLACK, BLUE, GREEN, NARROW, ORANGE, PURPLE, VERMILION, WIDTH, styled

_MOST_POINTS = 800
_MOST_ELLIPSES = 60
COLOURS = (BLUE, VERMILION, GREEN, BLACK, PURPLE, ORANGE, "#56B4E9", "0.5", "#7A3E00", "#4B0082")
"""Colours of the labels. Each label is drawn as its own number."""

CAPTIONS = {
    "interpolations": Caption(
        "From the posterior mean of one test image to that of another: E[x | z] in equal steps of z. Each row is "
        "a pair of images.",
        "Rows of images that go over from one into another in equal steps of z",
    ),
    "manifold": Caption(
        "The plane of z: E[x | z] on a grid of equal steps, each image at its z. If there is a picture of "
        "posterior means, its axes are the same.",
        "A grid of images E[x | z], which change little from one to the next",
    ),
    "latent_space": Caption(
        "Posterior means of test images in the plane of the two most active units of z. Each is drawn as its "
        "label, if it has one. Ellipses, for the first 60, are one posterior standard deviation.",
        "A scatter plot of posterior means over two latent units, each drawn as its label if it has one",
    ),
    "aggregate_posterior": Caption(
        "Samples of z: from the guide over test images (grey), and from the prior (line). At most ten units are "
        "shown, the most active first if there are more than two. All units have the same axis.",
        "Histograms of at most ten latent units, most active first: the guide's in grey, the prior's as an outline",
    ),
}


@dataclass(frozen=True)
class Points:
    """Posterior means and standard deviations [n, 2] of images, and their labels [n] if they have any."""

    means: np.ndarray
    scales: np.ndarray
    labels: np.ndarray | None


@styled
def manifold(images: np.ndarray, units: Sequence[int], low: float, high: float) -> Figure:
    """E[x | z] on a grid of equal steps over the two units of z.

    :param images: images [rows, columns, height, width]. The first unit rises to the right, the second upwards.
    :param units: indices of the two units.
    :param low: the lower end of both axes; `high` is the upper one.
    """
    figure = Figure(figsize=(NARROW, NARROW), layout="constrained")
    axes = figure.subplots()
    rows, columns = images.shape[:2]
    show(axes, mosaic(images[::-1].reshape(rows * columns, *images.shape[2:]), columns, border=0))
    axes.images[0].set_extent((low, high, low, high))
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"z[{units[0]}]")
    axes.set_ylabel(f"z[{units[1]}]")
    axes.set_title("E[x | z] over the plane of z")
    return figure


@styled
def interpolations(images: np.ndarray) -> Figure:
    """E[x | z] in equal steps from one posterior mean to another, [pairs, steps, height, width]."""
    pairs, steps = images.shape[:2]
    figure = Figure(figsize=(WIDTH, 0.3 + WIDTH / steps * pairs), layout="constrained")
    axes = figure.subplots()
    show(axes, mosaic(images.reshape(pairs * steps, *images.shape[2:]), steps))
    axes.set_title("E[x | z] on the way from one posterior mean to another")
    return figure


@styled
def latent_space(points: Points, units: Sequence[int], low: float, high: float) -> Figure:
    """Posterior means of test images over two units, each drawn as its label if it has one, and ellipses of one
    posterior standard deviation around the first 60.

    :param units: indices of the two units. The first rises to the right, the second upwards.
    :param low: the lower end of both axes; `high` is the upper one.
    """
    figure = Figure(figsize=(NARROW, NARROW), layout="constrained")
    axes = figure.subplots()
    shown = points.means[:_MOST_POINTS]
    if points.labels is None:
        axes.plot(*shown.T, "k.", markersize=3)
    else:
        kinds = np.unique(points.labels)
        for index, kind in enumerate(kinds):
            here = shown[points.labels[:_MOST_POINTS] == kind]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(
                *here.T,
                linestyle="none",
                marker=f"${kind}$",
                markersize=5.5,
                markeredgewidth=0.3,
                color=colour,
                label=str(kind),
            )
    around, scales = points.means[:_MOST_ELLIPSES], 2 * points.scales[:_MOST_ELLIPSES]
    axes.add_collection(
        EllipseCollection(
            scales[:, 0],
            scales[:, 1],
            np.zeros(len(scales)),
            units="xy",
            offsets=around,
            offset_transform=axes.transData,
            facecolors="none",
            edgecolors="0.3",
            linewidths=0.6,
        )
    )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel=f"z[{units[0]}]", ylabel=f"z[{units[1]}]")
    axes.set_title(f"Posterior means of {len(shown)} test images")
    axes.grid()
    return figure


@styled
def aggregate_posterior(
    posterior: np.ndarray, prior: np.ndarray, units: Sequence[int], low: float, high: float
) -> Figure:
    """Histograms of z ~ q(z | x) over test images and of z ~ p(z), both [n, units], one for each unit.

    :param low: the lower end of the axis of every unit; `high` is the upper one.
    """
    columns = min(5, len(units))
    rows = -(-len(units) // columns)
    figure = Figure(figsize=(max(3.2, 1.3 * columns), 1.15 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes in grid.flat[len(units) :]:
        axes.set_axis_off()
    bins = np.linspace(low, high, 50)
    for index, (axes, unit) in enumerate(zip(grid.flat, units, strict=False)):
        # One polygon each: the bars of `axes.hist` are forty, which take most of the time of a small fit's pictures.
        counts = (np.histogram(values[:, index], bins)[0] for values in (posterior, prior))
        ours, theirs = (count / np.diff(bins) / max(count.sum(), 1) for count in counts)  # few may lie in no bin
        axes.stairs(ours, bins, fill=True, color="0.75", label="q(z | x) over test images")
        axes.stairs(theirs, bins, color=BLUE, label="p(z)")
        axes.set_title(f"z[{unit}]")
        axes.set_xlim(low, high)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
