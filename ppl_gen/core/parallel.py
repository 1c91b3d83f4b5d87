"""Processes that share the work of one command: those that torchrun has started, or a single one.

Each process holds the whole model and a shard of the images. They need a common file system; only the first (rank 0)
writes files and prints. Torch's `DistributedDataParallel` wraps the `forward` of a module, which a Pyro pair does not
have. Therefore gradients are averaged here, once per step, in one message.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from ppl_gen.core import launch
from ppl_gen.core.errors import BadInput, describe

T = TypeVar("T")


def join() -> None:
    """Join the process group, if torchrun has started several processes.

    :raises BadInput: if there are GPUs, but fewer than processes; and for an environment that torchrun does not make.
    """
    if launch.world_size() == 1 or distributed.is_initialized():
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        here, gpus = launch.number("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
        if here > gpus:
            raise BadInput(
                f"{here} processes on a machine with {gpus} GPUs: each process needs one; start {gpus} processes, or "
                "hide the GPUs with CUDA_VISIBLE_DEVICES=''"
            )
        torch.cuda.set_device(launch.local_rank())
    launch.check()
    # The default timeout is too short: one process may draw pictures for hours while the others wait at a barrier.
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(days=30))
    except (RuntimeError, ValueError) as error:
        raise BadInput(f"torchrun: the processes cannot meet: {describe(error)}") from None


def leave() -> None:
    """Leave the process group, after a barrier: gloo aborts if a process ends before another has received its
    messages."""
    if world_size() > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def shard(rows: Tensor, least: int = 1) -> Tensor:
    """This process's part of the rows, in their order.

    :param least: fewest rows of a part: fewer processes share the rows if they are few, and the others get none.
    """
    return shards(rows, world_size(), least)[rank()]


def shards(rows: Tensor, processes: int, least: int = 1) -> list[Tensor]:
    """The parts of all processes, as `shard` has one."""
    parts = rows.tensor_split(min(processes, max(1, len(rows) // least)))
    return [*parts, *[rows[:0]] * (processes - len(parts))]


def broadcast_object(value: T) -> T:
    """Send a picklable value of the first process to all, and return it."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Wait until all processes have called this."""
    if world_size() > 1:
        distributed.barrier()


@contextmanager
def local_first() -> Iterator[None]:
    """Run a block in one process of each machine first, such as a download, and then in the others, which find its
    files."""
    begins = world_size() == 1 or launch.local_rank() == 0
    if not begins:
        barrier()
    try:
        yield
    finally:  # after a failure too, so that the others do not wait forever
        if begins:
            barrier()


def rank_seed(first: int) -> int:
    """Seed of this process's noise, from the seed of the first process."""
    return (first + rank() * 0x2545F4914F6CDD1D) % 2**63


def all_reduce(*tensors: Tensor) -> None:
    """Replace tensors of one dtype and device by their sums over the processes."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def any_rank(mine: bool) -> bool:
    """True in all processes if `mine` is true in any."""
    if world_size() == 1:
        return mine
    flags: list[bool] = [False] * world_size()
    distributed.all_gather_object(flags, mine)
    return any(flags)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by the first process's."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def all_gather(part: T) -> T:
    """Gather the parts of all processes, join them, and return the whole in every process.

    Tensors are concatenated, also in dictionaries and dataclasses. Any other value is the first process's. A process
    without a part gives None.
    """
    if world_size() == 1:
        return part
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return joined(parts)


def joined(parts: Sequence[Any]) -> Any:
    """The whole that is divided into parts, as `all_gather` returns it."""
    parts = [part for part in parts if part is not None]
    if not parts:
        return None
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.to(first.device) for part in parts])
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: joined([getattr(part, f.name) for part in parts]) for f in fields(first)})
    return first
