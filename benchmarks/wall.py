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
from matplotlib.figure import Figure

from benchmarks import enumeration
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture

WAYS = {
    "sites": "stock Pyro, M sites",
    "broadcast": "stock Pyro, one site",
    "ours": "ppl_gen",
    "mixture": "ppl_gen, mixture",
}
_STYLES = {"sites": "kx:", "broadcast": "ks--", "ours": "ko-", "mixture": "k^-."}
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


def draw(results: dict[str, Any]) -> Figure:
    """Seconds and bytes against M on a log scale, with slopes, and where each way stops and why."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    titles = {"seconds": "Seconds of a gradient", "bytes": "Bytes of memory at the peak"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for way, result in results.items():
            points = [point for point in result["points"] if point[key] > 0]
            fitted = slope(result["points"], key)
            label = WAYS[way] + ("" if fitted is None else f", slope {fitted:.2f}") + f"; {_reason(result['stop'])}"
            axes.plot([p["units"] for p in points], [p[key] for p in points], _STYLES[way], markersize=5, label=label)
        axes.axhline(_MOST[key], color="0.6", linewidth=0.8, zorder=0)
        axes.set_yscale("log")
        axes.set_ylim(top=_MOST[key] * 200)  # room for the legend
        axes.set_xlabel("M, binary units (mixture: K = 2^M components)")
        axes.set_title(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", title="slope: doublings per unit; where it ends", title_fontsize=8)
    figure.suptitle("The 2^M wall: exact gradient of −log p(x), N = 100 images of D = 784 pixels")
    figure.supxlabel(
        "Stock Pyro, as M enumerated sites or one site with 2^M states: every state meets every pixel of every image, "
        "O(2^M N D) time and memory\n(course notes, with logits made anew for each image: O(2^M N D M) time). "
        "ppl_gen: images and weights are multiplied once; then states meet\nimages, and states meet pixels, apart, in "
        "matrix products: O(N D M + 2^M (D + N)) time, O(2^M (M + N/128)) memory. Mixture: linear in K,\nO(K N D) time "
        "as one matrix product, O(K (D + N)) memory. Grey lines: where a way of summing stops, 60 s and 10 GB.",
        fontsize=9,
    )
    return figure


def _reason(stop: str, width: int = 40) -> str:
    """In few words, for the figure."""
    return stop if len(stop) <= width else stop[: width - 1] + "…"


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
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw(results).savefig(given.out, dpi=120)


if __name__ == "__main__":
    main()
