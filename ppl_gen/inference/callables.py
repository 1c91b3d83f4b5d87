"""A user's model, guide and images: the modules behind functions, and arrays as tensors."""

import functools
import gc
import inspect
import sys
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ppl_gen.core.contracts import Guide, Model, offers
from ppl_gen.core.errors import BadInput

_MOST_OBJECTS = 20_000  # that are looked at for modules
_LARGEST_BUFFER = 1_000_000  # numbers; a larger one is a table of data, no statistic, and is not copied
_LIBRARIES = {*sys.stdlib_module_names, "torch", "pyro", "numpy", "pandas", "scipy", "matplotlib", "ppl_gen"}
"""Packages whose own global variables and class attributes hold no module of a user."""

_LEAD_NOWHERE = (Tensor, np.ndarray, ModuleType)


def model_function(model: Any) -> Callable[..., Any]:
    """The Pyro function `model.model` of a module, or of anything else with such a method; else the model itself, which
    may have a net of that name."""
    return model.model if offers(model, Model) and not isinstance(model.model, nn.Module) else model


def guide_function(guide: Any) -> Callable[..., Any]:
    """The Pyro function `guide.guide`, likewise."""
    return guide.guide if offers(guide, Guide) and not isinstance(guide.guide, nn.Module) else guide


def name_of(function: Any) -> str:
    """The name of a function or of a class; of another object that of its class."""
    return getattr(function, "__name__", type(function).__name__)


def accepting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with as many of the positional arguments as it takes."""
    count = len(_positional(function))
    return function if count >= _ANY else lambda *args, **kwargs: function(*args[:count], **kwargs)


_ANY = 100  # names that stand for *args


def _positional(function: Callable[..., Any]) -> list[str]:
    """Names of the positional arguments that a function takes, empty for those of *args."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names + [""] * _ANY * any(p.kind is p.VAR_POSITIONAL for p in parameters)


def check_positional(model: Callable[..., Any], guide: Callable[..., Any], given: int) -> None:
    """Refuse a positional argument that would be dropped: neither function takes it, or one of them takes it only by
    its name.

    :param given: number of positional arguments, x included.
    """
    both = (model, guide)
    names = max(map(_positional, both), key=len)
    if len(names) < given:
        raise BadInput(
            f"{' and '.join(map(name_of, both))} take {len(names)} by position, x included, and {given} arguments are "
            "given: give the others by name, such as y=labels"
        )
    for function in both:
        parameters = inspect.signature(function).parameters.values()
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        for name in names[len(_positional(function)) : given]:
            if by_name and (not name or name in by_name):
                which = name or by_name[0]
                raise BadInput(f"{name_of(function)} takes {which} only by its name: give {which}=…, not by position")


def takes_labels(model: Any, guide: Any) -> bool:
    """True if the signature of either function has labels `y`."""
    functions = (model_function(model), guide_function(guide))
    return any("y" in inspect.signature(function).parameters for function in functions)


def modules_of(*functions: Any) -> list[nn.Module]:
    """Every module that functions lead to, and their submodules."""
    return _modules(_reached(*functions))


def _modules(reached: list[Any]) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}
    for each in reached:
        if issubclass(type(each), nn.Module) and id(each) not in found and "_modules" in vars(each):  # made in full
            found |= {id(part): part for part in each.modules()}
    return list(found.values())


def _reached(*functions: Any) -> list[Any]:
    """Every object that functions lead to, the nearest first: what the garbage collector knows them to hold, and the
    global variables that they and the methods of their classes name. No code of a user runs."""
    queue = deque(filter(_may_lead, functions))
    seen: dict[int, Any] = {}
    while queue and len(seen) < _MOST_OBJECTS:
        each = queue.popleft()
        if id(each) not in seen:
            seen[id(each)] = each  # which keeps its id from being another's
            leads = _leads_to(each)
            if len(leads) <= _MOST_OBJECTS:
                queue += [lead for lead in leads if _may_lead(lead)]
    return list(seen.values())


def _may_lead(each: Any) -> bool:
    kind = type(each)
    if issubclass(kind, type):
        return not _of_library(each.__module__)
    return (gc.is_tracked(each) or kind is ContextVar) and not issubclass(kind, _LEAD_NOWHERE)


def _leads_to(each: Any) -> list[Any]:
    kind = type(each)
    if issubclass(kind, FunctionType):
        held = [each.__closure__, each.__defaults__, each.__kwdefaults__, vars(each)]
        return [*held, *([] if _of_library(each.__globals__.get("__name__")) else _named(each))]
    if issubclass(kind, type):
        return [*vars(each).values(), *type.mro(each)]
    if issubclass(kind, weakref.ref):
        return [weakref.ref.__call__(each)]
    if kind is ContextVar:
        return [each.get(None)]
    return gc.get_referents(each)


def _of_library(name: Any) -> bool:
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES


def _named(function: FunctionType) -> list[Any]:
    """Objects that the code of a function names: global variables, and attributes of Python modules, imported in it or
    not."""
    names, package = _names(function.__code__), function.__globals__.get("__package__")
    queue = [table[name] for table in (function.__globals__, sys.modules) for name in names if name in table]
    queue += [sys.modules[inside] for name in names if (inside := f"{package}.{name}") in sys.modules]
    found: dict[int, Any] = {}
    while queue:
        each = queue.pop()
        if id(each) not in found:
            found[id(each)] = each
            if issubclass(type(each), ModuleType) and not _of_library(each.__name__):
                queue += [vars(each)[name] for name in names if name in vars(each)]
    return list(found.values())


@functools.lru_cache(10_000)
def _names(code: CodeType) -> tuple[str, ...]:
    """Names in a code and the code within it; and texts, which may be names: `getattr(networks, "decoder")`."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    texts = [part for part in code.co_consts if isinstance(part, str)]
    return tuple({*code.co_names, *texts, *(name for part in inner for name in _names(part))})


@contextmanager
def evaluating(*functions: Any) -> Iterator[None]:
    """The modules that functions lead to in eval mode, no gradients, Pyro's checks off, a copy of the parameter store;
    all restored after, and buffers. Where `BadInput` is raised, modules and objects are what they were: one that sets
    itself up when it is first called can still be set up."""
    reached = _reached(*functions)
    modules = _modules(reached)
    restore_state, restore_buffers = _state_of(reached), _buffers_of(modules)
    states = [part.training for part in modules]
    for part in modules:
        part.training = False
    store = pyro.get_param_store()
    try:
        with torch.no_grad(), pyro.validation_enabled(False), store.scope(store.get_state()):
            yield
    except BadInput:
        restore_state()
        raise
    finally:
        restore_buffers()
        for part, training in zip(modules, states, strict=True):
            part.training = training


@contextmanager
def matmul_precision(precision: str = "highest") -> Iterator[None]:
    """Matrix products in this precision of torch's: in full float32, where what is compared must differ by what it is,
    not by how it was rounded."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def reading(*functions: Any) -> Iterator[None]:
    """Restore all that functions lead to, and the parameter store. A module that sets itself up when it is first called
    is then set up by the images that are evaluated, not by the few that a pair is read on.

    :raises BadInput: where an autoguide of Pyro is called, before it sets itself up.
    """

    def refuse(module: nn.Module, _: Any) -> None:
        raise BadInput(
            f"{type(module).__name__} has parameters for each of the images that it was set up with, and none for "
            "others: write a guide that computes the parameters of q(z | x) from x"
        )

    reached = _reached(*functions)
    modules = _modules(reached)
    restore_state, restore_buffers = _state_of(reached), _buffers_of(modules)
    hooks = [part.register_forward_pre_hook(refuse) for part in modules if isinstance(part, AutoGuide)]
    store = pyro.get_param_store()
    try:
        with store.scope(store.get_state()):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        restore_state()
        restore_buffers()


@contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """No parameter of the modules asks for a gradient, which saves half of the work; restored after."""
    parts = [module for module in modules if isinstance(module, nn.Module)]
    parameters = [p for module in parts for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


def _state_of(reached: list[Any]) -> Callable[[], None]:
    """A function that puts back the attributes of modules, of a user's objects and functions, the variables of
    closures, and the dictionaries, lists and sets in these."""
    own = [each for each in reached if _has_state(each)]
    closures = [each.__closure__ or () for each in own if isinstance(each, FunctionType)]
    cells = [(cell, cell.cell_contents) for cells in closures for cell in cells if gc.get_referents(cell)]
    level = [content for _, content in cells]
    for each in own:
        with suppress(AttributeError):  # it may have slots
            level.append(object.__getattribute__(each, "__dict__"))
    before: dict[int, tuple[Any, Any]] = {}
    for _ in range(3):
        level = [each for each in level if type(each) in _CONTAINERS and len(each) <= _MOST_OBJECTS]
        before |= {id(each): (each, each.copy()) for each in level}
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]

    def restore() -> None:
        for cell, content in cells:
            cell.cell_contents = content
        for each, content in before.values():
            if list(map(id, _items(each))) != list(map(id, _items(content))):
                each.clear()
                each.extend(content) if isinstance(each, list) else each.update(content)

    return restore


def _has_state(each: Any) -> bool:
    """True for a module and for a user's object. A lazy module is not put back, as it changes its class."""
    kind = type(each)
    if issubclass(kind, FunctionType):
        return not _of_library(each.__globals__.get("__name__"))
    if issubclass(kind, nn.Module):
        return not issubclass(kind, LazyModuleMixin)
    return kind is SimpleNamespace or not (issubclass(kind, type) or _of_library(kind.__module__))


def _items(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _buffers_of(modules: list[nn.Module]) -> Callable[[], None]:
    """A function that puts back the numbers in buffers that were changed in place."""
    buffers = [b for m in modules if not isinstance(m, LazyModuleMixin) for b in m.buffers(recurse=False)]
    buffers = [b for b in buffers if b.numel() <= _LARGEST_BUFFER and not b.is_inference()]
    before = [(b, b.detach().clone(), b._version) for b in buffers]

    def restore() -> None:
        with torch.no_grad():
            for buffer, content, version in before:
                if buffer._version != version or torch.is_inference_mode_enabled():
                    buffer.copy_(content)

    return restore


class Batch(NamedTuple):
    """Images [N, ...] and the further arguments of a model and a guide."""

    x: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def take(rows: Tensor, x: Tensor, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Batch:
    """The images at `rows`, with the same rows of every argument that has one for each image."""

    def pick(value: Any) -> Any:
        follows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)
        return value[rows] if follows else value

    return Batch(x[rows], tuple(map(pick, args)), {name: pick(value) for name, value in (kwargs or {}).items()})


def as_images(x: Any, *functions: Any) -> Tensor:
    """Images [N, ...] as a tensor. Numbers of an array or a list have the dtype and the device of the parameters that
    the functions lead to, or torch's default.

    :raises BadInput: for anything else than numbers, one row an image.
    """
    _check_whole("x", x)
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


def _check_whole(name: str, value: Any) -> None:
    """Refuse what would lose a part of it as a tensor, or has rows of several lengths."""
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, np.ma.MaskedArray) for each in parts):
        raise BadInput(
            f"{name} is a masked array, and its mask would be lost: give {name}.filled(0), and the mask as a further "
            "argument for a pyro.poutine.mask in the model"
        )
    if any(isinstance(each, Tensor) and each.is_nested for each in parts):
        raise BadInput(f"{name} is a nested tensor: give a tensor with rows of one length, padded where they differ")


def as_arguments(count: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Further arguments of a model, by position and by name: an array, or a list with numbers for each image, as a
    tensor."""
    by_position = tuple(_as_argument(f"argument {i}", value, count) for i, value in enumerate(args, 2))
    return by_position, {name: _as_argument(name, value, count) for name, value in kwargs.items()}


def _as_argument(name: str, value: Any, count: int) -> Any:
    _check_whole(name, value)
    if isinstance(value, list | tuple | range) and len(value) == count:
        with suppress(Exception):  # rows of different lengths, or no numbers
            tensors = [each for each in value if isinstance(each, Tensor)]
            if len(tensors) == count:
                return torch.stack(tensors)
            array = np.asarray(value)
            return torch.tensor(array.tolist()) if array.dtype.kind in "buif" else value
    elif not isinstance(value, Tensor) and hasattr(value, "__array__") and getattr(value, "ndim", None):
        array = np.asarray(value)
        if array.dtype.kind in "buif":
            return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
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
