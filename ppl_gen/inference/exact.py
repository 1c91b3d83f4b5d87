"""Exact log p(x), by enumeration of every state of z or by the model's closed form; and exact p(z | x)."""

import inspect
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pyro.infer import config_enumerate
from torch import Tensor

from ppl_gen.core.contracts import ClosedForm, HasDensity, offers
from ppl_gen.core.errors import BadInput, as_bad_input, describe
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.inference.arguments import Batch, as_arguments, as_images, take
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.densities import ABSOLUTE, RELATIVE, sample_sites
from ppl_gen.inference.enumeration import StateSum, sum_over_states
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.rounding import check_rounding
from ppl_gen.inference.signatures import ByName, accepting, model_function, name_of, positional_names
from ppl_gen.inference.state_memory import block_size, block_size_by_state, cheap_to_enumerate
from ppl_gen.inference.tracing import trace_of
from ppl_gen.networks.observed import observed_log_prob
from ppl_gen.networks.supports import parts

_IMPROBABLE = 14.0  # nats: exp(-14) is one in a million
_ABOVE = 0.01  # nats; a log-probability of 0 may be above 0 by rounding
_CLOSED_FORM_IMAGES = 1000  # images in a call of `log_px`


def exact_log_px(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Exact log p(x) in nats, float64 [images] on the CPU, by enumeration of every latent value. If the model has a
    method `log_px(x, ...)` that takes `args`, that is used instead, after a comparison with enumeration on a few
    images.

    Works on any Pyro model with a plate of images whose latent sites have finite support. Memory depends on the number
    of states, not on the number of images. A model that does not broadcast over states is called for one state after
    the other.

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param x: images [N, ...].
    :param args: further positional arguments; tensors with N rows go along with the images.
    :raises BadInput: for a latent site that cannot be enumerated, and a `log_px` that disagrees with enumeration.
    """
    x = as_images(x, model)
    args, kwargs = as_arguments(x, args, kwargs, model)
    with evaluating(model):
        pair = enumerated_pair(model, x, *args, **kwargs)
        pair = sum_over_states(pair, x, *args, **kwargs).pair  # with `may_leave_support` completed
        check_images(pair, x, *args, **kwargs)
        check_rounding(pair, x, *args, **kwargs)
        return torch.cat(list(exact_blocks(model, _no_guide, pair, x, *args, **kwargs)))


def exact_blocks(model: Any, guide: Any, pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
    """log p(x) in nats, float64 on the CPU, for blocks of images in their order, as many at a time as memory allows: by
    the model's own `log_px(x, ...)` if it has one that takes `args`, else by enumeration. If both are possible, they
    are compared on a few images.

    :raises BadInput: if both disagree, and for an error in the model.
    """
    keep_freed_memory()
    batch = Batch(x, args, kwargs)
    log_px: Callable[[Batch], Tensor]
    if closed_form(model, *args, **kwargs):
        _check_closed_form(model, pair, batch)
        log_px, size, what = partial(_own_log_px, model), _CLOSED_FORM_IMAGES, "log_px(x)"
    elif pair.num_states is None:
        raise BadInput(
            f"{pair.model_name}: log_px(x) takes fewer arguments than model(x, ...); it must take all of them"
        )
    else:
        total = sum_over_states(pair, x, *args, **kwargs)
        size = block_size_by_state(pair) if total.by_state else block_size(pair)
        log_px, what = partial(_summed, total), "enumeration"
    for _, part in batch.blocks(size):
        with as_bad_input(f"{pair.model_name}: {what} fails"), evaluating(model, guide):
            block = log_px(part).double().cpu()
        yield block


def _summed(total: StateSum, batch: Batch) -> Tensor:
    """The sum over states, [images]."""
    return total(total.pair.model, batch.x, *batch.args, **batch.kwargs)


# By a closed form --------------------------------------------------------------------------------------------------


def closed_form(model: Any, *args: Any, **kwargs: Any) -> bool:
    """True if a model has a method `log_px` that takes the same further arguments, such as labels, as `model(x,
    ...)`."""
    if not offers(model, ClosedForm):
        return False
    try:
        inspect.signature(model.log_px).bind(None, *_accepted(model, args), **kwargs)
    except TypeError:
        return False
    return True


def _own_log_px(model: ClosedForm, batch: Batch) -> Tensor:
    """The model's own log p(x) [images].

    :raises BadInput: if it does not return a number for each image.
    """
    found = model.log_px(batch.x, *_accepted(model, batch.args), **batch.kwargs)
    what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if what != [len(batch.x)]:
        raise BadInput(f"{name_of(model)}: log_px(x) must return [images], {[len(batch.x)]}, but returns {what}")
    if bool((found.isnan() | (found == torch.inf)).any()):
        raise BadInput(f"{name_of(model)}: log_px(x) is not finite for some images")
    return found


def check_probability(model: Any, log_px: Tensor, kind: str, what: str = "log_px(x)") -> None:
    """Raise `BadInput` if the log-probability of some image is above 0.

    :param kind: kind of p(x), as `check_images` returns it.
    """
    if kind == "probability" and float(log_px.max()) > _ABOVE:
        raise BadInput(f"{name_of(model)}: {what} is {float(log_px.max()):.6g}: a log-probability is at most 0")


def check_against_samples(model: Any, log_px: Tensor, sampled: Tensor, what: str = "log_px(x)") -> None:
    """Raise `BadInput` if log p(x) is too low to be that of the model.

    The mean weight of importance samples is p(x) in expectation. So its ratio to p(x), and the product of such ratios
    over images, are above exp(t) with a probability of at most exp(-t) (Markov's inequality).

    :param log_px: log p(x) [images], said to be exact.
    :param sampled: log p(x) [images] by importance sampling.
    :param what: origin of `log_px`, for the message.
    """
    if (image := _refuted(log_px, sampled)) is not None:
        raise BadInput(
            f"{name_of(model)}: {what} of image {image} is {float(log_px[image]):.6g}, but importance samples find "
            f"{float(sampled[image]):.6g}; on average {float(log_px.mean()):.6g} and {float(sampled.mean()):.6g}"
            + ("; correct log_px, or leave it out" if what == "log_px(x)" else "")
        )


def check_against_bounds(model: Any, log_px: Tensor, upper: Tensor) -> None:
    """Raise `BadInput` if log p(x) is too high to be that of the model.

    The ratio of p(x) to exp(upper), and the product of such ratios over images, are above exp(t) with a probability of
    at most exp(-t), by Markov's inequality as in `check_against_samples`.

    :param log_px: log p(x) [images], said to be exact, of images drawn from the model.
    :param upper: upper bounds of their log p(x), as `importance_bounds` returns them.
    """
    if (image := _refuted(upper, log_px)) is not None:
        raise BadInput(
            f"{name_of(model)}: log_px(x) of image {image} that the model draws is {float(log_px[image]):.6g}, but an "
            f"upper bound from its z is {float(upper[image]):.6g}; on average {float(log_px.mean()):.6g} and "
            f"{float(upper.mean()):.6g}; correct log_px, or what model(x=None) draws, or leave log_px out"
        )


def _refuted(low: Tensor, high: Tensor) -> int | None:
    """The image that shows most that exp(high - low) does not have an expectation of at most 1, if the images do so at
    the rate of `_IMPROBABLE`; else None."""
    excess = high - low - (ABSOLUTE + RELATIVE * low.abs())
    surely = float(excess.sum()) > _IMPROBABLE or float(excess.max()) > _IMPROBABLE + math.log(len(excess))
    return int(excess.argmax()) if surely else None


def _accepted(model: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional arguments after x, cut to the number that `model(x, ...)` takes."""
    by_position = tuple(each for each in args if not isinstance(each, ByName))
    return by_position[: len(positional_names(model_function(model))) - 1]


def _check_closed_form(model: ClosedForm, pair: Pair, batch: Batch) -> None:
    """Compare `log_px` with enumeration on a few images, if that is cheap."""
    if not cheap_to_enumerate(pair):
        return
    few = take(torch.arange(min(3, len(batch.x)), device=batch.x.device), *batch)
    total = sum_over_states(pair, few.x, *few.args, **few.kwargs)
    with matmul_precision(), evaluating(pair.model):
        with as_bad_input(f"{pair.model_name}: log_px(x) fails"):
            closed = _own_log_px(model, few).double()
        with as_bad_input(f"{pair.model_name}: enumeration fails"):
            summed = _summed(total, few).double()
    if closed.shape != summed.shape or not torch.allclose(closed, summed, rtol=1e-4, atol=1e-3, equal_nan=True):
        raise BadInput(
            f"{pair.model_name}: log_px(x) and the sum over states disagree: {_formatted(closed)} and "
            f"{_formatted(summed)} nats for the first images; correct log_px, or leave it out"
        )


def _formatted(values: Tensor) -> str:
    """The first three numbers, for messages."""
    return "[" + ", ".join(f"{value:.6g}" for value in values.flatten()[:3].tolist()) + "]"


# A model without a guide -------------------------------------------------------------------------------------------


def enumerated_pair(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Pair:
    """Read a model without a guide on images x [N, ...], with every latent site to be enumerated.

    :raises BadInput: for a model that cannot be read.
    """
    marked = config_enumerate(model_function(model), "parallel")
    batch = Batch(x, args, kwargs)
    with evaluating(model):
        try:
            pair = Pair.read(marked, _no_guide, x, *args, **kwargs)
            if pair.num_states is None:
                _refuse_infinite(model, batch)
            return pair
        except Exception as error:
            _refuse_infinite(model, batch)
            if isinstance(error, BadInput):
                raise
            reason = describe(error)
            raise BadInput(f"{name_of(model)} fails when its latent sites are enumerated: {reason}") from error


def _refuse_infinite(model: Any, batch: Batch) -> None:
    """Raise `BadInput` for a latent site without a finite support that all images share, if there is one. Do nothing if
    the model itself fails."""
    try:
        with forked_rng(batch.x):
            trace = trace_of(accepting(model_function(model)), batch)
    except Exception:
        return
    for site in sample_sites(trace):
        if site["is_observed"]:
            continue
        inner = list(parts(site["fn"]))[-1]  # the innermost distribution, without Independent, masks and so on
        which = f"{name_of(model)}: latent site '{site['name']}' ({type(inner).__name__})"
        if not site["fn"].has_enumerate_support and inner.has_enumerate_support:
            raise BadInput(f"{which} is an event of several units, which Pyro can't enumerate; put them into a plate")
        if not site["fn"].has_enumerate_support:
            raise BadInput(
                f"{which} has no finite support and cannot be enumerated: use importance sampling with a guide, as "
                "log_marginal_likelihood does"
            ) from None
        try:
            site["fn"].enumerate_support(expand=False)
        except NotImplementedError as error:
            raise BadInput(
                f"{which} has a support that differs between images and cannot be enumerated ({error}): call "
                "exact_log_px for images of the same support together"
            ) from error


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A guide that samples nothing."""


# p(z | x) ----------------------------------------------------------------------------------------------------------


def state_posterior(model: HasDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of a model with one enumerable latent site: all values of z [states, ...], and p(z | x) [states,
    images].

    :param model: a module with methods `prior()` and `likelihood(z)`.
    :param x: images [images, pixels].
    :raises BadInput: for a likelihood that does not broadcast over states.
    """
    prior = model.prior()
    states = prior.enumerate_support(expand=False)
    require_broadcasting(model, states, x)
    log_joint = observed_log_prob(model.likelihood(states.unsqueeze(1)), x) + prior.log_prob(states).unsqueeze(-1)
    return states, log_joint.softmax(0)


def require_broadcasting(model: HasDensity, states: Tensor, x: Tensor) -> None:
    """Check on a few images that `likelihood(z)` broadcasts over z [states, 1, ...].

    :param states: values of z, [states, ...].
    :raises BadInput: if the densities differ from those of each state alone.
    """
    few, reason = x[:3], ""
    states = states[[0, -1]]
    try:
        with torch.no_grad(), matmul_precision():
            alone = [observed_log_prob(model.likelihood(z.expand(len(few), *z.shape)), few) for z in states]
            among = observed_log_prob(model.likelihood(states.unsqueeze(1)), few)
        alike = among.shape == (2, len(few)) and torch.allclose(among, torch.stack(alone), rtol=RELATIVE, atol=ABSOLUTE)
    except Exception as error:
        alike, reason = False, f" ({describe(error)})"
    if not alike:
        raise BadInput(
            f"{type(model).__name__}: likelihood(z) does not broadcast over states z [states, 1, ...]{reason}: write "
            "it for a z with further dimensions on the left, such as z.unsqueeze(-1) instead of z.view(-1, 1)"
        )
