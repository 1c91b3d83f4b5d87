"""Data sets, splits and binarization.

An image is a row of `data_dim` pixels in [0, 1]. A split holds all its images in one tensor on one device, or leaves
them in a mapped file (`rows.Rows`). A batch is an index into it, and binarization is one `torch.bernoulli`.

Binarization belongs to the identity of a data set (Salakhutdinov and Murray 2008; Burda et al. 2016):

- `dynamic`: x ~ Bernoulli(pixel), redrawn whenever a training image is used; validation and test images are
  drawn once with a fixed seed, the same for every run.
- `static`: one fixed-seed draw of every image.
- `threshold`: x = 1 where pixel > 0.5.
- `none`: grey values as they are. Under a Bernoulli likelihood the resulting figure is no bound on a log-probability.
- `dequantized`: a density in place of the probabilities of L grey levels: x = (level + u) / L, u uniform in [0, 1)
  (Theis et al. 2016), redrawn for training, drawn once for validation and test. x is in [0, 1]: its density is
  L^data_dim times the density of level + u.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput, require, require_choices
from ppl_gen.core.memory import LARGE_TENSOR, empty
from ppl_gen.data.options import Binarization
from ppl_gen.data.orders import Order
from ppl_gen.data.rows import Rows

_BINARY, REDRAWN = ("dynamic", "static", "threshold"), ("dynamic", "dequantized")
# Seeds of the fixed draws. They are part of the data set, not of a run: every run sees the same test images.
POOL_SEED, TEST_SEED, SHUFFLE_SEED, LABELS_SEED = 1, 2, 3, 4
_DRAWN = 10_000  # images that are looked at in one step, at most
_PIXELS = 2**25  # pixels of them, at most


@dataclass(frozen=True)
class Split:
    """Images [N, data_dim], as uint8 in 0..scale or as float32 in [0, 1], and their labels [N] if there are any."""

    images: Tensor | Rows
    labels: Tensor | None = None
    scale: int = 1
    known: Tensor | None = None
    """Labels [N] as a model and a guide are given them, -1 where they are hidden; None if none is hidden."""
    missing: Tensor | None = None
    """True for missing pixels, bool [N, data_dim]; None if no pixel is missing."""
    values_known: bool = True
    """True if `images` has the values of missing pixels too, as where they were drawn to be missing; False if they are
    0 there."""
    source_white: int | None = None
    """Value of white in the grey levels that `images` were drawn from, such as 255; None if they were not drawn."""

    @property
    def white(self) -> int:
        """Value of a white pixel, as a user gives images."""
        return self.scale if self.source_white is None else self.source_white

    @property
    def given_labels(self) -> Tensor | None:
        """Labels [N] as a model and a guide are given them."""
        return self.labels if self.known is None else self.known

    def __len__(self) -> int:
        return len(self.images)

    @property
    def large(self) -> bool:
        """True if the images lie in files of more than `rows.LARGE` pixels."""
        return isinstance(self.images, Rows) and self.images.large

    def pixels(self, index: Any = slice(None)) -> Tensor:
        """Grey values in [0, 1] of the images at `index` (a slice or an index tensor), float32 [n, data_dim]."""
        images = self.images[index]
        if self.scale == 1:
            return images.float()
        # CUDA divides by a Python number as a product with its reciprocal, which rounds otherwise. Dividing by a tensor
        # gives the same grey values on every device.
        return images / torch.full((), float(self.scale), device=images.device)

    def dequantized(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise to grey values [n, data_dim]: uniform in the interval of each pixel's level."""
        return (pixels * self.scale + torch.rand(pixels.shape, generator=generator, device=pixels.device)) / (
            self.scale + 1
        )

    def observed(self, pixels: Tensor, index: Any = slice(None)) -> Tensor:
        """Pixels [n, data_dim] of the images at `index`, with NaN where one is missing."""
        return pixels if self.missing is None else pixels.masked_fill(self.missing[index], torch.nan)

    @property
    def share_missing(self) -> float:
        """Share of the pixels that are missing."""
        return 0.0 if self.missing is None or not len(self) else int(self.missing.sum()) / self.missing.numel()

    def to(self, device: torch.device | str) -> "Split":
        others: dict[str, Any] = {
            name: None if each is None else each.to(device) for name, each in self.beside().items()
        }
        return replace(self, images=self.images.to(device), **others)

    def beside(self) -> dict[str, Any]:
        """What the split has for each image besides its pixels."""
        return {"labels": self.labels, "known": self.known, "missing": self.missing}


def hide_labels(split: Split, kept: int) -> Split:
    """Hide the labels of a split but for some images, the same number of each class, which a fixed seed chooses.

    :param kept: number of images that keep their label.
    :raises BadInput: for a split without labels or with too few images of a class, and for a number that is not a
        multiple of the number of classes.
    """
    if split.labels is None or split.labels.is_floating_point() or int(split.labels.min()) < 0:
        raise BadInput(f"--labelled {kept}: needs labels that are whole numbers from 0")
    classes, counts = split.labels.unique(return_counts=True)
    each, rest = divmod(kept, len(classes))
    most = int(counts.min())
    rule = f"must be a multiple of the {len(classes)} classes, with at most {most} images of each"
    require(rest == 0 and each <= most, "labelled", kept, rule)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(LABELS_SEED))
    known = torch.full_like(split.labels, -1)
    for label in classes:
        rows = order[split.labels[order] == label][:each]
        known[rows] = label
    return replace(split, known=known)


@dataclass(frozen=True, repr=False)
class Data:
    """A data set in three splits, binarized. `validation` may be empty."""

    name: str
    shape: tuple[int, ...]
    binarization: Binarization
    train: Split
    validation: Split
    test: Split
    notice: str = field(default="", compare=False)
    """Notice for the user: the data set that `auto` stands for and why, or the decisions made while reading a file."""
    sha256: str | None = field(default=None, compare=False)
    """Fingerprint of images that were passed from Python."""

    def __repr__(self) -> str:
        counts = " / ".join(str(len(split)) for split in (self.train, self.validation, self.test))
        size = " × ".join(map(str, self.shape))
        return f"Data({self.name}: {counts} images of {size} pixels, {self.binarization}{self.incomplete})"

    def __post_init__(self) -> None:
        """Binarize, or dequantize, splits that are still grey. Splits from `load_data` are left as they are.

        :raises BadInput: for images of another shape, and for pixels outside [0, 1] if they are probabilities.
        """
        require_choices(self)
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if split.images.shape[1:] != (self.dim,):
                what = f"images {list(split.images.shape)} of {name}, but shape {self.shape} needs [N, {self.dim}]"
                raise BadInput(f"data {self.name}: {what}")
            if split.missing is not None and split.missing.shape != split.images.shape:
                what = f"{list(split.missing.shape)} of {name}, but its images are {list(split.images.shape)}"
                raise BadInput(f"data {self.name}: missing is {what}")
            if self.binarization in _BINARY and not _in_range(split):
                raise BadInput(f"data {self.name}: pixels of {name} lie outside [0, {split.scale}]")
        if self.binarization == "dequantized" and self.train.scale == 1:
            raise BadInput(f"data {self.name}: dequantized needs grey levels, but its scale is 1")
        fixed = [self.validation] if self.binarization in REDRAWN else [self.train, self.validation]
        if not all(_is_fixed(split, self.binarization) for split in fixed):
            pool, count = (
                with_fixed_draw(join(self.train, self.validation), self.binarization, POOL_SEED),
                len(self.train),
            )
            object.__setattr__(self, "validation", cut(pool, count, len(pool)))
            if self.binarization not in REDRAWN:
                object.__setattr__(self, "train", cut(pool, 0, count))
        if not _is_fixed(self.test, self.binarization):
            object.__setattr__(self, "test", with_fixed_draw(self.test, self.binarization, TEST_SEED))

    @property
    def dim(self) -> int:
        """Pixels per image."""
        return int(np.prod(self.shape))

    @property
    def levels(self) -> int | None:
        """Number of levels of a pixel, such as 256; None for pixels that are made binary or noisy, and for real
        numbers."""
        whole = self.binarization == "none" and not self.train.images.dtype.is_floating_point
        return self.train.scale + 1 if whole else None

    def split(self, name: str) -> Split:
        """The split of that name. Raises `BadInput` if it holds no image."""
        split = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if len(split) == 0:
            raise BadInput(f"--split {name}: training took all images of {self.name}; choose another split")
        return split

    def batch(self, index: Tensor) -> Tensor:
        """Training targets float32 [n, data_dim] at `index`, with NaN where a pixel is missing. For `dynamic` and
        `dequantized`, they are drawn anew from torch's generator."""
        pixels = self.train.pixels(index)
        if self.binarization == "dynamic":
            pixels = torch.bernoulli(pixels)
        elif self.binarization == "dequantized":
            pixels = self.train.dequantized(pixels)
        return self.train.observed(pixels, index)

    def targets(self, name: str, index: Any = slice(None)) -> Tensor:
        """Fixed targets float32 [n, data_dim] of a split, for evaluation, with NaN where a pixel is missing. The
        training split of `dynamic` and `dequantized` data has one fixed draw for this purpose too."""
        return self.split(name).observed(self.complete(name, index), index)

    def complete(self, name: str, index: Any = slice(None)) -> Tensor:
        """As `targets`, with the values of missing pixels; with 0 there if they are not known."""
        split = self.split(name)
        rows = torch.arange(*index.indices(len(split))) if isinstance(index, slice) else index.cpu()
        if name == "train" and self.binarization in REDRAWN:
            if not split.large:
                split = cut(split, 0, int(rows.max()) + 1 if len(rows) else 0)
            split = with_fixed_draw(split, self.binarization, POOL_SEED)
        small = 4 * len(rows) * self.dim <= LARGE_TENSOR or split.images.device.type != "cpu"
        if isinstance(split.images, Tensor) and small:
            pixels = split.pixels(index)
            shared = pixels.untyped_storage().data_ptr() == split.images.untyped_storage().data_ptr()
            return pixels.clone() if shared else pixels  # the caller's own, to change as it likes
        pixels = empty((len(rows), self.dim), torch.float32)
        for block in _blocks(len(rows), self.dim):
            pixels[block] = split.pixels(rows[block]).cpu()
        return pixels.to(split.images.device)

    def examples(self, seed: int, count: int = 2000) -> Tensor:
        """Grey values [at most count, data_dim] of training images chosen at random. A missing pixel has the mean of
        the images that it is observed in."""
        generator = torch.Generator().manual_seed(seed)
        order = (
            Order(len(self.train), seed) if self.train.large else torch.randperm(len(self.train), generator=generator)
        )
        index = order[:count].to(self.train.images.device)
        pixels = self.train.observed(self.train.pixels(index), index)
        return pixels if self.train.missing is None else torch.where(pixels.isnan(), self.mean(), pixels)

    @property
    def _looked_at(self) -> Split:
        """The training images; of large data, those that are looked at before training."""
        train = self.train
        if isinstance(train.images, Rows) and train.large:
            train = replace(train, images=train.images.looked_at())
        return train

    def mean(self) -> Tensor:
        """Mean observed training pixel [data_dim] in float32, with half an observation added so that it is inside
        (0, 1). Of large data, it is that of the images that are looked at before training."""
        train = self._looked_at
        total = torch.zeros(self.dim, dtype=torch.float64, device=train.images.device)
        missing = torch.zeros_like(total)
        for block in _blocks(len(train), self.dim):
            pixels = train.pixels(block)
            if train.missing is not None:
                pixels = pixels.masked_fill(train.missing[block], 0.0)
                missing += train.missing[block].sum(0)
            total += pixels.double().sum(0)
        return ((total + 0.5) / (len(train) - missing + 1)).float()

    def level_frequencies(self) -> Tensor:
        """Frequencies [levels, data_dim] of the levels of each training pixel among the images in which it is observed,
        in float64, with one observation added, a part of it to each level. Of large data, as `mean`."""
        assert self.levels is not None
        train = self._looked_at
        counts = torch.zeros(self.levels, self.dim, dtype=torch.float64, device=train.images.device)
        for block in _blocks(len(train), self.dim):
            level = (train.pixels(block) * (self.levels - 1)).round().long()
            there = torch.ones_like(level) if train.missing is None else (~train.missing[block]).long()
            counts.scatter_add_(0, level * there, there.double())
        return (counts + 1 / self.levels) / (counts.sum(0) + 1)

    def ever_observed(self) -> Tensor:
        """True for each pixel that some training image has, bool [data_dim]."""
        seen = torch.ones(self.dim, dtype=torch.bool, device=self.train.images.device)
        if self.train.missing is not None:
            blocks = _blocks(len(self.train), self.dim)
            seen = torch.stack([~self.train.missing[block].all(0) for block in blocks]).any(0)
        return seen

    @property
    def incomplete(self) -> str:
        """The share of missing training pixels in words, after a comma; empty if no pixel is missing."""
        return "" if self.train.missing is None else f", {self.train.share_missing:.1%} of the pixels missing"

    def to(self, device: torch.device | str) -> "Data":
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


def cut(split: Split, start: int, stop: int) -> Split:
    """The images from `start` up to `stop`, with their labels."""
    return select(split, slice(start, stop))


def select(split: Split, index: Any) -> Split:
    """The images at `index` (a slice, an index tensor or an `Order`), with their labels and missing pixels."""
    beside = {name: each for name, each in split.beside().items() if each is not None}
    numbers = index[:] if isinstance(index, Order) and (beside or isinstance(split.images, Tensor)) else index
    images = split.images.at(index) if isinstance(split.images, Rows) else split.images[numbers]
    return replace(split, images=images, **{name: each[numbers] for name, each in beside.items()})


def labelled_among_others(split: Split) -> Tensor | None:
    """Rows of the images whose label is known, on the CPU; None if those of no others are hidden, or of all."""
    if split.known is None:
        return None
    rows = (split.known >= 0).nonzero().flatten().cpu()
    return rows if 0 < len(rows) < len(split) else None


def join(first: Split, second: Split) -> Split:
    """The images of both splits, with labels if both have them. Splits of different scales become grey values."""
    others: dict[str, Any] = {"values_known": first.values_known and second.values_known}
    if first.labels is not None and second.labels is not None:
        others["labels"] = torch.cat([first.labels, second.labels])
    if first.missing is not None or second.missing is not None:
        masks = (
            torch.zeros(s.images.shape, dtype=torch.bool) if s.missing is None else s.missing for s in (first, second)
        )
        others["missing"] = torch.cat(list(masks))
    if first.scale == second.scale:
        return Split(torch.cat([first.images[:], second.images[:]]), scale=first.scale, **others)
    return Split(torch.cat([first.pixels(), second.pixels()]), **others)


def _in_range(split: Split) -> bool:
    if isinstance(split.images, Rows):  # which have been looked at, or are when they are read
        return True
    return len(split) == 0 or bool((split.images.min() >= 0) & (split.images.max() <= split.scale))


def _is_fixed(split: Split, binarization: Binarization) -> bool:
    """True if a split holds targets; False if it holds grey values to draw them from."""
    if binarization not in _BINARY:
        return binarization == "none" or split.scale == 1
    images = split.images
    if isinstance(images, Rows) or not images.is_floating_point():
        return split.scale == 1 and not images.dtype.is_floating_point
    return split.scale == 1 and bool(((images == 0) | (images == 1)).all())


def with_fixed_draw(split: Split, binarization: Binarization, seed: int, first: int = 0) -> Split:
    """The images of a split from `first` on, with fixed targets in place of grey values, by a binarization.

    The targets are drawn on the CPU, so that all devices give the same. Those of large data are drawn where they are
    used.
    """
    if binarization == "none":
        return cut(split, first, len(split))
    if isinstance(split.images, Rows) and split.large:
        images = replace(split.images, drawn=(binarization, seed))
        return cut(replace(split, images=images, scale=1, source_white=split.white), first, len(split))
    generator = torch.Generator().manual_seed(seed)
    if binarization in ("dynamic", "static"):
        return _in_blocks(split, torch.uint8, lambda pixels: torch.bernoulli(pixels, generator=generator), first)
    if binarization == "dequantized":
        return _in_blocks(split, torch.float32, lambda pixels: split.dequantized(pixels, generator), first)
    return _in_blocks(split, torch.uint8, lambda pixels: pixels > 0.5, first)


def _in_blocks(split: Split, dtype: torch.dtype, change: Callable[[Tensor], Tensor], first: int) -> Split:
    """The images of a split from `first` on, with changed grey values. They are changed some images at a time, on the
    CPU, so that grey values of all images are never in memory. Random draws are one after the other, from the first
    image of the split: the size of a block does not change them."""
    count, dim = split.images.shape
    images = empty((count - first, dim), dtype)
    for block in _blocks(count, dim):
        changed = change(split.pixels(block).cpu())[max(0, first - block.start) :]
        stop = max(0, block.stop - first)
        images[stop - len(changed) : stop] = changed
    images = images.to(split.images.device)
    return replace(cut(split, first, count), images=images, scale=1, source_white=split.white)


def _blocks(count: int, dim: int) -> Iterator[slice]:
    """All of `count` images, some at a time."""
    size = max(1, min(_DRAWN, _PIXELS // max(1, dim)))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
