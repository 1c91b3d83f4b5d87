"""How far the ELBO, the IWAE bounds and importance sampling lie from the exact log p(x), against the number of units
of a belief net: `python -m benchmarks.gap`.

For each M a belief net and its Bernoulli guide are fitted to statically binarized images and evaluated, with 1,000
samples per image and by enumeration. Fits that are there already are not made again.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import markdown, numbers, table
from ppl_gen.core import cli
from ppl_gen.core.files import make_folder
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import LINES, NARROW, Name, name_lines, plain, styled
from ppl_gen.run import Run


def fitted(units: int, out: Path, data: str, epochs: int, num_samples: int) -> dict[str, Any]:
    """The `evaluation.json` of a belief net with M units."""
    path = out / f"belief-net-{units}"
    if (path / "evaluation.json").exists():
        run = RunDirectory.open(path)
    else:
        run = Run.start(
            Config(
                "belief-net",
                {"latent_dim": units},
                "bernoulli",
                {},
                data=DataOptions(data, "static"),
                training=TrainingOptions(epochs=epochs, **training_defaults("belief-net")),
                num_samples=num_samples,
            ),
            out=path,
            quiet=True,
        ).directory
    summary = run.read_json("evaluation.json")
    assert summary is not None
    return summary


Misses = dict[str, dict[int, float]]
"""name of a bound -> M -> exact log p(x) - bound in nats"""


def misses(summaries: dict[int, dict[str, Any]]) -> Misses:
    """What each bound misses, from the `evaluation.json` of each M."""
    samples = sorted(int(k) for k in next(iter(summaries.values()))["iwae"])
    names = {k: "ELBO" if k == 1 else f"IWAE bound, k = {k:,}" for k in samples} | {
        samples[-1]: f"importance sampling, S = {samples[-1]:,}"
    }
    return {
        names[k]: {m: s["log_px"]["mean"] - s["iwae"][str(k)]["mean"] for m, s in sorted(summaries.items())}
        for k in samples
    }


def to_table(summaries: dict[int, dict[str, Any]]) -> str:
    """In markdown: log p(x) of each M, and what each bound misses, with more digits for more samples."""
    found = misses(summaries)
    titles = [f"less {'log p(x) by' if name.startswith('importance') else 'the'} {name}" for name in found]
    rows = [
        [str(m), f"{s['log_px']['mean']:.2f} ± {s['log_px']['se']:.2f}"]
        + [_rounded(gaps[m], min(digits, 4)) for digits, gaps in enumerate(found.values(), start=2)]
        for m, s in summaries.items()
    ]
    return markdown(["M", "exact log p(x)", *titles], rows)


def _rounded(value: float, digits: int) -> str:
    """A number as text; what is 0 to these digits has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def from_table() -> Misses:
    """The same from the table of docs/results*.md."""
    header, *rows = table("M", "exact log p(x)")
    names = [re.sub("^less (the )?(log p.x. by )?", "", cell) for cell in header[2:]]
    return {name: {int(row[0]): numbers(row[index])[0] for row in rows} for index, name in enumerate(names, start=2)}


@styled
def draw(found: Misses) -> Figure:
    """exact log p(x) - bound in nats against M, a line for each bound. What is 0 to all digits has no mark."""
    figure = Figure(figsize=(NARROW, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")
    names = []
    for (name, gaps), style in zip(found.items(), LINES, strict=False):
        points = [(m, gap) for m, gap in gaps.items() if gap > 0]
        axes.plot(*zip(*points, strict=True), **style)
        names.append(Name(name.replace(", ", "\n"), *points[-1], style["color"]))
    axes.set_xlabel("M, binary units")
    axes.set_ylabel("exact log p(x) − bound, nats")
    axes.set_xticks(list(next(iter(found.values()))))
    plain(axes.yaxis)
    axes.grid()
    name_lines(axes, names)
    axes.set_title("What each bound of a belief net misses")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[2, 4, 6, 8, 10, 12, 14, 16], help="values of M")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/gap"), help="where the fits are")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/gap_against_units.png"))
    parser.add_argument("--draw-only", action="store_true", help="draw the numbers of the table in docs/")
    given = parser.parse_args(arguments)
    make_folder(given.out.parent)
    if given.draw_only:
        draw(from_table()).write(given.out)
        return
    summaries = {}
    for units in given.units:
        summaries[units] = fitted(units, given.runs, given.data, given.epochs, given.num_samples)
        print(f"M = {units} is done", flush=True)
    print("\n" + to_table(summaries))
    draw(misses(summaries)).write(given.out)


if __name__ == "__main__":
    cli.main(lambda _: main())
