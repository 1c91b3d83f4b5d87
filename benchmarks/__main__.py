import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.transforms import blended_transform_factory

from benchmarks import enumeration, importance, pages, vae_step
from benchmarks.pages import numbers, tables
from benchmarks.timing import Comparison, machine
from ppl_gen.core.files import make_folder
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, NARROW, SMALL, VERMILION, plain, styled

_ABOUT = """Training steps, importance sampling and enumeration against hand-written PyTorch and stock Pyro, as ratios
of medians of interleaved calls. Where the time goes: python -m benchmarks.profiles; how it grows: python -m
benchmarks.growth."""


def markdown(comparisons: list[Comparison]) -> str:
    """One table of each."""
    printed = []
    for comparison in comparisons:
        ratios = comparison.ratios().items()
        rows = [[name, f"{1e3 * comparison.seconds[name]:.2f}", f"{ratio:.2f}"] for name, ratio in ratios]
        printed.append(pages.markdown([comparison.title, "ms", "ratio"], rows))
    return "\n".join(printed)


def from_tables() -> list[Comparison]:
    """The comparisons of the tables in docs/speed*.md: milliseconds, and the ratios of further runs."""
    found = []
    for header, *rows in tables():
        if header[1:3] == ["ms", "ratio"]:
            first = numbers(rows[0][1])[0] / 1e3
            seconds = {row[0]: numbers(row[2])[0] * first for row in rows}
            more = {row[0]: numbers(row[3].replace(", ", " ")) for row in rows if row[3:] and row[3]}
            found.append(Comparison(header[0], seconds, rows[0][0], more))
    return found


@styled
def draw(comparisons: list[Comparison]) -> Figure:
    """Ratios to the reference of each block, over the range of further runs: on a linear axis, and below it the blocks
    with large ratios on a logarithmic one. The second line of a block says what 1 is."""
    shown = [each for each in comparisons if len(each.seconds) > 1]
    groups = [[each for each in shown if (max(each.ratios().values()) > _LARGE) == large] for large in (False, True)]
    rows = [sum(len(each.seconds) + 1.5 for each in group) for group in groups]
    high = sum(_ROW * each + _AXIS for each in rows if each)
    figure = Figure(figsize=(NARROW, high))
    top = high
    for large, (group, count) in enumerate(zip(groups, rows, strict=True)):
        if group:
            top -= _ROW * count
            axes = figure.add_axes((0.56, top / high, 0.38, _ROW * count / high))
            top -= _AXIS
            axes.set_xscale("log" if large else "linear")
            _blocks(axes, group, count)
            axes.set_xlabel("time, as a multiple of the reference", loc="right")
            if large:
                plain(axes.xaxis)
    return figure


_LARGE, _ROW, _AXIS = 5.0, 0.175, 0.5
"""The ratio from which a block is on a logarithmic axis; height of a row and of the numbers below an axis in inches."""


def _blocks(axes: Any, comparisons: list[Comparison], count: float) -> None:
    """The rows of several comparisons, below each other."""
    left = blended_transform_factory(axes.figure.transFigure, axes.transData)
    axes.set_ylim(count, 0)
    axes.set_yticks([])
    axes.margins(x=0.2)
    axes.spines["left"].set_visible(False)
    top = 0.6
    for each in comparisons:
        axes.text(0.01, top, each.title, transform=left, va="center", fontweight="bold")
        reference = f"1 = {each.reference}, {_milliseconds(each.seconds[each.reference])}"
        axes.text(0.01, top + 1, reference, transform=left, va="center", color="0.35")
        others = [name for name in each.seconds if name != each.reference]
        for number, name in enumerate(others, start=2):
            _row(axes, left, top + number, name, each)
        axes.plot([1, 1], [top + 1.5, top + 1.5 + len(others)], color="black", linewidth=0.8, zorder=1)
        top += len(each.seconds) + 1.5


def _row(axes: Any, left: Any, height: float, name: str, comparison: Comparison) -> None:
    """A ratio: its name, its mark, a line from 1, and a bar over all runs."""
    ratio, stock = comparison.ratios()[name], name.startswith("stock")
    color, marker = (VERMILION, "s") if stock else (BLUE, "o")
    every = [ratio, *comparison.more.get(name, [])]
    axes.text(0.03, height, name, transform=left, va="center", fontsize=SMALL)
    axes.plot([1, ratio], [height, height], color="0.75", zorder=0.5)
    axes.plot([min(every), max(every)], [height, height], color=color, linewidth=1, marker="|", markersize=6)
    axes.plot(ratio, height, marker, color=color)
    right = ratio >= 1
    axes.annotate(
        f"{ratio:,.2f}" if ratio < 100 else f"{ratio:,.0f}",
        (max(every) if right else min(every), height),
        xytext=(6 if right else -6, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=SMALL,
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_ABOUT)
    parser.add_argument("--rounds", type=int, default=400, help="calls of each candidate (default 400)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where speed.md, speed.json and speed.png go")
    parser.add_argument("--compile", action="store_true", help="torch.compile the hand-written step as well")
    parser.add_argument(
        "--draw-only", type=Path, metavar="PNG", help="draw the numbers of the tables in docs/speed*.md"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (default cpu)")
    given = parser.parse_args()
    if given.draw_only:
        draw(from_tables()).write(given.draw_only)
        return
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; leave this option out")
    torch.set_default_device(given.device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {machine()}; medians")
    keep_freed_memory()  # for all candidates alike: training and evaluation do the same
    shown = vae_step.main(given.rounds, given.compile)
    shown += importance.main(given.rounds) + enumeration.main(given.rounds)
    if given.out:
        make_folder(given.out)
        (given.out / "speed.md").write_text(markdown(shown), encoding="utf-8")
        (given.out / "speed.json").write_text(json.dumps([asdict(each) for each in shown], indent=1))
        draw(shown).write(given.out / "speed.png")


if __name__ == "__main__":
    main()
