"""Loading and splitting of data sets: by name, from files, and from arrays."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_gen.core.commands import is_function
from ppl_gen.core.components import find_function
from ppl_gen.core.errors import BadInput, as_bad_input, near_miss, require
from ppl_gen.core.paths import is_file, reading
from ppl_gen.data import arrays, masks, named, sources
from ppl_gen.data.downloads import FILES, FOLDERS, NotDownloaded, download
from ppl_gen.data.options import DataOptions
from ppl_gen.data.orders import Order
from ppl_gen.data.pixels import Images, to_images
from ppl_gen.data.rows import SAMPLED, Rows
from ppl_gen.data.splits import (
    POOL_SEED,
    REDRAWN,
    SHUFFLE_SEED,
    TEST_SEED,
    Data,
    Split,
    cut,
    hide_labels,
    join,
    select,
    with_fixed_draw,
)

_MNIST_COUNTS = (60_000, 10_000)  # images on disk, train and test
_MNIST_SPLIT = (50_000, 10_000)  # of the 60,000, for training and for validation
_AMAT_COUNTS = (50_000, 10_000, 10_000)
_MISSING_SEEDS = (4, 5)  # of the masks of missing pixels, of the pool and of the test images
_PIECE, _PIECES = 2**16, 1024  # bytes of a piece of a large file that its fingerprint is of, and number of pieces
_NAMES = ("auto", "digits", "binarized-mnist", *FOLDERS, *named.DATA_SETS)


class _Source(NamedTuple):
    """Images of a source, before they are split and binarized."""

    name: str
    shape: tuple[int, ...]
    pool: Split
    """Images for training and validation."""
    test: Split
    sizes: tuple[int, int]
    """Numbers of images of the pool for training and for validation."""
    notice: str = ""
    sha256: str | None = None


def load_data(options: DataOptions, given: Any = None) -> Data:
    """Load, split and binarize.

    :param given: images that are passed from Python, as `arrays.collect` takes them, in place of `options.data`;
        or a reference `file.py:function` to a function that returns them.
    :raises BadInput: for a data set that is unknown, missing, truncated or of another format, for pixels outside
        [0, 1], and for a `train_size` larger than the data set.
    """
    if isinstance(given, Data):
        if options.missing is not None and given.train.missing is None:
            raise BadInput("--missing: a Data has its own masks: give Split(…, missing=mask), or images without masks")
        return given
    if given is None and is_function(options.data):
        given = options.data
    if isinstance(given, str):
        source = _given(_called(given), options)._replace(name=given)
    elif given is not None:
        source = _given(given, options)
    else:
        source = _source(options.data, options)
    source = _with_missing(source, options.missing)
    pool, sizes = source.pool, source.sizes
    if options.largest_pixel is not None and source.name in _NAMES:
        white = f"--largest-pixel {options.largest_pixel}"
        raise BadInput(f"{white}: is for files, but {source.name} is a named data set; leave this option out")
    count = sizes[0] if options.train_size is None else options.train_size
    require(
        1 <= count <= len(pool),
        "train_size",
        count,
        f"{source.name} has {len(pool)} images for training; choose 1 to {len(pool)}",
    )
    if options.binarization == "dequantized" and pool.scale == 1:
        raise BadInput(
            f"--binarization dequantized: needs grey levels, but pixels of {source.name} are binary or real numbers; "
            "save levels as whole numbers, such as 0 … 255"
        )
    # The validation split is the end of the pool. It shrinks only if the training split is asked to be larger.
    start = max(sizes[0], count)
    test = with_fixed_draw(source.test, options.binarization, TEST_SEED)
    if options.binarization in REDRAWN:
        train, validation = cut(pool, 0, count), with_fixed_draw(pool, options.binarization, POOL_SEED, start)
    else:
        fixed = with_fixed_draw(pool, options.binarization, POOL_SEED)
        train, validation = cut(fixed, 0, count), cut(fixed, start, len(pool))
    if options.labelled is not None:
        train = hide_labels(train, options.labelled)
        validation, test = (hide_labels(split, 0) if len(split) else split for split in (validation, test))
    return Data(source.name, source.shape, options.binarization, train, validation, test, source.notice, source.sha256)


def _with_missing(source: _Source, missing: float | str | None) -> _Source:
    """A source with its masks of missing pixels, where it has none yet."""
    if missing is None or source.pool.missing is not None:
        return source
    if source.pool.large:
        raise BadInput(f"--missing: {source.name} has too many images for masks of missing pixels; split the file")
    if missing == "nan":
        raise BadInput(f"--missing nan: {source.name} has no pixels that are NaN; give a share such as 0.5, or a file")
    dim, counts = source.pool.images.shape[1], (len(source.pool), len(source.test))
    if isinstance(missing, str):
        read = masks.read(missing, source.shape, dict(zip(("train", "test"), counts, strict=True)))
        pool, test = torch.from_numpy(read["train"].copy()), torch.from_numpy(read["test"].copy())
    else:
        pool, test = (masks.drawn(n, dim, missing, seed) for n, seed in zip(counts, _MISSING_SEEDS, strict=True))
    return source._replace(pool=replace(source.pool, missing=pool), test=replace(source.test, missing=test))


def _source(name: str, options: DataOptions) -> _Source:
    """The images of a named data set or of a file."""
    if name == arrays.NAME:
        raise BadInput("--data array: was an array in a Python session; pass it again: Run.open(…, data=x)")
    if name == "auto":
        try:
            return _torchvision("mnist")
        except _Missing as error:  # a damaged MNIST is an error, and is not replaced by another data set
            notice = f"MNIST is not on disk and {error.why}: using scikit-learn's 8x8 digits instead"
            return _digits()._replace(notice=notice)
    if name in FOLDERS:
        return _torchvision(name)
    if name in named.DATA_SETS or (named.of_file(name) and is_file(name, "--data")):
        return _named(name, options)
    if name == "digits":
        return _digits()
    if name == "binarized-mnist" or re.fullmatch(r"binarized_mnist_(train|valid|test)\.amat", Path(name).name):
        return _amat(name)
    if sources.readable(name):
        return _splits(name, sources.read(name, options.largest_pixel, options.missing == "nan"), options.missing)
    kinds = ".npy, .npz, .mat, .csv or IDX"
    raise BadInput(f"--data {name}: neither a data set nor a file of images ({kinds}){near_miss(name, _NAMES)}")


def _given(given: Any, options: DataOptions) -> _Source:
    """The images that were passed from Python."""
    collected = arrays.collect(given)
    images = arrays.read(collected, options.largest_pixel, options.missing == "nan")
    found = _splits(arrays.NAME, images, options.missing)
    return found._replace(sha256=arrays.fingerprint(collected))


def _called(reference: str) -> Any:
    """The images that a user's function returns."""
    function = find_function("--data", reference)
    with as_bad_input(f"--data {reference}: fails"):
        return function()


def fingerprint(name: str) -> str | None:
    """SHA-256 of a file of images and of the files that are read with it, or of the files in a folder. None for a named
    data set, which never changes.

    Of large data (`rows.LARGE`), it is of the size of each file and of pieces of it that are evenly spread, the first
    and the last bytes among them.
    """
    if name in _NAMES:
        return None
    paths, content = sources.files(name), hashlib.sha256()
    if not paths or not all(is_file(path, "--data") for path in paths):
        return None
    large = sources.large(name)
    for path in paths:
        with reading(path, "--data"), open(path, "rb") as file:
            if not large:
                while block := file.read(2**20):
                    content.update(block)
                continue
            size = os.fstat(file.fileno()).st_size
            content.update(f"{size}\n".encode())
            for start in np.linspace(0, max(0, size - _PIECE), max(2, _PIECES // len(paths))).astype(int).tolist():
                file.seek(start)
                content.update(file.read(_PIECE))
    return content.hexdigest()


class _Missing(BadInput):
    """A data set that is not on disk and cannot be downloaded."""

    def __init__(self, message: str, why: str):
        super().__init__(message)
        self.why = why


# Sources by name -----------------------------------------------------------------------------------------------


def _folders() -> list[Path]:
    """Folders that are searched for data sets, in order: $PPL_GEN_DATA, then data/."""
    named = os.environ.get("PPL_GEN_DATA")
    return [*([Path(named)] if named else []), Path("data")]


def _torchvision(name: str) -> _Source:
    """MNIST or a data set of its format, from the first folder with its files, in torchvision's layout or directly; if
    there is none, from the network."""
    notice = ""
    folder = next(_data_set_folders(name), None)
    if folder is None:
        try:
            download(name, _folders()[0])
        except NotDownloaded as error:
            searched = " or ".join(str(each) for each in _folders())
            how = f"set PPL_GEN_DATA to the folder that holds {FOLDERS[name]}/"
            raise _Missing(f"--data {name}: not in {searched} and {error}; {how}", str(error)) from None
        folder = next(_data_set_folders(name))
    raw, sure = folder
    if not sure:
        notice = f"{name} is read from the files in {raw}; their names do not say which data set they are"

    splits = []
    for part, count in zip(("train", "t10k"), _MNIST_COUNTS, strict=True):
        try:
            images, labels = (
                sources.read_idx(path)
                for kind in ("images-idx3", "labels-idx1")
                if (path := sources.plain_or_gz(raw / f"{part}-{kind}-ubyte")) is not None
            )
            if (images.shape, labels.shape) != ((count, 28, 28), (count,)) or images.dtype != np.uint8:
                raise ValueError(f"{images.dtype} {images.shape} is not uint8 ({count}, 28, 28)")
        except Exception as error:  # gzip, zlib and the file system raise errors of many types
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(
                f"--data {name}: the {'training' if part == 'train' else 'test'} files in {raw} are truncated or "
                f"have another format ({reason}); delete them to download them again"
            ) from None
        pixels = torch.from_numpy(images.reshape(count, -1).copy())
        splits.append(Split(pixels, torch.from_numpy(labels.astype(np.int64)), 255))
    return _Source(name, (28, 28), splits[0], splits[1], _MNIST_SPLIT, notice)


def _named(name: str, options: DataOptions) -> _Source:
    """A data set of the literature: by its name, from the first folder with its files, else from the network; or one of
    its files by its path."""
    kind = named.of_file(name)
    paths = named.find(name, _folders()) if kind is None else [Path(name)]
    if paths is None:
        try:
            download(name, _folders()[0])
        except NotDownloaded as error:
            files = " and ".join(each.partition("|")[0] for each in named.DATA_SETS[name].files[:2])
            searched, below = " or ".join(map(str, _folders())), named.DATA_SETS[name].folders[0]
            where = f"set PPL_GEN_DATA to the folder that holds {f'{below}/' if below else ''}{files}"
            raise _Missing(f"--data {name}: not in {searched} and {error}; {where}", str(error)) from None
        paths = named.find(name, _folders())
        assert paths is not None
    images = to_images(name, named.read(kind or name, paths), options.largest_pixel)
    return _splits(name, images, options.missing)


def _data_set_folders(name: str) -> Iterator[tuple[Path, bool]]:
    """Folders that hold the four files of a data set, each with True if its name says so.

    The files of all these data sets have the same names. Files in a folder whose name, and whose parents' names, tell
    no data set are taken for MNIST.
    """
    subfolder = FOLDERS[name]
    for folder in _folders():
        for raw in (folder / subfolder / "raw", folder / subfolder, folder / "raw", folder):
            if all(sources.plain_or_gz(raw / file) for file in FILES):
                names = [_data_set_in(part) for part in reversed(raw.absolute().parts[-3:])]
                told = next((each for each in names if each is not None), None)
                if told == name or (told is None and name == "mnist"):
                    yield raw, told == name


def _data_set_in(folder: str) -> str | None:
    """The data set in the name of a folder, or None."""
    told = re.search(r"fashion|kuzushiji|(?<![a-z])[ekq]mnist|mnist", folder.lower())
    return None if told is None else {"fashion": "fashion-mnist", "kuzushiji": "kmnist"}.get(told[0], told[0])


def _digits() -> _Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels. They are shuffled with a fixed seed, because
    the file is sorted by writer. 300 images are the test split."""
    # As sklearn.datasets.load_digits() reads it: importing that takes longer than a small fit.
    folders = getattr(importlib.util.find_spec("sklearn"), "submodule_search_locations", None)
    assert folders
    rows = np.loadtxt(Path(folders[0]) / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=",")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    images, labels = torch.from_numpy(rows[:, :-1])[order], torch.from_numpy(rows[:, -1]).long()[order]
    whole = Split(images.contiguous(), labels, 16)
    return _Source("digits", (8, 8), cut(whole, 0, 1_497), cut(whole, 1_497, 1_797), (1_197, 300))


def _amat(name: str) -> _Source:
    """Larochelle and Murray's (2011) fixed binarization of MNIST: three text files of 0s and 1s."""
    if name == "binarized-mnist":
        candidates = [folder / "BinarizedMNIST" for folder in _folders()]
        folder = next((c for c in candidates if is_file(c / "binarized_mnist_train.amat")), candidates[0])
    else:
        folder = Path(name).parent
    parts = []
    for part, count in zip(("train", "valid", "test"), _AMAT_COUNTS, strict=True):
        path = folder / f"binarized_mnist_{part}.amat"
        if not is_file(path, "--data"):
            raise BadInput(
                f"--data {name}: {path} is missing; binarized_mnist_{{train,valid,test}}.amat are all needed"
            )
        with reading(path, "--data"), open(path, "rb") as file:
            digits = np.frombuffer(file.read(3 * count * 784), np.uint8)  # a digit and a space, and some more
        digits = digits[digits > ord(" ")] - ord("0")
        if digits.size != count * 784 or digits.max() > 1:
            raise BadInput(f"--data {name}: {path} is truncated, or is not {count} lines of 784 zeros and ones")
        parts.append(torch.from_numpy(digits.reshape(count, 784).copy()))
    return _Source("binarized-mnist", (28, 28), Split(torch.cat(parts[:2])), Split(parts[2]), _AMAT_COUNTS[:2])


def _splits(name: str, source: Images, missing_pixels: float | str | None = None) -> _Source:
    """The splits of a file or of arrays. A missing split is a tenth of the training images, chosen with a fixed
    seed.

    :param missing_pixels: the option `--missing`. The masks of a file are in the order of the images.
    """
    if isinstance(missing_pixels, str) and missing_pixels != "nan":
        counts = {split: len(images) for split, images in source.splits.items()}
        source = source._replace(missing=masks.read(missing_pixels, source.shape, counts))
    splits = {
        split: Split(
            images if isinstance(images, Rows) else torch.from_numpy(_writeable(images)),
            torch.from_numpy(source.labels[split]) if split in source.labels else None,
            source.scale,
            missing=torch.from_numpy(_writeable(source.missing[split])) if source.missing else None,
            values_known=source.known,
        )
        for split, images in source.splits.items()
    }
    pool = whole = splits["train"]
    missing = [split for split in ("test", "validation") if split not in splits]
    tenth = max(1, len(whole) // 10)
    if whole.large:
        tenth = min(tenth, max(1, SAMPLED // whole.images.shape[1]))
    if len(whole) <= len(missing) * tenth:
        raise BadInput(f"--data {name}: {len(whole)} images are too few to split")
    if whole.images.flat if isinstance(whole.images, Rows) else whole.images.min() == whole.images.max():
        raise BadInput(f"--data {name}: every pixel is {whole.pixels(slice(1))[0, 0]:g}; give images that differ")
    if missing:
        generator = torch.Generator().manual_seed(SHUFFLE_SEED)
        whole = select(
            whole, Order(len(whole), SHUFFLE_SEED) if whole.large else torch.randperm(len(whole), generator=generator)
        )
    for split in missing:
        pool = whole  # of training and validation, where validation is missing: it is cut off last
        splits[split] = cut(whole, len(whole) - tenth, len(whole))
        whole = cut(whole, 0, len(whole) - tenth)
    if "validation" not in missing:
        pool = join(whole, splits["validation"])
    notice = f"{name}: {'; '.join(source.notes)}" if source.notes else ""
    return _Source(name, source.shape, pool, splits["test"], (len(whole), len(splits["validation"])), notice)


def _writeable(array: np.ndarray) -> np.ndarray:
    """The array, or a copy of one that cannot be written to, which torch does not take."""
    return array if array.flags.writeable else array.copy()
