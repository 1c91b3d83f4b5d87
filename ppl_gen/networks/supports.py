"""Supports of distributions, and tests of values against them.

With Pyro's checks off, `log_prob` of a value outside the support is often a plausible number: for Exponential(rate) at
-1 it is log rate + rate. Here the support is tested, so that a latent value outside the prior's support has weight 0,
and an image outside the likelihood's support is refused.

The attribute `support` of some distributions is wrong: an affine transform of bounded values says "real", and a mixture
states the intersection of its components' supports in place of their union. Therefore distributions are taken apart,
and their parts are tested.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final, TypeGuard

import pyro.distributions as dist
import torch
from pyro.contrib.mue.missingdatahmm import MissingDataDiscreteHMM
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.transforms import BlockAutoregressive
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
    transforms,
)
from torch.distributions.constraints import Constraint

from ppl_gen.core.errors import BadInput
from ppl_gen.networks.distributions import has_probs
from ppl_gen.networks.levels import Levels

Site = dict[str, Any]
"""A sample statement in a Pyro trace."""

ANGLE = constraints.interval(-math.pi, math.pi)
ANGLES = (dist.VonMises, dist.SineBivariateVonMises)
_NO_DENSITY = (
    dist.Delta,
    dist.Empirical,
    dist.RelaxedBernoulliStraightThrough,
    dist.RelaxedOneHotCategoricalStraightThrough,
)
# Constraints that differ by a set of measure zero.
_ALIKE = {"_GreaterThanEq": "_GreaterThan", "_HalfOpenInterval": "_Interval"}


class _Unknown(Enum):
    """Type of `_UNKNOWN`."""

    UNKNOWN = 0


_UNKNOWN: Final = _Unknown.UNKNOWN
"""Support of a distribution that does not state it."""


def support(distribution: Distribution) -> Constraint | None:
    """The support that a distribution states; None if it states none, as `ZukoToPyro`."""
    try:
        return distribution.support
    except (NotImplementedError, AttributeError):
        return None


def is_discrete(distribution: Distribution) -> bool:
    """True if a distribution has probabilities. One that states no support is assumed to have densities."""
    constraint = support(distribution)
    return constraint is not None and bool(constraint.is_discrete)


def draws_labels(distribution: Distribution) -> bool:
    """True for a finite number of values that are not binary or one-hot, such as those of a categorical distribution:
    they may be labels, whose mean says nothing."""
    constraint = support(distribution)
    return distribution.has_enumerate_support and not (
        constraint is not None and isinstance(_base(constraint), type(constraints.boolean) | type(constraints.one_hot))
    )


def unbounded(distribution: Distribution) -> bool:
    """True if the values of a distribution are continuous and unbounded. Angles are bounded, whatever they state, and
    so is an affine transform of bounded values."""
    constraint = support(distribution)
    if constraint is None or constraint.is_discrete:
        return False
    # Constraints are of many classes. Two large values show a bound on either side.
    far = torch.full_like(distribution.sample(), 1e4)
    found = [_inside(distribution, value) for value in (far, -far)]
    return all(each is not None and bool(each.all()) for each in found)


def parts(distribution: Distribution) -> Iterator[Any]:
    """A distribution and all distributions that it wraps, masks, expands, transforms or mixes."""
    yield distribution
    for name in ("base_dist", "_component_distribution", "component0", "component1"):
        part = getattr(distribution, name, None)
        if isinstance(part, torch.distributions.Distribution):
            yield from parts(part)


def takes_any_length(distribution: Distribution) -> bool:
    """True for Pyro's hidden Markov models with the same transition at every step: their event shape has 1 step, but
    their values have any number."""
    chains = [part for part in parts(distribution) if isinstance(part, HiddenMarkovModel | MissingDataDiscreteHMM)]
    return any(part.event_shape[0] == 1 for part in chains)


def has_no_density(distribution: Distribution) -> bool:
    """True if a distribution has atoms: positive probability of single values of a continuous variable."""
    atoms = [part for part in parts(distribution) if isinstance(part, dist.ZeroInflatedDistribution)]
    return any(isinstance(part, _NO_DENSITY) for part in parts(distribution)) or any(
        not is_discrete(atom.base_dist) for atom in atoms
    )


def unchecked(distribution: Distribution) -> bool:
    """True if a distribution was made with `validate_args=False`. Call it while Pyro's checks are on."""
    return any(vars(part).get("_validate_args") is False for part in parts(distribution))


def bad_argument(distribution: Distribution) -> str | None:
    """A message about an invalid parameter of a distribution, such as a negative scale; None if there is none. Only
    constraints that are cheap to check are checked."""
    for part in parts(distribution):
        try:
            arguments = part.arg_constraints
        except (NotImplementedError, AttributeError):
            continue
        for name, constraint in arguments.items():
            value = vars(part).get(name)
            if constraints.is_dependent(constraint) or constraint.event_dim or admits_all_reals(constraint):
                continue
            if isinstance(value, Tensor) and not constraint.check(value).all():
                return f"parameter {name} of {type(part).__name__} must be {constraint}"
    return None


def check_arguments(sites: Iterable[Site], who: str) -> None:
    """Refuse an invalid parameter of a distribution, such as a negative scale, at any of the z that were drawn."""
    for site in sites:
        if (bad := bad_argument(site["fn"])) is not None:
            raise BadInput(f"{who}: site '{site['name']}': {bad}, and for some z it is not")


# Constraints ---------------------------------------------------------------------------------------------------


def _base(constraint: Constraint) -> Constraint:
    """A constraint without `independent` around it."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def admits_all_reals(constraint: Constraint) -> bool:
    """True if a constraint admits every real number."""
    return isinstance(_base(constraint), type(constraints.real))


def bounds(constraint: Constraint) -> list[Any]:
    """Parameters of a constraint, such as the ends of an interval: numbers and tensors."""
    return list(vars(_base(constraint)).values())


def same(ours: Constraint, theirs: Constraint) -> bool:
    """True if two constraints certainly admit the same values, up to the ends of an interval."""
    kinds = [type(_base(each)).__name__ for each in (ours, theirs)]
    if _ALIKE.get(kinds[0], kinds[0]) != _ALIKE.get(kinds[1], kinds[1]):
        return False
    return all(
        isinstance(one, int | float | Tensor)
        and isinstance(other, int | float | Tensor)
        and torch.equal(torch.as_tensor(one).double(), torch.as_tensor(other).double())
        for one, other in zip(bounds(ours), bounds(theirs), strict=True)
    )


def _reliable_support(distribution: Distribution) -> Constraint | _Unknown | None:
    """The support of a distribution, if what it states is reliable. None if values must be tested one by one, through
    the parts of the distribution. `_UNKNOWN` if it states no support."""
    if isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        return _reliable_support(distribution.base_dist)
    if isinstance(distribution, ANGLES):
        return ANGLE
    if _is_transformed(distribution):
        # The codomain of the last transform is the support only if its input takes all real values.
        base, chain = _reliable_support(distribution.base_dist), _chain(distribution)
        inner = [transform.codomain for transform in chain[:-1]]
        plain = isinstance(base, Constraint) and admits_all_reals(base) and all(map(admits_all_reals, inner))
        return (chain[-1].codomain if chain else base) if plain else None
    if isinstance(distribution, MixtureSameFamily):
        # With bounds that are tensors, the components may have different supports: their union is tested.
        component = _reliable_support(distribution.component_distribution)
        return None if isinstance(component, Constraint) and _has_tensor_bounds(component) else component
    constraint = support(distribution)
    return _UNKNOWN if constraint is None else constraint


def from_unbounded(distribution: Distribution) -> Transform:
    """The map from unbounded coordinates to the values of a distribution; the identity if these may be any real
    numbers. An affine transform of bounded values is reached through those.

    >>> flipped = dist.TransformedDistribution(dist.Exponential(1.0), [transforms.AffineTransform(1.0, -1.0)])
    >>> flipped.support, from_unbounded(flipped)(torch.tensor([-9.0, 0.0, 1.0]))
    (Real(), tensor([ 0.9999,  0.0000, -1.7183]))

    :raises BadInput: for a mixture whose components have supports of their own.
    """
    while isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        distribution = distribution.base_dist
    found = _reliable_support(distribution)
    if found is _UNKNOWN or (isinstance(found, Constraint) and admits_all_reals(found)):
        return transforms.identity_transform
    if isinstance(found, Constraint):
        return biject_to(found)
    if isinstance(distribution, TransformedDistribution):
        return transforms.ComposeTransform([from_unbounded(distribution.base_dist), *_chain(distribution)])
    raise BadInput("prior() has no unbounded coordinates: the components of its mixture have supports of their own")


def _is_transformed(distribution: Distribution) -> TypeGuard[TransformedDistribution]:
    """True if the stated support is that of the last transform. Families that are written as transforms, such as
    Gumbel, state their own support. They are tested against it, without an inverse, which may underflow."""
    inherited: Any = TransformedDistribution.support
    return isinstance(distribution, TransformedDistribution) and type(distribution).support is inherited


def _has_tensor_bounds(constraint: Constraint) -> bool:
    """True if an end of the support is a tensor, which may differ within a batch."""
    return any(isinstance(bound, Tensor) for bound in bounds(constraint))


def is_fixed(distribution: Distribution, constant: bool = False) -> bool:
    """True if the support is certainly the same for all of a batch.

    :param constant: accept ends of intervals that are tensors, if all their numbers are equal.
    """
    constraint = _reliable_support(distribution)
    if not isinstance(constraint, Constraint):
        return constraint is _UNKNOWN
    ends = [bound for bound in bounds(constraint) if isinstance(bound, Tensor)]
    return not ends or (constant and all(bool((end == end.flatten()[0]).all()) for end in ends))


def covers(prior: Distribution, guide: Distribution) -> bool:
    """True if a prior certainly admits all values of a guide, so that values need not be tested."""
    ours, theirs = _reliable_support(prior), _reliable_support(guide)
    if not isinstance(ours, Constraint):
        return ours is _UNKNOWN
    if admits_all_reals(ours):
        return True
    return not _has_tensor_bounds(ours) and isinstance(theirs, Constraint) and same(ours, theirs)


def certainly_narrower(guide: Distribution, prior: Distribution, *, everywhere: bool = False) -> bool | None:
    """True if the support of a guide certainly leaves out a part of the prior's, False if it certainly does not; None
    if only a test of values can decide.

    :param everywhere: whether that must hold for each image and unit, or for any.
    """
    theirs, ours = _reliable_support(guide), _reliable_support(prior)
    if theirs is _UNKNOWN or ours is _UNKNOWN:
        return False
    if ours is not None and admits_all_reals(ours) and any(map(_has_bounded_flow, parts(guide))):
        return True
    if theirs is not None and ours is not None:
        if admits_all_reals(theirs):
            return False
        if (ends := _ends(theirs)) is not None and (of_prior := _ends(ours)) is not None:
            inner = (ends[0] > of_prior[0]) | (ends[1] < of_prior[1])
            return bool(inner.all() if everywhere else inner.any())
        if same(theirs, ours) and not _has_tensor_bounds(theirs):
            return False
        if admits_all_reals(ours):
            return True
    return None


def _has_bounded_flow(distribution: Distribution) -> bool:
    """True for a block autoregressive flow without residual: its last layer is a sum of tanh, but it states that its
    values are all real numbers."""
    chain = _chain(distribution) if isinstance(distribution, TransformedDistribution) else []
    return any(isinstance(each, BlockAutoregressive) and each.residual is None for each in chain)


def _ends(constraint: Constraint) -> tuple[Tensor, Tensor] | None:
    """The least and the largest number that a constraint admits, up to the ends of an interval; None for constraints
    of other kinds. Of two constraints of numbers, either both or none must be of whole numbers."""
    base = _base(constraint)
    if isinstance(base, type(constraints.boolean)):
        return torch.tensor(0.0), torch.tensor(1.0)
    ends = vars(base).keys()
    if not ends or not ends <= {"lower_bound", "upper_bound"}:
        return None
    return tuple(  # type: ignore[return-value]
        torch.as_tensor(getattr(base, name, end)).double()
        for name, end in (("lower_bound", -math.inf), ("upper_bound", math.inf))
    )


def may_differ(distribution: Distribution) -> bool:
    """True if the values that a distribution draws may differ between the images of a batch."""
    constraint = _reliable_support(distribution)
    bounded = isinstance(constraint, Constraint) and _has_tensor_bounds(constraint)
    return bounded or _probabilities(distribution) is not None


def moves(distribution: Distribution) -> bool:
    """True if the support of a distribution changes with parameters that have a gradient, as that of Uniform(0, b)
    does. The mean of its score is then not 0."""
    for part in parts(distribution):
        if _is_transformed(part):
            base = _reliable_support(part.base_dist)
            bounded = not (isinstance(base, Constraint) and admits_all_reals(base))
            shifts = [each for each in _chain(part) if isinstance(each, transforms.AffineTransform)]
            ends = [end for each in shifts for end in (each.loc, each.scale) if bounded]
        else:
            constraint = support(part)
            ends = [] if constraint is None else bounds(constraint)
        if any(isinstance(end, Tensor) and end.requires_grad for end in ends):
            return True
    return False


def never(guide: Distribution, prior: Distribution) -> bool:
    """True if a guide gives the probability 0 to a value of a categorical or Bernoulli site, and the prior does not."""
    ours, theirs = _probabilities(prior), _probabilities(guide)
    if theirs is None:
        return False
    zero = theirs == 0
    return bool((zero if ours is None or ours.shape[-1] != theirs.shape[-1] else zero & (ours > 0)).any())


def _probabilities(distribution: Distribution) -> Tensor | None:
    """Probabilities [..., values] of the values of each unit; None for other than categorical distributions and
    Bernoulli ones of probabilities. Those of log-odds have none that is 0 but by rounding."""
    while isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        distribution = distribution.base_dist
    if isinstance(distribution, torch.distributions.Categorical | torch.distributions.OneHotCategorical):
        return distribution.probs
    if isinstance(distribution, torch.distributions.Bernoulli) and has_probs(distribution):
        return torch.stack([1 - distribution.probs, distribution.probs], -1)
    return None


# Values --------------------------------------------------------------------------------------------------------


def _admits(constraint: Constraint, value: Tensor, grey: bool) -> Tensor:
    """`constraint.check(value)` with three differences: a simplex has a tolerance for the rounding of many float32
    numbers, a discrete constraint admits only integers, but for `Levels`, and infinity is never admitted.

    :param grey: admit values between 0 and 1 for a boolean constraint.
    """
    base = _base(constraint)
    if isinstance(base, type(constraints.simplex)):
        tolerance = 1e-4 if value.dtype is not torch.float64 else 1e-6
        admitted: Tensor = (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < tolerance)
        return admitted
    if admits_all_reals(constraint):
        return _all(value.isfinite(), constraint.event_dim)
    if grey and isinstance(base, type(constraints.boolean)):
        return _all((value >= 0) & (value <= 1), constraint.event_dim)
    admitted = constraint.check(value)
    if constraint.is_discrete and value.is_floating_point() and not isinstance(base, Levels):
        admitted = admitted & _all(value == value.round(), constraint.event_dim)
    return admitted


def _all(found: Tensor, dims: int) -> Tensor:
    """`all` over the last `dims` dimensions."""
    return found.flatten(-dims).all(-1) if dims > 0 else found


def _chain(distribution: TransformedDistribution) -> list[Transform]:
    """The transforms of a distribution in order, without `ComposeTransform`."""

    def flat(transform: Transform) -> list[Transform]:
        if isinstance(transform, transforms.ComposeTransform):
            return [each for part in transform.parts for each in flat(part)]
        return [transform]

    return [each for transform in distribution.transforms for each in flat(transform)]


def inside(site: Site, grey: bool = False) -> Tensor | None:
    """True where the value of a site is inside the support of its distribution, bool [batch]; None if the support is
    unknown. Values that a mask leaves out count as inside.

    :param grey: admit values between 0 and 1 where 0 and 1 are admitted.
    """
    found = _inside(site["fn"], site["value"], grey)
    mask = site["mask"]
    return found if found is None or mask is None else found | ~torch.as_tensor(mask, device=found.device)


def _inside(distribution: Distribution, value: Tensor, grey: bool = False) -> Tensor | None:
    """As `inside`, for a distribution and a value, through the parts of the distribution."""
    if isinstance(distribution, Independent | dist.MaskedDistribution | ExpandedDistribution):
        found = _inside(distribution.base_dist, value, grey)
        if found is None:
            return None
        if isinstance(distribution, dist.MaskedDistribution):
            found = found | ~torch.as_tensor(distribution._mask, device=found.device)
        return _all(found, distribution.reinterpreted_batch_ndims) if isinstance(distribution, Independent) else found
    if isinstance(distribution, MixtureSameFamily):
        found = _inside(distribution.component_distribution, distribution._pad(value), grey)
        return None if found is None else found.any(-1)
    if isinstance(distribution, dist.MaskedMixture):
        both = [_inside(each, value, grey) for each in (distribution.component0, distribution.component1)]
        return None if both[0] is None or both[1] is None else torch.where(distribution.mask, both[1], both[0])
    if _is_transformed(distribution):
        return _inside_transformed(distribution, value)
    constraint = ANGLE if isinstance(distribution, ANGLES) else support(distribution)
    if constraint is None:
        return None
    return _all(_admits(constraint, value, grey), len(distribution.event_shape) - constraint.event_dim)


def _inside_transformed(distribution: TransformedDistribution, value: Tensor) -> Tensor | None:
    """As `_inside`, by inverting the transforms; None if there is no inverse, as of a planar flow."""
    constraint, dims = _reliable_support(distribution), len(distribution.event_shape)
    if isinstance(constraint, Constraint):
        return _all(_admits(constraint, value, False), dims - constraint.event_dim)
    found = torch.ones(value.shape[: value.dim() - dims], dtype=torch.bool, device=value.device)
    try:
        for transform in reversed(_chain(distribution)):
            codomain = transform.codomain
            found = found & _all(_admits(codomain, value, False), dims - codomain.event_dim)
            value = transform.inv(value)
    except Exception:  # NotImplementedError, or an error of the flow
        return None
    base = _inside(distribution.base_dist, value)
    return None if base is None else found & _all(base, dims - len(distribution.base_dist.event_shape))


def masks(site: Site) -> list[Tensor]:
    """The masks on a site, bool [batch], from handlers and from `.mask(…)`, but for masks on parts of an event."""
    each = itertools.takewhile(lambda part: not isinstance(part, Independent), parts(site["fn"]))
    found = [site["mask"], *(getattr(part, "_mask", None) for part in each)]
    return [torch.as_tensor(mask, device=site["value"].device) for mask in found if isinstance(mask, Tensor | bool)]


def without_masks(site: Site) -> Site:
    """A site without the masks that `masks` finds. Summed over its values, its density is 1 where it is masked too: the
    values of a masked site are those that its distribution draws."""
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return {**site, "fn": fn, "mask": None}


def unmasked(site: Site) -> Tensor:
    """The parts of a site's value that no mask leaves out, bool; it broadcasts with [batch, event]."""
    fn, device = site["fn"], site["value"].device
    found = [(site["mask"], fn), *((getattr(part, "_mask", None), part) for part in parts(fn))]
    kept = torch.tensor(True, device=device)
    for mask, part in found:
        if isinstance(mask, Tensor | bool):
            mask = torch.as_tensor(mask, device=device).bool()
            kept = kept & mask.reshape([*mask.shape, *[1] * len(part.event_shape)])
    return kept


def log_prob_within(site: Site, score: Callable[[Site], Tensor]) -> Tensor:
    """The log-density of a site by `score`, and -inf where its value is outside the support. There a sample of the
    distribution is scored in its place: a value outside would be an invalid index into a table, as of a categorical."""
    found = inside(site)
    if found is None or bool(found.all()):
        return score(site)
    distribution, value = site["fn"], site["value"]
    chosen = found.reshape(*found.shape, *[1] * len(distribution.event_shape))
    admitted = torch.where(chosen, value, distribution.sample().to(value.dtype))
    return torch.where(found, score({**site, "value": admitted}), -math.inf)


def own_log_prob(distribution: Distribution, value: Tensor) -> Tensor | None:
    """The log-density of distributions whose `log_prob` is wrong at or beyond their bounds: a uniform distribution,
    which may draw its upper end, and a mixture of bounded components. None for all other distributions."""
    if isinstance(distribution, Independent):
        inner = own_log_prob(distribution.base_dist, value)
        return None if inner is None else inner.flatten(-distribution.reinterpreted_batch_ndims).sum(-1)
    if isinstance(distribution, torch.distributions.Uniform):
        within = (distribution.low <= value) & (value <= distribution.high)
        return torch.where(within, -(distribution.high - distribution.low).log(), -math.inf)
    if isinstance(distribution, MixtureSameFamily):
        component, padded = distribution.component_distribution, distribution._pad(value)
        known = _reliable_support(component)
        if known is _UNKNOWN or (isinstance(known, Constraint) and admits_all_reals(known)):
            return None
        supported = _inside(component, padded)
        corrected = own_log_prob(component, padded)
        log_prob = component.log_prob(padded) if corrected is None else corrected
        log_prob = log_prob if supported is None else torch.where(supported, log_prob, -math.inf)
        return (log_prob + distribution.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)
    return None
