"""The tensors of a checkpoint, by name: of modules, optimizers and random number generators."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import RunDirectory


def tensors_of(modules: nn.ModuleDict) -> dict[str, Tensor]:
    """Every parameter and persistent buffer, under its first name if it has several."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in modules.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


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
    devices = [tensor.device for tensor, _ in tensors[:1] if tensor.is_cuda]
    try:
        with torch.random.fork_rng(devices), same_modes(modules):
            yield
    finally:
        with torch.no_grad():
            for tensor, before in tensors:
                if not torch.equal(tensor, before):  # unequal for NaN, which is restored, too
                    tensor.copy_(before)


def load_weights(modules: nn.ModuleDict, tensors: dict[str, Tensor], run: RunDirectory) -> None:
    """Copy weights by name into model and guide. Raises `BadInput` if they do not match the run's configuration."""
    ours = tensors_of(modules)
    for name in sorted(ours.keys() | tensors.keys()):
        if name not in tensors or name not in ours or ours[name].shape != tensors[name].shape:
            raise BadInput(f"{run.checkpoint_path}: does not match the run's config.json at '{name}'")
    for name, tensor in ours.items():
        tensor.copy_(tensors[name])


def snapshot(modules: nn.ModuleDict, optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """The tensors that the next step depends on: weights, and the states of optimizers and random number generators."""
    tensors = {f"last.{name}": tensor for name, tensor in tensors_of(modules).items()}
    for name, part in optimizers.items():
        for index, values in part.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value for key, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if next(modules.parameters()).is_cuda:
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore(
    modules: nn.ModuleDict, optimizers: dict[str, Optimizer], tensors: dict[str, Tensor], run: RunDirectory
) -> None:
    """Restore the tensors of a `snapshot`. Raises `BadInput` as `load_weights` does."""
    load_weights(modules, prefixed(tensors, "last."), run)
    for part_name, part in optimizers.items():
        content = part.state_dict()
        for name, tensor in prefixed(tensors, f"{part_name}.").items():
            index, _, key = name.partition(".")
            content["state"].setdefault(int(index), {})[key] = tensor
        part.load_state_dict(content)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and next(modules.parameters()).is_cuda:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def weights_of(tensors: dict[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of model and guide in a checkpoint, by name; empty if it has none of that kind."""
    found = prefixed(tensors, f"{checkpoint}.")
    return {name: tensor for name, tensor in found.items() if not name.startswith("objective.")}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
