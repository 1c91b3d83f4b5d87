"""Readers of common files of images. Stated rules decide which array is what.

Every decision that could be wrong is reported in `Images.notes`. Nothing in a file is executed.
"""

import gzip
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ppl_gen.core.errors import BadInput

SPLITS = ("train", "validation", "test")
_Arrays = dict[str, np.ndarray]

_KIND = r"x|images?|imgs?|data|pixels|y|labels?|targets?|class(?:es)?"
_ROLE = re.compile(
    rf"(?P<before>{_KIND})?[\W_]*(?P<split>train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?)?"
    rf"[\W_]*(?:set)?[\W_]*(?P<after>{_KIND})?",
    re.IGNORECASE,
)
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_CHANNELS = 4
_FEWEST_PIXELS = 16  # in a row of text, to be taken for a square image


class Images(NamedTuple):
    """The images of a file by split, at least `train`."""

    shape: tuple[int, ...]
    """Shape of one image: [height, width], [channels, height, width] or [pixels]."""
    splits: _Arrays
    """Pixels [N, pixels] by split: uint8 in 0..scale, or float32 in [0, 1] with scale 1."""
    labels: _Arrays
    """Labels by split, int64 [N]: for all splits, or for none."""
    scale: int
    """Value of a white pixel."""
    notes: list[str]
    """Decisions of the rules, in words."""


class RawArrays(NamedTuple):
    """Arrays as a file holds them, by split: axes and values are still those of the file."""

    images: _Arrays
    labels: _Arrays
    notes: list[str]
    shape: tuple[int, ...] | None = None
    """Shape of one image, if the array of images is flat."""


def read(name: str, largest: int | None = None) -> Images:
    """The images in a file: .npy, .npz, .mat, .csv, .amat or IDX, any of them also as .gz.

    :param name: `FILE`, or `FILE:ARRAY` for one array of an .npz or .mat file.
    :param largest: value of a white pixel. By default it is inferred from the pixels, see `_scaled`.
    :raises BadInput: for a file that is missing or damaged, or that no rule can read.
    """
    path, array = locate(name)
    if not path.is_file():
        raise BadInput(f"--data {name}: {'is a folder; name a file in it' if path.is_dir() else 'no such file'}")
    reader = _READERS.get(_suffix(path), _idx_files)
    try:
        arrays = reader(path, array)
    except BadInput:
        raise
    except Exception as error:  # parsers raise errors of many types for a damaged file
        kind = "an IDX file" if reader is _idx_files else f"a {_suffix(path)} file of numbers"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"--data {name}: truncated, or not {kind} ({reason})") from None
    return to_images(name, arrays, largest)


def readable(name: str) -> bool:
    """True if `read` can be tried on a name: the file has a known suffix, or begins like an IDX file."""
    path, _ = locate(name)
    return _suffix(path) in _READERS or path.is_dir() or (path.is_file() and _is_idx(path))


def files(name: str) -> list[Path]:
    """Files that `read` opens for a name."""
    path, _ = locate(name)
    if _suffix(path) in _READERS or not path.is_file():
        return [path]
    return [path, *(beside for beside in _beside(path).values() if beside is not None)]


def locate(name: str) -> tuple[Path, str | None]:
    """Split `FILE` or `FILE:ARRAY` into the path and the array's name or None."""
    file, _, array = name.rpartition(":")
    if not Path(name).is_file() and _suffix(Path(file)) in (".npz", ".mat"):
        return Path(file), array
    return Path(name), None


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _open(path: Path) -> IO[bytes]:
    """Open a file, and decompress it if it is compressed by gzip."""
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else open(path, "rb")  # type: ignore[return-value]


# Named arrays --------------------------------------------------------------------------------------------------


def _role(name: str) -> tuple[str | None, str] | None:
    """Split (None if the name has none) and kind, `images` or `labels`, in the name of an array such as `x_train`,
    `val_images`, `test`, `labels`. None for any other name."""
    match = _ROLE.fullmatch(name)
    if not name or match is None or (match["before"] and match["after"]):
        return None
    kind = (match["before"] or match["after"] or "x").lower()
    starts = {"tr": "train", "va": "validation", "de": "validation", "te": "test"}
    split = starts[match["split"][:2].lower()] if match["split"] else None
    if split is None and not (match["before"] or match["after"]):
        return None
    return split, "labels" if kind[0] in "ylt" or kind.startswith("class") else "images"


def assign_roles(path: Path, names: Sequence[str], get: Callable[[str], Any], chosen: str | None) -> RawArrays:
    """Assign a split and a kind to each array by its name. Raises `BadInput` if two arrays have the same role, or if
    there are no training images.

    :param get: returns the array of a name.
    :param chosen: name of the array of images, if the user has given it.
    """
    roles: dict[tuple[str, str], str] = {}
    if chosen is None:
        for name in names:
            if (role := _role(name)) is not None:
                key = (role[0] or "train", role[1])
                if key in roles:
                    both = f"'{roles[key]}' and '{name}' can both be the {key[1]} of {key[0]}"
                    raise BadInput(f"--data {path}: {both}; name the array of images: --data {path}:{name}")
                roles[key] = name
        unknown = [name for name in names if name not in roles.values()]
        if ("train", "images") not in roles:
            splits = [key for key in roles if key[1] == "images"]
            if len(names) == 1 and len(splits) == 1:
                roles.clear()
                unknown = list(names)
            if len(unknown) != 1 or any(key[1] == "images" for key in roles):
                listed = ", ".join(sorted(names)) or "none"
                how = f"; name the array of images: --data {path}:{sorted(names)[0]}" if names else ""
                raise BadInput(f"--data {path}: no array is called 'train'; its arrays: {listed}{how}")
            roles["train", "images"] = unknown[0]
    else:
        if chosen not in names:
            raise BadInput(f"--data {path}:{chosen}: no such array; its arrays: {', '.join(sorted(names)) or 'none'}")
        roles["train", "images"] = chosen
        split = (_role(chosen) or (None, ""))[0]
        told = [name for name in names if name != chosen and _role(name) == (split, "labels")]
        if len(told) == 1:
            roles["train", "labels"] = told[0]

    images = {split: _array(path, name, get) for (split, kind), name in roles.items() if kind == "images"}
    labels = {split: _array(path, name, get) for (split, kind), name in roles.items() if kind == "labels"}
    if chosen is not None and "train" in labels and labels["train"].size not in images["train"].shape:
        del labels["train"], roles["train", "labels"]  # they belong to another array
    for split in labels.keys() - images.keys():
        del labels[split], roles[split, "labels"]
    unused = [name for name in names if name not in roles.values()]
    notes = []
    plain = {(split, "images"): split for split in SPLITS} | {(split, "labels"): f"{split}_labels" for split in SPLITS}
    if len(names) > 1 and any(name != plain[key] for key, name in roles.items()):
        told = [f"'{roles[key]}' is {name.replace('_', ' ')}" for key, name in plain.items() if key in roles]
        notes.append(", ".join(told))
    if unused:
        notes.append(f"not used: {', '.join(map(repr, unused))}")
    return RawArrays(images, labels, notes)


def _array(path: Path, name: str, get: Callable[[str], Any]) -> np.ndarray:
    array = get(name)
    if not isinstance(array, np.ndarray):
        raise BadInput(f"--data {path}: '{name}' is not an array of numbers")
    return array


def _numpy(path: Path, chosen: str | None) -> RawArrays:
    with _open(path) as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = RawArrays({"train": loaded}, {}, [])
        else:
            arrays = assign_roles(path, loaded.files, loaded.__getitem__, chosen)
    shape = arrays.images["train"].shape
    if len(shape) > 2 and shape[-1] > max(shape[:-1]):
        arrays.notes.append(f"{shape[0]} images of {_size(shape[1:])}, along the first axis")
    return arrays


def _matlab(path: Path, chosen: str | None) -> RawArrays:
    """A .mat file. MATLAB's convention has the images along the last axis. The number of labels decides which axis it
    is, or else the longest axis."""
    import scipy.io

    with _open(path) as file:
        start = file.read(128)
        if b"MATLAB 7.3" in start or start.startswith(b"\x89HDF"):
            file.seek(0)
            arrays = _matlab_73(path, file, chosen)
        else:
            file.seek(0)
            names = [name for name, _, _ in scipy.io.whosmat(file)]

            def get(name: str) -> Any:
                file.seek(0)
                return scipy.io.loadmat(file, variable_names=[name])[name]

            arrays = assign_roles(path, names, get, chosen)

    shape = arrays.images["train"].shape
    if len(shape) < 2:
        return arrays
    count = arrays.labels["train"].size if "train" in arrays.labels else None
    if (shape[0] == count) != (shape[-1] == count):
        last = shape[-1] == count
    elif len(shape) > 2:
        last = shape[-1] > max(shape[:-1])
    elif shape[0] < shape[1]:
        raise BadInput(
            f"--data {path}: {shape} may have one image per row or per column; save it as .npy with one image per row"
        )
    else:
        last = False
    if last:
        arrays = arrays._replace(images={name: np.moveaxis(array, -1, 0) for name, array in arrays.images.items()})
    shape = arrays.images["train"].shape
    where = (
        "column" if last and len(shape) == 2 else "row" if len(shape) == 2 else "last axis" if last else "first axis"
    )
    how = f"one image per {where}" if len(shape) == 2 else f"along the {where}"
    arrays.notes.append(f"{shape[0]} images of {_size(shape[1:])}, {how}")
    return arrays


def _matlab_73(path: Path, file: IO[bytes], chosen: str | None) -> RawArrays:
    """A .mat file of MATLAB 7.3, which is HDF5 with the axes in reverse."""
    import h5py

    with h5py.File(file, "r") as content:
        names = [name for name in content if isinstance(content.get(name, getlink=True), h5py.HardLink)]
        names = [name for name in names if isinstance(content[name], h5py.Dataset)]

        def get(name: str) -> Any:
            return content[name][()].T if content[name].dtype.kind in "buif" and content[name].shape else None

        return assign_roles(path, names, get, chosen)


# IDX, the format of MNIST's own files --------------------------------------------------------------------------


def _is_idx(path: Path) -> bool:
    try:
        with _open(path) as file:
            start = file.read(4)
    except (OSError, EOFError):
        return False
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in _IDX_TYPES and 1 <= start[3] <= 4


def read_idx(path: Path) -> np.ndarray:
    """Read the array in an IDX file, compressed by gzip or not. Raises `ValueError` or `OSError`."""
    if not _is_idx(path):
        raise ValueError(f"{path.name} does not begin like an IDX file")
    with _open(path) as file:
        start = file.read(4)
        header = file.read(4 * start[3])
        if len(header) < 4 * start[3]:
            raise ValueError(f"{path.name} ends within its header")
        shape = np.frombuffer(header, ">u4").tolist()
        dtype = np.dtype(_IDX_TYPES[start[2]])
        size = math.prod(shape) * dtype.itemsize
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{path.name} holds {len(content):,} bytes or more, but {tuple(shape)} needs {size:,}")
    return np.frombuffer(content, dtype).reshape(shape)


def plain_or_gz(path: Path) -> Path | None:
    """The path if that file exists, else the path with `.gz` appended if that does, else None."""
    return next((each for each in (path, path.with_name(f"{path.name}.gz")) if each.is_file()), None)


def _beside(path: Path) -> dict[str, Path | None]:
    """Files whose names correspond to a file of training images: its labels, the test images, and their labels."""
    name = path.name.removesuffix(".gz")

    def other(name: str, word: str, replacement: str) -> Path | None:
        found = name.replace(word, replacement)
        return None if found == name else plain_or_gz(path.with_name(found))

    def labels(of: Path | None) -> Path | None:
        return None if of is None else other(of.name.removesuffix(".gz").replace("idx3", "idx1"), "images", "labels")

    test = other(name, "train", "t10k") or other(name, "train", "test")
    return {"train labels": labels(path), "test": test, "test labels": labels(test)}


def _idx_files(path: Path, chosen: str | None) -> RawArrays:
    images = {"train": read_idx(path)}
    if images["train"].ndim == 1:
        raise BadInput(f"--data {path}: holds one number per image, so these are labels; name the file of images")
    beside = _beside(path)
    labels = {split: read_idx(file) for split in ("train", "test") if (file := beside[f"{split} labels"]) is not None}
    if beside["test"] is not None:
        images["test"] = read_idx(beside["test"])
    told = [f"{what} from {file.name}" for what, file in beside.items() if file is not None]
    return RawArrays(images, labels, [", ".join(told)] if told else [])


# Text ----------------------------------------------------------------------------------------------------------


def _text(path: Path, chosen: str | None) -> RawArrays:
    """Rows of numbers, one image per row, with or without a header and a column of labels."""
    import pandas

    with _open(path) as file:
        first = file.readline().decode("utf-8-sig").strip()
    separator = next((mark for mark in ";\t," if mark in first), r"\s+")
    # NumPy begins a header with #.
    cells = [cell.strip(" \"'") for cell in re.split(separator, first.removeprefix("#"))]
    numbers = [float(cell) for cell in cells if _is_number(cell)]
    # pandas writes the numbers of columns as a header: 0, 1, 2, …
    columns = len(numbers) >= _FEWEST_PIXELS and sorted(numbers)[0] in (0, 1) and set(np.diff(sorted(numbers))) == {1}
    header = cells if columns or not numbers else None
    notes = ["the first line numbers the columns and is not an image"] if columns else []
    if header is None and len(numbers) < len(cells):
        raise BadInput(f"--data {path}: its first line mixes names and numbers; write one or the other")
    with _open(path) as file:
        table = pandas.read_csv(
            file,
            sep=separator,
            header=None,
            skiprows=0 if header is None else 1,
            dtype=np.float64,  # labels of many digits stay whole numbers in it
            skipinitialspace=True,
            encoding="utf-8-sig",
        ).to_numpy()
    if header is not None and len(header) != table.shape[1]:
        raise BadInput(f"--data {path}: the first line has {len(header)} names, but there are {table.shape[1]} columns")

    pixels = list(range(table.shape[1]))
    label = None
    if header is not None:
        pixels, label = _columns(path, header, notes)
    elif _square(len(pixels) - 1) and not _square(len(pixels)):
        label = next((column for column in (0, -1) if np.ptp(table[:, column]) > 0), None)
        if label is not None and (table[:, label] == np.rint(table[:, label])).all():
            pixels = pixels[1:] if label == 0 else pixels[:-1]
            notes.append(
                f"the {'first' if label == 0 else 'last'} column is taken as labels; add a header line if it is not"
            )
        else:
            label = None
    shape: tuple[int, ...] = (len(pixels),)
    if _square(len(pixels)):
        shape = (math.isqrt(len(pixels)),) * 2
        notes.append(f"a row is an image of {_size(shape)}")
    elif header is None:
        notes.append(f"a row is an image of {len(pixels)} pixels, without a label")
    images = table[:, pixels]
    with np.errstate(invalid="ignore"):
        levels = images.astype(np.uint8)
    images = levels if (levels == images).all() else images.astype(np.float32)  # text has no dtypes
    return RawArrays({"train": images}, {} if label is None else {"train": table[:, label]}, notes, shape)


def _columns(path: Path, header: Sequence[str], notes: list[str]) -> tuple[list[int], int | None]:
    """Columns of pixels, in the order of their numbers, and the column of labels or None. The columns of pixels are the
    largest group whose names are one common word and one or two numbers: `pixel0`, `1x1`, `0`."""
    if twice := {name for name in header if header.count(name) > 1}:
        raise BadInput(f"--data {path}: several columns are called '{min(twice)}'")
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(header):
        if match := re.fullmatch(r"(\D*)\d+(?:\D+\d+)?", name):
            groups.setdefault(match[1].lower(), []).append(column)
    if not groups:
        raise BadInput(f"--data {path}: no column is called pixel0, 0 or 1x1; its columns: {', '.join(header[:5])}, …")
    pixels = max(groups.values(), key=len)
    told = [column for column, name in enumerate(header) if column not in pixels and _role(name) == (None, "labels")]
    if len(told) > 1:
        names = ", ".join(header[column] for column in told)
        raise BadInput(f"--data {path}: several columns can be the labels: {names}; keep one")
    ordered = sorted(pixels, key=lambda column: [int(number) for number in re.findall(r"\d+", header[column])])
    if ordered != pixels:
        notes.append("columns are sorted by their numbers")
    if rest := [header[column] for column in range(len(header)) if column not in (*pixels, *told)]:
        notes.append(f"not used: {', '.join(map(repr, rest[:5]))}{', …' if len(rest) > 5 else ''}")
    return ordered, told[0] if told else None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _square(count: int) -> bool:
    return count >= _FEWEST_PIXELS and math.isqrt(count) ** 2 == count


_READERS: dict[str, Callable[[Path, str | None], RawArrays]] = {
    **dict.fromkeys((".npy", ".npz"), _numpy),
    ".mat": _matlab,
    **dict.fromkeys((".csv", ".amat"), _text),
}


# From arrays to pixels -----------------------------------------------------------------------------------------


def to_images(name: str, arrays: RawArrays, largest: int | None) -> Images:
    """Images as rows of grey levels or of pixels in [0, 1], with labels. Raises `BadInput` for arrays that are
    neither."""
    images, notes = arrays.images, list(arrays.notes)
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
            images = {split: np.moveaxis(array, -1, 1) for split, array in images.items()}
        channels, height, width = images["train"].shape[1:]
        if after <= _MOST_CHANNELS or before > _MOST_CHANNELS:
            axes = "height, width, channels" if last else "channels, height, width"
            notes.append(f"axes are [images, {axes}]: {channels} × {height} × {width}")
    shape = images["train"].shape[1:] if arrays.shape is None else arrays.shape
    rows = {split: np.ascontiguousarray(array).reshape(len(array), -1) for split, array in images.items()}
    rows, scale = _scaled(name, rows, largest, notes)
    return Images(shape, rows, labels, scale, notes)


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


def _scaled(name: str, rows: _Arrays, largest: int | None, notes: list[str]) -> tuple[_Arrays, int]:
    """Pixels as levels 0..scale, or as real numbers in [0, 1] with scale 1.

    The largest pixel of all splits decides the value of white: 1 if it is at most 1; 255 if it is 128 to 255; for whole
    numbers up to 127, the largest pixel itself.
    """
    ranges = {split: _range(f"{name} [{split}]", array) for split, array in rows.items()}
    high, dtype = max(top for _, top in ranges.values()), rows["train"].dtype
    whole = dtype.kind in "bui" or ((largest or high) > 1 and all((a == np.rint(a)).all() for a in rows.values()))
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
        divided = {split: array if scale == 1 else array.astype(np.float64) / scale for split, array in rows.items()}
        return {split: array.astype(np.float32) for split, array in divided.items()}, 1
    return {split: array.astype(np.uint8) for split, array in rows.items()}, scale


def _range(where: str, pixels: np.ndarray) -> tuple[float, float]:
    if pixels.dtype.kind == "f" and (missing := int((~np.isfinite(pixels)).sum())):
        raise BadInput(f"--data {where}: {missing} pixels are not finite numbers")
    return pixels.min().item(), pixels.max().item()


def _size(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape))
