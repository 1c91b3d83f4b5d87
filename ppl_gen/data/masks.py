"""Masks of missing pixels: drawn at random, or read from a file. True is a missing pixel.

A mask belongs to the identity of a data set, as its binarization does: it is drawn once with a fixed seed, the same for
every run, so that runs of several seeds, guides and objectives miss the same pixels.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput, words_of
from ppl_gen.core.memory import empty
from ppl_gen.core.paths import check_readable, is_file, reading
from ppl_gen.data.pixels import SPLITS, Arrays

_ROWS = 10_000  # images that are drawn for in one step


def drawn(count: int, dim: int, share: float, seed: int) -> Tensor:
    """A mask [count, dim] of pixels that are missing completely at random, each with the same probability.

    :param share: the probability.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = empty((count, dim), torch.bool)
    for part in mask.split(_ROWS):
        part.copy_(torch.rand(part.shape, generator=generator) < share)
    return mask


def read(name: str, shape: tuple[int, ...], counts: Mapping[str, int]) -> Arrays:
    """The masks in a file, bool [images, pixels], by split.

    :param name: `.npy`, with one mask for every image or a mask for each; or `.npz`, with arrays by split.
    :param shape: shape of an image.
    :param counts: number of images by split.
    :raises BadInput: for a file that has no masks of these images.
    """
    option = f"--missing {name}"
    if not name.endswith((".npy", ".npz")):
        raise BadInput(f"{option}: give a share such as 0.5, a file FILE.npy or FILE.npz, or nan")
    if not is_file(name, "--missing"):
        raise BadInput(f"{option}: no such file")
    check_readable(name, "--missing")
    try:
        with open(name, "rb") as file:
            content = np.load(file, allow_pickle=False)
            found = {"train": content} if isinstance(content, np.ndarray) else {each: content[each] for each in content}
    except Exception as error:  # EOF, value, zip and pickle errors all mean a bad file
        raise BadInput(f"{option}: truncated, or not a NumPy file of numbers ({words_of(error, 150)})") from None
    dim, one = math.prod(shape), len(found) == 1
    if one and next(iter(found.values())).shape in (shape, (dim,)):  # one mask for every image
        row = _mask(option, next(iter(found.values()))).reshape(dim)
        masks = {split: np.broadcast_to(row, (count, dim)) for split, count in counts.items()}
    else:
        wanted = ", ".join(f"{split} [{count}]" for split, count in counts.items())
        if one and len(counts) == 1:
            found = dict(zip(counts, found.values(), strict=True))
        if sorted(found) != sorted(counts):
            names = "one array" if one else f"arrays {', '.join(sorted(found))}"
            raise BadInput(f"{option}: holds {names}, but the images are {wanted}; save an .npz with these names")
        masks = {}
        for split in sorted(counts, key=SPLITS.index):
            array, count = found[split], counts[split]
            if array.shape not in ((count, *shape), (count, dim)):
                raise BadInput(f"{option}: {split} has shape {array.shape}, the images {(count, *shape)}")
            masks[split] = _mask(option, array).reshape(count, dim)
    if not any(mask.any() for mask in masks.values()):
        raise BadInput(f"{option}: no pixel is missing; leave this option out")
    if all(mask.all() for mask in masks.values()):
        raise BadInput(f"{option}: every pixel is missing")
    return masks


def fingerprint(missing: float | str | None) -> str | None:
    """SHA-256 of a file of masks; None for another value of the option `--missing`, and for a file that is gone."""
    if not isinstance(missing, str) or not is_file(missing, "--missing"):
        return None
    with reading(missing, "--missing"), open(missing, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mask(option: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        raise BadInput(f"{option}: must be true or 1 where a pixel is missing, and false or 0 elsewhere")
    return array.astype(bool)
