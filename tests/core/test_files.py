"""Files in folders that others may have filled."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ppl_gen.core import files
from ppl_gen.core.errors import BadInput
from ppl_gen.core.files import append, clear_temporary, is_file, read_bytes, write_file, write_files

PLANTED: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("private"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_only_regular_files_are_read_and_appended_to(elsewhere: Path, kind: str) -> None:
    """None of them blocks, is followed or changes."""
    private, path = Path("private"), Path("file")
    private.write_bytes(b"secret")
    PLANTED[kind](path)
    words = "is a link" if path.is_symlink() else "is not a regular file"
    for read in (read_bytes, is_file):
        with pytest.raises(BadInput, match=f"^file: {words}"):
            read(path)
    with pytest.raises(BadInput, match=r"^file: (is a link|cannot be written)"):
        append(path, b"more")
    assert private.read_bytes() == b"secret" and not Path("nothing").exists()


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_writing_replaces_what_is_no_file(elsewhere: Path, kind: str) -> None:
    private, path = Path("private"), Path("file")
    private.write_bytes(b"secret")
    PLANTED[kind](path)
    write_file(path, b"whole")
    assert read_bytes(path) == b"whole" and private.read_bytes() == b"secret" and not Path("nothing").exists()


def test_missing_files(tmp_path: Path) -> None:
    assert not is_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def test_no_name_can_be_planted(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the temporary name is guessed, a link of that name is not followed."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    Path("private").write_bytes(b"secret")
    Path(f".{os.getpid()}-0.tmp").symlink_to("private")
    with pytest.raises(BadInput, match="is a link"):
        write_file(Path("file"), b"x")
    assert Path("private").read_bytes() == b"secret" and not Path("file").exists()


def test_files_that_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is replaced until all are on the disk."""
    both = {tmp_path / "one": b"1", tmp_path / "deeper" / "two": b"2"}
    write_files(both)
    count, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(BadInput, match="cannot be written: No space left on device"):
        write_files(dict.fromkeys(both, b"more"))
    assert {path: path.read_bytes() for path in both} == both
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deeper", "one", "two"]


def test_a_line_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    append(path, b"one\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(BadInput, match="No space left on device"):
            append(path, b"two\n")
    append(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_temporary_files_are_cleared(elsewhere: Path) -> None:
    """Those of a folder, and not those of a folder that it links to."""
    outside, inside = Path("outside"), Path("inside")
    for folder in (outside, inside):
        folder.mkdir()
        for name in (".12-ab.tmp", ".evaluation.json.tmp.json", "kept.tmp", ".lock"):
            (folder / name).write_text("x")
    (inside / ".folder.tmp").mkdir()
    (inside / ".link.tmp").symlink_to("../outside/kept.tmp")
    Path("link").symlink_to("outside")
    clear_temporary(inside)
    clear_temporary(Path("link"))
    assert sorted(path.name for path in inside.iterdir()) == [".folder.tmp", ".lock", "kept.tmp"]
    assert len(list(outside.iterdir())) == 4


def test_every_file_is_written_here() -> None:
    """No other code of the package writes to a path by itself, nor has a library do so: HDF5 ends the process if the
    disk is full."""
    found = r"\.write_(text|bytes)\(|savefig\(|\.to_netcdf\((?!None)|(?<!def )\bopen\((?!null)[^)]*[\"'][wax]b?[\"']"
    package = Path(files.__file__).parents[1]
    paths = list(package.rglob("*.py"))
    assert len(paths) > 100 and re.search(found, 'open(path, "wb")') and re.search(found, "images.to_netcdf(path)")
    for path in paths:
        text = re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(found, text), path
