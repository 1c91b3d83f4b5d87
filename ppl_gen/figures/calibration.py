"""Estimators of log p(x) compared with the exact value."""

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, GREEN, VERMILION, WIDTH, plain, styled


@styled
def calibration(rows: list[Json]) -> Figure:
    """Bias ± 1.96 standard errors, root-mean-square error and coverage of the 95 % interval of each sampling estimator,
    from the rows of `ppl_gen.calibrate`, below the name of each model."""
    rows = [row for row in rows if row["coverage"] is not None]
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [line for model in models for line in (None, *(row for row in rows if row["model"] == model))]
    names = [row["estimator"] if row else "" for row in lines]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.2 * len(lines)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True)
    heights = [height for height, row in enumerate(lines) if row is not None]
    rows = [row for row in lines if row is not None]
    errors = [1.96 * row["bias_se"] for row in rows]
    left.errorbar([row["bias"] for row in rows], heights, xerr=errors, fmt="o", color=BLUE)
    left.axvline(0, color="0.5", linewidth=1)
    left.set_xscale("symlog", linthresh=0.01)
    left.margins(x=0.12)
    left.set_xlabel("bias, nats")
    left.set_yticks(range(len(lines)), names)
    left.tick_params(axis="y", length=0)
    left.set_ylim(len(lines) - 0.5, -0.5)
    middle.plot([row["rmse"] for row in rows], heights, "s", color=VERMILION)
    middle.set_xscale("log")
    middle.set_xlabel("RMSE, nats")
    right.plot([row["coverage"] for row in rows], heights, "^", color=GREEN)
    right.axvline(0.95, color="0.5", linestyle="--", linewidth=1)
    right.set_xlim(min(0.85, *(row["coverage"] - 0.02 for row in rows)), 1.005)
    right.set_xlabel("coverage")
    for model, top in zip(models, (height for height, row in enumerate(lines) if row is None), strict=True):
        left.text(0, top, model, transform=left.get_yaxis_transform(), va="center", fontweight="bold")
    for axes in (left, middle):
        plain(axes.xaxis)
        axes.tick_params(axis="x", labelrotation=45)
    for axes in (left, middle, right):
        axes.grid(axis="x")
    return figure
