"""Several processes that do one job: those that torchrun starts, or the one that there is.

Each has the whole model and a share of the images. They need a file system in common; only the first writes and
speaks. Torch's `DistributedDataParallel` wraps a module's `forward`, which a Pyro pair has not: gradients are averaged
here, once per step, in one message.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from ppl_gen.core.errors import BadInput

T = TypeVar("T")


def join() -> None:
    """Meet the other processes, if torchrun has started any.

    :raises BadInput: if there are GPUs, but not one for each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > gpus:
            raise BadInput(f"{here} processes on a machine with {gpus} GPUs; hide them with CUDA_VISIBLE_DEVICES=''")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # They may meet hours after they have parted: one of them evaluates faster, or draws pictures.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(days=30))


def leave() -> None:
    """Part from the others, when all have come here: gloo aborts where one is gone before the other has heard all."""
    if world_size() > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this one; the first is 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def shard(rows: Tensor, least: int = 1) -> Tensor:
    """This process's part of some rows, in their order: none, or at least so many, if there are so many at all."""
    parts = rows.tensor_split(min(world_size(), max(1, len(rows) // least)))
    return parts[rank()] if rank() < len(parts) else rows[:0]


def broadcast_object(value: T) -> T:
    """A picklable value of the first process, in all."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Until all have come here."""
    if world_size() > 1:
        distributed.barrier()


@contextmanager
def local_first() -> Iterator[None]:
    """Let one process of each machine do this before its others, which find what it has left on disk."""
    begins = int(os.environ.get("LOCAL_RANK", "0")) == 0 or world_size() == 1
    if not begins:
        barrier()
    try:
        yield
    finally:  # where it fails, the others are to find the same
        if begins:
            barrier()


def rank_seed(first: int) -> int:
    """Of this process's noise, given that of the first."""
    return (first + rank() * 0x2545F4914F6CDD1D) % 2**63


def all_reduce(*tensors: Tensor) -> None:
    """Replace tensors of one type and device by their sums over the processes."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def any_rank(mine: bool) -> bool:
    """Whether any process says so."""
    if world_size() == 1:
        return mine
    said: list[bool] = [False] * world_size()
    distributed.all_gather_object(said, mine)
    return any(said)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def all_gather(part: T) -> T:
    """The parts of all processes as one, in all: tensors are put one after another, also those in dictionaries and
    dataclasses; of what is no tensor, the first's. A process whose part is None has none."""
    if world_size() == 1:
        return part
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return _joined(parts)


def _joined(parts: Sequence[Any]) -> Any:
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.to(first.device) for part in parts])
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: _joined([getattr(part, f.name) for part in parts]) for f in fields(first)})
    return first
