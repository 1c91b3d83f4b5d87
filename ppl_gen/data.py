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
import socket
import tempfile
import threading
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_gen.errors import BadInput, near_miss, require, require_choices

Binarization = Literal["dynamic", "static", "threshold", "none", "dequantized"]
SplitName = Literal["train", "validation", "test"]

# Seeds of the fixed draws. They are part of the data set, not of a run: every run sees the same test images.
_POOL_SEED, _TEST_SEED, _SHUFFLE_SEED = 1, 2, 3
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_DOWNLOAD_SECONDS = 10.0
_DRAWN = 10_000  # images whose binarization is drawn at a time, in their order
_MNIST_COUNTS, _MNIST_SPLIT = (60_000, 10_000), (50_000, 10_000)  # on disk, train and test; and how train is split
_AMAT_COUNTS = (50_000, 10_000, 10_000)


@dataclass(frozen=True)
class DataOptions:
    """Which images, and how they become targets."""

    data: str = "auto"
    """auto, mnist, fashion-mnist, kmnist, digits, binarized-mnist, or a file of images (.npy, .npz, .amat).
    auto is MNIST where it is on disk or can be downloaded, else scikit-learn's 8x8 digits."""
    binarization: Binarization = "dynamic"
    """dynamic: redrawn at every use in training, one fixed draw for validation and test; static: one fixed draw;
    threshold: pixel > 0.5; none: grey values; dequantized: grey values with uniform noise of one level."""
    train_size: int | None = None
    """Number of training images: the first N. All 60000 of MNIST leaves no validation split."""

    def __post_init__(self) -> None:
        require_choices(self)


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
    """What a person must be told: for `auto`, which data set it became and why."""

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


def load_data(options: DataOptions) -> Data:
    """Load, split and binarize. Raises `BadInput` for a data set that is unknown, missing, truncated or foreign,
    for pixels outside [0, 1], and for a `train_size` that the data set cannot give."""
    name, notice = options.data, ""
    shape: tuple[int, ...]
    if name == "auto":
        try:
            loaded = _torchvision("mnist")
            name = "mnist"
        except _Missing as error:  # a damaged MNIST is said, not replaced
            name = "digits"
            notice = f"MNIST is not on disk and {error.why}: using scikit-learn's 8x8 digits instead"
    elif name in _TORCHVISION:
        loaded = _torchvision(name)
    if name in _TORCHVISION:
        shape, pool, test = loaded
        sizes = _MNIST_SPLIT
    elif name == "digits":
        shape, pool, test = _digits()
        sizes = (1_197, 300)
    elif name == "binarized-mnist" or name.endswith(".amat"):
        shape, pool, test = _amat(name)
        sizes = _AMAT_COUNTS[:2]
        name = "binarized-mnist"
    elif Path(name).suffix in (".npy", ".npz"):
        shape, pool, test, sizes = _numpy_file(Path(name))
    else:
        known = ("auto", "digits", "binarized-mnist", *_TORCHVISION)
        raise BadInput(
            f"--data {name}: not a data set, nor a file ending in .npy, .npz or .amat{near_miss(name, known)}"
        )

    count = sizes[0] if options.train_size is None else options.train_size
    require(1 <= count <= len(pool), "train_size", count, f"{name} has 1 to {len(pool)} images for training")
    if options.binarization == "static":
        pool, test = _draw(pool, _POOL_SEED), _draw(test, _TEST_SEED)
    elif options.binarization == "threshold":
        pool, test = _threshold(pool), _threshold(test)
    if options.binarization == "dequantized" and pool.scale == 1:
        raise BadInput(f"--binarization dequantized: {name} has no grey levels, its pixels are binary or real numbers")
    # Validation is the end of the pool, and gives way only to a training split that asks for more than its share.
    start = max(sizes[0], count)
    train, validation = _cut(pool, 0, count), _cut(pool, start, len(pool))
    if options.binarization == "dynamic":
        validation, test = _cut(_draw(pool, _POOL_SEED), start, len(pool)), _draw(test, _TEST_SEED)
    elif options.binarization == "dequantized":
        validation, test = _cut(_dequantize(pool, _POOL_SEED), start, len(pool)), _dequantize(test, _TEST_SEED)
    return Data(name, shape, options.binarization, train, validation, test, notice)


def fingerprint(name: str) -> str | None:
    """SHA-256 of a file of images; None for a data set with a name, which does not change."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix and path.is_file() else None


def _cut(split: Split, start: int, stop: int) -> Split:
    labels = None if split.labels is None else split.labels[start:stop]
    return replace(split, images=split.images[start:stop], labels=labels)


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


def _torchvision(name: str) -> tuple[tuple[int, int], Split, Split]:
    """MNIST or a data set of its format, through torchvision, from the first folder that has it."""
    import_torchvision()
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[name])
    files = [Path(file).stem for file, _ in dataset.resources]
    raw = Path(_TORCHVISION[name]) / "raw"
    for folder in _folders():
        if all((folder / raw / file).is_file() for file in files):
            break
    else:
        folder = _folders()[0]
        _download(name, dataset, folder)

    splits = []
    for train, count in zip((True, False), _MNIST_COUNTS, strict=True):
        try:
            part = dataset(str(folder), train=train)
            images, labels = part.data, part.targets
            if images.shape != (count, 28, 28) or labels.shape != (count,):
                raise ValueError(f"{tuple(images.shape)} is not ({count}, 28, 28)")
        except Exception as error:  # torchvision raises whatever its parser stumbles on
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(
                f"--data {name}: the {'training' if train else 'test'} files in {folder / raw} are truncated or "
                f"foreign ({reason}); delete that folder to download them again"
            ) from None
        splits.append(Split(images.flatten(1).contiguous(), labels, 255))
    return (28, 28), splits[0], splits[1]


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
            "set PPL_GEN_DATA to the folder that holds it",
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
        raise _Missing(f"--data {name}: {why}; set PPL_GEN_DATA to the folder that holds it", why) from None
    finally:
        socket.setdefaulttimeout(before)


def _digits() -> tuple[tuple[int, int], Split, Split]:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels; shuffled once with a fixed seed, since the
    file is sorted by writer. 300 images are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = torch.randperm(len(bunch.data), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
    images = torch.from_numpy(bunch.data).to(torch.uint8)[order]
    labels = torch.from_numpy(bunch.target)[order]
    whole = Split(images, labels, 16)
    return (8, 8), _cut(whole, 0, 1_497), _cut(whole, 1_497, 1_797)


def _amat(name: str) -> tuple[tuple[int, int], Split, Split]:
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
    return (28, 28), Split(torch.cat(parts[:2])), Split(parts[2])


def _numpy_file(path: Path) -> tuple[tuple[int, ...], Split, Split, tuple[int, int]]:
    """A `.npy` array of images, or an `.npz` with `train` and optionally `validation`, `test` and `*_labels`.

    Images are [N, height, width] or [N, pixels]; uint8 in 0..255, bool, or floats in [0, 1]. Where a split is
    not given, a tenth of the images, chosen with a fixed seed, serves.
    """
    if not path.is_file():
        raise BadInput(f"--data {path}: no such file")
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"train": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except Exception as error:  # zipfile, pickle, EOF and value errors all mean the same here
        raise BadInput(f"--data {path}: truncated, or not a NumPy file of numbers ({error})") from None
    if "train" not in arrays and len(arrays) == 1:
        arrays = {"train": next(iter(arrays.values()))}
    if "train" not in arrays:
        raise BadInput(f"--data {path}: no array called 'train' among {', '.join(sorted(arrays))}")

    given = [name for name in ("train", "validation", "test") if name in arrays]
    shape, dtype = arrays["train"].shape[1:], arrays["train"].dtype
    for name in given:
        if (arrays[name].shape[1:], arrays[name].dtype) != (shape, dtype):
            raise BadInput(
                f"--data {path}: {name} is {arrays[name].dtype} {arrays[name].shape[1:]}, train is {dtype} {shape}"
            )
    # Bytes are 0..255 unless no split has more than 1.
    scale = 255 if dtype == np.uint8 and any(arrays[name].max(initial=0) > 1 for name in given) else 1
    splits = {
        name: _from_array(f"{path} [{name}]", arrays[name], arrays.get(f"{name}_labels"), scale) for name in given
    }

    whole = splits["train"]
    missing = [name for name in ("test", "validation") if name not in splits]
    if missing:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
        labels = None if whole.labels is None else whole.labels[order]
        whole = replace(whole, images=whole.images[order], labels=labels)
    tenth = max(1, len(splits["train"]) // 10)
    if len(whole) <= len(missing) * tenth:
        raise BadInput(f"--data {path}: {len(whole)} images are too few to split")
    for name in missing:
        splits[name] = _cut(whole, len(whole) - tenth, len(whole))
        whole = _cut(whole, 0, len(whole) - tenth)
    validation = splits["validation"]
    labelled = [name for name in ("train", "validation", "test") if splits[name].labels is not None]
    if len(labelled) not in (0, 3):
        raise BadInput(f"--data {path}: only {', '.join(labelled)} with labels; give all splits labels, or none")
    labels = None
    if whole.labels is not None and validation.labels is not None:
        labels = torch.cat([whole.labels, validation.labels])
    pool = Split(torch.cat([whole.images, validation.images]), labels, whole.scale)
    return shape, pool, splits["test"], (len(whole), len(validation))


def _from_array(where: str, array: np.ndarray, labels: np.ndarray | None, scale: int) -> Split:
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "buif":
        raise BadInput(f"--data {where}: expected numbers [images, height, width], got {array.dtype} {array.shape}")
    flat = np.ascontiguousarray(array.reshape(len(array), -1))
    if missing := int((~np.isfinite(flat)).sum()):
        raise BadInput(f"--data {where}: {missing} pixels are not finite numbers")
    low, high = flat.min(), flat.max()
    if not (low >= 0 and high <= scale):
        raise BadInput(f"--data {where}: pixels lie in [{low}, {high}], outside [0, 1]; scale them first")
    if labels is not None and labels.shape != (len(array),):
        raise BadInput(f"--data {where}: {labels.shape} labels for {len(array)} images")
    if labels is not None and labels.dtype.kind not in "bui":
        raise BadInput(f"--data {where}: labels must be integers, these are {labels.dtype}")
    flat = flat.astype(np.uint8 if flat.dtype.kind in "bui" else np.float32)
    return Split(torch.from_numpy(flat), None if labels is None else torch.from_numpy(labels), scale)
