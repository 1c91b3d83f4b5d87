"""Do rows have the same order on MNIST and on Fashion-MNIST? `python -m benchmarks.two_data_sets`.

For each table of docs/results-fashion.md: Kendall's tau between log p(x) of its rows and of the same rows on MNIST, and
the figure of both. The numbers are those of stored sweeps.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import kendalltau

from benchmarks.reproduce import stored
from ppl_gen.core import cli
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, NARROW, VERMILION, styled

TABLES = {
    "guides and objectives": ("guides", "fashion"),
    "priors (guide, prior), 20 units": ("priors", "fashion-priors"),
    "priors (guide, prior), 50 units": ("priors-50", "fashion-priors-50"),
    "gradients for one layer of binary units": ("one-layer", "fashion-one-layer"),
}
"""The sweeps on MNIST and on Fashion-MNIST."""
Values = dict[str, tuple[float, float]]
"""log p(x) of each row on MNIST and on Fashion-MNIST, in nats, the best on Fashion-MNIST first."""


def values(mnist: str, fashion: str) -> Values:
    """log p(x) of the rows of the table on Fashion-MNIST, which are rows of that on MNIST, too."""
    first, second = _of_sweep(mnist), _of_sweep(fashion)
    return {label: (first[label], second[label]) for label in sorted(second, key=lambda each: -second[each])}


def _of_sweep(name: str) -> dict[str, float]:
    return {label: row["log_px"]["mean"] for label, row in stored(name)["rows"].items()}


def agreement(table: Values) -> float:
    """Kendall's tau: 1 for the same order, -1 for the opposite one.

    >>> agreement({"a": (-1.0, -10.0), "b": (-2.0, -20.0), "c": (-3.0, -15.0)})
    0.3333
    """
    return round(float(kendalltau(*zip(*table.values(), strict=True)).statistic), 4)


def lines(tables: dict[str, Values]) -> list[str]:
    """What the command prints: how far the two orders of each table agree."""
    found = []
    for title, table in tables.items():
        pairs = math.comb(len(table), 2)
        turned = round(pairs * (1 - agreement(table)) / 2)
        found.append(f"{title}: tau {agreement(table):.2f}; {turned} of {pairs} pairs of rows have the other order")
    return found


@styled
def draw(tables: dict[str, Values]) -> Figure:
    """For each table a panel, with a line for each row: how far log p(x) is below the best row's, on both data sets."""
    sizes = [len(table) + 1.5 for table in tables.values()]
    figure = Figure(figsize=(NARROW, 0.2 * sum(sizes) + 1.2), layout="constrained")
    panels = figure.subplots(len(tables), 1, height_ratios=sizes, squeeze=False)[:, 0]
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        best = [max(column) for column in zip(*table.values(), strict=True)]
        below = [[value - top for value, top in zip(pair, best, strict=True)] for pair in table.values()]
        for place, pair in enumerate(below):
            axes.plot(pair, [place, place], "-", color="0.75", linewidth=1, zorder=1)
        for number, (name, mark, color) in enumerate((("MNIST", "o", BLUE), ("Fashion-MNIST", "s", VERMILION))):
            nats = [pair[number] for pair in below]
            axes.plot(nats, range(len(nats)), mark, color=color, markerfacecolor=("white", color)[number], label=name)
        axes.set(yticks=range(len(table)), yticklabels=list(table), title=title, ylim=(len(table) - 0.5, -0.5))
        axes.grid(axis="x")
    panels[0].legend(loc="upper left")
    panels[-1].set_xlabel("log p(x) less that of the best row (nats)")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_data_sets", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/two_data_sets.png"))
    given = parser.parse_args(arguments)
    tables = {title: values(*sweeps) for title, sweeps in TABLES.items()}
    print("\n".join(lines(tables)))
    draw(tables).write(given.out)


if __name__ == "__main__":
    cli.main(main)
