"""A training step of the default VAE by several processes: `torchrun --nproc-per-node=2 -m benchmarks.processes`.

Each process has its share of the batch. The step, the same without averaging gradients, and the averaging alone; the
medians of the first process.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from benchmarks.timing import medians
from ppl_gen.core import parallel
from ppl_gen.core.interrupts import Interrupted
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.models.vae import VAE
from ppl_gen.training.loop import loss_per_image, loss_with_gradient
from ppl_gen.training.optimizer import OneOptimizer
from ppl_gen.training.processes import SharedGradient


def measure(size: int, rounds: int, device: torch.device) -> list[float]:
    """Milliseconds of a step on a batch of all processes together, of one without averaging, and of averaging."""
    model = VAE((28, 28)).to(device)
    guide = Normal((28, 28), 20, "z", model).to(device)
    parameters = [*model.parameters(), *guide.parameters()]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    whole = torch.bernoulli(torch.rand(size, 784, generator=torch.Generator().manual_seed(0))).to(device)
    x = whole[parallel.shard(torch.arange(size, device=device))]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
    loss = partial(loss_per_image, Trace_ELBO())
    alone = partial(loss_with_gradient, loss)
    together = SharedGradient(loss, parameters, Interrupted())
    together.whole = size

    def step(loss_and_grads: Any) -> Callable[[], object]:
        optimizer = OneOptimizer(parameters, TrainingOptions())
        svi = SVI(pair.model, pair.guide, optimizer, loss=loss, loss_and_grads=loss_and_grads)
        return lambda: svi.step(x)

    calls = {"step": step(together), "alone": step(alone), "averaging": lambda: parallel.all_reduce(*gradients)}
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        return [1e3 * seconds for seconds in medians(calls, rounds=rounds).values()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512, 2048], help="of all together")
    parser.add_argument("--rounds", type=int, default=50, help="calls of each")
    given = parser.parse_args()
    parallel.join()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speaks = parallel.rank() == 0
    if speaks:
        print(f"{parallel.world_size()} processes, {torch.get_num_threads()} threads each, {device.type}")
        print(f"{'batch':>6}{'step, ms':>12}{'without averaging':>20}{'averaging alone':>18}{'images/s':>12}")
    for size in given.batch_sizes:
        step, alone, averaging = measure(size, given.rounds, device)
        if speaks:
            print(f"{size:6}{step:12.2f}{alone:20.2f}{averaging:18.2f}{1e3 * size / step:12,.0f}", flush=True)
    parallel.leave()


if __name__ == "__main__":
    main()
