"""Spliced images beside natural ones, and the power of a test between them."""

from typing import Any

import numpy as np

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption

CAPTIONS = {
    "spliced": Caption(
        "Natural and spliced images, with log p(x) in nats",
        "A row of images as they are, and a row of images put together from halves of two, log p(x) below each",
    ),
    "splice_power": Caption(
        "Telling spliced from natural batches",
        "Curves of power and false alarms against the number of images in a batch",
    ),
}


def spliced_images(
    natural: np.ndarray, spliced: np.ndarray, log_px: tuple[np.ndarray, np.ndarray], bound: bool = False
) -> Figure:
    """Natural images above spliced ones, both [n, height, width], each with its log p(x) in nats.

    :param log_px: log p(x) of the natural images [n], and of the spliced ones [n].
    :param bound: True if log p(x) is a lower bound, False if it is exact.
    """
    count = len(natural)
    figure = Figure(figsize=(0.95 * count + 0.4, 3.5), layout="constrained")
    titles = ("natural", "spliced: the left half of one digit, the right half of another")
    blocks = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for part, images, values, title in zip(blocks, (natural, spliced), log_px, titles, strict=True):
        part.suptitle(title, fontsize=10)
        for axes, image, value in zip(part.subplots(1, count), images, values, strict=True):
            show(axes, image)
            axes.set_xlabel(f"{value:.1f}", fontsize=10)
    sign = "≥ " if bound else ""
    figure.supxlabel(f"log p(x) in nats{', estimated from below' if sign else ''}", fontsize=9)
    return figure


def power_against_size(test: Json) -> Figure:
    """Power and false alarms of a two-sample test against the number of images in a batch.

    :param test: the entry `two_sample_test` of `splice.json`.
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    sizes = [int(size) for size in test["power"]]
    style: dict[str, Any] = {"color": "black", "capsize": 2, "linewidth": 1.2}
    for key, line, label in (
        ("power", "o-", "spliced batches: power"),
        ("false_alarms", "s:", "natural batches: false alarms"),
    ):
        entries = test[key].values()
        face = "black" if key == "power" else "white"
        errors = [entry["se"] for entry in entries]
        axes.errorbar(
            sizes,
            [e["mean"] for e in entries],
            errors,
            fmt=line,
            markersize=5,
            markerfacecolor=face,
            label=label,
            **style,
        )
    nominal = test["false_alarm_rate"]
    axes.axhline(nominal, color="0.5", linestyle="--", linewidth=1, label=f"nominal false-alarm rate {nominal:g}")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("images in the batch")
    axes.set_ylabel("share of batches called unnatural")
    axes.set_title(
        f"Telling spliced from natural batches\nby log p(x), against {test['reference']} natural images", fontsize=10
    )
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.3)
    return figure
