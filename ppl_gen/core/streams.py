"""Standard output and standard error of a command: writing to them never fails.

The work of a command does not depend on who reads what it prints. A pipe that its reader has closed swallows the rest
in silence, and so does a stream that was closed from the start. Any other error, such as a full disk, is kept for the
end of the command. Characters that the encoding of a stream lacks are written in ASCII: `+-` for `±`.
"""

import codecs
import errno
import io
import os
import select
import sys
import unicodedata
from contextlib import suppress
from typing import IO, Any

_ASCII = {
    "±": "+-",
    "−": "-",
    "–": "-",
    "—": "-",
    "‖": "||",
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "←": "<-",
    "×": "x",
    "·": ".",
    "≈": "~",
    "∞": "inf",
    "∫": "integral",
    "∑": "sum",
    "√": "sqrt",
    "≠": "!=",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "•": "*",
    "│": "|",
    "─": "-",
    "\u2060": "",  # word joiner
}

_END = 2000  # bytes that are kept of what was to be written


def to_ascii(character: str) -> str:
    """A character in ASCII: an accent is left out, and a Greek letter is written by its name.

    >>> [to_ascii(each) for each in "±é²Σσ╭火"]
    ['+-', 'e', '2', 'Sigma', 'sigma', '+', '?']
    """
    if character in _ASCII:
        return _ASCII[character]
    parts = unicodedata.normalize("NFKD", character)
    plain = "".join(_ASCII.get(part, part) for part in parts).encode("ascii", "ignore").decode()
    name = unicodedata.name(character, "")
    if plain:
        return plain
    if name.startswith("GREEK"):
        letter = name.split()[3]
        return letter.capitalize() if "CAPITAL" in name else letter.lower()
    return "+" if name.startswith("BOX DRAWINGS") else "?"


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """The handler of characters that an encoding lacks. A byte of a file's name that was no text is written as it
    was."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return to_ascii(character), error.start + 1


class _File(io.FileIO):
    """A file descriptor that swallows everything after its first error, which it keeps."""

    failure: OSError | None = None
    end = b""
    """The last of what was to be written."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        self.end = (self.end + bytes(left[-_END:]))[-_END:]
        size = len(left)
        while left and self.failure is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.failure = error
            else:
                if written is None:  # a pipe that does not wait, and is full
                    select.select([], [self], [])
                left = left[written or 0 :]
        return size


def replace() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that never fail. Streams that are no files, such as those of a
    notebook, stay."""
    codecs.register_error("ppl_gen", _replacement)
    sys.stdout, sys.stderr = _safe(sys.stdout, 1), _safe(sys.stderr, 2)


def _safe(stream: IO[str] | None, descriptor: int) -> Any:
    """A stream in place of another. None stands for one that was closed from the start."""
    if stream is None:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.fstat(descriptor)  # a file of this process may have taken its number
        except OSError:
            os.dup2(null, descriptor)  # no later file shall take it: C libraries write there
        return open(null, "w", encoding="utf-8", errors="ppl_gen")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    raw = getattr(stream.buffer, "raw", stream.buffer)  # python -u has no buffer
    if not isinstance(raw, io.FileIO) or isinstance(raw, _File) or raw.fileno() != descriptor:
        return stream
    with suppress(OSError):
        stream.flush()
    file: Any = _File(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        file if raw is stream.buffer else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="ppl_gen",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def unwritten() -> str | None:
    """Why standard output could not be written, with its last line, which names the files of a command; None if it
    could, or if its reader closed it."""
    sys.stdout.flush()
    buffer: Any = getattr(sys.stdout, "buffer", None)
    file = getattr(buffer, "raw", buffer)
    if not isinstance(file, _File) or file.failure is None or file.failure.errno in (errno.EPIPE, errno.ECONNRESET):
        return None
    last = file.end.decode(sys.stdout.encoding, "replace").strip().rpartition("\n")[2]
    return f"standard output cannot be written: {file.failure.strerror}; its last line: {last}"
