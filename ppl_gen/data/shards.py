"""A data set in a folder of .npy files: its images are those of all files, one file after the other by their names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppl_gen.core.errors import BadInput, words_of
from ppl_gen.core.paths import check_readable, is_file, reading
from ppl_gen.data.headers import Layout, layout, mapped
from ppl_gen.data.pixels import RawArrays, size_of
from ppl_gen.data.rows import MAPPED, Source, is_large

_LOOKED_AT = 1000  # images of a file whose scale is compared with that of others


def shard_files(folder: Path) -> list[Path]:
    """The .npy files in a folder, sorted by name."""
    with reading(folder, "--data"):
        return sorted(each for each in folder.iterdir() if each.suffix.lower() == ".npy")


def read_shards(folder: Path, largest: int | None = None) -> RawArrays:
    """The images in the .npy files of a folder, one file after the other.

    :param largest: value of a white pixel, if it is given.
    """
    paths, parts = shard_files(folder), list[np.ndarray]()
    if not paths:
        raise BadInput(f"--data {folder}: is a folder without .npy files; name a file in it")
    for path in paths:
        if not is_file(path, "--data"):
            raise BadInput(f"--data {path}: no regular file")
        check_readable(path, "--data")
    found = [layout(path) for path in paths]
    mapping, large = sum(each.size for each in found if each is not None) > MAPPED, are_large(found)
    for path, each in zip(paths, found, strict=True):
        if each is None or len(each.shape) < 2:
            raise BadInput(
                f"--data {path}: must be an .npy file of numbers [images, height, width] in C's order, with an image"
            )
        try:
            parts.append(mapped(path, each, large) if mapping else np.load(path, allow_pickle=False))
        except (ValueError, OSError) as error:
            raise BadInput(f"--data {path}: truncated ({words_of(error, 150)})") from None
        if (parts[-1].shape[1:], parts[-1].dtype) != (parts[0].shape[1:], parts[0].dtype):
            ours, theirs = (f"{part.dtype} {part.shape[1:]}" for part in (parts[-1], parts[0]))
            raise BadInput(f"--data {path}: images are {ours}, but those of {paths[0].name} are {theirs}")
    if largest is None:
        _check_scales(paths, parts)
    source = Source(tuple(map(np.asarray, parts)), mapping)
    return RawArrays(
        {"train": source}, {}, [f"{len(source)} images of {size_of(source.shape[1:])} in {len(parts)} files"]
    )


def _check_scales(paths: list[Path], parts: list[np.ndarray]) -> None:
    """Raise `BadInput` if pixels of one file lie in [0, 1], and those of another reach 128 or more. Of each file, at
    most `_LOOKED_AT` images are looked at."""
    tops = [float(np.nanmax(part[:: -(-len(part) // _LOOKED_AT)], initial=0)) for part in parts]
    brightest = tops.index(max(tops))
    for path, top in zip(paths, tops, strict=True):
        if 0 < top <= 1 and tops[brightest] >= 128:
            raise BadInput(
                f"--data {path}: pixels reach {top:g}, but those of {paths[brightest].name} {tops[brightest]:g}; scale "
                "them alike, or give the value of white with --largest-pixel"
            )


def are_large(found: Sequence[Layout | None]) -> bool:
    """True if files of these layouts are large data together."""
    arrays = [each for each in found if each is not None]
    mapping = sum(each.size for each in arrays) > MAPPED
    return mapping and is_large((sum(each.shape[0] for each in arrays), *arrays[0].shape[1:]))
