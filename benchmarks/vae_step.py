"""One training step of the default VAE (784-512-20, batch 128, float32) against hand-written PyTorch and stock Pyro."""

import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from benchmarks.steps import training_step
from benchmarks.timing import Comparison, medians, show
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.normal import Normal
from ppl_gen.models.vae import VAE

Nets = tuple[nn.Module, nn.Module]


def nets() -> Nets:
    """Encoder and decoder."""
    encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 40))
    decoder = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 784))
    return encoder, decoder


def hand_written(
    x: Tensor, own: Nets | None = None, compiled: bool = False, recorded: bool = False
) -> Callable[[], object]:
    """The same mathematics in plain PyTorch: sampled KL, fused Adam, the loss read at every step.

    :param recorded: all but the reading of the loss as one CUDA graph.
    """
    encoder, decoder = own or nets()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=recorded)

    def negative_elbo(x: Tensor) -> Tensor:
        loc, log_scale = encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        cross_entropy = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        kl = (z.square() / 2 - noise.square() / 2 - log_scale).sum()
        return (cross_entropy + kl) / len(x)

    function = torch.compile(negative_elbo) if compiled else negative_elbo

    def step() -> Tensor:
        loss = function(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    if not recorded:
        return lambda: step().item()
    with torch.cuda.stream(side := torch.cuda.Stream()):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        loss = step()

    def replayed() -> float:
        graph.replay()
        return loss.item()

    return replayed


def stock_pyro(x: Tensor, own: Nets | None = None) -> Callable[[], object]:
    """As Pyro's own VAE example: `pyro.module`, `Bernoulli.to_event(1)`, `pyro.optim.Adam`."""
    encoder, decoder = own or nets()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(20), x.new_ones(20)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    return lambda: svi.step(x)


def ours(x: Tensor, pair: tuple[VAE, Normal] | None = None, **options: Any) -> Callable[[], object]:
    """A step of the training loop."""
    return training_step(*(pair or default_pair()), x, TrainingOptions(**options))


def default_pair() -> tuple[VAE, Normal]:
    model = VAE((28, 28))
    return model, Normal((28, 28), 20, "z", model)


def at_medium(make: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """The step as with `--matmul-precision medium`."""

    def called(function: Callable[[], Any]) -> Any:
        torch.set_float32_matmul_precision("medium")
        try:
            return function()
        finally:
            torch.set_float32_matmul_precision("highest")

    step = called(make)
    return lambda: called(step)


def main(rounds: int, compiled: bool = False) -> list[Comparison]:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.rand(128, 784))
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        candidates = {
            "hand-written PyTorch, fused Adam": hand_written(x),
            "ppl_gen, elbo": ours(x),
            "ppl_gen, elbo, --matmul-precision medium": at_medium(lambda: ours(x)),
            "ppl_gen, elbo-analytic-kl": ours(x, objective="elbo-analytic-kl"),
            "ppl_gen, stl": ours(x, objective="stl"),
            "stock Pyro": stock_pyro(x),
        }
        if x.is_cuda:
            candidates["hand-written, one CUDA graph"] = hand_written(x, recorded=True)
        if compiled:
            candidates["hand-written, torch.compile"] = step = hand_written(x, compiled=True)
            start = time.perf_counter()
            step()
            print(f"torch.compile took {time.perf_counter() - start:.0f} s")
        seconds = medians(candidates, rounds=rounds)
    return [show("VAE training step, 784-512-20, batch 128, float32", seconds, "hand-written PyTorch, fused Adam")]
