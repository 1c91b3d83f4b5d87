"""Seconds and bytes of an exact gradient against the number of latent states: `python -m benchmarks.wall`.

The gradient of -log p(x) for N = 100 images of D = 784 pixels: of a belief net with M = 1, 2, … units, summed in three
ways, and of a mixture with K = 2^M components. Every measurement is a process of its own. A way of summing stops where
a gradient would take more than 10 GB or took more than a minute, or where it fails. Other work on the same cores
distorts the short ones by far more than its share; OMP_NUM_THREADS=1 makes them less sensitive.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from matplotlib.ticker import FuncFormatter

from benchmarks import enumeration
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, GREEN, NARROW, VERMILION, styled
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture

WAYS = {
    "sites": "stock Pyro, M sites",
    "broadcast": "stock Pyro, one site",
    "ours": "ppl_gen",
    "mixture": "ppl_gen, mixture",
}
_STYLES: dict[str, dict[str, Any]] = {
    "sites": {"color": VERMILION, "marker": "x", "linestyle": ":", "markeredgewidth": 1.3},
    "broadcast": {"color": VERMILION, "marker": "s", "linestyle": "--", "markerfacecolor": "white", "markersize": 6},
    "ours": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "mixture": {"color": GREEN, "marker": "^", "linestyle": "-."},
}
_NAMES = {
    "broadcast": ("stock Pyro\n(□ one site,\n× M sites)", 0.55, (-14, 16), "right"),
    "mixture": ("ppl_gen, mixture of 2^M components", 0.13, (10, -14), "left"),
    "ours": ("ppl_gen", 0.75, (12, -8), "left"),
}
"""Name of a line, the share of the line where it is written, its distance in points and its alignment."""
_LIMIT = 10.0
"""Seconds."""
_MOST = {"seconds": 60.0, "bytes": 10e9}


def measure(way: str, units: int, num_images: int = 100, pixels: int = 784) -> dict[str, float]:
    """Median seconds of a gradient after a first one, and bytes of peak memory beyond those before the first.

    Up to five gradients, or as many as fit into two seconds, at least one; none after a first one that took more than a
    minute.
    """
    torch.manual_seed(0)
    keep_freed_memory()  # as training and evaluation do
    x = torch.bernoulli(torch.rand(num_images, pixels))
    model: Any
    if way == "mixture":
        model = Mixture(pixels, num_components=2**units)
    else:
        model = BeliefNet(pixels, latent_dim=units, init_scale=0.1)
    candidates = {"sites": enumeration.separate_sites, "broadcast": enumeration.broadcast}
    parameters = list(model.parameters())
    times: list[float] = []
    with pyro.validation_enabled(False):
        loss = candidates.get(way, enumeration.ours)(model, x)
        before = _peak_memory(reset=True)
        while len(times) < 2 or (len(times) < 6 and sum(times[1:]) < 2):
            start = time.perf_counter()
            torch.autograd.grad(loss(), parameters)
            times.append(time.perf_counter() - start)
            if times[0] > _MOST["seconds"]:
                break
    return {"seconds": statistics.median(times[1:] or times), "bytes": _peak_memory() - before}


def _peak_memory(reset: bool = False) -> int:
    """Bytes; of this process alone, where `ru_maxrss` starts at the parent's. Linux only.

    :param reset: let the peak start anew from what is resident now.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def _in_own_process(way: str, units: int) -> dict[str, float]:
    """`measure`; raises RuntimeError with the last line of what the process said if it fails."""
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.wall", "--measure", way, str(units)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    if made.returncode < 0:
        raise RuntimeError(f"killed by signal {-made.returncode}")
    if made.returncode:
        raise RuntimeError((made.stderr.strip().splitlines() or [f"exit status {made.returncode}"])[-1])
    result: dict[str, float] = json.loads(made.stdout)
    return result


def climb(
    way: str, max_units: int, measured: Callable[[str, int], dict[str, float]] = _in_own_process
) -> dict[str, Any]:
    """Measurements at M = 1, 2, … and why there are no more."""
    points: list[dict[str, float]] = []
    stop = f"M = {max_units} is the last one tried"
    for units in range(1, max_units + 1):
        last = points[-1] if points else {"seconds": 0.0, "bytes": 0.0}
        if 2 * last["bytes"] > _MOST["bytes"]:
            stop = f"memory: M = {units} would take {2 * last['bytes'] / 1e9:.1f} GB"
            break
        if last["seconds"] > _MOST["seconds"]:
            stop = f"time: M = {units - 1} took {last['seconds']:.0f} s"
            break
        try:
            points.append({"units": units, **measured(way, units)})
        except RuntimeError as error:
            stop = f"M = {units}: {error}"
            break
        print(
            f"{WAYS[way]:<22}M = {units:2d}{points[-1]['seconds']:12.4f} s{points[-1]['bytes'] / 1e6:12.1f} MB",
            flush=True,
        )
    return {"points": points, "stop": stop}


def slope(points: list[dict[str, float]], key: str) -> float | None:
    """Doublings of `key` per unit: the slope of its log2 against M, or None for fewer than three points.

    Over those points with more than fifty times the value of the first: beyond the constant overhead, and beyond M = 6,
    after which an array of stock Pyro's outgrows the 32 MiB that glibc's malloc reuses, a jump in time but no growth.
    """
    upper = [point for point in points if point[key] > 50 * points[0][key]]
    if len(upper) < 3:
        return None
    return float(np.polyfit([point["units"] for point in upper], [math.log2(point[key]) for point in upper], 1)[0])


@styled
def draw(results: dict[str, Any]) -> Figure:
    """Seconds and memory against M, both on logarithmic axes. The largest M within ten seconds are marked."""
    figure = Figure(figsize=(NARROW, 6.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, height_ratios=[1.25, 1])
    last = max((point["units"] for result in results.values() for point in result["points"]), default=1)
    for axes, key, unit in zip(panels, ("seconds", "bytes"), ("time of a gradient", "memory at the peak"), strict=True):
        axes.set_yscale("log")
        for way, result in results.items():
            points = [(point["units"], point[key]) for point in result["points"] if point[key] > 0]
            if points:
                axes.plot(*zip(*points, strict=True), **_STYLES[way])
        axes.set_ylabel(unit)
        axes.set_xlim(0, last + 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, key=key: _in_words(value, key)))
        axes.grid()
        axes.minorticks_off()
    if panels[0].lines:
        _name(panels[0], results)
        _mark(panels[0], results)
    panels[1].set_xlabel("M, binary units")
    above = panels[0].secondary_xaxis("top")
    ticks = [units for units in (4, 8, 12, 16, 20, 24) if units <= last]
    above.set_xticks(ticks, [_states(units) for units in ticks])
    above.set_xlabel("states, 2^M")
    figure.suptitle(_message(results))
    return figure


def within(results: dict[str, Any], *ways: str) -> int | None:
    """The largest M whose gradient takes at most ten seconds, by any of these ways; None if there is none."""
    points = [point for way in ways if way in results for point in results[way]["points"]]
    return max((int(point["units"]) for point in points if point["seconds"] <= _LIMIT), default=None)


def _message(results: dict[str, Any]) -> str:
    stock, ours = within(results, "sites", "broadcast"), within(results, "ours")
    if stock is None or ours is None:
        return "Exact gradient of -log p(x)"
    return f"In ten seconds: stock Pyro $2^{{{stock}}}$ states, ppl_gen $2^{{{ours}}}$"


def _mark(axes: Any, results: dict[str, Any]) -> None:
    """A line at ten seconds, and rings around the last points below it, with their states."""
    axes.axhline(_LIMIT, color="0.4", linestyle=":")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 2, top=_LIMIT * 6)
    for ways, color in ((("sites", "broadcast"), VERMILION), (("ours",), BLUE)):
        units = within(results, *ways)
        if units is None:
            continue
        seconds = min(
            p["seconds"] for way in ways if way in results for p in results[way]["points"] if p["units"] == units
        )
        axes.plot(units, seconds, "o", markersize=11, markerfacecolor="none", color=color, markeredgewidth=1.6)
        axes.annotate(
            f"$2^{{{units}}}$ states",
            (units, seconds),
            xytext=(0, 12),
            textcoords="offset points",
            ha="right" if units > 18 else "center",
            color=color,
            fontweight="bold",
        )


def _name(axes: Any, results: dict[str, Any]) -> None:
    """Names beside the lines: at a share of their length, on the side where there is room."""
    for way, (name, share, shift, align) in _NAMES.items():
        points = results[way]["points"] if way in results else []
        if points:
            point = points[min(len(points) - 1, round(share * (len(points) - 1)))]
            axes.annotate(
                name,
                (point["units"], point["seconds"]),
                xytext=shift,
                textcoords="offset points",
                ha=align,
                va="center",
                color=_STYLES[way]["color"],
            )


def _in_words(value: float, key: str) -> str:
    """A tick of the axis of seconds or bytes: 10 ms, 1 GB."""
    units = ("GB", "MB", "kB", "B") if key == "bytes" else ("s", "ms", "µs", "ns")
    scaled, powers = value / (1e9 if key == "bytes" else 1.0), list(units)
    while scaled < 0.999 and len(powers) > 1:
        scaled, powers = scaled * 1000, powers[1:]
    return f"{scaled:,.0f} {powers[0]}"


def _states(units: int) -> str:
    return f"{2**units:,}" if units < 20 else f"{2**units / 1e6:.0f} million"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wall", description=__doc__)
    parser.add_argument("--max-units", type=int, default=24, help="largest M (default 24)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which are tried (default all)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/wall.png"))
    parser.add_argument("--json", type=Path, help="where the measurements go as well")
    parser.add_argument("--draw-only", type=Path, metavar="JSON", help="draw measurements made before")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "M"), help="one measurement, as JSON")
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measure(given.measure[0], int(given.measure[1]))))
        return
    if given.draw_only:
        results = json.loads(given.draw_only.read_text(encoding="utf-8"))
    else:
        results = {way: climb(way, given.max_units) for way in given.ways}
    for way, result in results.items():
        rates = {key: slope(result["points"], key) for key in ("seconds", "bytes")}
        told = ", ".join(f"{key} x 2^{rate:.2f} per unit" for key, rate in rates.items() if rate is not None)
        print(f"{WAYS[way]}: {told or 'too few points for a slope'}; stops: {result['stop']}")
    if given.json:
        given.json.write_text(json.dumps(results))
    draw(results).write(given.out)


if __name__ == "__main__":
    main()
