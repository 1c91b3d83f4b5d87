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

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_gen.core import cli
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.calibration import Marginals
from ppl_gen.inference.annealed import Annealing, bidirectional_bounds
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.models.factor_analysis import FactorAnalysis

LINES = ("ko-", "ks--", "k^-.", "kv:", "kx-", "kd--")
Curves = dict[int, dict[int, tuple[float, ...]]]
"""latent size -> samples or temperatures -> figures in nats: two errors, or two bounds and their standard errors."""


def principal_components(data: Data, latent_dim: int) -> FactorAnalysis:
    """Along axes turned at random: along their own the posterior is factorized, and so would be the guide."""
    model = FactorAnalysis(data.dim, data.examples(0), data.mean(), latent_dim=latent_dim, noise="isotropic")
    turn, _ = torch.linalg.qr(torch.randn(latent_dim, latent_dim, generator=torch.Generator().manual_seed(0)))
    model.requires_grad_(False).scaled_weight.copy_(turn @ model.scaled_weight)
    return model


def misses(model: FactorAnalysis, x: Tensor, num_samples: int) -> tuple[float, float]:
    """Root-mean-square errors of log p(x) over the images, from the prior and from the guide."""
    exact = model.log_px(x)
    prior = proposal_log_px(model, [], x, num_samples=num_samples, prior_share=1)
    guide = proposal_log_px(model, [Marginals(model)], x, num_samples=num_samples)
    squares = [(found.log_px - exact).square().mean() for found in (prior, guide)]
    return float(squares[0].sqrt()), float(squares[1].sqrt())


def bounds(model: FactorAnalysis, num_images: int, num_temperatures: int) -> tuple[float, float, float, float]:
    """Means over the images of the lower and the upper bound less log p(x), and the standard errors of these two."""
    found = bidirectional_bounds(model, num_images, annealing=Annealing(num_temperatures))
    exact = model.log_px(found.x)
    away = torch.stack([found.lower - exact, found.upper - exact])
    lower, upper = away.mean(1).tolist()
    return lower, upper, *(away.std(1) / num_images**0.5).tolist()


def draw_misses(curves: Curves, title: str) -> Figure:
    figure = Figure(figsize=(8.6, 4.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for index, (axes, name) in enumerate(zip(panels, ("the prior", "a factorized guide"), strict=True)):
        for (units, points), line in zip(curves.items(), LINES, strict=False):
            values = [max(each[index], 1e-5) for each in points.values()]
            axes.plot(list(points), values, line, label=_units(units), markersize=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("S, importance samples")
        axes.set_title(f"z from {name}", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("root-mean-square error of log p(x), nats")
    panels[1].legend(fontsize=8, loc="best")
    figure.suptitle(title, fontsize=10)
    return figure


def draw_bounds(curves: Curves, title: str) -> Figure:
    """A panel for each number of units: both bounds, each with its error, about the truth."""
    figure = Figure(figsize=(1.2 + 2.6 * len(curves), 4.0), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharex=True, sharey=True)[0]
    panels[0].set_xscale("log")
    panels[0].set_yscale("symlog", linthresh=0.1)
    for axes, (units, points) in zip(panels, curves.items(), strict=True):
        for index, line, name, aside in ((1, "kv-", "upper bound", 1.05), (0, "k^--", "lower bound", 1 / 1.05)):
            values, errors = ([each[index + shift] for each in points.values()] for shift in (0, 2))
            where, bars = [aside * each for each in points], [1.96 * each for each in errors]
            axes.errorbar(
                where, values, bars, fmt=line, label=name, capsize=3, markersize=5, mfc="black" if index else "white"
            )
        axes.axhline(0, color="0.5", linewidth=1, label="exact log p(x)")
        axes.set_title(_units(units), fontsize=10)
        axes.set_xlabel("temperatures")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("bound - exact log p(x), nats per image")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{title}: means ± 1.96 standard errors; 16 chains, 10 leapfrog steps", fontsize=10)
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
        ("Prior sampling and importance sampling", "prior_sampling", given.num_samples, ("prior", "guide")),
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
            images = f"{len(x)} {'test images of' if samples else 'images from models of'} {data.name}"
            draw = draw_misses if samples else draw_bounds
            given.out.mkdir(parents=True, exist_ok=True)
            draw(curves, f"{title}: probabilistic PCA\n{images}").savefig(given.out / f"{name}.png", dpi=120)


if __name__ == "__main__":
    cli.main(lambda _: main())
