"""Images as rows of pixels, from arrays as a file or a Python session has them. Stated rules decide which axis and
which value is what. Every decision that could be wrong is reported in `Images.notes`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import empty
from ppl_gen.data.orders import Order
from ppl_gen.data.rows import Rows, Source

SPLITS = ("train", "validation", "test")
Arrays = dict[str, np.ndarray]
_MOST_CHANNELS = 4


class Images(NamedTuple):
    """The images of a file by split, at least `train`."""

    shape: tuple[int, ...]
    """Shape of one image: [height, width], [channels, height, width] or [pixels]."""
    splits: dict[str, np.ndarray | Rows]
    """Pixels [N, pixels] by split: uint8 in 0..scale, or float32 in [0, 1] with scale 1; those of a mapped file as
    `Rows`."""
    labels: Arrays
    """Labels by split, int64 [N]: for all splits, or for none."""
    scale: int
    """Value of a white pixel."""
    notes: list[str]
    """Decisions of the rules, in words."""
    missing: Arrays = {}  # noqa: RUF012  # a default that is never changed
    """True for missing pixels, bool [N, pixels], by split: for all splits, or for none."""
    known: bool = True
    """True if `splits` has the values of missing pixels, False if it has 0 there."""


class RawArrays(NamedTuple):
    """Arrays as a file holds them, by split: axes and values are still those of the file."""

    images: Mapping[str, np.ndarray | Source]
    labels: Arrays
    notes: list[str]
    shape: tuple[int, ...] | None = None
    """Shape of one image, if the array of images is flat."""
    missing: Arrays = {}  # noqa: RUF012  # a default that is never changed
    """True for missing pixels, in the shape of the images, by split."""


def to_images(name: str, arrays: RawArrays, largest: int | None, nan: bool = False) -> Images:
    """Images as rows of grey levels or of pixels in [0, 1], with labels. Raises `BadInput` for arrays that are
    neither.

    :param nan: take pixels that are NaN as missing.
    """
    images = {split: Source.of(array) for split, array in arrays.images.items()}
    notes, missing, first = list(arrays.notes), arrays.missing, images["train"]
    for split, source in images.items():
        if not 2 <= source.ndim <= 4 or 0 in source.shape or source.dtype.kind not in "buif":
            what = f"{source.dtype} {source.shape}"
            raise BadInput(f"--data {name} [{split}]: expected numbers [images, height, width], but got {what}")
        if source.shape[1:] != first.shape[1:] or source.dtype.newbyteorder("=") != first.dtype.newbyteorder("="):
            ours, theirs = f"{source.dtype} {source.shape[1:]}", f"{first.dtype} {first.shape[1:]}"
            raise BadInput(f"--data {name}: {split} is {ours}, but train is {theirs}; make all splits alike")
    labels = {split: _labels(f"{name} [{split}]", array, len(images[split])) for split, array in arrays.labels.items()}
    if len(labels) not in (0, len(images)):
        told = ", ".join(split for split in SPLITS if split in labels)
        raise BadInput(f"--data {name}: only {told} has labels; give labels for all splits, or for none")

    shape, last = first.shape[1:], False
    if first.ndim == 4:
        _, before, _, after = first.shape
        last = after <= _MOST_CHANNELS and after < before
        shape = (after, *shape[:-1]) if last else shape
        if after <= _MOST_CHANNELS or before > _MOST_CHANNELS:
            axes = "height, width, channels" if last else "channels, height, width"
            notes.append(f"axes are [images, {axes}]: {size_of(shape)}")
    rows = {
        split: Rows(name, source, False, 1, last, nan, order=Order(len(source), None))
        for split, source in images.items()
    }
    missing = {
        split: np.ascontiguousarray(np.moveaxis(mask, -1, 1) if last else mask).reshape(len(mask), -1)
        for split, mask in missing.items()
    }
    known = True
    if nan:
        masks = {split: _masked(each) for split, each in rows.items()}
        known = not any(mask.any() for mask in masks.values())
        if known and not missing:
            raise BadInput(f"--missing nan: no pixel of {name} is NaN; give a share such as 0.5, or a file")
        missing = {split: mask | missing[split] if missing else mask for split, mask in masks.items()}
    scaled, scale = _scaled(name, rows, largest, notes)
    splits = {split: each if each.source.mapped else _in_memory(each) for split, each in scaled.items()}
    return Images(shape if arrays.shape is None else arrays.shape, splits, labels, scale, notes, missing, known)


def _labels(where: str, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.ravel()
    if labels.shape != (count,):
        raise BadInput(f"--data {where}: labels {labels.shape} for {count} images; give one integer per image")
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all() and (np.abs(labels) < 2**53).all():
        return labels.astype(np.int64)  # MATLAB's numbers are floats
    if labels.dtype.kind not in "bui" or int(labels.max()) >= 2**63:
        raise BadInput(f"--data {where}: labels must be integers, but these are {labels.dtype}")
    return labels.astype(np.int64)


def _scaled(name: str, rows: dict[str, Rows], largest: int | None, notes: list[str]) -> tuple[dict[str, Rows], int]:
    """Pixels as levels 0..scale, or as real numbers in [0, 1] with scale 1.

    The largest pixel of all splits decides the value of white: 1 if it is at most 1; 255 if it is 128 to 255; for whole
    numbers up to 127, the largest pixel itself.
    """
    ranges = {split: _range(f"{name} [{split}]", each) for split, each in rows.items()}
    high, dtype = max(top for _, top in ranges.values()), rows["train"].source.dtype
    whole = dtype.kind in "bui" or ((largest or high) > 1 and all(map(_whole, rows.values())))
    for split, (low, top) in ranges.items():
        lies = f"--data {name} [{split}]: pixels lie in [{low:g}, {top:g}], outside [0, 1]"
        if low < 0:
            signed = "they are signed bytes: save .view(np.uint8)" if dtype == np.int8 else "scale them first"
            raise BadInput(f"{lies}; {'save (x + 1) / 2' if low >= -1 and top <= 1 else signed}")
        if largest is None and whole and top > 1 and low == top:
            raise BadInput(f"--data {name} [{split}]: every pixel is {top:g}; give images that differ")
        if largest is None and (high > 255 or (1 < high < 128 and not whole) or (top > 1 and low == top)):
            raise BadInput(f"{lies}; scale them first, or give the value of white with --largest-pixel")
        if largest is not None and top > largest:
            raise BadInput(f"{lies}, and above --largest-pixel {largest}; give the value of white")
        if largest is None and 2 * top <= high and high > 0:
            other = next(each for each in ranges if ranges[each][1] == high)
            raise BadInput(
                f"--data {name}: pixels of {split} lie in [{low:g}, {top:g}], but pixels of {other} in "
                f"[{ranges[other][0]:g}, {high:g}]; scale them alike, or give the value of white with --largest-pixel"
            )
    if largest is not None and dtype.kind == "b" and largest != 1:
        raise BadInput(f"--largest-pixel {largest}: {name} holds booleans, where white is 1; leave this option out")

    scale = largest or (1 if high <= 1 else 255 if high >= 128 else int(high))
    if largest is None and scale > 1 and (dtype != np.uint8 or scale != 255):
        notes.append(
            f"{dtype.name} pixels 0…{high:g} are divided by {scale}; --largest-pixel sets another value of white"
        )
    levels = whole and scale <= 255
    found = {
        split: replace(each, levels=levels, white=scale, flat=ranges[split][0] == ranges[split][1])
        for split, each in rows.items()
    }
    return found, scale if levels else 1


def _range(where: str, rows: Rows) -> tuple[float, float]:
    """The least and the largest pixel; those that are NaN count as 0 if they are missing."""
    infinite, low, high = 0, np.inf, -np.inf
    for block in rows.source.blocks():
        part = rows.source[block]
        if part.dtype.kind == "f":
            part = np.where(np.isnan(part), 0, part) if rows.nan else part
            infinite += part.size - int(np.isfinite(part).sum())
        low, high = min(low, part.min().item()), max(high, part.max().item())
    if infinite:
        raise BadInput(f"--data {where}: {infinite} pixels are not finite numbers")
    return low, high


def _whole(rows: Rows) -> bool:
    """True if all pixels are whole numbers."""
    parts = (rows.source[block] for block in rows.source.blocks())
    return all((part == np.rint(part)).all() for part in (np.nan_to_num(part) if rows.nan else part for part in parts))


def _masked(rows: Rows) -> np.ndarray:
    """True where a pixel is NaN, bool [N, pixels]."""
    if rows.large:
        raise BadInput(f"--missing: {rows.name} has too many images for masks of missing pixels; split the file")
    mask = empty(rows.shape, torch.bool).numpy()
    for block in rows.source.blocks():
        part = rows.source[block]
        mask[block] = np.isnan(np.moveaxis(part, -1, 1) if rows.last else part).reshape(len(part), -1)
    return mask


def _in_memory(rows: Rows) -> np.ndarray:
    """The pixels of images that are in memory. Those that need no conversion are not copied."""
    source = rows.source
    if source.dtype == np.uint8 and rows.levels and not rows.last:
        return rows.converted(source[:])
    found = np.empty(rows.shape, np.uint8 if rows.levels else np.float32)
    for block in source.blocks():
        found[block] = rows.converted(source[block])
    return found


def size_of(shape: Iterable[int]) -> str:
    """A shape in words: `28 × 28`."""
    return " × ".join(map(str, shape))
