"""Verdicts: comparisons of several estimates of the same images. Estimates that are too low are found, and the log p(x)
that the gap of a guide is taken of.

All functions take the estimates by name, in the order of the report. Each estimate is low in expectation. If one is
above another beyond chance, the other is too low (`ppl_gen.inference.agreement`). One above a log p(x) without Monte
Carlo error is not low in expectation, as an estimator of a user's own may be: it tells nothing of others. Nor does a
log-probability above 0. The gap is taken of the package's own estimates alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_gen.evaluation.table import ESTIMATES
from ppl_gen.inference import agreement
from ppl_gen.inference.agreement import above, above_in_mean
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.importance import ImportanceEstimate

Estimates = Mapping[str, Estimate]


def guide_estimate(estimates: Estimates) -> ImportanceEstimate | None:
    """The estimate that has the ELBO; None if there is none."""
    return next((each for each in estimates.values() if isinstance(each, ImportanceEstimate)), None)


def known_of(estimates: Estimates) -> str | None:
    """Name of the estimate that has no Monte Carlo error; None if there is none."""
    return next((name for name in sorted(estimates) if not estimates[name].sampled), None)


def too_high(estimates: Estimates) -> list[str]:
    """Names of the estimates that are above an exact log p(x), or one by quadrature, beyond chance and its error; or
    above 0, where p(x) is a probability."""
    known, guided = known_of(estimates), guide_estimate(estimates)
    if known is not None:
        most = estimates[known].log_px + getattr(estimates[known], "change", torch.zeros(()))
    elif guided is not None and guided.observation == "probability":
        most = torch.zeros_like(guided.log_px)
    else:
        return []
    return [name for name, each in estimates.items() if each.sampled and agreement.too_high(each, most).any]


def lower_bounds(estimates: Estimates) -> dict[str, Estimate]:
    """All estimates of log p(x) that are low in expectation, by name."""
    found: dict[str, Estimate] = {}
    wrong = too_high(estimates)
    for name, estimate in estimates.items():
        found |= {} if name in wrong else estimate.lower_bounds(name)
    guided = guide_estimate(estimates)
    if guided is not None and guided.second_opinion is not None:
        found["second_opinion"] = guided.second_opinion
    return found


def below(estimates: Estimates, name: str) -> list[str]:
    """Names of the estimates that are above a given one beyond chance, which shows that it is too low."""
    lower = lower_bounds(estimates)
    return [other for other in lower if name in lower and other != name and above(lower[name], lower[other]).any]


def at_least(estimates: Estimates, name: str) -> bool:
    """Verdict on an estimate: True if log p(x) is likely larger. This is so if another estimate is above it beyond
    chance, if its error is unknown, or if k-hat is too high or unknown for an image. An estimate without a k-hat needs
    the support of another method: see `vouched`."""
    estimate = estimates[name]
    if not estimate.sampled:
        return False
    if bool(estimate.log_px_mc_var.isnan().any()) or below(estimates, name):
        return True
    if estimate.khat is None:
        known = known_of(estimates)
        if known is not None:  # a stated bias does not excuse it there
            unbiased = replace(estimate, log_px_bias=torch.zeros_like(estimate.log_px_bias))
            return above(unbiased, estimates[known]).any
        return not vouched(estimates, name)
    return bool(estimate.untrusted.any())


def vouched(estimates: Estimates, name: str) -> bool:
    """Verdict on an estimate without a k-hat: True if it can be trusted, given that no other estimate is above it. Two
    bounds on images from the model do not suffice, because images that are rare or missing among them may cost the mean
    any amount. Importance sampling has to be trusted on every one of these images, too. Then two methods that fail for
    different reasons agree."""
    others = [other for other, each in estimates.items() if each.khat is not None and each.usable_for_gap]
    return estimates[name].corroborated and any(not at_least(estimates, other) for other in others)


@dataclass(frozen=True, eq=False)
class Largest:
    """The log p(x) that the gap of a guide is taken of. Every tensor is [images]."""

    name: str
    """Name of the estimate that most images take their value from."""
    log_px: Tensor
    replaced: Tensor
    """Images that take their value from another estimate, which is above this one beyond chance; bool."""
    untrusted: Tensor
    """Images whose value is only a lower bound; bool."""
    at_least: bool


def largest(estimates: Estimates, primary: str) -> Largest:
    """The log p(x) that is exact or by quadrature, or the largest of several estimates. An estimator of a user's own,
    which may be too high, is none of them.

    The choice starts from the primary estimate, or from importance sampling if the primary one cannot judge a guide.
    All estimates are low in expectation. If the mean of another one is above it beyond their errors, the one with the
    largest mean is chosen instead. Then each image takes the largest of the estimates that are above the chosen one
    beyond chance. The maximum of all estimates would be too high by chance.
    """
    own = [name for name in estimates if name not in ESTIMATES]
    lower = {name: each for name, each in lower_bounds(estimates).items() if name not in own}
    none = torch.zeros(len(estimates[primary].log_px), dtype=torch.bool)
    if (known := known_of(estimates)) is not None:
        return Largest(known, estimates[known].log_px, none, none, False)
    name = primary if estimates[primary].usable_for_gap else "importance"
    lower = {name: estimates[name]} | lower  # it stays, even if it is too high
    better = [other for other in lower if other != name and above_in_mean(lower[name], lower[other])]
    name = max(better, key=lambda other: lower[other].mean, default=name)
    values, replaced = lower[name].log_px, none
    for other in lower:
        higher = above(lower[name], lower[other]).images
        values = torch.where(higher, torch.maximum(values, lower[other].log_px), values)
        replaced = replaced | higher
    chosen = estimates.get(name)
    # A second opinion has no k-hat: it is a lower bound on every image.
    untrusted = torch.ones_like(replaced) if chosen is None else replaced | chosen.untrusted
    doubted = bool(replaced.any()) or chosen is None or at_least(estimates, name)
    return Largest(name, values, replaced, untrusted, doubted)


def disagreement(annealed: Estimate, importance: Estimate) -> tuple[Tensor, Tensor]:
    """log p(x) by annealing minus that by importance sampling, in nats [images], and True for images where it exceeds 4
    Monte Carlo errors plus their estimated biases, bool [images]."""
    difference = annealed.log_px - importance.log_px
    error = (annealed.log_px_mc_var + importance.log_px_mc_var).sqrt()
    allowed = 4 * error + annealed.log_px_bias.abs() + importance.log_px_bias.abs()
    return difference, difference.abs() > allowed  # False where an error is NaN
