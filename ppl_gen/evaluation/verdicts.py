"""Estimates of the same images, held against each other: which are too low, and what the gap of a guide is taken of.

All functions take the estimates by name, in the order in which they are to be told. Each estimate is low in
expectation: one that is above another beyond chance shows that the other is too low (`ppl_gen.inference.agreement`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_gen.inference.agreement import above, above_in_mean
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.importance import ImportanceEstimate

Estimates = Mapping[str, Estimate]


def of_the_guide(estimates: Estimates) -> ImportanceEstimate | None:
    """The estimate that holds the ELBO, if there is one."""
    return next((each for each in estimates.values() if isinstance(each, ImportanceEstimate)), None)


def lower_bounds(estimates: Estimates) -> dict[str, Estimate]:
    """Everything that is known of log p(x) from below, by name."""
    found: dict[str, Estimate] = {}
    for name, estimate in estimates.items():
        found |= estimate.lower_bounds(name)
    guided = of_the_guide(estimates)
    if guided is not None and guided.second_opinion is not None:
        found["second_opinion"] = guided.second_opinion
    return found


def below(estimates: Estimates, name: str) -> list[str]:
    """Names of what shows that an estimate is too low: what is above it beyond chance."""
    lower = lower_bounds(estimates)
    return [other for other in lower if other != name and above(lower[name], lower[other]).any]


def at_least(estimates: Estimates, name: str) -> bool:
    """True if log p(x) is likely above an estimate: another one is above it beyond chance, its error is not known, or
    k-hat is too high or unknown for an image; or it has no k-hat, and nothing vouches for it on these images."""
    estimate = estimates[name]
    if not estimate.sampled:
        return False
    if bool(estimate.log_px_mc_var.isnan().any()) or below(estimates, name):
        return True
    if estimate.khat is None:
        return "exact" not in estimates and not vouched(estimates, name)
    return bool(estimate.untrusted.any())


def vouched(estimates: Estimates, name: str) -> bool:
    """True if an estimate without a k-hat that nothing is above can be trusted. Two bounds on images from the model do
    not suffice, since a share of the images that none of them is of may cost the mean any amount: importance sampling,
    too, has to be trusted on every one of these images. Then two methods that fail for different reasons agree."""
    others = [other for other, each in estimates.items() if each.khat is not None and each.usable_for_gap]
    return estimates[name].corroborated and any(not at_least(estimates, other) for other in others)


@dataclass(frozen=True, eq=False)
class Largest:
    """log p(x) that the gap of a guide is taken of; every tensor is [images]."""

    name: str
    """The estimate that it is on most images, among the lower bounds."""
    log_px: Tensor
    replaced: Tensor
    """Images whose value is that of another estimate, which is above this one beyond chance; bool."""
    untrusted: Tensor
    """Images whose value is at least that; bool."""
    at_least: bool


def largest(estimates: Estimates, primary: str) -> Largest:
    """The exact log p(x), or the primary estimate. All others are low in expectation, too: one whose mean is above the
    primary's beyond their errors takes its place, the largest first; then, image by image, the largest of those that
    are above it beyond chance. A maximum of all of them would be high by chance. Where a guide is not to be judged by
    the primary estimate, it begins with the guide's."""
    lower = lower_bounds(estimates)
    none = torch.zeros(len(lower[primary].log_px), dtype=torch.bool)
    if "exact" in estimates:
        return Largest("exact", lower["exact"].log_px, none, none, False)
    name = primary if estimates[primary].usable_for_gap else "importance"
    better = [other for other in lower if other != name and above_in_mean(lower[name], lower[other])]
    name = max(better, key=lambda other: lower[other].mean, default=name)
    values, replaced = lower[name].log_px, none
    for other in lower:
        higher = above(lower[name], lower[other]).images
        values = torch.where(higher, torch.maximum(values, lower[other].log_px), values)
        replaced = replaced | higher
    chosen = estimates.get(name)
    untrusted = replaced if chosen is None else replaced | chosen.untrusted
    doubted = bool(replaced.any()) or chosen is None or at_least(estimates, name)
    return Largest(name, values, replaced, untrusted, doubted)


def disagreement(annealed: Estimate, importance: Estimate) -> tuple[Tensor, Tensor]:
    """log p(x) by annealing less that by importance sampling, in nats [images]; and where that is beyond 4 of their
    Monte Carlo errors and the biases that they know of, bool [images]."""
    difference = annealed.log_px - importance.log_px
    error = (annealed.log_px_mc_var + importance.log_px_mc_var).sqrt()
    allowed = 4 * error + annealed.log_px_bias.abs() + importance.log_px_bias.abs()
    return difference, difference.abs() > allowed  # not where an error is unknown
