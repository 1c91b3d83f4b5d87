"""Torch's optimizers, which do not import torch's compiler."""

import functools
import inspect
from typing import TypeVar, cast

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)
_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


@functools.cache
def without_compiler(kind: type[Kind]) -> type[Kind]:
    """A class of torch's optimizers whose methods run as they are written.

    Torch wraps these methods for `torch.compile`, which skips them. The wrappers import `torch._dynamo`: that takes as
    long as a small fit, and nothing is compiled here. The steps are the same to the bit.

    >>> weight = torch.ones(1, requires_grad=True)
    >>> adam = without_compiler(torch.optim.Adam)([weight], lr=0.5)
    >>> weight.square().sum().backward()
    >>> adam.step()
    >>> weight
    tensor([0.5000], requires_grad=True)
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[Kind], type(kind.__name__, (kind,), {**methods, "step": step}))
