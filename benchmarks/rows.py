"""The figure of four runs of docs/results-guides.md, from the numbers of their table: `python -m benchmarks.rows`.

Where the runs themselves are there, which take an hour, `python -m ppl_gen.compare --figure` draws the same.
"""

import argparse
from pathlib import Path

from benchmarks import pages
from ppl_gen.core import cli
from ppl_gen.evaluation.distances import Distance, Distances, Level
from ppl_gen.evaluation.reading import Images
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.distances import how_far

COLUMNS = ("guide", "objective", "ELBO", "IWAE bound, k = 100")
SHOWN = ("normal, elbo", "flow iaf, elbo", "normal, stl", "normal, iwae-50")


def table() -> list[Distance]:
    """The rows of the table, as the picture of a comparison has them. The table has no values of single images,
    and so there are no intervals."""
    rows = []
    for cells in pages.table(*COLUMNS)[1:]:
        guide, objective = (cell.replace(", K = ", "-").replace(",", "") for cell in cells[:2])
        elbo, iwae, log_px, gap = (pages.numbers(cell)[0] for cell in (*cells[2:5], cells[7]))
        levels = [
            Level("elbo", "ELBO", elbo, None),
            Level("iwae", "IWAE-100", iwae, None),
            Level("importance", "importance sampling, S = 5000", log_px, None, at_least=True),
        ]
        rows.append(Distance(f"{guide}, {objective}", levels, [], gap, gap_at_least=True))
    return rows


def draw() -> Figure:
    rows = sorted((row for row in table() if row.label in SHOWN), key=lambda row: -row.levels[-1].mean)
    return how_far(Distances(Images("mnist", "test", 10_000, "dynamic", "probability"), rows, rows[0].best))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/guides_and_objectives.png"))
    given = parser.parse_args()
    draw().write(given.out)


if __name__ == "__main__":
    cli.main(lambda _: main())
