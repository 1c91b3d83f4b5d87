"""`python -m ppl_gen.evaluate RUN`: the bound against log p(x)."""

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro
from torch import nn

from ppl_gen import cli
from ppl_gen.data import Data, SplitName, load_data
from ppl_gen.errors import require
from ppl_gen.inference.importance import Estimates, log_marginal_likelihood, mean_se
from ppl_gen.loading import Checkpoint, Config, assemble, changed_files, config_of, load_checkpoint, read_pair
from ppl_gen.progress import Progress
from ppl_gen.runs import Run
from ppl_gen.training import resolve_device, takes_labels

if TYPE_CHECKING:
    import xarray

GROUP = "evaluation"
"""Group of `evaluation.nc` that holds the variables."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What to estimate, and on which images."""

    split: SplitName = "test"
    """Images to evaluate."""
    num_images: int | None = None
    """The first N of the split; all by default."""
    num_samples: int | None = None
    """Importance samples of z per image; by default as many as after training. The literature's is 5000."""
    estimator: Literal["auto", "importance"] = "auto"
    """Of log p(x). auto: the best that the model has."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    seed: int = 0
    """Of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        for name in ("num_images", "num_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[EvaluationOptions, tyro.conf.arg(name="")] = field(default_factory=EvaluationOptions)
    model: str | None = None
    """file.py:Class of the model, again, if the run was fitted with your own."""
    guide: str | None = None
    """file.py:Class of the guide, again, if the run was fitted with your own."""


def evaluate(
    run: Run,
    config: Config,
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    options: EvaluationOptions,
    quiet: bool = False,
) -> dict[str, Any]:
    """Estimate, write `evaluation.nc` and `evaluation.json`, and return the content of the latter."""
    split = data.split(options.split)
    count = len(split) if options.num_images is None else options.num_images
    require(count <= len(split), "num_images", count, f"the {options.split} split has {len(split)}")
    num_samples = options.num_samples or config.num_samples
    x = data.targets(options.split)[:count]
    labels = None if split.labels is None else split.labels[:count]
    args = (labels,) if labels is not None and takes_labels(model, guide) else ()

    started = time.perf_counter()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            Progress(count, "image", quiet=quiet) as progress,
            torch.random.fork_rng([x.device] if x.is_cuda else []),
        ):
            torch.manual_seed(options.seed)

            def advance(images: int) -> None:
                progress.advance(images)
                progress.note("log p(x)", f"{num_samples} samples per image", every=10)

            estimates = log_marginal_likelihood(model, guide, x, *args, num_samples=num_samples, progress=advance)
    finally:
        torch.set_float32_matmul_precision(precision)
    pair, _ = read_pair(model, guide, data)
    binary = bool(((x == 0) | (x == 1)).all())
    summary = {
        "model": config.model,
        "guide": config.guide,
        "data": data.name,
        "split": options.split,
        "num_images": count,
        "binarization": data.binarization,
        "observation": ("probability" if binary else "cross-entropy") if pair.discrete else "density",
        "seed": options.seed,
        "training_seed": config.training.seed,
        "checkpoint": options.checkpoint,
        **summarize(estimates),
        "num_parameters": sum(p.numel() for p in nn.ModuleDict({"model": model, "guide": guide}).parameters()),
        "seconds": time.perf_counter() - started,
    }
    per_image = dataset(estimates, None if labels is None else labels.cpu(), summary)
    run.write_file("evaluation.nc", lambda path: per_image.to_netcdf(path, group=GROUP, engine="h5netcdf"))
    run.write_json("evaluation.json", summary)  # last: it says that the evaluation is complete
    return summary


def summarize(estimates: Estimates) -> dict[str, Any]:
    """The means over images, in nats, for `evaluation.json`."""

    def entry(values: torch.Tensor, **more: Any) -> dict[str, Any]:
        mean, se = mean_se(values)
        return {"mean": mean, "se": se, **more}

    def mc_se(variance: torch.Tensor) -> float:
        return float(variance.sum().sqrt() / len(variance))

    khat = estimates.khat[estimates.khat.isfinite()]
    result: dict[str, Any] = {
        "elbo": entry(estimates.elbo, mc_se=mc_se(estimates.elbo_mc_var)),
        "reconstruction": entry(estimates.reconstruction),
        "kl": entry(estimates.kl),
    }
    if estimates.kl_analytic is not None:
        result["kl_analytic"] = entry(estimates.kl_analytic)
        result["elbo_analytic_kl"] = entry(estimates.reconstruction - estimates.kl_analytic)
    result |= {
        "iwae": {str(k): entry(values) for k, values in estimates.iwae.items()},
        "log_px": entry(
            estimates.log_px,
            mc_se=mc_se(estimates.log_px_mc_var),
            bias=float(estimates.log_px_bias.mean()),
            estimator="importance",
            num_samples=estimates.num_samples,
        ),
        "gap": entry(estimates.gap, at_least=bool(estimates.untrusted.any())),
        "ess": {"median": float(estimates.ess.median()), "min": float(estimates.ess.min())},
    }
    if len(khat):
        result["khat"] = {
            "median": float(khat.median()),
            "fraction_above_0.7": float((estimates.khat > 0.7).double().mean()),
            "threshold": estimates.khat_threshold,
            "fraction_above_threshold": float(estimates.untrusted.double().mean()),
        }
    if estimates.latent_mean and len(estimates.elbo) > 1:
        result["active_units"] = estimates.active_units
    return result


def dataset(estimates: Estimates, labels: torch.Tensor | None, summary: dict[str, Any]) -> "xarray.Dataset":
    """Everything per image, labelled."""
    import xarray

    names = {
        "elbo": "ELBO",
        "reconstruction": "E[log p(x|z)]",
        "kl": "E[log q(z|x) - log p(z)]",
        "kl_analytic": "KL(q(z|x) || p(z))",
        "log_px": "log p(x)",
        "log_px_bias": "jackknife estimate of the bias of log p(x)",
        "gap": "log p(x) - ELBO",
    }
    variables: dict[str, Any] = {}
    for name, title in names.items():
        values = getattr(estimates, name)
        if values is not None:
            variables[name] = ("image", values.numpy(), {"long_name": title, "units": "nats"})
    for name, title in (("elbo", "ELBO"), ("log_px", "log p(x)")):
        variance = getattr(estimates, f"{name}_mc_var")
        variables[f"{name}_mc_se"] = (
            "image", variance.sqrt().numpy(), {"long_name": f"Monte Carlo standard error of {title}", "units": "nats"},
        )  # fmt: skip
    variables["ess"] = (
        "image",
        estimates.ess.numpy(),
        {"long_name": "effective sample size", "units": "samples"},
    )
    variables["khat"] = ("image", estimates.khat.numpy(), {"long_name": "Pareto k-hat", "units": "1"})
    untrusted = estimates.untrusted.to(torch.int8).numpy()
    variables["untrusted"] = ("image", untrusted, {"long_name": "k-hat too high or unknown: at least"})
    iwae = torch.stack(list(estimates.iwae.values()), 1).numpy()
    variables["iwae"] = (("image", "k"), iwae, {"long_name": "IWAE bound", "units": "nats"})
    coordinates: dict[str, Any] = {"image": range(len(estimates.elbo)), "k": list(estimates.iwae)}
    if labels is not None:
        coordinates["label"] = ("image", labels.numpy())
    plain = {key: value for key, value in summary.items() if isinstance(value, str | int | float)}
    attributes = plain | {"estimator": "importance", "num_samples": estimates.num_samples}
    return xarray.Dataset(variables, coordinates, attributes)


def table(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    s, log_px = summary, summary["log_px"]
    at_least = "at least" if s["gap"]["at_least"] else ""

    def row(name: str, key: dict[str, Any], note: str = "", prefix: str = "") -> str:
        value = f"{prefix:>9}{key['mean']:9.2f}" + (f" ± {key['se']:.2f}" if math.isfinite(key["se"] or 0) else "")
        return f"  {name:<22}{value:<28}{note}".rstrip()

    rows = [
        f"{s['model']}, guide {s['guide']}: {s['num_images']} {s['split']} images of {s['data']}, "
        f"binarization {s['binarization']}",
        "nats per image ± standard error over images; larger is better",
        row("ELBO", s["elbo"], f"mean of {log_px['num_samples']} samples"),
        row("  reconstruction", s["reconstruction"]),
        row("  KL", s["kl"], f"analytic {s['kl_analytic']['mean']:.2f}" if "kl_analytic" in s else ""),
        *(row(f"IWAE bound, k = {k}", entry) for k, entry in s["iwae"].items() if k != "1"),
        row(
            "log p(x)",
            log_px,
            f"S = {log_px['num_samples']} importance samples; Monte Carlo error {_small(log_px['mc_se'])}, "
            f"estimated bias {_small(log_px['bias'])}",
            at_least,
        ),
        row("gap: log p(x) - ELBO", s["gap"], "", at_least),
        f"  effective sample size  median {s['ess']['median']:.1f}, least {s['ess']['min']:.1f} "
        f"of {log_px['num_samples']}",
    ]
    if "khat" in s:
        rows.append(
            f"  Pareto k-hat           median {s['khat']['median']:.2f}; above {s['khat']['threshold']:.2f}, not to be "
            f"trusted: {s['khat']['fraction_above_threshold']:.1%} of images"
        )
    if "active_units" in s:
        rows.append(f"  active latent units    {s['active_units']}")
    rows.append(f"  parameters             {s['num_parameters']:,}")
    rows.append(f"  evaluation took        {s['seconds']:.0f} s")
    if s["observation"] == "cross-entropy":
        rows.append("  grey values under a Bernoulli: these figures are no bound on a log-probability of any data")
    if s["observation"] == "density":
        rows.append("  densities of grey pixels: not comparable with probabilities of binary ones")
    return "\n".join(rows)


def _small(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}" if abs(value) < 0.01 else f"{value:.2f}"


def command(arguments: list[str]) -> None:
    given = cli.parse(
        Command,
        arguments,
        "python -m ppl_gen.evaluate",
        "ELBO, IWAE bounds and importance-sampled log p(x) of a run.",
    )
    run = Run.open(given.run)
    config = config_of(run, model=given.model, guide=given.guide)
    device = resolve_device(given.options.device)
    from ppl_gen.figures.run import draw_evaluation

    for file in changed_files(run, config):
        print(f"warning: {file} has changed since the run was fitted", file=sys.stderr)
    data = load_data(config.data).to(device)
    model, guide = assemble(config, data)
    load_checkpoint(run, model, guide, given.options.checkpoint)
    summary = evaluate(run, config, model, guide, data, given.options)
    draw_evaluation(run)
    print(table(summary))
    print(f"written to {run.path / 'evaluation.json'} and evaluation.nc")


if __name__ == "__main__":
    cli.main(command)
