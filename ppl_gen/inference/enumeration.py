"""log p(x) of a model whose latent sites all have finite support, exactly, image by image.

Every latent site is enumerated in parallel, each in a dimension of its own; what remains is

    log p(x) = log sum_z exp(log p(z) + log p(x | z)),

with the sum left to an observed distribution that can take it over all states at once (`LinearBernoulliVector`), or
over one site after the other, each over the product of those factors alone that depend on it (variable
elimination), in log space with the factors added before the maximum is taken. Pyro's `TraceEnum_ELBO` shifts each
factor by its own maximum, and loses the sum in float32 where the state that explains x is 90 nats less probable a
priori than another; `TraceEnum` here is that class with the sum replaced.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ppl_gen.errors import BadInput, describe
from ppl_gen.inference.callables import as_arguments, as_images, evaluating, function_of, matmul_precision
from ppl_gen.inference.supports import bounds, log_prob_within, masks, parts, same, support
from ppl_gen.inference.traces import (
    Pair,
    Site,
    masked_log_prob,
    sample_sites,
    states_summed,
    take,
    vectorized,
)
from ppl_gen.memory import free_memory, keep_freed_memory

_MOST_STATES = 2**20  # x width: for an image, unless asked for
_STATES_IMAGES = 2**26  # states x images x width that are held at once
_NEAR = 0.5  # nats from certainty, where log p is a sum of differences from 1
_MOST_CALLS = 4096  # of a model that takes one state at a time
_CHECKED = 5  # states, each compared with the model conditioned on it


def log_marginal(pair: Pair, model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """log p(x) in nats, [images], differentiable.

    Where no gradient is asked for, factors are added up in float64, and a sum over states near 0 is
    log(1 - sum_z p(z) [1 - p(x | z)]): near certainty nothing is lost but the rounding of the distributions' own
    log-densities, which for binary pixels is below 1e-6 of their size.

    Masks are applied, scales are not. Plates inside that of the images are allowed, nested in each other.

    :param pair: read from the model; says which plate holds the images.
    :param model: Pyro function, as the pair's or under further handlers.
    :raises BadInput: for a latent site without finite support, and for `pyro.markov`.
    """
    outermost = -1 - pair.max_plate_nesting
    sites = sample_sites(_parallel_trace(pair, model, x, *args, **kwargs))
    if states_summed(sites):
        latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
        summed: Tensor | None = observed["fn"].log_marginal(observed["value"], latent["fn"])
        if summed is not None:
            return summed.expand(observed["cond_indep_stack"][0].size)
    factors: dict[frozenset[int], list[Tensor]] = {frozenset(): []}
    dims: dict[frozenset[int], list[int]] = {}
    priors: dict[int, Tensor] = {}  # by the dimension that each adds up to one over
    for site in sites:
        plates = frozenset(frame.dim for frame in vectorized(site) if frame.name != pair.plate.name)
        log_prob = _log_prob(pair, site)
        sizes = [1] * -outermost + [1]
        for frame in vectorized(site):
            sizes[frame.dim] = frame.size
        factor = log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(sizes)))
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
                if bool((total.abs() < 1e-3).all()):  # 0 but for rounding; of a masked site it is not
                    factor = priors[dim] = factor - total
        factors.setdefault(plates, []).append(factor)
    for plates in sorted(factors, key=len, reverse=True):  # innermost first
        remaining = factors[plates]
        for dim in sorted(dims.get(plates, [])):  # the last site first
            with_it = [f for f in remaining if f.dim() >= -dim and f.shape[dim] > 1]
            without = [f for f in remaining if not any(f is other for other in with_it)]
            remaining = [*without, *([_sum_out(with_it, priors.get(dim), dim)] if with_it else [])]
        if plates:
            parent = max((other for other in factors if other < plates), key=len)
            factors[parent] += [f.sum(sorted(plates - parent), keepdim=True) for f in remaining]
        else:
            result = _add(remaining).movedim(pair.plate.dim, -1)
            if result.numel() != result.shape[-1]:
                raise BadInput(f"{pair.model_name}: its plates are not nested in each other; it cannot be enumerated")
            return result.flatten()
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


def _parallel_trace(pair: Pair, model: Any, x: Tensor, *args: Any, **kwargs: Any) -> poutine.Trace:
    enumerated = poutine.enum(config_enumerate(model, "parallel"), first_available_dim=-1 - pair.max_plate_nesting)
    return poutine.trace(enumerated).get_trace(x, *args, **kwargs)


def _log_prob(pair: Pair, site: Site) -> Tensor:
    """The log-density of a site: in float64 where no gradient is asked for."""
    evaluated = not torch.is_grad_enabled()
    score = partial(masked_log_prob, wide=evaluated)
    log_prob = log_prob_within(site, score) if site["name"] in pair.bounded else score(site)
    return log_prob.double() if evaluated else log_prob


# One state at a time -----------------------------------------------------------------------------------------------

State = tuple[dict[str, int], poutine.Trace]
"""The index of each latent site's value in its support, and the trace of the model conditioned on these values."""


def _states(
    model: Any, choose: Callable[[int], Iterable[int]], arguments: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[State]:
    """The states of the latent sites, which all images and all elements of a plate share, one after the other.

    :param choose: from the number of values that a site has to the indices of the values that are visited.
    """

    def visit(index: dict[str, int], known: dict[str, Tensor]) -> Iterator[State]:
        # Sites that are not reached yet draw noise, which no result depends on.
        with torch.random.fork_rng([arguments[0].device] if arguments[0].is_cuda else []):
            trace = poutine.trace(poutine.condition(model, known)).get_trace(*arguments, **kwargs)
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


def _log_marginal_by_state(pair: Pair, model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`log_marginal` of a model that takes one state at a time, by a call for each of them."""
    priors, likelihoods = [], []
    for index, trace in _states(model, range, (x, *args), kwargs):
        terms: dict[bool, list[Tensor]] = {True: [], False: []}
        for site in sample_sites(trace):
            log_prob, latent = _log_prob(pair, site), site["name"] in index
            if latent:
                for mask in masks(site):  # what is masked out has no state to sum over
                    log_prob = torch.where(mask, log_prob, -math.log(len(site["fn"].enumerate_support(expand=False))))
            terms[latent].append(pair._per_image(site, log_prob).reshape(len(x)))
        priors.append(_add(terms[True]))
        likelihoods.append(_add(terms[False]))
    prior, likelihood = torch.stack(priors), torch.stack(likelihoods)
    total = prior.logsumexp(0)
    if torch.is_grad_enabled() or bool((total.abs() >= 1e-3).any()):
        return (prior + likelihood).logsumexp(0)
    prior = prior - total
    return _sum_out([prior, likelihood], prior, 0).squeeze(0)


def sum_over_states(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> Callable[..., Tensor]:
    """`log_marginal`, if the model broadcasts over states, which is tried on a few images; else the same sum by one
    call for each state. Observed sites whose support depends on the state join `pair.bounded`.

    :raises BadInput: for a model that does not broadcast and has too many states, or a latent site in an inner plate;
        and for states that do not fit into memory.
    """
    if pair.width < 1:  # the likelihood sums over states by itself, and looks at z for that
        return log_marginal
    # As many images as there are states of some sites would hide that one is taken for the other.
    assert pair.num_states is not None
    count = next(count for count in itertools.count(3) if pair.num_states % count)
    rows = torch.arange(min(count, block_size(pair)), device=x.device) % len(x)
    require_memory(pair, len(rows), device=x.device)
    batch, args, kwargs = take(rows, x, args, kwargs)
    with evaluating(pair.model), matmul_precision():
        reason = _fails_in_parallel(pair, (batch, *args), kwargs)
        if reason is None:
            return log_marginal
        hint = (
            f"{pair.model_name} does not broadcast over states of z ({reason}): write it for a z with further "
            "dimensions on the left, such as z.unsqueeze(-1) instead of z.view(-1, 1)"
        )
        if pair.num_states > _MOST_CALLS:
            raise BadInput(f"{hint}; it has {pair.num_states:,} states, too many to call it for one after the other")
        try:
            first: dict[str, Any] = {}
            for index, trace in _states(pair.model, range, (batch, *args), kwargs):
                for name in index:
                    if len(vectorized(trace.nodes[name])) > 1:
                        raise BadInput(f"{hint}; its site '{name}' is in a plate inside that of the images")
                for name in pair.observed:
                    constraint = support(trace.nodes[name]["fn"])
                    told = constraint is not None and bounds(constraint)
                    if told and not same(first.setdefault(name, constraint), constraint):
                        pair.bounded |= {name}
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(
                f"{pair.model_name} fails when its latent sites are enumerated: {describe(error)}"
            ) from error
    return _log_marginal_by_state


def _fails_in_parallel(pair: Pair, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """What shows that enumeration in parallel is not what conditioning on a state gives; None if nothing does."""
    try:
        sites = sample_sites(_parallel_trace(pair, pair.model, *arguments, **kwargs))
        dims = {site["name"]: site["infer"].get("_enumerate_dim") for site in sites if not site["is_observed"]}
        if None in dims.values() or len(set(dims.values())) < len(dims):
            return None  # which `log_marginal` refuses
        for site in sites:
            if site["is_observed"] and _differs_by_state(site, pair.max_plate_nesting):
                pair.bounded |= {site["name"]}
        densities = [(site, _log_prob(pair, site)) for site in sites]
        generator = torch.Generator().manual_seed(0)
        assert pair.num_states is not None
        if pair.num_states <= _CHECKED:
            states = list(_states(pair.model, range, arguments, kwargs))
        else:
            states = [
                next(
                    _states(
                        pair.model, lambda n: torch.randint(n, (1,), generator=generator).tolist(), arguments, kwargs
                    )
                )
                for _ in range(_CHECKED)
            ]
        count = len(arguments[0])
        for index, trace in states:
            alone = _add([pair._per_image(s, _log_prob(pair, s)).reshape(count) for s in sample_sites(trace)])
            among = []
            for site, log_prob in densities:
                for name, chosen in index.items():
                    dim = dims[name]
                    if log_prob.dim() >= -dim and log_prob.shape[dim] > 1:
                        log_prob = log_prob.narrow(dim, chosen, 1)
                among.append(pair._per_image(site, log_prob).reshape(count))
            if not torch.allclose(_add(among), alone, rtol=2e-5, atol=5e-4, equal_nan=True):
                image = int((_add(among) - alone).abs().nan_to_num(nan=math.inf).argmax())
                state = ", ".join(f"{name} no. {chosen}" for name, chosen in index.items())
                return (
                    f"log p(x, z) of image {image} and state {state} is {float(_add(among)[image]):.6g} among all "
                    f"states and {float(alone[image]):.6g} alone"
                )
    except Exception as error:  # whatever a model that does not broadcast stumbles on
        return describe(error)
    return None


def _differs_by_state(site: Site, plates: int) -> bool:
    """Whether an observed site of a trace of all states has another support for another state."""
    constraint = support(site["fn"])
    for bound in [] if constraint is None else bounds(constraint):
        states = bound.dim() - site["fn"].event_dim - plates if isinstance(bound, Tensor) else 0
        if states > 0:
            each = bound.flatten(0, states - 1)
            if bool((each != each[:1]).any()):
                return True
    return False


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
        self.pair = pair
        self.log_marginal = sum_over_states(pair, x, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return -self.log_marginal(self.pair, model, *args, **kwargs).sum()


def require_memory(pair: Pair, num_images: int, gradients: bool = False, device: torch.device | str = "cpu") -> None:
    """Refuse an enumeration that does not fit into the memory that is free.

    :param gradients: whether it is a training step.
    :raises BadInput: with the memory that it needs and the memory that there is.
    """
    needed, free = memory_needed(pair, num_images, gradients), free_memory(device)
    if needed > free:
        raise BadInput(
            f"{pair.model_name} has {pair.num_states:,} latent states: a sum over all of them for {num_images} images "
            f"takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; use fewer latent units or smaller "
            "batches, or a guide that samples, such as bernoulli"
        )


def memory_needed(pair: Pair, num_images: int, gradients: bool = False) -> int:
    """Bytes of an enumeration: the states themselves, and arrays [states, images] of their log-joints: three at a time
    forwards (two factors and their sum), in float64 without gradients; in float32 with them, and two more backwards.
    Where the likelihood broadcasts before it sums over pixels, these have its pixels too; where it sums over states by
    itself, it holds a sixteenth of them."""
    assert pair.num_states is not None
    units = sum(math.prod(shape) for shape in pair.event_shapes.values())
    return int(4 * pair.num_states * (4 * units + num_images * pair.width * (5 if gradients else 6)))


def cheap(pair: Pair) -> bool:
    """Whether log p(x) of many images can be enumerated in minutes: up to 2^20 states, fewer where the likelihood
    broadcasts before it sums over pixels."""
    return pair.num_states is not None and pair.num_states * max(1, pair.width) <= _MOST_STATES


def closed_form(model: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a model says what log p(x) is, and takes for that the further arguments, such as labels, that its
    `model(x, ...)` takes."""
    if not callable(getattr(model, "log_px", None)):
        return False
    try:
        inspect.signature(model.log_px).bind(None, *_taken(model, args), **kwargs)
    except TypeError:
        return False
    return True


def _taken(model: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """As many of the arguments after x as `model(x, ...)` takes."""
    parameters = inspect.signature(function_of(model, "model")).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return args
    return args[: sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) - 1]


def block_size(pair: Pair, posterior: bool = False) -> int:
    """How many images are summed over at a time.

    :param posterior: whether each state of each image is asked for, and not only their sum.
    """
    assert pair.num_states is not None
    return max(1, min(1000, int(_STATES_IMAGES / (pair.num_states * max(pair.width, int(posterior))))))


def exact_blocks(model: Any, guide: Any, pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
    """log p(x) in nats in float64 on the CPU, for as many images at a time as memory allows, in their order: by the
    model's own `log_px(x, ...)`, if it has one that takes `args`, else by enumeration. Where both can be had, they are
    compared on a few images.

    :raises BadInput: where both disagree, and for whatever the model raises.
    """
    keep_freed_memory()
    log_px: Callable[..., Tensor]
    if closed_form(model, *args, **kwargs):

        def log_px(block: Tensor, *rest: Any, **named: Any) -> Tensor:
            result: Tensor = model.log_px(block, *_taken(model, rest), **named)
            return result

        _check_closed_form(log_px, pair, x, args, kwargs)
        size, what = 1000, "log_px(x)"
    elif pair.num_states is None:
        raise BadInput(
            f"{pair.model_name}: log_px(x) takes fewer arguments than model(x, ...): let it take all of them"
        )
    else:
        total = sum_over_states(pair, x, *args, **kwargs)
        log_px, what = partial(total, pair, pair.model), "enumeration"
        by_state = total is _log_marginal_by_state
        size = max(1, min(10_000, _STATES_IMAGES // (8 * pair.num_states))) if by_state else block_size(pair)
    for rows in torch.arange(len(x), device=x.device).split(size):
        batch, batch_args, batch_kwargs = take(rows, x, args, kwargs)
        with _told(pair, what), evaluating(model, guide):
            block = log_px(batch, *batch_args, **batch_kwargs).double().cpu()
        yield block


@contextmanager
def _told(pair: Pair, what: str) -> Iterator[None]:
    """Whatever a model raises, in a sentence."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{pair.model_name}: {what} fails: {describe(error)}") from error


def _check_closed_form(
    log_px: Callable[..., Tensor], pair: Pair, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not cheap(pair):
        return
    few, args, kwargs = take(torch.arange(min(3, len(x)), device=x.device), x, args, kwargs)
    total = sum_over_states(pair, few, *args, **kwargs)
    with matmul_precision(), evaluating(pair.model):
        with _told(pair, "log_px(x)"):
            said = log_px(few, *args, **kwargs).double()
        with _told(pair, "enumeration"):
            summed = total(pair, pair.model, few, *args, **kwargs).double()
    if said.shape != summed.shape or not torch.allclose(said, summed, rtol=1e-4, atol=1e-3, equal_nan=True):
        raise BadInput(
            f"{pair.model_name}: log_px(x) and the sum over states disagree: {_shown(said)} and {_shown(summed)} nats "
            "for the first images; correct log_px, or leave it out"
        )


def _shown(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values.flatten()[:3].tolist()) + "]"


def exact_log_px(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """log p(x) in nats, float64 [images] on the CPU, by enumeration of every latent value; by the model's own
    `log_px(x, ...)` if it has one that takes `args`, after a comparison with enumeration on a few images.

    Works on any Pyro model with a plate of images whose latent sites have finite support. Memory is bounded by the
    number of states, not by the number of images. A model that does not broadcast over states is called for one state
    after the other.

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param x: images [N, ...].
    :param args: further positional arguments; tensors with N rows go along with the images.
    :raises BadInput: for a latent site that cannot be enumerated, and a `log_px` that disagrees with enumeration.
    """

    x = as_images(x, model)
    args, kwargs = as_arguments(len(x), args, kwargs)
    with evaluating(model):
        pair = enumerated_pair(model, x, *args, **kwargs)
        sum_over_states(pair, x, *args, **kwargs)  # which says whose support depends on z
        pair.check(x, *args, **kwargs)
        return torch.cat(list(exact_blocks(model, _no_guide, pair, x, *args, **kwargs)))


def enumerated_pair(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Pair:
    """A model without a guide, as it is read from a few images x [N, ...], every latent site to be enumerated.

    :raises BadInput: for a model that cannot be read.
    """
    marked = config_enumerate(function_of(model, "model"), "parallel")
    with evaluating(model):
        try:
            pair = Pair(marked, _no_guide, x, *args, **kwargs)
            if pair.num_states is None:
                _refuse_infinite(model, x, args, kwargs)
            return pair
        except Exception as error:
            _refuse_infinite(model, x, args, kwargs)
            if isinstance(error, BadInput):
                raise
            name = getattr(model, "__name__", type(model).__name__)
            raise BadInput(f"{name} fails when its latent sites are enumerated: {describe(error)}") from error


def _refuse_infinite(model: Any, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Name a latent site without a finite support that all images share, if there is one and the model runs."""
    name, function = getattr(model, "__name__", type(model).__name__), function_of(model, "model")
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            trace = poutine.trace(function).get_trace(x, *_taken(model, args), **kwargs)
    except Exception:
        return
    for site in sample_sites(trace):
        if site["is_observed"]:
            continue
        which = f"{name}: latent site '{site['name']}' ({type(list(parts(site['fn']))[-1]).__name__})"
        inner = list(parts(site["fn"]))[-1]
        if not site["fn"].has_enumerate_support and inner.has_enumerate_support:
            raise BadInput(f"{which} is an event of several units, which Pyro does not enumerate: give them a plate")
        if not site["fn"].has_enumerate_support:
            raise BadInput(
                f"{which} has no finite support and cannot be enumerated: use importance sampling with a guide, as "
                "log_marginal_likelihood does"
            ) from None
        try:
            site["fn"].enumerate_support(expand=False)
        except NotImplementedError as error:
            raise BadInput(
                f"{which} has another support for another image and cannot be enumerated ({error}): call exact_log_px "
                "for images of the same support together"
            ) from error


def _no_guide(*args: Any, **kwargs: Any) -> None: ...


def state_posterior(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """p(z | x) of a model with one enumerable latent site: all values of z [states, ...], and probabilities
    [states, images].

    :param model: with methods `prior()` and `likelihood(z)`.
    :param x: images [images, pixels].
    :raises BadInput: for a likelihood that does not broadcast over states.
    """
    prior = model.prior()
    states = prior.enumerate_support(expand=False)
    require_broadcasting(model, states, x)
    log_joint = model.likelihood(states.unsqueeze(1)).log_prob(x) + prior.log_prob(states).unsqueeze(-1)
    return states, log_joint.softmax(0)


def require_broadcasting(model: Any, states: Tensor, x: Tensor) -> None:
    """Try on a few images and states [states, ...] that `likelihood(z)` takes z of [states, 1, ...].

    :raises BadInput: where it gives something else than for each state alone.
    """
    few, reason = x[:3], ""
    states = states[[0, -1]]
    try:
        with torch.no_grad(), matmul_precision():
            alone = [model.likelihood(z.expand(len(few), *z.shape)).log_prob(few) for z in states]
            among = model.likelihood(states.unsqueeze(1)).log_prob(few)
        alike = among.shape == (2, len(few)) and torch.allclose(among, torch.stack(alone), rtol=2e-5, atol=5e-4)
    except Exception as error:
        alike, reason = False, f" ({describe(error)})"
    if not alike:
        raise BadInput(
            f"{type(model).__name__}: likelihood(z) does not broadcast over states z [states, 1, ...]{reason}: write "
            "it for a z with further dimensions on the left, such as z.unsqueeze(-1) instead of z.view(-1, 1)"
        )
