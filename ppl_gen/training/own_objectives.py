"""What an objective of a user's own may do that its contract does not say: keep state, or return a mean."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Loss
from ppl_gen.core.seeds import seed_torch
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.inference.arguments import map_leaves, take
from ppl_gen.inference.modes import can_restore, into_training, same_numbers, unchanged
from ppl_gen.inference.objectives.loss import is_ours
from ppl_gen.training.loop import objective_for

_NUMBERS = (bool, int, float)
_ARRAYS = (Tensor, np.ndarray)
_REPEATS = 5  # of a loss, whose mean is looked at


def loss_of(assembled: Assembled) -> Callable[..., Tensor]:
    """The loss, as a function of a batch, from the functions of the pair."""
    pair = replace(assembled.pair, direct=None)
    elbo: Any = objective_for(assembled.config.training, assembled.objective, pair, *assembled.batch)
    return partial(elbo.differentiable_loss, pair.model, pair.guide)


def is_a_mean(assembled: Assembled) -> bool:
    """True if the `loss` of a user's own objective is a mean over the images, where the contract is a sum."""
    if not isinstance(assembled.objective, Loss) or is_ours(assembled.objective):
        return False
    (x, *args), compute = assembled.batch, loss_of(assembled)
    rows = torch.arange(len(x), device=x.device)
    with pyro.get_param_store().scope(), unchanged(assembled.trained), pyro.validation_enabled(False):
        seed_torch(0)
        once, twice = (
            sum(float(compute(batch.x, *batch.args).detach()) for _ in range(_REPEATS)) / _REPEATS
            for batch in (take(each, x, tuple(args), {}) for each in (rows, rows.repeat(2)))
        )
    return abs(twice - once) < 0.2 * abs(once)


@contextmanager
def state_kept(assembled: Assembled) -> Iterator[list[str]]:
    """Context in which a loss is computed. Watched is what a checkpoint lacks of model, guide and objective: attributes
    that are numbers or tensors, such as a count of steps, or lists and dictionaries of these; and buffers that are not
    persistent. Yields a list that gets the names of those that a loss changes once more, with the same noise: they
    depend on what was there before, and are not only what the last loss has left, as a cache is. So do flags that a
    first loss sets. The state of the objective is restored; that of model and guide is not."""
    own = assembled.objective
    of_objective = [*own.modules()] if isinstance(own, nn.Module) else [own]
    watched = [*of_objective, *assembled.model.modules(), *assembled.guide.modules()]

    def states() -> list[dict[str, Any]]:
        # A list of arrays of a model or a guide is most often a log.
        inner = [(*_NUMBERS, *_ARRAYS) if number < len(of_objective) else _NUMBERS for number in range(len(watched))]
        return list(map(_state, watched, inner))

    before = states()
    changed: list[str] = []
    try:
        yield changed
        _compute_once(assembled)
        once = states()
        _compute_once(assembled)
        for each, first, second, third in zip(watched, before, once, states(), strict=True):
            names = [*_differ(second, third), *(name for name in _differ(first, second) if first[name] is False)]
            changed += [f"{type(each).__name__}.{name}" for name in names]
        changed[:] = dict.fromkeys(changed)
    finally:
        for each, state in zip(of_objective, before, strict=False):
            buffers = _transient_of(each)
            for name, value in state.items():
                if name in buffers:
                    buffers[name].copy_(value)
                elif not _same(value, vars(each).get(name)):  # which may be of another kind now
                    vars(each)[name] = value


def _compute_once(assembled: Assembled) -> None:
    """Compute a loss in training mode, always with the same noise. Only buffers that are not persistent are changed."""
    parts = list(assembled.trained.modules())
    with pyro.get_param_store().scope(), unchanged(assembled.trained), pyro.validation_enabled(False):
        into_training(assembled.trained, model=assembled.model)
        with _same_noise():
            loss_of(assembled)(*assembled.batch)
        moved = [(part, {n: b.detach().clone() for n, b in _transient_of(part).items()}) for part in parts]
    for part, values in moved:
        for name, buffer in _transient_of(part).items():  # without one that only the loss has made, such as a cache
            if name in values and values[name].shape == buffer.shape:
                buffer.copy_(values[name])


@contextmanager
def _same_noise() -> Iterator[None]:
    """Context with the same noise of torch, NumPy and Python each time. The generators of the last two are restored."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    seed_torch(0)
    np.random.seed(0)
    random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def _transient_of(part: Any) -> dict[str, Tensor]:
    """The buffers of a module that a checkpoint lacks, by name; none of another object."""
    if not isinstance(part, nn.Module):
        return {}
    named = ((name, part._buffers.get(name)) for name in sorted(part._non_persistent_buffers_set))
    return {name: buffer for name, buffer in named if isinstance(buffer, Tensor) and can_restore(buffer)}


def _state(owner: Any, inner: tuple[type, ...]) -> dict[str, Any]:
    """Copies of the attributes of an object that a checkpoint does not have, by name.

    :param inner: kinds of what may be in lists and dictionaries.
    """
    attributes = vars(owner) if hasattr(owner, "__dict__") else {}
    others = vars(nn.Module()) if isinstance(owner, nn.Module) else {}
    plain = {name: each for name, each in attributes.items() if name not in others}
    own = {n: each for n, each in plain.items() if _is_plain(each, _ARRAYS if type(each) in _ARRAYS else inner)}
    return {name: _copy(each) for name, each in (own | _transient_of(owner)).items()}


def _is_plain(value: Any, kinds: tuple[type, ...]) -> bool:
    """True for a value of these kinds, and for lists and dictionaries of them."""
    if type(value) in (dict, list, tuple, deque):
        return all(_is_plain(each, kinds) for each in (value.values() if type(value) is dict else value))
    return type(value) in kinds and (not isinstance(value, Tensor) or can_restore(value))


def _copy(value: Any) -> Any:
    """A copy of what `_is_plain` takes."""

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, deque):
            return deque(map(_copy, leaf), leaf.maxlen)
        return leaf.detach().clone() if isinstance(leaf, Tensor) else copy(leaf)

    return map_leaves(copied, value)


def _differ(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names that both have, with other values."""
    return [name for name in one if name in other and not _same(one[name], other[name])]


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and same_numbers(one, other)
    return bool(np.array_equal(one, other, equal_nan=not isinstance(one, np.ndarray) or one.dtype.kind == "f"))
