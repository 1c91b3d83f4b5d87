"""Free memory, a limit for commands, a setting of the C library's allocator that saves up to a third of a training
step, and a faster import of torch."""

import gc
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGE_TENSOR = 2**26
"""Bytes above which `empty` makes a tensor in a temporary file."""
MANY_IMAGES = 2**20
"""Images above which it does so for a tensor of any size, and above which an evaluation is written in blocks."""
_BLOCK = 31 * 2**20
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def keep_freed_memory() -> None:
    """Make glibc's malloc reuse the memory of freed arrays instead of returning it to the operating system.

    Arrays of a few MiB are freed and allocated anew in every step. By default glibc may return each of them to the
    kernel, which then zeroes fresh pages at the next allocation. glibc raises its threshold for that to the largest
    mapped block that was ever freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). Freeing one block of just under
    32 MiB therefore sets the threshold. At most 62 MiB stay with the process. With another C library nothing changes.
    """
    import torch

    block = torch.empty(_BLOCK, dtype=torch.uint8)
    del block


def import_torch() -> None:
    """Import torch and Pyro, if this process has not yet done so.

    They make 200,000 objects that stay. The garbage collector looks through these in vain: while they are made, and
    several times when the process ends. That is a third of the time of a process that has nothing else to do. Here the
    collector waits, and leaves them out from then on.
    """
    if "torch" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        import pyro  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()


def empty(shape: Sequence[int], dtype: "torch.dtype") -> "torch.Tensor":
    """A tensor on the CPU, whose content is not yet set. A large one lies in a temporary file without a name, which the
    system writes out when memory is needed and removes when the tensor is gone. If there is no room for the file, the
    tensor lies in memory.

    >>> import torch
    >>> empty((2, 3), torch.float32).shape
    torch.Size([2, 3])

    :param shape: its shape, the images along the first axis.
    """
    import numpy as np
    import torch

    size = math.prod(shape) * dtype.itemsize
    if (size > LARGE_TENSOR or shape[0] > MANY_IMAGES) and hasattr(os, "posix_fallocate"):
        with suppress(OSError), tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # else a full disk would end the process at a later write
            return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(dtype).view(*shape)
    return torch.empty(tuple(shape), dtype=dtype)


def free_memory(device: "torch.device | str" = "cpu") -> int:
    """Bytes that can still be allocated: on a GPU, its free memory; else the smaller of the machine's available memory
    and the room under the limit of this process's control group."""
    if str(device) != "cpu":
        import torch

        if torch.device(device).type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    limit = _lines("/sys/fs/cgroup/memory.max")
    if limit and limit[0].isdigit():
        # Cached file pages count as used, but the kernel drops them when memory is needed.
        used = int(_lines("/sys/fs/cgroup/memory.current")[0])
        cache = [
            int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file ")
        ]
        free.append(int(limit[0]) - used + sum(cache))
    return min(free)


@contextmanager
def limited_memory() -> Iterator[None]:
    """Context in which an allocation fails if free memory, swap included, does not suffice for it. Without a limit,
    Linux grants it, and ends this or another process when the memory is used. There is no limit on other systems, nor
    with a GPU, whose driver reserves addresses without memory."""
    held = [int(line.split()[1]) for line in _lines("/proc/self/status") if line.startswith("VmData:")]
    if not held or any(Path(device).exists() for device in _GPUS):
        yield
        return
    import resource  # not on Windows

    swap = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("SwapFree:")]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [free_memory() + 1024 * (held[0] + sum(swap)), *(each for each in (soft, hard) if each >= 0)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error that says that memory does not suffice. torch has none of its own for that on a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Unable to allocate")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error.args[:1]) for each in words)
    )


def _lines(path: str) -> list[str]:
    """The lines of a file; none if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
