"""Files in folders that others may have filled: only regular files are read, and files are written whole.

A link, a pipe or a device that stands in the place of a file is refused, so that reading a folder of a stranger shows
no private file, and writing to it changes no file elsewhere.
"""

import io
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ppl_gen.core.errors import BadInput
from ppl_gen.core.paths import reading

# A link is not followed, and a pipe without a writer does not block. Not every system has all of them.
_SAFELY = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


def opened(path: Path, flags: int = os.O_RDONLY) -> io.FileIO:
    """Open a regular file.

    :param flags: `os.O_RDONLY`, or `os.O_WRONLY` with others.
    :raises BadInput: for anything else, such as a link.
    """
    try:
        descriptor = os.open(path, flags | _SAFELY, 0o666)
    except OSError:
        if path.is_symlink():
            raise BadInput(f"{path}: is a link, which is not followed; put a copy of the file in its place") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput(f"{path}: is not a regular file; remove it")
    return io.FileIO(descriptor, "r" if flags == os.O_RDONLY else "w")  # without a buffer: closing it writes nothing


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    :raises FileNotFoundError: if there is none.
    :raises BadInput: if it is no regular file, or cannot be read.
    """
    with reading(path), opened(path) as file:
        return file.read()


def is_file(path: Path) -> bool:
    """True if there is a regular file that can be read, and False if there is nothing. Raises `BadInput` for anything
    else. It is for libraries that open a file by its name."""
    try:
        with reading(path):
            opened(path).close()
    except FileNotFoundError:
        return False
    return True


def write_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together. All are on the disk under temporary names before the first is renamed.

    :raises BadInput: if they cannot be written, as on a full disk. The files that were there are intact.
    """
    temporary = {path: path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp") for path in contents}
    with readable_errors(next(iter(contents)).parent):
        try:
            for path, content in contents.items():
                path.parent.mkdir(exist_ok=True)
                with opened(temporary[path], os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                    _synced(file, content)
            for path in contents:
                os.replace(temporary[path], path)
        finally:
            for each in temporary.values():
                each.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are missing.

    :raises BadInput: if that is impossible.
    """
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def append(path: Path, content: bytes) -> None:
    """Append to a file. If the disk is full, the file keeps its length.

    :raises BadInput: if it cannot be written.
    """
    with readable_errors(path), opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        length = os.fstat(file.fileno()).st_size
        try:
            _synced(file, content)
        except OSError:
            os.ftruncate(file.fileno(), length)
            raise


def clear_temporary(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, to which no other process writes."""
    if not folder.is_symlink():
        for path in folder.glob(".*.tmp*"):
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError`, such as a full disk or a missing permission, into a `BadInput`."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{error.filename or path}: cannot be written: {error.strerror or error}; files that were saved before are "
            "intact"
        ) from None  # a BadInput with a cause may be the fault of a user's code


def _synced(file: io.FileIO, content: bytes) -> None:
    """Write, and wait until it is on the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
