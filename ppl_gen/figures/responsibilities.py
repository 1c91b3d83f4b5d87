"""Responsibilities of a mixture's components."""

from typing import Any

import numpy as np

from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import SMALL, WIDTH, styled


def captions(site: str = "z", x: str = "x") -> dict[str, Caption]:
    """Captions of a run.

    :param site: the name of the site of the components.
    :param x: the name of the images: `x_obs` with missing pixels.
    """
    return {
        "components_by_label": Caption(
            f"Components and labels. Each row is a component k: its mean image, p({site} = k), and the number of "
            "images of each label for which it is the most responsible component. A darker background is a larger "
            "share of the component's images.",
            "A table with a row for each component: its mean image, and the number of its images that have each label",
        ),
        "responsibilities": Caption(
            f"Images, each beside the components that are most responsible for it, with k: p({site} = k | {x}). Left: "
            "the first images. Right: the images with the least certain component.",
            "Images, each beside the components most responsible for it and their probabilities",
        ),
    }


MOST = 40
"""Largest number of components to show."""


@styled
def components_by_label(
    counts: np.ndarray, labels: list[str], names: list[str], means: np.ndarray, of: int, site: str = "z"
) -> Figure:
    """A row for each component: its mean image, and the number of images of each label that it is most responsible for.
    The background is as dark as their share of the component's images.

    :param counts: numbers of images [components, labels].
    :param names: names of the components.
    :param means: mean images [components, height, width].
    :param of: number of all components, of which these are the most probable.
    :param site: the name of their site.
    """
    components, columns = counts.shape
    figure = Figure(figsize=(min(WIDTH, 0.45 * columns + 2.0), max(0.24 * components, 1.6) + 0.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[0.24, min(WIDTH - 2.0, 0.45 * columns)])
    height, width, *channels = means.shape[1:]
    side = max(height, width)  # each image gets a square tile, with white lines between tiles
    tiles = np.full((components, side + 2, side, *channels), 1.0 if channels else 0.0)
    tiles[:, 1 : 1 + height, :width] = means
    how: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1, "aspect": "auto", "extent": (0, 1, components, 0)}
    left.imshow(tiles.reshape(-1, side, *channels).clip(0, 1), **how)
    left.set_xticks([])
    left.set_yticks(np.arange(components) + 0.5, names)
    more = f"\nthe {components} most probable of {of}" if of > components else ""
    left.set_ylabel(f"component k, with p({site} = k){more}")
    left.set_title("mean")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    picture = right.imshow(shares, cmap="gray_r", vmin=0, vmax=1, aspect="auto", extent=(0, columns, components, 0))
    for row, column in np.argwhere(counts > 0):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]}"
        right.text(column + 0.5, row + 0.5, text, color=color, fontsize=SMALL, ha="center", va="center")
    right.set_xticks(np.arange(columns) + 0.5, labels)
    right.set_yticks([])
    right.set_xlabel("label")
    right.set_title("images it is most responsible for")
    figure.colorbar(picture, ax=right, label="share of the component's images", fraction=0.05, aspect=30)
    return figure


@styled
def examples(images: np.ndarray, means: np.ndarray, probabilities: np.ndarray, names: list[list[str]]) -> Figure:
    """Images beside the components that are most responsible for them, with their probability below each.

    :param images: images [n, height, width]. The second half are those with the least certain component.
    :param means: mean images of the components [n, components, height, width].
    :param probabilities: responsibilities [n, components].
    :param names: names of the components.
    """
    count, most = probabilities.shape
    figure = Figure(figsize=(min(WIDTH, 0.64 * (most + 1) * 2 + 0.2), 0.85 * (count // 2) + 0.5), layout="constrained")
    halves = figure.subfigures(1, 2, squeeze=False, wspace=0.06)[0]
    titles = ("the first images", "the least certain images")
    for part, rows, title in zip(halves, np.arange(count).reshape(2, -1), titles, strict=True):
        part.suptitle(title)
        for line, row in zip(part.subplots(len(rows), most + 1, squeeze=False), rows, strict=True):
            show(line[0], images[row])
            line[0].set_xlabel("x", fontsize=SMALL, labelpad=2)
            for axes, mean, probability, name in zip(line[1:], means[row], probabilities[row], names[row], strict=True):
                show(axes, mean)
                value = f"{probability:.2f}" if probability >= 0.005 else "0.00"
                axes.set_xlabel(f"{name}: {value}", fontsize=SMALL, labelpad=2)
    return figure
