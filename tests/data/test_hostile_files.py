"""Damaged, misleading and hostile files of images: each is read rightly, or refused in one line."""

import gzip
import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.data import headers
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data

COUNT, SIDE = 40, 4
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (COUNT, SIDE, SIDE), np.uint8)
GREY[0, 0, 0], GREY[1, 0, 0] = 0, 255
LABELS = RNG.integers(0, 10, COUNT)
Content = bytes | Callable[[Path], object]
"""A file, or a function that makes one at a path."""


def npy(array: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def header(shape: Any, dtype: Any = "|u1", fortran: Any = False, version: tuple[int, int] = (1, 0)) -> bytes:
    """The header of an .npy file, which may lie."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def npz(_how: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", _how) as archive:
        for name, content in members.items():
            archive.writestr(name if "." in name else f"{name}.npy", content)
    return file.getvalue()


def twice() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("train.npy", npy(GREY))
        archive.writestr("train.npy", npy(GREY[::-1]))
    return file.getvalue()


def encrypted() -> bytes:
    """A zip file whose flags say that its member is encrypted."""
    content = bytearray(npz(train=npy(GREY)))
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + offset] |= 1
    return bytes(content)


def mat(_variables: dict[str, Any], **how: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, _variables, **how)
    return file.getvalue()


def lying_mat() -> bytes:
    """A .mat file whose array of 40 × 16 numbers says that it has 2^31 × 16."""
    content = bytearray(mat({"train": GREY.reshape(COUNT, -1)}))
    place = content.index(struct.pack("<ii", COUNT, SIDE * SIDE))
    content[place : place + 4] = struct.pack("<i", 2**31 - 1)
    return bytes(content)


def full_mat() -> bytes:
    """A .mat file of 16 KB with one number, whose data expand to 16 MB."""
    numbers = 16 * 2**20
    name = struct.pack("<ii", 1, 5) + b"train\0\0\0"
    flags, dims = struct.pack("<iiii", 6, 8, 9, 0), struct.pack("<iiii", 5, 8, 1, 1)
    pack = zlib.compressobj(9)
    body = 8 + len(flags) + len(dims) + len(name) - 8 + 8 + numbers
    packed = pack.compress(struct.pack("<iI", 14, body - 8) + flags + dims + name + struct.pack("<iI", 2, numbers))
    block = bytes(2**20)
    packed += b"".join(pack.compress(block) for _ in range(numbers // len(block))) + pack.flush()
    start = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return start + struct.pack("<iI", 15, len(packed)) + packed


def hdf(write: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    """A .mat file of MATLAB 7.3."""

    def make(path: Path) -> None:
        with h5py.File(path, "w", userblock_size=512) as file:
            write(file)
        with open(path, "r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM")

    return make


def idx(array: np.ndarray, kind: int = 8, shape: Any = None) -> bytes:
    shape = array.shape if shape is None else shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + array.tobytes()


def csv(rows: Any, first: str = "") -> bytes:
    return (first + "".join(",".join(map(str, row)) + "\n" for row in rows)).encode()


def elsewhere(file: h5py.File) -> None:
    """An array whose numbers lie in another file."""
    file.create_dataset("train", (COUNT, SIDE, SIDE), "u1", external=[("/etc/passwd", 0, COUNT * SIDE * SIDE)])


FLAT, SMALL = GREY.reshape(COUNT, -1), GREY.astype(np.float32) / 255
RECORDS = np.zeros(COUNT, [("x", "f4"), ("y", "u1")])
LABELLED = {"train": npy(GREY)}
HUGE = (2**20, 2**10, 2**10)
BOMB = header((2**29, 4, 4)) + bytes(2**20)

READ: dict[str, Content] = {
    "plain.npy": npy(GREY),
    "plain.npy.gz": gzip.compress(npy(GREY)),
    "packed-without-a-suffix-of-it.npy": gzip.compress(npy(GREY)),
    "fortran.npy": npy(np.asfortranarray(GREY)),
    "big-endian.npy": npy(GREY.astype(">i4")),
    "big-endian-floats.npy": npy(SMALL.astype(">f8")),
    "half.npy": npy(SMALL.astype(np.float16)),
    "long-double.npy": npy(SMALL.astype(np.longdouble)),
    "bool.npy": npy(GREY > 99),
    "int64.npy": npy(GREY.astype(np.int64)),
    "version-2.npy": header(GREY.shape, version=(2, 0)) + GREY.tobytes(),
    "longer-than-it-says.npy": npy(GREY) + b"more",
    "big-endian-labels.npz": npz(**LABELLED, train_labels=npy(LABELS.astype(">i8"))),
    "big-endian-short-labels.npz": npz(**LABELLED, train_labels=npy(LABELS.astype(">u2"))),
    "float-labels.npz": npz(**LABELLED, train_labels=npy(LABELS.astype(">f4"))),
    "bool-labels.npz": npz(**LABELLED, train_labels=npy(LABELS > 4)),
    "unused-text.npz": npz(**LABELLED, about=npy(np.array(["made", "by"]))),
    "unused-objects.npz": npz(**LABELLED, about=npy(np.array([{}, None]), allow_pickle=True)),
    "unused-lie.npz": npz(**LABELLED, about=header(HUGE)),
    "unused-bomb.npz": npz(**LABELLED, about=BOMB),
    "unused-text-file.npz": npz(**LABELLED, **{"about.txt": b"read me"}),
    "climbs-out.npz": npz(**LABELLED, **{"../../escaped.npy": npy(GREY)}),
    "big-endian.mat": mat({"train": GREY.astype(">i4"), "labels": LABELS[:, None].astype(">i8")}),
    "compressed.mat": mat({"train": GREY, "labels": LABELS[:, None]}, do_compression=True),
    "version-4.mat": mat({"train": FLAT.astype(float)}, format="4"),
    "unused-text.mat": mat({"train": GREY, "about": "made by", "cells": np.array([3, "a"], object)}),
    "chunks.mat": hdf(lambda file: file.create_dataset("train", data=GREY.T, compression="gzip", chunks=True)),
    "big-endian-73.mat": hdf(lambda file: file.create_dataset("train", data=GREY.T.astype(">i4"))),
    "plain-idx": idx(GREY),
    "plain-idx.gz": gzip.compress(idx(GREY)),
    "floats-idx": idx(SMALL.astype(">f4"), 0x0D),
    "plain.csv": csv(FLAT),
    "plain.csv.gz": gzip.compress(csv(FLAT)),
    "bom.csv": b"\xef\xbb\xbf" + csv(FLAT),
    "dos.csv": csv(FLAT).replace(b"\n", b"\r\n"),
    "spaces.csv": csv(FLAT).replace(b",", b"  "),
}
"""Files that are read."""

REFUSED: dict[str, tuple[Content, str]] = {
    "empty.npy": (b"", "empty.npy"),
    "noise.npy": (RNG.bytes(500), "not a .npy"),
    "text.npy": (npy(np.full((COUNT, 4, 4), "a")), "numbers"),
    "bytes.npy": (npy(np.full((COUNT, 4, 4), b"a")), "numbers"),
    "objects.npy": (npy(GREY.astype(object), allow_pickle=True), "allow_pickle"),
    "complex.npy": (npy(GREY.astype(complex)), "numbers"),
    "dates.npy": (npy(GREY.astype("datetime64[s]")), "numbers"),
    "durations.npy": (npy(GREY.astype("timedelta64[s]")), "numbers"),
    "records.npy": (npy(RECORDS), "numbers"),
    "raw.npy": (npy(np.zeros((COUNT, 4, 4), "V3")), "numbers"),
    "a-number.npy": (npy(np.float64(3)), "numbers"),
    "a-vector.npy": (npy(GREY.ravel()), "numbers"),
    "five-axes.npy": (npy(GREY[None, None]), "numbers"),
    "nothing.npy": (npy(np.zeros((0, 4, 4))), "numbers"),
    "no-pixels.npy": (npy(np.zeros((40, 0, 4))), "numbers"),
    "nan.npy": (npy(np.where(GREY > 250, np.nan, SMALL)), "not finite"),
    "infinite.npy": (npy(np.where(GREY > 250, np.inf, SMALL)), "not finite"),
    "negative.npy": (npy(SMALL - 0.5), "outside [0, 1]"),
    "minus-zero-point.npy": (npy(GREY.astype(np.int8)), "signed"),
    "beyond-floats.npy": (npy(GREY.astype(np.uint64) + np.uint64(2**64 - 300)), "outside [0, 1]"),
    "large-longdouble.npy": (npy(GREY.astype(np.longdouble) * np.longdouble("1e4000")), "outside [0, 1]"),
    "all-the-same.npy": (npy(np.zeros_like(GREY)), "every pixel is 0"),
    "too-few.npy": (npy(GREY[:2]), "too few"),
    "larger-than-memory.npy": (header(HUGE), "truncated"),
    "larger-than-memory.npy.gz": (gzip.compress(header(HUGE)), "memory"),
    "larger-than-it-is.npy": (header((10**6, 4, 4)) + GREY.tobytes(), "truncated"),
    "larger-than-any-number.npy": (header((2**62, 2**62, 4)), "truncated"),
    "negative-shape.npy": (header((-1, 4, 4)) + GREY.tobytes(), "truncated"),
    "shape-of-text.npy": (header("('a', 4)") + GREY.tobytes(), "truncated"),
    "code.npy": (header("__import__('os').system('touch ran')") + GREY.tobytes(), "truncated"),
    "deep.npy": (header("(" * 5000) + GREY.tobytes(), "truncated"),
    "long-header.npy": (header(" " * 60_000 + "(40, 4, 4)") + GREY.tobytes(), "truncated"),
    "version-9.npy": (header(GREY.shape, version=(9, 0)) + GREY.tobytes(), "truncated"),
    "unknown-dtype.npy": (header(GREY.shape, "|q9"), "truncated"),
    "damaged.npy.gz": (gzip.compress(npy(GREY))[:-20] + bytes(20), "truncated"),
    "cut.npy.gz": (gzip.compress(npy(GREY))[:200], "truncated"),
    "zip-of-nothing.npz": (npz(), "arrays: none"),
    "text.npz": (npz(train=npy(np.full((COUNT, 4, 4), "a"))), "numbers"),
    "objects.npz": (npz(train=npy(GREY.astype(object), allow_pickle=True)), "allow_pickle"),
    "text-labels.npz": (npz(**LABELLED, train_labels=npy(np.full(COUNT, "a"))), "labels"),
    "byte-labels.npz": (npz(**LABELLED, train_labels=npy(np.full(COUNT, b"1"))), "labels"),
    "object-labels.npz": (npz(**LABELLED, train_labels=npy(LABELS.astype(object), allow_pickle=True)), "allow_pickle"),
    "complex-labels.npz": (npz(**LABELLED, train_labels=npy(LABELS.astype(complex))), "labels"),
    "date-labels.npz": (npz(**LABELLED, train_labels=npy(LABELS.astype("datetime64[s]"))), "labels"),
    "half-labels.npz": (npz(**LABELLED, train_labels=npy(LABELS + 0.5)), "labels"),
    "nan-labels.npz": (npz(**LABELLED, train_labels=npy(np.full(COUNT, np.nan))), "labels"),
    "huge-labels.npz": (npz(**LABELLED, train_labels=npy(np.full(COUNT, 2**64 - 1, np.uint64))), "labels"),
    "no-labels.npz": (npz(**LABELLED, train_labels=npy(np.zeros(0, int))), "labels"),
    "two-of-a-name.npz": (twice(), "two arrays called 'train'"),
    "encrypted.npz": (encrypted(), "encrypted"),
    "nested.npz": (npz(**{"train.npz": npz(train=npy(GREY))}), "not an array"),
    "not-numpy.npz": (npz(train=b"read me"), "truncated"),
    "lie.npz": (npz(train=header(HUGE)), "memory"),
    "small-lie.npz": (npz(train=header((10**5, 4, 4)) + GREY.tobytes()), "truncated"),
    "bomb.npz": (npz(train=BOMB), "memory"),
    "text.mat": (mat({"train": np.full((COUNT, 4), "a")}), "train"),
    "cells.mat": (mat({"train": np.array([["c", "a"], ["b", 3]], object)}), "train"),
    "structure.mat": (mat({"train": {"a": GREY}}), "train"),
    "sparse.mat": (mat({"train": scipy.sparse.csc_matrix(FLAT.astype(float))}), "train"),
    "complex.mat": (mat({"train": GREY.astype(complex)}), "numbers"),
    "text-labels.mat": (mat({"train": GREY, "labels": "abc"}), "labels"),
    "lie.mat": (lying_mat(), "memory"),
    "full.mat": (lambda path: path.write_bytes(full_mat()), "full.mat"),
    "noise.mat": (RNG.bytes(3000), "truncated"),
    "empty.mat": (b"", "truncated"),
    "text-73.mat": (hdf(lambda file: file.create_dataset("train", data=["a"] * COUNT)), "train"),
    "lie-73.mat": (hdf(lambda file: file.create_dataset("train", HUGE[::-1], "f8", chunks=(1, 64, 64))), "memory"),
    "elsewhere-73.mat": (hdf(elsewhere), "train"),
    "link-73.mat": (hdf(lambda file: file.update(train=h5py.ExternalLink("/etc/passwd", "x"))), "arrays: none"),
    "folder-73.mat": (hdf(lambda file: file.create_group("train")), "arrays: none"),
    "code.npy-as.mat": (npy(GREY), "truncated"),
    "images-that-are-labels-idx": (idx(LABELS.astype(np.uint8)), "labels"),
    "lie-idx": (idx(GREY, shape=(10**6, 4, 4)), "truncated"),
    "huge-lie-idx": (idx(GREY, shape=(2**32 - 1, 2**31, 2**31)), "truncated"),
    "huge-lie-idx.gz": (gzip.compress(idx(GREY, shape=(2**31, 2**10, 2**10))), "memory"),
    "longer-idx": (idx(GREY) + b"more", "truncated"),
    "short-header-idx": (idx(GREY)[:7], "truncated"),
    "nothing-idx": (idx(GREY[:0]), "numbers"),
    "empty.csv": (b"", "truncated"),
    "words.csv": (csv(FLAT) + b"a,b,c\n", "not a .csv"),
    "ragged.csv": (csv(FLAT) + csv([range(99)]), "not a .csv"),
    "gap.csv": (csv(FLAT).replace(b"255", b"", 1), "not finite"),
    "nan.csv": (csv(FLAT).replace(b"255", b"nan", 1), "not finite"),
    "latin-1.csv": (csv(FLAT) + b"\xe9\n", "not a .csv"),
    "zero-bytes.csv": (bytes(1000), "zero-bytes.csv"),
    "one-long-line.csv": (b"1," * 10**7, "first line"),
    "header-alone.csv": (csv([[f"pixel{i}" for i in range(16)]]), "header-alone.csv"),
    "names-twice.csv": (csv(FLAT, "a0," * 15 + "a0\n"), "several columns"),
    "quotes.csv": (b'"' + csv(FLAT), "quotes.csv"),
    "spreadsheet.csv": (npz(**{"xl/workbook.xml": b"<a/>"}), "spreadsheet.csv"),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "neither a data set nor a file"),
    "pickle.pkl": (b"\x80\x04}.", "neither a data set nor a file"),
}
"""Files that are refused, each with words of the message."""


@pytest.fixture(autouse=True)
def _two_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same free memory on every machine."""
    monkeypatch.setattr(headers, "free_memory", lambda device="cpu": 2**31)


def place(path: Path, content: Content) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path.name


def loaded(name: str, **options: Any) -> Data | BadInput:
    """What is loaded, in a time and without a warning; or the error, in one line."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found: Data | BadInput = load_data(DataOptions(name, **options))
        except BadInput as error:
            found = error
            assert len(error.sentence.splitlines()) == 1 and error.sentence.startswith(f"--data {name}"), error
            assert len(error.sentence) < 400 + len(name), error
    assert time.process_time() - start < 5
    assert not Path("ran").exists()
    return found


@pytest.mark.parametrize("name", READ)
def test_is_read(elsewhere: Path, name: str) -> None:
    """The images are those that were written, whatever wraps them."""
    data = loaded(place(Path(name), READ[name]), binarization="none")
    assert isinstance(data, Data), data
    got = torch.cat([data.targets(split) for split in ("train", "validation", "test")])
    expected = torch.from_numpy((FLAT > 99).astype(np.float32) if "bool.npy" in name else FLAT / np.float32(255))
    places = 2.0 ** torch.arange(SIDE * SIDE).double()
    order, ours = expected.double() @ places, got.double() @ places
    torch.testing.assert_close(got[ours.argsort()], expected[order.argsort()], atol=5e-4, rtol=0)
    if "labels" in name or name in ("big-endian.mat", "compressed.mat"):
        labels = torch.cat(
            [labels for split in (data.train, data.validation, data.test) if (labels := split.labels) is not None]
        )
        assert labels.dtype == torch.int64
        expected_labels = torch.from_numpy(LABELS > 4 if "bool" in name else LABELS).long()
        assert labels[ours.argsort()].tolist() == expected_labels[order.argsort()].tolist()


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(elsewhere: Path, name: str) -> None:
    content, words = REFUSED[name]
    error = loaded(place(Path(name), content))
    assert isinstance(error, BadInput) and words in error.sentence, error


WHOLE = [name for name in READ if not name.startswith(("longer", "unused"))]


@pytest.mark.parametrize("name", [name for name in WHOLE if name.endswith((".npy", ".npz", ".mat", "idx", ".gz"))])
def test_cut_off(elsewhere: Path, name: str) -> None:
    """A file that ends early, at each tenth, is never taken for a whole one."""
    place(Path(name), READ[name])
    whole = Path(name).read_bytes()
    for tenth in range(10):
        Path(name).write_bytes(whole[: len(whole) * tenth // 10])
        error = loaded(name)
        assert isinstance(error, BadInput), (tenth, error)


def test_damaged(elsewhere: Path) -> None:
    """Files with a few other bytes, drawn with a fixed seed: read, or refused in one line."""
    rng = np.random.default_rng(0)
    for name in WHOLE:
        place(Path(name), READ[name])
        content = np.frombuffer(Path(name).read_bytes(), np.uint8)
        for _ in range(5):
            other = content.copy()
            where = rng.integers(0, min(len(other), rng.choice([100, 10**6])), 4)
            other[where] = rng.integers(0, 256, 4)
            Path(name).write_bytes(other.tobytes())
            loaded(name)


@pytest.fixture
def odd(elsewhere: Path) -> Iterator[None]:
    Path("folder.npy").mkdir()
    os.mkfifo("pipe.npy")
    os.mkfifo("pipe")
    Path("loop.npy").symlink_to("loop.npy")
    Path("nowhere.npy").symlink_to("not-there")
    yield


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder.npy", "is a folder"),
        (".", "no regular file"),
        ("pipe.npy", "no regular file"),
        ("pipe", "neither"),
        ("loop.npy", "symbolic links"),
        ("nowhere.npy", "no such file"),
        ("/dev/zero", "neither"),
        ("/dev/zero/x.npy", "no such file"),
        ("n" * 300 + ".npy", "File name too long"),
        ("n/" * 3000 + "n.npy", "File name too long"),
        ("a\0b.npy", "null byte"),
        ("\udcff.npy", "no such file"),
        ("", "is a folder"),
    ],
)
def test_no_file(odd: None, name: str, words: str) -> None:
    with pytest.raises(BadInput) as error:
        load_data(DataOptions(name))
    assert words in error.value.sentence and len(error.value.sentence.splitlines()) == 1


@pytest.mark.attack
def test_memory(elsewhere: Path) -> None:
    """Reading takes no more than the array, two copies of it, and a quarter of a gigabyte for blocks of grey values."""
    images = np.zeros((2000, 51_200), np.uint8)
    images[::7, 3] = 1
    np.savez_compressed("large.npz", images)
    code = """if True:
        import resource
        from ppl_gen.data.loading import load_data
        from ppl_gen.data.options import DataOptions
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load_data(DataOptions("large.npz"))
        print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(told) < 3 * images.nbytes + 2**28
