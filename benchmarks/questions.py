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
from matplotlib.ticker import MaxNLocator

from ppl_gen.core import cli
from ppl_gen.core.files import make_folder
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLACK, BLUE, NARROW, ORANGE, VERMILION, Name, name_lines, styled
from ppl_gen.run import Run

_RIGHT: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "ha": "left", "va": "top"}
_BESIDE = _RIGHT | {"xytext": (6, 6), "va": "bottom"}


@styled
def why_logarithms(data: Data) -> Figure:
    """One test image under independent pixels: the product in float32 is 0 long before the last of them."""
    mean, x = data.mean(), data.targets("test", slice(1))[0]
    p = torch.where(x == 1, mean, 1 - mean)
    product, log = p.cumprod(0).numpy(), p.double().log().cumsum(0).numpy()
    with np.errstate(divide="ignore"):
        of_product = np.log(product)
    gone = int((product == 0).argmax()) if (product == 0).any() else len(product)
    figure = Figure(figsize=(NARROW, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(log, color=BLUE, linewidth=1.2)
    axes.plot(of_product[:gone], "-", color=ORANGE, linewidth=5, alpha=0.7, zorder=0)
    axes.set_xlabel("pixels multiplied")
    axes.set_ylabel("log p, nats")
    axes.grid()
    axes.annotate("sum of logarithms", (0.62 * len(log), log[int(0.62 * len(log))]), **_BESIDE, color=BLUE)
    if gone < len(product):
        axes.plot(gone, log[gone], "x", color=BLACK, markersize=8, markeredgewidth=1.6)
        text = f"product in float32:\n0 from pixel {gone} on"
        axes.annotate(text, (gone, log[gone]), xytext=(-8, -4), textcoords="offset points", ha="right", va="top")
    axes.set_title(f"log p(x) = −{-log[-1]:.1f} nats, pixel after pixel")
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
    return draw_two_things(
        epochs * np.arange(1, fits + 1), bounds, exact, [epochs * end for end in (alone.start, alone.stop)]
    )


@styled
def draw_two_things(done: np.ndarray, bounds: Sequence[float], exact: Sequence[float], alone: Sequence[int]) -> Figure:
    """ELBO and exact log p(x) against epochs. `alone`: the first and the last epoch at which the guide alone is
    trained."""
    figure = Figure(figsize=(NARROW, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(*alone, color="0.93", zorder=0)
    axes.fill_between(done, bounds, exact, color=ORANGE, alpha=0.3, linewidth=0)
    axes.plot(done, exact, color=BLUE, marker="o", linestyle="--")
    axes.plot(done, bounds, color=VERMILION, marker="s", linestyle="-")
    axes.set_xlabel("epochs")
    axes.set_ylabel("nats per test image")
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid()
    axes.text(sum(alone) / 2, 0.98, "guide alone", transform=axes.get_xaxis_transform(), ha="center", va="top")
    last = done[-1]
    name_lines(
        axes,
        [
            Name("log p(x), exact", last, exact[-1], BLUE),
            Name("gap: KL(q ‖ p)", last, (exact[-1] + bounds[-1]) / 2, "#8A6000"),
            Name("ELBO", last, bounds[-1], VERMILION),
        ],
    )
    axes.set_title("With the guide alone, log p(x) stays and the gap narrows")
    return figure


@styled
def why_reparametrize(num_draws: int = 20_000) -> Figure:
    """The gradient in mu of E[log p(x | z)], z ~ N(mu, 1), p(x | z) = N(x; z, 1/2), at mu = 0 and x = 1.5: 2 (x - mu).
    One sample gives f(z) (z - mu), or 2 (x - z)."""
    x = 1.5
    noise = torch.randn(num_draws, generator=torch.Generator().manual_seed(0)).double().numpy()
    f = -((x - noise) ** 2) - 0.5 * np.log(np.pi)
    estimates = {"score function": f * noise, "reparametrized": 2 * (x - noise)}
    figure = Figure(figsize=(NARROW, 3.0), layout="constrained")
    axes = figure.subplots()
    styles: list[dict[str, Any]] = [
        {"facecolor": "#F3C9A5", "edgecolor": VERMILION},
        {"facecolor": "none", "edgecolor": BLUE, "linewidth": 1.6},
    ]
    places = ((0.06, 0.35, VERMILION), (0.62, 0.7, BLUE))
    for (name, values), style, (left, height, color) in zip(estimates.items(), styles, places, strict=True):
        axes.hist(values, list(range(-15, 21)), density=True, histtype="stepfilled", **style)
        text = f"{name}:\nsd {values.std():.1f}"
        axes.text(left, height, text, transform=axes.transAxes, color=color, va="center")
    axes.axvline(2 * x, color=BLACK, linestyle="--")
    axes.annotate(f"the gradient, {2 * x:g}", (2 * x, 0.98), xycoords=axes.get_xaxis_transform(), **_RIGHT)
    axes.margins(y=0.12)
    axes.set_xlabel("estimate of the gradient from one sample")
    axes.set_ylabel("density")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.questions", description=__doc__)
    parser.add_argument("--data", default="mnist", help="as --data of fit")
    parser.add_argument("--fits", type=int, default=16, help="points of what rises with the bound")
    parser.add_argument("--epochs", type=int, default=1, help="of each of these fits")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="directory for the pictures")
    given = parser.parse_args(arguments)
    make_folder(given.out)
    data = load_data(DataOptions(given.data, "static"))
    figures = {
        "why_logarithms": why_logarithms(data),
        "why_reparametrize": why_reparametrize(),
        "two_things": two_things(given.data, given.fits, given.epochs),
    }
    for name, figure in figures.items():
        figure.write(given.out / f"{name}.png")
        print(f"written to {given.out / name}.png")


if __name__ == "__main__":
    cli.main(lambda _: main())
