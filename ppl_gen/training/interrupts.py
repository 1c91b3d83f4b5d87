"""Signals that end training, or a sweep, in an orderly way. Importing this imports no torch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts(*, shared: bool = False) -> Iterator[threading.Event]:
    """Event that the first Ctrl-C or SIGTERM sets. The second acts as usual.

    :param shared: True if torchrun has started several processes. It forwards the signals that the terminal has already
        sent to every process, so a second signal is not a second Ctrl-C.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def set_event(number: int, frame: FrameType | None) -> None:
        event.set()
        if not shared:
            for each, handler in before.items():
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, set_event)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
