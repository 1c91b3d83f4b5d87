"""How far the bound is from log p(x)."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

_LEAST = 0.02  # nats that an axis shows: closer than that is rounding


def bound_against_k(summary: dict[str, Any]) -> Figure:
    """The IWAE bound against k, from the ELBO at k = 1 to log p(x) at k = S, from an `evaluation.json`."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    exact = summary["log_px"] if summary["log_px"]["estimator"] == "exact" else summary.get("log_px_exact")
    importance = summary.get("log_px_importance", summary["log_px"])
    points = {int(k): entry["mean"] for k, entry in summary["iwae"].items()}
    points[importance["num_samples"]] = importance["mean"]
    k = sorted(points)
    axes.plot(k, [points[each] for each in k], "o-", color="black")
    level, label = importance["mean"], f"log p(x) ≥ {importance['mean']:.2f}, S = {importance['num_samples']}"
    if summary["log_px"]["estimator"] == "annealed":
        level = summary["log_px"]["mean"]
        label = f"log p(x) ≥ {level:.2f}, annealed"
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


def gap_histogram(gap: np.ndarray, untrusted: np.ndarray) -> Figure:
    """Histogram over images of log p(x) - ELBO in nats; images whose k-hat is too high or unknown are hatched. An
    infinite gap is not in it, but counted in the title."""
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
    axes.bar(bins[:-1], trusted, color="0.6", label="k-hat below its threshold" if untrusted.any() else None, **style)
    if untrusted.any():  # not where log p(x) is exact or annealed, which have no k-hat
        label = f"k-hat too high or unknown: at least ({untrusted.mean():.1%})"
        axes.bar(bins[:-1], rest, bottom=trusted, color="white", hatch="////", label=label, **style)
    axes.axvline(gap.mean(), color="black", linestyle="--", label=f"mean {gap.mean():.2f}")
    axes.set_xlabel("gap: log p(x) - ELBO, nats")
    axes.set_ylabel("images")
    axes.set_title("What the bound leaves out, image by image" + (f"; {infinite} infinite" if infinite else ""))
    axes.legend()
    return figure
