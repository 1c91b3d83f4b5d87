"""Signals that end a command in an orderly way: Ctrl-C, SIGTERM and SIGHUP. Importing this imports no torch.

While a command imports its modules, nothing is begun, and a signal ends it at once, with a line. After that, the first
signal raises `KeyboardInterrupt`, except in training and in a sweep, where it sets a flag: the step ends, and a
checkpoint is written. A further signal ends the process at once. That loses no more than a power failure does: files
are written under temporary names.

A signal that is ignored when the command starts, as SIGHUP is under nohup, stays ignored.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

AGAIN = "run the same command again"
"""What to do after an interrupt, unless a run is there to be continued."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IGNORED = (signal.SIG_IGN, None)  # None: a handler that is not Python's


class Interrupted:
    """Whether a signal has come. `threading.Event` would not do: its lock is not for a handler that a second signal
    interrupts."""

    def __init__(self) -> None:
        self.seen = False

    def is_set(self) -> bool:
        return self.seen


def end_at_once() -> None:
    """Let a signal end this process with one line. For the imports, before anything is begun."""
    _handle(lambda *_: _end(f"interrupted: {AGAIN}"))


def raise_once(*, shared: bool = False) -> None:
    """Let the first signal raise `KeyboardInterrupt`, and the second end this process with one line.

    :param shared: True if torchrun has started several processes. It forwards the signals that the terminal has already
        sent to every process, so a second signal is not a second Ctrl-C.
    """
    raised = 0  # number of the signal

    def once(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:
            raised = number
            raise KeyboardInterrupt
        if not shared:
            _end(f"interrupted: {AGAIN}")

    def dropped(error: Any) -> None:
        # Python drops an exception in `__del__`, and in this function: the signal comes again, a moment later.
        nonlocal raised
        if error.exc_type is not KeyboardInterrupt:
            sys.__unraisablehook__(error)
        elif raised:
            number, raised = raised, 0
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()

    _handle(once)
    sys.unraisablehook = dropped


def told() -> None:
    """Let signals do nothing once a command knows how it ends: Python takes its leave, for which it would set them to
    end the process. Of several processes, those that leave the word to the first are ended by torchrun's signal."""
    _handle(signal.SIG_IGN if speaks() else signal.SIG_DFL)


@contextmanager
def interrupts(*, shared: bool = False) -> Iterator[Interrupted]:
    """What the first signal sets. The second acts as it did before.

    :param shared: as for `raise_once`: nothing else happens.
    """
    interrupted = Interrupted()
    before: dict[int, Any] = {}

    def set_event(number: int, frame: FrameType | None) -> None:
        interrupted.seen = True
        if not shared:
            _restore(before)

    before |= _handle(set_event)
    try:
        yield interrupted
    finally:
        _restore(before)


def _handle(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> dict[int, Any]:
    """Set a handler for all signals that are not ignored. Returns the handlers that it replaces: none outside the main
    thread, where Python sets no handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded: dict[int, Any] = {number: old for number, old in before.items() if old not in _IGNORED}
    for number in heeded:
        signal.signal(number, handler)
    return heeded


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def speaks() -> bool:
    """True for the process that tells of an interrupt: the first of those that torchrun has started, or the only
    one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") in ("", "0")


def _end(line: str) -> None:
    """End this process with a line, written by the system call: a signal may come while Python's own stream is in
    use."""
    if speaks():
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
    os._exit(1)
