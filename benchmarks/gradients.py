"""How noisy each gradient estimator of a guide is: `python -m benchmarks.gradients RUN`.

For a fitted pair and one batch: the signal-to-noise ratio of the gradient with respect to the encoder's parameters,
|mean| / sqrt(total variance), over repeated draws, and the milliseconds of one. Each estimator climbs a bound of its
own (RWS: none), so that the ratio, not the variance, compares them.
"""

import argparse
import time
from typing import Any

import pyro
import torch
from torch import Tensor

import ppl_gen
from benchmarks.pages import markdown
from ppl_gen.core import cli
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair

Cells = dict[str, dict[int, str]]
"""estimator -> K -> cell of a table"""


def signal_to_noise(pair: Pair, guide: Any, x: Tensor, name: str, k: int, draws: int) -> tuple[float, float]:
    """Signal-to-noise ratio of the encoder's gradient and seconds of one, for objective `name` with k samples."""
    parameters = list(guide.encoder.parameters())
    elbo = bind(construct(name, num_particles=k), pair, x)
    mean, squares = torch.zeros(sum(parameter.numel() for parameter in parameters), dtype=torch.float64), 0.0
    start = time.perf_counter()
    for _ in range(draws):
        with pyro.validation_enabled(False):
            loss = elbo.differentiable_loss(pair.model, pair.guide, x) / len(x)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        mean += gradient / draws
        squares += float(gradient.square().sum()) / draws
    seconds = (time.perf_counter() - start) / draws
    total = float(mean.square().sum())
    variance = (squares - total) * draws / (draws - 1)
    signal = max(total - variance / draws, 0.0)  # the mean's own noise taken off
    return (signal / variance) ** 0.5, seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    model, loaded, data, _ = ppl_gen.load(given.run)
    guide: Any = loaded
    x = data.targets("train")[:128]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x)
    print(f"{given.run}: encoder's gradient on 128 training images, {given.draws} draws")
    baseline = getattr(guide, "baseline", None)
    several = ("iwae", "dreg", "vimco") if pair.reparametrized else ("vimco", "rws")
    estimators = [("elbo", 1), *([("stl", 1)] if pair.reparametrized else [])]
    estimators += [(name, k) for name in several for k in (2, 10, 50)]
    torch.manual_seed(0)
    ratios: Cells = {}
    times: Cells = {}
    for name, k in estimators:
        for used in dict.fromkeys((None, baseline)) if name == "elbo" else (baseline,):
            guide.baseline = used
            ratio, seconds = signal_to_noise(pair, guide, x, name, k, given.draws)
            score = name == "elbo" and not pair.reparametrized
            row = f"`{name}`, {'no' if used is None else 'with its'} baseline" if score else f"`{name}`"
            ratios.setdefault(row, {})[k], times.setdefault(row, {})[k] = f"{ratio:.3f}", f"{seconds * 1e3:.1f}"
            print(f"{row}, K = {k} is done", flush=True)
    guide.baseline = baseline
    for title, cells in (("signal-to-noise ratio", ratios), ("milliseconds of a draw", times)):
        every = sorted({k for row in cells.values() for k in row})
        rows = [[name, *(row.get(k, "") for k in every)] for name, row in cells.items()]
        print("\n" + markdown([title, *(f"K = {k}" for k in every)], rows))


if __name__ == "__main__":
    cli.main(lambda _: main())
