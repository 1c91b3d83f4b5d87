"""Readers of common files of images. Stated rules decide which array is what.

Every decision that could be wrong is reported in `Images.notes`. Nothing in a file is executed. The header of an array
is read first: an array that does not fit into memory is refused, and an array that is not used is not read.
"""

import gzip
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ppl_gen.core.commands import line
from ppl_gen.core.errors import BadInput, words_of
from ppl_gen.core.paths import check_readable, exists, is_file, is_folder
from ppl_gen.data.headers import idx_header, is_idx, layout, mapped, npy_header, require_free, require_memory
from ppl_gen.data.pixels import SPLITS, Images, RawArrays, size_of, to_images
from ppl_gen.data.rows import MAPPED, is_large
from ppl_gen.data.shards import are_large, read_shards, shard_files

_KIND = r"x|images?|imgs?|data|pixels|y|labels?|targets?|class(?:es)?"
_ROLE = re.compile(
    rf"(?P<before>{_KIND})?[\W_]*(?P<split>train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?)?"
    rf"[\W_]*(?:set)?[\W_]*(?P<after>{_KIND})?",
    re.IGNORECASE,
)
_FEWEST_PIXELS = 16  # in a row of text, to be taken for a square image
_LONGEST_LINE = 2**24  # of text, in bytes
_BLOCK = 2**20  # bytes that are read in one step
_COMPRESSED = 15  # the type of a compressed variable in a .mat file
_MATLAB_BYTES = {"double": 8, "single": 4, "logical": 1} | {
    f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)
}
"""Bytes of a number of each class of MATLAB."""


def read(name: str, largest: int | None = None, nan: bool = False) -> Images:
    """The images in a file: .npy, .npz, .mat, .csv, .amat or IDX, each also as .gz; or in the .npy files of a folder.
    An .npy or IDX file of more than `MAPPED` bytes is mapped, if it is not compressed.

    :param name: `FILE`, `FOLDER`, or `FILE:ARRAY` for one array of an .npz or .mat file.
    :param largest: value of a white pixel. By default it is inferred from the pixels, see `_scaled`.
    :param nan: take pixels that are NaN as missing.
    :raises BadInput: for a file that is missing or damaged, or that no rule can read.
    """
    path, array = locate(name)
    if not name:
        raise BadInput("--data '': is a folder, the current one; name it as . or name a file in it")
    if is_folder(path, "--data"):
        return to_images(name, read_shards(path, largest), largest, nan)
    if not is_file(path, "--data"):
        raise BadInput(f"--data {name}: {'no regular file' if exists(path, '--data') else 'no such file'}")
    reader = _READERS.get(_suffix(path), _idx_files)
    try:
        check_readable(path, "--data")
        arrays = reader(path, array)
    except BadInput:
        raise
    except Exception as error:  # parsers raise errors of many types for a damaged file
        kind = "an IDX file" if reader is _idx_files else f"a {_suffix(path)} file of numbers"
        raise BadInput(f"--data {name}: truncated, or not {kind} ({words_of(error, 150)})") from None
    return to_images(name, arrays, largest, nan)


def readable(name: str) -> bool:
    """True if `read` can be tried on a name: the file has a known suffix, or begins like an IDX file."""
    path, _ = locate(name)
    if _suffix(path) in _READERS or is_folder(path, "--data"):
        return True
    if not is_file(path, "--data"):
        return False
    check_readable(path, "--data")
    return _is_idx(path)


def files(name: str) -> list[Path]:
    """Files that `read` opens for a name."""
    path, _ = locate(name)
    if is_folder(path, "--data"):
        return shard_files(path)
    if _suffix(path) in _READERS or not is_file(path, "--data"):
        return [path]
    return [path, *(beside for beside in _beside(path).values() if beside is not None)]


def large(name: str) -> bool:
    """True if `read` finds large data under a name: see `rows.LARGE`."""
    found = [layout(path) for path in files(name)]
    return are_large(found) if is_folder(locate(name)[0], "--data") else any(are_large([each]) for each in found)


def locate(name: str) -> tuple[Path, str | None]:
    """Split `FILE` or `FILE:ARRAY` into the path and the array's name or None."""
    file, _, array = name.rpartition(":")
    if _suffix(Path(file)) in (".npz", ".mat") and not is_file(name, "--data"):
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

    def named(array: str) -> str:
        return line(["--data", f"{path}:{array}"])

    roles: dict[tuple[str, str], str] = {}
    if chosen is None:
        for name in names:
            if (role := _role(name)) is not None:
                key = (role[0] or "train", role[1])
                if key in roles:
                    both = f"'{roles[key]}' and '{name}' can both be the {key[1]} of {key[0]}"
                    raise BadInput(f"--data {path}: {both}; name the array of images: {named(name)}")
                roles[key] = name
        unknown = [name for name in names if name not in roles.values()]
        if ("train", "images") not in roles:
            splits = [key for key in roles if key[1] == "images"]
            if len(names) == 1 and len(splits) == 1:
                roles.clear()
                unknown = list(names)
            if len(unknown) != 1 or any(key[1] == "images" for key in roles):
                listed = ", ".join(sorted(names)) or "none"
                how = f"; name the array of images: {named(sorted(names)[0])}" if names else ""
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
    if (found := layout(path)) is not None and found.size > MAPPED:
        return _along_first(RawArrays({"train": mapped(path, found, is_large(found.shape))}, {}, []))
    with _open(path) as file:
        archive = file.read(2) == b"PK"
        file.seek(0)
        arrays = _archive(path, file, chosen) if archive else RawArrays({"train": _read_npy(file, str(path))}, {}, [])
    return _along_first(arrays)


def _along_first(arrays: RawArrays) -> RawArrays:
    """The arrays, with a note if the images seem to lie along another axis than the first."""
    shape = arrays.images["train"].shape
    if len(shape) > 2 and shape[-1] > max(shape[:-1]):
        arrays.notes.append(f"{shape[0]} images of {size_of(shape[1:])}, along the first axis")
    return arrays


def _archive(path: Path, file: IO[bytes], chosen: str | None) -> RawArrays:
    """An .npz file, which is a zip file of .npy files."""
    with zipfile.ZipFile(file) as archive:
        members = archive.namelist()
        names = [member.removesuffix(".npy") for member in members]
        if twice := {name for name in names if names.count(name) > 1}:
            raise BadInput(f"--data {path}: holds two arrays called '{min(twice)}'")

        def get(name: str) -> np.ndarray | None:
            member = members[names.index(name)]
            if not member.endswith(".npy"):
                return None
            with archive.open(member) as inner:
                return _read_npy(inner, f"{path}:{name}")

        return assign_roles(path, names, get, chosen)


def _read_npy(file: IO[bytes], where: str) -> np.ndarray:
    """The array in an .npy file. Its header is read first. Raises `BadInput` for an array that does not fit into
    memory."""
    shape, dtype = npy_header(file)
    require_memory(where, shape, dtype.itemsize)
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


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
            require_free(f"--data {path}: its largest variable", max(_compressed_sizes(start, file), default=0))
            file.seek(0)
            variables = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(file)}

            def get(name: str) -> Any:
                shape, kind = variables[name]
                if kind not in _MATLAB_BYTES:  # text, cells, structures
                    return None
                require_memory(f"{path}:{name}", shape, _MATLAB_BYTES[kind])
                file.seek(0)
                return scipy.io.loadmat(file, variable_names=[name])[name]

            arrays = assign_roles(path, list(variables), get, chosen)

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
        images = {name: np.moveaxis(np.asarray(array), -1, 0) for name, array in arrays.images.items()}
        arrays = arrays._replace(images=images)
    shape = arrays.images["train"].shape
    where = (
        "column" if last and len(shape) == 2 else "row" if len(shape) == 2 else "last axis" if last else "first axis"
    )
    how = f"one image per {where}" if len(shape) == 2 else f"along the {where}"
    arrays.notes.append(f"{shape[0]} images of {size_of(shape[1:])}, {how}")
    return arrays


def _compressed_sizes(start: bytes, file: IO[bytes]) -> Iterator[int]:
    """Bytes of each compressed variable of a .mat file after decompression. Its header does not tell them.

    :param start: the first 128 bytes. They end with IM in a file of version 5 with the lowest byte first, and with MI
        in one with the highest byte first. A file of version 4 compresses nothing.
    """
    order: Literal["little", "big"] = "little" if start[126:] == b"IM" else "big"
    if start[126:] not in (b"IM", b"MI"):
        return
    file.seek(len(start))
    while len(tag := file.read(8)) == 8:
        kind, left, size = int.from_bytes(tag[:4], order), int.from_bytes(tag[4:], order), 0
        end = file.tell() + left
        inflate = zlib.decompressobj()
        content = b""
        while kind == _COMPRESSED and not inflate.eof and (content or left):
            if not content:
                content = file.read(min(left, _BLOCK))
                left = left - len(content) if content else 0
            size += len(inflate.decompress(content, _BLOCK))
            content = inflate.unconsumed_tail
        file.seek(end)
        yield size


def _matlab_73(path: Path, file: IO[bytes], chosen: str | None) -> RawArrays:
    """A .mat file of MATLAB 7.3, which is HDF5 with the axes in reverse."""
    import h5py

    with h5py.File(file, "r") as content:
        names = [name for name in content if isinstance(content.get(name, getlink=True), h5py.HardLink)]
        names = [name for name in names if isinstance(content[name], h5py.Dataset)]

        def get(name: str) -> Any:
            found = content[name]
            if found.dtype.kind not in "buif" or not found.shape:
                return None
            if found.external or found.is_virtual:
                raise BadInput(f"--data {path}:{name}: its numbers lie in another file; save them in this one")
            require_memory(f"{path}:{name}", found.shape, found.dtype.itemsize)
            return found[()].T

        return assign_roles(path, names, get, chosen)


# IDX, the format of MNIST's own files --------------------------------------------------------------------------


def _is_idx(path: Path) -> bool:
    try:
        with _open(path) as file:
            return is_idx(file.read(4))
    except (OSError, EOFError):
        return False


def read_idx(path: Path) -> np.ndarray:
    """Read the array in an IDX file, compressed by gzip or not; a large one that is not compressed is mapped. Raises
    `ValueError` or `OSError`."""
    if not _is_idx(path):
        raise ValueError(f"{path.name} does not begin like an IDX file")
    with _open(path) as file:
        try:
            shape, dtype = idx_header(file)
        except ValueError as error:
            raise ValueError(f"{path.name} {error}") from None
        size = math.prod(shape) * dtype.itemsize
        if isinstance(file, gzip.GzipFile) or (there := os.fstat(file.fileno()).st_size - file.tell()) == size:
            if size > MAPPED and (found := layout(path)) is not None:
                return mapped(path, found, is_large(shape))
            require_memory(str(path), shape, dtype.itemsize)
            array = np.empty(shape, dtype)
            there = _fill(array, file)
    if there != size:
        raise ValueError(f"{path.name} holds {there:,} bytes or more, but {tuple(shape)} needs {size:,}")
    return array


def _fill(array: np.ndarray, file: IO[bytes]) -> int:
    """Fill an array with the bytes of a file. Returns the number of bytes in the file, or one more than the array has
    if there are more."""
    content, done = array.reshape(-1).view(np.uint8), 0
    while done < len(content) and (block := file.read(min(_BLOCK, len(content) - done))):
        content[done : done + len(block)] = np.frombuffer(block, np.uint8)
        done += len(block)
    return done + len(file.read(1))


def plain_or_gz(path: Path) -> Path | None:
    """The path if that file exists, else the path with `.gz` appended if that does, else None."""
    return next((each for each in (path, path.with_name(f"{path.name}.gz")) if is_file(each)), None)


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
        start = file.readline(_LONGEST_LINE)
    if len(start) == _LONGEST_LINE:
        raise BadInput(f"--data {path}: its first line has more than {_LONGEST_LINE:,} characters; is it a text file?")
    first = start.decode("utf-8-sig").strip()
    with _open(path) as file:  # pandas copies its table while it makes it
        require_free(f"--data {path}: its table", 3 * np.dtype(np.float64).itemsize * _cells(file))
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
        notes.append(f"a row is an image of {size_of(shape)}")
    elif header is None:
        notes.append(f"a row is an image of {len(pixels)} pixels, without a label")
    images = table[:, pixels]
    with np.errstate(invalid="ignore"):
        levels = images.astype(np.uint8)
    images = levels if (levels == images).all() else images.astype(np.float32)  # text has no dtypes
    return RawArrays({"train": images}, {} if label is None else {"train": table[:, label]}, notes, shape)


def _cells(file: IO[bytes]) -> int:
    """The number of cells of a table, or a larger one: a cell ends with a separator or a line."""
    cells = 1
    while block := file.read(_BLOCK):
        cells += block.count(b"\n") + max(map(block.count, (b",", b";", b"\t", b" ")))
    return cells


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
