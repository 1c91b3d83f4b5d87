"""Learning curves: the ELBO and its two terms, or the numbers that an objective measures."""

from collections.abc import Sequence

from ppl_gen.core.tables import fixed
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption

CAPTIONS = {
    "learning_curves": Caption("Through training; dashed, if there, the validation split", "Curves over the epochs")
}


def captions(metrics: Sequence[Json]) -> dict[str, Caption]:
    """`CAPTIONS` with the first and the last value of the ELBO or log p(x)."""
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
        titles = {"elbo": "log p(x), exact: all latent values are summed out"}
        figure.set_size_inches(6.4, 3.4)
    for axes, (key, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
        for split, style in (("train", "-"), ("validation", "--")):
            points = [(line["epoch"], line[split][key]) for line in shown if split in line]
            if points:
                marker = "o" if len(points) < 3 else ""
                axes.plot(*zip(*points, strict=True), style, color="black", marker=marker, label=split)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
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
        for split, style in (("train", "-"), ("validation", "--")):
            points = [(line["epoch"], line[split][name]) for line in metrics if split in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, color="black", label=split)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(loc="best")
    figure.suptitle("Training, as the objective measures it", fontsize=11)
    return figure
