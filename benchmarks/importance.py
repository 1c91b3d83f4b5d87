"""Importance sampling of the default VAE against the bare matrix products of its decoder, and against stock Pyro."""

from collections.abc import Callable

import pyro
import torch
from pyro import poutine
from torch import Tensor

from benchmarks.timing import Comparison, medians, show
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.chunks import pairs_at_a_time
from ppl_gen.inference.importance import log_marginal_likelihood, log_weights
from ppl_gen.models.vae import VAE


def candidates(num_images: int, num_samples: int) -> dict[str, Callable[[], object]]:
    """What is timed; all but the products estimate log p(x) of the same images."""
    torch.manual_seed(0)
    model = VAE((28, 28))
    guide = Normal((28, 28), 20, "z", model)
    x = torch.bernoulli(torch.rand(num_images, 784))
    layers = [layer for layer in model.decoder.modules() if isinstance(layer, torch.nn.Linear)]

    pairs = torch.arange(num_images * num_samples).split(pairs_at_a_time(model, None, x))

    def products() -> None:
        """The decoder's matrix products alone, in chunks of the same size."""
        with torch.no_grad():
            hidden, z = torch.randn(len(pairs[0]), 512), torch.randn(len(pairs[0]), 20)
            for chunk in pairs:
                z[: len(chunk)] @ layers[0].weight.T
                hidden[: len(chunk)] @ layers[1].weight.T

    def stock_model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", model.prior())
            pyro.sample("x", pyro.distributions.Bernoulli(logits=model.decoder(z)).to_event(1), obs=x)

    def stock(images_at_once: int) -> Tensor:
        """What `vectorized_importance_weights` does, but for its sum over images, with `Bernoulli.to_event(1)`."""
        weights = []
        with torch.no_grad():
            for images in x.split(images_at_once):
                with pyro.plate("samples", num_samples, dim=-2):
                    guide_trace = poutine.trace(guide.guide).get_trace(images)
                    model_trace = poutine.trace(poutine.replay(stock_model, trace=guide_trace)).get_trace(images)
                for trace in (guide_trace, model_trace):
                    trace.compute_log_prob()
                weights.append(
                    model_trace.nodes["x"]["log_prob"] + model_trace.nodes["z"]["log_prob"]
                    - guide_trace.nodes["z"]["log_prob"]
                )  # fmt: skip
        return torch.cat(weights, 1)

    return {
        "the decoder's matrix products": products,
        "ppl_gen.log_weights": lambda: log_weights(model, guide, x, num_samples=num_samples),
        "ppl_gen.log_marginal_likelihood, with k-hat": lambda: log_marginal_likelihood(
            model, guide, x, num_samples=num_samples
        ),
        "stock Pyro, one image at a time, its best": lambda: stock(1),
        "stock Pyro, all images at once": lambda: stock(num_images),
    }


def main(rounds: int, num_images: int = 100, num_samples: int = 1000) -> list[Comparison]:
    seconds = medians(candidates(num_images, num_samples), rounds=max(3, rounds // 40), warmup=1)
    return [
        show(
            f"importance sampling, {num_images} images x {num_samples} samples, default VAE",
            seconds,
            "the decoder's matrix products",
        )
    ]
