import gzip
import http.server
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppl_gen import data as data_module
from ppl_gen.data import DataOptions, load_data
from ppl_gen.errors import BadInput

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
    monkeypatch.setattr(data_module, "_DRAWN", 16)
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
    with pytest.raises(BadInput, match="truncated or foreign"):
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
        with pytest.raises(BadInput, match=r"test files in .* are truncated or foreign"):
            load_data(DataOptions(data=name))
