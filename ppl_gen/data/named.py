"""Data sets of the literature by name, from their authors' own files: color images, and characters.

The files lie where torchvision puts them. Archives are read as they are: nothing is unpacked. Nothing in a file is
executed: of the pickles of CIFAR-10 only arrays, texts and numbers are accepted.
"""

import codecs
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from ppl_gen.core.errors import BadInput, words_of
from ppl_gen.core.paths import is_file, is_folder
from ppl_gen.data.pixels import RawArrays
from ppl_gen.data.sources import plain_or_gz, read_idx, require_free

HELD_OUT = 1345
"""Training images of `omniglot-burda` that are its validation split, as in the literature."""
_HELD_OUT_SEED = 1
_BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
_EMNIST = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
_MAT = re.compile(r"chardata\.mat|caltech101_silhouettes_\d+_split\d+\.mat")


class DataSet(NamedTuple):
    """A named data set: its files, and how they are read.

    >>> DATA_SETS["svhn"].files
    ('train_32x32.mat', 'test_32x32.mat')
    """

    folders: tuple[str, ...]
    """Folders below the data folder that may hold the files; an empty name is the data folder itself."""
    files: tuple[str, ...]
    """Files, or folders, that are all needed; an archive and its folder are alternatives, with | between them."""
    read: Callable[[Sequence[Path]], RawArrays]


def find(name: str, folders: Sequence[Path]) -> list[Path] | None:
    """The files of a named data set, from the first folder that holds all of them; None if there is none."""
    wanted = DATA_SETS[name]
    for folder in (folder / below for folder in folders for below in wanted.folders):
        found = [_either(folder, names.split("|")) for names in wanted.files]
        if None not in found:
            return [path for path in found if path is not None]
    return None


def _either(folder: Path, names: Sequence[str]) -> Path | None:
    paths = [plain_or_gz(folder / name) or folder / name for name in names]
    return next((path for path in paths if is_file(path) or is_folder(path, "--data")), None)


def of_file(name: str) -> str | None:
    """The data set that a file of a known name is of: `omniglot-burda` or `caltech-silhouettes`; None for others.

    >>> of_file("data/chardata.mat"), of_file("photos.mat")
    ('omniglot-burda', None)
    """
    file = Path(name).name.lower()
    if not _MAT.fullmatch(file):
        return None
    return "omniglot-burda" if file == "chardata.mat" else "caltech-silhouettes"


def read(name: str, paths: Sequence[Path]) -> RawArrays:
    """The images of a named data set from its files.

    :raises BadInput: for files that are truncated or of another format.
    """
    try:
        return DATA_SETS[name].read(paths)
    except BadInput:
        raise
    except Exception as error:  # parsers raise errors of many types for a damaged file
        where = ", ".join(map(str, paths[:2]))
        raise BadInput(
            f"--data {name}: {where}: truncated, or of another format ({words_of(error, 150)}); delete it, and get it "
            "again"
        ) from None


# CIFAR-10 ------------------------------------------------------------------------------------------------------


class _Arrays(pickle.Unpickler):
    """A reader of pickles that makes arrays, and calls nothing else."""

    _ALLOWED = {  # noqa: RUF012  # never changed
        "_reconstruct": np.empty(0).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "encode": codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of images needs")
        return self._ALLOWED[name]


def _cifar10(paths: Sequence[Path]) -> RawArrays:
    """Krizhevsky (2009): five batches of training images, and one of test images, each a pickle of a dictionary."""
    images, labels = [], []
    for name in _BATCHES:
        with _member(paths[0], name) as file:
            batch = _Arrays(file, encoding="bytes").load()
        data = np.asarray(batch[b"data"])
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise ValueError(f"{name} holds {data.dtype} {data.shape}, not bytes [images, 3072]")
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(np.asarray(batch[b"labels"], np.int64))
    parts = {"train": slice(0, 5), "test": slice(5, 6)}
    return RawArrays(
        {split: np.concatenate(images[part]) for split, part in parts.items()},
        {split: np.concatenate(labels[part]) for split, part in parts.items()},
        [],
    )


def _member(path: Path, name: str) -> IO[bytes]:
    """A file in a folder or in a .tar archive."""
    if is_folder(path, "--data"):
        return open(path / name, "rb")
    with tarfile.open(path) as archive:
        member = next(each for each in archive if PurePosixPath(each.name).name == name and each.isfile())
        inner = archive.extractfile(member)
        assert inner is not None
        return BytesIO(inner.read())


# MATLAB's files ------------------------------------------------------------------------------------------------


def _variables(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Variables of a .mat file, which are read if there is memory for them."""
    import scipy.io

    shapes = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
    if lacking := [name for name in names if name not in shapes]:
        raise ValueError(f"it has no variable {lacking[0]}")
    require_free(f"--data {path}", 8 * sum(int(np.prod(shapes[name], dtype=np.int64)) for name in names))
    content = scipy.io.loadmat(path, variable_names=list(names))
    return [content[name] for name in names]


def _svhn(paths: Sequence[Path]) -> RawArrays:
    """Netzer et al. (2011), cropped digits: X [32, 32, 3, images], and y, where the digit 0 has the label 10."""
    images, labels = {}, {}
    for split, path in zip(("train", "test"), paths, strict=True):
        x, y = _variables(path, ("X", "y"))
        images[split], labels[split] = x.transpose(3, 2, 0, 1), y.ravel().astype(np.int64) % 10
    return RawArrays(images, labels, [])


def _upright(rows: np.ndarray) -> np.ndarray:
    """Images [images, pixels] of MATLAB, which counts pixels down the columns, as [images, height, width]."""
    side = round(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side).transpose(0, 2, 1)


def _omniglot_burda(paths: Sequence[Path]) -> RawArrays:
    """OMNIGLOT as in Burda et al. (2016): 28 x 28 grey values in [0, 1], 24,345 training and 8,070 test images. The
    labels are the alphabets."""
    data, target, test, test_target = _variables(paths[0], ("data", "target", "testdata", "testtarget"))
    if len(data) != len(test) or round(len(data) ** 0.5) ** 2 != len(data):
        raise ValueError(f"data is {data.shape} and testdata {test.shape}, not [pixels, images]")
    images, labels = _upright(data.T), target.argmax(0)
    held_out = min(HELD_OUT, len(images) // 2)
    order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(images))
    train, validation = np.sort(order[held_out:]), np.sort(order[:held_out])
    return RawArrays(
        {"train": images[train], "validation": images[validation], "test": _upright(test.T)},
        {"train": labels[train], "validation": labels[validation], "test": test_target.argmax(0)},
        [],
    )


def _caltech_silhouettes(paths: Sequence[Path]) -> RawArrays:
    """Caltech 101 silhouettes, Marlin et al. (2010): binary images, 4,100 / 2,264 / 2,307 in three splits. The labels
    1 to 101 become 0 to 100."""
    splits = {"train": "train", "validation": "val", "test": "test"}
    names = [f"{name}_{kind}" for name in splits.values() for kind in ("data", "labels")]
    found = dict(zip(names, _variables(paths[0], names), strict=True))
    images = {split: _upright(found[f"{name}_data"]) for split, name in splits.items()}
    labels = {split: found[f"{name}_labels"].ravel().astype(np.int64) - 1 for split, name in splits.items()}
    return RawArrays(images, labels, [])


# Characters ----------------------------------------------------------------------------------------------------


def _omniglot(paths: Sequence[Path]) -> RawArrays:
    """Lake et al. (2015): 105 x 105 binary images, 19,280 of the background alphabets for training and 13,180 of others
    for tests. A stroke is 1. The labels are the characters, of which no split has those of the other."""
    images, classes = {}, {}
    for split, path in zip(("train", "test"), paths, strict=True):
        drawn = sorted(_drawings(path))
        images[split] = np.stack([_ink(content) for _, _, content in drawn])
        classes[split] = [character for character, _, _ in drawn]
    characters = dict.fromkeys([*classes["train"], *classes["test"]])
    number = {character: index for index, character in enumerate(characters)}
    labels = {split: np.array([number[each] for each in found]) for split, found in classes.items()}
    return RawArrays(images, labels, [])


def _drawings(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """Character, file name and content of each image, in a folder or a .zip archive."""
    if is_folder(path, "--data"):
        for file in path.rglob("*.png"):
            yield file.parent.relative_to(path).as_posix(), file.name, file.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".png"):
                inner = PurePosixPath(name)
                yield "/".join(inner.parent.parts[1:]), inner.name, archive.read(name)


def _ink(content: bytes) -> np.ndarray:
    """A picture of black strokes on white as uint8 [height, width], where a stroke is 1."""
    from PIL import Image

    with Image.open(BytesIO(content), formats=["PNG"]) as picture:
        return 1 - np.asarray(picture.convert("1"), np.uint8)


def _emnist(paths: Sequence[Path]) -> RawArrays:
    """Cohen et al. (2017): MNIST's format, with height and width exchanged. Labels that start at 1 become those from
    0."""
    train, train_labels, test, test_labels = map(read_idx, paths)
    first = int(train_labels.min())
    return RawArrays(
        {"train": train.transpose(0, 2, 1), "test": test.transpose(0, 2, 1)},
        {"train": train_labels.astype(np.int64) - first, "test": test_labels.astype(np.int64) - first},
        [],
    )


def _emnist_files(split: str) -> tuple[str, ...]:
    kinds = ("images-idx3", "labels-idx1")
    return tuple(f"emnist-{split}-{part}-{kind}-ubyte" for part in ("train", "test") for kind in kinds)


_EMNIST_FOLDERS = ("EMNIST/raw", "EMNIST", "")
DATA_SETS = {
    "cifar10": DataSet(("", "cifar10", "CIFAR10"), ("cifar-10-batches-py|cifar-10-python.tar.gz",), _cifar10),
    "svhn": DataSet(("", "svhn", "SVHN"), ("train_32x32.mat", "test_32x32.mat"), _svhn),
    "omniglot": DataSet(
        ("omniglot-py", ""),
        ("images_background|images_background.zip", "images_evaluation|images_evaluation.zip"),
        _omniglot,
    ),
    "omniglot-burda": DataSet(("", "OMNIGLOT", "omniglot"), ("chardata.mat",), _omniglot_burda),
    "caltech-silhouettes": DataSet(
        ("", "Caltech101Silhouettes", "caltech"), ("caltech101_silhouettes_28_split1.mat",), _caltech_silhouettes
    ),
    "emnist": DataSet(_EMNIST_FOLDERS, _emnist_files("balanced"), _emnist),
    **{f"emnist-{split}": DataSet(_EMNIST_FOLDERS, _emnist_files(split), _emnist) for split in _EMNIST},
}
"""The data sets by name. `emnist` is the balanced split of EMNIST."""
