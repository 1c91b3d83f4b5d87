"""Estimates of log p(x) of a run's images, by every estimator that the options ask for."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_gen.core import components, parallel
from ppl_gen.core.commands import line
from ppl_gen.core.contracts import defaults_of
from ppl_gen.core.errors import BadInput, describe, require
from ppl_gen.core.progress import Progress
from ppl_gen.data.arrays import images_sha256
from ppl_gen.evaluation.bounding import check_bounds, with_bounds
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.explaining import is_mixture
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.evaluation.own_estimators import OwnEstimator, find, split
from ppl_gen.evaluation.settled import check_settling, fixed_samples, next_options, settled_estimate
from ppl_gen.evaluation.unfinished import unfinished
from ppl_gen.evaluation.verdicts import known_of
from ppl_gen.experiment.config import KINDS, Given
from ppl_gen.experiment.fitted import Assembled, Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.annealed import AnnealedEstimate, Annealing, annealed_log_px, bidirectional_bounds
from ppl_gen.inference.annealed import check as check_annealing
from ppl_gen.inference.arguments import first_rows, rows_at
from ppl_gen.inference.bidirectional import check_claim
from ppl_gen.inference.checks import check_images, num_levels
from ppl_gen.inference.estimate import Estimate, exact
from ppl_gen.inference.exact import check_against_samples, check_probability, closed_form, exact_blocks, state_posterior
from ppl_gen.inference.gathering import keeping
from ppl_gen.inference.importance import ImportanceEstimate, log_marginal_likelihood
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.pair import Pair, require_images
from ppl_gen.inference.proposals import asked_again, proposal_log_px
from ppl_gen.inference.proposals import check as check_proposals
from ppl_gen.inference.quadrature import (
    QuadratureEstimate,
    TooMuchWork,
    check_grid,
    importance_work,
    quadrature_log_px,
    why_no_quadrature,
)
from ppl_gen.inference.rounding import check_rounding
from ppl_gen.inference.state_memory import block_size, cheap_to_enumerate, require_memory, shown_count
from ppl_gen.networks.observed import observed_log_prob

_ALWAYS = 2.0**38
"""Operations that quadrature may take in any case: some seconds."""


@dataclass(frozen=True)
class Task:
    """A run, the images to evaluate, and the options. Where several processes share the images, this process's
    share."""

    fitted: Fitted
    options: EvaluationOptions
    x: Tensor
    """Images [N, data_dim]."""
    labels: tuple[Any, ...] = ()
    """Further arguments of the pair, such as labels of the images."""
    quiet: bool = False

    @property
    def num_samples(self) -> int:
        """Number of samples of estimates from as many for every image."""
        return fixed_samples(self.fitted, self.options)

    @property
    def quantity(self) -> str:
        """The name of what is evaluated."""
        return self.fitted.quantity(self.x, *self.labels)


def evaluate(
    fitted: Fitted,
    options: EvaluationOptions,
    *,
    others: Sequence[nn.Module] = (),
    own: Sequence[Any] = (),
    keep: bool = False,
    prefer_known: bool = False,
    quiet: bool = False,
) -> Evaluation:
    """Estimate the ELBO and log p(x) of the images of a split.

    :param others: guides of the runs in `options.proposals`.
    :param own: estimators of the user's own as objects of Python, in addition to those that `options` names. Their
        estimates are reported with the others and compared with them.
    :param keep: keep what is done in the run directory, and go on with what is there of the same evaluation.
    :param prefer_known: take an exact log p(x), or one by quadrature, as the primary one, whatever was asked for.
    :raises BadInput: for options that do not fit the run, before any work is done.
    """
    named = find([*options.own_estimators, *own], options.estimator_options)
    options = replace(_resolved(fitted, options), own_estimators=tuple(each.reference for each in named))
    whole = fitted.images(options.split, options.num_images)
    task = _local_task(fitted, options, whole, quiet)
    chosen = estimators(fitted.model, fitted.pair, str(options.estimator), task.x.device, *task.labels)
    _check(task, others, chosen)
    kind = observation(fitted.pair, *whole)
    sha256, kept = images_sha256(whole[0]), None
    if keep and parallel.world_size() == 1 and not others:
        kept = unfinished(fitted, options, sha256, str(task.x.device), quiet=quiet)
    started = time.perf_counter()
    with fitted.estimating(parallel.rank_seed(options.seed)), keeping(kept):
        estimates: dict[str, Estimate] = {}
        left_out = None
        if chosen.quadrature:
            estimates, left_out = _by_quadrature(task, chosen)
        for name, estimate in _estimates(task, chosen, others, named):
            require(name not in estimates, "estimator", name, "two estimators have this name; rename one")
            estimates[name] = estimate
        estimates = with_bounds(fitted, estimates, task.options, task.x, *task.labels, quiet=quiet)
        in_use = components_in_use(fitted, whole[0])
    estimates = parallel.all_gather(estimates)
    left_out = _check_exact(fitted, estimates, kind, chosen, whole[0]) or left_out
    known = known_of(estimates) if prefer_known else None
    primary = known or primary_of(estimates, str(options.estimator))
    if known is not None:
        options = replace(options, estimator=known, annealed=Annealing())
    estimator = "auto" if options.mixes and not estimates[primary].sampled else estimates[primary].estimator
    estimator = "importance" if estimator == "settled" else estimator  # as --estimator takes it
    may: dict[str, Any] = {"quadrature": left_out is None or left_out.takes_longer, "annealing": _can_anneal(task)}
    further_on = next_options(fitted, options, estimates, primary, task.x, *task.labels, **may)
    about = {
        **fitted.provenance(options),
        "num_images": len(whole[0]),
        "images_sha256": sha256,
        "observation": kind,
        **({} if (name := fitted.quantity(*whole)) == "log p(x)" else {"quantity": name}),
        "options": replace(options, estimator=estimator).to_json(),
        **({"proposal": "prior"} if fitted.pair.enumerated and chosen.sampled else {}),
        **({} if left_out is None else {"no_quadrature": left_out.why}),
        **({} if further_on is None else {"next_options": further_on}),
        **({"components": {"in_use": in_use, "of": fitted.pair.num_states}} if in_use is not None else {}),
        "num_parameters": sum(p.numel() for p in fitted.modules.parameters()),
        "seconds": time.perf_counter() - started + (0.0 if kept is None else kept.seconds_reused),
    }
    labels = fitted.data.split(options.split).labels
    of_images = None if labels is None else labels[: len(whole[0])].cpu()
    return Evaluation.of(estimates, primary, about, of_images, _dim_of_levels(fitted, *whole))


def evaluate_after_training(fitted: Fitted, *, quiet: bool = False) -> Evaluation:
    """The evaluation at the end of a fit, which has the `evaluation_defaults` of the model's class, or the general
    defaults if the fit has another guide than that class's own; and the estimators that the fit names."""
    options, own = _after_training(fitted)
    asked = options.estimator in fitted.config.estimator  # else it is a default, such as annealing for a GAN
    return evaluate(fitted, options, own=own, keep=True, prefer_known=not asked, quiet=quiet)


def check_before_training(assembled: Assembled) -> None:
    """Try the estimators of the evaluation at the end of a fit, if the fit names any, on two images.

    :raises BadInput: if one of them does not support the pair, or fails.
    """
    config, (x, *labels) = assembled.config, first_rows(2, *assembled.batch)
    if not config.estimator:
        return
    options, own = _after_training(assembled)
    estimators(assembled.model, assembled.pair, str(options.estimator), x.device, *labels)
    if options.estimator == "annealed":
        check_chains(assembled, x, options)
    with assembled.estimating(options.seed):
        for each in find([*options.own_estimators, *own], options.estimator_options):
            each.estimate(assembled.model, assembled.guide, x, *labels, num_samples=config.num_samples)


def _after_training(assembled: Assembled) -> tuple[EvaluationOptions, list[Any]]:
    """The options of the evaluation at the end of a fit, and the estimators among them that are objects."""
    config, defaults = assembled.config, defaults_of(assembled.model)
    chosen = dict(defaults.evaluation_defaults) if config.guide == defaults.default_guide else {}
    if "num_images" in chosen:
        chosen["num_images"] = min(chosen["num_images"], len(assembled.data.test))
    usual, annealed = chosen.pop("estimator", "auto"), chosen.pop("annealed", {})
    of_package = [name for name in config.estimator if name not in config.own_estimators] or [usual]
    names, own = split([*of_package, *assembled.given.estimators(config)])
    options = EvaluationOptions(
        device=config.training.device,
        annealed=Annealing(**(annealed if of_package == [usual] else {})),
        estimator=names,
        estimator_options=config.estimator_options,
        **chosen,
    )
    return options, own


# Before the work -----------------------------------------------------------------------------------------------


def _resolved(fitted: Fitted, options: EvaluationOptions) -> EvaluationOptions:
    """The options with their numbers of images and samples filled in."""
    available = len(fitted.data.split(options.split))
    count = available if options.num_images is None else options.num_images
    require(count <= available, "num_images", count, f"the {options.split} split has {available} images")
    require(
        count >= parallel.world_size(),
        "num_images",
        count,
        f"each of the {parallel.world_size()} processes needs an image",
    )
    samples = options.num_samples or fitted.config.num_samples
    # Images of the model are complete, and not those that a guide has parameters for.
    if (fitted.incomplete or fitted.per_image) and options.sandwich is None:
        options = replace(options, sandwich=0)
    return replace(options, num_images=count, num_samples=samples, sandwich=options.num_from_model)


def _local_task(fitted: Fitted, options: EvaluationOptions, whole: tuple[Any, ...], quiet: bool) -> Task:
    """This process's share of the images, and of the images that are drawn from the model."""
    x, *args = whole
    if parallel.world_size() > 1:
        x, *args = rows_at(parallel.shard(torch.arange(len(x), device=x.device)), *whole)
    options = replace(options, sandwich=len(parallel.shard(torch.arange(options.num_from_model))))
    return Task(fitted, options, x, tuple(args), quiet)


class Chosen(NamedTuple):
    """The choice of estimators."""

    exact: bool
    """True if log p(x) is computed in closed form, or by enumeration."""
    quadrature: bool
    """True if log p(x) is computed by quadrature."""
    sampled: bool
    """True if importance samples are drawn."""
    may_give_up: bool = False
    """True if quadrature was not asked for: it is left out where it takes longer than importance sampling."""


def estimators(model: nn.Module, pair: Pair, chosen: str, device: torch.device, *args: Tensor) -> Chosen:
    """The choice of estimators.

    :param args: labels, if the model takes them.
    :param chosen: the option `estimator`.
    """
    by_request = chosen == "quadrature"
    reason = why_no_quadrature(pair, model, *args)
    if by_request and reason is not None:
        raise BadInput(f"--estimator quadrature: {reason}")
    if closed_form(model, *args):
        return Chosen(True, by_request, True)
    if pair.num_states is None:
        if chosen == "exact":
            other = "quadrature" if reason is None else "importance"
            raise BadInput(
                f"--estimator exact: a latent site of {pair.model_name} has no finite support, and the model has no "
                f"log_px(x); use {other}"
            )
        sampled = not pair.enumerated or chosen == "importance"
        return Chosen(False, reason is None and chosen != "importance", sampled, sampled and not by_request)
    exactly = chosen == "exact" or cheap_to_enumerate(pair) or (pair.enumerated and chosen == "auto")
    if exactly:
        require_memory(pair, block_size(pair), device=device)
    return Chosen(exactly, False, chosen == "importance" or not (pair.enumerated and exactly))


def _check(task: Task, others: Sequence[nn.Module], chosen: Chosen) -> None:
    """Raise `BadInput` if an estimator does not support the pair."""
    options = task.options
    check_bounds(task.fitted, options, chosen.sampled, *first_rows(1, task.x, *task.labels))
    if chosen.exact:
        check_claim(task.fitted.model, task.fitted.guide, task.fitted.pair, task.x, *task.labels)
    check_settling(task.fitted, options, chosen.sampled, task.x, task.labels)
    if options.estimator == "annealed":
        check_chains(task.fitted, task.x, options)
    if options.mixes or options.estimator == "prior":
        guides, shares = _proposals(task, others)
        with task.fitted.estimating(0):
            check_proposals(task.fitted.model, guides, *first_rows(8, task.x, *task.labels), **shares)


def check_chains(fitted: Assembled, x: Tensor, options: EvaluationOptions) -> None:
    """Raise `BadInput` for a model that cannot be annealed, and for a `likelihood(z)` that does not support chains."""
    model: Any = fitted.model
    pair = fitted.pair
    if fitted.takes_labels:
        raise BadInput("--estimator annealed: needs a model and a guide without labels")
    if len(pair.latent) != 1 or len(pair.observed) != 1:
        has = f"{', '.join(pair.latent)} and observes {', '.join(pair.observed)}"
        raise BadInput(
            f"--estimator annealed: needs one latent site and one observed site; {pair.model_name} has {has}"
        )
    require_images(pair, "--estimator annealed")
    with evaluating(model, fitted.guide), forked_rng(x):
        check_annealing(model, fitted.guide, options.annealed)
        z = model.prior().sample((2, min(3, len(x))))
        try:
            together = observed_log_prob(model.likelihood(z), x[:3])
            alone = torch.stack([observed_log_prob(model.likelihood(each), x[:3]) for each in z])
            same = together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-4, atol=1e-3)
        except Exception as error:  # user code
            raise BadInput(f"{pair.model_name}: likelihood(z) fails on chains of images: {describe(error)}") from error
        if not same:
            raise BadInput(
                f"{pair.model_name}: likelihood(z) for z [chains, images, ...] differs from likelihood(z) of each chain"
            )


def _can_anneal(task: Task) -> bool:
    """True if the model can be annealed."""
    with suppress(BadInput):
        check_chains(task.fitted, task.x, task.options)
        return True
    return False


def other_guides(options: EvaluationOptions, given: Given) -> list[nn.Module]:
    """The guides of the runs in `options.proposals`.

    :param given: classes of the user's own and images, as for the run that is evaluated.
    :raises BadInput: if a guide of the user's own is not named again, and if a named class belongs to no run.
    """
    guides = []
    unused = set(options.proposal_guides)
    for path in options.proposals:
        directory = RunDirectory.open(path)
        chosen = _named_again(path, str(directory.config.get("guide")), options.proposal_guides, given)
        unused.discard(str(chosen))
        packaged = {kind: None for kind in KINDS if not components.is_external(str(directory.config.get(kind)))}
        again = replace(given, **packaged) if chosen is None else replace(given, **packaged, guide=chosen)
        guides.append(Fitted.open(path, again, device=options.device).guide)
    if unused:
        raise BadInput(
            f"--proposal-guides {' '.join(sorted(unused))}: no run of --proposals was fitted with this guide"
        )
    return guides


def _named_again(path: Path, recorded: str, names: Sequence[str], given: Given) -> str | None:
    """The name, among those in `--proposal-guides`, of a run's own guide. None if the guide is one of the package, or
    the one of the run that is evaluated."""
    if not components.is_external(recorded):
        return None
    alike = [name for name in names if components.class_name(name) == components.class_name(recorded)]
    if alike:
        chosen = recorded if recorded in alike else alike[0]
        if chosen != recorded and len(alike) > 1:
            raise BadInput(
                f"--proposal-guides {' '.join(alike)}: {path} was fitted with {recorded}, and several of these have "
                "its name; give the recorded one alone"
            )
        return chosen
    if components.class_name(str(given.names()["guide"])) != components.class_name(recorded):
        again = line(["--proposal-guides", recorded])
        raise BadInput(f"{path}: was fitted with the guide {recorded}; name it again: {again}")
    return None


# The work ------------------------------------------------------------------------------------------------------


def _estimates(
    task: Task, chosen: Chosen, others: Sequence[nn.Module], further: Sequence[OwnEstimator]
) -> Iterator[tuple[str, Estimate]]:
    """Every further estimate with its name, in the order of the report."""
    fitted, options, x, labels = task.fitted, task.options, task.x, task.labels
    if chosen.exact:
        yield "exact", exact_estimate(fitted, x, *labels, quiet=task.quiet)
    if chosen.sampled:
        guided = importance_estimate(fitted, x, *labels, num_samples=task.num_samples, quiet=task.quiet)
        yield "importance", guided if chosen.exact else _with_second_opinion(task, guided)
    if options.num_samples == "auto":
        yield "settled", settled_estimate(fitted, options, x, *labels, anneal=_can_anneal(task), quiet=task.quiet)
    if options.estimator == "prior":
        yield "prior", _proposal_estimate(task, others)
    elif options.mixes:
        yield "mixed", replace(_proposal_estimate(task, others), settings={"proposal": options.proposal()})
    if options.estimator == "annealed":
        yield "annealed", annealed_estimate(task)
    for each in further:
        with keeping(None):  # a user's code may call estimators in another order the next time
            own = each.estimate(fitted.model, fitted.guide, x, *labels, num_samples=task.num_samples)
        yield own.estimator, own


def _check_exact(
    fitted: Fitted, estimates: dict[str, Estimate], kind: str, chosen: Chosen, x: Tensor
) -> "LeftOut | None":
    """Raise `BadInput` for an exact log p(x), or one by quadrature, that cannot be that of the model. If quadrature was
    not asked for, its estimate is removed instead.

    :param kind: kind of p(x), as `observation` returns it.
    """
    for name, estimate in list(estimates.items()):
        if estimate.sampled:
            continue
        what = "log_px(x)" if name == "exact" else name
        try:
            check_probability(fitted.model, estimate.log_px, kind, what)
            if "importance" in estimates:
                if isinstance(estimate, QuadratureEstimate):
                    check_grid(fitted.model, x, estimate, estimates["importance"])
                else:
                    check_against_samples(fitted.model, estimate.log_px, estimates["importance"].log_px, what)
        except BadInput as error:
            if not (name == "quadrature" and chosen.may_give_up):
                raise
            del estimates[name]
            return LeftOut(error.sentence)
    return None


class LeftOut(NamedTuple):
    """Quadrature was not asked for and is left out."""

    why: str
    """A sentence."""
    takes_longer: bool = False
    """True if it would settle log p(x), but takes longer than importance sampling."""


def _by_quadrature(task: Task, chosen: Chosen) -> tuple[dict[str, Estimate], LeftOut | None]:
    """The estimate by quadrature under its name, or why it is left out."""
    settling = task.options.num_samples == "auto"
    samples = task.options.settling.most_samples if settling else task.num_samples
    sampling = importance_work(task.fitted.model, task.x, samples)
    left_out = None
    found: dict[str, Estimate] = {}
    try:
        most_work = max(sampling, _ALWAYS) if chosen.may_give_up else math.inf
        found["quadrature"] = quadrature_estimate(task, most_work=most_work)
    except TooMuchWork as error:
        times = error.work / sampling
        left_out = LeftOut(f"it takes about {times:.1f} times the operations of importance sampling", True)
    except BadInput as error:
        if not chosen.may_give_up:
            raise BadInput(f"--estimator quadrature: {error.sentence}") from error
        left_out = LeftOut(error.sentence)
    if parallel.any_rank(left_out is not None):
        return {}, left_out or LeftOut("another process leaves it out")
    return found, None


def quadrature_estimate(task: Task, most_work: float = math.inf) -> QuadratureEstimate:
    """log p(x) by quadrature, with a progress bar."""
    with Progress(len(task.x), "image", quiet=task.quiet) as progress:
        how: dict[str, Any] = {
            "most_work": most_work,
            "progress": progress.advancing(task.quantity, "quadrature"),
        }
        return quadrature_log_px(task.fitted.model, task.x, quadrature=task.options.quadrature, **how)


def primary_of(estimates: dict[str, Estimate], chosen: str) -> str:
    """Name of the primary estimate, which is the evaluation's log p(x).

    :param chosen: the option `estimator`.
    """
    if chosen in ("prior", "annealed", "quadrature"):
        return chosen
    if (known := known_of(estimates)) and (chosen != "importance" or "importance" not in estimates):
        return known
    return next(name for name in ("settled", "mixed", "importance") if name in estimates)


def exact_estimate(fitted: Fitted, x: Tensor, *labels: Tensor, quiet: bool) -> Estimate:
    """Exact log p(x), with a progress bar."""
    blocks, pair = [], fitted.pair
    states = "" if pair.num_states is None else f", {shown_count(pair)} states"
    with Progress(len(x), "image", quiet=quiet) as progress:
        advance = progress.advancing(fitted.quantity(x, *labels), f"exact{states}")
        for block in exact_blocks(fitted.model, fitted.guide, pair, x, *labels):
            blocks.append(block)
            advance(len(block))
    return exact(torch.cat(blocks))


def importance_estimate(
    fitted: Fitted, x: Tensor, *labels: Tensor, num_samples: int, quiet: bool
) -> ImportanceEstimate:
    """Importance sampling from the guide, with a progress bar."""
    with Progress(len(x), "image", quiet=quiet) as progress:
        advance = progress.advancing(fitted.quantity(x, *labels), f"{num_samples} samples per image")
        options: dict[str, Any] = {"num_samples": num_samples, "progress": advance, "ask_again": False}
        return log_marginal_likelihood(fitted.model, fitted.guide, x, *labels, from_prior=True, **options)


def _with_second_opinion(task: Task, estimate: ImportanceEstimate) -> ImportanceEstimate:
    fitted, seed = task.fitted, parallel.rank_seed(task.options.seed)
    return asked_again(estimate, fitted.pair, fitted.model, fitted.guide, task.x, *task.labels, seed=seed)


def _proposals(task: Task, others: Sequence[nn.Module]) -> tuple[list[nn.Module], dict[str, Any]]:
    """The guides to draw importance samples from, and the options that divide the samples between them and the
    prior."""
    options = task.options
    guides, share = ([], 1.0) if options.estimator == "prior" else ([task.fitted.guide, *others], options.prior_share)
    return guides, {"num_samples": task.num_samples, "prior_share": share, "temperature": options.temperature}


def _proposal_estimate(task: Task, others: Sequence[nn.Module]) -> Estimate:
    """Importance sampling from other proposals than the guide alone, with a progress bar."""
    guides, shares = _proposals(task, others)
    with Progress(len(task.x), "image", quiet=task.quiet) as progress:
        advance = progress.advancing(task.quantity, f"{task.num_samples} samples of other proposals")
        return proposal_log_px(task.fitted.model, guides, task.x, *task.labels, **shares, progress=advance)


def annealed_estimate(task: Task) -> AnnealedEstimate:
    """Annealed importance sampling, and bidirectional Monte Carlo on images from the model with the same settings, with
    a progress bar."""
    annealing, count = task.options.annealed, task.options.num_from_model
    model, guide = task.fitted.model, task.fitted.guide
    work = len(task.x) * annealing.work + count * annealing.bidirectional_work
    with Progress(work, "image x temperature", quiet=task.quiet) as progress:
        what = f"annealed, {annealing.num_chains} chains, {annealing.num_temperatures} temperatures"
        how: dict[str, Any] = {
            "guide": guide,
            "annealing": annealing,
            "progress": progress.advancing(task.quantity, what),
        }
        found = annealed_log_px(model, task.x, **how)
        return replace(found, bidirectional=bidirectional_bounds(model, count, **how)) if count else found


# Beside it -----------------------------------------------------------------------------------------------------


def observation(pair: Pair, x: Tensor, *args: Any) -> str:
    """Kind of p(x) of the images: see `check_images`.

    :raises BadInput: if it or `check_rounding` refuses them.
    """
    with evaluating(pair.model, pair.guide):
        kind = check_images(pair, x, *args)
        check_rounding(pair, x, *args)
        return kind


def _dim_of_levels(fitted: Fitted, x: Tensor, *args: Any) -> int | None:
    """Number of pixels of an image, times the number of channels, if p(x) is a probability of their levels and no pixel
    is missing; else None."""
    levels = fitted.data.levels is not None and not fitted.incomplete and num_levels(fitted.pair, x, *args) is not None
    return fitted.data.dim if levels else None


def components_in_use(fitted: Fitted, x: Tensor) -> int | None:
    """Number of values of a categorical z whose responsibilities sum to at least one image; None for other models."""
    if not is_mixture(fitted.model, fitted.pair):
        return None
    size = block_size(fitted.pair, posterior=True)
    totals = torch.stack([state_posterior(fitted.model, block)[1].sum(1) for block in x.split(size)]).sum(0)
    return int((totals >= 1).sum())
