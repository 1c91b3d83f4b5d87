"""A step of training as a graph of torch's operations: recorded once, then run without Pyro, distributions and
autograd.

For batches of one size a pair does the same operations at every step, unless its Python code branches. Finding out
which operations takes a small pair much of its time. The operations that reach torch's kernels are recorded here, with
those of the backward pass, and run again on other batches, with the parameters and buffers of that moment and with new
noise. Other effects of the Python code, such as a counter of steps, are not recorded. Therefore the record is compared
with the pair after every epoch, before a checkpoint is written.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, Failed, describe
from ppl_gen.experiment.state import unchanged

_TOLERANCE = 1e-4  # relative, of norms: the operations are the same, but sums may be in another order
_ROUNDINGS = 10  # float roundings of a buffer that a step changes a little


def _alike(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """True if the loss, or a gradient, from the record equals the pair's."""
    if ours is None or theirs is None:
        return ours is theirs
    near = torch.linalg.vector_norm(ours - theirs) <= _TOLERANCE * torch.linalg.vector_norm(theirs)
    return bool(near) or not bool(theirs.isfinite().all())  # the loop reports a loss that is not finite


def _moved_alike(ours: Tensor, theirs: Tensor, before: Tensor) -> bool:
    """True if a step of the record changes a buffer by as much as a step of the pair does. The change is compared, not
    the buffer: a running mean that has settled hardly changes in a step."""
    if not ours.is_floating_point() or torch.equal(ours, theirs):
        return torch.equal(ours, theirs)
    moved, size = (torch.linalg.vector_norm(each.double()) for each in (theirs - before, theirs))
    limit = _TOLERANCE * moved + _ROUNDINGS * torch.finfo(ours.dtype).eps * size
    return bool(torch.linalg.vector_norm((ours - theirs).double()) <= limit) or bool(
        torch.allclose(ours, theirs, equal_nan=True) and not theirs.isfinite().all()
    )


class Captured:
    """A loss with its gradient, as `SVI(loss_and_grads=…)` takes it. Batches of another shape than the first one are
    computed without the record.

    :param loss: a differentiable loss of a batch, scalar, whose Python code reads no values of tensors.
    :param modules: modules whose trainable parameters get a gradient. Recording leaves parameters and buffers
        unchanged.
    :param batch: a batch to record the operations on.
    :param other: another batch, of the same shapes, to check the record on.
    :raises BadInput: for a loss that cannot be recorded.
    """

    def __init__(
        self, loss: Callable[..., Tensor], modules: nn.Module, batch: tuple[Tensor, ...], other: tuple[Tensor, ...]
    ):
        from torch.fx.experimental.proxy_tensor import make_fx  # takes half a second to import

        self.loss, self.modules = loss, modules
        self.parameters = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        self.shapes = [part.shape for part in batch]
        tensors = [id(tensor) for tensor in self._tensors()]
        try:
            with unchanged(modules):
                self.graph = make_fx(self._with_gradients)(*batch)
        except Exception as error:  # user code that reads values, or an operation that torch cannot trace
            raise BadInput(
                f"--capture: the code of this pair looks at values of tensors; train it without: {describe(error)}"
            ) from error
        if tensors != [id(tensor) for tensor in self._tensors()]:
            raise BadInput("--capture: each step assigns a new tensor to a buffer; change the buffer in place")
        try:
            gradients = self.check(*other)
        except Failed as error:
            raise BadInput(str(error)) from error
        # Optimizers take a gradient with the strides of its parameter, and may change it in place. A gradient
        # with other strides, or with shared storage, is copied.
        others = [*other, *self.parameters, *modules.buffers()]
        storages = [tensor.untyped_storage().data_ptr() for tensor in (*others, *gradients) if tensor is not None]
        self.copied = [
            gradient is not None
            and (gradient.stride() != parameter.stride() or storages.count(gradient.untyped_storage().data_ptr()) > 1)
            for gradient, parameter in zip(gradients, self.parameters, strict=True)
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
        """Compare a step of the record with a step of the pair: loss, gradients, and changes of parameters and buffers.
        Returns the gradients of the record.

        :raises Failed: if they differ.
        """
        before = [tensor.detach().clone() for tensor in self._tensors()]
        with unchanged(self.modules):
            value, *gradients = self._with_gradients(*batch)
            after = [tensor.detach().clone() for tensor in self._tensors()]
        with unchanged(self.modules), torch.no_grad():
            again, *recorded = self.graph(*batch)
            moved = all(map(_moved_alike, self._tensors(), after, before))
        if not (moved and all(map(_alike, (again, *recorded), (value, *gradients)))):
            raise Failed(
                "--capture: the pair no longer computes what was recorded: it depends on more than tensors, such as a "
                "number of steps, or on values of tensors; train it without --capture"
            )
        return recorded

    def _tensors(self) -> list[Tensor]:
        return [*self.modules.parameters(), *self.modules.buffers()]

    def _with_gradients(self, *batch: Tensor) -> tuple[Tensor | None, ...]:
        value = self.loss(*batch)
        return value.detach(), *torch.autograd.grad(value, self.parameters, allow_unused=True)
