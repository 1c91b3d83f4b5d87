"""Learning curves: the ELBO and its two terms, those of a generator and a discriminator, or the numbers that an
objective measures."""

import math
from collections.abc import Sequence
from typing import Any

from ppl_gen.core.tables import fixed
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption

CAPTIONS = {
    "learning_curves": Caption("Through training; dashed, if there, the validation split", "Curves over the epochs")
}
_ADVERSARIAL = Caption(
    "Through training: the two losses, the means of D(x) and D(G(z)), and the value function V, on training images",
    "Three panels of curves over the epochs: losses, means of the discriminator, and V",
)


def captions(metrics: Sequence[Json]) -> dict[str, Caption]:
    """Captions of a run, with the first and the last value of the ELBO or log p(x)."""
    if "elbo" not in metrics[-1]["train"]:
        return {"learning_curves": _ADVERSARIAL} if "d_real" in metrics[-1]["train"] else CAPTIONS
    split = "validation" if "validation" in metrics[-1] else "train"
    before, after = (line[split] for line in (metrics[0], metrics[-1]))
    name = "ELBO" if "kl" in after else "log p(x)"
    numbers = f"; {split} {name} {fixed(before['elbo'])} before training, {fixed(after['elbo'])} at its end"
    return {"learning_curves": CAPTIONS["learning_curves"].with_numbers(numbers)}


def learning_curves(metrics: list[Json]) -> Figure:
    """Curves of training and validation split, from the lines of `metrics.jsonl`, in nats per image.

    The first point, before training, would flatten the curves. It stands in the title instead.
    """
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    shown = metrics[1:] if len(metrics) > 2 else metrics
    titles = {
        "elbo": "ELBO",
        "reconstruction": "reconstruction: E[log p(x | z)]",
        "kl": "KL: E[log q(z | x) - log p(z)]",
    }
    if "kl" not in metrics[0]["train"]:
        of_grid = "grid_bias" in metrics[0]["train"]
        how = "by a sum over the points of a grid" if of_grid else "exact: all latent values are summed out"
        titles = {"elbo": f"log p(x), {how}"}
        figure.set_size_inches(6.4, 3.4)
    for axes, (key, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
        _splits(axes, shown, key, few="o")
        _over_epochs(axes, title)
    figure.axes[0].set_ylabel("nats per image")
    figure.axes[0].legend(loc="best")
    split = "validation" if "validation" in metrics[0] else "train"
    before = f"{titles['elbo'].partition(',')[0]} of the {split} split before training: {metrics[0][split]['elbo']:.1f}"
    figure.suptitle(f"Learning curves ({before})", fontsize=11)
    return figure


def monitored_curves(metrics: list[Json]) -> Figure:
    """Curves of training and validation split for every number that the objective measures, from the lines of
    `metrics.jsonl`."""
    names = list(metrics[0]["train"])
    figure = Figure(figsize=(max(4.0, 3.4 * len(names)), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _splits(axes, metrics, name)
        _over_epochs(axes, name)
    figure.axes[0].legend(loc="best")
    figure.suptitle("Training, as the objective measures it", fontsize=11)
    return figure


def adversarial_curves(metrics: list[Json]) -> Figure:
    """Losses, means of the discriminator, and the value function, from the lines of `metrics.jsonl`."""
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    panels = {
        "losses": {"loss_generator": ("generator", "-"), "loss_discriminator": ("discriminator", "--")},
        "the discriminator's mean": {"d_real": ("of images, D(x)", "-"), "d_fake": ("of samples, D(G(z))", "--")},
        "value function V": {"value": ("V", "-")},
    }
    for axes, (title, lines) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for key, (label, style) in lines.items():
            points = [(line["epoch"], line["train"][key]) for line in metrics]
            axes.plot(*zip(*points, strict=True), style, color="black", label=label)
        _over_epochs(axes, title)
    bounded = all(0 <= line["train"]["d_real"] <= 1 and 0 <= line["train"]["d_fake"] <= 1 for line in metrics)
    if bounded:
        figure.axes[2].axhline(-math.log(4), color="0.5", linestyle=":", label="−log 4, the optimum")
    for axes in figure.axes:  # below the axes, so that it covers no curve
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    figure.suptitle("Adversarial training, measured on training images and as many samples", fontsize=11)
    return figure


def _splits(axes: Any, metrics: Sequence[Json], key: str, few: str = "") -> None:
    """The curve of a number on each split.

    :param few: marker of the points of a curve that has fewer than 3.
    """
    for split, style in (("train", "-"), ("validation", "--")):
        points = [(line["epoch"], line[split][key]) for line in metrics if split in line]
        if points:
            marker = few if len(points) < 3 else ""
            axes.plot(*zip(*points, strict=True), style, color="black", marker=marker, label=split)


def _over_epochs(axes: Any, title: str) -> None:
    """Title, grid and horizontal axis of a panel."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
