"""A user's model, guide and images: modules that a function uses, state that a run must restore, arrays as tensors.

A Pyro function may use a module through a closure, a default argument, a global variable, an attribute of an object,
and so on. `evaluating` must set each such module to eval mode and put its state back afterwards. Therefore the objects
that a function can reach are searched, as the garbage collector does it.
"""

import copy
import functools
import gc
import sys
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from itertools import zip_longest
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ppl_gen.core.errors import BadInput
from ppl_gen.data.rows import Rows
from ppl_gen.inference.signatures import ByName, asks_for_index, guide_function, model_function, positional_names
from ppl_gen.networks.autoguides import check_rows

_MOST_OBJECTS = 20_000  # objects that are searched for modules
_LARGEST_BUFFER = 1_000_000  # numbers; a larger buffer is a data set, not a running statistic, and is not copied
_LIBRARIES = {*sys.stdlib_module_names, "torch", "pyro", "numpy", "pandas", "scipy", "matplotlib", "ppl_gen"}
"""Packages whose own global variables and class attributes hold no module of a user."""

_LEAVES = (Tensor, np.ndarray, ModuleType)
"""Types whose references are not followed."""


Held: TypeAlias = tuple[nn.Module | Tensor, ...]
"""What holds parameters: modules, and tensors beside them."""


def modules_of(*functions: Any) -> list[nn.Module]:
    """Every module that functions can reach, and their submodules."""
    return _modules(_reachable(*functions))


def parameters_of(*functions: Any) -> Held:
    """What holds the parameters that functions can reach: modules, none of them inside another, and tensors that
    require a gradient, such as one in a closure."""
    reached = _reachable(*functions)
    modules = _modules(reached)
    inside = {id(part) for module in modules for part in module.modules() if part is not module}
    of_modules = {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
    near = {id(tensor): tensor for each in reached for tensor in _references(each) if isinstance(tensor, Tensor)}
    bare = [t for t in near.values() if t.is_leaf and t.requires_grad and id(t) not in of_modules]
    return *(module for module in modules if id(module) not in inside), *bare


def _modules(reached: list[Any]) -> list[nn.Module]:
    """The modules among objects, and their submodules, each once."""
    found: dict[int, nn.Module] = {}
    for each in reached:
        if (
            issubclass(type(each), nn.Module) and id(each) not in found and "_modules" in vars(each)
        ):  # else its constructor has not finished
            found |= {id(part): part for part in each.modules()}
    return list(found.values())


def _reachable(*functions: Any) -> list[Any]:
    """Every object that functions can reach, the nearest first: breadth-first search over the references that the
    garbage collector sees, and over global variables that functions and methods name. No code of a user runs."""
    queue = deque(filter(_is_followed, functions))
    seen: dict[int, Any] = {}
    while queue and len(seen) < _MOST_OBJECTS:
        each = queue.popleft()
        if id(each) not in seen:
            seen[id(each)] = each  # a live object keeps its id
            references = _references(each)
            if len(references) <= _MOST_OBJECTS:
                queue += filter(_is_followed, references)
    return list(seen.values())


def _is_followed(each: Any) -> bool:
    """True if an object may hold references to a module."""
    kind = type(each)  # not isinstance, which runs `__class__` of a user's object
    if issubclass(kind, type):
        return not _of_library(each.__module__)
    return (gc.is_tracked(each) or kind is ContextVar) and not issubclass(kind, _LEAVES)


def _references(each: Any) -> list[Any]:
    """The objects that an object refers to."""
    kind = type(each)
    if issubclass(kind, FunctionType):
        held = [each.__closure__, each.__defaults__, each.__kwdefaults__, vars(each)]
        return [*held, *([] if _of_library(each.__globals__.get("__name__")) else _named_objects(each))]
    if issubclass(kind, type):
        return [*vars(each).values(), *type.mro(each)]
    if issubclass(kind, weakref.ref):
        return [weakref.ref.__call__(each)]
    if kind is ContextVar:
        return [each.get(None)]
    return gc.get_referents(each)


def _of_library(name: Any) -> bool:
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
            if issubclass(type(each), ModuleType) and not _of_library(each.__name__):
                queue += [vars(each)[name] for name in names if name in vars(each)]
    return list(found.values())


@functools.lru_cache(10_000)
def _names(code: CodeType) -> tuple[str, ...]:
    """Names in a code object and the code objects within it; and strings, which may be names as in
    `getattr(networks, "decoder")`."""
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    texts = [part for part in code.co_consts if isinstance(part, str)]
    return tuple({*code.co_names, *texts, *(name for part in inner for name in _names(part))})


@contextmanager
def evaluating(*functions: Any) -> Iterator[None]:
    """Context for evaluation: modules that functions can reach are in eval mode, gradients and Pyro's checks are off,
    and Pyro's parameter store is a copy. Afterwards all of this and the modules' buffers are restored. If `BadInput` is
    raised, the state of modules and objects is restored too: a module that initializes itself at its first call can
    then still do so."""
    reached = _reachable(*functions)
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
    """Context with a float32 precision of matrix products, by default full float32: for comparisons of numbers that
    must not differ by rounding."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def forked_rng(x: Tensor | Rows) -> AbstractContextManager[None]:
    """Context that restores torch's generators afterwards: of the CPU, and of the device of x."""
    return torch.random.fork_rng([x.device] if x.device.type == "cuda" else [])


@contextmanager
def reading(*functions: Any) -> Iterator[None]:
    """Context that restores the state of all objects that functions can reach, and the parameter store. A module that
    initializes itself at its first call, as batch statistics or lazy layers do, is then not initialized by the few
    images that a pair is read on.

    :raises BadInput: if an autoguide of Pyro is called.
    """

    def refuse(module: nn.Module, _: Any) -> None:
        raise BadInput(
            f"{type(module).__name__} has parameters for each of the images that it was set up with, which cannot be "
            "told apart: use AutoNormal, or write a guide that computes the parameters of q(z | x) from x"
        )

    reached = _reachable(*functions)
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
def frozen(*held: Any) -> Iterator[None]:
    """Context in which no parameter of modules, and no tensor, requires a gradient. What is computed there depends on
    none of them, and a backward pass has half of the work. Other objects are left alone."""
    parts = [each.parameters() for each in held if isinstance(each, nn.Module)]
    tensors = [each for each in held if isinstance(each, Tensor)]
    parameters = [p for part in (*parts, tensors) for p in part if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


def _state_of(reached: list[Any]) -> Callable[[], None]:
    """Record the attributes of modules and of a user's objects and functions, the variables of closures, and the
    dictionaries, lists and sets in these, three levels deep. Returns a function that restores them."""
    owners = [each for each in reached if _has_state(each)]
    closures = [owner.__closure__ or () for owner in owners if isinstance(owner, FunctionType)]
    cells = [(cell, cell.cell_contents) for cells in closures for cell in cells if gc.get_referents(cell)]
    level = [content for _, content in cells]
    for owner in owners:
        with suppress(AttributeError):  # a class with slots has no __dict__
            level.append(object.__getattribute__(owner, "__dict__"))
    before: dict[int, tuple[Any, Any]] = {}
    for _ in range(3):
        level = [each for each in level if type(each) in _CONTAINERS and len(each) <= _MOST_OBJECTS]
        before |= {id(container): (container, container.copy()) for container in level}
        level = [inner for container in level for inner in _items(container)]

    def restore() -> None:
        for cell, content in cells:
            cell.cell_contents = content
        for container, content in before.values():
            # Compared by identity: `==` of tensors is no bool, and may run code of a user.
            if list(map(id, _items(container))) != list(map(id, _items(content))):
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)

    return restore


def _has_state(each: Any) -> bool:
    """True for a module and for a user's object. A lazy module is not restored, because it changes its class."""
    kind = type(each)
    if issubclass(kind, FunctionType):
        return not _of_library(each.__globals__.get("__name__"))
    if issubclass(kind, nn.Module):
        return not issubclass(kind, LazyModuleMixin)
    return kind is SimpleNamespace or not (issubclass(kind, type) or _of_library(kind.__module__))


def _items(container: Any) -> list[Any]:
    """Elements of a list or set; keys and values of a dictionary."""
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _buffers_of(modules: list[nn.Module]) -> Callable[[], None]:
    """Record buffers. Returns a function that restores those that were changed in place."""
    buffers = [b for m in modules if not isinstance(m, LazyModuleMixin) for b in m.buffers(recurse=False)]
    buffers = [b for b in buffers if b.numel() <= _LARGEST_BUFFER and not b.is_inference()]
    before = [(b, b.detach().clone()) for b in buffers]

    def restore() -> None:
        with torch.no_grad():
            for buffer, content in before:
                # `_version` counts no changes under inference mode, nor those of running statistics by batch_norm.
                if not torch.equal(buffer, content):
                    buffer.copy_(content)

    return restore


class Batch(NamedTuple):
    """Images [N, ...] and the further arguments of a model and a guide."""

    x: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def blocks(self, size: int, first: int = 0) -> "Iterator[tuple[int, Batch]]":
        """Batches of at most `size` images, from image number `first` on, each with the number of its first image."""
        rows = torch.arange(len(self.x), device=self.x.device)
        for start in range(first, len(self.x), size):
            yield start, take(rows[start : start + size], *self)


def take(rows: Tensor, x: Tensor, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Batch:
    """The images at `rows`, with the same rows of every tensor and packed sequence that has one row for each image, in
    the arguments and in the dictionaries, tuples and lists among them."""

    def pick(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return _packed_rows(rows, value) if int(value.batch_sizes[0]) == len(x) else value
        follows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)
        return value[rows] if follows else value

    by_name = {name: map_leaves(pick, value) for name, value in (kwargs or {}).items()}
    return Batch(x[rows], tuple(map_leaves(pick, value) for value in args), by_name)


def rows_at(rows: Tensor, x: Tensor, *args: Any) -> tuple[Any, ...]:
    """The images at `rows` with their further arguments, as `take` does it, one after the other."""
    batch = take(rows, x, args)
    return batch.x, *batch.args


def first_rows(count: int, x: Tensor, *args: Any) -> tuple[Any, ...]:
    """The first images, up to `count`, with their further arguments."""
    return rows_at(torch.arange(min(count, len(x)), device=x.device), x, *args)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to all that nested dictionaries, tuples and lists contain. A packed sequence is one element."""
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update((key, map_leaves(function, each)) for key, each in value.items())
        return result
    if isinstance(value, list | tuple) and not isinstance(value, PackedSequence | torch.Size):
        parts = [map_leaves(function, each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return function(value)


def _packed_rows(rows: Tensor, value: PackedSequence) -> PackedSequence:
    """The sequences at `rows` of a packed sequence. Padded again, they are as long as before, even if the longest one
    is not among them: a function that loops over all steps of x expects this. The steps that no sequence has are steps
    of batch size 0."""
    padded, lengths = pad_packed_sequence(value, batch_first=True)
    taken = pack_padded_sequence(padded[rows], lengths[rows.cpu()], batch_first=True, enforce_sorted=False)
    missing = taken.batch_sizes.new_zeros(len(value.batch_sizes) - len(taken.batch_sizes))
    sizes = torch.cat([taken.batch_sizes, missing])
    return PackedSequence(taken.data, sizes, taken.sorted_indices, taken.unsorted_indices)


def as_images(x: Any, *functions: Any) -> Tensor:
    """Convert images [N, ...] to a tensor. Numbers in an array or a list get the dtype and the device of the first
    parameter that the functions can reach, or torch's default.

    :raises BadInput: for anything else than numbers with one row for each image.
    """
    _check_whole("x", x)
    if not isinstance(x, Tensor):
        x = _from_numbers(x, *functions)
    elif x.dtype is torch.bool:
        x = x.to(torch.get_default_dtype())
    if x.layout is not torch.strided or x.is_complex():
        raise BadInput(f"x is a tensor of {x.dtype}, {x.layout}: give a dense tensor of real numbers [N, ...]")
    if x.dim() == 0:
        raise BadInput("x is one number: give images [N, ...], one row per image")
    return x


def _from_numbers(x: Any, *functions: Any) -> Tensor:
    """Convert an array or a list of numbers to a tensor."""
    what = f"x is a {type(x).__name__}"
    if isinstance(x, PackedSequence | dict):
        rest = "the packed sequence" if isinstance(x, PackedSequence) else "the rest of the dictionary"
        raise BadInput(f"{what}: give one tensor [N, ...], such as padded sequences, and {rest} as a further argument")
    if not isinstance(x, list | tuple) and (not hasattr(x, "__array__") or isinstance(x, str)):
        raise BadInput(f"{what}: give images as a tensor, an array or a list [N, ...]; one batch of a loader at a time")
    try:
        if isinstance(x, list | tuple) and x and all(isinstance(each, Tensor) for each in x):
            array = torch.stack(list(x)).detach().cpu().numpy()
        else:
            array = np.asarray(x)
        if array.dtype.kind not in "buif":
            raise ValueError(f"its elements are {array.dtype}")
    except Exception as error:  # rows of different lengths, or elements that are no numbers
        raise BadInput(f"{what}, not of numbers [N, ...] ({str(error).splitlines()[0]})") from error
    floating = [p for part in modules_of(*functions) for p in part.parameters(recurse=False) if p.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    device = floating[0].device if floating else "cpu"
    if array.dtype == np.float64 and dtype is torch.float32:
        _check_rounded(array)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(device, dtype)


def _check_rounded(array: np.ndarray) -> None:
    """Refuse an array of float64 if float32 loses how its rows differ."""
    values = array.reshape(len(array), -1)
    with np.errstate(all="ignore"):  # of NaN, and of what is too large for float32
        lost = np.abs(values - values.astype(np.float32)).max(0, initial=0)
        spread, size = values.std(0), np.abs(values).max(0, initial=0)
    coarse = (lost > 0.01 * spread) & (spread > 1e-12 * size)
    if coarse.any():
        column = int(coarse.argmax())
        raise BadInput(
            f"x differs by {spread[column]:.2g} around {values[:, column].mean():.6g}, which float32 does not hold: "
            "give a tensor of float64, which stays one, or scale the images"
        )


def _check_whole(name: str, value: Any) -> None:
    """Refuse a masked array, which would lose its mask as a tensor, and a nested tensor, whose rows differ in
    length."""
    parts = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, np.ma.MaskedArray) for each in parts):
        raise BadInput(
            f"{name} is a masked array, whose mask would be lost: give {name}.filled(0), and the mask as a further "
            "argument for a pyro.poutine.mask in the model"
        )
    if any(isinstance(each, Tensor) and each.is_nested for each in parts):
        raise BadInput(f"{name} is a nested tensor: give a tensor with rows of one length; pad the shorter ones")


def as_arguments(
    x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], model: Any, *guides: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Convert further arguments of a model and guides, by position and by name: arrays, and lists with a number or a
    row for each image, become tensors, also in dictionaries, tuples and lists. A function that has a parameter `index`
    is given the row numbers of the images, 0 … N - 1, if the arguments have none.

    :raises BadInput: for a list of sequences of different lengths.
    """
    by_position = tuple(_as_argument(f"argument {i}", value, len(x)) for i, value in enumerate(args, 2))
    by_name = {name: _as_argument(name, value, len(x)) for name, value in kwargs.items()}
    named = [
        positional_names(each)[1 : 1 + len(args)] for each in (model_function(model), *map(guide_function, guides))
    ]
    given = any({*names} - {"", None} == {"index"} for names in zip_longest(*named))  # all call this position so
    if given or any(isinstance(each, ByName) for each in args) or not asks_for_index(model, *guides):
        return by_position, by_name
    for guide in guides:
        check_rows(guide, len(x), by_name.get("index"))
    index = by_name.pop("index", torch.arange(len(x), device=x.device))
    return (*by_position, ByName(index=index)), by_name


def _as_argument(name: str, value: Any, count: int) -> Any:
    """One argument, as a tensor if it is an array, or a list of `count` numbers or rows."""
    _check_whole(name, value)
    if isinstance(value, PackedSequence):
        return value
    if isinstance(value, list | tuple | range) and len(value) == count and not _has_parts(value, count):
        tensors = [each for each in value if isinstance(each, Tensor)]
        with suppress(Exception):  # rows of different lengths, or elements that are no numbers
            if len(tensors) == count:
                return torch.stack(tensors)
            array = np.asarray(value)
            return torch.tensor(array.tolist()) if array.dtype.kind in "buif" else value
        if len(tensors) == count and _differ_in_length(tensors):
            raise BadInput(
                f"{name} is a list of {count} sequences of different lengths: pad them to one tensor, or pack them by "
                "torch.nn.utils.rnn.pack_sequence(…, enforce_sorted=False)"
            )
    if isinstance(value, dict):
        result = copy.copy(value)
        result.update((key, _as_argument(f"{name}[{key!r}]", each, count)) for key, each in value.items())
        return result
    if isinstance(value, list | tuple):
        parts = [_as_argument(f"{name}[{index}]", each, count) for index, each in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if not isinstance(value, Tensor) and hasattr(value, "__array__") and getattr(value, "ndim", None):
        array = np.asarray(value)
        if array.dtype.kind in "buif":
            return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    return value


def _has_parts(value: Any, count: int) -> bool:
    """True for a tuple of tensors that each have a row for each image, such as the two states of an LSTM."""
    return isinstance(value, tuple) and all(
        isinstance(each, Tensor) and each.dim() > 0 and len(each) == count for each in value
    )


def _differ_in_length(tensors: list[Tensor]) -> bool:
    """True for tensors of different lengths and otherwise equal shape."""
    return all(each.dim() for each in tensors) and len({each.shape[1:] for each in tensors}) == 1


def whole_number(name: str, value: Any) -> int:
    """A count, at least 1, as an int. 1e3 is accepted.

    :raises BadInput: for any other value.
    """
    try:
        number = int(value)
        whole = not isinstance(value, bool | str | bytes) and number == value
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or number < 1:
        raise BadInput(f"--{name.replace('_', '-')} {value}: must be a whole number, at least 1")
    return number
