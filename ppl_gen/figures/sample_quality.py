"""Classes of the samples, and the training images nearest to them."""

from collections.abc import Sequence

import numpy as np

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption

CAPTIONS = {
    "sample_classes": Caption(
        "The classes that a classifier sees in the samples, beside those of the test images",
        "Bars of the share of each class, in pairs: of the samples, and of the test images",
    ),
    "neighbours": Caption(
        "Samples, and below each the training image that is nearest to it",
        "Two rows of ten images: samples above, their nearest training images below, with the distances",
    ),
}


def class_shares(samples: np.ndarray, data: np.ndarray, labels: Sequence[str]) -> Figure:
    """Share of each class [classes] in the samples, as the classifier sees them, beside its share in the data."""
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.subplots()
    position = np.arange(len(samples))
    axes.bar(position - 0.2, samples, 0.4, color="0.35", edgecolor="black", label="samples, by the classifier")
    axes.bar(position + 0.2, data, 0.4, color="white", edgecolor="black", hatch="///", label="test images, by label")
    axes.set_xticks(position, labels)
    axes.set_xlabel("class")
    axes.set_ylabel("share")
    axes.margins(y=0.25)
    axes.legend(fontsize=8, ncols=2, loc="upper center")
    axes.set_title("Classes of the samples", fontsize=10)
    return figure


def neighbours(samples: np.ndarray, nearest: np.ndarray, distances: Sequence[float]) -> Figure:
    """Samples above their nearest training images, both [n, height, width], with the Euclidean distance in pixel
    values."""
    figure = Figure(figsize=(0.85 * len(samples) + 1.0, 2.4), layout="constrained")
    grid = figure.subplots(2, len(samples), squeeze=False)
    for index, distance in enumerate(distances):
        show(grid[0, index], samples[index])
        show(grid[1, index], nearest[index])
        grid[1, index].set_xlabel(f"{distance:.1f}", fontsize=8)
    for axes, text in zip(grid[:, 0], ("sample", "nearest"), strict=True):
        axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle("Samples, the training images nearest to them, and their distance", fontsize=10)
    return figure
