"""Seconds and bytes of an exact gradient against the number of latent states: `python -m benchmarks.wall`.

The gradient of -log p(x) for N = 100 images of D = 784 pixels: of a belief net with M = 1, 2, … units, summed in three
ways, and of a mixture with K = 2^M components. Every measurement is a process of its own, so that its peak memory is
its own. A way of summing stops where a gradient would take more than 10 GB or took more than a minute, or where it
fails.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import enumeration

WAYS = {
    "sites": "stock Pyro, M enumerated sites",
    "broadcast": "stock Pyro, one site, broadcast over 2^M states",
    "ours": "ppl_gen, one site, s(z) + z·(Wx)",
    "mixture": "ppl_gen, mixture with K = 2^M",
}
_MOST_BYTES, _MOST_SECONDS = 10e9, 60.0
_STYLES = {"sites": ("kx:", "x"), "broadcast": ("ks--", "s"), "ours": ("ko-", "o"), "mixture": ("k^-.", "^")}


def measure(way: str, units: int, num_images: int = 100, pixels: int = 784) -> dict[str, float]:
    """Seconds of the fastest of up to three gradients, and bytes of peak memory beyond those before the first."""
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(num_images, pixels))
    model: Any
    if way == "mixture":
        model = enumeration.Mixture(pixels, num_components=2**units)
    else:
        model = enumeration.BeliefNet(pixels, latent_dim=units, init_scale=0.1)
    loss = {
        "sites": enumeration.separate_sites,
        "broadcast": enumeration.broadcast,
        "ours": enumeration.ours,
        "mixture": enumeration.ours,
    }[way](model, x)
    parameters = list(model.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = math.inf
    with enumeration.pyro.validation_enabled(False):
        for _ in range(3):
            start = time.perf_counter()
            torch.autograd.grad(loss(), parameters)
            seconds = min(seconds, time.perf_counter() - start)
            if seconds > 5:
                break
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "bytes": (after - before) * 1024}


def climb(way: str, max_units: int) -> dict[str, Any]:
    """Measurements at M = 1, 2, … and why there are no more."""
    points: list[dict[str, float]] = []
    for units in range(1, max_units + 1):
        if points and points[-1]["bytes"] * 2 > _MOST_BYTES:
            return {"points": points, "stop": "10 GB"}
        if points and points[-1]["seconds"] > _MOST_SECONDS:
            return {"points": points, "stop": "a minute"}
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.wall", "--measure", way, str(units)],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        if made.returncode:
            return {"points": points, "stop": (made.stderr.strip().splitlines() or ["killed"])[-1][:100]}
        points.append({"units": units, **json.loads(made.stdout)})
        print(
            f"{WAYS[way]:<50} M = {units:2d}  {points[-1]['seconds']:10.4f} s  {points[-1]['bytes'] / 1e6:10.1f} MB",
            flush=True,
        )
    return {"points": points, "stop": ""}


def slope(points: list[dict[str, float]], key: str) -> float | None:
    """Doublings of `key` per unit: the slope of its log2 against M over the last five points, or None for fewer than
    three."""
    if len(points) < 3:
        return None
    last = points[-5:]
    if min(point[key] for point in last) <= 0:
        return None
    return float(np.polyfit([point["units"] for point in last], [math.log2(point[key]) for point in last], 1)[0])


def draw(results: dict[str, Any]) -> Figure:
    """Seconds and bytes against M, log scale, with slopes and where each way stops."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, key, title in zip(
        panels, ("seconds", "bytes"), ("seconds per gradient", "bytes at the peak"), strict=True
    ):
        for way, result in results.items():
            points = [point for point in result["points"] if point[key] > 0]
            if not points:
                continue
            fitted = slope(result["points"], key)
            rate = "" if fitted is None else f" (2^{fitted:.2f} per unit)"
            axes.plot(
                [point["units"] for point in points],
                [point[key] for point in points],
                _STYLES[way][0],
                markersize=5,
                label=WAYS[way] + rate,
            )
            if result["stop"]:
                where = (points[-1]["units"], points[-1][key])
                stop = result["stop"] if result["stop"] in ("10 GB", "a minute") else "an error"
                axes.annotate(f"stops: {stop}", where, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set_yscale("log")
        axes.set_xlabel("M, binary units (mixture: K = 2^M components)")
        axes.set_title(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.12)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
        axes.set_ylim(bottom=axes.get_ylim()[0] / 8)  # room for the legend
    figure.suptitle("The 2^M wall: exact gradient of -log p(x), N = 100 images of D = 784 pixels", fontsize=11)
    figure.supxlabel(
        "Cost: stock Pyro, both ways, O(2^M N D), in time and memory.   ppl_gen: time O(N D M + 2^M (D + N)), memory "
        "O(2^M N).\nMixture: O(K N D) time as one matrix product, O(K (N + D)) memory.",
        fontsize=9,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wall", description=__doc__)
    parser.add_argument("--max-units", type=int, default=20, help="largest M (default 20)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/wall.png"))
    parser.add_argument("--json", type=Path, help="where the measurements go as well")
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "M"), help="one measurement, as JSON")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure[0], int(given.measure[1]))))
        return
    results = {way: climb(way, given.max_units) for way in WAYS}
    for way, result in results.items():
        rates = {key: slope(result["points"], key) for key in ("seconds", "bytes")}
        told = ", ".join(f"{key} x 2^{rate:.2f} per unit" for key, rate in rates.items() if rate is not None)
        print(f"{WAYS[way]}: {told or 'too few points for a slope'}; stops: {result['stop'] or 'no'}")
    if given.json:
        given.json.write_text(json.dumps(results))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(given.out, dpi=120)


if __name__ == "__main__":
    main()
