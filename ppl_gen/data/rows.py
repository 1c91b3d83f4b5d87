"""Images that stay on the disk: a file is mapped, and its images are read and converted where they are used.

Nothing of a mapped file is copied whole. The operating system keeps the parts in memory that were read last, as far as
there is room.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import free_memory
from ppl_gen.data.options import Binarization
from ppl_gen.data.orders import Order, uniform

LARGE = 2**30
"""Pixels of a mapped data set above which it is large: its order and its draws are computed image by image, and a part
of it is looked at before training. An image counts as 128 pixels or more."""
MAPPED = 2**26
"""Bytes above which a file is mapped. A smaller one is read into memory."""
SAMPLED = 2**26
"""Pixels of a large data set that are looked at before training, and pixels of a split that is cut off from one."""
_FEWEST_PIXELS = 128
_PIECES = 256  # of a large data set, evenly spread, that are looked at
_BLOCK = 2**20  # pixels that are looked at in one step


def is_large(shape: Sequence[int]) -> bool:
    """True if mapped images of a shape [N, …] are a large data set.

    >>> is_large((60_000, 28, 28)), is_large((2_000_000, 28, 28))
    (False, True)
    """
    return shape[0] * max(_FEWEST_PIXELS, math.prod(shape[1:])) > LARGE


@dataclass(frozen=True, eq=False)
class Source:
    """Images [N, …] as arrays or mapped files hold them, one array after the other.

    >>> source = Source((np.zeros((3, 2)), np.ones((4, 2))))
    >>> source.shape, source[np.array([1, 5])].tolist()
    ((7, 2), [[0.0, 0.0], [1.0, 1.0]])
    """

    parts: tuple[np.ndarray, ...]
    """Arrays whose images have one shape and one type."""
    mapped: bool = False
    """True if they are mapped files."""

    @classmethod
    def of(cls, array: "np.ndarray | Source") -> "Source":
        """The images of one array, which may be a mapped file."""
        return array if isinstance(array, Source) else cls((np.asarray(array),), isinstance(array, np.memmap))

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self._ends[-1]), *self.parts[0].shape[1:]) if self.ndim else ()

    @property
    def ndim(self) -> int:
        return self.parts[0].ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.parts[0].dtype

    @property
    def large(self) -> bool:
        """True if a part of the images is looked at before training, not all."""
        return self.mapped and is_large(self.shape)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """The images at an index: those of a slice of one array without a copy."""
        if len(self.parts) == 1:
            found: np.ndarray = self.parts[0][index]
            return found
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        which = np.searchsorted(self._ends, index, "right")
        for part in np.unique(which):
            there, images = which == part, self.parts[part]
            found[there] = images[index[there] - (self._ends[part] - len(images))]
        return found

    def blocks(self) -> Iterator[slice]:
        """All images, some at a time; of a large data set, pieces that are evenly spread, the first and the last among
        them."""
        size = max(1, _BLOCK // max(1, math.prod(self.shape[1:])))
        starts: Any = range(0, len(self), size)
        if self.large:
            size = max(1, SAMPLED // _PIECES // math.prod(self.shape[1:]))
            starts = np.linspace(0, len(self) - size, _PIECES).astype(int).tolist()
        return (slice(start, start + size) for start in starts)


@dataclass(frozen=True, eq=False)
class Rows:
    """Images of a source as a split has them: `rows[index]` are rows of pixels [n, data_dim], uint8 in 0..scale or
    float32 in [0, 1]. They are read and converted at that moment."""

    name: str
    """Name of the data set, for messages."""
    source: Source
    levels: bool
    """True for uint8 in 0..white; False for float32, divided by `white`."""
    white: int
    """Value of a white pixel in the source."""
    last: bool = False
    """True if the source has the channels along the last axis."""
    nan: bool = False
    """True if pixels that are NaN become 0."""
    flat: bool = False
    """True if all pixels are the same."""
    order: Tensor | Order = field(default_factory=lambda: Order(0, None))
    """Numbers of the images in the source."""
    drawn: tuple[Binarization, int] | None = None
    """Binarization and seed of targets that are drawn from the grey values, with a random number for each pixel."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the rows are put that are read."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def dim(self) -> int:
        """Pixels per image."""
        return math.prod(self.source.shape[1:])

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), self.dim))

    @property
    def dtype(self) -> torch.dtype:
        binary = self.levels if self.drawn is None else self.drawn[0] != "dequantized"
        return torch.uint8 if binary else torch.float32

    @property
    def large(self) -> bool:
        """True if the data set is large."""
        return self.source.large

    def __getitem__(self, index: Any) -> Tensor:
        """The images at `index` (a slice or an index tensor)."""
        numbers = self.order[index.cpu() if isinstance(index, Tensor) else index].numpy()
        whole = torch.from_numpy(self.converted(self.source[numbers], check=self.large))
        return (whole if self.drawn is None else self._draw(whole, numbers)).to(self.device)

    def at(self, index: Any) -> "Rows":
        """The images at `index` (a slice, an index tensor or an `Order`), still on the disk."""
        if isinstance(index, slice) and isinstance(self.order, Order):
            return replace(self, order=self.order.cut(*index.indices(len(self))[:2]))
        if isinstance(index, Order):
            identity = isinstance(self.order, Order) and self.order == Order(len(self), None)
            return replace(self, order=index if identity else self.order[index[:]])
        return replace(self, order=self.order[index.cpu() if isinstance(index, Tensor) else index])

    def looked_at(self) -> "Rows":
        """The images of the source that are looked at before training, in its own order."""
        blocks = [torch.arange(block.start, min(block.stop, len(self.source))) for block in self.source.blocks()]
        return replace(self, order=torch.cat(blocks))

    def to(self, device: torch.device | str) -> "Rows | Tensor":
        """The images on a device: read into the memory of a GPU if they take at most half of what is free there, else
        moved there batch by batch."""
        device = torch.device(device)
        moved = replace(self, device=device)
        size = self.dtype.itemsize * math.prod(self.shape)
        if device.type == "cpu" or size > free_memory(device) // 2:
            return moved
        whole, step = torch.empty(self.shape, dtype=self.dtype, device=device), max(1, _BLOCK // self.dim)
        for start in range(0, len(self), step):
            whole[start : start + step] = moved[start : start + step]
        return whole

    def converted(self, images: np.ndarray, check: bool = False) -> np.ndarray:
        """Images of the source as rows of pixels, before they are drawn.

        :param check: raise `BadInput` for pixels that are not of the kind that was seen before training.
        """
        if self.last:
            images = np.moveaxis(images, -1, 1)
        rows = np.ascontiguousarray(images).reshape(len(images), -1)
        if self.nan:
            rows = np.where(np.isnan(rows), 0, rows).astype(rows.dtype)
        if check and not _fits(rows, self.white, self.levels):
            kind = "whole numbers" if self.levels else "numbers"
            raise BadInput(
                f"--data {self.name}: an image has pixels that are no {kind} in 0…{self.white}, unlike those that were "
                "looked at before training; give the value of white with --largest-pixel, or mend the file"
            )
        if self.levels:
            return rows.astype(np.uint8, copy=False)
        if self.white == 1:
            return rows.astype(np.float32, copy=False)
        return (rows.astype(np.float64) / self.white).astype(np.float32)

    def _draw(self, whole: Tensor, numbers: np.ndarray) -> Tensor:
        """Fixed targets, which depend on the seed, the number of the image in the source, and the pixel."""
        assert self.drawn is not None
        binarization, seed = self.drawn
        scale = self.white if self.levels else 1
        pixels = whole.float() if scale == 1 else whole / torch.full((), float(scale))
        if binarization == "threshold":
            return (pixels > 0.5).to(torch.uint8)
        first = numbers.astype(np.uint64)[:, None] * np.uint64(self.dim)
        noise = torch.from_numpy(uniform(first + np.arange(self.dim, dtype=np.uint64), seed))
        if binarization == "dequantized":
            return (pixels * scale + noise) / (scale + 1)
        return (noise < pixels).to(torch.uint8)


def _fits(rows: np.ndarray, white: int, levels: bool) -> bool:
    """True if all pixels lie in 0..white and, for levels, are whole numbers."""
    if rows.dtype == np.uint8 and white == 255:
        return True
    fits = bool(((rows >= 0) & (rows <= white)).all())  # False for NaN
    return fits and (not levels or rows.dtype.kind != "f" or bool((rows == np.rint(rows)).all()))
