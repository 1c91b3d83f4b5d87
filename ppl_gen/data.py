"""Data sets, splits and binarization.

An image is a row of `data_dim` pixels in [0, 1]. A split holds all its images in one tensor on one device, so
that a batch is an index into it and binarization is one `torch.bernoulli`.

Binarization belongs to the identity of a data set (Salakhutdinov and Murray 2008; Burda et al. 2016):

- `dynamic`: x ~ Bernoulli(pixel), redrawn whenever a training image is used; validation and test images are
  drawn once with a fixed seed, the same for every run.
- `static`: one fixed-seed draw of every image.
- `threshold`: x = 1 where pixel > 0.5.
- `none`: grey values as they are. Under a Bernoulli likelihood the resulting figure is no bound on a
  log-probability.
- `dequantized`: a density in place of the probabilities of L grey levels: x = (level + u) / L, u uniform in [0, 1)
  (Theis et al. 2016), drawn anew for training, once for validation and test. x is in [0, 1] and so is the density's
  unit: it is L^data_dim times that of level + u.
"""

import hashlib
import os
import re
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_gen import arrays, sources
from ppl_gen.data_options import Binarization, DataOptions
from ppl_gen.errors import BadInput, near_miss, require, require_choices

SplitName = Literal["train", "validation", "test"]

_BINARY, _REDRAWN = ("dynamic", "static", "threshold"), ("dynamic", "dequantized")
# Seeds of the fixed draws. They are part of the data set, not of a run: every run sees the same test images.
_POOL_SEED, _TEST_SEED, _SHUFFLE_SEED = 1, 2, 3
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_DOWNLOAD_SECONDS = 10.0
_DRAWN = 10_000  # images whose binarization is drawn at a time, in their order
_MNIST_COUNTS, _MNIST_SPLIT = (60_000, 10_000), (50_000, 10_000)  # on disk, train and test; and how train is split
_AMAT_COUNTS = (50_000, 10_000, 10_000)
_NAMES = ("auto", "digits", "binarized-mnist", *_TORCHVISION)


@dataclass(frozen=True)
class Split:
    """Images [N, data_dim], as uint8 in 0..scale or as float32 in [0, 1], and their labels [N] if there are any."""

    images: Tensor
    labels: Tensor | None = None
    scale: int = 1

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, index: Any = slice(None)) -> Tensor:
        """Grey values in [0, 1] of the images at `index` (a slice or an index tensor), float32 [n, data_dim]."""
        images = self.images[index]
        if self.scale == 1:
            return images.float()
        # Not by a number, which CUDA multiplies by the reciprocal of: grey values are the same on every device.
        return images / torch.full((), float(self.scale), device=images.device)

    def dequantized(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Grey values [n, data_dim] with noise: uniform in the interval of each pixel's level."""
        return (pixels * self.scale + torch.rand(pixels.shape, generator=generator, device=pixels.device)) / (
            self.scale + 1
        )

    def to(self, device: torch.device | str) -> "Split":
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)


@dataclass(frozen=True)
class Data:
    """A data set in three splits, binarized as asked. `validation` may be empty."""

    name: str
    shape: tuple[int, ...]
    binarization: Binarization
    train: Split
    validation: Split
    test: Split
    notice: str = field(default="", compare=False)
    """What a person must be told: for `auto`, which data set it became and why; for a file, how it was read where it
    could be read otherwise."""
    sha256: str | None = field(default=None, compare=False)
    """Fingerprint of images that were handed over in Python."""

    def __post_init__(self) -> None:
        """Binarize, or dequantize, splits that are still grey. Those of `load_data` are as they must be.

        :raises BadInput: for images of another shape, and for pixels outside [0, 1] where they are probabilities.
        """
        require_choices(self)
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if split.images.shape[1:] != (self.dim,):
                what = f"images {list(split.images.shape)} of {name}, where shape {self.shape} needs [N, {self.dim}]"
                raise BadInput(f"data {self.name}: {what}")
            if self.binarization in _BINARY and not _in_range(split):
                raise BadInput(f"data {self.name}: pixels of {name} lie outside [0, {split.scale}]")
        if self.binarization == "dequantized" and self.train.scale == 1:
            raise BadInput(f"data {self.name}: dequantized needs grey levels, and its scale is 1")
        fixed = [self.validation] if self.binarization in _REDRAWN else [self.train, self.validation]
        if not all(_is_fixed(split, self.binarization) for split in fixed):
            pool, count = _fixed(_join(self.train, self.validation), self.binarization, _POOL_SEED), len(self.train)
            object.__setattr__(self, "validation", _cut(pool, count, len(pool)))
            if self.binarization not in _REDRAWN:
                object.__setattr__(self, "train", _cut(pool, 0, count))
        if not _is_fixed(self.test, self.binarization):
            object.__setattr__(self, "test", _fixed(self.test, self.binarization, _TEST_SEED))

    @property
    def dim(self) -> int:
        """Pixels per image."""
        return int(np.prod(self.shape))

    def split(self, name: str) -> Split:
        """The split of that name. Raises `BadInput` where it holds no image."""
        split = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if len(split) == 0:
            raise BadInput(f"--split {name}: {self.name} was fitted with all its images, none left for {name}")
        return split

    def batch(self, index: Tensor) -> Tensor:
        """Training targets float32 [n, data_dim] at `index`; drawn anew from torch's generator if `dynamic`."""
        pixels = self.train.pixels(index)
        if self.binarization == "dynamic":
            return torch.bernoulli(pixels)
        return self.train.dequantized(pixels) if self.binarization == "dequantized" else pixels

    def targets(self, name: str, index: Any = slice(None)) -> Tensor:
        """Fixed targets float32 [n, data_dim] of a split: what an evaluation sees. The training split of `dynamic` and
        `dequantized` data has one fixed draw for this purpose too."""
        split = self.split(name)
        if name == "train" and self.binarization == "dynamic":
            rows = torch.arange(len(split))[index if isinstance(index, slice) else index.cpu()]
            needed = int(rows.max()) + 1 if len(rows) else 0
            split = _draw(_cut(split, 0, -(-needed // _DRAWN) * _DRAWN), _POOL_SEED)
        elif name == "train" and self.binarization == "dequantized":
            split = _dequantize(split, _POOL_SEED)
        return split.pixels(index)

    def examples(self, seed: int, count: int = 2000) -> Tensor:
        """Grey values [at most count, data_dim] of training images chosen at random."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(self.train), generator=generator)[:count]
        return self.train.pixels(index.to(self.train.images.device))

    def mean(self) -> Tensor:
        """Mean training pixel [data_dim] in float32, smoothed by half an observation so that it is inside (0, 1)."""
        total = torch.zeros(self.dim, dtype=torch.float64, device=self.train.images.device)
        for block in torch.arange(len(self.train)).split(10_000):
            total += self.train.pixels(block).double().sum(0)
        return ((total + 0.5) / (len(self.train) + 1)).float()

    def to(self, device: torch.device | str) -> "Data":
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )


class _Source(NamedTuple):
    """Images as a source has them, before they are split and binarized."""

    name: str
    shape: tuple[int, ...]
    pool: Split
    """Images for training and validation."""
    test: Split
    sizes: tuple[int, int]
    """How many of the pool are for training, and for validation."""
    notice: str = ""
    sha256: str | None = None


def load_data(options: DataOptions, given: Any = None) -> Data:
    """Load, split and binarize.

    :param given: images that were handed over in Python, as `arrays.collect` takes them, in place of `options.data`.
    :raises BadInput: for a data set that is unknown, missing, truncated or foreign, for pixels outside [0, 1], and for
        a `train_size` that the data set cannot give.
    """
    if isinstance(given, Data):
        return given
    source = _source(options.data, options.largest_pixel) if given is None else _given(given, options.largest_pixel)
    pool, sizes = source.pool, source.sizes
    if options.largest_pixel is not None and source.name in _NAMES:
        raise BadInput(f"--largest-pixel {options.largest_pixel}: is for files, and {source.name} has a name")
    count = sizes[0] if options.train_size is None else options.train_size
    require(1 <= count <= len(pool), "train_size", count, f"{source.name} has 1 to {len(pool)} images for training")
    if options.binarization == "dequantized" and pool.scale == 1:
        raise BadInput(
            f"--binarization dequantized: {source.name} has no grey levels, its pixels are binary or real numbers"
        )
    fixed, test = (
        _fixed(each, options.binarization, seed) for each, seed in ((pool, _POOL_SEED), (source.test, _TEST_SEED))
    )
    # Validation is the end of the pool, and gives way only to a training split that asks for more than its share.
    start = max(sizes[0], count)
    train = _cut(pool if options.binarization in _REDRAWN else fixed, 0, count)
    validation = _cut(fixed, start, len(pool))
    found = source.name, source.shape, options.binarization, train, validation, test
    return Data(*found, notice=source.notice, sha256=source.sha256)


def _source(name: str, largest: int | None) -> _Source:
    """The images that a name stands for, or that a file holds."""
    if name == arrays.NAME:
        raise BadInput("--data array: was an array of a Python session; hand it over again: Run.open(…, data=x)")
    if name == "auto":
        try:
            return _torchvision("mnist")
        except _Missing as error:  # a damaged MNIST is said, not replaced
            notice = f"MNIST is not on disk and {error.why}: using scikit-learn's 8x8 digits instead"
            return _digits()._replace(notice=notice)
    if name in _TORCHVISION:
        return _torchvision(name)
    if name == "digits":
        return _digits()
    if name == "binarized-mnist" or re.fullmatch(r"binarized_mnist_(train|valid|test)\.amat", Path(name).name):
        return _amat(name)
    if sources.readable(name):
        return _splits(name, sources.read(name, largest))
    kinds = ".npy, .npz, .mat, .csv or IDX"
    raise BadInput(f"--data {name}: not a data set, nor a file of images: {kinds}{near_miss(name, _NAMES)}")


def _given(given: Any, largest: int | None) -> _Source:
    """The images that were handed over in Python."""
    collected = arrays.collect(given)
    found = _splits(arrays.NAME, arrays.read(collected, largest))
    return found._replace(sha256=arrays.fingerprint(collected))


def fingerprint(name: str) -> str | None:
    """SHA-256 of a file of images, with the files beside it that belong to it; None for a data set with a name, which
    does not change."""
    if name in _NAMES:
        return None
    paths = sources.files(name)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest() if paths[0].is_file() else None


def _cut(split: Split, start: int, stop: int) -> Split:
    labels = None if split.labels is None else split.labels[start:stop]
    return replace(split, images=split.images[start:stop], labels=labels)


def _join(first: Split, second: Split) -> Split:
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    if first.scale == second.scale:
        return Split(torch.cat([first.images, second.images]), labels, first.scale)
    return Split(torch.cat([first.pixels(), second.pixels()]), labels)


def _in_range(split: Split) -> bool:
    return len(split) == 0 or bool((split.images.min() >= 0) & (split.images.max() <= split.scale))


def _is_fixed(split: Split, binarization: Binarization) -> bool:
    """Whether a split holds targets, not grey values that they are made of."""
    if binarization not in _BINARY:
        return binarization == "none" or split.scale == 1
    images = split.images
    return split.scale == 1 and (not images.is_floating_point() or bool(((images == 0) | (images == 1)).all()))


def _fixed(split: Split, binarization: Binarization, seed: int) -> Split:
    """The fixed targets that a binarization makes of grey values."""
    if binarization in ("dynamic", "static"):
        return _draw(split, seed)
    if binarization == "dequantized":
        return _dequantize(split, seed)
    return _threshold(split) if binarization == "threshold" else split


def _draw(split: Split, seed: int) -> Split:
    """One Bernoulli draw of every image, on the CPU so that it is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        torch.bernoulli(split.pixels(block).cpu(), generator=generator).to(torch.uint8)
        for block in torch.arange(len(split)).split(_DRAWN)
    ]
    images = torch.cat(blocks) if blocks else split.images.cpu()
    return Split(images.to(split.images.device), split.labels, 1)


def _dequantize(split: Split, seed: int) -> Split:
    """One draw of the noise of every image, on the CPU so that it is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return Split(split.dequantized(split.pixels().cpu(), generator).to(split.images.device), split.labels, 1)


def _threshold(split: Split) -> Split:
    return Split((split.pixels() > 0.5).to(torch.uint8), split.labels, 1)


# Where the images come from ------------------------------------------------------------------------------------


def _folders() -> list[Path]:
    """Where data sets are looked for, in order: $PPL_GEN_DATA, then data/."""
    named = os.environ.get("PPL_GEN_DATA")
    return [*([Path(named)] if named else []), Path("data")]


class _Missing(BadInput):
    """Not on disk and not to be had from the network."""

    def __init__(self, message: str, why: str):
        super().__init__(message)
        self.why = why


def import_torchvision() -> Any:
    """torchvision, also beside a CPU-only torch.

    The registry's torchvision is compiled against CUDA. Beside a CPU-only torch its library cannot load, and its
    Python code then fails on two operators that it only decorates. Their schemas are enough to import the
    pure-Python parts, which are all that is used here.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_torchvision.library = library  # type: ignore[attr-defined]  # the schemas live as long as it does
        import torchvision
    return torchvision


def _torchvision(name: str) -> _Source:
    """MNIST or a data set of its format, from the first folder that has it in torchvision's layout, or has its files
    itself; and a notice."""
    notice = ""
    found = next(_found(name), None)
    if found is None:
        import_torchvision()
        from torchvision import datasets

        _download(name, getattr(datasets, _TORCHVISION[name]), _folders()[0])
        found = next(_found(name))
    raw, sure = found
    if not sure:
        notice = f"{name} is read from the files in {raw} itself, whose names do not say that they are of {name}"

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
        except Exception as error:  # gzip, zlib and the file system have errors of their own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(
                f"--data {name}: the {'training' if part == 'train' else 'test'} files in {raw} are truncated or "
                f"foreign ({reason}); delete them to download them again"
            ) from None
        pixels = torch.from_numpy(images.reshape(count, -1).copy())
        splits.append(Split(pixels, torch.from_numpy(labels.astype(np.int64)), 255))
    return _Source(name, (28, 28), splits[0], splits[1], _MNIST_SPLIT, notice)


def _found(name: str) -> Iterator[tuple[Path, bool]]:
    """Folders that hold the four files of a data set, and whether it is certain that they are its own.

    All these data sets have files of the same names. Those that are not in a folder of its own are MNIST's unless the
    name of their folder, or of the one above, says otherwise.
    """
    files = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    own = _TORCHVISION[name]
    for folder in _folders():
        for raw in (folder / own / "raw", folder / own, folder / "raw", folder):
            if all(sources.plain_or_gz(raw / file) for file in files):
                told = [_data_set_in(part) for part in reversed(raw.absolute().parts[-3:])]
                said = next((each for each in told if each is not None), None)
                if said == name or (said is None and name == "mnist"):
                    yield raw, said == name


def _data_set_in(folder: str) -> str | None:
    """The data set that the name of a folder speaks of."""
    told = re.search(r"fashion|kuzushiji|(?<![a-z])[ekq]mnist|mnist", folder.lower())
    return None if told is None else {"fashion": "fashion-mnist", "kuzushiji": "kmnist"}.get(told[0], told[0])


def _download(name: str, dataset: Any, folder: Path) -> None:
    """Download into a temporary folder and move the finished files into place, so that a partial file is never
    taken for a data set. Gives up after 10 seconds without an answer."""
    answered = threading.Event()
    failure: list[str] = []

    def knock() -> None:
        # Name resolution obeys no socket timeout; a thread that is left behind does.
        try:
            urllib.request.urlopen(dataset.mirrors[0] + dataset.resources[0][0], timeout=_DOWNLOAD_SECONDS).close()
        except OSError as error:
            failure.append(str(getattr(error, "reason", error)))
        answered.set()

    threading.Thread(target=knock, daemon=True).start()
    if not answered.wait(_DOWNLOAD_SECONDS):
        failure.append(f"no answer in {_DOWNLOAD_SECONDS:.0f} seconds")
    if failure:
        why = f"cannot be downloaded ({failure[0]})"
        raise _Missing(
            f"--data {name}: not in {' or '.join(str(f) for f in _folders())} and {why}; "
            f"set PPL_GEN_DATA to the folder that holds {_TORCHVISION[name]}/",
            why,
        )

    one_mirror = type(dataset.__name__, (dataset,), {"mirrors": dataset.mirrors[:1]})
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            one_mirror(scratch, download=True)
            final = folder / dataset.__name__ / "raw"
            final.mkdir(parents=True, exist_ok=True)
            for file, _ in dataset.resources:
                os.replace(Path(scratch) / dataset.__name__ / "raw" / Path(file).stem, final / Path(file).stem)
    except (OSError, RuntimeError) as error:
        why = f"cannot be downloaded ({str(error).strip().splitlines()[-1]})"
        where = f"set PPL_GEN_DATA to the folder that holds {_TORCHVISION[name]}/"
        raise _Missing(f"--data {name}: {why}; {where}", why) from None
    finally:
        socket.setdefaulttimeout(before)


def _digits() -> _Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels; shuffled once with a fixed seed, since the
    file is sorted by writer. 300 images are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
    images = torch.from_numpy(bunch.data).to(torch.uint8)[order]
    labels = torch.from_numpy(bunch.target)[order]
    whole = Split(images, labels, 16)
    return _Source("digits", (8, 8), _cut(whole, 0, 1_497), _cut(whole, 1_497, 1_797), (1_197, 300))


def _amat(name: str) -> _Source:
    """Larochelle and Murray's (2011) fixed binarization of MNIST: three text files of 0s and 1s."""
    if name == "binarized-mnist":
        candidates = [folder / "BinarizedMNIST" for folder in _folders()]
        folder = next((c for c in candidates if (c / "binarized_mnist_train.amat").is_file()), candidates[0])
    else:
        folder = Path(name).parent
    parts = []
    for part, count in zip(("train", "valid", "test"), _AMAT_COUNTS, strict=True):
        path = folder / f"binarized_mnist_{part}.amat"
        if not path.is_file():
            raise BadInput(
                f"--data {name}: {path} is missing; all three of binarized_mnist_{{train,valid,test}}.amat are needed"
            )
        digits = np.frombuffer(path.read_bytes(), np.uint8)
        digits = digits[digits > ord(" ")] - ord("0")
        if digits.size != count * 784 or digits.max() > 1:
            raise BadInput(
                f"--data {name}: {path} is truncated or foreign: expected {count} lines of 784 zeros and ones"
            )
        parts.append(torch.from_numpy(digits.reshape(count, 784).copy()))
    return _Source("binarized-mnist", (28, 28), Split(torch.cat(parts[:2])), Split(parts[2]), _AMAT_COUNTS[:2])


def _splits(name: str, found: sources.Images) -> _Source:
    """The splits of a file, or of arrays. One that is not there is a tenth of the training images, chosen with a fixed
    seed."""
    splits = {
        split: Split(
            torch.from_numpy(images if images.flags.writeable else images.copy()),
            torch.from_numpy(found.labels[split]) if split in found.labels else None,
            found.scale,
        )
        for split, images in found.splits.items()
    }
    whole = splits["train"]
    missing = [split for split in ("test", "validation") if split not in splits]
    if missing:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
        labels = None if whole.labels is None else whole.labels[order]
        whole = replace(whole, images=whole.images[order], labels=labels)
    tenth = max(1, len(whole) // 10)
    if len(whole) <= len(missing) * tenth:
        raise BadInput(f"--data {name}: {len(whole)} images are too few to split")
    if (whole.images == whole.images[0, 0]).all():
        raise BadInput(
            f"--data {name}: every pixel is {whole.pixels(slice(1))[0, 0]:g}, nothing can be learned from them"
        )
    for split in missing:
        splits[split] = _cut(whole, len(whole) - tenth, len(whole))
        whole = _cut(whole, 0, len(whole) - tenth)
    pool = _join(whole, splits["validation"])
    notice = f"{name}: {'; '.join(found.notes)}" if found.notes else ""
    return _Source(name, found.shape, pool, splits["test"], (len(whole), len(splits["validation"])), notice)
