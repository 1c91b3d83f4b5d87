"""Images whose hidden pixels are filled in."""

import numpy as np

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import SMALL, WIDTH, styled

CAPTIONS = {
    "fill": Caption(
        "Hidden pixels, given the visible ones: each image, its visible pixels (hidden pixels are grey), its "
        "expected pixels, and images drawn. Below each image: log p(hidden pixels | visible pixels) in nats, if the "
        "hidden pixels are known.",
        "Rows of images: originals, their visible pixels, expected images, and images drawn",
    )
}


@styled
def imputations(
    originals: np.ndarray, visible: np.ndarray, means: np.ndarray, draws: np.ndarray, captions: list[str]
) -> Figure:
    """Originals, their visible pixels, and their expected and drawn imputations, a row each.

    :param originals: images [n, height, width].
    :param visible: True for visible pixels, bool [height, width], or [n, height, width] where images differ. Hidden
        pixels are drawn in mid-grey.
    :param means: expected images [n, height, width].
    :param draws: drawn images [draws, n, height, width].
    :param captions: log p(hidden | visible) of each image; empty if hidden pixels are not known, and originals are not
        drawn.
    """
    count = len(originals)
    rows = [
        *([("original", originals)] if captions else []),
        ("visible", np.where(visible, originals, 0.5)),
        ("expected", means),
        *((f"sample {number}", images) for number, images in enumerate(draws, 1)),
    ]
    figure = Figure(figsize=(min(WIDTH, max(4.0, 0.56 * count + 0.9)), 0.6 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, images) in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            show(axes, image)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axes, caption in zip(grid[-1], captions, strict=False):
        axes.set_xlabel(caption.replace("-", "−"), fontsize=SMALL)
    if captions:
        figure.supxlabel("log p(hidden pixels | visible pixels), nats")
    return figure
