"""Data sets by name: on disk, downloaded, and what stands in for them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import QUICK
from images import write_mnist
from sklearn.datasets import load_digits

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data import downloads
from ppl_gen.data import loading as data_module
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import SHUFFLE_SEED

Call = Callable[..., tuple[int, str, str]]


def test_auto_falls_back_and_says_so(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(downloads.SERVERS, "mnist", "http://127.0.0.1:9/")
    status, out, err = call(fit.command, "vae", "--data", "auto", *QUICK[2:], "--out", "run")
    assert status == 0
    assert "using scikit-learn's 8x8 digits instead" in out
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    assert config["data"]["data"] == "digits" and "MNIST is not on disk" in config["data_notice"]
    # Standard error is no terminal here: plain lines with the time left.
    assert "epoch 1/2  train ELBO" in err and "s left" in err and "\r" not in err
    exact = ("mixture", "--data", "digits", "--epochs", "1", "--num-components", "2", "--out", "exact")
    assert "epoch 1/1  train log p(x) -" in call(fit.command, *exact)[2]


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
        with pytest.raises(BadInput, match="training took all images"):
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


def test_digits_need_no_network(elsewhere: Path) -> None:
    data = load_data(DataOptions(data="digits", binarization="none"))
    assert (len(data.train), len(data.validation), len(data.test)) == (1197, 300, 300)
    assert data.shape == (8, 8) and data.test.pixels().max() == 1
    assert data.notice == ""
    bunch = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(SHUFFLE_SEED))
    whole = torch.from_numpy(bunch.data).float()[order] / 16
    assert torch.equal(torch.cat([data.targets(name) for name in ("train", "validation", "test")]), whole)
    labels = [getattr(data, name).labels for name in ("train", "validation", "test")]
    assert torch.equal(torch.cat(labels), torch.from_numpy(bunch.target)[order])


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
    with pytest.raises(BadInput, match="is truncated, or is not 20 lines of 784"):
        load_data(DataOptions(data="binarized-mnist"))


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
    assert ("do not say which data set they are" in data.notice) == ("MNIST" not in layout)


def test_files_of_another_data_set(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, small_mnist: Path) -> None:
    """All data sets of MNIST's format have files of the same names."""
    monkeypatch.setattr(downloads, "ANSWER", 0.0)
    small_mnist.parent.rename(elsewhere / "data" / "FashionMNIST")
    raw = elsewhere / "data" / "FashionMNIST" / "raw"
    monkeypatch.setenv("PPL_GEN_DATA", str(raw))
    assert load_data(DataOptions("fashion-mnist")).notice == ""
    for name in ("mnist", "kmnist"):
        with pytest.raises(BadInput, match=f"data {name}: not in"):
            load_data(DataOptions(name))


def test_a_damaged_mnist_is_not_replaced(small_mnist: Path) -> None:
    path = small_mnist / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    for name in ("auto", "mnist"):
        with pytest.raises(BadInput, match=r"test files in .* are truncated or have another format"):
            load_data(DataOptions(data=name))
