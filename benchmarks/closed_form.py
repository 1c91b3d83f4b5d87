"""Estimators of log p(x) on probabilistic PCA, where it is known: `python -m benchmarks.closed_form`.

The models are principal components of 2,000 training images; nothing is trained.

1. Prior sampling, and importance sampling from a factorized guide, on test images: how far off log p(x) they are,
   against the number of samples and of latent units.
2. Bidirectional Monte Carlo on images from the model: how far the lower and the upper bound are from log p(x), against
   the number of temperatures and of latent units.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core import cli
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.calibration import Marginals
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLUE, LINES, NARROW, VERMILION, Name, name_lines, plain, styled
from ppl_gen.inference.annealed import Annealing, bidirectional_bounds
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.models.factor_analysis import FactorAnalysis

_LEAST = 1e-5  # nats: smaller errors are rounding
_UPPER: dict[str, Any] = {"color": VERMILION, "marker": "v", "linestyle": "-"}
_LOWER: dict[str, Any] = {"color": BLUE, "marker": "^", "linestyle": "--", "markerfacecolor": "white"}
Curves = dict[int, dict[int, tuple[float, ...]]]
"""latent size -> samples or temperatures -> nats: two errors or two bounds, and the standard errors of these two."""


def principal_components(data: Data, latent_dim: int) -> FactorAnalysis:
    """Along axes turned at random: along their own the posterior is factorized, and so would be the guide."""
    model = FactorAnalysis(data.dim, data.examples(0), data.mean(), latent_dim=latent_dim, noise="isotropic")
    turn, _ = torch.linalg.qr(torch.randn(latent_dim, latent_dim, generator=torch.Generator().manual_seed(0)))
    model.requires_grad_(False).scaled_weight.copy_(turn @ model.scaled_weight)
    return model


def misses(model: FactorAnalysis, x: Tensor, num_samples: int) -> tuple[float, float, float, float]:
    """Root-mean-square errors of log p(x) over the images, from the prior and from the guide, and the standard errors
    of these two, by the delta method."""
    exact = model.log_px(x)
    prior = proposal_log_px(model, [], x, num_samples=num_samples, prior_share=1)
    guide = proposal_log_px(model, [Marginals(model)], x, num_samples=num_samples)
    squares = torch.stack([(found.log_px - exact).square() for found in (prior, guide)])
    roots = squares.mean(1).sqrt()
    errors = squares.std(1) / len(x) ** 0.5 / (2 * roots).clamp(min=1e-12)
    from_prior, from_guide = roots.tolist()
    return from_prior, from_guide, *errors.tolist()


def bounds(model: FactorAnalysis, num_images: int, num_temperatures: int) -> tuple[float, float, float, float]:
    """Means over the images of the lower and the upper bound less log p(x), and the standard errors of these two."""
    found = bidirectional_bounds(model, num_images, annealing=Annealing(num_temperatures))
    exact = model.log_px(found.x)
    away = torch.stack([found.lower - exact, found.upper - exact])
    lower, upper = away.mean(1).tolist()
    return lower, upper, *(away.std(1) / num_images**0.5).tolist()


@styled
def draw_misses(curves: Curves) -> Figure:
    """A panel for z from the prior, and one for z from the guide: errors ± 1.96 standard errors against samples."""
    figure = Figure(figsize=(NARROW, 6.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for index, (axes, name) in enumerate(zip(panels, ("the prior", "a factorized guide"), strict=True)):
        axes.set_xscale("log")
        axes.set_yscale("log")
        for points, style in zip(curves.values(), LINES, strict=False):
            values = [max(each[index], _LEAST) for each in points.values()]
            bars = [1.96 * each[index + 2] for each in points.values()]
            low = [min(bar, value - min(value, _LEAST)) for bar, value in zip(bars, values, strict=True)]
            axes.errorbar(list(points), values, [low, bars], **style)
        for axis in (axes.xaxis, axes.yaxis):
            plain(axis)
        axes.set_ylim(bottom=_LEAST)
        axes.set_ylabel("error of log p(x), nats")
        axes.set_title(f"z from {name}", loc="left")
        axes.grid()
    for index, axes in enumerate(panels):  # once the panels have the limits of both
        ends = zip(curves.items(), LINES, strict=False)
        name_lines(
            axes,
            [
                Name(_units(units), list(points)[-1], max(list(points.values())[-1][index], _LEAST), style["color"])
                for (units, points), style in ends
            ],
        )
    panels[1].set_xlabel("S, importance samples")
    return figure


@styled
def draw_bounds(curves: Curves) -> Figure:
    """A panel for each number of units: both bounds less the truth, ± 1.96 standard errors."""
    figure = Figure(figsize=(NARROW, 0.6 + 1.75 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    panels[0].set_xscale("log")
    panels[0].set_yscale("symlog", linthresh=0.1)
    for axes, (units, points) in zip(panels, curves.items(), strict=True):
        for index, style, aside in ((1, _UPPER, 1.04), (0, _LOWER, 1 / 1.04)):
            values, errors = ([each[index + shift] for each in points.values()] for shift in (0, 2))
            axes.errorbar([aside * each for each in points], values, [1.96 * each for each in errors], **style)
        axes.axhline(0, color="0.4", linewidth=1)
        axes.set_title(_units(units), loc="left")
        axes.grid()
    for axis in (panels[0].xaxis, panels[0].yaxis):
        plain(axis)
    largest = max(abs(value) for points in curves.values() for each in points.values() for value in each[:2])
    ticks = [tick for tick in (0.1, 1, 10, 100) if tick <= max(10 * largest, 0.1)]
    panels[0].set_yticks([*(-tick for tick in ticks[::-1]), 0, *ticks])
    for axes, points in zip(panels, curves.values(), strict=True):
        last, (lower, upper, *_) = list(points.items())[-1]
        names = (
            ("upper bound", upper, _UPPER),
            ("exact log p(x)", 0.0, {"color": "0.4"}),
            ("lower bound", lower, _LOWER),
        )
        name_lines(axes, [Name(name, last, value, style["color"]) for name, value, style in names])
    panels[-1].set_xlabel("temperatures")
    figure.supylabel("bound − exact log p(x), nats per image")
    return figure


def _units(count: int) -> str:
    return f"{count} latent unit{'' if count == 1 else 's'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closed_form", description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--units", type=int, nargs="+", default=[1, 2, 5, 10, 20, 50], help="latent sizes")
    parser.add_argument("--num-samples", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--num-temperatures", type=int, nargs="*", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--num-images", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    given = parser.parse_args()
    data = load_data(DataOptions(given.data, "dequantized"))
    x = data.targets("test")[: given.num_images]
    for title, name, counts, columns in (
        (
            "Prior sampling and importance sampling",
            "prior_sampling",
            given.num_samples,
            ("prior", "guide", "prior s.e.", "guide s.e."),
        ),
        (
            "Annealing between two bounds",
            "annealing_bounds",
            given.num_temperatures,
            ("lower", "upper", "lower s.e.", "upper s.e."),
        ),
    ):
        samples = name == "prior_sampling"
        print(
            f"{title}, nats per image\nunits  {'S' if samples else 'T':>6}  "
            + "  ".join(f"{name:>10}" for name in columns)
            + "  seconds"
        )
        curves: Curves = {}
        for units in given.units:
            model = principal_components(data, units)
            curves[units] = {}
            for count in counts:
                torch.manual_seed(0)
                started = time.perf_counter()
                with torch.no_grad():
                    found = misses(model, x, count) if samples else bounds(model, len(x), count)
                curves[units][count] = found
                seconds = time.perf_counter() - started
                print(
                    f"{units:5}  {count:6}",
                    *(f"{each:10.3f}" for each in found),
                    f"{seconds:7.1f}",
                    sep="  ",
                    flush=True,
                )
        if counts:
            draw = draw_misses if samples else draw_bounds
            draw(curves).write(given.out / f"{name}.png")


if __name__ == "__main__":
    cli.main(lambda _: main())
