"""Images in a grid, and originals beside reconstructions."""

from collections.abc import Sequence

import numpy as np

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import NARROW, WIDTH, styled

CAPTIONS = {
    "samples": Caption(
        "Samples from the model, with z from the prior. Left: the means E[x | z]. Right: images drawn for the same z.",
        "Two grids of 25 images: on the left the means E[x | z], on the right images drawn given the same z",
    ),
    "through_training": Caption(
        "Samples before, half-way through and after training, from the same noise. The z are the same if the "
        "prior is not learned.",
        "Rows of ten images E[x | z], with the epoch beside each: before training, half-way, and at its end",
    ),
    "reconstructions": Caption(
        "Images of the test split, and below each its reconstruction: the mean E[x | z] for one z that the guide drew.",
        "Two rows of ten images: images of the test split above, their reconstructions below",
    ),
}


def mosaic(images: np.ndarray, columns: int, border: int = 1) -> np.ndarray:
    """One picture of images [n, height, width] or [n, height, width, 3], with white borders around the images."""
    rows, (height, width, *color) = -(-len(images) // columns), images.shape[1:]
    high, wide = height + 2 * border, width + 2 * border
    padded = np.full((rows * columns, high, wide, *color), 1.0 if color else 0.0)  # white: 0 is, of grey images
    padded[: len(images), border : border + height, border : border + width] = images
    grid = padded.reshape(rows, columns, high, wide, *color).swapaxes(1, 2)
    return grid.reshape(rows * high, columns * wide, *color)


@styled
def samples(means: np.ndarray, draws: np.ndarray) -> Figure:
    """Samples from the prior: E[x | z] beside draws x ~ p(x | z) of the same z, both [n, height, width]."""
    figure = Figure(figsize=(NARROW, 2.6), layout="constrained")
    for axes, images, title in zip(
        figure.subplots(1, 2), (means, draws), ("means E[x | z]", "draws x ~ p(x | z), same z"), strict=True
    ):
        show(axes, mosaic(images, 5))
        axes.set_title(title)
    return figure


@styled
def through_training(images: dict[int, np.ndarray]) -> Figure:
    """E[x | z] at several epochs, {epoch: [n, height, width]}, the first on top. The noise that z is drawn from is
    always the same. So is z, unless p(z) is learned."""
    figure = Figure(figsize=(WIDTH, 0.3 + 0.67 * len(images)), layout="constrained")
    for axes, (epoch, row) in zip(figure.subplots(len(images), 1, squeeze=False)[:, 0], images.items(), strict=True):
        show(axes, mosaic(row, len(row)))
        axes.set_ylabel(f"epoch {epoch}", rotation=0, ha="right", va="center")
    figure.suptitle("Samples from the same noise, mean E[x | z]")
    return figure


@styled
def reconstructions(originals: np.ndarray, means: np.ndarray, split: str) -> Figure:
    """Originals above E[x | z], z ~ q(z | x); both [n, height, width]."""
    figure = Figure(figsize=(WIDTH, 1.6), layout="constrained")
    rows: Sequence[tuple[np.ndarray, str]] = ((originals, "x"), (means, "E[x | z]"))
    for axes, (images, label) in zip(figure.subplots(2, 1), rows, strict=True):
        show(axes, mosaic(images, len(images)))
        axes.set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(f"Images of the {split} split, and their reconstructions")
    return figure
