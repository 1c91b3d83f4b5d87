"""What a user hands over as a model, a guide and images: the modules behind functions, arrays as tensors."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppl_gen.errors import BadInput

_MOST_OBJECTS = 10_000  # that are looked at for modules


def modules_of(*functions: Any) -> list[nn.Module]:
    """Every module that functions lead to, and their submodules: a module itself, the owner of a bound method, what a
    closure, a `functools.partial` or a wrapper holds, and what a function names outside of itself, as a function of a
    notebook does."""
    found: dict[int, nn.Module] = {}
    queue = list(functions)
    seen: set[int] = set()
    while queue and len(seen) < _MOST_OBJECTS:
        each = queue.pop()
        if id(each) not in seen:
            seen.add(id(each))
            if isinstance(each, nn.Module):
                found |= {id(part): part for part in each.modules()}
            queue += _leads_to(each)
    return list(found.values())


def _leads_to(each: Any) -> list[Any]:
    if isinstance(each, nn.Module):
        kinds = nn.Module | list | tuple | dict | FunctionType | MethodType
        return [value for part in each.modules() for value in vars(part).values() if isinstance(value, kinds)]
    if isinstance(each, MethodType):
        return [each.__self__, each.__func__]
    if isinstance(each, functools.partial):
        return [each.func, *each.args, *each.keywords.values()]
    if isinstance(each, FunctionType):
        cells = [cell.cell_contents for cell in each.__closure__ or () if _filled(cell)]
        named = [each.__globals__[name] for name in _names(each.__code__) if name in each.__globals__]
        return [*cells, *named, *(each.__defaults__ or ()), getattr(each, "__wrapped__", None)]
    if isinstance(each, list | tuple | set):
        return list(each) if len(each) < _MOST_OBJECTS else []
    if isinstance(each, dict):
        return list(each.values()) if len(each) < _MOST_OBJECTS else []
    kind = type(each)
    if isinstance(each, type) or kind.__module__.partition(".")[0] in ("builtins", "torch", "numpy", "pandas", "types"):
        return []
    return list(getattr(each, "__dict__", {}).values())  # an object with a method that is a model, a handler of Pyro


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> list[str]:
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return [*code.co_names, *(name for part in inner for name in _names(part))]


@contextmanager
def evaluating(*functions: Any) -> Iterator[None]:
    """The modules that functions lead to in eval mode, no gradients, Pyro's checks off, a copy of the parameter store;
    all restored after."""
    parts = modules_of(*functions)
    states = [part.training for part in parts]
    store = pyro.get_param_store()
    for part in parts:
        part.training = False
    try:
        with torch.no_grad(), pyro.validation_enabled(False), store.scope(store.get_state()):
            yield
    finally:
        for part, training in zip(parts, states, strict=True):
            part.training = training


@contextmanager
def untouched_on_refusal(*functions: Any) -> Iterator[None]:
    """Where `BadInput` is raised, the modules that functions lead to are what they were: one that sets itself up when
    it is first called, on a few images here, can still be set up."""
    parts = modules_of(*functions)
    tables = ("_parameters", "_buffers", "_modules")
    before = [(dict(vars(part)), [dict(vars(part).get(name, {})) for name in tables]) for part in parts]
    buffers = [(buffer, buffer.detach().clone()) for part in parts for buffer in part.buffers(recurse=False)]
    try:
        yield
    except BadInput:
        for part, (attributes, contents) in zip(parts, before, strict=True):
            vars(part).clear()
            vars(part).update(attributes)
            for name, table in zip(tables, contents, strict=True):
                if table or vars(part).get(name):
                    vars(part)[name].clear()
                    vars(part)[name].update(table)
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)
        raise


def as_images(x: Any, *functions: Any) -> Tensor:
    """Images [N, ...] as a tensor. Numbers of an array or a list have the dtype and the device of the parameters that
    the functions lead to, or torch's default.

    :raises BadInput: for anything else than numbers, one row an image.
    """
    if not isinstance(x, Tensor):
        x = _from_numbers(x, *functions)
    elif x.dtype is torch.bool:
        x = x.to(torch.get_default_dtype())
    if x.layout is not torch.strided or x.is_complex():
        raise BadInput(f"x is a tensor of {x.dtype}, {x.layout}: give a dense tensor of real numbers [N, ...]")
    if x.dim() == 0:
        raise BadInput("x is one number: give images [N, ...], one row an image")
    return x


def _from_numbers(x: Any, *functions: Any) -> Tensor:
    what = f"x is a {type(x).__name__}"
    if not isinstance(x, list | tuple) and (not hasattr(x, "__array__") or isinstance(x, str)):
        raise BadInput(f"{what}: give images as a tensor, an array or a list [N, ...]; one batch of a loader at a time")
    try:
        if isinstance(x, list | tuple) and x and all(isinstance(each, Tensor) for each in x):
            array = torch.stack(list(x)).detach().cpu().numpy()
        else:
            array = np.asarray(x)
        if array.dtype.kind not in "buif":
            raise ValueError(f"its elements are {array.dtype}")
    except Exception as error:  # of rows of different lengths, or of no numbers
        raise BadInput(f"{what}, not of numbers [N, ...] ({str(error).splitlines()[0]})") from error
    floating = [p for part in modules_of(*functions) for p in part.parameters(recurse=False) if p.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    device = floating[0].device if floating else "cpu"
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(device, dtype)


def as_argument(value: Any, count: int) -> Any:
    """A further argument of a model: an array, or a list with a number for each image, as a tensor."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        return torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    if isinstance(value, list | tuple) and len(value) == count and all(isinstance(v, int | float) for v in value):
        return torch.tensor(value)
    return value


def whole_number(name: str, value: Any) -> int:
    """A number of things, at least 1; 1e3 is one too.

    :raises BadInput: for anything else.
    """
    try:
        number = int(value)
        whole = not isinstance(value, bool | str | bytes) and number == value
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or number < 1:
        raise BadInput(f"--{name.replace('_', '-')} {value}: must be a whole number, at least 1")
    return number
