"""Images as rows of pixels, from arrays as a file or a Python session has them. Stated rules decide which axis and
which value is what. Every decision that could be wrong is reported in `Images.notes`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ppl_gen.core.errors import BadInput

SPLITS = ("train", "validation", "test")
Arrays = dict[str, np.ndarray]
_MOST_CHANNELS = 4
_BLOCK = 2**20  # pixels that are looked at in one step


class Images(NamedTuple):
    """The images of a file by split, at least `train`."""

    shape: tuple[int, ...]
    """Shape of one image: [height, width], [channels, height, width] or [pixels]."""
    splits: Arrays
    """Pixels [N, pixels] by split: uint8 in 0..scale, or float32 in [0, 1] with scale 1."""
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

    images: Arrays
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
    images, notes, missing = arrays.images, list(arrays.notes), arrays.missing
    first = images["train"]
    for split, array in images.items():
        if not 2 <= array.ndim <= 4 or 0 in array.shape or array.dtype.kind not in "buif":
            what = f"{array.dtype} {array.shape}"
            raise BadInput(f"--data {name} [{split}]: expected numbers [images, height, width], but got {what}")
        if array.shape[1:] != first.shape[1:] or array.dtype.newbyteorder("=") != first.dtype.newbyteorder("="):
            ours, theirs = f"{array.dtype} {array.shape[1:]}", f"{first.dtype} {first.shape[1:]}"
            raise BadInput(f"--data {name}: {split} is {ours}, but train is {theirs}; make all splits alike")
    labels = {split: _labels(f"{name} [{split}]", array, len(images[split])) for split, array in arrays.labels.items()}
    if len(labels) not in (0, len(images)):
        told = ", ".join(split for split in SPLITS if split in labels)
        raise BadInput(f"--data {name}: only {told} has labels; give labels for all splits, or for none")

    if first.ndim == 4:
        _, before, _, after = first.shape
        last = after <= _MOST_CHANNELS and after < before
        if last:
            images, missing = (
                {split: np.moveaxis(array, -1, 1) for split, array in each.items()} for each in (images, missing)
            )
        channels, height, width = images["train"].shape[1:]
        if after <= _MOST_CHANNELS or before > _MOST_CHANNELS:
            axes = "height, width, channels" if last else "channels, height, width"
            notes.append(f"axes are [images, {axes}]: {channels} × {height} × {width}")
    shape = images["train"].shape[1:] if arrays.shape is None else arrays.shape
    rows, missing = (
        {split: np.ascontiguousarray(array).reshape(len(array), -1) for split, array in each.items()}
        for each in (images, missing)
    )
    known = True
    if nan:
        masks = {split: np.isnan(array) for split, array in rows.items()}
        known = not any(mask.any() for mask in masks.values())
        if known and not missing:
            raise BadInput(f"--missing nan: no pixel of {name} is NaN; give a share such as 0.5, or a file")
        rows = {split: np.where(masks[split], 0, array).astype(array.dtype) for split, array in rows.items()}
        missing = {split: mask | missing[split] if missing else mask for split, mask in masks.items()}
    rows, scale = _scaled(name, rows, largest, notes)
    return Images(shape, rows, labels, scale, notes, missing, known)


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


def _scaled(name: str, rows: Arrays, largest: int | None, notes: list[str]) -> tuple[Arrays, int]:
    """Pixels as levels 0..scale, or as real numbers in [0, 1] with scale 1.

    The largest pixel of all splits decides the value of white: 1 if it is at most 1; 255 if it is 128 to 255; for whole
    numbers up to 127, the largest pixel itself.
    """
    ranges = {split: _range(f"{name} [{split}]", array) for split, array in rows.items()}
    high, dtype = max(top for _, top in ranges.values()), rows["train"].dtype
    whole = dtype.kind in "bui" or ((largest or high) > 1 and all(map(_whole, rows.values())))
    for split, (low, top) in ranges.items():
        lies = f"--data {name} [{split}]: pixels lie in [{low:g}, {top:g}], outside [0, 1]"
        if low < 0:
            signed = "they are signed bytes: save .view(np.uint8)" if dtype == np.int8 else "scale them first"
            raise BadInput(f"{lies}; {'save (x + 1) / 2' if low >= -1 and top <= 1 else signed}")
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
    if not whole or scale > 255:
        return {split: _divided(array, scale) for split, array in rows.items()}, 1
    return {split: array.astype(np.uint8, copy=False) for split, array in rows.items()}, scale


def _range(where: str, pixels: np.ndarray) -> tuple[float, float]:
    if pixels.dtype.kind == "f" and (missing := sum(int((~np.isfinite(part)).sum()) for part in _blocks(pixels))):
        raise BadInput(f"--data {where}: {missing} pixels are not finite numbers")
    return pixels.min().item(), pixels.max().item()


def _whole(pixels: np.ndarray) -> bool:
    """True if all pixels are whole numbers."""
    return all((part == np.rint(part)).all() for part in _blocks(pixels))


def _divided(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Pixels as shares of the value of white, in float32."""
    if scale == 1:
        return pixels.astype(np.float32, copy=False)
    found = np.empty(pixels.shape, np.float32)
    for ours, theirs in zip(_blocks(found), _blocks(pixels), strict=True):
        ours[...] = theirs.astype(np.float64) / scale
    return found


def _blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """The rows, some at a time, so that what is computed of them takes little memory."""
    rows = max(1, _BLOCK // pixels.shape[1])
    return (pixels[start : start + rows] for start in range(0, len(pixels), rows))


def size_of(shape: Iterable[int]) -> str:
    """A shape in words: `28 × 28`."""
    return " × ".join(map(str, shape))
