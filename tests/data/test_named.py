"""Data sets of the literature, from small files in the layout of the real ones."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from ppl_gen.core.errors import BadInput
from ppl_gen.data import downloads, named
from ppl_gen.data.loading import fingerprint, load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data

RNG = np.random.default_rng(0)


def _load(name: str, binarization: Any = "none") -> Data:
    return load_data(DataOptions(data=name, binarization=binarization))


def _python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """A dictionary as Python 2 pickled it in CIFAR-10: protocol 2, with bytes as texts and numpy's old module."""
    content = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def _write_cifar10(folder: Path, archive: bool) -> dict[str, np.ndarray]:
    written, batches = {}, {}
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        written[name] = RNG.integers(0, 256, (8, 3072), np.uint8)
        batches[name] = _python2_pickle(written[name], list(range(8)))
    if not archive:
        (folder / "cifar-10-batches-py").mkdir(parents=True)
        for name, content in batches.items():
            (folder / "cifar-10-batches-py" / name).write_bytes(content)
        return written
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return written


@pytest.mark.parametrize("archive", [True, False])
def test_cifar10(elsewhere: Path, archive: bool) -> None:
    written = _write_cifar10(elsewhere / "data", archive)
    data = _load("cifar10")
    assert data.shape == (3, 32, 32) and data.levels == 256
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 8)
    assert np.array_equal(data.test.images.numpy(), written["test_batch"])
    assert data.test.labels is not None and data.test.labels.tolist() == list(range(8))
    pool = np.concatenate([data.train.images.numpy(), data.validation.images.numpy()])
    whole = np.concatenate([each for name, each in written.items() if name != "test_batch"])
    assert np.array_equal(pool[np.lexsort(pool.T)], whole[np.lexsort(whole.T)])
    assert fingerprint("cifar10") is None


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("touched"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": _Evil(), b"labels": []}, protocol=2),
        b'cbuiltins\neval\n(S\'open("touched", "w")\'\ntR.',
        b"cnumpy\nload\n(S'x'\ntR.",
        b"",
        pickle.dumps({b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}, protocol=2),
    ],
)
def test_pickles_of_others_are_refused(elsewhere: Path, content: bytes) -> None:
    """A pickle may call anything. What no file of images needs is refused in one line, and nothing is called."""
    _write_cifar10(elsewhere / "data", False)
    (elsewhere / "data" / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(BadInput, match="truncated, or of another format"):
        _load("cifar10")
    assert not Path("touched").exists()


def test_svhn(elsewhere: Path) -> None:
    folder = elsewhere / "data"
    folder.mkdir()
    x = {part: RNG.integers(0, 256, (32, 32, 3, count), np.uint8) for part, count in (("train", 20), ("test", 6))}
    for part, images in x.items():
        labels = (np.arange(images.shape[-1]) % 10 + 1).reshape(-1, 1).astype(np.uint8)
        scipy.io.savemat(folder / f"{part}_32x32.mat", {"X": images, "y": labels})
    data = _load("svhn")
    assert data.shape == (3, 32, 32) and (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)
    got = data.test.images.reshape(6, 3, 32, 32)
    assert int(got[4, 2, 7, 30]) == x["test"][7, 30, 2, 4]
    assert data.test.labels is not None and data.test.labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert data.train.labels is not None and 0 in data.train.labels and int(data.train.labels.max()) == 9


def _write_chardata(path: Path) -> dict[str, np.ndarray]:
    images = {"data": RNG.random((40, 4, 4)), "testdata": RNG.random((9, 4, 4))}
    content: dict[str, np.ndarray] = {}
    for name, targets in (("data", "target"), ("testdata", "testtarget")):
        count = len(images[name])
        content[name] = np.stack([each.ravel(order="F") for each in images[name]], 1)  # [pixels, images]
        content[targets] = np.eye(5)[np.arange(count) % 5].T
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, content)
    return images


@pytest.mark.parametrize("by_path", [True, False])
def test_omniglot_of_burda(elsewhere: Path, monkeypatch: pytest.MonkeyPatch, by_path: bool) -> None:
    """MATLAB's column order becomes upright images, and a fixed part of the training images is held out."""
    monkeypatch.setattr(named, "HELD_OUT", 6)
    path = elsewhere / "data" / "OMNIGLOT" / "chardata.mat"
    images = _write_chardata(path)
    data = _load(str(path) if by_path else "omniglot-burda")
    assert data.shape == (4, 4) and (len(data.train), len(data.validation), len(data.test)) == (34, 6, 9)
    torch.testing.assert_close(data.test.images.reshape(9, 4, 4), torch.from_numpy(images["testdata"]).float())
    assert data.test.labels is not None and data.test.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    pool = torch.cat([data.train.images, data.validation.images]).numpy()
    whole = images["data"].reshape(40, 16).astype(np.float32)
    np.testing.assert_array_equal(pool[np.lexsort(pool.T)], whole[np.lexsort(whole.T)])
    again = _load("omniglot-burda")
    assert torch.equal(data.validation.images, again.validation.images)
    assert _load("omniglot-burda", "dynamic").test.images.unique().tolist() == [0, 1]
    assert fingerprint("omniglot-burda") is None and fingerprint(str(path)) is not None


def test_caltech_silhouettes(elsewhere: Path) -> None:
    images = {
        name: RNG.integers(0, 2, (count, 28, 28), np.uint8) for name, count in (("train", 9), ("val", 4), ("test", 5))
    }
    content = {f"{name}_data": each.transpose(0, 2, 1).reshape(len(each), 784) for name, each in images.items()}
    content |= {f"{name}_labels": np.arange(1, len(each) + 1)[:, None] for name, each in images.items()}
    path = elsewhere / "data" / "caltech101_silhouettes_28_split1.mat"
    path.parent.mkdir()
    scipy.io.savemat(path, content)
    for name in ("caltech-silhouettes", str(path)):
        data = _load(name)
        assert data.shape == (28, 28)
        for split, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
            assert np.array_equal(data.split(split).images.reshape(-1, 28, 28).numpy(), images[theirs])
        assert data.train.labels is not None and data.train.labels.tolist() == list(range(9))


@pytest.mark.parametrize("archive", [True, False])
def test_omniglot(elsewhere: Path, archive: bool) -> None:
    """Black strokes on white become 1 on 0. Characters are classes, and no split has those of the other."""
    folder = elsewhere / "data" / "omniglot-py"
    folder.mkdir(parents=True)
    ink = {}
    for part, count in (("images_background", 4), ("images_evaluation", 2)):
        files = {}
        for number in range(count):
            for drawer in range(3):
                image = RNG.random((105, 105)) < 0.1
                name = f"{part}/Alphabet/character{number:02}/{number:04}_{drawer:02}.png"
                content = io.BytesIO()
                Image.fromarray(~image).convert("1").save(content, "PNG")
                files[name], ink[name] = content.getvalue(), image
        if archive:
            with zipfile.ZipFile(folder / f"{part}.zip", "w") as zipped:
                for name, content in sorted(files.items(), reverse=True):
                    zipped.writestr(name, content)
        else:
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    data = _load("omniglot")
    assert data.shape == (105, 105) and (len(data.train), len(data.validation), len(data.test)) == (11, 1, 6)
    expected = np.stack([image for name, image in sorted(ink.items()) if "evaluation" in name])
    assert np.array_equal(data.test.images.reshape(-1, 105, 105).numpy(), expected)
    assert data.test.labels is not None and data.train.labels is not None
    if not archive:
        assert set(data.train.labels.tolist()) <= set(range(4))


@pytest.mark.parametrize(("name", "split"), [("emnist", "balanced"), ("emnist-letters", "letters")])
def test_emnist(elsewhere: Path, name: str, split: str) -> None:
    """Images are turned upright. Letters, whose labels start at 1, get labels from 0."""
    raw = elsewhere / "data" / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    first, written = int(split == "letters"), {}
    for part, count in (("train", 20), ("test", 5)):
        images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 5 + first).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        content = gzip.compress(struct.pack(">II", 2049, count) + labels.tobytes())
        (raw / f"emnist-{split}-{part}-labels-idx1-ubyte.gz").write_bytes(content)
        written[part] = images
    data = _load(name)
    assert np.array_equal(data.test.images.reshape(-1, 28, 28).numpy(), written["test"].transpose(0, 2, 1))
    assert data.test.labels is not None and data.test.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.name == name and data.levels == 256


@pytest.mark.parametrize("name", ["emnist", "omniglot-burda", "caltech-silhouettes"])
def test_not_downloaded(elsewhere: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"not in data and it is not downloaded: .*; set PPL_GEN_DATA to the folder"):
        _load(name)


@pytest.mark.parametrize("damage", ["missing", "truncated", "others"])
def test_damaged_files(elsewhere: Path, damage: str) -> None:
    path = elsewhere / "data" / "chardata.mat"
    _write_chardata(path)
    if damage == "missing":
        scipy.io.savemat(path, {"data": np.zeros((16, 3))})
    elif damage == "others":
        _write_chardata(path)
        scipy.io.savemat(path, {name: np.zeros((15, 3)) for name in ("data", "target", "testdata", "testtarget")})
    else:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadInput, match="truncated, or of another format") as caught:
        _load("omniglot-burda")
    assert "\n" not in str(caught.value)


def test_download_keeps_archives(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive of the server, checked against its MD5, is kept and read."""
    _write_cifar10(elsewhere / "server", True)
    content = (elsewhere / "server" / "cifar-10-python.tar.gz").read_bytes()
    url = (elsewhere / "server").as_uri() + "/"
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", (url, "", {"cifar-10-python.tar.gz": "0" * 32}))
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: _Reply(Path(url.removeprefix("file://"))))
    with pytest.raises(BadInput, match="its MD5 differs"):
        _load("cifar10")
    assert not (elsewhere / "data" / "cifar-10-python.tar.gz").exists()
    monkeypatch.setitem(downloads.ARCHIVES, "cifar10", (url, "", {"cifar-10-python.tar.gz": digest}))
    assert len(_load("cifar10").test) == 8
    assert (elsewhere / "data" / "cifar-10-python.tar.gz").read_bytes() == content
    monkeypatch.setattr(downloads, "LARGEST_ARCHIVE", 100)
    (elsewhere / "data" / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(BadInput, match="is larger than"):
        _load("cifar10")


class _Reply(io.BytesIO):
    def __init__(self, path: Path):
        super().__init__(path.read_bytes())
