"""The gradient where several processes share a batch, and the signals that end training."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.core import parallel


class SharedGradient:
    """Loss with its gradient where several processes each have some images of a batch: the sums over processes, as one
    of them would have for all images. An interrupt that one of them was sent reaches all of them with it, after the
    same step.

    :param loss: of a model, a guide and a batch, in nats per image.
    """

    def __init__(self, loss: Callable[..., Tensor], parameters: list[nn.Parameter], interrupted: threading.Event):
        self.loss, self.parameters, self.interrupted = loss, parameters, interrupted
        self.whole = 0
        """Images of the batch of all processes."""
        self.stop = False

    def __call__(self, model: Any, guide: Any, x: Tensor, *args: Any) -> float:
        told = self.parameters[0].new_zeros(2)
        if len(x):
            value = self.loss(model, guide, x, *args) * (len(x) / self.whole)
            value.backward()
            told[0] = value.detach()
        told[1] = float(self.interrupted.is_set())
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parallel.all_reduce(*(parameter.grad for parameter in self.parameters if parameter.grad is not None), told)
        value, stop = told.tolist()
        self.stop = stop > 0
        return value


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets. The second acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def set_event(number: int, frame: FrameType | None) -> None:
        event.set()
        if parallel.world_size() == 1:  # torchrun passes on what a terminal has sent to all already
            for each, handler in before.items():
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, set_event)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
