"""Expectation maximization for a mixture of Bernoullis, as a reference for what gradient descent reaches:
`python -m benchmarks.em`.

60 iterations over 50,000 statically binarized training images, from components that start near a random image each, by
matrix products (Bishop 2006, equations 9.56 and 9.58 to 9.60, with half an observation added to each count).
"""

import argparse
import time

import torch
from torch import Tensor

from benchmarks.pages import markdown
from ppl_gen.core import cli
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions


def log_joint(x: Tensor, weights: Tensor, means: Tensor) -> Tensor:
    """log p(x, z = k), [images, components]."""
    return x @ (means.log() - (1 - means).log()).T + (1 - means).log().sum(-1) + weights.log()


def fit(x: Tensor, components: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Weights [components] and means [components, pixels]."""
    weights = torch.full((components,), 1 / components)
    means = 0.25 + 0.5 * x[torch.randperm(len(x))[:components]]
    for _ in range(iterations):
        counts, sums = torch.zeros(components), torch.zeros_like(means)
        for batch in x.split(5000):
            responsibilities = log_joint(batch, weights, means).softmax(-1)
            counts += responsibilities.sum(0)
            sums += responsibilities.T @ batch
        weights = (counts + 0.5) / (counts + 0.5).sum()
        means = (sums + 0.5) / (counts + 1).unsqueeze(-1)
    return weights, means


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.em", description=__doc__)
    parser.add_argument("--components", type=int, nargs="+", default=[20, 500])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--data", default="mnist")
    given = parser.parse_args()
    data = load_data(DataOptions(given.data, "static"))
    x, test = data.targets("train"), data.targets("test")
    rows = []
    for components in given.components:
        torch.manual_seed(0)
        start = time.perf_counter()
        weights, means = fit(x, components, given.iterations)
        seconds = time.perf_counter() - start
        log_px = torch.cat([log_joint(batch, weights, means).logsumexp(-1) for batch in test.split(5000)]).double()
        used = int((weights * len(x) >= 1).sum())
        error = log_px.std() / len(test) ** 0.5
        rows.append([f"K = {components}", f"{log_px.mean():.2f} ± {error:.2f}", str(used), f"{seconds:.0f}"])
        print(f"K = {components} is done", flush=True)
    print("\n" + markdown(["expectation maximization", "log p(x)", "components in use", "seconds of training"], rows))


if __name__ == "__main__":
    cli.main(lambda _: main())
