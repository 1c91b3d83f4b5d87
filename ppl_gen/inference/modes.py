"""Contexts that a user's functions run in, and what of their state is restored afterwards.

Modules, objects and closures are those that functions can reach (`ppl_gen.inference.reached`).

`evaluating`: modes, buffers and Pyro's parameter store; everything, if the functions are refused.
`reading`: everything, and the parameter store.
`untouched`: everything, but what is built at a first call stays, if asked for.
`aside`: buffers and attributes, which are copies meanwhile, so that graphs stay valid.
`unchanged`: parameters, buffers, modes and torch's generators of modules, large tensors included.
`same_modes`: modes alone.
`frozen`: which parameters require a gradient.
`forked_rng`, `matmul_precision`: torch's generators; its precision.
"""

import gc
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FunctionType, SimpleNamespace
from typing import Any, TypeGuard

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from ppl_gen.core.errors import BadInput
from ppl_gen.data.rows import Rows
from ppl_gen.inference.reached import MOST_OBJECTS, modules_among, modules_of, of_library, reachable

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
    return type(value) in (Tensor, nn.Parameter) and not value.requires_grad and can_restore(value)


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
def same_modes(modules: nn.Module) -> Iterator[None]:
    """Restore the training mode of every module when the block ends."""
    modes = [(part, part.training) for part in modules.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def unchanged(modules: nn.Module) -> Iterator[None]:
    """Restore parameters, buffers, training mode and random number generators when the block ends."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*modules.parameters(), *modules.buffers())]
    buffers = [(part._buffers, dict(part._buffers)) for part in modules.modules()]
    devices = [tensor.device for tensor, _ in tensors[:1] if tensor.is_cuda]
    try:
        with torch.random.fork_rng(devices), same_modes(modules):
            yield
    finally:
        for place, held in buffers:  # one may have been replaced
            place.update(held)
        with torch.no_grad():
            for tensor, before in tensors:
                if not torch.equal(tensor, before):  # unequal for NaN, which is restored, too
                    tensor.copy_(before)


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
    return snapshot((*tensors, *near))


def snapshot(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Record tensors. Returns a function that restores those that were changed in place."""
    unique = {id(each): each for each in tensors}
    before = [(each, each.detach().clone()) for each in unique.values() if can_restore(each)]

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


def can_restore(tensor: Tensor) -> bool:
    """True for a tensor that can be copied and restored, and is small."""
    if is_lazy(tensor):
        return False
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_inference())
    return plain and tensor.numel() <= _LARGEST_BUFFER
