"""The distance of the bound from log p(x)."""

from typing import Any

import numpy as np

from ppl_gen.core.tables import fixed
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.captions import Caption

CAPTIONS = {
    "bound_against_k": Caption(
        "The IWAE bound against its number of samples k, with the ELBO at k = 1; dashed, log p(x)", "A line that rises"
    ),
    "gap_histogram": Caption(
        "What the bound leaves out, image by image; hatched, if there, where log p(x) is not settled and the gap at "
        "least this",
        "A histogram over images of log p(x) - ELBO",
    ),
}

_LEAST = 0.02  # smallest range of an axis in nats: differences below it are rounding


def captions(summary: Json) -> dict[str, Caption]:
    """`CAPTIONS` with numbers from an `evaluation.json`."""
    importance = summary.get("log_px_importance") or summary["log_px"]
    elbo, log_px, gap = (fixed(entry["mean"]) for entry in (summary["elbo"], importance, summary["gap"]))
    numbers = {
        "bound_against_k": f" from {elbo} nats at k = 1 to {log_px} at k = {importance['num_samples']}",
        "gap_histogram": f"; its mean is {gap} nats",
    }
    return {name: caption.with_numbers(numbers[name]) for name, caption in CAPTIONS.items()}


def bound_against_k(summary: Json) -> Figure:
    """The IWAE bound against k, from the ELBO at k = 1 to log p(x) at k = S, from an `evaluation.json`."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    exact = summary["log_px"] if summary["log_px"]["estimator"] == "exact" else summary.get("log_px_exact")
    importance = summary.get("log_px_importance") or summary["log_px"]
    points = {int(k): entry["mean"] for k, entry in summary["iwae"].items()}
    points[importance["num_samples"]] = importance["mean"]
    k = sorted(points)
    axes.plot(k, [points[each] for each in k], "o-", color="black")
    level, label = importance["mean"], f"log p(x) ≥ {importance['mean']:.2f}, S = {importance['num_samples']}"
    others = [summary[key] for key in ("log_px", "log_px_annealed") if key in summary]
    annealed = [entry["mean"] for entry in others if entry["estimator"] == "annealed"]
    if annealed and annealed[0] > level:  # both are low in expectation, so the larger is nearer
        level, label = annealed[0], f"log p(x) ≥ {annealed[0]:.2f}, annealed"
    if exact is None and summary["gap"]["mean"] is not None:
        largest = summary["elbo"]["mean"] + summary["gap"]["mean"]
        if largest > level + _LEAST:
            level, label = largest, f"log p(x) ≥ {largest:.2f}, the largest of several estimates"
    if exact is not None:
        level, label = exact["mean"], f"log p(x) = {exact['mean']:.2f}, exact"
    axes.axhline(level, linestyle="--", color="0.4", linewidth=1)
    axes.annotate(
        f"ELBO {summary['elbo']['mean']:.2f}", (1, points[1]), xytext=(8, -3), textcoords="offset points", va="top"
    )
    axes.annotate(label, (1, level), xytext=(8, 3), textcoords="offset points", va="bottom")
    axes.set_xscale("log")
    low, high = min(*points.values(), level), max(*points.values(), level)
    pad = max(0.15 * (high - low), _LEAST / 2)
    axes.set_ylim(low - pad, high + pad)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("k, importance samples in the bound")
    axes.set_ylabel("nats per image")
    axes.set_title(f"IWAE bound, {summary['num_images']} {summary['split']} images of {summary['data']}")
    axes.grid(alpha=0.3)
    return figure


def gap_histogram(gap: np.ndarray, untrusted: np.ndarray, at_least: bool = False) -> Figure:
    """Histogram over images of log p(x) - ELBO in nats. Images whose log p(x) is only a lower bound are hatched.
    Infinite gaps are counted in the title alone.

    :param at_least: True if the mean is only a lower bound, even if no single image is known to be.
    """
    finite = np.isfinite(gap)
    infinite = int((~finite).sum())
    gap, untrusted = (gap[finite], untrusted[finite]) if finite.any() else (np.zeros(1), np.zeros(1, bool))
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    spread = (gap.min(), max(gap.max(), gap.min() + _LEAST))
    bins = np.histogram_bin_edges(gap, bins=min(60, max(5, len(gap) // 10)), range=spread)
    trusted, _ = np.histogram(gap[~untrusted], bins)
    rest, _ = np.histogram(gap[untrusted], bins)
    style: dict[str, Any] = {"width": np.diff(bins), "align": "edge", "edgecolor": "black", "linewidth": 0.4}
    shown = "log p(x) settled" if untrusted.any() else "at least" if at_least else None
    axes.bar(bins[:-1], trusted, color="0.6", label=shown, **style)
    if untrusted.any():
        label = f"not settled: at least ({untrusted.mean():.1%})"
        axes.bar(bins[:-1], rest, bottom=trusted, color="white", hatch="////", label=label, **style)
    axes.axvline(gap.mean(), color="black", linestyle="--", label=f"mean {gap.mean():.2f}")
    axes.set_xlabel("gap: log p(x) - ELBO, nats")
    axes.set_ylabel("images")
    axes.set_title("What the bound leaves out, image by image" + (f"; {infinite} infinite" if infinite else ""))
    axes.legend(loc="best")
    return figure
