"""Supports of distributions.

With Pyro's checks off, `log_prob` of a value outside the support is often a plausible number: log Exponential(-1) is
-rate * (-1). Here the support is asked, so that a latent value outside the prior's has weight zero, and an image that
the likelihood does not admit is refused. Some distributions tell their support wrongly: an affine transform of bounded
values says "real", a mixture the intersection of its components', and so they are looked into.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, TransformedDistribution, constraints, transforms

_ANGLE = constraints.interval(-math.pi, math.pi)
_ANGLES = (dist.VonMises, dist.SineBivariateVonMises)
_NO_DENSITY = (
    dist.Delta,
    dist.Empirical,
    dist.RelaxedBernoulliStraightThrough,
    dist.RelaxedOneHotCategoricalStraightThrough,
)
# Bounds that differ by a set of no mass.
_ALIKE = {"_GreaterThanEq": "_GreaterThan", "_HalfOpenInterval": "_Interval"}
_UNKNOWN = object()


def support(distribution: Any) -> Any:
    """The constraint that values of a distribution satisfy, as it tells it; None if it doesn't, as `ZukoToPyro`."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        return None


def is_discrete(distribution: Any) -> bool:
    """True if a distribution has probabilities. One that does not tell its support is taken to have densities."""
    constraint = support(distribution)
    return constraint is not None and bool(constraint.is_discrete)


def unbounded(distribution: Any) -> bool:
    """True if a distribution is of continuous values without bounds."""
    constraint = support(distribution)
    if constraint is None or constraint.is_discrete:
        return False
    far = torch.full_like(distribution.sample(), 1e4)
    return all(bool(constraint.check(value).all()) for value in (far, -far))


def parts(distribution: Any) -> Iterator[Any]:
    """A distribution and all that it is made of: what it wraps, masks, expands, transforms or mixes."""
    yield distribution
    for name in ("base_dist", "_component_distribution", "component0", "component1"):
        part = getattr(distribution, name, None)
        if isinstance(part, torch.distributions.Distribution):
            yield from parts(part)


def has_no_density(distribution: Any) -> bool:
    """True if a distribution puts mass on single values of a continuous variable."""
    atoms = [part for part in parts(distribution) if isinstance(part, dist.ZeroInflatedDistribution)]
    return any(isinstance(part, _NO_DENSITY) for part in parts(distribution)) or any(
        not is_discrete(atom.base_dist) for atom in atoms
    )


def unchecked(distribution: Any) -> bool:
    """True if a distribution was made with `validate_args=False`; to be asked while Pyro's checks are on."""
    return any(vars(part).get("_validate_args") is False for part in parts(distribution))


def bad_argument(distribution: Any) -> str | None:
    """The name of an argument that a distribution does not admit, such as a negative scale, of those that are cheap to
    look at."""
    for part in parts(distribution):
        try:
            arguments = part.arg_constraints
        except (NotImplementedError, AttributeError):
            continue
        for name, constraint in arguments.items():
            value = vars(part).get(name)
            if constraints.is_dependent(constraint) or constraint.event_dim or everywhere(constraint):
                continue
            if isinstance(value, Tensor) and not constraint.check(value).all():
                return f"parameter {name} of {type(part).__name__} must be {constraint}"
    return None


# Constraints ---------------------------------------------------------------------------------------------------


def _base(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def everywhere(constraint: Any) -> bool:
    """True if a constraint admits every number."""
    return isinstance(_base(constraint), type(constraints.real))


def bounds(constraint: Any) -> list[Any]:
    """Numbers and tensors that a constraint is made of, such as the ends of an interval."""
    return list(vars(_base(constraint)).values())


def same(ours: Any, theirs: Any) -> bool:
    """True if two constraints certainly admit the same values, but for the ends of an interval."""
    if ours is None or theirs is None:
        return False
    kinds = [type(_base(each)).__name__ for each in (ours, theirs)]
    if _ALIKE.get(kinds[0], kinds[0]) != _ALIKE.get(kinds[1], kinds[1]):
        return False
    return all(
        isinstance(one, int | float | Tensor)
        and isinstance(other, int | float | Tensor)
        and torch.equal(torch.as_tensor(one).double(), torch.as_tensor(other).double())
        for one, other in zip(bounds(ours), bounds(theirs), strict=True)
    )


def _told(distribution: Any) -> Any:
    """A support that can be believed; None if each value has to be looked at, `_UNKNOWN` if that tells nothing."""
    if isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        return _told(distribution.base_dist)
    if isinstance(distribution, _ANGLES):
        return _ANGLE
    if _is_transformed(distribution):
        base, chain = _told(distribution.base_dist), _chain(distribution)
        inner = [transform.codomain for transform in chain[:-1]]
        plain = base is not None and base is not _UNKNOWN and everywhere(base) and all(map(everywhere, inner))
        return (chain[-1].codomain if chain else base) if plain else None
    if isinstance(distribution, MixtureSameFamily):
        component = _told(distribution.component_distribution)
        return None if component is None or (component is not _UNKNOWN and _depends(component)) else component
    constraint = support(distribution)
    return _UNKNOWN if constraint is None else constraint


def _is_transformed(distribution: Any) -> bool:
    """True if a support is that of the last transform. Families that are written as transforms, such as Gumbel's, tell
    their own, and need no inverse, which may underflow."""
    inherited: Any = TransformedDistribution.support
    return isinstance(distribution, TransformedDistribution) and type(distribution).support is inherited


def _depends(constraint: Any) -> bool:
    return any(isinstance(bound, Tensor) for bound in bounds(constraint))


def is_fixed(distribution: Any, constant: bool = False) -> bool:
    """True if a support certainly is the same for all of a batch.

    :param constant: count ends of intervals that are tensors if all their numbers are the same.
    """
    constraint = _told(distribution)
    if constraint is _UNKNOWN or constraint is None:
        return constraint is _UNKNOWN
    ends = [bound for bound in bounds(constraint) if isinstance(bound, Tensor)]
    return not ends or (constant and all(bool((end == end.flatten()[0]).all()) for end in ends))


def covers(prior: Any, guide: Any) -> bool:
    """True if a prior certainly admits all values of a guide, so that they need not be looked at."""
    ours, theirs = _told(prior), _told(guide)
    if ours is _UNKNOWN or (ours is not None and everywhere(ours)):
        return True
    return ours is not None and not _depends(ours) and theirs is not _UNKNOWN and same(ours, theirs)


def certainly_narrower(guide: Any, prior: Any) -> bool | None:
    """True if a guide certainly leaves out a part of the prior's support; None if values have to tell."""
    theirs, ours = _told(guide), _told(prior)
    if theirs is _UNKNOWN or ours is _UNKNOWN:
        return False
    if theirs is not None and ours is not None:
        if everywhere(theirs) or (same(theirs, ours) and not _depends(theirs)):
            return False
        if everywhere(ours):
            return True
    return None


# Values --------------------------------------------------------------------------------------------------------


def _admits(constraint: Any, value: Tensor, grey: bool) -> Tensor:
    """`constraint.check(value)`, with a tolerance for the rounding of many float32 numbers, with integers alone for a
    discrete one, and without infinity."""
    base = _base(constraint)
    if isinstance(base, type(constraints.simplex)):
        tolerance = 1e-4 if value.dtype is not torch.float64 else 1e-6
        found: Tensor = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < tolerance)
        return found
    if everywhere(constraint):
        return _all(value.isfinite(), constraint.event_dim)
    if grey and isinstance(base, type(constraints.boolean)):
        return _all((value >= 0) & (value <= 1), constraint.event_dim)
    found = constraint.check(value)
    if constraint.is_discrete and value.is_floating_point():
        found = found & _all(value == value.round(), constraint.event_dim)
    return found


def _events(distribution: Any) -> int:
    return len(distribution.event_shape)


def _all(found: Tensor, events: int) -> Tensor:
    return found.flatten(-events).all(-1) if events > 0 else found


def _chain(distribution: Any) -> list[Any]:
    """The transforms of a distribution, one after the other."""

    def flat(transform: Any) -> list[Any]:
        inner = transform.parts if isinstance(transform, transforms.ComposeTransform) else None
        return [transform] if inner is None else [each for part in inner for each in flat(part)]

    return [each for transform in distribution.transforms for each in flat(transform)]


def inside(site: dict[str, Any], grey: bool = False) -> Tensor | None:
    """True where the value of a site is in its distribution's support, bool [batch]; None if the support is not told. A
    value that a mask leaves out is.

    :param grey: admit values between 0 and 1 where 0 and 1 are admitted.
    """
    found = _inside(site["fn"], site["value"], grey)
    mask = site["mask"]
    return found if found is None or mask is None else found | ~torch.as_tensor(mask, device=found.device)


def _inside(distribution: Any, value: Tensor, grey: bool = False) -> Tensor | None:
    if isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        found = _inside(distribution.base_dist, value, grey)
        if found is not None and isinstance(distribution, dist.MaskedDistribution):
            found = found | ~torch.as_tensor(distribution._mask, device=found.device)
        return None if found is None else _all(found, getattr(distribution, "reinterpreted_batch_ndims", 0))
    if isinstance(distribution, MixtureSameFamily):
        found = _inside(distribution.component_distribution, distribution._pad(value), grey)
        return None if found is None else found.any(-1)
    if _is_transformed(distribution):
        return _inside_transformed(distribution, value)
    constraint = _ANGLE if isinstance(distribution, _ANGLES) else support(distribution)
    if constraint is None:
        return None
    return _all(_admits(constraint, value, grey), _events(distribution) - constraint.event_dim)


def _inside_transformed(distribution: Any, value: Tensor) -> Tensor | None:
    """By going back to what was transformed; None where there is no way back, as from a planar flow's values."""
    constraint = _told(distribution)
    if constraint is not None:
        return _all(_admits(constraint, value, False), _events(distribution) - constraint.event_dim)
    found = torch.ones(value.shape[: value.dim() - _events(distribution)], dtype=torch.bool, device=value.device)
    try:
        for transform in reversed(_chain(distribution)):
            codomain = transform.codomain
            found = found & _all(_admits(codomain, value, False), _events(distribution) - codomain.event_dim)
            value = transform.inv(value)
    except Exception:  # NotImplementedError, or a flow's own
        return None
    base = _inside(distribution.base_dist, value)
    return None if base is None else found & _all(base, _events(distribution) - _events(distribution.base_dist))


def masks(site: dict[str, Any], of_events: bool = False) -> list[Tensor]:
    """The masks on a site, bool [batch], by handlers and by `.mask(…)`.

    :param of_events: with those on parts of an event.
    """
    each = itertools.takewhile(lambda part: of_events or not isinstance(part, Independent), parts(site["fn"]))
    found = [site["mask"], *(getattr(part, "_mask", None) for part in each)]
    return [torch.as_tensor(mask, device=site["value"].device) for mask in found if isinstance(mask, Tensor | bool)]


def log_prob_within(site: dict[str, Any], score: Callable[[dict[str, Any]], Tensor]) -> Tensor:
    """The log-density of a site by `score`, -inf where its value is outside the support: there another value is scored
    in its place, since tables are looked up by it."""
    found = inside(site)
    if found is None or bool(found.all()):
        return score(site)
    distribution, value = site["fn"], site["value"]
    chosen = found.reshape(*found.shape, *[1] * _events(distribution))
    admitted = torch.where(chosen, value, distribution.sample().to(value.dtype))
    return torch.where(found, score({**site, "value": admitted}), -math.inf)


def own_log_prob(distribution: Any, value: Tensor) -> Tensor | None:
    """The log-density of distributions whose own is wrong at or beyond their bounds: a uniform one, which may draw its
    upper end, and a mixture of bounded components. None for all others."""
    if isinstance(distribution, Independent):
        inner = own_log_prob(distribution.base_dist, value)
        return None if inner is None else inner.flatten(-distribution.reinterpreted_batch_ndims).sum(-1)
    if isinstance(distribution, torch.distributions.Uniform):
        within = (distribution.low <= value) & (value <= distribution.high)
        return torch.where(within, -(distribution.high - distribution.low).log(), -math.inf)
    if isinstance(distribution, MixtureSameFamily):
        component, padded = distribution.component_distribution, distribution._pad(value)
        if (told := _told(component)) is _UNKNOWN or (told is not None and everywhere(told)):
            return None
        found = _inside(component, padded)
        own = own_log_prob(component, padded)
        log_prob = component.log_prob(padded) if own is None else own
        log_prob = log_prob if found is None else torch.where(found, log_prob, -math.inf)
        return (log_prob + distribution.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)
    return None
