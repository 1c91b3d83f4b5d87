"""How time grows with images, pixels, components, latent states and samples: `python -m benchmarks.growth`.

A training step of the VAE against N, the images in a batch, and D, their pixels; of the mixture against K, its
components; the exact gradient of a belief net with M units against its 2^M states; importance sampling against S, the
samples of an image. Theory says that each is proportional, beyond a constant that is Python's and Pyro's. The slope is
that of log time against log size over the sizes that take more than three times as long as the smallest.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import torch

from benchmarks import enumeration
from benchmarks.steps import noise, step_of
from benchmarks.timing import medians
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import LINES, NARROW, Name, name_lines, plain, styled
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.vae import VAE

Times = dict[int, float]
_SHORT = {"N": "images", "D": "pixels", "K": "components", "2^M": "states", "S": "samples"}


def against_images(count: int) -> dict[int, Callable[[], object]]:
    return {n: step_of("vae", n) for n in [64 * 2**i for i in range(8)][:count]}


def against_pixels(count: int) -> dict[int, Callable[[], object]]:
    return {side * side: step_of("vae", 128, (side, side)) for side in (20, 28, 40, 56, 80, 112, 160)[:count]}


def against_components(count: int) -> dict[int, Callable[[], object]]:
    return {k: step_of("mixture", 500, num_components=k) for k in [32 * 4**i for i in range(5)][:count]}


def against_states(count: int) -> dict[int, Callable[[], object]]:
    x = noise(100).train.images[:]
    models = [BeliefNet(784, latent_dim=units, init_scale=0.1) for units in (8, 10, 12, 14, 16, 18)[:count]]
    return {2 ** len(m.weight): enumeration._gradient(enumeration.ours(m, x), m) for m in models}


def against_samples(count: int) -> dict[int, Callable[[], object]]:
    model = VAE((28, 28))
    guide, x = Normal((28, 28), 20, "z", model), noise(16).train.images[:]

    def call(samples: int) -> Callable[[], object]:
        return lambda: log_marginal_likelihood(model, guide, x, num_samples=samples, ask_again=False)

    return {samples: call(samples) for samples in [50 * 4**i for i in range(6)][:count]}


KINDS = {
    "N": ("images in a batch", "VAE, training step", against_images),
    "D": ("pixels of an image", "VAE, training step, N = 128", against_pixels),
    "K": ("components", "mixture, training step, N = 500", against_components),
    "2^M": ("states of M units", "belief net, exact gradient, N = 100", against_states),
    "S": ("samples of an image", "VAE, importance sampling, N = 16", against_samples),
}


def measure(count: int, rounds: int) -> dict[str, Times]:
    """Median seconds of every kind, for so many sizes each, from the smallest."""
    keep_freed_memory()
    torch.manual_seed(0)
    measured: dict[str, Times] = {}
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        for name, (_, title, candidates) in KINDS.items():
            print(f"measuring: {title}", file=sys.stderr, flush=True)
            calls = {str(size): call for size, call in candidates(count).items()}
            times = medians(calls, rounds=rounds, warmup=3, in_turn=3)
            measured[name] = {int(size): seconds for size, seconds in times.items()}
    return measured


def slope(times: Times) -> float | None:
    """Of log time against log size over the sizes beyond the constant; None for fewer than three such sizes."""
    least = min(times.values())
    upper = [(size, seconds) for size, seconds in times.items() if seconds > 3 * least]
    if len(upper) < 3:
        return None
    sizes, seconds = np.log(np.array(upper)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


@styled
def draw(measured: dict[str, Times]) -> Figure:
    """Time against size, both as multiples of the smallest size's, on logarithmic axes, beside a line of slope 1."""
    figure = Figure(figsize=(NARROW, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel="size, as a multiple of the smallest", ylabel="time, as a multiple")
    names, most = [], 1.0
    for (kind, times), style in zip(measured.items(), LINES, strict=False):
        first = min(times)
        sizes, ratios = [size / first for size in times], [seconds / times[first] for seconds in times.values()]
        axes.plot(sizes, ratios, **style)
        names.append(Name(f"{kind}, {_SHORT[kind]}", sizes[-1], ratios[-1], style["color"]))
        most = max(most, sizes[-1])
    axes.plot([1, most], [1, most], color="0.5", linestyle=(0, (5, 5)), linewidth=1, zorder=0)
    names.append(Name("proportional", most, most, "0.4"))
    for axis in (axes.xaxis, axes.yaxis):
        plain(axis)
    axes.grid()
    name_lines(axes, names)
    axes.set_title("Time against size, beside proportional growth")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="calls of each size (default 9)")
    parser.add_argument("--sizes", type=int, default=8, help="how many sizes of each, from the smallest (default all)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/growth.png"))
    parser.add_argument("--json", type=Path, help="where the measurements go as well")
    parser.add_argument("--draw-only", type=Path, metavar="JSON", help="draw measurements made before")
    given = parser.parse_args(arguments)
    if given.draw_only:
        kept = json.loads(given.draw_only.read_text(encoding="utf-8"))
        measured = {name: {int(size): seconds for size, seconds in times.items()} for name, times in kept.items()}
    else:
        measured = measure(given.sizes, given.rounds)
    for name, times in measured.items():
        meaning, title, _ = KINDS[name]
        fitted = slope(times)
        print(f"{title}, against {name}, {meaning}; slope {'unknown' if fitted is None else f'{fitted:.2f}'}")
        for size, seconds in times.items():
            print(f"  {size:>8}{1e3 * seconds:12.2f} ms")
    if given.json:
        given.json.write_text(json.dumps(measured), encoding="utf-8")
    draw(measured).write(given.out)


if __name__ == "__main__":
    main()
