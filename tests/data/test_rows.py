"""Images that stay on the disk, against the same images in memory; and data that are large, by a patched limit."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.data import loading, rows, shards, sources, splits
from ppl_gen.data.loading import fingerprint, load_data
from ppl_gen.data.options import Binarization, DataOptions
from ppl_gen.data.orders import Order
from ppl_gen.data.rows import Rows, Source
from ppl_gen.data.splits import Data

RATE = 1e-6
BINARIZATIONS: tuple[Binarization, ...] = ("dynamic", "static", "threshold", "none", "dequantized")


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that can be mapped is mapped."""
    for module in (sources, shards):
        monkeypatch.setattr(module, "MAPPED", 0)


@pytest.fixture
def large(mapped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped data of more than 2^17 pixels are large. A piece that is looked at is 16 pixels, one image of 4 x 4."""
    monkeypatch.setattr(rows, "LARGE", 2**17)
    for module in (rows, loading):
        monkeypatch.setattr(module, "SAMPLED", 2**12)


def images(kind: str, count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (count, 6, 5), np.uint8)
    made: dict[str, Callable[[], np.ndarray]] = {
        "bytes": lambda: levels,
        "bool": lambda: levels > 99,
        "sixteen": lambda: levels // 16,
        "big-endian": lambda: levels.astype(">i2"),
        "whole floats": lambda: levels.astype(np.float64),
        "floats": lambda: (levels / 255).astype(np.float32),
        "halves": lambda: (levels / 255).astype(np.float16),
        "long": lambda: (levels / 255).astype(np.longdouble),
        "unsigned": lambda: levels.astype(np.uint64),
        "channels": lambda: np.stack([levels, levels // 2, levels // 3], -1),
        "fortran": lambda: np.asfortranarray(levels),
    }
    return made[kind]()


def everything(data: Data) -> Iterator[Tensor]:
    """All that a run asks of a data set."""
    torch.manual_seed(0)
    yield from (data.mean(), data.examples(seed=1, count=20), data.batch(torch.tensor([7, 3, 3, 101])))
    for name in ("train", "validation", "test"):
        index = torch.tensor([4, 0, 17])
        yield from (data.targets(name), data.targets(name, index), data.targets(name, slice(5, 9)))
        yield from (data.complete(name, index), data.split(name).pixels(index))


@pytest.mark.parametrize(
    "kind", ["bytes", "bool", "big-endian", "whole floats", "floats", "halves", "long", "unsigned"]
)
def test_a_mapped_file_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    check_the_same(tmp_path, monkeypatch, kind, BINARIZATIONS)


@pytest.mark.parametrize("kind", ["channels", "fortran", "sixteen"])
def test_so_does_one_of_other_axes_or_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    check_the_same(tmp_path, monkeypatch, kind, ("dynamic", "none"))


def check_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, binarizations: tuple[Binarization, ...]
) -> None:
    array = images(kind)
    file = str(tmp_path / "x.npy")
    np.save(file, array)
    for binarization in binarizations:
        if binarization == "dequantized" and array.max() <= 1:
            continue
        options = DataOptions(file, binarization)
        in_memory = load_data(options)
        with monkeypatch.context() as patch:
            patch.setattr(sources, "MAPPED", 0)
            data = load_data(options)
            mapped = kind != "fortran" and binarization not in ("static", "threshold")  # whose draws are kept
            assert isinstance(data.train.images, Rows) == mapped
            about = [(each.notice, each.shape, each.train.scale) for each in (data, in_memory)]
            assert about[0] == about[1]
            for ours, theirs in zip(everything(data), everything(in_memory), strict=True):
                assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x.__setitem__((-1, 0, 0), np.nan), "1 pixels are not finite"),
        (lambda x: x.__setitem__((-1, 0, 0), -0.5), "outside [0, 1]"),
        (lambda x: x.__setitem__(slice(None), 0.5), "every pixel is 0.5"),
    ],
)
def test_bad_pixels_of_a_mapped_file(tmp_path: Path, mapped: None, spoil: Callable[[Any], None], words: str) -> None:
    array = images("floats")
    spoil(array)
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(BadInput, match=re.escape(words)):
        load_data(DataOptions(str(tmp_path / "x.npy")))


def test_missing_pixels_of_a_mapped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = images("channels") / 255
    array[np.random.default_rng(1).random(array.shape) < 0.2] = np.nan
    np.save(tmp_path / "x.npy", array)
    options = DataOptions(str(tmp_path / "x.npy"), missing="nan")
    in_memory = load_data(options)
    monkeypatch.setattr(sources, "MAPPED", 0)
    for ours, theirs in zip(everything(load_data(options)), everything(in_memory), strict=True):
        assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


def test_an_idx_file_is_mapped_with_its_labels(tmp_path: Path, mapped: None) -> None:
    array, labels = images("bytes"), np.arange(500) % 10
    for name, content in (("train-images-idx3-ubyte", array), ("train-labels-idx1-ubyte", labels.astype(np.uint8))):
        header = bytes([0, 0, 8, content.ndim]) + np.array(content.shape, ">u4").tobytes()
        (tmp_path / name).write_bytes(header + content.tobytes())
    data = load_data(DataOptions(str(tmp_path / "train-images-idx3-ubyte"), "none"))
    assert isinstance(data.train.images, Rows) and data.train.labels is not None
    order = torch.randperm(500, generator=torch.Generator().manual_seed(splits.SHUFFLE_SEED))[: len(data.train)]
    assert torch.equal(data.train.labels, torch.from_numpy(labels)[order])
    assert torch.equal(data.train.images[:], torch.from_numpy(array.reshape(500, -1))[order])


def test_rows_of_rows(mapped: None) -> None:
    """Parts of parts, in orders of each kind, are the rows that NumPy takes."""
    array = np.arange(60, dtype=np.uint8).reshape(20, 3)
    whole = Rows("x", Source((array[:8], array[8:9], array[9:])), True, 255, order=Order(20, None))
    shuffled, picked = Order(20, seed=3), torch.tensor([5, 5, 0, 19])
    assert np.array_equal(whole[:], array) and np.array_equal(whole[picked], array[picked.numpy()])
    assert np.array_equal(whole.at(shuffled)[:], array[shuffled[:].numpy()])
    assert np.array_equal(whole.at(shuffled).at(slice(4, 10)).at(picked[:1])[:], array[shuffled[9:10].numpy()])
    assert np.array_equal(whole.at(slice(5, 15)).at(Order(10, seed=3))[:], array[5:15][Order(10, seed=3)[:].numpy()])
    assert np.array_equal(whole.at(picked).at(slice(1, 3))[:], array[[5, 0]])
    assert whole.at(slice(5, 15)).shape == (10, 3)


# Large data ----------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, array: np.ndarray) -> str:
    np.save(tmp_path / "x.npy", array)
    return str(tmp_path / "x.npy")


def test_the_splits_of_large_data(tmp_path: Path, large: None) -> None:
    """Every image is in one split, in an order that is computed. Validation and test images have a limit."""
    numbers = np.arange(20_000)
    array = np.stack([numbers // 256, numbers % 256] * 8, -1).astype(np.uint8).reshape(-1, 4, 4)
    data = load_data(DataOptions(saved(tmp_path, array), "none"))
    assert data.train.large and [len(each) for each in (data.validation, data.test)] == [256, 256]
    found = [each.images[:].long() for each in (data.train, data.validation, data.test)]
    order = torch.cat([each[:, 0] * 256 + each[:, 1] for each in found])
    assert torch.equal(order.sort().values, torch.arange(20_000))
    assert torch.equal(order, Order(20_000, splits.SHUFFLE_SEED)[:])
    looked_at = array.reshape(20_000, 16)[np.linspace(0, 19_999, 256).astype(int)] / 255
    assert torch.allclose(data.mean().double(), torch.from_numpy((looked_at.sum(0) + 0.5) / 257))


@pytest.mark.parametrize("binarization", BINARIZATIONS)
def test_the_draws_of_large_data(tmp_path: Path, large: None, binarization: Binarization) -> None:
    """The same for an image whatever is read with it, and of the right distribution."""
    array = np.full((20_000, 4, 4), 64, np.uint8)
    array[:, :, 2:] = 255
    array[::2, 0] = 0
    data = load_data(DataOptions(saved(tmp_path, array), binarization))
    grey, index = load_data(DataOptions(saved(tmp_path, array), "none")), torch.tensor([9, 3, 9, 255])
    for name in ("train", "validation", "test"):
        first, whole = data.targets(name, slice(0, 256)), grey.targets(name, slice(0, 256))
        assert first.dtype == torch.float32 and torch.equal(data.targets(name, index), first[index])
        assert torch.equal(data.targets(name)[:256], first)
        if binarization == "threshold":
            assert torch.equal(first, (whole > 0.5).float())
        elif binarization == "none":
            assert torch.equal(first, whole)
        elif binarization == "dequantized":
            noise = first * 256 - whole * 255
            assert float(noise.min()) >= 0
            assert stats.kstest(noise.double().flatten().clamp(0, 1), "uniform").pvalue > RATE
        else:
            assert set(first[whole == 1].tolist()) == {1.0} and set(first[whole == 0].tolist()) == {0.0}
            dark = first[whole == 64 / 255]
            assert stats.binomtest(int(dark.sum()), len(dark), 64 / 255).pvalue > RATE
    if binarization in ("static", "dynamic"):
        assert not torch.equal(data.targets("test"), data.targets("validation"))
    batch = data.batch(index)
    assert torch.equal(batch, data.targets("train", index)) == (binarization not in ("dynamic", "dequantized"))


def test_a_part_of_large_data_is_looked_at(tmp_path: Path, large: None) -> None:
    """A pixel of another kind is found where its image is read, and where it is among those that are looked at."""
    array = np.full((20_000, 4, 4), 64, np.uint8)
    array[0, 0] = 16
    array[-1, 3, 3] = 65
    assert "uint8 pixels 0…65 are divided by 65" in load_data(DataOptions(saved(tmp_path, array))).notice
    array[1, 3, 3] = 99
    data = load_data(DataOptions(saved(tmp_path, array), "none"))
    place = int((data.train.images.order[:] == 1).nonzero()[0]) if isinstance(data.train.images, Rows) else -1
    data.batch(torch.tensor([place + 1]))
    with pytest.raises(BadInput, match="an image has pixels that are no whole numbers in 0…65, unlike"):
        data.batch(torch.tensor([place]))
    floats = array / 99
    floats[1, 3, 3] = np.nan
    data = load_data(DataOptions(saved(tmp_path, floats), "none"))
    with pytest.raises(BadInput, match="no numbers in 0…1"):
        data.train.pixels()
    assert load_data(DataOptions(saved(tmp_path, array), largest_pixel=99)).train.scale == 99


@pytest.mark.parametrize("missing", [0.5, "nan"])
def test_large_data_have_no_missing_pixels(tmp_path: Path, large: None, missing: float | str) -> None:
    array = np.random.default_rng(0).random((10_000, 4, 4), np.float32)
    array[0, 0, 0] = np.nan
    with pytest.raises(BadInput, match="too many images for masks"):
        load_data(DataOptions(saved(tmp_path, array if missing == "nan" else np.nan_to_num(array)), missing=missing))


def test_the_fingerprint_of_large_data(tmp_path: Path, large: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the size and of pieces: the first and the last bytes, and some between."""
    monkeypatch.setattr(loading, "_PIECE", 16)
    monkeypatch.setattr(loading, "_PIECES", 100)
    array = np.arange(160_000, dtype=np.uint32).astype(np.uint8).reshape(-1, 4, 4)
    name = saved(tmp_path, array)
    before, path = fingerprint(name), tmp_path / "x.npy"
    content = path.read_bytes()
    for place, seen in ((0, True), (-1, True), (200, False)):
        changed = bytearray(content)
        changed[place] ^= 1
        if place:
            path.write_bytes(changed)
            assert (fingerprint(name) != before) == seen
    path.write_bytes(content + b"x")
    assert fingerprint(name) != before
    path.write_bytes(content)
    path.touch()
    assert fingerprint(name) == before


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The largest anonymous memory of this process in MiB above that at the beginning, as the only element."""

    def now() -> float:
        content = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"RssAnon:\s+(\d+)", content)[1]) / 1024  # type: ignore[index]

    done, start = threading.Event(), now()
    peak = [0.0]

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], now() - start)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_twenty_gigabytes(tmp_path: Path) -> None:
    """A file of 20 GB, nearly all of it a hole, in 400 MiB: opened, given a fingerprint, and a step on one batch."""
    file, count = tmp_path / "x.npy", 26_000_000
    with open(file, "wb") as made:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 28, 28)}
        np.lib.format.write_array_header_1_0(made, header)
        made.write(np.random.default_rng(0).integers(0, 256, 1000 * 784, np.uint8).tobytes())
        made.truncate(made.tell() + (count - 1000) * 784)
    assert file.stat().st_size > 20e9
    with peak_memory() as peak:
        sha256, data = fingerprint(str(file)), load_data(DataOptions(str(file)))
        assert sha256 is not None and len(data.train) == count - 2 * (2**26 // 784)
        order = Order(len(data.train), seed=1)
        weights = data.mean().clone().requires_grad_()
        batch = data.batch(order[:128])
        loss = torch.nn.functional.binary_cross_entropy(weights.expand(128, -1), batch)
        loss.backward()
        assert batch.shape == (128, 784) and weights.grad is not None
        assert data.targets("test", slice(100)).shape == (100, 784)
    assert peak[0] < 400
