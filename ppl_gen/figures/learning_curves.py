"""Learning curves: the ELBO and its two terms, those of a generator and a discriminator, or the numbers that an
objective measures."""

import math
from collections.abc import Sequence
from typing import Any

from ppl_gen.core.tables import fixed
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, NARROW, VERMILION, Name, name_lines, styled

CAPTIONS = {
    "learning_curves": Caption(
        "Measurements before training and after each epoch, in nats per image. Dashed lines are of the validation "
        "split, if there is one.",
        "Curves over the epochs",
    )
}
_ADVERSARIAL = Caption(
    "After each epoch, on training images and as many samples: both losses, the means of D(x) and D(G(z)), and the "
    "value function V. The dotted line is V if D cannot tell samples from images.",
    "Three panels of curves over the epochs: losses, means of the discriminator, and V",
)


_SPLITS = ("train", "validation")
_TWO: tuple[dict[str, Any], ...] = ({"color": BLUE, "linestyle": "-"}, {"color": VERMILION, "linestyle": "--"})


def captions(metrics: Sequence[Json]) -> dict[str, Caption]:
    """Captions of a run, with the first and the last value of the ELBO or log p(x)."""
    if "d_real" in metrics[-1]["train"]:
        return {"learning_curves": _ADVERSARIAL}
    split = "validation" if "validation" in metrics[-1] else "train"
    before, after = (line.get(split, {}) for line in (metrics[0], metrics[-1]))
    if "elbo" not in before or "elbo" not in after:
        return CAPTIONS
    name = "ELBO" if "kl" in after else "log p(x)"
    numbers = f"; {split} {name} {fixed(before['elbo'])} before training, {fixed(after['elbo'])} at its end"
    return {"learning_curves": CAPTIONS["learning_curves"].with_numbers(numbers)}


@styled
def learning_curves(metrics: list[Json]) -> Figure:
    """Curves of training and validation split, from the lines of `metrics.jsonl`, in nats per image.

    The first point, before training, would flatten the curves. It stands in the title instead.
    """
    shown = metrics[1:] if len(metrics) > 2 else metrics
    titles = {
        "elbo": "ELBO",
        "reconstruction": "reconstruction, E[log p(x | z)]",
        "kl": "KL, E[log q(z | x) − log p(z)]",
    }
    if "kl" not in metrics[0]["train"]:
        of_grid = "grid_bias" in metrics[0]["train"]
        how = "by a sum over the points of a grid" if of_grid else "exact: all latent values are summed out"
        titles = {"elbo": f"log p(x), {how}"}
    panels = _panels(len(titles), 2.7 if len(titles) == 1 else 1.5)
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        axes.set_title(title, loc="left")
        axes.set_ylabel("nats")
        _splits(axes, shown, key)
    split = "validation" if "validation" in metrics[0] else "train"
    before = f"{titles['elbo'].partition(',')[0]} of the {split} split before training: {metrics[0][split]['elbo']:.1f}"
    panels[0].figure.suptitle(before.replace("-", "−"))
    return panels[0].figure


@styled
def monitored_curves(metrics: list[Json]) -> Figure:
    """Curves of training and validation split for every number that the objective measures, from the lines of
    `metrics.jsonl`."""
    names = list(metrics[0]["train"])
    panels = _panels(len(names), 1.5)
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name, loc="left")
        _splits(axes, metrics, name)
    return panels[0].figure


@styled
def adversarial_curves(metrics: list[Json]) -> Figure:
    """Losses, means of the discriminator, and the value function, from the lines of `metrics.jsonl`."""
    panels = _panels(3, 1.5)
    lines = {
        "losses": {"loss_generator": "generator", "loss_discriminator": "discriminator"},
        "mean of the discriminator": {"d_real": "images, D(x)", "d_fake": "samples, D(G(z))"},
        "value function": {"value": "V"},
    }
    optimum = all(0 <= line["train"]["d_real"] <= 1 and 0 <= line["train"]["d_fake"] <= 1 for line in metrics)
    for axes, (title, curves) in zip(panels, lines.items(), strict=True):
        axes.set_title(title, loc="left")
        names = [
            _curve(axes, label, [(line["epoch"], line["train"][key]) for line in metrics], style)
            for (key, label), style in zip(curves.items(), _TWO, strict=False)
        ]
        if optimum and axes is panels[-1]:
            axes.axhline(-math.log(4), color="0.5", linestyle=":")
            names.append(Name("optimum, −log 4", axes.get_xlim()[1], -math.log(4), "0.4"))
        name_lines(axes, names)
    return panels[0].figure


def _panels(count: int, height: float) -> list[Any]:
    """Panels below each other, with the epochs across."""
    figure = Figure(figsize=(NARROW, height * count + 0.5), layout="constrained")
    panels = list(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0])
    for axes in panels:
        axes.grid()
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("epoch")
    figure.align_ylabels()
    return panels


def _splits(axes: Any, metrics: Sequence[Json], key: str) -> None:
    """The curve of a number on each split, with the name of the split at its end."""
    found = {split: [(line["epoch"], line[split][key]) for line in metrics if split in line] for split in _SPLITS}
    curves = [
        _curve(axes, split, points, style) for (split, points), style in zip(found.items(), _TWO, strict=True) if points
    ]
    name_lines(axes, curves)


def _curve(axes: Any, name: str, points: Sequence[tuple[float, float]], style: dict[str, Any]) -> Name:
    """A curve; one of fewer than three points is drawn with marks. Returns its name, for the last finite value."""
    axes.plot(*zip(*points, strict=True), **style, marker="o" if len(points) < 3 else "")
    finite = [point for point in points if point[1] is not None and math.isfinite(point[1])]
    x, y = finite[-1] if finite else (points[-1][0], axes.get_ylim()[0])
    return Name(name, x, y, style["color"])
