"""Downloads from servers that misbehave: nothing hangs, nothing is kept in part, and `auto` goes on without them."""

import gzip
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from images import write_mnist

from ppl_gen.core.errors import BadInput
from ppl_gen.data import downloads
from ppl_gen.data import loading as data_module
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions

Answer = Callable[[socket.socket, str], object]
"""What a server does with a connection, once it has read the request for a file of this name."""
FINE = b"HTTP/1.1 200 OK\r\n"


class Server:
    """A server on this machine in place of MNIST's."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answer: Answer = self.serve
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:  # it is closed
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                name = connection.recv(65536).decode(errors="replace").split()[1].lstrip("/")
                self.answer(connection, name)
            except (OSError, LookupError):  # the client has gone, or does not speak HTTP
                pass

    def serve(self, connection: socket.socket, name: str) -> None:
        content = self.files[name]
        connection.sendall(FINE + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)


@pytest.fixture
def server(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of a small data set."""
    server = Server()
    for path in write_mnist(tmp_path_factory.mktemp("served")).iterdir():
        server.files[f"{path.name}.gz"] = gzip.compress(path.read_bytes())
    sums = [hashlib.md5(server.files[f"{name}.gz"]).hexdigest() for name in downloads.FILES]
    monkeypatch.setitem(downloads.CHECKSUMS, "mnist", sums)
    monkeypatch.setattr(data_module, "_MNIST_COUNTS", (600, 100))
    monkeypatch.setattr(data_module, "_MNIST_SPLIT", (500, 100))
    monkeypatch.setitem(downloads.SERVERS, "mnist", server.url)
    monkeypatch.setattr(downloads, "LARGEST", 2**20)
    yield server
    server.socket.close()


def _slowly(connection: socket.socket, content: bytes) -> None:
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def _endless(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    while True:
        connection.sendall(bytes(2**16))


BAD: dict[str, tuple[Answer, str]] = {
    "nothing": (lambda connection, name: None, "cannot be downloaded"),
    "silence": (lambda connection, name: time.sleep(20), "cannot be downloaded"),
    "garbage": (lambda connection, name: connection.sendall(b"\x00\xff garbage\r\n\r\n"), "does not follow HTTP"),
    "a line without an end": (lambda connection, name: _endless(connection, b"HTTP/1.1 200 "), "does not follow HTTP"),
    "a header without an end": (
        lambda connection, name: connection.sendall(FINE + b"A: b\r\n" * 500),
        "does not follow HTTP",
    ),
    "a long header": (
        lambda connection, name: connection.sendall(FINE + b"A: " + b"b" * 70_000 + b"\r\n\r\n"),
        "does not follow HTTP",
    ),
    "no such file": (lambda connection, name: connection.sendall(b"HTTP/1.1 404 No\r\n\r\n"), "No"),
    "an error": (lambda connection, name: connection.sendall(b"HTTP/1.1 500 Oh\x1b[31m\r\n\r\n"), "Oh?[31m"),
    "a circle": (
        lambda connection, name: connection.sendall(f"HTTP/1.1 302 Go\r\nLocation: /{name}\r\n\r\n".encode()),
        "redirect",
    ),
    "a file of this machine": (
        lambda connection, name: connection.sendall(b"HTTP/1.1 302 Go\r\nLocation: file:///etc/passwd\r\n\r\n"),
        "not allowed",
    ),
    "another address": (
        lambda connection, name: connection.sendall(b"HTTP/1.1 302 Go\r\nLocation: http://a b:c/\r\n\r\n"),
        "cannot be downloaded",
    ),
    "a page": (lambda connection, name: connection.sendall(FINE + b"\r\n<html>log in</html>"), "its MD5 differs"),
    "nothing in it": (lambda connection, name: connection.sendall(FINE + b"Content-Length: 0\r\n\r\n"), "MD5"),
    "too little": (
        lambda connection, name: connection.sendall(FINE + b"Content-Length: 1000\r\n\r\nabc"),
        "cannot be downloaded",
    ),
    "bad chunks": (
        lambda connection, name: connection.sendall(FINE + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n"),
        "does not follow HTTP",
    ),
    "a chunk cut off": (
        lambda connection, name: connection.sendall(FINE + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc"),
        "does not follow HTTP",
    ),
    "a negative chunk": (
        lambda connection, name: connection.sendall(FINE + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n"),
        "cannot be downloaded",
    ),
    "more than there is": (lambda connection, name: _endless(connection, FINE + b"\r\n"), "larger than 1 MiB"),
    "a size that is too large": (
        lambda connection, name: _endless(connection, FINE + b"Content-Length: 99999999999\r\n\r\n"),
        "larger than 1 MiB",
    ),
    "a byte at a time": (
        lambda connection, name: _slowly(connection, FINE + b"\r\n" + bytes(1000)),
        "no answer in 0.3 seconds",
    ),
    "a byte at a time later": (
        lambda connection, name: (connection.sendall(FINE + b"\r\n"), _slowly(connection, bytes(1000))),
        "cannot be downloaded",
    ),
    "a stop": (
        lambda connection, name: (connection.sendall(FINE + b"\r\nabc"), time.sleep(20)),
        "cannot be downloaded",
    ),
}
SLOW = ("silence", "a byte at a time", "a byte at a time later", "a stop")


@pytest.mark.parametrize("how", BAD)
def test_a_server_that_misbehaves(server: Server, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A named data set is refused in a line that says what to do. Nothing is left in the data folder."""
    server.answer, words = BAD[how]
    if how in SLOW:
        monkeypatch.setattr(downloads, "ANSWER", 0.3)
        monkeypatch.setattr(downloads, "LIMIT", 0.6)
    start = time.monotonic()
    with pytest.raises(BadInput) as error:
        load_data(DataOptions("mnist"))
    assert time.monotonic() - start < 8
    sentence = error.value.sentence
    assert words in sentence and "PPL_GEN_DATA" in sentence and sentence.isprintable() and len(sentence) < 400, sentence
    assert not Path("data").exists()


@pytest.mark.parametrize("how", ["garbage", "bad chunks", "more than there is", "a page"])
def test_auto_goes_on(server: Server, how: str) -> None:
    server.answer, words = BAD[how]
    data = load_data(DataOptions("auto"))
    assert data.name == "digits" and words in data.notice and "8x8 digits instead" in data.notice


def test_whole_files_only(server: Server, elsewhere: Path) -> None:
    last = "t10k-labels-idx1-ubyte.gz"
    whole = server.files[last]
    for part in (whole[:50], whole[:-1], whole + b"more", whole[:-1] + bytes([whole[-1] ^ 1])):
        server.files[last] = part
        with pytest.raises(BadInput, match="MD5 differs"):
            load_data(DataOptions(data="mnist"))
        assert not list(elsewhere.iterdir())
    server.files[last] = whole
    assert load_data(DataOptions()).name == "mnist"
    assert sorted(path.name for path in Path("data").iterdir()) == ["MNIST"]
    server.files.clear()
    assert len(load_data(DataOptions(data="mnist")).train) == 500


def test_a_folder_that_cannot_be_written(server: Server) -> None:
    Path("data").write_text("a file")
    with pytest.raises(BadInput, match="cannot be written"):
        load_data(DataOptions("mnist"))
    assert load_data(DataOptions()).name == "digits"


def test_a_server_without_encryption(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(downloads.SERVERS, "mnist", server.url.replace("http:", "https:"))
    with pytest.raises(BadInput, match="cannot be downloaded"):
        load_data(DataOptions("mnist"))


def test_encrypted_servers_only() -> None:
    assert downloads.SERVERS.keys() == downloads.FOLDERS.keys() == downloads.CHECKSUMS.keys()
    assert all(url.startswith("https://") and url.endswith("/") for url in downloads.SERVERS.values())
