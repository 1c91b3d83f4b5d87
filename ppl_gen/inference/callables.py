"""A user's model, guide and images: modes and state of the modules that functions use, arrays as tensors.

`evaluating` sets each module that a function can reach to eval mode, and puts its state back afterwards.
"""

import copy
import gc
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import zip_longest
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ppl_gen.core.errors import BadInput
from ppl_gen.data.rows import Rows
from ppl_gen.inference.reached import MOST_OBJECTS, modules_among, modules_of, of_library, reachable
from ppl_gen.inference.signatures import ByName, asks_for_index, guide_function, model_function, positional_names
from ppl_gen.networks.autoguides import check_rows

_LARGEST_BUFFER = 1_000_000  # numbers; a larger tensor is a data set, not a running statistic, and is not copied


@contextmanager
def evaluating(*functions: Any) -> Iterator[None]:
    """Context for evaluation: modules that functions can reach are in eval mode, gradients and Pyro's checks are off,
    and Pyro's parameter store is a copy. Afterwards all of this and the modules' buffers are restored. If `BadInput` is
    raised, the state of modules and objects is restored too: a module that initializes itself at its first call can
    then still do so."""
    reached = reachable(*functions)
    modules = modules_among(reached)
    restore_state, restore_buffers = _state_of(reached), _tensors_of(modules)
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

    hooks = [each.register_forward_pre_hook(refuse) for each in modules_of(*functions) if isinstance(each, AutoGuide)]
    store = pyro.get_param_store()
    try:
        with untouched(*functions, keep_built=False), store.scope(store.get_state()):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def untouched(*functions: Any, keep_built: bool = True) -> Iterator[None]:
    """Context that restores the state of all objects that functions can reach: attributes, and parameters, buffers and
    other tensors that are changed in place. A layer that initializes itself by its first batch then still does so.

    :param keep_built: leave a module as it is that has got new layers or parameters, as at a first call.
    """
    reached = reachable(*functions)
    modules = modules_among(reached)
    near = [tensor for each in reached if _has_state(each) for tensor in _own_tensors(each)]
    restore_state, restore_tensors = _state_of(reached), _tensors_of(modules, near, parameters=True)
    had = [(part, _built(part)) for part in modules if keep_built]
    try:
        yield
    finally:
        grown = [part for part, before in had if _built(part) - before]
        restore_state({id(each) for part in grown for each in (vars(part), *vars(part).values())})
        restore_tensors()


def _built(part: nn.Module) -> set[str]:
    """The names of the layers and parameters of a module."""
    return {name for held in (part._modules, part._parameters) for name, each in held.items() if each is not None}


@contextmanager
def aside(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Context in which modules work on copies of their buffers and of their attributes. Afterwards they have their own
    again. What is run twice in a step, one time aside, moves running statistics and counts once, and is the same both
    times. Graphs of the first time stay valid, since nothing is written back."""
    parts = [part for part in modules if not isinstance(part, LazyModuleMixin)]
    places: list[dict[str, Any]] = [place for part in parts for place in (vars(part), part._buffers)]
    before = [(place, {name: each for name, each in place.items() if name not in _OF_MODULES}) for place in places]
    copies: dict[int, Any] = {}  # one of a tensor that several modules share
    for place, values in before:
        moved = {name: each for name, each in values.items() if _is_moved(each)}
        place.update({name: copies.setdefault(id(each), each.clone()) for name, each in moved.items()})
    try:
        yield
    finally:
        for place, values in before:
            for name in [name for name in place if name not in values and name not in _OF_MODULES]:
                del place[name]
            built = {name for kind in ("_modules", "_parameters") for name in place.get(kind, ())}
            place.update({name: each for name, each in values.items() if name not in built})


_OF_MODULES = vars(nn.Module()).keys() - {"training"}
"""Attributes of every module, such as the dictionary of its layers."""


def _is_moved(value: Any) -> TypeGuard[Tensor]:
    """True for a tensor that may be changed in place: small, and no intermediate result that a gradient passes."""
    return type(value) in (Tensor, nn.Parameter) and not value.requires_grad and is_recorded(value)


def into_training(*roots: nn.Module, model: nn.Module | None = None) -> None:
    """Set modules to train mode, and to eval mode the parts of them with parameters of which none is trained: without
    the batch statistics and the dropout of a network that is kept as it is.

    :param model: one of these modules or a part of them, which is set to eval mode if it has no parameters, too.
    """
    for root in roots:
        root.train()
        for part in root.modules():
            parameters = list(part.parameters())
            if (parameters or part is model) and not any(each.requires_grad for each in parameters):
                part.eval()


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


def _state_of(reached: list[Any]) -> Callable[..., None]:
    """Record the attributes of modules and of a user's objects and functions, the variables of closures, and the
    dictionaries, lists and sets in these, three levels deep. Returns a function that restores them, without those of
    given ids."""
    owners = [each for each in reached if _has_state(each)]
    closures = [owner.__closure__ or () for owner in owners if isinstance(owner, FunctionType)]
    cells = [(cell, cell.cell_contents) for cells in closures for cell in cells if gc.get_referents(cell)]
    level = [content for _, content in cells]
    for owner in owners:
        with suppress(AttributeError):  # a class with slots has no __dict__
            level.append(object.__getattribute__(owner, "__dict__"))
    before: dict[int, tuple[Any, Any]] = {}
    for _ in range(3):
        level = [each for each in level if type(each) in _CONTAINERS and len(each) <= MOST_OBJECTS]
        before |= {id(container): (container, container.copy()) for container in level}
        level = [inner for container in level for inner in _items(container)]

    def restore(without: Collection[int] = ()) -> None:
        for cell, content in cells:
            cell.cell_contents = content
        for container, content in (each for key, each in before.items() if key not in without):
            # Compared by identity: `==` of tensors is no bool, and may run code of a user.
            if list(map(id, _items(container))) != list(map(id, _items(content))):
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)

    return restore


def _has_state(each: Any) -> bool:
    """True for a module and for a user's object. A lazy module is not restored, because it changes its class."""
    kind = type(each)
    if issubclass(kind, FunctionType):
        return not of_library(each.__globals__.get("__name__"))
    if issubclass(kind, nn.Module):
        return not issubclass(kind, LazyModuleMixin)
    return kind is SimpleNamespace or not (issubclass(kind, type) or of_library(kind.__module__))


def _items(container: Any) -> list[Any]:
    """Elements of a list or set; keys and values of a dictionary."""
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _own_tensors(owner: Any) -> list[Tensor]:
    """The tensors that are attributes of an object, or in the closure of a function."""
    with suppress(AttributeError):  # a class with slots has no __dict__
        held = [*object.__getattribute__(owner, "__dict__").values()]
        if isinstance(owner, FunctionType):
            held += [cell.cell_contents for cell in owner.__closure__ or () if gc.get_referents(cell)]
        return [each for each in held if type(each) is Tensor and each.is_leaf]
    return []


def _tensors_of(modules: list[nn.Module], near: Iterable[Tensor] = (), parameters: bool = False) -> Callable[[], None]:
    """Record the buffers of modules, and other tensors. Returns a function that restores those that were changed in
    place.

    :param parameters: record parameters, too.
    """
    ready = [part for part in modules if not isinstance(part, LazyModuleMixin)]
    tensors = [each for part in ready for each in part.buffers(recurse=False)]
    tensors += [each for part in ready if parameters for each in part.parameters(recurse=False)]
    return recorded((*tensors, *near))


def recorded(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Record tensors. Returns a function that restores those that were changed in place."""
    unique = {id(each): each for each in tensors}
    before = [(each, each.detach().clone()) for each in unique.values() if is_recorded(each)]

    def restore() -> None:
        with torch.no_grad():
            for tensor, content in before:
                # `_version` counts no changes under inference mode, nor those of running statistics by batch_norm.
                if not same_numbers(tensor, content):
                    tensor.copy_(content)

    return restore


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """True if two tensors of the same shape have the same numbers, NaN included."""
    if torch.equal(one, other):
        return True
    nan = one.isnan() if one.is_floating_point() or one.is_complex() else None
    return nan is not None and bool(nan.any()) and bool(((one == other) | (nan & other.isnan())).all())


def is_recorded(tensor: Tensor) -> bool:
    """True for a tensor that can be copied and restored, and is small."""
    if is_lazy(tensor):
        return False
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_inference())
    return plain and tensor.numel() <= _LARGEST_BUFFER


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
