"""Gradient estimators for belief nets of several sizes: `python -m benchmarks.gradient_series`.

A belief net with the guide `bernoulli` is fitted for each number of units M. At its weights before and after training,
every estimator is compared with the exact gradient of the ELBO, as by `python -m ppl_gen.gradients`. Printed are the
squared bias and the variance of the guide's gradient, relative to the squared length of the exact one.
"""

import argparse
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, numbers
from benchmarks.pages import table as read_table
from ppl_gen.core import cli
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, NARROW, VERMILION, Name, name_lines, plain, styled
from ppl_gen.run import Run

Series = dict[str, dict[int, float]]
"""estimator -> M -> number"""
WHAT = {"variance": ("variance", "Unbiased", BLUE), "bias": ("squared bias", "Biased", VERMILION)}
"""What is in a table: its name, the estimators that are drawn, and their color."""


def measure(units: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The points of `gradients.json` for a net of so many units, before and after training."""
    out = given.runs / f"units-{units}"
    run = Run.fit(
        "belief-net", guide="bernoulli", model_options={"latent_dim": units}, data=given.data, epochs=given.epochs,
        num_samples=100, quiet=True, out=out,
    )  # fmt: skip
    found = run.gradients(initial=True, draws=given.draws, warm_up=given.warm_up, quiet=True)
    points: list[dict[str, Any]] = found.summary["points"]
    return points


def tables(found: dict[int, list[dict[str, Any]]]) -> str:
    """In markdown: variances and squared biases, before and after training."""
    printed = []
    for at, when in (("initial", "before training"), ("trained", "after training")):
        rows: dict[str, dict[int, dict[str, Any]]] = {}
        for units, points in found.items():
            for row in next(point for point in points if point["at"] == at)["rows"]:
                rows.setdefault(row["objective"], {})[units] = row["guide"]
        for what, (title, *_) in WHAT.items():
            shown = {
                n: of for n, of in rows.items() if what == "variance" or any(each["biased"] for each in of.values())
            }
            cells = ([f"`{name}`", *(_cell(of.get(m), what) for m in found)] for name, of in sorted(shown.items()))
            printed.append(markdown([f"{title}, {when}", *(f"M = {units}" for units in found)], cells))
    return "\n".join(printed)


def _cell(row: dict[str, Any] | None, what: str) -> str:
    if row is None:
        return ""
    if what == "variance":
        return _rounded(row["variance"], 2)
    return f"{_rounded(row['bias'], 2)} ± {_rounded(row['bias_se'], 1)}"


def _rounded(number: float, digits: int) -> str:
    """A number with so many digits that count, without an exponent."""
    return f"{Decimal(f'{number:.{digits}g}'):f}"


def from_tables() -> dict[str, Series]:
    """Variances and squared biases after training, from the tables in docs/."""
    found: dict[str, Series] = {}
    for what, (title, *_) in WHAT.items():
        header, *rows = read_table(f"{title}, after training")
        sizes = [int(cell.removeprefix("M = ")) for cell in header[1:]]
        found[what] = {
            row[0]: {m: numbers(cell)[0] for m, cell in zip(sizes, row[1:], strict=True) if cell} for row in rows
        }
    return found


@styled
def draw(found: dict[str, Series]) -> Figure:
    """Against the number of units, after training: the variance of estimators without bias, and the squared bias of the
    others."""
    figure = Figure(figsize=(NARROW, 6.4), layout="constrained")
    for axes, (what, (title, kind, color)) in zip(figure.subplots(2, 1), WHAT.items(), strict=True):
        names = []
        for name, of in found[what].items():
            if what == "variance" and name in found["bias"]:
                continue
            axes.plot(list(of), list(of.values()), "o-", color=color, markersize=3)
            names.append(Name(name, *list(of.items())[-1], color))
        axes.set_yscale("log")
        axes.set_xticks(sorted({m for of in found[what].values() for m in of}))
        axes.set_xlabel("units M")
        axes.set_ylabel(f"{title} / |exact gradient|²")
        axes.set_title(f"{kind} estimators: {title}")
        plain(axes.yaxis)
        axes.grid()
        name_lines(axes, names)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_series", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[4, 8, 12, 16], help="numbers of units M")
    parser.add_argument("--data", default="mnist", help="images (default mnist)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each net")
    parser.add_argument("--draws", type=int, default=500, help="draws of each gradient")
    parser.add_argument("--warm-up", type=int, default=600, help="steps of baselines alone, before the draws")
    parser.add_argument("--runs", type=Path, default=Path("runs/gradients"), help="where the runs go")
    parser.add_argument("--draw-only", type=Path, metavar="PNG", help="draw the numbers of the tables in docs/")
    given = parser.parse_args(arguments)
    if given.draw_only:
        draw(from_tables()).write(given.draw_only)
        return
    found = {}
    for units in given.units:
        found[units] = measure(units, given)
        print(f"M = {units} is done", flush=True)
    print(tables(found))


if __name__ == "__main__":
    cli.main(lambda _: main())
