"""The sum over all states of z, image by image, for a model whose latent sites all have finite support.

Every latent site is enumerated in parallel, each in a dimension of its own. Then

    log p(x) = log sum_z exp(log p(z) + log p(x | z))

is computed in one of two ways. Either the observed distribution sums over all states at once
(`LinearBernoulliVector.log_marginal`), or one site after the other is summed out, each from the product of only those
factors that depend on it (variable elimination).

Sums are in log space: factors are added first, and the maximum of their sum is subtracted. Pyro's `TraceEnum_ELBO`
subtracts the maximum of each factor instead. In float32 it then loses a state that explains x but is 90 nats less
probable a priori than another. `TraceEnum` is that class with the sum replaced.

`ppl_gen.inference.exact` has functions that return log p(x) of many images.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_gen.core.errors import BadInput, as_bad_input, describe
from ppl_gen.inference.callables import Batch, evaluating, forked_rng, matmul_precision, take
from ppl_gen.inference.densities import Site, add, alike, expand_to_plates, masked_log_prob, plates_of, sample_sites
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import block_size, can_sum_states, require_memory, shown_count
from ppl_gen.inference.supports import bounds, log_prob_within, masks, same, support
from ppl_gen.inference.tracing import PyroFunction, trace_of

_NEAR = 0.5  # nats; closer to 0, log p is computed from 1 - p, see `_sum_out`
_ROUNDING = 1e-3  # nats; the log of a sum of probabilities below this size means that they add up to 1
_MOST_CALLS = 4096  # calls of a model that takes one state at a time
_CHECKED = 5  # states on which enumeration in parallel is compared with conditioning


@dataclass(frozen=True)
class StateSum:
    """A function that returns log p(x) in nats, [images], by a sum over all states of z. It is differentiable.

    Without gradients, factors are added in float64, and a log p(x) near 0 is computed as
    log(1 - sum_z p(z) [1 - p(x | z)]). The error is then that of the distributions' own log-densities, which for binary
    pixels is below 1e-6 of their size.

    Masks are applied, scales are not. Nested plates inside the plate of images are allowed.
    """

    pair: Pair
    """The pair. Its `may_leave_support` includes observed sites whose support depends on the state."""
    by_state: bool
    """True if the model is called for one state at a time; False if it takes all states in parallel."""

    def __call__(self, model: PyroFunction, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log p(x) [images].

        :param model: the model of the pair, with or without further handlers.
        :raises BadInput: for a latent site without finite support, and for `pyro.markov`.
        """
        log_marginal = _log_marginal_by_state if self.by_state else _log_marginal
        return log_marginal(self.pair, model, Batch(x, args, kwargs))


def sum_over_states(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> StateSum:
    """Choose the way to sum over states: in parallel if the model broadcasts over states, which is tried on a few
    images; else by one call for each state.

    :raises BadInput: for a model that does not broadcast, if it has too many states or a latent site in an inner plate;
        and for states that do not fit into memory.
    """
    if pair.sums_states:  # the likelihood checks z by itself
        return StateSum(pair, by_state=False)
    # If the number of images were a number of states, a model that confuses the two dimensions would not be noticed.
    num_states = pair.num_states
    assert num_states is not None
    count = next(count for count in itertools.count(3) if num_states % count)
    rows = torch.arange(min(count, block_size(pair)), device=x.device) % len(x)
    require_memory(pair, len(rows), device=x.device)
    batch = take(rows, x, args, kwargs)
    with evaluating(pair.model), matmul_precision():
        pair, reason = _tried_in_parallel(pair, batch)
        if reason is None:
            return StateSum(pair, by_state=False)
        hint = (
            f"{pair.model_name} does not broadcast over states of z ({reason}): write it for a z with further "
            "dimensions on the left, such as z.unsqueeze(-1) instead of z.view(-1, 1)"
        )
        if num_states > _MOST_CALLS:
            raise BadInput(f"{hint}; it has {shown_count(pair)} states, too many to visit one by one")
        return StateSum(_tried_by_state(pair, batch, hint), by_state=True)


# All states in parallel --------------------------------------------------------------------------------------------

Factors = dict[frozenset[int], list[Tensor]]
"""Log-densities of sites, keyed by the dimensions of the plates around them inside the plate of images."""


def _log_marginal(pair: Pair, model: PyroFunction, batch: Batch) -> Tensor:
    """log p(x) [images], with all states in parallel."""
    sites = sample_sites(_parallel_trace(pair, model, batch))
    if can_sum_states(sites):
        latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
        summed: Tensor | None = observed["fn"].log_marginal(observed["value"], latent["fn"])
        if summed is not None:
            return summed.expand(observed["cond_indep_stack"][0].size)
    factors: Factors = {frozenset(): []}
    dims: dict[frozenset[int], list[int]] = {}
    priors: dict[int, Tensor] = {}  # keyed by the dimension over which each is normalized
    for site in sites:
        plates = frozenset(frame.dim for frame in plates_of(site) if frame.name != pair.plate.name)
        factor = expand_to_plates(site, _log_prob(pair, site), 2 + pair.max_plate_nesting)
        if not site["is_observed"]:
            dim = site["infer"].get("_enumerate_dim")
            if dim is None or any(dim in others for others in dims.values()):
                reason = "has no finite support" if dim is None else "is in a pyro.markov, which is not supported here"
                raise BadInput(f"{pair.model_name}: latent site '{site['name']}' {reason}; it cannot be enumerated")
            dims.setdefault(plates, []).append(dim)
            # A masked log-density is 0 in every state, and would count each image once for every state. With a uniform
            # distribution in its place, the sum over states is 1.
            for mask in masks(site):
                factor = torch.where(mask, factor, -math.log(factor.shape[dim]))
            if not torch.is_grad_enabled():
                total = factor.logsumexp(dim, keepdim=True)
                # A mask on part of an event is not replaced above. Such a site adds up to more than 1.
                if bool((total.abs() < _ROUNDING).all()):
                    factor = priors[dim] = factor - total
        factors.setdefault(plates, []).append(factor)
    result = _eliminate(factors, dims, priors).movedim(pair.plate.dim, -1)
    if result.numel() != result.shape[-1]:
        raise BadInput(f"{pair.model_name}: its plates are not nested, so it cannot be enumerated; nest them")
    return result.flatten()


def _eliminate(factors: Factors, dims: dict[frozenset[int], list[int]], priors: dict[int, Tensor]) -> Tensor:
    """log of the sum over all states of the product of all factors, by variable elimination: the sites in the innermost
    plate are summed out first, then the product over that plate is taken.

    :param dims: enumerated dimensions of the sites in each set of plates.
    :param priors: factors that are normalized over an enumerated dimension.
    """
    for plates in sorted(factors, key=len, reverse=True):  # innermost first
        remaining = factors[plates]
        for dim in sorted(dims.get(plates, [])):  # the last site has the leftmost dimension
            with_it = [f for f in remaining if f.dim() >= -dim and f.shape[dim] > 1]
            without = [f for f in remaining if not any(f is other for other in with_it)]
            remaining = [*without, *([_sum_out(with_it, priors.get(dim), dim)] if with_it else [])]
        if not plates:
            return add(remaining)
        parent = max((other for other in factors if other < plates), key=len)
        factors[parent] += [f.sum(sorted(plates - parent), keepdim=True) for f in remaining]
    raise AssertionError("the images' own plate is always among the factors")


def _sum_out(factors: list[Tensor], prior: Tensor | None, dim: int) -> Tensor:
    """log of the sum over a dimension of the product of some factors.

    :param prior: the factor that is normalized over this dimension, if there is one. With it, and w the product of the
        others, the sum is 1 + sum_z p(z) (w_z - 1). Near 1 that loses no digits.
    """
    total = add(factors).logsumexp(dim, keepdim=True)
    others = [factor for factor in factors if factor is not prior]
    near = total.abs() < _NEAR
    if prior is None or not others or not bool(near.any()):
        return total
    exact = (prior.exp() * add(others).expm1()).sum(dim, keepdim=True).log1p()
    return torch.where(near & exact.isfinite(), exact, total)


def _parallel_trace(pair: Pair, model: PyroFunction, batch: Batch) -> poutine.Trace:
    """The trace of the model with all latent sites enumerated in parallel."""
    enumerated = poutine.enum(config_enumerate(model, "parallel"), first_available_dim=-1 - pair.max_plate_nesting)
    return trace_of(enumerated, batch)


def _log_prob(pair: Pair, site: Site) -> Tensor:
    """The log-density of a site, in float64 if gradients are off."""
    evaluated = not torch.is_grad_enabled()
    score = partial(masked_log_prob, wide=evaluated)
    log_prob = log_prob_within(site, score) if site["name"] in pair.may_leave_support else score(site)
    return log_prob.double() if evaluated else log_prob


# One state at a time -----------------------------------------------------------------------------------------------

State = tuple[dict[str, int], poutine.Trace]
"""The index of each latent site's value in its support, and the trace of the model conditioned on these values."""


def _states(model: PyroFunction, choose: Callable[[int], Iterable[int]], batch: Batch) -> Iterator[State]:
    """Iterate over states. A state has the same value of a site for all images and all elements of a plate.

    :param choose: a function from the number of values of a site to the indices of the values to visit.
    """

    def visit(index: dict[str, int], known: dict[str, Tensor]) -> Iterator[State]:
        # Sites without a value yet draw noise. No result depends on it.
        with forked_rng(batch.x):
            trace = trace_of(poutine.condition(model, known), batch)
        site = next((site for site in sample_sites(trace) if not site["is_observed"]), None)
        if site is None:
            yield index, trace
            return
        fn, name = site["fn"], site["name"]
        values = fn.enumerate_support(expand=False)
        for chosen in choose(len(values)):
            value = values[chosen].expand(fn.batch_shape + fn.event_shape)
            yield from visit({**index, name: chosen}, {**known, name: value})

    return visit({}, {})


def _log_marginal_by_state(pair: Pair, model: PyroFunction, batch: Batch) -> Tensor:
    """log p(x) [images], by one call of the model for each state."""
    priors, likelihoods = [], []
    for index, trace in _states(model, range, batch):
        terms: dict[bool, list[Tensor]] = {True: [], False: []}
        for site in sample_sites(trace):
            log_prob, latent = _log_prob(pair, site), site["name"] in index
            if latent:
                for mask in masks(site):  # as in `_log_marginal`
                    log_prob = torch.where(mask, log_prob, -math.log(len(site["fn"].enumerate_support(expand=False))))
            terms[latent].append(pair.per_image(site, log_prob).reshape(len(batch.x)))
        priors.append(add(terms[True]))
        likelihoods.append(add(terms[False]))
    prior, likelihood = torch.stack(priors), torch.stack(likelihoods)
    total = prior.logsumexp(0)
    if torch.is_grad_enabled() or bool((total.abs() >= _ROUNDING).any()):
        return (prior + likelihood).logsumexp(0)
    prior = prior - total
    return _sum_out([prior, likelihood], prior, 0).squeeze(0)


# The choice between the two ----------------------------------------------------------------------------------------


def _tried_in_parallel(pair: Pair, batch: Batch) -> tuple[Pair, str | None]:
    """Try enumeration in parallel on a few images. Returns the pair with `may_leave_support` completed, and the reason
    why the densities in parallel differ from those conditioned on a state. It is None if they agree, and also for a
    pair that `_log_marginal` refuses."""
    try:
        sites = sample_sites(_parallel_trace(pair, pair.model, batch))
        dims = {site["name"]: site["infer"].get("_enumerate_dim") for site in sites if not site["is_observed"]}
        if None in dims.values() or len(set(dims.values())) < len(dims):
            return pair, None  # the message of `_log_marginal` is better than one about densities
        differ = {s["name"] for s in sites if s["is_observed"] and _differs_by_state(s, pair.max_plate_nesting)}
        pair = replace(pair, may_leave_support=pair.may_leave_support | differ)
        return pair, _difference(pair, sites, dims, batch)
    except Exception as error:  # a model that does not broadcast may raise anything
        return pair, describe(error)


def _difference(pair: Pair, sites: list[Site], dims: dict[str, int], batch: Batch) -> str | None:
    """A sentence about a state whose log-density in parallel differs from the one conditioned on it; None if there is
    none among a few states.

    :param sites: sites of the trace in parallel.
    :param dims: enumerated dimension of each latent site.
    """
    densities = [(site, _log_prob(pair, site)) for site in sites]
    count = len(batch.x)
    for index, trace in _few_states(pair, batch):
        alone = add([pair.per_image(s, _log_prob(pair, s)).reshape(count) for s in sample_sites(trace)])
        parts = []
        for site, log_prob in densities:
            for name, chosen in index.items():
                dim = dims[name]
                if log_prob.dim() >= -dim and log_prob.shape[dim] > 1:
                    log_prob = log_prob.narrow(dim, chosen, 1)
            parts.append(pair.per_image(site, log_prob).reshape(count))
        among = add(parts)
        if not alike(among, alone):
            image = int((among - alone).abs().nan_to_num(nan=math.inf).argmax())
            state = ", ".join(f"{name} no. {chosen}" for name, chosen in index.items())
            return (
                f"log p(x, z) of image {image} and state {state} is {float(among[image]):.6g} among all states and "
                f"{float(alone[image]):.6g} alone"
            )
    return None


def _few_states(pair: Pair, batch: Batch) -> list[State]:
    """Up to `_CHECKED` states: all of them, or a random choice that is the same at every call."""
    if pair.num_states is not None and pair.num_states <= _CHECKED:
        return list(_states(pair.model, range, batch))
    generator = torch.Generator().manual_seed(0)

    def one_of(count: int) -> list[int]:
        return torch.randint(count, (1,), generator=generator).tolist()

    return [next(_states(pair.model, one_of, batch)) for _ in range(_CHECKED)]


def _tried_by_state(pair: Pair, batch: Batch, hint: str) -> Pair:
    """Visit every state. Returns the pair with `may_leave_support` completed by observed sites whose support depends
    on the state.

    :raises BadInput: for a latent site in an inner plate, and for an error in the model.
    """
    first: dict[str, Constraint] = {}
    differ = set()
    with as_bad_input(f"{pair.model_name} fails when its latent sites are enumerated"):
        for index, trace in _states(pair.model, range, batch):
            for name in index:
                if len(plates_of(trace.nodes[name])) > 1:
                    raise BadInput(f"{hint}; its site '{name}' is in a plate inside the plate of images")
            for name in pair.observed:
                constraint = support(trace.nodes[name]["fn"])
                if constraint is None or not bounds(constraint):
                    continue
                if not same(first.setdefault(name, constraint), constraint):
                    differ.add(name)
    return replace(pair, may_leave_support=pair.may_leave_support | differ)


def _differs_by_state(site: Site, plates: int) -> bool:
    """True if the support of an observed site, in a trace with states in parallel, differs between states."""
    constraint = support(site["fn"])
    for bound in [] if constraint is None else bounds(constraint):
        states = bound.dim() - site["fn"].event_dim - plates if isinstance(bound, Tensor) else 0
        if states > 0:
            each = bound.flatten(0, states - 1)
            if bool((each != each[:1]).any()):
                return True
    return False


# As an objective ---------------------------------------------------------------------------------------------------


class DifferentiableLoss:
    """The other methods of an `ELBO` that defines `differentiable_loss`."""

    differentiable_loss: Callable[..., Tensor]

    def loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class TraceEnum(DifferentiableLoss, TraceEnum_ELBO):
    """-log p(x), summed over the images: `TraceEnum_ELBO` for a model whose latent sites are all enumerated and a guide
    that samples none, with another sum over states (`StateSum`).

    :param x: a few images to try the model on, with their `args`.
    """

    def __init__(self, pair: Pair, x: Tensor, *args: Any, **kwargs: Any):
        super().__init__(max_plate_nesting=pair.max_plate_nesting)
        self.log_px = sum_over_states(pair, x, *args, **kwargs)

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> Tensor:
        return -self.log_px(model, *args, **kwargs).sum()
