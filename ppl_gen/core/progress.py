"""Progress on standard error: a bar on a terminal and in a notebook, plain lines elsewhere."""

import sys
import time
import warnings
from collections.abc import Callable

Advance = Callable[[int], None]
"""Callback of a long computation. It is called with the number of units just done, such as images."""


def skip(progress: Advance, units: int) -> None:
    """Report units that an earlier process has done. From them `Progress` estimates no time.

    >>> skip(print, 3)
    3
    """
    getattr(progress, "skip", progress)(units)


class Progress:
    """Counter of the units of work that are done. It shows them and an estimate of the remaining time.

    :param total: units of work.
    :param unit: name of a unit.
    :param done: units that an earlier process has done.
    :param quiet: show nothing.
    """

    def __init__(self, total: int, unit: str, *, done: int = 0, quiet: bool = False):
        quiet = quiet or sys.stderr is None  # a stream that was closed from the start
        self._plain = not quiet and not _in_notebook() and not sys.stderr.isatty()
        self._total, self._first, self._done = total, done, done
        self._start = self._last_line = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tqdm warns in a notebook without ipywidgets, and shows text
            from tqdm.auto import tqdm
        self._bar = tqdm(
            total=total, initial=done, unit=unit, disable=quiet or self._plain, dynamic_ncols=True, leave=False
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def warn(self, text: str) -> None:
        """Show a line that stays."""
        if self._plain or not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def advance(self, units: int = 1) -> None:
        """Count units as done."""
        self._done += units
        self._bar.update(units)

    def skip(self, units: int) -> None:
        """Count units that an earlier process has done."""
        self._first += units
        if not self._bar.disable:
            self._bar.initial += units
        self.advance(units)

    def advancing(self, heading: str, text: str) -> Advance:
        """A callback that counts units as done and shows a line; without a bar, one every 10 seconds."""

        def advance(units: int) -> None:
            self.advance(units)
            self.note(heading, text, every=10)

        advance.skip = self.skip  # type: ignore[attr-defined]
        return advance

    def note(self, heading: str, text: str = "", *, every: float = 0.0) -> None:
        """Show a line: beside the bar; or, without a bar, as a line of its own.

        :param every: least seconds between two lines, without a bar.
        """
        if not self._plain:
            self._bar.set_description(heading, refresh=False)
            self._bar.set_postfix_str(text)
            return
        now = time.perf_counter()
        if now - self._last_line < every:
            return
        self._last_line = now
        units = self._done - self._first
        left = ""
        if units:
            elapsed = now - self._start
            left = f"{elapsed:.0f} s, {elapsed / units * (self._total - self._done):.0f} s left"
        print("  ".join(part for part in (heading, text, left) if part), file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    """True if this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
