"""Headers of arrays in files: shape, type, and the place where the numbers begin. This module imports no torch."""

import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import free_memory

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Types of numbers of an IDX file, by the third byte of the file."""


class Layout(NamedTuple):
    """An array whose numbers lie in a file one after the other, the images along the first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first number."""

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(path: Path) -> Layout | None:
    """The layout of the array in an .npy or IDX file. None for any other file: compressed, damaged, in Fortran's order,
    or of something else than numbers."""
    try:
        with open(path, "rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                file.seek(0)
                shape, fortran, dtype = _npy_header(file)
            else:
                file.seek(0)
                (shape, dtype), fortran = idx_header(file), False
            found = Layout(shape, dtype, file.tell())
    except (ValueError, OSError, EOFError):
        return None
    plain = dtype.kind in "buif" and not fortran and len(shape) > 0 and min(shape) > 0
    return found if plain else None


def mapped(path: Path, found: Layout, random: bool = False) -> np.ndarray:
    """The array in a file, mapped for reading.

    :param random: tell the system that images are read in random order, so that it reads none beside them.
    :raises ValueError: for a file that is too short.
    """
    there = path.stat().st_size - found.offset
    if there < found.size:
        raise ValueError(f"{path.name} holds {there:,} bytes of numbers, but {found.shape} needs {found.size:,}")
    array = np.memmap(path, found.dtype, "r", found.offset, found.shape)
    if random and hasattr(mmap, "MADV_RANDOM"):
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # NumPy has no other way to it
    return array


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an .npy file. Raises `ValueError` for anything else."""
    shape, _, dtype = _npy_header(file)
    return shape, dtype


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version > (2, 0):  # a later one is for structured arrays alone
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not for arrays of numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    return found


def idx_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an IDX file. Raises `ValueError` for anything else."""
    start = file.read(4)
    if not is_idx(start):
        raise ValueError("does not begin like an IDX file")
    header = file.read(4 * start[3])
    if len(header) < 4 * start[3]:
        raise ValueError("ends within its header")
    return tuple(np.frombuffer(header, ">u4").tolist()), np.dtype(IDX_TYPES[start[2]])


def is_idx(start: bytes) -> bool:
    """True for the first four bytes of an IDX file."""
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in IDX_TYPES and 1 <= start[3] <= 4


def require_memory(where: str, shape: Sequence[int], itemsize: int) -> None:
    """Raise `BadInput` if an array, and two copies of it as pixels, do not fit into memory."""
    if min(shape, default=0) < 0:
        raise ValueError(f"the shape {tuple(shape)} is negative")
    size = math.prod(map(int, shape)) * (itemsize + 2 * min(itemsize, 4))
    require_free(f"--data {where}: an array {tuple(shape)}", size)


def require_free(what: str, size: int) -> None:
    """Raise `BadInput` if there is less free memory than a number of bytes.

    :param what: what needs the memory, for the message.
    """
    if size > (free := free_memory()):
        raise BadInput(f"{what} needs {size / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} GiB are free")
