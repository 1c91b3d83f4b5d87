"""The sum over all states of z, image by image, for a model whose latent sites all have finite support.

Every latent site is enumerated in parallel, each in a dimension of its own. Then

    log p(x) = log sum_z exp(log p(z) + log p(x | z))

is computed in one of two ways. Either the observed distribution sums over all states at once
(`LinearBernoulliVector.log_marginal`), or one site after the other is summed out (`ppl_gen.inference.elimination`).
`TraceEnum` is Pyro's `TraceEnum_ELBO` with the sum replaced.

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
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.distributions.constraints import Constraint

from ppl_gen.core.errors import BadInput, as_bad_input, describe
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import Site, add, alike, masked_log_prob, plates_of, sample_sites
from ppl_gen.inference.elimination import ROUNDING, enumerating, log_sum, sum_out
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import block_size, can_sum_states, require_finite, require_memory, shown_count
from ppl_gen.inference.tracing import SAMPLES, PyroFunction, trace_of
from ppl_gen.networks.supports import bounds, log_prob_within, same, support, without_masks

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
        :raises BadInput: for a latent site without finite support.
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
    num_states = require_finite(pair)
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


def _log_marginal(pair: Pair, model: PyroFunction, batch: Batch) -> Tensor:
    """log p(x) [images], with all states in parallel."""
    sites = sample_sites(_parallel_trace(pair, model, batch))
    if can_sum_states(sites):
        latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
        summed: Tensor | None = observed["fn"].log_marginal(observed["value"], latent["fn"])
        if summed is not None:
            return summed.expand(observed["cond_indep_stack"][0].size)
    names = [site["name"] for site in sites if not site["is_observed"]]
    density = partial(_log_prob, pair)
    result = log_sum(sites, names, density, [pair.plate.name], 2 + pair.max_plate_nesting, pair.model_name)
    return result.flatten()


def _parallel_trace(pair: Pair, model: PyroFunction, batch: Batch) -> poutine.Trace:
    """The trace of the model with all latent sites enumerated in parallel."""
    return trace_of(enumerating(model, None, -1 - pair.max_plate_nesting), batch)


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
            latent = site["name"] in index
            log_prob = _log_prob(pair, without_masks(site) if latent else site)  # as in `log_sum`
            terms[latent].append(pair.per_image(site, log_prob).reshape(len(batch.x)))
        priors.append(add(terms[True]))
        likelihoods.append(add(terms[False]))
    prior, likelihood = torch.stack(priors), torch.stack(likelihoods)
    total = prior.logsumexp(0)
    if torch.is_grad_enabled() or bool((total.abs() >= ROUNDING).any()):
        return (prior + likelihood).logsumexp(0)
    prior = prior - total
    return sum_out([prior, likelihood], prior, 0).squeeze(0)


# The choice between the two ----------------------------------------------------------------------------------------


def _tried_in_parallel(pair: Pair, batch: Batch) -> tuple[Pair, str | None]:
    """Try enumeration in parallel on a few images. Returns the pair with `may_leave_support` completed, and the reason
    why the densities in parallel differ from those conditioned on a state. It is None if they agree, and also for a
    pair that `_log_marginal` refuses."""
    try:
        sites = sample_sites(_parallel_trace(pair, pair.model, batch))
        dims = {site["name"]: site["infer"].get("_enumerate_dim") for site in sites if not site["is_observed"]}
        if None in dims.values():
            return pair, None  # the message of `_log_marginal` is better than one about densities
        differ = {s["name"] for s in sites if s["is_observed"] and _differs_by_state(s, pair.max_plate_nesting)}
        pair = replace(pair, may_leave_support=pair.may_leave_support | differ)
        return pair, _difference(pair, sites, dims, batch)
    except Exception as error:  # a model that does not broadcast may raise anything
        return pair, describe(error)


def check_summed(pair: Pair, batch: Batch) -> Pair:
    """Compare the densities of a model whose sites in `summed` are enumerated with those at single values. Returns the
    pair with `may_leave_support` completed.

    :raises BadInput: for a model that does not broadcast over the values.
    """
    if not pair.summed:
        return pair
    batch = _few_images(pair, batch)
    drawn = trace_of(pair.guide, batch)
    given = poutine.condition(pair.model, {name: drawn.nodes[name]["value"] for name in pair.latent})
    tried, reason = _tried_in_parallel(replace(pair, model=given), batch)
    if reason is not None:
        raise BadInput(_hint_to_broadcast(pair.model_name, pair.summed, reason))
    return replace(pair, may_leave_support=tried.may_leave_support)


def check_enumerated_guide(pair: Pair, batch: Batch) -> Pair:
    """Compare the densities of a guide that enumerates sites, and of its model, with those at single values. Returns
    the pair, whose samples are drawn one by one if they cannot be drawn together with the values.

    :raises BadInput: for a guide or a model that does not broadcast over the values, and for a site in an inner plate.
    """
    if not pair.enumerated_in_guide:
        return pair
    batch = _few_images(pair, batch)
    reason = _difference_by_value(pair, batch)
    if reason is not None and pair.vectorized:
        return check_enumerated_guide(replace(pair, vectorized=False), batch)
    if reason is not None:
        both = f"{pair.guide_name} and {pair.model_name}"
        raise BadInput(_hint_to_broadcast(both, pair.enumerated_in_guide, reason))
    return pair


def _difference_by_value(pair: Pair, batch: Batch) -> str | None:
    """A sentence about a value, of the sites that a guide enumerates, whose log-densities among all values differ from
    those alone, or about an error; None if there is none."""
    num_samples = 2 if pair.vectorized else 1
    try:
        drawn = pair.by_value(num_samples, batch)
        for name in pair.enumerated_in_guide:
            if {frame.name for frame in plates_of(drawn.trace.nodes[name])} - {pair.plate.name, SAMPLES}:
                return f"it is in a plate inside the plate '{pair.plate.name}', where only the model can sum"
        among = torch.stack([drawn.log_likelihood, drawn.log_prior, drawn.log_value + drawn.log_guide])
        for index, sample in itertools.product(range(min(among.shape[1], _CHECKED)), range(num_samples)):
            values = {}
            for name, value in drawn.values.items():
                dim = pair.sample_dim - drawn.trace.nodes[name]["fn"].event_dim
                values[name] = value[index].select(dim, sample)
            terms = pair.terms_at(values, batch.x, *batch.args, **batch.kwargs)
            alone = torch.cat([terms.log_likelihood, terms.log_prior, terms.log_guide])
            if not alike(among[:, index, sample].double(), alone.double()):
                return (
                    f"image 0 and value no. {index} have the log-densities {among[:, index, sample, 0].tolist()} among "
                    f"all values and {alone[:, 0].tolist()} alone"
                )
    except Exception as error:  # a function that does not broadcast may raise anything
        return describe(error)
    return None


def _few_images(pair: Pair, batch: Batch) -> Batch:
    """A few images, of a number that is no number of values: a function that confuses the two would not be noticed."""
    count = next(count for count in itertools.count(3) if (pair.num_states or 1) % count)
    return take(torch.arange(count, device=batch.x.device) % len(batch.x), *batch)


def _hint_to_broadcast(who: str, sites: tuple[str, ...], reason: str) -> str:
    return (
        f"{who}: '{sites[0]}' cannot be enumerated in parallel ({reason}); write all that depends on it for a value "
        "with further dimensions on the left"
    )


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
