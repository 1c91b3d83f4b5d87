"""Several runs side by side."""

from typing import Any

from matplotlib.figure import Figure


def bounds_and_log_px(compared: dict[str, Any], labels: list[str]) -> Figure:
    """A line for each row from its ELBO to its log p(x), in nats per image, the best on top. The line is the gap.

    :param compared: what `ppl_gen.compare.compare` returns.
    :param labels: of its rows.
    """
    images, rows = compared["images"], compared["rows"]
    figure = Figure(figsize=(7.2, 1.7 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    error = "se_seeds" if all(row["log_px"]["se_seeds"] is not None for row in rows) else "se"
    style: dict[str, Any] = {"color": "black", "linestyle": "none", "markersize": 7}
    legend: dict[str, Any] = {}
    for height, row in enumerate(rows):
        elbo, log_px = row["elbo"]["mean"], row["log_px"]["mean"]
        if elbo is None or log_px is None:
            continue  # not finite
        axes.plot([elbo, log_px], [height, height], color="0.55", linewidth=2, zorder=1)
        bar = axes.errorbar(
            log_px, height, xerr=row["log_px"][error] or 0.0, color="black", linestyle="none", capsize=4, linewidth=1
        )
        marker, name = (">", "log p(x), at least") if row["log_px"]["at_least"] else ("o", "log p(x)")
        (right,) = axes.plot(log_px, height, marker, **style)
        # Above the filled marker: where every z is summed out the two are one.
        (left,) = axes.plot(elbo, height, "o", markerfacecolor="white", **style | {"markersize": 5})
        legend |= {
            "ELBO": left,
            name: right,
            "standard error over " + ("seeds" if error == "se_seeds" else "images"): bar,
        }
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("nats per image")
    figure.suptitle(
        f"The gap between ELBO and log p(x), {images['num_images']} {images['split']} images of {images['data']}",
        fontsize=10,
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), fontsize=8)
    return figure
