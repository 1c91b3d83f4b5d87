"""Split of the gap between log p(x) and the ELBO into approximation and amortization gap (`ppl_gen.inference.gaps`)."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ppl_gen.core.errors import BadInput, require, warnings_of
from ppl_gen.core.progress import Progress
from ppl_gen.core.tables import Row, duration, line, named, small
from ppl_gen.evaluation.entries import quantity
from ppl_gen.evaluation.estimating import Task, annealed_estimate, check_chains, observation
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.evaluation.table import Printed, images, title
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.agreement import bound
from ppl_gen.inference.estimate import mean_entry, mean_mc_se, share
from ppl_gen.inference.gaps import Gaps, Search, check_guide, gaps, has_own_weights
from ppl_gen.inference.modes import evaluating

_IMAGES, _SAMPLES = 100, 5000
_PARTS = {
    "contexts": "",
    "contexts_of_these": "the first {} of these",
    "copies": "the same, and a copy of the weights of posterior(context) for each image",
}
_LABELS = {
    "log_px": "log p(x)",
    "best_elbo": "ELBO, best context of each image",
    "elbo": "ELBO, the encoder's context",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
}
_ESTIMATORS = {"importance": "importance sampling", "annealed": "annealed"}
_BOUNDED = ("log_px", "approximation")


@dataclass(frozen=True, eq=False)
class GapSplit(Printed):
    """The gap and its two parts."""

    summary: Json
    """Content of `gaps.json`."""
    contexts: Gaps
    """Gaps by a search over the contexts of each image."""
    copies: Gaps | None
    """Gaps of the first images by a search over contexts and weights; None for a guide whose posterior has no
    weights."""

    def __str__(self) -> str:
        return gap_table(self.summary)


def split_gap(
    fitted: Fitted, options: EvaluationOptions, *, search: Search | None = None, quiet: bool = False
) -> GapSplit:
    """Split the gap between log p(x) and the ELBO of the first images of a split.

    :param search: search of the best contexts; by default as long as that of Cremer et al.
    :raises BadInput: for options and guides that do not support it, before any work is done.
    """
    options, search = _resolved(fitted, options), search or Search()
    (x,) = fitted.images(options.split, options.num_images)
    check_guide(fitted.pair, fitted.guide)
    _check_contexts(fitted, x[:1])
    if options.estimator == "annealed":
        check_chains(fitted, x, options)
    kind = observation(fitted.pair, x)
    started = time.perf_counter()
    with fitted.estimating(options.seed):
        copies = min(options.gap_copies, len(x)) if has_own_weights(fitted.guide, x) else 0
        contexts, copied = _search(fitted, x, copies, options, search, quiet)
        if options.estimator == "annealed":
            annealed = annealed_estimate(Task(fitted, replace(options, sandwich=0), x, quiet=quiet))
            contexts = contexts.compared_with(annealed)
            if copied is not None:
                first = bound(annealed.log_px[:copies], annealed.log_px_mc_var[:copies], annealed.num_samples)
                copied = copied.compared_with(replace(first, estimator=annealed.estimator))
    summary = {
        **fitted.provenance(options),
        "observation": kind,
        "num_samples": options.num_samples,
        "options": options.to_json(),
        **({"annealed": asdict(options.annealed)} if options.estimator == "annealed" else {}),
        "search": asdict(search),
        "contexts": gap_parts(contexts),
        **({} if copied is None else {"copies": gap_parts(copied), "contexts_of_these": gap_parts(contexts, copies)}),
        "seconds": time.perf_counter() - started,
    }
    return GapSplit(summary, contexts, copied)


def _resolved(fitted: Fitted, options: EvaluationOptions) -> EvaluationOptions:
    """The options with their numbers of images and samples, and the estimator, filled in."""
    if options.mixes or options.estimator in ("prior", "exact"):
        raise BadInput("--gaps: needs --estimator importance or annealed, and samples from the guide alone")
    fitted.require_amortized("--gaps")
    if fitted.takes_labels:
        raise BadInput(
            f"--gaps: {fitted.config.model} or its guide takes labels, but a search over contexts does not support them"
        )
    available = len(fitted.data.split(options.split))
    count = min(_IMAGES, available) if options.num_images is None else options.num_images
    require(count <= available, "num_images", count, f"the {options.split} split has {available} images")
    estimator = "importance" if options.estimator == "auto" else options.estimator
    return replace(
        options, num_images=count, num_samples=options.num_samples or _SAMPLES, estimator=estimator, gaps=True
    )


def _check_contexts(fitted: Fitted, x: Tensor) -> None:
    """Raise `BadInput` for a guide whose context has a part that follows from which pixels are missing alone."""
    guide: Any = fitted.guide
    if fitted.incomplete:
        with evaluating(guide):
            shapes = {guide.encode(each).shape for each in (x, x.nan_to_num(0))}
        if len(shapes) > 1:
            raise BadInput(
                f"--gaps: with missing pixels, the contexts of {fitted.pair.guide_name} have another form, which a "
                "search does not support"
            )


def _search(
    fitted: Fitted, x: Tensor, copies: int, options: EvaluationOptions, search: Search, quiet: bool
) -> tuple[Gaps, Gaps | None]:
    """The gaps by a search over contexts, and those of the first images by a search over contexts and weights."""
    assert isinstance(options.num_samples, int)
    with Progress(len(x) + copies, "image", quiet=quiet) as progress:
        advance = progress.advancing("gaps", f"{search.num_samples} samples a step, {options.num_samples} after")
        how: dict[str, Any] = {"num_samples": options.num_samples, "search": search, "seed": options.seed}
        how["progress"] = advance
        contexts = gaps(fitted.model, fitted.guide, x, **how)
        copied = gaps(fitted.model, fitted.guide, x[:copies], own_weights=True, **how) if copies else None
        return contexts, copied


def gap_parts(split: Gaps, count: int | None = None) -> Json:
    """The entries of `gaps.json` for one search: means over the first images, and the value of each, in nats."""
    names = ("log_px", "elbo", "best_elbo", "approximation", "amortization")
    values = {name: getattr(split, name)[:count] for name in names}
    return {
        "num_images": len(values["elbo"]),
        **{
            name: mean_entry(value, mc_se=mean_mc_se(getattr(split, f"{name}_mc_var")[:count]))
            for name, value in values.items()
        },
        "estimator": split.estimator,
        "at_least": bool(split.untrusted[:count].any()),
        "fraction_settled": share(split.settled[:count]),
        **({} if split.missed is None else {"fraction_missed": share(split.missed[:count])}),
        **({} if split.blind is None else {"fraction_blind": share(split.blind[:count])}),
        "per_image": {name: value.tolist() for name, value in values.items()},
    }


# Its table -----------------------------------------------------------------------------------------------------


def gap_rows(summary: Json) -> list[tuple[str, list[Row]]]:
    """The rows of a `gaps.json` in parts, each with its title. The note of a row is its Monte Carlo error."""
    return [
        (of.format(summary[key]["num_images"]), _part_rows(summary[key]))
        for key, of in _PARTS.items()
        if key in summary
    ]


def _part_rows(part: Json) -> list[Row]:
    estimator = part.get("estimator", "importance")
    of_log_px = {"log_px": f", {_ESTIMATORS.get(estimator, estimator)}"}
    rows = [
        Row.of(
            label + of_log_px.get(name, ""),
            part[name]["mean"],
            part[name]["se"],
            small(part[name].get("mc_se")),
            part["at_least"] and name in _BOUNDED,
        )
        for name, label in _LABELS.items()
    ]
    if part["fraction_settled"] < 1:
        gaining = 1 - part["fraction_settled"]
        rows.append(Row(f"{gaining:.0%} of the searches were still improving when they ended"))
    if part.get("fraction_missed"):
        of_images = f"{part['fraction_missed']:.0%} of images have a mode that the search did not reach;"
        rows += [Row(of_images), Row("how their gap splits is unknown")]
    if "fraction_blind" in part:
        rows.append(Row(f"blind to other modes than the encoder's: {part['fraction_blind']:.0%} of images"))
    return rows


def gap_units(summary: Json) -> str:
    """The units of the numbers of a `gaps.json`."""
    samples = summary["num_samples"]
    return f"nats per image ± standard error over images; log p(x) and bounds from {samples} samples"


def gap_table(summary: Json) -> str:
    """The content of `gaps.json` as text."""
    lines = [f"{title(summary)}: gaps of {images(summary)}", gap_units(summary), f"{'Monte Carlo error':>72}"]
    for of, rows in gap_rows(summary):
        lines += [of] if of else []
        lines += [line(row, 34, "{:<9}{:>8}{}") for row in rows]
    lines.append(f"  this took {duration(summary['seconds'])}")
    text = "\n".join([*lines, *(f"  {warning}" for warning in warnings_of(summary["observation"]))])
    return named(text, quantity(summary))
