"""`python -m ppl_gen.evaluate RUN`: the bound against log p(x)."""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro
from torch import nn

from ppl_gen import cli
from ppl_gen.data import Data, SplitName
from ppl_gen.errors import BadInput, require
from ppl_gen.inference.enumeration import block_size, cheap, closed_form, exact_blocks, require_memory, state_posterior
from ppl_gen.inference.gaps import Gaps, Search, check_guide, gaps, has_own_weights
from ppl_gen.inference.importance import Estimates, log_marginal_likelihood, mean_se
from ppl_gen.inference.traces import Pair
from ppl_gen.loading import Checkpoint, Config, Named, estimating, open_fitted, read_pair
from ppl_gen.progress import Progress
from ppl_gen.runs import Run
from ppl_gen.training import takes_labels

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
    estimator: Literal["auto", "exact", "importance"] = "auto"
    """Of log p(x). auto: exact where every latent value can be enumerated, or the model has a closed form, else
    importance. What else there is to have stands beside it."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    gaps: bool = False
    """Split log p(x) - ELBO into approximation and amortization gap instead, on 100 images and with 5000 samples if not
    told otherwise; into gaps.json."""
    gap_copies: int = 3
    """Images whose gaps are also split with a copy, for each, of the weights of a guide whose posterior(context) has
    weights of its own, such as a flow."""
    seed: int = 0
    """Of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        for name in ("num_images", "num_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "must be at least 1")
        require(self.gap_copies >= 0, "gap_copies", self.gap_copies, "must be at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[EvaluationOptions, tyro.conf.arg(name="")] = field(default_factory=EvaluationOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


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
    pair, _ = read_pair(model, guide, data)
    exactly, sampled = estimators(model, pair, options.estimator, x.device)
    labels = None if split.labels is None else split.labels[:count]
    args = (labels,) if labels is not None and takes_labels(model, guide) else ()

    started = time.perf_counter()
    with estimating(model, guide, data, options.seed):
        exact = exactly_known(model, guide, pair, x, args, quiet) if exactly else None
        estimates = by_sampling(model, guide, x, args, num_samples, quiet) if sampled else None
        in_use = _in_use(model, pair, x)
    summary = {
        "model": config.model,
        "guide": config.guide,
        **({} if config.prior is None else {"prior": config.prior}),
        "data": data.name,
        "split": options.split,
        "num_images": count,
        "binarization": data.binarization,
        "observation": _observation(pair, x),
        "seed": options.seed,
        "training_seed": config.training.seed,
        "checkpoint": options.checkpoint,
        **summarize(estimates, exact, prefer_exact=options.estimator != "importance"),
        **({"proposal": "prior"} if pair.enumerated and sampled else {}),
        **({"components": {"in_use": in_use, "of": pair.num_states}} if in_use is not None else {}),
        "num_parameters": sum(p.numel() for p in nn.ModuleDict({"model": model, "guide": guide}).parameters()),
        "seconds": time.perf_counter() - started,
    }
    per_image = dataset(estimates, exact, None if labels is None else labels.cpu(), summary)
    run.write_file("evaluation.nc", lambda path: per_image.to_netcdf(path, group=GROUP, engine="h5netcdf"))
    run.write_json("evaluation.json", summary)  # last: it says that the evaluation is complete
    return summary


def _observation(pair: Pair, x: torch.Tensor) -> str:
    """What p(x) is of these images."""
    if not pair.discrete:
        return "density"
    return "probability" if bool(((x == 0) | (x == 1)).all()) else "cross-entropy"


def _warnings(observation: str) -> list[str]:
    if observation == "cross-entropy":
        return ["  grey values under a Bernoulli: these figures are no bound on a log-probability of any data"]
    if observation == "density":
        return ["  densities of grey pixels: not comparable with probabilities of binary ones"]
    return []


def estimators(model: nn.Module, pair: Pair, asked: str, device: torch.device) -> tuple[bool, bool]:
    """Whether to take the exact value, and whether to draw importance samples."""
    if closed_form(model):
        return True, True
    if pair.num_states is None:
        if asked == "exact":
            raise BadInput(
                f"--estimator exact: a latent site of {pair.model_name} has no finite support, and the model no "
                "log_px(x); use importance"
            )
        return False, True
    exactly = asked == "exact" or cheap(pair) or (pair.enumerated and asked == "auto")
    if exactly:
        require_memory(pair, block_size(pair), device=device)
    return exactly, asked == "importance" or not pair.enumerated


def exactly_known(
    model: nn.Module, guide: nn.Module, pair: Pair, x: torch.Tensor, args: tuple[torch.Tensor, ...], quiet: bool
) -> torch.Tensor:
    """Exact log p(x) [images], with progress."""
    blocks = []
    with Progress(len(x), "image", quiet=quiet) as progress:
        for block in exact_blocks(model, guide, pair, x, *args):
            blocks.append(block)
            progress.advance(len(block))
            states = "" if pair.num_states is None else f", {pair.num_states:,} states"
            progress.note("log p(x)", f"exact{states}", every=10)
    return torch.cat(blocks)


def by_sampling(
    model: nn.Module, guide: nn.Module, x: torch.Tensor, args: tuple[torch.Tensor, ...], num_samples: int, quiet: bool
) -> Estimates:
    """Importance sampling, with progress."""
    with Progress(len(x), "image", quiet=quiet) as progress:

        def advance(images: int) -> None:
            progress.advance(images)
            progress.note("log p(x)", f"{num_samples} samples per image", every=10)

        return log_marginal_likelihood(model, guide, x, *args, num_samples=num_samples, progress=advance)


def _in_use(model: nn.Module, pair: Pair, x: torch.Tensor) -> int | None:
    """How many values of a categorical z explain an image's worth of x; None for other models."""
    if pair.num_states is None or list(pair.event_shapes.values()) != [()]:
        return None
    if not (hasattr(model, "prior") and hasattr(model, "likelihood") and cheap(pair)):
        return None
    totals = torch.stack([state_posterior(model, block)[1].sum(1) for block in x.split(1000)]).sum(0)
    return int((totals >= 1).sum())


def summarize(estimates: Estimates | None, exact: torch.Tensor | None, *, prefer_exact: bool = True) -> dict[str, Any]:
    """The means over images, in nats, for `evaluation.json`.

    :param estimates: from importance samples, if there are any.
    :param exact: log p(x) [images], if it is known.
    """

    def entry(values: torch.Tensor, **more: Any) -> dict[str, Any]:
        mean, se = mean_se(values)
        return {"mean": mean, "se": se, **more}

    def mc_se(variance: torch.Tensor) -> float:
        return float(variance.sum().sqrt() / len(variance))

    if estimates is None:
        assert exact is not None
        return {"elbo": entry(exact), "log_px": entry(exact, estimator="exact")}
    khat = estimates.khat[estimates.khat.isfinite()]
    result: dict[str, Any] = {
        "elbo": entry(estimates.elbo, mc_se=mc_se(estimates.elbo_mc_var)),
        "reconstruction": entry(estimates.reconstruction),
        "kl": entry(estimates.kl),
    }
    if estimates.kl_analytic is not None:
        result["kl_analytic"] = entry(estimates.kl_analytic)
        result["elbo_analytic_kl"] = entry(estimates.reconstruction - estimates.kl_analytic)
    importance = entry(
        estimates.log_px,
        mc_se=mc_se(estimates.log_px_mc_var),
        bias=float(estimates.log_px_bias.mean()),
        estimator="importance",
        num_samples=estimates.num_samples,
    )
    result["iwae"] = {str(k): entry(values) for k, values in estimates.iwae.items()}
    if exact is None:
        result |= {"log_px": importance, "gap": entry(estimates.gap, at_least=bool(estimates.untrusted.any()))}
    else:
        both = {"importance": importance, "exact": entry(exact, estimator="exact")}
        first, second = ("exact", "importance") if prefer_exact else ("importance", "exact")
        result |= {"log_px": both[first], f"log_px_{second}": both[second]}
        result["gap"] = entry(exact - estimates.elbo, at_least=False)
    result["ess"] = {"median": float(estimates.ess.median()), "min": float(estimates.ess.min())}
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


def dataset(
    estimates: Estimates | None, exact: torch.Tensor | None, labels: torch.Tensor | None, summary: dict[str, Any]
) -> "xarray.Dataset":
    """Everything per image, labelled. `log_px` is what the summary's is; `log_px_exact` is there where known."""
    import xarray

    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}

    def add(name: str, values: torch.Tensor, title: str, units: str = "nats") -> None:
        variables[name] = ("image", values.numpy(), {"long_name": title, "units": units})

    estimator = summary["log_px"]["estimator"]
    if exact is not None:
        add("log_px_exact", exact, "log p(x), exact")
    if estimates is None:
        assert exact is not None
        add("elbo", exact, "ELBO")
        add("log_px", exact, "log p(x)")
    else:
        log_px = exact if exact is not None and estimator == "exact" else estimates.log_px
        add("elbo", estimates.elbo, "ELBO")
        add("reconstruction", estimates.reconstruction, "E[log p(x|z)]")
        add("kl", estimates.kl, "E[log q(z|x) - log p(z)]")
        if estimates.kl_analytic is not None:
            add("kl_analytic", estimates.kl_analytic, "KL(q(z|x) || p(z))")
        add("log_px", log_px, "log p(x)")
        add("log_px_importance", estimates.log_px, "log p(x) by importance sampling")
        add("log_px_bias", estimates.log_px_bias, "jackknife estimate of the bias of log p(x) by importance sampling")
        add("gap", (estimates.log_px if exact is None else exact) - estimates.elbo, "log p(x) - ELBO")
        add("elbo_mc_se", estimates.elbo_mc_var.sqrt(), "Monte Carlo standard error of ELBO")
        title = "Monte Carlo standard error of log p(x) by importance sampling"
        add("log_px_mc_se", estimates.log_px_mc_var.sqrt(), title)
        add("ess", estimates.ess, "effective sample size", "samples")
        add("khat", estimates.khat, "Pareto k-hat", "1")
        add("untrusted", estimates.untrusted.to(torch.int8), "k-hat too high or unknown: at least", "1")
        iwae = torch.stack(list(estimates.iwae.values()), 1).numpy()
        variables["iwae"] = (("image", "k"), iwae, {"long_name": "IWAE bound", "units": "nats"})
        coordinates["k"] = list(estimates.iwae)
    coordinates["image"] = range(len(variables["elbo"][1]))
    if labels is not None:
        coordinates["label"] = ("image", labels.numpy())
    plain = {key: value for key, value in summary.items() if isinstance(value, str | int | float)}
    attributes = plain | {"estimator": estimator}
    if estimates is not None:
        attributes["num_samples"] = estimates.num_samples
    return xarray.Dataset(variables, coordinates, attributes)


def table(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    s = summary
    importance = s["log_px"] if s["log_px"]["estimator"] == "importance" else s.get("log_px_importance")
    exact = s["log_px"] if s["log_px"]["estimator"] == "exact" else s.get("log_px_exact")
    at_least = "at least" if "gap" in s and s["gap"]["at_least"] else ""

    def row(name: str, key: dict[str, Any], note: str = "", prefix: str = "") -> str:
        value = f"{prefix:>9}{key['mean']:9.2f}" + (f" ± {key['se']:.2f}" if math.isfinite(key["se"] or 0) else "")
        return f"  {name:<22}{value:<28}{note}".rstrip()

    rows = [
        f"{s['model']}, guide {s['guide']}{_of_prior(s)}: {s['num_images']} {s['split']} images of {s['data']}, "
        f"binarization {s['binarization']}",
        "nats per image ± standard error over images; larger is better",
    ]
    if importance is not None:
        rows += [
            row("ELBO", s["elbo"], f"mean of {importance['num_samples']} samples"),
            row("  reconstruction", s["reconstruction"]),
            row("  KL", s["kl"], f"analytic {s['kl_analytic']['mean']:.2f}" if "kl_analytic" in s else ""),
            *(row(f"IWAE bound, k = {k}", entry) for k, entry in s["iwae"].items() if k != "1"),
            row(
                "log p(x)",
                importance,
                f"S = {importance['num_samples']} importance samples"
                f"{' from the prior' if s.get('proposal') == 'prior' else ''}; Monte Carlo error "
                f"{_small(importance['mc_se'])}, estimated bias {_small(importance['bias'])}",
                at_least,
            ),
        ]
    if exact is not None:
        rows.append(row("log p(x)", exact, "exact"))
    if importance is not None:
        rows.append(row("gap: log p(x) - ELBO", s["gap"], "", at_least))
        rows.append(
            f"  effective sample size  median {s['ess']['median']:.1f}, least {s['ess']['min']:.1f} "
            f"of {importance['num_samples']}"
        )
    if "khat" in s:
        rows.append(
            f"  Pareto k-hat           median {s['khat']['median']:.2f}; above {s['khat']['threshold']:.2f}, not to be "
            f"trusted: {s['khat']['fraction_above_threshold']:.1%} of images"
        )
    if "active_units" in s:
        rows.append(f"  active latent units    {s['active_units']}")
    if "components" in s:
        used, of = s["components"]["in_use"], s["components"]["of"]
        empty = f"; {of - used} explain less than one of these images each" if used < of else ""
        rows.append(f"  components in use      {used} of {of}{empty}")
    rows.append(f"  parameters             {s['num_parameters']:,}")
    rows.append(f"  evaluation took        {s['seconds']:.0f} s")
    return "\n".join(rows + _warnings(s["observation"]))


def split_gap(
    run: Run,
    config: Config,
    model: nn.Module,
    guide: Any,
    data: Data,
    options: EvaluationOptions,
    quiet: bool = False,
) -> dict[str, Any]:
    """The gap and its two parts (`ppl_gen.inference.gaps`): written to `gaps.json`, and returned."""
    if takes_labels(model, guide):
        raise BadInput(f"--gaps: {config.model} or its guide takes labels, which a search of contexts has not")
    split = data.targets(options.split)
    count = min(100, len(split)) if options.num_images is None else options.num_images
    require(count <= len(split), "num_images", count, f"the {options.split} split has {len(split)}")
    num_samples = options.num_samples or 5000
    x, search = split[:count], Search()
    pair, _ = read_pair(model, guide, data)
    check_guide(pair, guide)
    started = time.perf_counter()
    with estimating(model, guide, data, options.seed):
        copies = min(options.gap_copies, count) if has_own_weights(guide, x) else 0
        with Progress(count + copies, "image", quiet=quiet) as progress:

            def advance(images: int) -> None:
                progress.advance(images)
                progress.note("gaps", f"{search.num_samples} samples a step, {num_samples} after", every=10)

            found = gaps(model, guide, x, num_samples=num_samples, search=search, progress=advance)
            own = None
            if copies:
                own = gaps(
                    model, guide, x[:copies], num_samples=num_samples, search=search, own_weights=True, progress=advance
                )
    summary = {
        "model": config.model,
        "guide": config.guide,
        **({} if config.prior is None else {"prior": config.prior}),
        "data": data.name,
        "split": options.split,
        "binarization": data.binarization,
        "observation": _observation(pair, x),
        "seed": options.seed,
        "training_seed": config.training.seed,
        "checkpoint": options.checkpoint,
        "num_samples": num_samples,
        "search": asdict(search),
        "contexts": _parts(found),
        **({} if own is None else {"copies": _parts(own), "contexts_of_these": _parts(found, copies)}),
        "seconds": time.perf_counter() - started,
    }
    run.write_json("gaps.json", summary)
    return summary


def _parts(found: Gaps, count: int | None = None) -> dict[str, Any]:
    """The means over the first images, and every image's, in nats."""
    values = {
        name: getattr(found, name)[:count] for name in ("log_px", "elbo", "best_elbo", "approximation", "amortization")
    }
    means: dict[str, dict[str, float]] = {}
    for name, each in values.items():
        mean, se = mean_se(each)
        variance = getattr(found, f"{name}_mc_var")[:count]
        means[name] = {"mean": mean, "se": se, "mc_se": float(variance.sum().sqrt() / len(each))}
    return {
        "num_images": len(values["elbo"]),
        **means,
        "at_least": bool(found.untrusted[:count].any()),
        "fraction_settled": float(found.settled[:count].double().mean()),
        "per_image": {name: each.tolist() for name, each in values.items()},
    }


def gap_table(summary: dict[str, Any]) -> str:
    """The gaps as a person reads them."""
    s = summary
    rows = [
        f"{s['model']}, guide {s['guide']}{_of_prior(s)}: gaps of {s['contexts']['num_images']} {s['split']} images of "
        f"{s['data']}, binarization {s['binarization']}",
        f"nats per image ± standard error over images; log p(x) and bounds from {s['num_samples']} samples",
        f"{'Monte Carlo error':>72}",
    ]
    titles = {
        "contexts": "",
        "contexts_of_these": "the first {} of these",
        "copies": "the same, and a copy of the weights of posterior(context) for each image",
    }
    for key, title in titles.items():
        if key not in s:
            continue
        part = s[key]
        at_least = "at least " if part["at_least"] else ""
        rows += [title.format(part["num_images"])] if title else []
        for name, label in (
            ("log_px", "log p(x), importance sampling"),
            ("best_elbo", "ELBO, best context of each image"),
            ("elbo", "ELBO, the encoder's context"),
            ("approximation", "approximation gap"),
            ("amortization", "amortization gap"),
        ):
            bounded = at_least if name in ("log_px", "approximation") else ""
            se = part[name]["se"]
            error = f" ± {se:.2f}" if math.isfinite(se) else ""
            value = f"{bounded:>9}{part[name]['mean']:8.2f}{error}"
            rows.append(f"  {label:<34}{value:<28}{_small(part[name]['mc_se'])}")
        if part["fraction_settled"] < 1:
            rows.append(f"  {1 - part['fraction_settled']:.0%} of the searches were still gaining when they were ended")
    rows.append(f"  this took {s['seconds']:.0f} s")
    return "\n".join(rows + _warnings(s["observation"]))


def _of_prior(summary: dict[str, Any]) -> str:
    return f", prior {summary['prior']}" if "prior" in summary else ""


def _small(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}" if abs(value) < 0.01 else f"{value:.2f}"


def command(arguments: list[str]) -> None:
    given = cli.parse(
        Command,
        arguments,
        "python -m ppl_gen.evaluate",
        "ELBO, IWAE bounds and log p(x) of a run.",
    )
    from ppl_gen.figures.run import draw_evaluation

    options = given.options
    run, config, model, guide, data = open_fitted(
        given.run, given.named, checkpoint=options.checkpoint, device=options.device
    )
    if options.gaps:
        print(gap_table(split_gap(run, config, model, guide, data, options)))
        print(f"written to {run.path / 'gaps.json'}")
        return
    summary = evaluate(run, config, model, guide, data, options)
    draw_evaluation(run)
    print(table(summary))
    print(f"written to {run.path / 'evaluation.json'} and evaluation.nc")


if __name__ == "__main__":
    cli.main(command)
