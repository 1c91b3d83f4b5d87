"""A step of training as a graph of torch's operations, recorded once and run without Pyro, distributions and autograd.

On batches of one size a pair does the same operations at every step, unless its Python decides otherwise, and a small
pair takes a good part of its time for finding out which. What reaches torch's kernels is recorded here, the backward
pass included, and run again on other batches: with parameters and buffers as they are by then, and with new noise.
Whatever else the Python does, such as counting steps, is not. So the pair is asked again after every epoch, before
anything of it is kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.errors import BadInput, Failed, describe

_TOLERANCE = 1e-4  # of norms; the operations are the same, and their sums may be added up in another order


class Captured:
    """A loss with its gradient, as `SVI(loss_and_grads=…)` takes it. Batches of another shape than the first are not
    run from the record.

    :param loss: of a batch, differentiable, as a number; without a look at any value on the way.
    :param modules: whose trainable parameters the gradient is of, and whose buffers trying leaves as they are.
    :param batch: to record the operations on.
    :param other: another one, of the same shapes, to check them on.
    :raises BadInput: for a loss that cannot be recorded.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        modules: nn.Module,
        batch: tuple[Tensor, ...],
        other: tuple[Tensor, ...],
    ):
        from torch.fx.experimental.proxy_tensor import make_fx  # half a second

        self.loss, self.modules = loss, modules
        self.parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        self.shapes = [part.shape for part in batch]
        buffers = [id(buffer) for buffer in modules.buffers()]
        try:
            with self._undone():
                self.graph = make_fx(self._with_gradients)(*batch)
        except Exception as error:  # what a user's Python asks of a tensor, or torch of us
            raise BadInput(f"--capture: the loss of this pair looks at values: {describe(error)}") from error
        if buffers != [id(buffer) for buffer in modules.buffers()]:
            raise BadInput("--capture: a buffer is assigned anew in each step; change it in place")
        try:
            found = self.check(*other)
        except Failed as error:
            raise BadInput(str(error)) from error
        # An optimizer reads a gradient in the order of its parameter, and may change it in place.
        others = [*other, *self.parameters, *modules.buffers()]
        storages = [each.untyped_storage().data_ptr() for each in (*others, *found) if each is not None]
        self.copied = [
            each is not None
            and (each.stride() != parameter.stride() or storages.count(each.untyped_storage().data_ptr()) > 1)
            for each, parameter in zip(found, self.parameters, strict=True)
        ]

    def __call__(self, model: Any, guide: Any, *batch: Tensor) -> Tensor:
        if [part.shape for part in batch] != self.shapes:
            value = self.loss(*batch)
            value.backward()
            return value
        with torch.no_grad():
            value, *gradients = self.graph(*batch)
            for parameter, gradient, copied in zip(self.parameters, gradients, self.copied, strict=True):
                parameter.grad = torch.empty_like(parameter).copy_(gradient) if copied else gradient
        return value

    def check(self, *batch: Tensor) -> list[Tensor | None]:
        """The gradients of the record, which are those of the pair.

        :raises Failed: if they are not.
        """
        with self._undone():
            value, *gradients = self._with_gradients(*batch)
        with self._undone(), torch.no_grad():
            again, *found = self.graph(*batch)
        for ours, theirs in zip((again, *found), (value, *gradients), strict=True):
            if ours is None or theirs is None:
                same = ours is theirs
            else:
                same = bool(torch.linalg.vector_norm(ours - theirs) <= _TOLERANCE * torch.linalg.vector_norm(theirs))
                same = same or not bool(theirs.isfinite().all())  # which the loop tells
            if not same:
                raise Failed(
                    "--capture: the pair does not compute what was recorded of it: it depends on something besides "
                    "tensors, such as a number of steps, or on values as numbers; train it without --capture"
                )
        return found

    def _with_gradients(self, *batch: Tensor) -> tuple[Tensor | None, ...]:
        value = self.loss(*batch)
        return value.detach(), *torch.autograd.grad(value, self.parameters, allow_unused=True)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """The same noise as there will be; buffers, and parameters that are not trained, as they were."""
        frozen = [p for p in self.modules.parameters() if not p.requires_grad]
        buffers = [(buffer, buffer.detach().clone()) for buffer in (*self.modules.buffers(), *frozen)]
        devices = [p.device for p in self.parameters[:1] if p.is_cuda]
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
