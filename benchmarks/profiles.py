"""Where the time goes: `python -m benchmarks.profiles`.

Of a training step of each model with its default options on images of 28 x 28 pixels; of importance sampling and of
annealed importance sampling of the default VAE. Matrix products, other kernels, random numbers and the
optimizer are counted by torch's profiler; what is left of the time without it is Python: Pyro's handlers and traces,
autograd's and torch's dispatch.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.steps import noise, step_of
from benchmarks.timing import medians
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.annealed import Annealing, annealed_log_px
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.models.vae import VAE

KINDS = ("matrix products", "other kernels", "random numbers", "optimizer")
_PRODUCTS = re.compile(r"aten::(addmm|mm|bmm|baddbmm|addmv|mv|dot|convolution|convolution_backward|mkldnn\w*)$")
_RANDOM = re.compile(r"aten::(normal_|bernoulli_?|uniform_|random_|exponential_|multinomial|randperm)$")


def kind(event: Any) -> str:
    """Of a profiler's event, what its own time was spent on."""
    above = event
    while above is not None:
        if above.name.startswith("Optimizer."):
            return "optimizer"
        above = above.cpu_parent
    if _PRODUCTS.match(event.name):
        return "matrix products"
    return "random numbers" if _RANDOM.match(event.name) else "other kernels"


def shares(call: Callable[[], object], calls: int) -> tuple[float, dict[str, float]]:
    """Median seconds of a call, and the share of each kind and of Python in it."""
    seconds = medians({"": call}, rounds=calls, warmup=2)[""]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            call()
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.events() or ():
        spent[kind(event)] += event.self_cpu_time_total * 1e-6 / calls
    result = {name: value / seconds for name, value in spent.items()}
    return seconds, result | {"Python": max(0.0, 1 - sum(result.values()))}


def candidates() -> dict[str, tuple[Callable[[], object], int]]:
    """What is profiled, and how many calls of it."""
    model = VAE((28, 28))
    guide, x = Normal((28, 28), 20, "z", model), noise(32).train.images[:]
    annealing = Annealing(num_temperatures=5, num_chains=16, schedule="sigmoid")
    return {
        "vae, N = 128": (step_of("vae", 128), 50),
        "hierarchical-vae, N = 128": (step_of("hierarchical-vae", 128), 30),
        "mixture, N = 500": (step_of("mixture", 500), 50),
        "belief-net, M = 8, N = 128": (step_of("belief-net", 128), 50),
        "factor-analysis, N = 500": (step_of("factor-analysis", 500), 30),
        "gan, N = 128": (step_of("gan", 128), 30),
        "importance sampling, 32 x 1,000": (
            lambda: log_marginal_likelihood(model, guide, x, num_samples=1000, ask_again=False),
            3,
        ),
        "annealing, 32 x 16 x 5": (lambda: annealed_log_px(model, x, annealing=annealing), 3),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("--only", help="what begins with this")
    parser.add_argument("--calls", type=int, help="calls of each")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    torch.manual_seed(0)
    names = (*KINDS, "Python")
    print(f"{'':<34}{'ms':>9}" + "".join(f"{name:>17}" for name in names))
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        for title, (call, calls) in candidates().items():
            if title.startswith(given.only or ""):
                seconds, parts = shares(call, given.calls or calls)
                print(
                    f"{title:<34}{1e3 * seconds:9.2f}" + "".join(f"{parts[name]:17.0%}" for name in names), flush=True
                )


if __name__ == "__main__":
    main()
