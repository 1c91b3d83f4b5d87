"""What is at a path. Every path that a user can name is looked at here.

`Path.exists` and its like return False for a path that is not there, but raise `OSError` for a name that is too long or
lies in a folder without permission. The functions here raise `BadInput` for these, in one line.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppl_gen.core.errors import BadInput, shown


def exists(path: str | Path, option: str = "") -> bool:
    """True if there is a file, a folder or anything else at a path.

    :param option: the option that names the path, for the message.
    :raises BadInput: for a path that cannot be looked at.
    """
    return _mode(path, option) is not None


def is_file(path: str | Path, option: str = "") -> bool:
    """True for a regular file. A folder, a pipe and a device are none."""
    return stat.S_ISREG(_mode(path, option) or 0)


def is_folder(path: str | Path, option: str = "") -> bool:
    """True for a folder."""
    return stat.S_ISDIR(_mode(path, option) or 0)


def is_weight_file(path: Path) -> bool:
    """True for the path of a file of log weights; False for that of a run directory."""
    return path.suffix.lower() == ".npz" and not is_folder(path)


@contextmanager
def reading(path: str | Path, option: str = "") -> Iterator[None]:
    """Turn an `OSError` while a file is read, such as a missing permission, into a `BadInput`. A file that is not there
    stays a `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{_named(path, option)}: cannot be read: {error.strerror or error}") from None


def check_readable(path: str | Path, option: str = "") -> None:
    """Raise `BadInput` for a file that cannot be opened, such as one without permission."""
    with reading(path, option), open(path, "rb"):
        pass


def _mode(path: str | Path, option: str) -> int | None:
    """Kind and permissions of what is at a path; None if nothing is there."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a ValueError for a null byte, in the words of each version of Python
        reason = "embedded null byte" if "\0" in str(path) else getattr(error, "strerror", None) or error
        raise BadInput(f"{_named(path, option)}: {reason}") from None


def _named(path: str | Path, option: str) -> str:
    """The option and the path, or the beginning of a long one, in one line."""
    text = str(path)
    whole = len(text) <= 200 and text.isprintable()
    return f"{option} {text if whole else shown(text)}".strip()
