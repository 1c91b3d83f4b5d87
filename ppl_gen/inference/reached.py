"""The modules and parameters that a user's function can reach.

A Pyro function may use a module through a closure, a default argument, a global variable, an attribute of an object,
and so on. Therefore the objects that a function can reach are searched, as the garbage collector does it.
"""

import functools
import gc
import sys
import warnings
import weakref
from collections import deque
from contextvars import ContextVar
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

MOST_OBJECTS = 20_000  # objects with references that are searched for modules
_MANY, _LOOKED_AT = 1000, 20  # a list of more than so many elements is a data set if the first ones are rows
_LIBRARIES = {
    *sys.stdlib_module_names, "torch", "torchvision", "pyro", "zuko", "numpy", "pandas", "scipy", "sklearn",
    "matplotlib", "tqdm", "xarray", "arviz", "IPython", "ipykernel", "pytest", "_pytest", "pluggy", "wandb", "ppl_gen",
}  # fmt: skip
"""Packages whose own global variables and class attributes hold no module of a user."""

_LEAVES = (Tensor, np.ndarray, ModuleType)
"""Types whose references are not followed."""


Held: TypeAlias = tuple[nn.Module | Tensor, ...]
"""What holds parameters: modules, and tensors beside them."""


def modules_of(*functions: Any) -> list[nn.Module]:
    """Every module that functions can reach, and their submodules."""
    return modules_among(reachable(*functions))


def parameters_of(*functions: Any) -> Held:
    """What holds the parameters that functions can reach: modules, none of them inside another, and tensors that
    require a gradient, such as one in a closure."""
    reached = reachable(*functions)
    modules = modules_among(reached)
    of_modules = {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
    near = {id(tensor): tensor for each in reached for tensor in _references(each) if isinstance(tensor, Tensor)}
    bare = [t for t in near.values() if t.is_leaf and t.requires_grad and id(t) not in of_modules]
    return *outermost(modules), *bare


def outermost(modules: list[nn.Module]) -> list[nn.Module]:
    """Those modules that are in none of the others."""
    inside = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in inside]


def modules_among(reached: list[Any]) -> list[nn.Module]:
    """The modules among objects, and their submodules, each once."""
    found: dict[int, nn.Module] = {}
    for each in reached:
        if (
            issubclass(type(each), nn.Module) and id(each) not in found and "_modules" in vars(each)
        ):  # else its constructor has not finished
            found |= {id(part): part for part in each.modules()}
    return list(found.values())


def reachable(*functions: Any) -> list[Any]:
    """Every object that functions can reach, the nearest first: breadth-first search over the references that the
    garbage collector sees, and over global variables that functions and methods name. No code of a user runs."""
    queue = deque(filter(_is_followed, functions))
    seen: dict[int, Any] = {}
    searched = 0
    while queue:
        each = queue.popleft()
        if id(each) not in seen:
            seen[id(each)] = each  # a live object keeps its id
            references = _references(each)
            followed = list(filter(_is_followed, references)) if len(references) <= MOST_OBJECTS else []
            if len(followed) > _MANY and all(map(_is_row, followed[:_LOOKED_AT])):
                followed = []
            queue += followed
            searched += bool(followed)
            if searched == MOST_OBJECTS:
                warnings.warn(
                    f"model and guide refer to more than {MOST_OBJECTS:,} objects, and not all were searched for "
                    "modules: call .eval() on those with dropout or batch statistics before an evaluation",
                    stacklevel=2,
                )
                break
    return list(seen.values())


def _is_row(each: Any) -> bool:
    """True for a list, tuple or dictionary that refers to nothing more, such as a row of numbers."""
    return type(each) in (list, tuple, dict) and not any(map(_is_followed, gc.get_referents(each)))


def _is_followed(each: Any) -> bool:
    """True if an object may hold references to a module."""
    kind = type(each)  # not isinstance, which runs `__class__` of a user's object
    if issubclass(kind, type):
        return not of_library(each.__module__)
    return (gc.is_tracked(each) or kind is ContextVar) and not issubclass(kind, _LEAVES)


def _references(each: Any) -> list[Any]:
    """The objects that an object refers to."""
    kind = type(each)
    if issubclass(kind, FunctionType):
        held = [each.__closure__, each.__defaults__, each.__kwdefaults__, vars(each)]
        return [*held, *([] if of_library(each.__globals__.get("__name__")) else _named_objects(each))]
    if issubclass(kind, type):
        return [*vars(each).values(), *type.mro(each)]
    if issubclass(kind, weakref.ref):
        return [weakref.ref.__call__(each)]
    if kind is ContextVar:
        return [each.get(None)]
    return gc.get_referents(each)


def of_library(name: Any) -> bool:
    """True if a module's name is that of a library, or of a part of it."""
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES


def _named_objects(function: FunctionType) -> list[Any]:
    """Objects that the code of a function names: global variables, and attributes of Python modules, whether the
    function imports them or its module does."""
    names, package = _names(function.__code__), function.__globals__.get("__package__")
    queue = [table[name] for table in (function.__globals__, sys.modules) for name in names if name in table]
    queue += [sys.modules[inside] for name in names if (inside := f"{package}.{name}") in sys.modules]
    found: dict[int, Any] = {}
    while queue:
        each = queue.pop()
        if id(each) not in found:
            found[id(each)] = each
            if issubclass(type(each), ModuleType) and not of_library(each.__name__):
                queue += [vars(each)[name] for name in names if name in vars(each)]
    return list(found.values())


@functools.lru_cache(10_000)
def _names(code: CodeType) -> tuple[str, ...]:
    """Names in a code object and the code objects within it; and strings, which may be names as in
    `getattr(networks, "decoder")`."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    texts = [part for part in code.co_consts if isinstance(part, str)]
    return tuple({*code.co_names, *texts, *(name for part in inner for name in _names(part))})
