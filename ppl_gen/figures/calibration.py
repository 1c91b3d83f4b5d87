"""Estimators of log p(x) compared with the exact value."""

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure


def calibration(rows: list[Json]) -> Figure:
    """Bias, root-mean-square error and coverage of each sampling estimator, from the rows of `ppl_gen.calibrate`."""
    rows = [row for row in rows if row["coverage"] is not None]
    figure = Figure(figsize=(11, 1.4 + 0.32 * len(rows)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    heights = range(len(rows))
    errors = [1.96 * row["bias_se"] for row in rows]
    left.errorbar([row["bias"] for row in rows], heights, xerr=errors, fmt="ko", capsize=3, markersize=4)
    left.axvline(0, color="0.5", linewidth=1)
    left.set_xscale("symlog", linthresh=0.01)
    left.margins(x=0.12)
    left.set_xlabel("bias ± 1.96 s.e., nats", fontsize=9)
    left.set_yticks(heights, [f"{row['model']}: {row['estimator']}" for row in rows], fontsize=8)
    left.set_ylim(len(rows) - 0.5, -0.5)
    middle.plot([row["rmse"] for row in rows], heights, "ks", markersize=5)
    middle.set_xscale("log")
    middle.set_xlabel("root-mean-square error, nats", fontsize=9)
    right.plot([row["coverage"] for row in rows], heights, "k^", markersize=6)
    right.axvline(0.95, color="0.5", linestyle="--", linewidth=1)
    right.set_xlim(min(0.85, *(row["coverage"] - 0.02 for row in rows)), 1.005)
    right.set_xlabel("coverage of the 95 % interval", fontsize=9)
    for axes in (left, middle, right):
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="x", labelsize=7)
    figure.suptitle("Estimates of log p(x) against the exact value", fontsize=10)
    return figure
