"""A search for log weights that rounding to float32 has spoiled.

The log-density of a large count, or of a narrow distribution far from 0, is a small difference of large numbers. Its
error is then no Monte Carlo error, and nothing else shows it. A few weights are computed again in float64.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.callables import Batch, forked_rng, map_leaves, modules_of, take
from ppl_gen.inference.enumeration import sum_over_states
from ppl_gen.inference.pair import Pair

_IMAGES, _STATES = 8, 4096
LARGEST_ERROR = 0.1
"""Error of a log weight in nats, above which images are refused."""


def check_rounding(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Compute a log weight of each of a few images in float32 and in float64; log p(x), if it is a sum over at most
    4,096 states. Torch's generators are restored.

    :raises BadInput: if they differ by more than 0.1 nats.
    """
    if (pair.enumerated_in_guide and not pair.enumerated) or (pair.num_states or 1) > _STATES:  # which takes long
        return
    rows = torch.linspace(0, len(x) - 1, min(len(x), _IMAGES), device=x.device).long()
    error = torch.zeros(0)
    with suppress(Exception), warnings.catch_warnings(), forked_rng(x), torch.no_grad():
        warnings.simplefilter("ignore")  # and errors are of a user's code that is of float32 alone
        error = _errors(pair, take(rows, x, args, kwargs))
    if len(error) and float(error.max()) > LARGEST_ERROR:
        image = int(rows[int(error.argmax())])
        raise BadInput(
            f"rounding to float32 changes {'log p(x)' if pair.enumerated else 'a log weight'} of image {image} by "
            f"{float(error.max()):.2g} nats: its numbers are too large, or a scale is too small; compute in float64 "
            "(`x.double()` in model and guide), or scale the images"
        )


def _errors(pair: Pair, batch: Batch) -> Tensor:
    """Errors of log weights, or of log p(x), [images]; 0 where one is infinite. Empty if float64 leads to float32, or
    if there is noise beside z."""
    x, args, kwargs = batch
    if pair.enumerated:
        total = sum_over_states(pair, x, *args, **kwargs)
        rounded = total(total.pair.model, x, *args, **kwargs)
        with _in_float64(pair.model, pair.guide):
            exact = total(total.pair.model, _double(x), *_double(args), **_double(kwargs))
        return _difference(rounded, exact)
    if pair.noisy:
        return torch.zeros(0)
    seed_torch(0)
    terms = pair.terms(x, *args, **kwargs)
    values = {name: each[0].reshape(len(x), *pair.event_shapes[name]) for name, each in terms.latents.items()}
    with _in_float64(pair.model, pair.guide):
        exact = pair.terms_at(_double(values), _double(x), *_double(args), **_double(kwargs)).log_weight[0]
    return _difference(terms.log_weight[0], exact)


def _difference(rounded: Tensor, exact: Tensor) -> Tensor:
    difference = (rounded - exact).abs().nan_to_num(nan=0.0, posinf=0.0)
    return difference if exact.dtype is torch.float64 else torch.zeros(0)


def _double(value: Any) -> Any:
    """The tensors of float32 in float64, also in dictionaries, tuples and lists."""

    def widen(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype is not torch.float32:
            return leaf
        return leaf.double().requires_grad_(leaf.requires_grad)  # `pyro.module` leaves out what has no gradient

    return map_leaves(widen, value)


@contextmanager
def _in_float64(*functions: Any) -> Iterator[None]:
    """Parameters and buffers in float64, in place of those that stay as they are: nothing is converted back."""
    stores: list[dict[str, Any]] = [
        store for module in modules_of(*functions) for store in (module._parameters, module._buffers)
    ]
    kept = [(store, dict(store)) for store in stores]
    state = pyro.get_param_store().get_state()
    try:
        for store in stores:
            store.update({name: _double(value) for name, value in store.items()})
        with pyro.get_param_store().scope({**state, "params": _double(dict(state["params"]))}):
            yield
    finally:
        for store, values in kept:
            store.clear()
            store.update(values)
