"""The tensors of a checkpoint, by name: of modules, optimizers and random number generators."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import random_states, set_random_states
from ppl_gen.experiment.options import Checkpoint


def tensors_of(modules: nn.ModuleDict) -> dict[str, Tensor]:
    """Every parameter and persistent buffer, under its first name if it has several."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in modules.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def check(found: Mapping[str, Tensor], needed: Mapping[str, Tensor], file: Path, whole: str = "") -> None:
    """Raise `BadInput` unless the tensors of a file are those that are needed: of the same names, shapes and types, and
    finite, except where the needed one is not finite either, such as a mask of -inf.

    Compiled code reads and writes as many numbers as a parameter has, whatever the file has.

    :param whole: beginning of the names in the file, for the message.
    """
    for name in sorted(found.keys() | needed.keys()):
        if name not in found or name not in needed:
            reason = "is missing" if name not in found else "belongs to nothing in this run"
        elif found[name].shape != needed[name].shape:
            reason = f"has the shape {list(found[name].shape)}, not {list(needed[name].shape)}"
        elif found[name].dtype != needed[name].dtype:
            reason = f"is of the type {found[name].dtype}, not {needed[name].dtype}"
        elif not _finite(found[name], needed[name]):
            reason = "is not finite"
        else:
            continue
        raise BadInput(f"{file}: does not match the run's config.json at '{whole}{name}', which {reason}")


def _finite(found: Tensor, needed: Tensor) -> bool:
    finite = found.isfinite()
    return bool(finite.all()) or bool((finite | ~needed.cpu().isfinite()).all())


def load_weights(modules: nn.ModuleDict, tensors: dict[str, Tensor], file: Path, whole: str) -> None:
    """Copy weights by name into model and guide. Raises `BadInput` if they do not match the run's configuration.

    :param whole: beginning of their names in the file.
    """
    ours = tensors_of(modules)
    check(tensors, ours, file, whole)
    _copy(tensors, ours)


def _copy(tensors: Mapping[str, Tensor], to: Mapping[str, Tensor]) -> None:
    for name, tensor in to.items():
        tensor.copy_(tensors[name])


def snapshot(modules: nn.ModuleDict, optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """The tensors that the next step depends on: weights, and the states of optimizers and random number generators."""
    tensors = {f"last.{name}": tensor for name, tensor in tensors_of(modules).items()}
    for name, part in optimizers.items():
        for index, values in part.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in values.items()}
    states = random_states(gpu=next(modules.parameters()).is_cuda)
    return tensors | {f"random.{device}": state for device, state in states.items()}


def restore(
    modules: nn.ModuleDict, optimizers: dict[str, Optimizer], tensors: dict[str, Tensor], file: Path, *, stepped: bool
) -> None:
    """The inverse of `snapshot`. Every tensor of the checkpoint is checked before any is used.

    :param stepped: True if the checkpoint is of weights after a step.
    :raises BadInput: for tensors that are not those of these modules and optimizers.
    """
    needed = _needed(modules, optimizers, tensors, stepped)
    check(tensors, needed, file)
    _copy(prefixed(tensors, "last."), tensors_of(modules))
    for part_name, part in optimizers.items():
        content = part.state_dict()
        for name, tensor in prefixed(tensors, f"{part_name}.").items():
            index, _, key = name.partition(".")
            content["state"].setdefault(int(index), {})[key] = tensor
        part.load_state_dict(content)
    try:
        on_gpu, states = next(modules.parameters()).is_cuda, prefixed(tensors, "random.")
        set_random_states({device: state for device, state in states.items() if device == "cpu" or on_gpu})
    except RuntimeError as error:
        raise BadInput(f"{file}: damaged at 'random': {str(error).splitlines()[0]}") from None


def _needed(
    modules: nn.ModuleDict, optimizers: dict[str, Optimizer], found: Mapping[str, Tensor], stepped: bool
) -> dict[str, Tensor]:
    """Tensors of the names, shapes and types that a checkpoint needs. Weights of a best epoch, a state of the random
    numbers of a GPU, and the states of an optimizer before its first step may be left out. So may all state of a
    parameter without a gradient."""
    ours = tensors_of(modules)
    needed = {f"last.{name}": tensor for name, tensor in ours.items()} | {"random.cpu": torch.get_rng_state()}
    if any(name.startswith("best.") for name in found):
        needed |= {f"best.{name}": tensor for name, tensor in ours.items()}
    if "random.cuda" in found:
        on_gpu = next(modules.parameters()).is_cuda
        needed["random.cuda"] = torch.cuda.get_rng_state() if on_gpu else torch.zeros(16, dtype=torch.uint8)
    for part_name, part in optimizers.items():
        there = {name.partition(".")[0] for name in prefixed(found, f"{part_name}.")}
        for index, values in _state_after_a_step(part).items():
            if str(index) in there or (stepped and not there):
                needed |= {f"{part_name}.{index}.{key}": value for key, value in values.items()}
    return needed


def _state_after_a_step(optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """The state of each parameter that an optimizer has after a step."""
    trial = copy.deepcopy(optimizer)  # with parameters of its own
    for parameter in (each for group in trial.param_groups for each in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    trial.step()
    state: dict[int, dict[str, Tensor]] = trial.state_dict()["state"]
    return state


def weights_of(tensors: dict[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of model and guide in a checkpoint, by name; empty if it has none of that kind."""
    found = prefixed(tensors, f"{checkpoint}.")
    return {name: tensor for name, tensor in found.items() if not name.startswith("objective.")}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
