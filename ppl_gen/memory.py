"""A habit of the C library's allocator that costs up to a third of a training step, and how to break it."""

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
