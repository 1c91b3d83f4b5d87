"""A training step of the default VAE by several processes: `torchrun --nproc-per-node=2 -m benchmarks.processes`.

Each process has its share of the batch. In strong scaling the batch is the same for any number of processes; in weak
scaling each process has the same number of images. The step, the same without averaging gradients, and the averaging
alone: the medians of the first process; with `--fastest` the fastest calls, for a machine with other work.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
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
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.models.vae import VAE
from ppl_gen.training.loop import loss_per_image, loss_with_gradient
from ppl_gen.training.optimizer import OneOptimizer
from ppl_gen.training.processes import SharedGradient


def measure(size: int, given: argparse.Namespace, device: torch.device) -> list[float]:
    """Milliseconds of a step on a batch of all processes together, of one without averaging, and of averaging; and
    megabytes of the gradient."""
    model = VAE((28, 28), hidden_dims=tuple(given.hidden_dims)).to(device)
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
        found = medians(calls, rounds=given.rounds, middle=min if given.fastest else median)
    return [*(1e3 * seconds for seconds in found.values()), 4e-6 * sum(each.numel() for each in gradients)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[128, 512, 2048], help="of all together")
    parser.add_argument("--images-per-process", type=int, nargs="*", default=[128, 512, 2048], help="for weak scaling")
    parser.add_argument("--hidden-dims", type=int, nargs="+", default=[512], help="of encoder and decoder")
    parser.add_argument("--rounds", type=int, default=50, help="calls of each")
    parser.add_argument("--fastest", action="store_true", help="the fastest calls in place of the medians")
    given = parser.parse_args()
    parallel.join()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speaks, count = parallel.rank() == 0, parallel.world_size()
    scalings = {"strong": given.batch_sizes, "weak": [count * images for images in given.images_per_process]}
    if speaks:
        print(f"{count} processes, {torch.get_num_threads()} threads each, {device.type}")
        columns = ("batch", "step, ms", "without averaging", "averaging alone", "gradient, MB", "images/s")
        print("scaling " + "".join(f"{column:>19}" for column in columns))
    for scaling, size in [(scaling, size) for scaling, sizes in scalings.items() for size in sizes]:
        found = measure(size, given, device)
        if speaks:
            numbers = "".join(f"{number:19.2f}" for number in found)
            print(f"{scaling:8}{size:19}{numbers}{1e3 * size / found[0]:19,.0f}", flush=True)
    parallel.leave()


if __name__ == "__main__":
    main()
