import argparse
import json
import platform
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks import enumeration, importance, vae_step
from benchmarks.timing import Comparison
from ppl_gen.core.memory import keep_freed_memory

_ABOUT = """Training steps, importance sampling and enumeration against hand-written PyTorch and stock Pyro, as ratios
of medians of interleaved calls. Where the time goes: python -m benchmarks.profiles; how it grows: python -m
benchmarks.growth."""


def markdown(comparisons: list[Comparison]) -> str:
    """One table of each."""
    tables = []
    for comparison in comparisons:
        rows = [f"| {comparison.title} | ms | ratio |", "| --- | --- | --- |"]
        for name, ratio in comparison.ratios().items():
            rows.append(f"| {name} | {1e3 * comparison.seconds[name]:.2f} | {ratio:.2f} |")
        tables.append("\n".join(rows) + "\n")
    return "\n".join(tables)


def draw(comparisons: list[Comparison]) -> Figure:
    """The ratios to each reference, on a logarithmic scale."""
    rows: list[tuple[str, float | None]] = []
    for comparison in (each for each in comparisons if len(each.seconds) > 1):
        rows.append((comparison.title, None))
        rows += [(name, ratio) for name, ratio in comparison.ratios().items() if name != comparison.reference]
    figure = Figure(figsize=(10, 0.26 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    for position, (_, ratio) in enumerate(rows):
        if ratio is not None:
            axes.plot([1, ratio], [-position, -position], color="0.7", zorder=1)
            axes.plot([ratio], [-position], "ko", markersize=5)
            side, align = (6, "left") if ratio >= 1 else (-6, "right")  # away from the line
            axes.annotate(
                f"{ratio:.2f}", (ratio, -position), (side, -3), textcoords="offset points", fontsize=8, ha=align
            )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.02)
    axes.set_yticks([-position for position in range(len(rows))], [name for name, _ in rows], fontsize=8)
    for label, (_, ratio) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if ratio is None else "normal")
    axes.set_xlabel("time, as a multiple of the first row's of the same block in the table (logarithmic)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_ABOUT)
    parser.add_argument("--rounds", type=int, default=400, help="calls of each candidate (default 400)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where speed.md, speed.json and speed.png go")
    parser.add_argument("--compile", action="store_true", help="torch.compile the hand-written step as well")
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; medians")
    keep_freed_memory()  # for all candidates alike: training and evaluation do the same
    shown = vae_step.main(given.rounds, given.compile)
    shown += importance.main(given.rounds) + enumeration.main(given.rounds)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "speed.md").write_text(markdown(shown), encoding="utf-8")
        (given.out / "speed.json").write_text(json.dumps([each._asdict() for each in shown], indent=1))
        draw(shown).savefig(given.out / "speed.png", dpi=120)


if __name__ == "__main__":
    main()
