"""One writer at a time for each run directory.

The lock is of the operating system, and ends with its process, however that ends. `.lock` is the file that is locked.
`.writer` says who holds it.
"""

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ppl_gen.core.errors import BadInput
from ppl_gen.core.files import clear_temporary, read_bytes, write_file

_WRITER = ".writer"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without locks, such as some network file systems."""


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a run directory for the length of a block. A thread that does so already may
    do so again. What killed writers have left under temporary names is removed.

    :raises BadInput: if another process writes to it, or it cannot be written.
    """
    from filelock import FileLock, Timeout  # asyncio, which a process that only reads does without

    place = folder.resolve()  # the block may change the working directory
    lock = FileLock(place / ".lock", is_singleton=True)
    first = not lock.is_locked
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BadInput(f"{folder}: {_writer(folder)} writes to it; wait for it to end") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            linked = (folder / ".lock").is_symlink()
            reason = ".lock is a link, which is not followed; remove it" if linked else error.strerror or error
            raise BadInput(f"{folder}: cannot be written: {reason}") from None
        print(f"warning: {folder}: is on a file system without locks; start no second command on it", file=sys.stderr)
    try:
        if first and lock.is_locked:
            for each in (place, place / "figures"):
                clear_temporary(each)
            with suppress(BadInput):  # the note is for others, and nothing depends on it
                write_file(place / _WRITER, _me())
        yield
    finally:
        if first:
            with suppress(OSError):
                (place / _WRITER).unlink()
        lock.release()


def _me() -> bytes:
    """This process, for others to read."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    me = {"process": os.getpid(), "host": socket.gethostname(), "since": since, "command": shlex.join(sys.orig_argv)}
    return f"{json.dumps(me)}\n".encode()


def _writer(folder: Path) -> str:
    """The process that writes to a run directory, in words."""
    try:
        found = json.loads(read_bytes(folder / _WRITER))
        process, *words = (found[key] for key in ("process", "host", "since", "command"))
        host, since, command = (repr(word)[1:-1] for word in words)  # without control characters
        return f"process {process:d} on {host}, since {since}, '{command[:200]}',"
    except (OSError, ValueError, KeyError, TypeError):  # its writer has just begun, or just ended
        return "another process"
