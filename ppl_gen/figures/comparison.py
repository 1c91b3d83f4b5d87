"""ELBO and log p(x) of several runs."""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from ppl_gen.core.tables import fixed
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption

_INTERVALS = {
    "methods": ("-", "95 % interval of the difference to the first row"),
    "weights": (":", "95 % interval of the difference, between two sets of weights"),
}


def caption(compared: Json, labels: Sequence[str]) -> Caption:
    """The caption of `bounds_and_log_px`, from the same arguments."""
    rows = compared["rows"]
    text = "A line for each row, from its ELBO to its log p(x)"
    if len(rows) > 1:
        text += "; below it the 95 % interval of its difference to the first row, whose log p(x) is dashed"
    lines = []
    for label, row in zip(labels, rows, strict=True):
        difference = row["log_px_difference"]
        line = f"{label}, from {fixed(row['elbo']['mean'])} to {fixed(row['log_px']['mean'])}"
        if difference["low"] is not None:
            low, high = (fixed(difference[end]) for end in ("low", "high"))
            line += f", difference to the first row from {low} to {high}"
        lines.append(line)
    return Caption(text, f"A line for each row: {'; '.join(lines)}")


def bounds_and_log_px(compared: Json, labels: list[str]) -> Figure:
    """A line for each row from its ELBO to its log p(x), in nats per image, the best on top. The line is the gap.

    Below the line is the 95 % interval of the row's difference to the first row, added to the first row's log p(x),
    which is dashed. If the interval contains the dashed value, the difference may be chance.

    :param compared: the result of `ppl_gen.Comparison.to_json`.
    :param labels: labels of its rows.
    """
    images, rows = compared["images"], compared["rows"]
    labels = [fill(label, 60) for label in labels]
    height = sum(0.32 + 0.14 * (label.count("\n") + 1) for label in labels)
    figure = Figure(figsize=(8.4, 1.9 + height), layout="constrained")
    axes = figure.subplots()
    best = rows[0]["log_px"]["mean"]
    style: dict[str, Any] = {"color": "black", "linestyle": "none", "markersize": 7}
    legend: dict[str, Any] = {}
    ends: list[float] = []
    intervals: list[float] = []
    for position, row in enumerate(rows):
        elbo, log_px = row["elbo"]["mean"], row["log_px"]["mean"]
        if elbo is None or log_px is None or not math.isfinite(elbo) or not math.isfinite(log_px):
            continue
        ends += [elbo, log_px]
        axes.plot([elbo, log_px], [position, position], color="0.55", linewidth=2, zorder=1)
        marker, name = (">", "log p(x), at least") if row["log_px"]["at_least"] else ("o", "log p(x)")
        (right,) = axes.plot(log_px, position, marker, **style)
        # Drawn above the filled marker: they coincide if every z is enumerated.
        (left,) = axes.plot(elbo, position, "o", markerfacecolor="white", **style | {"markersize": 5})
        legend |= {"ELBO": left, name: right}
        difference = row["log_px_difference"]
        if difference["low"] is not None:
            interval = [best + difference["low"], best + difference["high"]]
            line, name = _INTERVALS[difference["of"]]
            (bar,) = axes.plot(interval, [position + 0.28] * 2, f"k{line}", marker="|", markersize=5, linewidth=1)
            legend |= {name: bar}
            intervals += interval
    if intervals:
        dashed = axes.axvline(best, color="black", linestyle="--", linewidth=0.7, zorder=0)
        legend |= {"the first row: an interval across it may be chance": dashed}
        # An interval from few seeds can be very wide. It may extend beyond the axes.
        span = max(ends) - min(ends)
        low, high = max(min(intervals), min(ends) - span), min(max(intervals), max(ends) + span)
        low, high = min(low, *ends), max(high, *ends)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_yticks(range(len(rows)), labels, fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("nats per image")
    figure.suptitle(
        f"The gap between ELBO and log p(x), {images['num_images']} {images['split']} images of {images['data']}",
        fontsize=10,
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2, fontsize=8)
    return figure
