"""Classes of the samples, and the training images nearest to them."""

from collections.abc import Sequence

import numpy as np

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, NARROW, SMALL, WIDTH, styled

CAPTIONS = {
    "sample_classes": Caption(
        "Shares of the classes. Plain bars: in the samples, by a classifier. Hatched bars: in the test images, by "
        "their labels. The lines on the bars are ± 1.96 standard errors.",
        "Bars of the share of each class, in pairs: of the samples, and of the test images",
    ),
    "neighbours": Caption(
        "Samples, and below each the nearest training image, with the Euclidean distance of their pixels.",
        "Two rows of ten images: samples above, their nearest training images below, with the distances",
    ),
}


@styled
def class_shares(samples: np.ndarray, data: np.ndarray, labels: Sequence[str], count: int) -> Figure:
    """Share of each class [classes] in the samples, as the classifier sees them, beside its share in the data. The
    samples' shares have intervals of ± 1.96 standard errors of a share of `count` independent samples."""
    figure = Figure(figsize=(NARROW, 2.6), layout="constrained")
    axes = figure.subplots()
    position = np.arange(len(samples))
    errors = 1.96 * np.sqrt(samples * (1 - samples) / count)
    label = "samples, by the classifier"
    axes.bar(position - 0.2, samples, 0.4, yerr=errors, color=BLUE, edgecolor="black", label=label)
    axes.bar(position + 0.2, data, 0.4, color="white", edgecolor="black", hatch="///", label="test images, by label")
    axes.set_xticks(position, labels)
    axes.set_xlabel("class")
    axes.set_ylabel("share of images")
    figure.legend(ncols=2, loc="outside upper center")
    return figure


@styled
def neighbours(samples: np.ndarray, nearest: np.ndarray, distances: Sequence[float]) -> Figure:
    """Samples above their nearest training images, both [n, height, width], with the Euclidean distance in pixel
    values."""
    figure = Figure(figsize=(min(WIDTH, 0.58 * len(samples) + 0.7), 1.7), layout="constrained")
    grid = figure.subplots(2, len(samples), squeeze=False)
    for index, distance in enumerate(distances):
        show(grid[0, index], samples[index])
        show(grid[1, index], nearest[index])
        grid[1, index].set_xlabel(f"{distance:.1f}", fontsize=SMALL)
    for axes, text in zip(grid[:, 0], ("sample", "nearest"), strict=True):
        axes.set_ylabel(text, rotation=0, ha="right", va="center")
    figure.supxlabel("Euclidean distance")
    return figure
