"""Learning curves of a stored sweep, by epochs and by time: `python -m benchmarks.learning_curves backward`.

`python -m benchmarks.reproduce backward` makes the sweep and stores what is drawn: the ELBO of validation images after
each epoch, and the processor time of a step of each run, taken in turn.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduce import RESULTS, Record, stored
from ppl_gen.core import cli
from ppl_gen.core.components import find
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, GREEN, NARROW, VERMILION, Name, name_lines, styled


def color(row: Record) -> str:
    """Blue for an unbiased gradient of the ELBO, vermilion for a biased one, green for other objectives."""
    objective = find("objective", row["objective"].rstrip("0123456789").rstrip("-"))
    return {"unbiased": BLUE, "biased": VERMILION}.get(getattr(objective, "elbo_gradient", ""), GREEN)


@styled
def draw(found: Record, shown: float = 12.0) -> Figure:
    """The validation ELBO of each row against epochs, and against minutes of one core.

    :param shown: nats below the highest ELBO that the picture shows.
    """
    figure = Figure(figsize=(NARROW, 7.2), layout="constrained")
    rows = found["rows"]
    best = max(row["epochs_elbo"]["validation"][-1] for row in rows.values())
    for axes, unit in zip(figure.subplots(2, 1), ("epochs", "minutes of one core"), strict=True):
        names, end = [], 0.0
        for label, row in rows.items():
            curve = row["epochs_elbo"]["validation"]
            width = 1 if unit == "epochs" else row["milliseconds"] * row["steps_per_epoch"] / 60_000
            places = [width * epoch for epoch in range(len(curve))]
            axes.plot(places, curve, "-", color=color(row), linewidth=1)
            names.append(Name(label, places[-1], max(curve[-1], best - shown), color(row)))
            end = max(end, places[-1])
        axes.set(xlim=(0, end), ylim=(best - shown, best + 0.5), xlabel=unit, ylabel="validation ELBO (nats)")
        axes.grid()
        name_lines(axes, names)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_curves", description=__doc__)
    sweeps = sorted(file.stem for file in RESULTS.glob("*.json") if "rows" in stored(file.stem))
    parser.add_argument("name", choices=sweeps, help="a sweep in benchmarks/results/")
    parser.add_argument("--shown", type=float, default=12.0, help="nats below the highest ELBO that are shown")
    parser.add_argument("--out", type=Path, help="default docs/figures/learning_NAME.png")
    given = parser.parse_args(arguments)
    if not 0 < given.shown < math.inf:
        parser.error(f"--shown {given.shown:g}: must be a number of nats above 0")
    out = given.out or Path(f"docs/figures/learning_{given.name.replace('-', '_')}.png")
    draw(stored(given.name), given.shown).write(out)


if __name__ == "__main__":
    cli.main(main)
