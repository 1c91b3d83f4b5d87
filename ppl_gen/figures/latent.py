"""Pictures of a continuous latent space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import EllipseCollection

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.images import mosaic

_MOST_POINTS = 800
_MOST_ELLIPSES = 60

CAPTIONS = {
    "interpolations": Caption(
        "On the way from one image's posterior mean to another's",
        "Rows of images that go over from one into another in equal steps of z",
    ),
    "manifold": Caption(
        "The images of a plane of z; each of the two units goes in steps of equal prior mass",
        "A grid of images E[x | z], which change little from one to the next",
    ),
    "latent_space": Caption(
        "Posterior means of images; ellipses are of one posterior standard deviation, around the first 60",
        "Scatter plots of posterior means over two latent units, for each split, each drawn as its label if it has one",
    ),
    "aggregate_posterior": Caption(
        "z of the guide over test images, beside z of the prior",
        "Histograms of at most ten latent units, most active first: the guide's in grey, the prior's as an outline",
    ),
}


@dataclass(frozen=True)
class Points:
    """Posterior means and standard deviations [n, 2] of images, and their labels [n] if they have any."""

    means: np.ndarray
    scales: np.ndarray
    labels: np.ndarray | None


def manifold(images: np.ndarray, units: Sequence[int], others: bool) -> Figure:
    """E[x | z] on a grid over two units of z, in equal steps of prior mass.

    :param images: images [rows, columns, height, width]. The first unit rises to the right, the second upwards.
    :param units: indices of the two units.
    :param others: True if z has further units, which are 0.
    """
    figure = Figure(figsize=(7, 7.3), layout="constrained")
    axes = figure.subplots()
    rows, columns = images.shape[:2]
    show(axes, mosaic(images[::-1].reshape(rows * columns, *images.shape[2:]), columns, border=0))
    axes.set_xlabel(f"z[{units[0]}] →")
    axes.set_ylabel(f"z[{units[1]}] →")
    rest = "; the other units are 0" if others else ""
    axes.set_title(f"E[x | z] over two units of z, in steps of equal prior mass{rest}", fontsize=10)
    return figure


def interpolations(images: np.ndarray) -> Figure:
    """E[x | z] in equal steps from one posterior mean to another, [pairs, steps, height, width]."""
    pairs, steps = images.shape[:2]
    figure = Figure(figsize=(10, 0.5 + 0.45 * pairs), layout="constrained")
    axes = figure.subplots()
    show(axes, mosaic(images.reshape(pairs * steps, *images.shape[2:]), steps))
    axes.set_title(f"E[x | z] at {steps} z from the posterior mean of one test image to that of another", fontsize=10)
    return figure


def latent_space(splits: Mapping[str, Points], units: Sequence[int]) -> Figure:
    """Posterior means over two units, each drawn as its label if it has one, and ellipses of one posterior standard
    deviation around the first 60.

    :param units: indices of the two units. The first rises to the right, the second upwards.
    """
    # Panels of equal scales are square. The height leaves room for titles and labels.
    figure = Figure(figsize=(4.2 * len(splits) + 0.6, 5.2), layout="compressed")
    panels = figure.subplots(1, len(splits), squeeze=False, sharex=True, sharey=True)[0]
    reach = 1.05 * max(float(np.abs(points.means).max()) for points in splits.values()) or 1.0
    for axes, (name, points) in zip(panels, splits.items(), strict=True):
        shown = points.means[:_MOST_POINTS]
        if points.labels is None:
            axes.plot(*shown.T, "k.", markersize=3)
        else:
            kinds = np.unique(points.labels)
            for kind in kinds:
                here = shown[points.labels[:_MOST_POINTS] == kind]
                colour = f"C{int(np.searchsorted(kinds, kind)) % 10}"
                axes.plot(*here.T, linestyle="none", marker=f"${kind}$", markersize=5, color=colour, label=str(kind))
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
        axes.set_title(f"{len(shown)} {name} images", fontsize=10)
        axes.set_xlabel(f"z[{units[0]}]")
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"z[{units[1]}]")
    title = f"Posterior means, and ellipses of one posterior standard deviation around the first {_MOST_ELLIPSES}"
    figure.suptitle(title, fontsize=11)
    return figure


def aggregate_posterior(posterior: np.ndarray, prior: np.ndarray, units: Sequence[int]) -> Figure:
    """Histograms of z ~ q(z | x) over test images and of z ~ p(z), both [n, units], one for each unit."""
    columns = min(5, len(units))
    rows = -(-len(units) // columns)
    figure = Figure(figsize=(2.1 * columns + 0.4, 1.8 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(units) :]:
        axes.set_axis_off()
    for index, (axes, unit) in enumerate(zip(grid.flat, units, strict=False)):
        both = np.concatenate([posterior[:, index], prior[:, index]])
        low, high = np.quantile(both, [0.001, 0.999])
        bins = np.linspace(low, high, 40)
        # One polygon each: the bars of `axes.hist` are forty, which take most of the time of a small fit's pictures.
        counts = (np.histogram(values[:, index], bins)[0] for values in (posterior, prior))
        ours, theirs = (count / np.diff(bins) / max(count.sum(), 1) for count in counts)  # few may lie in no bin
        axes.stairs(ours, bins, fill=True, color="0.7", label="q(z | x) over test images")
        axes.stairs(theirs, bins, color="black", label="p(z)")
        axes.set_title(f"z[{unit}]", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle("The aggregate posterior beside the prior, most active units first", fontsize=10)
    return figure
