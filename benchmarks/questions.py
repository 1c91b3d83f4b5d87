"""Figures of the tutorial that no single run draws: `python -m benchmarks.questions --out docs/figures`.

Why logarithms: the running product of the pixels' probabilities of one image, and the sum of their logarithms. What
happens when the bound rises: ELBO and exact log p(x) of a belief net of eight units while both are trained, the guide
alone in between. Why reparametrize: the two estimates of one gradient that is known.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ppl_gen.core import cli
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.run import Run


def why_logarithms(data: Data) -> Figure:
    """One test image under independent pixels: the product in float32 is 0 long before the last of them."""
    mean, x = data.mean(), data.targets("test", slice(1))[0]
    p = torch.where(x == 1, mean, 1 - mean)
    product, log = p.cumprod(0).numpy(), p.double().log().cumsum(0).numpy()
    with np.errstate(divide="ignore"):
        of_product = np.log(product)
    gone = int((product == 0).argmax()) if (product == 0).any() else len(product)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(log, "k-", linewidth=1, label="sum of logarithms")
    axes.plot(of_product[:gone], "-", color="0.6", linewidth=4, zorder=0, label="logarithm of the product, in float32")
    if gone < len(product):
        axes.plot(gone, log[gone], "kx", markersize=9, label=f"the product is 0 from pixel {gone} on")
    axes.set_xlabel("pixels multiplied")
    axes.set_ylabel("log p, nats")
    axes.set_title(f"Independent pixels: log p(x) = {log[-1]:.1f} of a test image of {data.name}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


def two_things(data: str, fits: int, epochs: int) -> Figure:
    """ELBO and exact log p(x) after each of several fits, each from the weights of the one before; from a sixth of them
    to the half they train the guide alone."""
    bounds, exact, alone = [], [], range(max(1, fits // 6), fits // 2)
    options = TrainingOptions(epochs=epochs, **training_defaults("belief-net") | {"schedule": "constant"})
    with tempfile.TemporaryDirectory() as folder:
        for index in range(fits):
            run = Run.start(
                Config(
                    "belief-net",
                    {"latent_dim": 8},
                    "bernoulli",
                    data=DataOptions(data, "static"),
                    training=options,
                    num_samples=10,
                    init_from=str(Path(folder) / str(index - 1)) if index else None,
                    fixed_model=index in alone,
                ),
                out=Path(folder) / str(index),
                quiet=True,
            ).directory
            summary = run.read_json("evaluation.json")
            assert summary is not None
            bounds.append(summary["elbo"]["mean"])
            exact.append(summary["log_px"]["mean"])
    done = epochs * np.arange(1, fits + 1)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(done, exact, "ko--", markersize=4, label="log p(x), exact")
    axes.plot(done, bounds, "ks-", markersize=4, label="ELBO")
    axes.fill_between(done, bounds, exact, color="0.85", label="gap: KL(q(z | x) || p(z | x))")
    for end in (alone.start, alone.stop):
        axes.axvline(epochs * end, color="0.4", linestyle=":", linewidth=1)
    axes.text(epochs * (alone.start + alone.stop) / 2, max(exact), "the guide alone", ha="center", va="center", size=8)
    axes.set_xlabel("epochs")
    axes.set_ylabel("nats per test image")
    axes.set_title("What rises with the bound: a belief net of 8 units", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def why_reparametrize(num_draws: int = 20_000) -> Figure:
    """The gradient in mu of E[log p(x | z)], z ~ N(mu, 1), p(x | z) = N(x; z, 1/2), at mu = 0 and x = 1.5: 2 (x - mu).
    One sample gives f(z) (z - mu), or 2 (x - z)."""
    x = 1.5
    noise = torch.randn(num_draws, generator=torch.Generator().manual_seed(0)).double().numpy()
    f = -((x - noise) ** 2) - 0.5 * np.log(np.pi)
    estimates = {"f(z) d log q / d mu, score function": f * noise, "d f / d z, reparametrized": 2 * (x - noise)}
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    styles: list[dict[str, Any]] = [{"color": "0.75"}, {"color": "black", "fill": False}]
    for (name, values), style in zip(estimates.items(), styles, strict=True):
        style |= {"label": f"{name}: sd {values.std():.1f}", "edgecolor": "black"}
        axes.hist(values, list(range(-15, 21)), density=True, histtype="stepfilled", **style)
    axes.axvline(2 * x, color="black", linestyle="--", label=f"the gradient, {2 * x:g}")
    axes.set_xlabel("estimate of the gradient from one sample")
    axes.set_ylabel("density")
    axes.set_title("Two unbiased estimates of one gradient", fontsize=10)
    axes.legend(fontsize=8, loc="best")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.questions", description=__doc__)
    parser.add_argument("--data", default="mnist", help="as --data of fit")
    parser.add_argument("--fits", type=int, default=16, help="points of what rises with the bound")
    parser.add_argument("--epochs", type=int, default=1, help="of each of these fits")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory for the pictures")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    data = load_data(DataOptions(given.data, "static"))
    figures = {
        "why_logarithms": why_logarithms(data),
        "why_reparametrize": why_reparametrize(),
        "two_things": two_things(given.data, given.fits, given.epochs),
    }
    for name, figure in figures.items():
        figure.savefig(given.out / f"{name}.png", dpi=120)
        print(f"written to {given.out / name}.png")


if __name__ == "__main__":
    cli.main(lambda _: main())
