"""How far the ELBO, the IWAE bounds and importance sampling lie from the exact log p(x), against the number of units
of a belief net: `python -m benchmarks.gap`.

For each M a belief net and its Bernoulli guide are fitted to statically binarized images and evaluated, with 1,000
samples per image and by enumeration. Fits that are there already are not made again.
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppl_gen.core import cli
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.run import Run


def fitted(units: int, out: Path, data: str, epochs: int, num_samples: int) -> dict[str, Any]:
    """The `evaluation.json` of a belief net with M units."""
    path = out / f"belief-net-{units}"
    if (path / "evaluation.json").exists():
        run = RunDirectory.open(path)
    else:
        run = Run.start(
            Config(
                "belief-net",
                {"latent_dim": units},
                "bernoulli",
                {},
                data=DataOptions(data, "static"),
                training=TrainingOptions(epochs=epochs, **training_defaults("belief-net")),
                num_samples=num_samples,
            ),
            out=path,
            quiet=True,
        ).directory
    summary = run.read_json("evaluation.json")
    assert summary is not None
    return summary


def draw(summaries: dict[int, dict[str, Any]]) -> Figure:
    """exact log p(x) - bound in nats against M, a line for each k."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    units = sorted(summaries)
    samples = sorted(int(k) for k in summaries[units[0]]["iwae"])
    for k, style in zip(samples, ("ko-", "ks--", "k^-.", "kv:", "kx-"), strict=False):
        gaps = [summaries[m]["log_px"]["mean"] - summaries[m]["iwae"][str(k)]["mean"] for m in units]
        label = "ELBO (k = 1)" if k == 1 else f"IWAE bound, k = {k}"
        if k == samples[-1]:
            label += " = log p(x) by importance sampling"
        axes.plot(units, gaps, style, label=label, markersize=5)
    axes.set_yscale("log")
    axes.set_xlabel("M, binary units")
    axes.set_ylabel("exact log p(x) - bound, nats per image")
    first = summaries[units[0]]
    images = f"{first['num_images']} {first['split']} images of {first['data']}"
    axes.set_title(f"What each bound of a belief net misses: {images}", fontsize=10)
    axes.set_xticks(units)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gap", description=__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[2, 4, 6, 8, 10, 12, 14, 16], help="values of M")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/gap"), help="where the fits are")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/gap_against_units.png"))
    given = parser.parse_args()
    summaries = {}
    print("   M  exact log p(x)      ELBO  then the IWAE bounds, nats per image, and the guide's k-hat", flush=True)
    for units in given.units:
        s = summaries[units] = fitted(units, given.runs, given.data, given.epochs, given.num_samples)
        bounds = "  ".join(f"k = {k}: {entry['mean']:.2f}" for k, entry in s["iwae"].items() if k != "1")
        khat = f"{s['khat']['median']:.2f}" if "median" in s.get("khat", {}) else "unknown"
        exact = f"{s['log_px']['mean']:8.2f} ± {s['log_px']['se']:.2f}"
        print(f"{units:4d}  {exact}  {s['elbo']['mean']:8.2f}  {bounds}  k-hat {khat}", flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw(summaries).savefig(given.out, dpi=120)


if __name__ == "__main__":
    cli.main(lambda _: main())
