"""How much memory is free; and a habit of the C library's allocator that costs up to a third of a training step."""

import os
from pathlib import Path

import torch

_BLOCK = 31 * 2**20


def keep_freed_memory() -> None:
    """Make glibc's malloc reuse the memory of freed arrays instead of returning it to the operating system.

    The arrays of a step, of a few MiB each, are freed and allocated anew thousands of times. By default glibc gives
    them back at every free and the kernel zeroes fresh pages at every allocation, or does not, depending on what else
    lies on the heap. Its thresholds follow the largest mapped block that was ever freed, up to 32 MiB (mallopt(3),
    M_MMAP_THRESHOLD), so freeing one of just under that size settles it. At most 62 MiB stay with the process. With
    another C library nothing changes.
    """
    block = torch.empty(_BLOCK, dtype=torch.uint8)
    del block


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be allocated: of the GPU's memory, or of the machine's and of the limit on this process's
    control group, whichever is less."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    limit = _lines("/sys/fs/cgroup/memory.max")
    if limit and limit[0].isdigit():
        used = int(_lines("/sys/fs/cgroup/memory.current")[0])
        cache = [
            int(line.split()[1]) for line in _lines("/sys/fs/cgroup/memory.stat") if line.startswith("inactive_file ")
        ]
        free.append(int(limit[0]) - used + sum(cache))
    return min(free)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
