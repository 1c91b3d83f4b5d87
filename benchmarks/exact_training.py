"""What the bound costs the model: `python -m benchmarks.exact_training`.

The same 2-500-784 tanh decoder is trained without a guide, by the sum over a shifted grid of z; by the ELBO; and by
IWAE with 20 samples and doubly reparametrized gradients. At some epochs of each training, log p(x) of the test images
is computed by quadrature, and stands beside the ELBO and the importance-sampled value with 50 samples. At the end a
guide is fitted to the decoder that was trained without one. Every training that is done is written to a JSON file, and
not made again. Printed are means over the seeds, with their standard deviation.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pages import numbers
from benchmarks.pages import table as read_table
from ppl_gen.core import cli
from ppl_gen.core.files import make_folder
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.canvas import Figure
from ppl_gen.figures.style import BLACK, BLUE, NARROW, VERMILION, Name, name_lines, styled
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.quadrature import quadrature_log_px
from ppl_gen.run import Run

METHODS: dict[str, dict[str, Any]] = {
    "grid": {"guide": "grid"},
    "elbo": {"guide": "normal"},
    "iwae": {"guide": "normal", "objective": "dreg", "num_particles": 20},
}
REFITTED = "grid, guide refitted"
_DRAWN: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("grid", "exact", "the sum: log p(x)", {"color": BLACK, "marker": "o", "linestyle": "-"}),
    ("iwae", "exact", "IWAE: log p(x)", {"color": BLUE, "marker": "s", "linestyle": "-"}),
    ("iwae", "importance", "IWAE: importance\nsampling", {"color": BLUE, "marker": "D", "linestyle": ":"}),
    ("elbo", "exact", "ELBO: log p(x)", {"color": VERMILION, "marker": "^", "linestyle": "-"}),
    ("elbo", "importance", "ELBO: importance\nsampling", {"color": VERMILION, "marker": "v", "linestyle": ":"}),
    ("elbo", "elbo", "ELBO: its ELBO", {"color": VERMILION, "marker": "x", "linestyle": "--"}),
)
"""The curves: what the model was trained by, what is drawn of it, its name and style."""
LOW = 0.5
"""Nats by which a trusted image is called too low."""


def measure(fitted: Fitted, num_images: int) -> dict[str, Any]:
    """log p(x) of the test images, and where there is a guide, its ELBO and importance-sampled log p(x)."""
    x = fitted.images("test", num_images)[0]
    with fitted.estimating(0):
        by_grid = quadrature_log_px(fitted.model, x)
        exact = by_grid.log_px
        found = {"exact": by_grid.mean, "change": float(by_grid.change.max()), "images": len(x)}
        if not fitted.pair.discretized:
            sampled = log_marginal_likelihood(fitted.model, fitted.guide, x, num_samples=50, ask_again=False)
            low = exact - sampled.log_px
            found |= {
                "elbo": float(sampled.elbo.mean()),
                "importance": sampled.mean,
                "trusted": int((~sampled.untrusted).sum()),
                "trusted_and_low": int(((low > LOW) & ~sampled.untrusted).sum()),
            }
    return found


def train(method: str, seed: int, given: argparse.Namespace, **options: Any) -> list[dict[str, Any]]:
    """Train, and measure at the epochs that are given."""
    records: list[dict[str, Any]] = []
    epochs = given.epochs if method != REFITTED else [max(given.epochs)]  # its model does not change
    measuring = 0.0

    def on_epoch(run: Run, line: dict[str, Any]) -> None:
        nonlocal measuring
        if line["epoch"] not in epochs:
            return
        before = time.perf_counter()
        minutes = (line["seconds"] - measuring) / 60
        found = measure(run.fitted, given.num_images)
        split = line.get("validation", line["train"])
        bias = {"grid_bias": split["grid_bias"]} if "grid_bias" in split else {}
        records.append({"method": method, "seed": seed, "epoch": line["epoch"], "minutes": minutes, **found, **bias})
        print(json.dumps(records[-1]), flush=True)
        measuring += time.perf_counter() - before

    chosen: dict[str, Any] = {
        "epochs": max(given.epochs),
        "batch_size": 250,
        "learning_rate": 1e-3,
        "num_samples": 50,
        "device": given.device,
        "seed": seed,
    }
    Run.fit(out=given.runs / _name(method, seed), on_epoch=on_epoch, quiet=True, **chosen | options)
    return records


def _name(method: str, seed: int) -> str:
    """The name of a run directory."""
    return f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"


def table(records: Sequence[dict[str, Any]]) -> str:
    """The means over the seeds, in markdown."""
    lines = [
        "| trained by | epochs | minutes | log p(x) | largest change by half the step | ELBO | importance, S = 50 | "
        "images trusted | of these half a nat low |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = {(record["method"], record["epoch"]): None for record in records}
    for method, epoch in sorted(groups, key=lambda group: (group[1], group[0])):
        of = [record for record in records if (record["method"], record["epoch"]) == (method, epoch)]
        cells = [method, f"{epoch}", f"{statistics.mean(each['minutes'] for each in of):.1f}"]
        cells += [_mean([each["exact"] for each in of]), f"{max(each['change'] for each in of):.1g}"]
        if "elbo" in of[0]:
            cells += [_mean([each[key] for each in of]) for key in ("elbo", "importance")]
            total = sum(each["images"] for each in of)
            cells += [f"{sum(each[key] for each in of) / total:.1%}" for key in ("trusted", "trusted_and_low")]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> str:
    """Mean over seeds, with the standard deviation if there are several."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


Curves = dict[tuple[str, str], dict[int, tuple[float, float]]]
"""(method, value) -> epoch -> mean over seeds and standard deviation in nats"""


def curves(records: Sequence[dict[str, Any]]) -> Curves:
    """Means and standard deviations over the seeds; of one seed, the deviation is 0."""
    found: Curves = {}
    for method, key, *_ in _DRAWN:
        epochs = dict.fromkeys(record["epoch"] for record in records if record["method"] == method)
        for epoch in epochs:
            of = [each[key] for each in records if (each["method"], each["epoch"]) == (method, epoch)]
            deviation = statistics.stdev(of) if len(of) > 1 else 0.0
            found.setdefault((method, key), {})[epoch] = (statistics.mean(of), deviation)
    return found


def from_table() -> Curves:
    """The same from the table in docs/."""
    _, *rows = read_table("trained by", "epochs", "log p(x)")
    methods, columns = (
        {"the sum": "grid", "ELBO": "elbo", "IWAE, k = 20": "iwae"},
        {"exact": 2, "elbo": 3, "importance": 4},
    )
    found: Curves = {}
    for method, key, *_ in _DRAWN:
        for row in rows:
            if methods[row[0]] == method:
                mean, deviation = numbers(row[columns[key]])
                found.setdefault((method, key), {})[int(row[1])] = (mean, deviation)
    return found


@styled
def draw(found: Curves) -> Figure:
    """Exact log p(x), and the bound that each method reports, against epochs: means over the seeds, with bars of one
    standard deviation."""
    figure = Figure(figsize=(NARROW, 3.8), layout="constrained")
    axes = figure.subplots()
    names = []
    for method, key, name, style in _DRAWN:
        if (method, key) in found:
            epochs, points = list(found[method, key]), list(found[method, key].values())
            axes.errorbar(epochs, [mean for mean, _ in points], [bar for _, bar in points], **style)
            names.append(Name(name, epochs[-1], points[-1][0], style["color"]))
    axes.set_xlabel("epochs")
    axes.set_ylabel("nats per image")
    axes.set_xticks(sorted({epoch for each in found.values() for epoch in each}))
    axes.grid()
    name_lines(axes, names)
    axes.set_title("What training on a bound costs the model")
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact_training", description=__doc__)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20, 50], help="epochs to measure at")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--points", type=int, default=40, help="points of the training grid for each unit of z")
    parser.add_argument("--num-images", type=int, default=10_000, help="test images")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--small", action="store_true", help="one seed, digits and few points, to try it")
    parser.add_argument("--runs", type=Path, default=Path("runs/exact-training"), help="where the fits are")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/exact_training.png"), help="the picture")
    parser.add_argument("--draw-only", action="store_true", help="draw the numbers of the table in docs/")
    given = parser.parse_args(arguments)
    make_folder(given.out.parent)
    if given.draw_only:
        draw(from_table()).write(given.out)
        return
    hidden = 500
    if given.small:
        given.epochs, given.seeds, given.data, hidden = [1, 2], [0], "digits", 16
        given.points, given.num_images = 10, 50
    path = given.runs / "exact-training.json"
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    decoder = {"model": "vae", "latent_dim": 2, "hidden_dims": (hidden,), "activation": "tanh", "data": given.data}
    for seed in given.seeds:
        for method in (*given.methods, *([REFITTED] if "grid" in given.methods else [])):
            if any((each["method"], each["seed"]) == (method, seed) for each in records):
                continue
            if method == REFITTED:
                options = {"init_from": given.runs / _name("grid", seed), "guide": "normal", "fixed_model": True}
            else:
                options = decoder | METHODS[method]
            if method == "grid":
                options["guide_options"] = {"points": given.points}
            records += train(method, seed, given, **options)
            path.write_text(json.dumps(records, indent=1))
    print(table(records))
    draw(curves(records)).write(given.out)


if __name__ == "__main__":
    cli.main(lambda _: main())
