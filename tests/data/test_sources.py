"""Files of images of every kind, and what is decided of them."""

import gzip
import html
import json
import re
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data.loading import fingerprint, load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.fitted import load


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
        ({"train": np.arange(8)}, "labels .8,.* for 9 images"),
        ({"train": np.arange(9), "test": np.arange(5)}, "only train, test has labels"),
        ({"validation": np.arange(4)}, "only validation has labels"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: dict[str, np.ndarray], words: str) -> None:
    """None are dropped in silence: a model that is given labels would be trained without."""
    parts = {name: np.zeros((n, 2, 3)) for name, n in (("train", 9), ("validation", 4), ("test", 5))}
    np.savez(tmp_path / "images.npz", **parts, **{f"{name}_labels": each for name, each in labels.items()})
    with pytest.raises(BadInput, match=words):
        load_data(DataOptions(data=str(tmp_path / "images.npz")))


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
        (np.full((20, 4), 255, np.uint8), "every pixel is 255; give images that differ"),
        (np.full((20, 4), 7, np.uint8), "every pixel is 7"),
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
    with pytest.raises(BadInput, match="above largest_pixel 15"):
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
    with pytest.raises(BadInput, match="needs grey levels"):
        load_data(DataOptions(str(path), "dequantized"))


@pytest.mark.parametrize("white", [1, 16, 100])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_splits_of_different_ranges(tmp_path: Path, white: int, dtype: str) -> None:
    images = np.concatenate([grey(20, top=white), grey(10)]).astype(dtype)
    path = in_splits(tmp_path / "images.npz", images)
    with pytest.raises(
        BadInput, match=rf"train lie in \[0, {white}\], but pixels of test in \[0, 255\]; scale them alike"
    ):
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
    assert "28 images of 28 × 100, along the first axis" in read(tmp_path / "images.npy").notice


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
    with pytest.raises(
        BadInput, match=r"no array is called 'train'; its arrays: a, b, labels; name the array of images: data .*npz:a"
    ):
        read(path)
    with pytest.raises(BadInput, match=r"images.npz:c: no such array; its arrays: a, b, labels"):
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
    with pytest.raises(BadInput, match="only train has labels"):
        read(path)
    labels = write("t10k-labels-idx1-ubyte", idx(numbers[20:]))
    data = read(path)
    assert data.test.labels is not None and data.test.labels.tolist() == list(range(20, 30))
    np.testing.assert_array_equal(data.targets("test").numpy(), images[20:].reshape(10, -1) / np.float32(255))
    assert f"test labels from t10k-labels-idx1-ubyte{suffix}" in data.notice
    assert fingerprint(str(path)) != told is not None  # of all that was read
    with pytest.raises(BadInput, match="one number per image, so these are labels; name the file of images"):
        read(labels)
    real = np.random.default_rng(0).random((20, 3, 4)).astype(">f4")
    np.testing.assert_array_equal(
        np.sort(pixels_of(read(write("faces.idx", idx(real, 0x0D)))), None), np.sort(real, None)
    )
    for content in (idx(images)[:-1], idx(images) + b"0", idx(images)[:6]):
        with pytest.raises(BadInput, match=r"x.idx.*: truncated, or not an IDX file \(x.idx"):
            read(write("x.idx", content))


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
    assert ("column is taken as labels; add a header line if it is not" in data.notice) == (
        style in ("bare labels", "labels last")
    )
    assert ("not used: ''" in data.notice) == (style == "pandas")


def test_csv_by_the_numbers_of_its_columns(tmp_path: Path) -> None:
    images = grey(40, (16,))
    order = sorted(range(16), key=str)
    lines = [",".join(f"pixel{i}" for i in order), *(",".join(str(row[i]) for i in order) for row in images)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    data = read(tmp_path / "x.csv")
    assert "columns are sorted by their numbers" in data.notice
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
        ("pixel0,pixel1\n1,0,1\n0,1,1\n1,1,1\n", "has 2 names, but there are 3 columns"),
        ("1,0,1\n0,x,1\n", "truncated, or not a .csv file of numbers"),
        ("1,?,1\n0,1,1\n", "its first line mixes names and numbers"),
        ("1,0,1\n0,1\n1,1,0\n1,1,0\n1,0,0\n", "1 pixels are not finite numbers"),
        ("label,y,pixel0,pixel1\n1,1,0,1\n0,1,1,1\n", "several columns can be the labels: label, y; keep one"),
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
        ({"X": scipy.sparse.eye(20)}, "'X' is not an array of numbers"),
        ({"X": {"a": 1}}, "'X' is not an array of numbers"),
        ({"a": 1, "b": 2}, "no array is called 'train'; its arrays: a, b"),
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
        "uint8 pixels 0…16 are divided by 16; --largest-pixel sets another value of white"
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
