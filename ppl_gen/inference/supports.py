"""Where a distribution has mass.

With Pyro's checks off, `log_prob` of a value outside the support is often a plausible number: log Exponential(-1) is
-rate * (-1). Here the support is asked, so that a latent value outside the prior's has weight zero, and an image that
the likelihood does not admit is refused.
"""

import itertools
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


def support(distribution: Any) -> Any:
    """The constraint that values of a distribution satisfy; None if it does not tell, as `ZukoToPyro` doesn't."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        return None


def is_discrete(distribution: Any) -> bool:
    """Whether a distribution has probabilities. One that does not tell its support is taken to have densities."""
    constraint = support(distribution)
    return constraint is not None and bool(constraint.is_discrete)


def layers(distribution: Any) -> list[Any]:
    """A distribution and the ones that it wraps: `Independent`, masked, expanded, transformed."""
    found = [distribution]
    while (base := getattr(found[-1], "base_dist", None)) is not None:
        found.append(base)
    return found


def has_no_density(distribution: Any) -> bool:
    """Whether a distribution puts all its mass on one value."""
    return any(isinstance(layer, dist.Delta) for layer in layers(distribution))


def unchecked(distribution: Any) -> bool:
    """Whether a distribution was made with `validate_args=False`; to be asked while Pyro's checks are on."""
    return any(vars(layer).get("_validate_args") is False for layer in layers(distribution))


def _base(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def everywhere(constraint: Any) -> bool:
    """Whether a constraint admits every number."""
    return isinstance(_base(constraint), type(constraints.real))


def is_boolean(constraint: Any) -> bool:
    """Whether a constraint admits 0 and 1 alone."""
    return isinstance(_base(constraint), type(constraints.boolean))


def bounds(constraint: Any) -> list[Any]:
    """Numbers and tensors that a constraint is made of, such as the ends of an interval."""
    return list(vars(_base(constraint)).values())


def same(ours: Any, theirs: Any) -> bool:
    """Whether two constraints certainly admit the same values."""
    if ours is None or theirs is None or type(_base(ours)) is not type(_base(theirs)):
        return False
    pairs = zip(bounds(ours), bounds(theirs), strict=True)
    return all(
        isinstance(one, int | float | Tensor)
        and isinstance(other, int | float | Tensor)
        and torch.equal(torch.as_tensor(one), torch.as_tensor(other))
        for one, other in pairs
    )


def covers(prior: Any, guide: Any) -> bool:
    """Whether a prior certainly admits all values of a guide, so that they need not be looked at."""
    ours, theirs = support(prior), support(guide)
    plain = ours is not None and not any(isinstance(bound, Tensor) for bound in bounds(ours))
    return ours is None or everywhere(ours) or (plain and same(ours, theirs))


def _admits(constraint: Any, value: Tensor) -> Tensor:
    """`constraint.check(value)`, with a tolerance for the rounding of many float32 numbers, with integers alone for a
    discrete one, and without infinity."""
    if isinstance(_base(constraint), type(constraints.simplex)):
        tolerance = 1e-4 if value.dtype is not torch.float64 else 1e-6
        found: Tensor = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < tolerance)
        return found
    found = value.isfinite() if everywhere(constraint) else constraint.check(value)
    if everywhere(constraint) and constraint.event_dim:
        found = found.flatten(-constraint.event_dim).all(-1)
    if constraint.is_discrete and value.is_floating_point():
        whole = value == value.round()
        found = found & (whole.flatten(-constraint.event_dim).all(-1) if constraint.event_dim else whole)
    return found


def inside(site: dict[str, Any], grey: bool = False) -> Tensor | None:
    """Whether the value of a site is in its distribution's support, bool [batch]; None if the support is not told. A
    value that a mask leaves out is.

    :param grey: admit values between 0 and 1 where 0 and 1 are admitted.
    """
    found = _inside(site["fn"], site["value"], grey)
    mask = site["mask"]
    return found if found is None or mask is None else found | ~torch.as_tensor(mask, device=found.device)


def _inside(distribution: Any, value: Tensor, grey: bool) -> Tensor | None:
    if isinstance(distribution, torch.distributions.Independent | dist.MaskedDistribution):
        found = _inside(distribution.base_dist, value, grey)
        if found is not None and isinstance(distribution, dist.MaskedDistribution):
            found = found | ~torch.as_tensor(distribution._mask, device=found.device)
        events = getattr(distribution, "reinterpreted_batch_ndims", 0)
    else:
        constraint = support(distribution)
        if constraint is None:
            return None
        if grey and is_boolean(constraint):
            found, events = (value >= 0) & (value <= 1), distribution.event_dim
        else:
            found, events = _admits(constraint, value), distribution.event_dim - constraint.event_dim
    return found.flatten(-events).all(-1) if found is not None and events > 0 else found


def masks(site: dict[str, Any]) -> list[Tensor]:
    """The masks on a site, bool [batch], by handlers and by `.mask(…)`."""
    outer = itertools.takewhile(
        lambda layer: not isinstance(layer, torch.distributions.Independent), layers(site["fn"])
    )
    found = [site["mask"], *(getattr(layer, "_mask", None) for layer in outer)]
    return [torch.as_tensor(mask, device=site["value"].device) for mask in found if isinstance(mask, Tensor | bool)]


def within_support(site: dict[str, Any], log_prob: Tensor) -> Tensor:
    """The log-density of a site, -inf where its value is outside the support."""
    found = inside(site)
    return log_prob if found is None else torch.where(found, log_prob, -math.inf)
