"""The sum over all states of z of a model whose latent sites all have finite support, image by image.

Every latent site is enumerated in parallel, each in a dimension of its own; what remains is

    log p(x) = log sum_z exp(log p(z) + log p(x | z)),

with the sum left to an observed distribution that can take it over all states at once (`LinearBernoulliVector`), or
over one site after the other, each over the product of those factors alone that depend on it (variable
elimination), in log space with the factors added before the maximum is taken. Pyro's `TraceEnum_ELBO` shifts each
factor by its own maximum, and loses the sum in float32 where the state that explains x is 90 nats less probable a
priori than another; `TraceEnum` here is that class with the sum replaced.

`ppl_gen.inference.exact` has the functions that return log p(x) of many images.
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

from ppl_gen.core.errors import BadInput, describe
from ppl_gen.inference.callables import Batch, evaluating, matmul_precision, take
from ppl_gen.inference.densities import Site, masked_log_prob, plates_of, sample_sites
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import block_size, can_sum_states, require_memory
from ppl_gen.inference.supports import bounds, log_prob_within, masks, same, support
from ppl_gen.inference.tracing import PyroFunction, trace_of

_NEAR = 0.5  # nats from certainty, where log p is a sum of differences from 1
_ROUNDING = 1e-3  # nats: log-probabilities that add up to less than that add up to 1
_MOST_CALLS = 4096  # of a model that takes one state at a time
_CHECKED = 5  # states, each compared with the model conditioned on it


@dataclass(frozen=True)
class StateSum:
    """log p(x) in nats, [images], differentiable, by a sum over all states of z.

    Where no gradient is asked for, factors are added up in float64, and a sum over states near 0 is
    log(1 - sum_z p(z) [1 - p(x | z)]): near certainty nothing is lost but the rounding of the distributions' own
    log-densities, which for binary pixels is below 1e-6 of their size.

    Masks are applied, scales are not. Plates inside that of the images are allowed, nested in each other.
    """

    pair: Pair
    """The pair, with the observed sites whose support depends on the state among those that are `bounded`."""
    by_state: bool
    """True if the model takes one state at a time, by a call for each."""

    def __call__(self, model: PyroFunction, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log p(x) [images].

        :param model: the pair's, as it is or under further handlers.
        :raises BadInput: for a latent site without finite support, and for `pyro.markov`.
        """
        log_marginal = _log_marginal_by_state if self.by_state else _log_marginal
        return log_marginal(self.pair, model, Batch(x, args, kwargs))


def sum_over_states(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> StateSum:
    """The sum in parallel, if the model broadcasts over states, which is tried on a few images; else by one call for
    each state.

    :raises BadInput: for a model that does not broadcast and has too many states, or a latent site in an inner plate;
        and for states that do not fit into memory.
    """
    if pair.sums_states:  # the likelihood looks at z for that
        return StateSum(pair, by_state=False)
    # As many images as there are states of some sites would hide that one is taken for the other.
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
            raise BadInput(f"{hint}; it has {num_states:,} states, too many to call it for one after the other")
        return StateSum(_tried_by_state(pair, batch, hint), by_state=True)


# All states in parallel --------------------------------------------------------------------------------------------

Factors = dict[frozenset[int], list[Tensor]]
"""Log-densities, by the dimensions of the plates inside that of the images which they are in."""


def _log_marginal(pair: Pair, model: PyroFunction, batch: Batch) -> Tensor:
    sites = sample_sites(_parallel_trace(pair, model, batch))
    if can_sum_states(sites):
        latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
        summed: Tensor | None = observed["fn"].log_marginal(observed["value"], latent["fn"])
        if summed is not None:
            return summed.expand(observed["cond_indep_stack"][0].size)
    factors: Factors = {frozenset(): []}
    dims: dict[frozenset[int], list[int]] = {}
    priors: dict[int, Tensor] = {}  # by the dimension that each adds up to one over
    for site in sites:
        plates = frozenset(frame.dim for frame in plates_of(site) if frame.name != pair.plate.name)
        factor = _factor(pair, site)
        if not site["is_observed"]:
            dim = site["infer"].get("_enumerate_dim")
            if dim is None or any(dim in others for others in dims.values()):
                reason = "has no finite support" if dim is None else "is in a pyro.markov, which is not supported here"
                raise BadInput(f"{pair.model_name}: latent site '{site['name']}' {reason}; it cannot be enumerated")
            dims.setdefault(plates, []).append(dim)
            for mask in masks(site):  # what is masked out has no state to sum over
                factor = torch.where(mask, factor, -math.log(factor.shape[dim]))
            if not torch.is_grad_enabled():
                total = factor.logsumexp(dim, keepdim=True)
                if bool((total.abs() < _ROUNDING).all()):  # of a masked site it is not
                    factor = priors[dim] = factor - total
        factors.setdefault(plates, []).append(factor)
    result = _eliminate(factors, dims, priors).movedim(pair.plate.dim, -1)
    if result.numel() != result.shape[-1]:
        raise BadInput(f"{pair.model_name}: its plates are not nested in each other; it cannot be enumerated")
    return result.flatten()


def _factor(pair: Pair, site: Site) -> Tensor:
    """The log-density of a site, with each element of a plate in it."""
    sizes = [1] * (2 + pair.max_plate_nesting)
    for frame in plates_of(site):
        sizes[frame.dim] = frame.size
    log_prob = _log_prob(pair, site)
    return log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(sizes)))


def _eliminate(factors: Factors, dims: dict[frozenset[int], list[int]], priors: dict[int, Tensor]) -> Tensor:
    """log of the sum over all states of the product of all factors, plate by plate.

    :param dims: enumerated dimensions of the sites in each plate.
    """
    for plates in sorted(factors, key=len, reverse=True):  # innermost first
        remaining = factors[plates]
        for dim in sorted(dims.get(plates, [])):  # the last site first
            with_it = [f for f in remaining if f.dim() >= -dim and f.shape[dim] > 1]
            without = [f for f in remaining if not any(f is other for other in with_it)]
            remaining = [*without, *([_sum_out(with_it, priors.get(dim), dim)] if with_it else [])]
        if not plates:
            return _add(remaining)
        parent = max((other for other in factors if other < plates), key=len)
        factors[parent] += [f.sum(sorted(plates - parent), keepdim=True) for f in remaining]
    raise AssertionError("the images' own plate is always among the factors")


def _sum_out(factors: list[Tensor], prior: Tensor | None, dim: int) -> Tensor:
    """log of the sum over a dimension of the product of some factors.

    :param prior: the one of them that adds up to 1 over it, if there is any.
    """
    total = _add(factors).logsumexp(dim, keepdim=True)
    others = [factor for factor in factors if factor is not prior]
    near = total.abs() < _NEAR
    if prior is None or not others or not bool(near.any()):
        return total
    exact = (prior.exp() * _add(others).expm1()).sum(dim, keepdim=True).log1p()
    return torch.where(near & exact.isfinite(), exact, total)


def _add(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])


def _parallel_trace(pair: Pair, model: PyroFunction, batch: Batch) -> poutine.Trace:
    enumerated = poutine.enum(config_enumerate(model, "parallel"), first_available_dim=-1 - pair.max_plate_nesting)
    return trace_of(enumerated, batch)


def _log_prob(pair: Pair, site: Site) -> Tensor:
    """The log-density of a site: in float64 where no gradient is asked for."""
    evaluated = not torch.is_grad_enabled()
    score = partial(masked_log_prob, wide=evaluated)
    log_prob = log_prob_within(site, score) if site["name"] in pair.bounded else score(site)
    return log_prob.double() if evaluated else log_prob


# One state at a time -----------------------------------------------------------------------------------------------

State = tuple[dict[str, int], poutine.Trace]
"""The index of each latent site's value in its support, and the trace of the model conditioned on these values."""


def _states(model: PyroFunction, choose: Callable[[int], Iterable[int]], batch: Batch) -> Iterator[State]:
    """The states of the latent sites, which all images and all elements of a plate share, one after the other.

    :param choose: from the number of values that a site has to the indices of the values that are visited.
    """

    def visit(index: dict[str, int], known: dict[str, Tensor]) -> Iterator[State]:
        # Sites that are not reached yet draw noise, which no result depends on.
        with torch.random.fork_rng([batch.x.device] if batch.x.is_cuda else []):
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
    priors, likelihoods = [], []
    for index, trace in _states(model, range, batch):
        terms: dict[bool, list[Tensor]] = {True: [], False: []}
        for site in sample_sites(trace):
            log_prob, latent = _log_prob(pair, site), site["name"] in index
            if latent:
                for mask in masks(site):  # what is masked out has no state to sum over
                    log_prob = torch.where(mask, log_prob, -math.log(len(site["fn"].enumerate_support(expand=False))))
            terms[latent].append(pair.per_image(site, log_prob).reshape(len(batch.x)))
        priors.append(_add(terms[True]))
        likelihoods.append(_add(terms[False]))
    prior, likelihood = torch.stack(priors), torch.stack(likelihoods)
    total = prior.logsumexp(0)
    if torch.is_grad_enabled() or bool((total.abs() >= _ROUNDING).any()):
        return (prior + likelihood).logsumexp(0)
    prior = prior - total
    return _sum_out([prior, likelihood], prior, 0).squeeze(0)


# Which of the two a model takes ------------------------------------------------------------------------------------


def _tried_in_parallel(pair: Pair, batch: Batch) -> tuple[Pair, str | None]:
    """The pair with the sites that are bounded in parallel; and why enumeration in parallel is not what conditioning on
    a state gives, None if it is."""
    try:
        sites = sample_sites(_parallel_trace(pair, pair.model, batch))
        dims = {site["name"]: site["infer"].get("_enumerate_dim") for site in sites if not site["is_observed"]}
        if None in dims.values() or len(set(dims.values())) < len(dims):
            return pair, None  # which the sum refuses
        differ = {s["name"] for s in sites if s["is_observed"] and _differs_by_state(s, pair.max_plate_nesting)}
        pair = replace(pair, bounded=pair.bounded | differ)
        return pair, _difference(pair, sites, dims, batch)
    except Exception as error:  # whatever a model that does not broadcast stumbles on
        return pair, describe(error)


def _difference(pair: Pair, sites: list[Site], dims: dict[str, int], batch: Batch) -> str | None:
    """A sentence on a state whose log-density among all states is another than alone; None if a few states show none.

    :param sites: the sites of the trace in parallel.
    :param dims: the enumerated dimension of each latent site.
    """
    densities = [(site, _log_prob(pair, site)) for site in sites]
    count = len(batch.x)
    for index, trace in _few_states(pair, batch):
        alone = _add([pair.per_image(s, _log_prob(pair, s)).reshape(count) for s in sample_sites(trace)])
        parts = []
        for site, log_prob in densities:
            for name, chosen in index.items():
                dim = dims[name]
                if log_prob.dim() >= -dim and log_prob.shape[dim] > 1:
                    log_prob = log_prob.narrow(dim, chosen, 1)
            parts.append(pair.per_image(site, log_prob).reshape(count))
        among = _add(parts)
        if not torch.allclose(among, alone, rtol=2e-5, atol=5e-4, equal_nan=True):
            image = int((among - alone).abs().nan_to_num(nan=math.inf).argmax())
            state = ", ".join(f"{name} no. {chosen}" for name, chosen in index.items())
            return (
                f"log p(x, z) of image {image} and state {state} is {float(among[image]):.6g} among all states and "
                f"{float(alone[image]):.6g} alone"
            )
    return None


def _few_states(pair: Pair, batch: Batch) -> list[State]:
    """All states if they are few, else some of them by chance, the same at every call."""
    if pair.num_states is not None and pair.num_states <= _CHECKED:
        return list(_states(pair.model, range, batch))
    generator = torch.Generator().manual_seed(0)

    def one_of(count: int) -> list[int]:
        return torch.randint(count, (1,), generator=generator).tolist()

    return [next(_states(pair.model, one_of, batch)) for _ in range(_CHECKED)]


def _tried_by_state(pair: Pair, batch: Batch, hint: str) -> Pair:
    """The pair with the observed sites whose support one state after another shows to depend on it.

    :raises BadInput: for a latent site in an inner plate, and for whatever the model raises.
    """
    first: dict[str, Any] = {}
    differ = set()
    try:
        for index, trace in _states(pair.model, range, batch):
            for name in index:
                if len(plates_of(trace.nodes[name])) > 1:
                    raise BadInput(f"{hint}; its site '{name}' is in a plate inside that of the images")
            for name in pair.observed:
                constraint = support(trace.nodes[name]["fn"])
                told = constraint is not None and bounds(constraint)
                if told and not same(first.setdefault(name, constraint), constraint):
                    differ.add(name)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{pair.model_name} fails when its latent sites are enumerated: {describe(error)}") from error
    return replace(pair, bounded=pair.bounded | differ)


def _differs_by_state(site: Site, plates: int) -> bool:
    """True if an observed site of a trace of all states has another support for another state."""
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
    """The rest of an `ELBO` that defines `differentiable_loss`."""

    differentiable_loss: Callable[..., Tensor]

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class TraceEnum(DifferentiableLoss, TraceEnum_ELBO):
    """-log p(x), summed over the images: `TraceEnum_ELBO` of a model whose latent sites are all enumerated and a guide
    that samples none, with the sum over states in one step where the model broadcasts over them.

    :param x: a few images to try that on, with their `args`.
    """

    def __init__(self, pair: Pair, x: Tensor, *args: Any, **kwargs: Any):
        super().__init__(max_plate_nesting=pair.max_plate_nesting)
        self.log_px = sum_over_states(pair, x, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return -self.log_px(model, *args, **kwargs).sum()
