import gzip
import html
import http.server
import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data import loading as data_module
from ppl_gen.data import splits
from ppl_gen.data.loading import fingerprint, load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data, Split
from ppl_gen.experiment.loading import load

COUNTS = {"train": 600, "t10k": 100}


def write_mnist(folder: Path, dataset: str = "MNIST") -> Path:
    """A small data set in MNIST's format."""
    raw = folder / dataset / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        pixels = rng.integers(0, 256, (count, 28, 28), np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = rng.integers(0, 10, count, np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return raw


@pytest.fixture
def small_mnist(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(data_module, "_MNIST_COUNTS", (600, 100))
    monkeypatch.setattr(data_module, "_MNIST_SPLIT", (500, 100))
    return write_mnist(elsewhere / "data")


def test_mnist_is_split_and_scaled(small_mnist: Path) -> None:
    data = load_data(DataOptions(data="mnist", binarization="none"))
    assert (len(data.train), len(data.validation), len(data.test)) == (500, 100, 100)
    assert data.shape == (28, 28) and data.dim == 784
    raw = np.frombuffer((small_mnist / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(600, 784)
    np.testing.assert_array_equal(data.targets("train").numpy(), raw[:500] / np.float32(255))
    np.testing.assert_array_equal(data.targets("validation").numpy(), raw[500:] / np.float32(255))
    assert data.train.labels is not None and data.train.labels.shape == (500,)
    expected = (raw[:500].sum(0) / 255 + 0.5) / 501
    np.testing.assert_allclose(data.mean().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "left"), [(20, 100), (500, 100), (550, 50), (600, 0)])
def test_train_size(small_mnist: Path, size: int, left: int) -> None:
    data = load_data(DataOptions(data="mnist", binarization="none", train_size=size))
    assert (len(data.train), len(data.validation)) == (size, left)
    whole = load_data(DataOptions(data="mnist", binarization="none"))
    both = min(size, 500)
    assert torch.equal(data.train.images[:both], whole.train.images[:both])
    if left == 0:
        with pytest.raises(BadInput, match="none left for validation"):
            data.split("validation")


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_same_format(small_mnist: Path, elsewhere: Path, name: str) -> None:
    write_mnist(elsewhere / "data", {"fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}[name])
    assert load_data(DataOptions(data=name)).name == name


def test_named_folder_comes_first(small_mnist: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = elsewhere / "named"
    raw = write_mnist(named)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:16] + bytes(600 * 784))
    monkeypatch.setenv("PPL_GEN_DATA", str(named))
    assert load_data(DataOptions(data="mnist", binarization="none")).train.pixels().max() == 0


def test_dynamic_is_redrawn_for_training_only(small_mnist: Path) -> None:
    data = load_data(DataOptions(data="mnist"))
    index = torch.arange(10)
    first, second = data.batch(index), data.batch(index)
    assert set(first.unique().tolist()) == {0.0, 1.0} and not torch.equal(first, second)
    again = load_data(DataOptions(data="mnist"))
    for split in ("train", "validation", "test"):
        assert torch.equal(data.targets(split), again.targets(split))
        assert set(data.targets(split).unique().tolist()) == {0.0, 1.0}
    grey = load_data(DataOptions(data="mnist", binarization="none"))
    error = (data.targets("test") - grey.targets("test")).mean().abs()
    assert error < 5 * 0.5 / (100 * 784) ** 0.5  # 5 standard errors at most: false-alarm rate 6e-7


@pytest.mark.parametrize("index", [slice(None), slice(3), slice(40, None, 7), torch.tensor([71, 3, 3]), slice(0)])
def test_part_of_a_fixed_draw_is_part_of_the_whole(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch, index: slice | Tensor
) -> None:
    """Only as many blocks are drawn as are asked for."""
    monkeypatch.setattr(splits, "_DRAWN", 16)
    for binarization in ("dynamic", "dequantized"):
        data = load_data(DataOptions("mnist", binarization))
        assert torch.equal(data.targets("train", index), data.targets("train")[index])


def test_static_and_threshold(small_mnist: Path) -> None:
    static = load_data(DataOptions(data="mnist", binarization="static"))
    index = torch.arange(10)
    assert torch.equal(static.batch(index), static.batch(index))
    assert torch.equal(static.batch(index), static.targets("train", index))
    dynamic = load_data(DataOptions(data="mnist"))
    assert torch.equal(static.targets("test"), dynamic.targets("test"))
    assert torch.equal(static.targets("validation"), dynamic.targets("validation"))
    grey = load_data(DataOptions(data="mnist", binarization="none"))
    threshold = load_data(DataOptions(data="mnist", binarization="threshold"))
    for split in ("train", "validation", "test"):
        assert torch.equal(threshold.targets(split), (grey.targets(split) > 0.5).float())


def test_digits_need_no_network(elsewhere: Path) -> None:
    data = load_data(DataOptions(data="digits", binarization="none"))
    assert (len(data.train), len(data.validation), len(data.test)) == (1197, 300, 300)
    assert data.shape == (8, 8) and data.test.pixels().max() == 1
    assert data.notice == ""


# Files ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(4, 40),
    shape=st.sampled_from([(6,), (2, 3), (1, 3, 2)]),
    dtype=st.sampled_from(["uint8", "bool", "float32", "float64"]),
    seed=st.integers(0, 1000),
)
def test_numpy_round_trip(
    tmp_path_factory: pytest.TempPathFactory, count: int, shape: tuple[int, ...], dtype: str, seed: int
) -> None:
    path = tmp_path_factory.mktemp("numpy") / "images.npy"
    rng = np.random.default_rng(seed)
    images = (
        rng.random((count, *shape))
        if "float" in dtype
        else rng.integers(0, 2 if dtype == "bool" else 256, (count, *shape))
    )
    images = images.astype(dtype)
    np.save(path, images)
    data = load_data(DataOptions(data=str(path), binarization="none"))
    assert data.shape == shape
    tenth = max(1, count // 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (count - 2 * tenth, tenth, tenth)
    got = np.concatenate([data.targets(name).numpy() for name in ("train", "validation", "test")])
    scale = 255 if dtype == "uint8" and images.max() > 1 else 1
    expected = images.reshape(count, -1).astype(np.float32) / np.float32(scale)
    np.testing.assert_array_equal(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])


def test_npz_with_splits_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    parts = {name: rng.random((n, 2, 3)) for name, n in (("train", 9), ("validation", 4), ("test", 5))}
    np.savez(path, **parts, train_labels=np.arange(9), validation_labels=np.arange(4), test_labels=np.arange(5))
    data = load_data(DataOptions(data=str(path), binarization="none"))
    for name, images in parts.items():
        np.testing.assert_array_equal(data.targets(name).numpy(), images.reshape(len(images), -1).astype(np.float32))
        labels = data.split(name).labels
        assert labels is not None and labels.tolist() == list(range(len(images)))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"train": np.array(["a"] * 9)}, "must be integers"),
        ({"train": np.arange(8)}, "8.* labels for 9 images"),
        ({"train": np.arange(9), "test": np.arange(5)}, "only train, test with labels"),
        ({"validation": np.arange(4)}, "only validation with labels"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: dict[str, np.ndarray], words: str) -> None:
    """None are dropped in silence: a model that is given labels would be trained without."""
    parts = {name: np.zeros((n, 2, 3)) for name, n in (("train", 9), ("validation", 4), ("test", 5))}
    np.savez(tmp_path / "images.npz", **parts, **{f"{name}_labels": each for name, each in labels.items()})
    with pytest.raises(BadInput, match=words):
        load_data(DataOptions(data=str(tmp_path / "images.npz")))


def test_fixed_binarization(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "_AMAT_COUNTS", (50, 20, 10))
    folder = elsewhere / "data" / "BinarizedMNIST"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 2, (n, 784)) for n in (50, 20, 10)]
    for name, part in zip(("train", "valid", "test"), parts, strict=True):
        np.savetxt(folder / f"binarized_mnist_{name}.amat", part, fmt="%d")
    for given_as in ("binarized-mnist", str(folder / "binarized_mnist_train.amat")):
        data = load_data(DataOptions(data=given_as))
        assert data.name == "binarized-mnist"
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            np.testing.assert_array_equal(data.targets(name).numpy(), part)
    (folder / "binarized_mnist_valid.amat").write_text("0 1 2")
    with pytest.raises(BadInput, match="truncated or of another format"):
        load_data(DataOptions(data="binarized-mnist"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.full((20, 4), 1.5), "outside"),
        (np.full((20, 4), -0.1), "outside"),
        (np.full((20, 4), np.nan), "80 pixels are not finite"),
        (np.zeros(20), "expected numbers"),
        (np.array([["a"] * 4] * 20), "expected numbers"),
        (np.zeros((2, 4)), "too few"),
        (np.zeros((20, 4)), "every pixel is 0"),
        (np.full((20, 4), True), "every pixel is 1"),
        (np.full((20, 4), 7, np.uint8), "outside"),
        (np.tile([-1.0, 1.0], (20, 2)), r"outside .*; save \(x \+ 1\) / 2"),
        (np.tile(np.array([-128, 127], np.int8), (20, 2)), r"\[-128, 127\], outside .*uint8"),
        (np.tile([0.0, 12.7], (20, 2)), r"\[0, 12.7\], outside .*largest_pixel"),
        (np.tile([0, 256], (20, 2)), r"\[0, 256\], outside .*largest_pixel"),
        (np.full((20, 4), np.inf, np.float16), "80 pixels are not finite"),
        (np.zeros((0, 4)), "expected numbers"),
        (np.zeros((20, 0)), "expected numbers"),
        (np.zeros(()), "expected numbers"),
        (np.zeros((20, 1, 2, 3, 4)), "expected numbers"),
        (np.zeros((20, 4), complex), "expected numbers"),
        (np.zeros((20, 4), "M8[s]"), "expected numbers"),
        (np.full((20, 4), None), "truncated, or not a .npy file of numbers .*allow_pickle"),
        (b"\x93NUMPY\x01\x00 cut", "truncated"),
        (b"PK\x03\x04 not a zip", "truncated"),
        (b"", "truncated"),
    ],
)
def test_foreign_files(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "images.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=words) as error:
        load_data(DataOptions(data=str(path)))
    assert str(path) in str(error.value)


# What a rule decides is right, and is said -----------------------------------------------------------------------


def grey(count: int, shape: tuple[int, ...] = (4, 5), top: int = 255, seed: int = 0) -> np.ndarray:
    """Bytes 0..top, of which both ends are there."""
    images = np.random.default_rng(seed).integers(0, top + 1, (count, *shape), np.uint8)
    images.flat[:2] = 0, top
    return images


def read(path: Path | str, **options: Any) -> Data:
    return load_data(DataOptions(str(path), "none", **options))


def in_splits(path: Path, images: np.ndarray, **more: np.ndarray) -> Path:
    """Thirty images in an .npz of three splits of ten."""
    names = ("train", "validation", "test")
    np.savez(path, **{name: images[10 * i : 10 * i + 10] for i, name in enumerate(names)}, **more)
    return path


def pixels_of(data: Data) -> np.ndarray:
    return np.concatenate([data.targets(name).numpy() for name in ("train", "validation", "test")])


@pytest.mark.parametrize(
    ("top", "dtype", "white", "told"),
    [
        (1, "uint8", 1, ""),
        (1, ">i8", 1, ""),
        (1, "bool", 1, ""),
        (1, "float16", 1, ""),
        (16, "uint8", 16, "uint8 pixels 0…16 are divided by 16; --largest-pixel"),
        (16, "float64", 16, "float64 pixels 0…16 are divided by 16"),
        (127, "uint8", 127, "0…127 are divided by 127"),
        (128, "uint8", 255, ""),
        (250, "uint8", 255, ""),
        (255, "uint8", 255, ""),
        (255, "int64", 255, "int64 pixels 0…255 are divided by 255"),
        (255, ">u2", 255, "uint16 pixels 0…255 are divided by 255"),
        (255, "float16", 255, "float16 pixels 0…255 are divided by 255"),
        (255, ">f4", 255, "float32 pixels 0…255 are divided by 255"),
    ],
)
def test_what_white_is(tmp_path: Path, top: int, dtype: str, white: int, told: str) -> None:
    images = grey(30, top=top)
    path = in_splits(tmp_path / "images.npz", images.astype(dtype))
    data = read(path)
    np.testing.assert_array_equal(pixels_of(data), images.reshape(30, 20) / np.float32(white))
    assert told in data.notice and bool(told) == bool(data.notice)
    assert load_data(DataOptions(str(path), "dynamic")).targets("test").unique().tolist() == [0, 1]


def test_white_can_be_said(tmp_path: Path) -> None:
    """Bytes up to 16 are dark images of 255 levels, or all of 17: only a person knows."""
    images = grey(30, top=16)
    path = in_splits(tmp_path / "images.npz", images)
    for white in (16, 20, 255):
        data = read(path, largest_pixel=white)
        np.testing.assert_array_equal(pixels_of(data), images.reshape(30, 20) / np.float32(white))
        assert data.train.scale == white and data.notice == ""
    with pytest.raises(BadInput, match="larger than largest_pixel 15"):
        read(path, largest_pixel=15)
    with pytest.raises(BadInput, match="largest_pixel 0: must be at least 1"):
        DataOptions(str(path), largest_pixel=0)
    with pytest.raises(BadInput, match="largest_pixel 255: is for files"):
        load_data(DataOptions("digits", largest_pixel=255))
    deep = images.astype(np.uint16) * 256
    with pytest.raises(BadInput, match=r"\[0, 4096\], outside \[0, 1\].*largest_pixel"):
        read(in_splits(tmp_path / "deep.npz", deep))
    data = read(tmp_path / "deep.npz", largest_pixel=65535)
    np.testing.assert_array_equal(pixels_of(data), (deep.reshape(30, 20) / 65535).astype(np.float32))


def test_real_numbers_up_to_255(tmp_path: Path) -> None:
    """Means of bytes, as resizing makes them: no levels, so no noise of one level either."""
    images = (grey(30) + grey(30, seed=1).astype(np.float64)) / 2
    path = in_splits(tmp_path / "images.npz", images)
    data = read(path)
    np.testing.assert_array_equal(pixels_of(data), (images.reshape(30, 20) / 255).astype(np.float32))
    assert "float64 pixels 0…" in data.notice and "divided by 255" in data.notice
    with pytest.raises(BadInput, match="no grey levels"):
        load_data(DataOptions(str(path), "dequantized"))


@pytest.mark.parametrize("white", [1, 16, 100])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_splits_of_different_ranges(tmp_path: Path, white: int, dtype: str) -> None:
    images = np.concatenate([grey(20, top=white), grey(10)]).astype(dtype)
    path = in_splits(tmp_path / "images.npz", images)
    with pytest.raises(BadInput, match=rf"train lie in \[0, {white}\], those of test in \[0, 255\]; scale them alike"):
        read(path)
    np.testing.assert_array_equal(pixels_of(read(path, largest_pixel=255)), images.reshape(30, 20) / np.float32(255))
    images = np.concatenate([grey(20), grey(10) // 2 + 1])  # a darker split is no other range
    np.testing.assert_array_equal(pixels_of(read(in_splits(path, images))), images.reshape(30, 20) / np.float32(255))


@pytest.mark.parametrize(
    ("saved", "moved", "told"),
    [
        ((3, 8, 9), None, ""),
        ((8, 9, 3), (3, 8, 9), "[images, height, width, channels]: 3 × 8 × 9"),
        ((8, 9, 1), (1, 8, 9), "[images, height, width, channels]: 1 × 8 × 9"),
        ((4, 5, 1), (1, 4, 5), "[images, height, width, channels]: 1 × 4 × 5"),
        ((8, 8, 4), (4, 8, 8), "[images, height, width, channels]: 4 × 8 × 8"),
        ((3, 8, 3), None, "[images, channels, height, width]: 3 × 8 × 3"),
        ((6, 8, 9), None, "[images, channels, height, width]: 6 × 8 × 9"),
    ],
)
def test_order_of_axes(tmp_path: Path, saved: tuple[int, ...], moved: tuple[int, ...] | None, told: str) -> None:
    images = grey(30, saved)
    data = read(in_splits(tmp_path / "images.npz", images))
    right = images if moved is None else images.transpose(0, 3, 1, 2)
    assert data.shape == right.shape[1:] and (told in data.notice if told else data.notice == "")
    np.testing.assert_array_equal(pixels_of(data), right.reshape(30, -1) / np.float32(255))


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: a[:, ::-1][:, ::-1], lambda a: a.astype(">f8")])
def test_memory_order(tmp_path: Path, layout: Any) -> None:
    images = np.random.default_rng(0).random((30, 4, 5))
    images[0, 0, 0] = 1
    data = read(in_splits(tmp_path / "images.npz", layout(images)))
    np.testing.assert_array_equal(pixels_of(data), images.reshape(30, 20).astype(np.float32))


def test_images_along_the_last_axis_are_said(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", grey(28, (28, 100)))
    assert "28 images of 28 × 100, as the first axis says" in read(tmp_path / "images.npy").notice


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("x_train", "x_val", "x_test"), ("y_train", "y_val", "y_test")),
        (("train", "valid", "test"), ("train_labels", "valid_labels", "test_labels")),
        (("train_images", "val_images", "test_images"), ("train_labels", "val_labels", "test_labels")),
        (("Xtrain", "Xvalidation", "Xtest"), ("ytrain", "yvalidation", "ytest")),
        (("train_x", "dev_x", "test_x"), ("train_y", "dev_y", "test_y")),
        (("traindata", "valdata", "testdata"), ("traintargets", "valtargets", "testtargets")),
        (("images", "val", "test"), ("labels", "val_labels", "test_labels")),
    ],
)
def test_names_of_splits(tmp_path: Path, names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    images, numbers = grey(30), np.arange(30, dtype=">u2").reshape(30, 1)
    parts = [slice(0, 12), slice(12, 20), slice(20, 30)]
    arrays = {name: images[part] for name, part in zip(names, parts, strict=True)}
    arrays |= {name: numbers[part] for name, part in zip(labels, parts, strict=True)}
    np.savez(tmp_path / "images.npz", **arrays, mean=images.mean(0))
    data = read(tmp_path / "images.npz")
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        found = data.split(name)
        np.testing.assert_array_equal(data.targets(name).numpy(), images[part].reshape(-1, 20) / np.float32(255))
        assert found.labels is not None and found.labels.tolist() == list(range(30))[part]
    assert f"'{names[1]}' is validation" in data.notice and "not used: 'mean'" in data.notice
    assert f"'{labels[1]}' is validation labels" in data.notice


def test_one_array_of_several(tmp_path: Path) -> None:
    images, numbers = grey(30), np.arange(30)
    path = tmp_path / "images.npz"
    np.savez(path, a=images, b=images[:20] // 2, labels=numbers)
    with pytest.raises(BadInput, match=r"no array called 'train' among a, b, labels; name one: data .*npz:a"):
        read(path)
    with pytest.raises(BadInput, match=r"images.npz:c: no such array among a, b, labels"):
        read(f"{path}:c")
    data = read(f"{path}:a")
    assert data.train.labels is not None and "'labels' is train labels; not used: 'b'" in data.notice
    rows = np.sort(np.concatenate([data.split(name).labels for name in ("train", "validation", "test")]))
    np.testing.assert_array_equal(rows, numbers)
    np.testing.assert_array_equal(
        data.test.images.numpy(), images.reshape(30, 20)[data.test.labels]
    )  # labels went with them
    data = read(f"{path}:b")
    assert data.train.labels is None and "not used: 'a', 'labels'" in data.notice
    assert fingerprint(f"{path}:b") == fingerprint(str(path)) is not None
    np.savez(path, train=images, x_train=images)
    with pytest.raises(BadInput, match="'train' and 'x_train' can both be the images of train"):
        read(path)


@pytest.mark.parametrize("dtype", [">i4", "uint64", "uint16", "int8", "bool", "float64"])
def test_types_of_labels(tmp_path: Path, dtype: str) -> None:
    numbers = (np.arange(30) % 2).astype(dtype)
    names = ("train", "validation", "test")
    labels = {f"{name}_labels": numbers[10 * i : 10 * i + 10] for i, name in enumerate(names)}
    data = read(in_splits(tmp_path / "images.npz", grey(30), **labels))
    assert data.test.labels is not None and data.test.labels.dtype == torch.int64
    assert data.test.labels.tolist() == [0, 1] * 5


# Files of other kinds ----------------------------------------------------------------------------------------------


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path: Path, suffix: str) -> None:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(gzip.compress(content) if suffix else content)
        return path

    images, numbers = grey(30, (28, 28)), np.arange(30, dtype=np.uint8)
    path = write("train-images-idx3-ubyte", idx(images[:20]))
    alone = read(path)
    assert alone.shape == (28, 28) and len(alone.train) == 16 and alone.train.labels is None and alone.notice == ""
    told = fingerprint(str(path))
    write("train-labels-idx1-ubyte", idx(numbers[:20]))
    write("t10k-images-idx3-ubyte", idx(images[20:]))
    with pytest.raises(BadInput, match="only train with labels"):
        read(path)
    labels = write("t10k-labels-idx1-ubyte", idx(numbers[20:]))
    data = read(path)
    assert data.test.labels is not None and data.test.labels.tolist() == list(range(20, 30))
    np.testing.assert_array_equal(data.targets("test").numpy(), images[20:].reshape(10, -1) / np.float32(255))
    assert f"test labels from t10k-labels-idx1-ubyte{suffix}" in data.notice
    assert fingerprint(str(path)) != told is not None  # of all that was read
    with pytest.raises(BadInput, match="one number for each image, as labels do; name the file of images"):
        read(labels)
    real = np.random.default_rng(0).random((20, 3, 4)).astype(">f4")
    np.testing.assert_array_equal(
        np.sort(pixels_of(read(write("faces.idx", idx(real, 0x0D)))), None), np.sort(real, None)
    )
    for content in (idx(images)[:-1], idx(images) + b"0", idx(images)[:6]):
        with pytest.raises(BadInput, match=r"x.idx.*: truncated, or not an IDX file \(x.idx"):
            read(write("x.idx", content))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", ["MNIST/raw", "MNIST", "raw", "."])
def test_the_folder_that_holds_the_files(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, small_mnist: Path, layout: str, compressed: bool
) -> None:
    expected = load_data(DataOptions("mnist"))
    named = elsewhere / "named" / layout
    named.mkdir(parents=True)
    for file in small_mnist.iterdir():
        content = file.read_bytes()
        (named / f"{file.name}.gz").write_bytes(gzip.compress(content)) if compressed else file.rename(
            named / file.name
        )
        file.unlink(missing_ok=True)
    monkeypatch.setenv("PPL_GEN_DATA", str(elsewhere / "named"))
    data = load_data(DataOptions("mnist"))
    for split in ("train", "validation", "test"):
        assert torch.equal(data.targets(split), expected.targets(split))
    assert ("do not say that they are of mnist" in data.notice) == ("MNIST" not in layout)


def test_files_of_another_data_set(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, small_mnist: Path) -> None:
    """All data sets of MNIST's format have files of the same names."""
    monkeypatch.setattr(data_module, "_DOWNLOAD_SECONDS", 0.0)
    small_mnist.parent.rename(elsewhere / "data" / "FashionMNIST")
    raw = elsewhere / "data" / "FashionMNIST" / "raw"
    monkeypatch.setenv("PPL_GEN_DATA", str(raw))
    assert load_data(DataOptions("fashion-mnist")).notice == ""
    for name in ("mnist", "kmnist"):
        with pytest.raises(BadInput, match=f"data {name}: not in"):
            load_data(DataOptions(name))


def test_keras_mnist(tmp_path: Path) -> None:
    images, numbers = grey(30, (28, 28)), np.arange(30, dtype=np.uint8)
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=images[:20], y_train=numbers[:20], x_test=images[20:], y_test=numbers[20:])
    data = read(path)
    assert data.shape == (28, 28) and (len(data.train), len(data.validation)) == (18, 2)
    for name in ("train", "validation", "test"):
        labels = data.split(name).labels
        assert labels is not None
        np.testing.assert_array_equal(data.split(name).images.numpy(), images.reshape(30, 784)[labels])
    assert data.notice.endswith(
        "mnist.npz: 'x_train' is train, 'x_test' is test, 'y_train' is train labels, 'y_test' is test labels"
    )


@pytest.mark.parametrize("style", ["kaggle", "no label", "bare", "bare labels", "labels last", "1x1", "pandas", "gz"])
def test_csv(tmp_path: Path, style: str) -> None:
    images = grey(40, (16,))
    images[:, [0, -1]] = 0  # as of digits
    numbers = np.arange(40) % 10
    labelled = style not in ("no label", "bare")
    rows = np.column_stack([numbers, images]) if labelled else images
    header = {
        "kaggle": ["label", *(f"pixel{i}" for i in range(16))],
        "gz": ["label", *(f"pixel{i}" for i in range(16))],
        "no label": [f"pixel{i}" for i in range(16)],
        "1x1": ["class", *(f"{i}x{j}" for i in range(4) for j in range(4))],
        "pandas": ["", "target", *map(str, range(16))],
    }.get(style)
    if style == "labels last":
        rows = np.column_stack([images, numbers])
    if style == "pandas":
        rows = np.column_stack([np.arange(40), rows])
    lines = [*([] if header is None else [",".join(header)]), *(",".join(map(str, row)) for row in rows)]
    content = "\n".join(lines).encode()
    path = tmp_path / ("train.csv.gz" if style == "gz" else "train.csv")
    path.write_bytes(gzip.compress(content) if style == "gz" else content)
    data = read(path)
    assert data.shape == (4, 4) and (data.train.labels is not None) == labelled
    got, order = pixels_of(data), np.lexsort(images.T)
    expected = images / np.float32(255)
    np.testing.assert_array_equal(got[np.lexsort(got.T)], expected[order])
    if labelled:
        labels = np.concatenate([data.split(name).labels for name in ("train", "validation", "test")])
        np.testing.assert_array_equal(labels[np.lexsort(got.T)], numbers[order])
    assert "a row is an image of 4 × 4" in data.notice
    assert ("column is labels; a header line says otherwise" in data.notice) == (
        style in ("bare labels", "labels last")
    )
    assert ("not used: ''" in data.notice) == (style == "pandas")


def test_csv_by_the_numbers_of_its_columns(tmp_path: Path) -> None:
    images = grey(40, (16,))
    order = sorted(range(16), key=str)
    lines = [",".join(f"pixel{i}" for i in order), *(",".join(str(row[i]) for i in order) for row in images)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    data = read(tmp_path / "x.csv")
    assert "columns are put in the order of their numbers" in data.notice
    got = pixels_of(data)
    expected = images / np.float32(255)
    np.testing.assert_array_equal(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "truncated, or not a .csv file of numbers"),
        ("pixel0,pixel1\n", "truncated, or not a .csv file of numbers"),
        ("pixel0,pixel0\n1,0\n0,1\n1,1\n", "several columns are called 'pixel0'"),
        ("a,b\n1,0\n0,1\n", "no column is called pixel0"),
        ("pixel0,pixel1\n1,0,1\n0,1,1\n1,1,1\n", "2 names and 3 columns"),
        ("1,0,1\n0,x,1\n", "truncated, or not a .csv file of numbers"),
        ("1,?,1\n0,1,1\n", "its first line is neither names of columns nor numbers"),
        ("1,0,1\n0,1\n1,1,0\n1,1,0\n1,0,0\n", "1 pixels are not finite numbers"),
        ("label,y,pixel0,pixel1\n1,1,0,1\n0,1,1,1\n", "labels are both in label and in y"),
    ],
)
def test_foreign_text(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(BadInput, match=re.escape(words)):
        read(tmp_path / "x.csv")


def test_amat_of_other_data(tmp_path: Path) -> None:
    """Only three names are those of the fixed binarization; others are rows of numbers, the label last."""
    images = grey(40, (16,), top=1)
    images[:, 0] = 0
    rows = np.column_stack([images, np.arange(40) % 10])
    np.savetxt(tmp_path / "mnist_rotation.amat", rows, fmt="   %.6e")
    data = read(tmp_path / "mnist_rotation.amat")
    assert data.shape == (4, 4) and data.train.labels is not None and int(data.train.labels.max()) == 9


@pytest.mark.parametrize(
    ("stored", "labels"),
    [("NHW", True), ("HWN", False), ("HWCN", True), ("ND", False), ("DN", True), ("square", True)],
)
@pytest.mark.parametrize("version", ["5", "7.3"])
def test_mat(tmp_path: Path, stored: str, labels: bool, version: str) -> None:
    images, numbers = grey(40, (6, 5)), np.arange(40)
    if stored == "HWCN":
        images = grey(40, (6, 5, 3))
    if stored == "square":
        images = grey(40, (8, 5))  # as many pixels as images
    flat = images.reshape(40, -1)
    array = {
        "NHW": images,
        "HWN": np.moveaxis(images, 0, -1),
        "HWCN": np.moveaxis(images, 0, -1),
        "ND": flat,
        "DN": flat.T,
        "square": flat,
    }[stored]
    arrays = {"X": array, "extra": np.zeros((2, 2))} | ({"y": numbers.astype(float).reshape(40, 1)} if labels else {})
    path = tmp_path / "images.mat"
    if version == "5":
        scipy.io.savemat(path, arrays)
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, each in arrays.items():
                file[name] = each.T
            file.create_group("#refs#")
        with open(path, "r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(512))
    data = read(path)
    right = images.transpose(0, 3, 1, 2) if stored == "HWCN" else images if len(array.shape) > 2 else flat
    assert data.shape == right.shape[1:] and "40 images of" in data.notice and "not used: 'extra'" in data.notice
    got, expected = pixels_of(data), right.reshape(40, -1) / np.float32(255)
    np.testing.assert_array_equal(got[np.lexsort(got.T)], expected[np.lexsort(expected.T)])
    if labels:
        found = np.concatenate([data.split(name).labels for name in ("train", "validation", "test")])
        np.testing.assert_array_equal(got, expected[found])
    assert len(read(f"{path}:X").train) == len(data.train)


def test_mat_that_is_not_images(tmp_path: Path) -> None:
    import scipy.sparse

    path = tmp_path / "images.mat"
    for content, words in [
        ({"X": grey(7, (20,))}, "may have one image per row or per column"),
        ({"X": scipy.sparse.eye(20)}, "'X' is no array of numbers"),
        ({"X": {"a": 1}}, "expected numbers"),
        ({"a": 1, "b": 2}, "no array called 'train' among a, b"),
    ]:
        scipy.io.savemat(path, content)
        with pytest.raises(BadInput, match=words):
            read(path)
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(BadInput, match="truncated"):
        read(path)


def test_what_was_decided_is_told_and_recorded(elsewhere: Path, call: Any) -> None:
    """And a run directory from before there was --largest-pixel opens as it did."""
    (elsewhere / "sub").mkdir()
    in_splits(elsewhere / "sub" / "x.npz", grey(30, (4, 5, 1), top=16), mean=np.zeros(3))
    options = ("--data", "sub/x.npz", "--epochs", "1", "--num-components", "2", "--num-samples", "5")
    told = (
        "sub/x.npz: not used: 'mean'; axes are [images, height, width, channels]: 1 × 4 × 5; "
        "uint8 pixels 0…16 are divided by 16; --largest-pixel says otherwise"
    )
    status, out, err = call(fit.command, "mixture", *options)
    assert status == 0, err
    assert f"*** {told} ***" in out
    assert told in call(fit.command, "mixture", *options, "--dry-run")[1]
    run = elsewhere / "runs" / "mixture-enumerated-x.npz-1"
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert config["data_notice"] == told and config["data"]["largest_pixel"] is None
    assert told in html.unescape((run / "report.html").read_text(encoding="utf-8"))
    del config["data"]["largest_pixel"]
    (run / "config.json").write_text(json.dumps(config))
    assert load(run).data.train.scale == 16


# Data made by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binarization", ["dynamic", "static", "threshold", "dequantized", "none"])
def test_data_by_hand_are_what_they_say(binarization: Any) -> None:
    """The same splits give the targets that `load_data` gives, bit for bit, and no grey ones."""
    raw = load_data(DataOptions("digits", "none"))
    ours = Data("digits", (8, 8), binarization, raw.train, raw.validation, raw.test)
    theirs = load_data(DataOptions("digits", binarization))
    for name in ("train", "validation", "test"):
        assert torch.equal(ours.targets(name), theirs.targets(name))
        if binarization in ("dynamic", "static", "threshold"):
            assert set(ours.targets(name).unique().tolist()) == {0.0, 1.0}
    again = replace(ours, name="again").to("cpu")
    assert all(torch.equal(again.targets(name), ours.targets(name)) for name in ("train", "validation", "test"))


def test_data_by_hand_of_several_kinds() -> None:
    """Grey floats beside binary ones, and no validation split: what is binary stays, what is grey is drawn."""
    x = torch.rand(40, 6)
    binary = torch.bernoulli(x)
    data = Data("mine", (2, 3), "dynamic", Split(x), Split(binary), Split(x))
    assert torch.equal(data.targets("validation"), binary)
    assert set(data.targets("test").unique().tolist()) == {0.0, 1.0}
    levels = Split((x * 255).to(torch.uint8), scale=255)
    data = Data("mine", (6,), "dynamic", levels, Split(torch.zeros(0, 6)), levels)
    assert set(data.targets("test").unique().tolist()) == {0.0, 1.0}
    data = Data("mine", (6,), "dequantized", levels, Split(torch.zeros(0, 6)), levels)
    assert not torch.equal(data.targets("test"), levels.pixels())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((2, 3), "dynamic", Split(torch.rand(4, 6) * 255)), "lie outside"),
        (((2, 3), "threshold", Split(torch.rand(4, 6) - 0.5)), "lie outside"),
        (((2, 3), "static", Split(torch.full((4, 6), math.nan))), "lie outside"),
        (((2, 3), "dynamic", Split(torch.full((4, 6), 255, dtype=torch.uint8))), "lie outside"),
        (((2, 3), "dequantized", Split(torch.rand(4, 6))), "needs grey levels"),
        (((2, 3), "treshold", Split(torch.rand(4, 6))), "threshold"),
        (((3, 3), "dynamic", Split(torch.rand(4, 6))), r"needs \[N, 9\]"),
        (((2, 3), "dynamic", Split(torch.rand(4, 2, 3))), r"needs \[N, 6\]"),
    ],
)
def test_data_by_hand_that_cannot_be(arguments: Any, words: str) -> None:
    shape, binarization, split = arguments
    with pytest.raises(BadInput, match=words):
        Data("mine", shape, binarization, split, split, split)


# The network ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A server on this machine in place of MNIST's; what it serves is set by the test."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.lstrip("/"))
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        data_module.import_torchvision()
        from torchvision.datasets import MNIST

        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/"])
        yield files
        httpd.shutdown()


def test_downloads_whole_files_only(
    elsewhere: Path, server: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import hashlib

    from torchvision.datasets import MNIST

    raw = write_mnist(tmp_path_factory.mktemp("served"))
    for path in raw.iterdir():
        server[f"{path.name}.gz"] = gzip.compress(path.read_bytes())
    sums = [(name, hashlib.md5(server[name]).hexdigest()) for name, _ in MNIST.resources]
    monkeypatch.setattr(MNIST, "resources", sums)
    monkeypatch.setattr(data_module, "_MNIST_COUNTS", (600, 100))
    monkeypatch.setattr(data_module, "_MNIST_SPLIT", (500, 100))

    last = sums[-1][0]
    whole, server[last] = server[last], server[last][:50]
    with pytest.raises(BadInput, match="cannot be downloaded"):
        load_data(DataOptions(data="mnist"))
    assert not list((elsewhere / "data").rglob("*ubyte*"))
    assert load_data(DataOptions()).name == "digits"

    server[last] = whole
    assert load_data(DataOptions()).name == "mnist"
    server.clear()
    assert len(load_data(DataOptions(data="mnist")).train) == 500


def test_gives_up_on_a_server_that_does_not_answer(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_module.import_torchvision()
    from torchvision.datasets import MNIST

    monkeypatch.setattr(data_module, "_DOWNLOAD_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        start = time.monotonic()
        data = load_data(DataOptions())
        assert time.monotonic() - start < 5
    assert data.name == "digits"
    assert "using scikit-learn's 8x8 digits instead" in data.notice


def test_a_damaged_mnist_is_not_replaced(small_mnist: Path) -> None:
    path = small_mnist / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    for name in ("auto", "mnist"):
        with pytest.raises(BadInput, match=r"test files in .* are truncated or of another format"):
            load_data(DataOptions(data=name))
