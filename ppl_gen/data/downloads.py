"""Download of MNIST and of other data sets with published checksums.

Nothing that a server does can hang a command or leave a part of a data set: a download has a time limit and a size
limit, every file is checked against its MD5, and the files are moved into place together, when all are complete.
"""

import gzip
import hashlib
import http.client
import sys
import threading
import time
import urllib.request
from pathlib import Path

from ppl_gen.core.errors import BadInput
from ppl_gen.core.files import readable_errors, write_files

FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""The folder of each data set, as torchvision names it."""
FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
"""Names of the four files of every data set, without `.gz`."""
SERVERS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "kmnist": "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
}
CHECKSUMS = {
    "mnist": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "fashion-mnist": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "kmnist": (
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
}
"""MD5 of each of the files, compressed, as their authors publish them."""
ARCHIVES = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/",
        "",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
    "svhn": (
        "http://ufldl.stanford.edu/housenumbers/",
        "",
        {
            "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
        },
    ),
    "omniglot": (
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
        "omniglot-py",
        {
            "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
            "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
        },
    ),
}
"""Server, folder, and MD5 of each file, of data sets whose files are kept as they are."""
ANSWER = 10.0
"""Seconds until a server must have answered, and between two parts of its answer."""
LIMIT = 900.0
"""Seconds until all files must be there."""
LARGEST = 40 * 2**20
"""Bytes of a file at most. The largest one, the training images of Fashion-MNIST, has 26 million."""
LARGEST_ARCHIVE = 250 * 2**20
"""Bytes of an archive at most. The largest one, the training images of SVHN, has 182 million."""


class NotDownloaded(Exception):
    """A data set cannot be downloaded. The message says why, in one line."""


def download(name: str, folder: Path) -> None:
    """Download a data set into a folder, in torchvision's layout.

    :raises NotDownloaded: for a server that does not answer, answers too slowly or answers with something else, and for
        a folder that cannot be written.
    """
    if name not in FOLDERS and name not in ARCHIVES:
        raise NotDownloaded("it is not downloaded: it is too large, or has no published checksum")
    contents = _fetch_all(name)
    final = folder / FOLDERS[name] / "raw" if name in FOLDERS else folder / ARCHIVES[name][1]
    try:
        with readable_errors(folder):
            final.mkdir(parents=True, exist_ok=True)
        write_files({final / file: content for file, content in contents.items()})
    except BadInput as error:
        raise NotDownloaded(error.sentence) from None


def _fetch_all(name: str) -> dict[str, bytes]:
    """The decompressed files, by name.

    The work is done in a thread that can be abandoned: neither the lookup of a server's name nor a header that arrives
    byte by byte obeys the time limit of a connection.
    """
    answered, finished = threading.Event(), threading.Event()
    failure: list[str] = []
    contents: dict[str, bytes] = {}
    end = time.monotonic() + LIMIT
    server = ARCHIVES[name][0] if name in ARCHIVES else SERVERS[name]

    def work() -> None:
        try:
            if name in ARCHIVES:
                for file, checksum in ARCHIVES[name][2].items():
                    contents[file] = _fetch(server + file, checksum, answered, end, LARGEST_ARCHIVE)
            else:
                for file, checksum in zip(FILES, CHECKSUMS[name], strict=True):
                    contents[file] = gzip.decompress(_fetch(f"{server}{file}.gz", checksum, answered, end, LARGEST))
        except Exception as error:  # urllib, http and ssl raise errors of many types
            failure.append(_reason(error))
        answered.set()
        finished.set()

    threading.Thread(target=work, daemon=True).start()
    if not answered.wait(ANSWER):
        failure.append(f"no answer in {ANSWER:g} seconds")
    elif not failure:
        print(f"downloading {name} from {server}", file=sys.stderr, flush=True)
        if not finished.wait(max(0.0, end - time.monotonic())):
            failure.append(f"not complete after {LIMIT:g} seconds")
    if failure:
        raise NotDownloaded(f"cannot be downloaded ({failure[0]})")
    return contents


def _fetch(url: str, checksum: str, answered: threading.Event, end: float, largest: int) -> bytes:
    """The content of a file on the server, of so many bytes at most. Its MD5 is checked."""
    content, file = bytearray(), url.rpartition("/")[2]
    with urllib.request.urlopen(url, timeout=ANSWER) as reply:
        answered.set()
        while part := reply.read1(2**16):
            content += part
            if len(content) > largest:
                raise ValueError(f"{file} is larger than {largest / 2**20:g} MiB")
            if time.monotonic() > end:
                raise ValueError(f"not complete after {LIMIT:g} seconds")
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
        raise ValueError(f"{file} is incomplete or another file: its MD5 differs")
    return bytes(content)


def _reason(error: Exception) -> str:
    """The error in a few printable words."""
    text = str(getattr(error, "reason", error))
    if isinstance(error, http.client.HTTPException):
        text = f"the server does not follow HTTP: {type(error).__name__}: {text}"
    shown = "".join(character if character.isprintable() else "?" for character in text[:100])
    return shown or type(error).__name__
