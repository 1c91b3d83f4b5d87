"""Spliced images beside natural ones, and the power of a test between them."""

import numpy as np

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure, show
from ppl_gen.figures.captions import Caption
from ppl_gen.figures.style import BLUE, NARROW, SMALL, VERMILION, WIDTH, Name, name_lines, styled

CAPTIONS = {
    "spliced": Caption(
        "Natural images, and images spliced from the left half of one image and the right half of another. Below "
        "each: its log p(x) in nats.",
        "A row of images as they are, and a row of images put together from halves of two, log p(x) below each",
    ),
    "splice_power": Caption(
        "Does log p(x) tell batches of spliced images from natural ones? Against the batch size: the share of "
        "spliced batches that are found (power), and the share of natural batches that are taken for spliced "
        "(false alarms). The dotted line is the nominal rate of false alarms. Bars are ± one standard error.",
        "Curves of power and false alarms against the number of images in a batch",
    ),
}


@styled
def spliced_images(
    natural: np.ndarray, spliced: np.ndarray, log_px: tuple[np.ndarray, np.ndarray], bound: bool = False
) -> Figure:
    """Natural images above spliced ones, both [n, height, width], each with its log p(x) in nats.

    :param log_px: log p(x) of the natural images [n], and of the spliced ones [n].
    :param bound: True if log p(x) is a lower bound, False if it is exact.
    """
    count = len(natural)
    figure = Figure(figsize=(min(WIDTH, 0.62 * count + 0.3), 2.3), layout="constrained")
    titles = ("natural", "spliced")
    blocks = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for part, images, values, title in zip(blocks, (natural, spliced), log_px, titles, strict=True):
        part.suptitle(title)
        for axes, image, value in zip(part.subplots(1, count), images, values, strict=True):
            show(axes, image)
            axes.set_xlabel(f"{value:.1f}".replace("-", "−"), fontsize=SMALL)
    sign = "≥ " if bound else ""
    figure.supxlabel(f"log p(x), nats{', estimated from below' if sign else ''}")
    return figure


@styled
def power_against_size(test: Json) -> Figure:
    """Power and false alarms of a two-sample test against the number of images in a batch.

    :param test: the entry `two_sample_test` of `splice.json`.
    """
    figure = Figure(figsize=(NARROW, 3.1), layout="constrained")
    axes = figure.subplots()
    sizes = [int(size) for size in test["power"]]
    names = []
    for key, (marker, color, name) in {
        "power": ("o-", BLUE, "spliced:\npower"),
        "false_alarms": ("s--", VERMILION, "natural:\nfalse alarms"),
    }.items():
        means, errors = ([entry[of] for entry in test[key].values()] for of in ("mean", "se"))
        axes.errorbar(sizes, means, errors, fmt=marker, color=color)
        names.append(Name(name, sizes[-1], means[-1], color))
    nominal = test["false_alarm_rate"]
    axes.axhline(nominal, color="0.5", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("images in the batch")
    axes.set_ylabel("share of batches called unnatural")
    axes.set_title("Telling spliced from natural batches by log p(x)")
    axes.grid()
    name_lines(axes, [*names, Name(f"nominal rate {nominal:g}", axes.get_xlim()[1], nominal, "0.4")])
    return figure
