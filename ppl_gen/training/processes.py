"""Gradient of a batch that several processes share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.core import parallel
from ppl_gen.core.interrupts import Interrupted


class SharedGradient:
    """The loss and its gradient, where several processes share the images of a batch. Both are summed over the
    processes and equal those of the whole batch. If one process has been interrupted, all of them learn it in the same
    step.

    :param loss: the loss of a model, a guide and a batch, in nats per image.
    """

    def __init__(self, loss: Callable[..., Tensor], parameters: list[nn.Parameter], interrupted: Interrupted):
        self.loss, self.parameters, self.interrupted = loss, parameters, interrupted
        self.whole = 0
        """Number of images of the batch over all processes."""
        self.stop = False

    def __call__(self, model: Any, guide: Any, x: Tensor, *args: Any) -> float:
        shared = self.parameters[0].new_zeros(2)
        if len(x):
            value = self.loss(model, guide, x, *args) * (len(x) / self.whole)
            value.backward()
            shared[0] = value.detach()
        shared[1] = float(self.interrupted.is_set())
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parallel.all_reduce(*(parameter.grad for parameter in self.parameters if parameter.grad is not None), shared)
        value, stop = shared.tolist()
        self.stop = stop > 0
        return value
