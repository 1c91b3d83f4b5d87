"""Training steps on a GPU as one CUDA graph.

A step of a small pair launches hundreds of kernels, each of which takes microseconds on a GPU and tens of microseconds
of Python. A CUDA graph repeats them all with one launch. It repeats the kernels, not the Python code. Therefore the
pair and the objective must be the package's own, whose code does the same at each step.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.inference.direct import same_gradients
from ppl_gen.inference.modes import unchanged
from ppl_gen.networks.pixel_sums import recording

_LIBRARIES = {"ppl_gen", "torch", "zuko"}
_WARM_UP = 3  # calls before a record, as torch advises: they allocate what later calls keep
_TOLERANCE = 1e-4  # relative, of the loss: sums may be in another order

Gradients = tuple[Tensor | None, ...]


def may_be_recorded(*parts: Any) -> bool:
    """True if the code of a step is known: neither a part nor a module in it is of a user's class.

    >>> class Own(nn.Linear): ...
    >>> may_be_recorded(nn.Sequential(nn.Linear(2, 2))), may_be_recorded(nn.Sequential(Own(2, 2)))
    (True, False)

    :param parts: the model, the guide and the objective.
    """
    objects = [each for part in parts for each in (part.modules() if isinstance(part, nn.Module) else [part])]
    return all(type(each).__module__.partition(".")[0] in _LIBRARIES for each in objects)


class RecordedGradient:
    """The loss of a batch in nats per image, and its gradient, from a CUDA graph of the first batch. Batches of another
    shape, and losses that cannot be recorded, are computed as usual.

    :param loss: the loss of a model, a guide and a batch.
    :param modules: modules whose parameters get the gradient.
    :param otherwise: computes the loss, and writes the gradient to the parameters.
    """

    def __init__(self, loss: Callable[..., Tensor], modules: nn.Module, otherwise: Callable[..., Tensor]):
        self.loss, self.modules, self.otherwise = loss, modules, otherwise
        self.parameters = [each for each in modules.parameters() if each.requires_grad]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.batch: tuple[Tensor, ...] = ()
        """The batch that the graph reads."""
        self.value, self.gradients = torch.empty(0), Gradients()
        """What it writes."""
        self.usable = True

    def __call__(self, model: Any, guide: Any, *batch: Tensor) -> Tensor:
        if self.usable and self.graph is None:
            self._record(model, guide, *batch)
        if self.graph is None or [each.shape for each in batch] != [each.shape for each in self.batch]:
            return self.otherwise(model, guide, *batch)
        self._replay(batch)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.value

    def stop(self) -> None:
        """Compute all further batches as usual: the loss has changed."""
        self.graph, self.usable = None, False

    def _compute(self, model: Any, guide: Any, *batch: Tensor) -> tuple[Tensor, Gradients]:
        value = self.loss(model, guide, *batch)
        return value.detach(), torch.autograd.grad(value, self.parameters, allow_unused=True)

    def _replay(self, batch: tuple[Tensor, ...]) -> None:
        assert self.graph is not None
        for ours, given in zip(self.batch, batch, strict=True):
            ours.copy_(given)
        with torch.cuda.device(self.batch[0].device):
            self.graph.replay()

    def _record(self, model: Any, guide: Any, *batch: Tensor) -> None:
        """Record the loss and the gradient of a batch, if they read no tensor's value on the way; and keep the record
        if it gives what the code gives from the same noise."""
        self.usable = False
        if not all(isinstance(each, Tensor) and each.is_cuda for each in batch):
            return
        self.batch = tuple(each.clone() for each in batch)
        try:
            with torch.cuda.device(batch[0].device):
                self._capture(model, guide)
                if not self._same(model, guide, batch):
                    self.graph = None
        except (RuntimeError, BadInput):  # the code waits for the GPU, or does what a graph cannot hold
            self.graph = None

    def _capture(self, model: Any, guide: Any) -> None:
        side = torch.cuda.Stream()
        with unchanged(self.modules):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), _no_waiting(), recording():
                for _ in range(_WARM_UP):
                    self._compute(model, guide, *self.batch)
            torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with unchanged(self.modules), recording(), torch.cuda.graph(graph):
            self.value, self.gradients = self._compute(model, guide, *self.batch)
        self.graph = graph

    def _same(self, model: Any, guide: Any, batch: tuple[Tensor, ...]) -> bool:
        """True if a replay gives the loss, the gradient and the buffers of the code."""
        with unchanged(self.modules):
            expected, slopes = self._compute(model, guide, *batch)
            after = [each.clone() for each in self.modules.buffers()]
        with unchanged(self.modules):
            self._replay(batch)
            near = bool((self.value - expected).abs() <= _TOLERANCE * (1 + expected.abs()))
            near = near and same_gradients(self.gradients, slopes)
            buffers = zip(self.modules.buffers(), after, strict=True)
            return near and all(torch.allclose(ours, theirs, rtol=_TOLERANCE) for ours, theirs in buffers)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raise `RuntimeError` for operations that wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is a prototype, which does not find all such operations
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
