"""The figure of four runs of docs/results.md, from the numbers of their table: `python -m benchmarks.rows`.

Where the runs themselves are there, which take an hour, `python -m ppl_gen.compare --figure` draws the same.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppl_gen.core import cli
from ppl_gen.figures.comparison import bounds_and_log_px

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
HEADING = "## Guides and objectives at 40 epochs"
SHOWN = ("normal, elbo", "flow iaf, elbo", "normal, stl", "normal, iwae-50")


def table() -> dict[str, dict[str, Any]]:
    """The rows below the heading by guide and objective, each as `ppl_gen.compare` has it."""
    part = RESULTS.read_text(encoding="utf-8").partition(HEADING + "\n")[2].partition("\n| --- |")[2]
    rows = {}
    for line in part.partition("\n\n")[0].splitlines()[1:]:
        guide, objective, elbo, _, log_px, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        guide, objective = (
            cell.replace("`", "").replace(", K = ", "-").replace(",", "") for cell in (guide, objective)
        )
        (low, _), (high, se) = (map(float, re.findall(r"-?[\d.]+", each.replace("−", "-"))) for each in (elbo, log_px))
        errors = {"se": se, "se_seeds": None}
        rows[f"{guide}, {objective}"] = {"elbo": {"mean": low}, "log_px": {"mean": high, "at_least": True, **errors}}
        rows[f"{guide}, {objective}"]["log_px_difference"] = {"low": None}  # which the table does not have
    return rows


def draw() -> Figure:
    rows = {label: row for label, row in table().items() if label in SHOWN}
    best = sorted(rows, key=lambda label: -rows[label]["log_px"]["mean"])
    images = {"num_images": 10_000, "split": "test", "data": "mnist"}
    return bounds_and_log_px({"images": images, "rows": [rows[label] for label in best]}, best)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/guides_and_objectives.png"))
    given = parser.parse_args()
    draw().savefig(given.out, dpi=120)


if __name__ == "__main__":
    cli.main(lambda _: main())
