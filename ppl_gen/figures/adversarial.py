"""Learning curves of a generator and a discriminator."""

import math

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption

CAPTIONS = {
    "learning_curves": Caption(
        "Through training: the two losses, the means of D(x) and D(G(z)), and the value function V, on training images",
        "Three panels of curves over the epochs: losses, means of the discriminator, and V",
    )
}


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
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    bounded = all(0 <= line["train"]["d_real"] <= 1 and 0 <= line["train"]["d_fake"] <= 1 for line in metrics)
    if bounded:
        figure.axes[2].axhline(-math.log(4), color="0.5", linestyle=":", label="−log 4, the optimum")
    for axes in figure.axes:  # below the axes, so that it covers no curve
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    figure.suptitle("Adversarial training, measured on training images and as many samples", fontsize=11)
    return figure
