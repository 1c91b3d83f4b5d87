"""How time grows with images, pixels, components, latent states and samples: `python -m benchmarks.growth`.

A training step of the VAE against N, the images in a batch, and D, their pixels; of the mixture against K, its
components; the exact gradient of a belief net with M units against its 2^M states; importance sampling against S, the
samples of an image. Theory says that each is proportional, beyond a constant that is Python's and Pyro's. The slope is
that of log time against log size over the sizes that take more than three times as long as the smallest.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import torch
from matplotlib.figure import Figure

from benchmarks import enumeration
from benchmarks.steps import noise, step_of
from benchmarks.timing import medians
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.vae import VAE

Times = dict[int, float]


def against_images(count: int) -> dict[int, Callable[[], object]]:
    return {n: step_of("vae", n) for n in [64 * 2**i for i in range(8)][:count]}


def against_pixels(count: int) -> dict[int, Callable[[], object]]:
    return {side * side: step_of("vae", 128, (side, side)) for side in (20, 28, 40, 56, 80, 112, 160)[:count]}


def against_components(count: int) -> dict[int, Callable[[], object]]:
    return {k: step_of("mixture", 500, num_components=k) for k in [32 * 4**i for i in range(5)][:count]}


def against_states(count: int) -> dict[int, Callable[[], object]]:
    x = noise(100).train.images
    models = [BeliefNet(784, latent_dim=units, init_scale=0.1) for units in (8, 10, 12, 14, 16, 18)[:count]]
    return {2 ** len(m.weight): enumeration._gradient(enumeration.ours(m, x), m) for m in models}


def against_samples(count: int) -> dict[int, Callable[[], object]]:
    model = VAE((28, 28))
    guide, x = Normal((28, 28), 20, "z", model), noise(16).train.images

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


def slope(times: Times) -> float | None:
    """Of log time against log size over the sizes beyond the constant; None for fewer than three such sizes."""
    least = min(times.values())
    upper = [(size, seconds) for size, seconds in times.items() if seconds > 3 * least]
    if len(upper) < 3:
        return None
    sizes, seconds = np.log(np.array(upper)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def draw(measured: dict[str, Times]) -> Figure:
    """Milliseconds against each size, both on logarithmic scales, beside a line of slope 1."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = iter(figure.subplots(2, 3).flat)
    for (name, times), axes in zip(measured.items(), panels, strict=False):
        meaning, title, _ = KINDS[name]
        sizes, fitted = list(times), slope(times)
        axes.plot(sizes, [1e3 * times[size] for size in sizes], "ko-", markersize=4)
        last = 1e3 * times[sizes[-1]]
        axes.plot(sizes, [last * size / sizes[-1] for size in sizes], color="0.6", linestyle="--", label="slope 1")
        axes.set(xscale="log", yscale="log", xlabel=f"{name}, {meaning}", ylabel="milliseconds")
        axes.set_ylim(bottom=0.5 * 1e3 * min(times.values()))
        axes.set_title(title + ("" if fitted is None else f"\nslope {fitted:.2f}"), fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="best")
    for axes in panels:
        axes.remove()
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="calls of each size (default 9)")
    parser.add_argument("--sizes", type=int, default=8, help="how many sizes of each, from the smallest (default all)")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/growth.png"))
    given = parser.parse_args(arguments)
    keep_freed_memory()
    torch.manual_seed(0)
    measured: dict[str, Times] = {}
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        for name, (meaning, title, candidates) in KINDS.items():
            calls = {str(size): call for size, call in candidates(given.sizes).items()}
            times = medians(calls, rounds=given.rounds, warmup=3, in_turn=3)
            measured[name] = {int(size): seconds for size, seconds in times.items()}
            fitted = slope(measured[name])
            print(f"{title}, against {name}, {meaning}; slope {'unknown' if fitted is None else f'{fitted:.2f}'}")
            for size, seconds in measured[name].items():
                print(f"  {size:>8}{1e3 * seconds:12.2f} ms", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw(measured).savefig(given.out, dpi=120)


if __name__ == "__main__":
    main()
