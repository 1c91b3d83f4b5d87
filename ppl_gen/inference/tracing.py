"""Execution of a pair: the trace of the guide, and the trace of the model at the values that the guide has drawn."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor

from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.densities import masked_log_prob, unobserved
from ppl_gen.inference.modes import aside, frozen
from ppl_gen.inference.reached import Held
from ppl_gen.inference.signatures import PyroFunction

if TYPE_CHECKING:
    from ppl_gen.inference.pair import Pair

SAMPLES = "_samples"
"""Name of the plate of samples."""


class Traces(NamedTuple):
    """The traces of a guide and a model at the same values of the latent sites."""

    guide: poutine.Trace
    model: poutine.Trace


def latent_sites(traces: Traces) -> list[str]:
    """Names of the model's latent sites. The part of a site that its `obs_mask` leaves out is none, if the guide does
    not sample it: the model then draws it, and its density is not part of log p(x)."""
    parts = {
        f"{name.removesuffix('_observed')}_unobserved" for name in traces.model.nodes if name.endswith("_observed")
    }
    return [name for name in unobserved(traces.model) if name not in parts or name in traces.guide.nodes]


def trace_of(function: PyroFunction, batch: Batch) -> poutine.Trace:
    """Run a Pyro function and return its trace."""
    return poutine.trace(function).get_trace(batch.x, *batch.args, **batch.kwargs)


class _WholePlates(Messenger):
    """Handler under which the plate of images holds all images that are given: a plate without a size has that of the
    batch, and the `subsample_size` of a plate with the size of the batch is left out.

    :param count: number of images in the batch.
    """

    def __init__(self, count: int):
        super().__init__()
        self.count, self.used = count, False

    def __enter__(self) -> Self:
        # `plate` compares its own argument with the subsample that handlers return, so no handler can change it.
        self._subsample = SubsampleMessenger._subsample
        SubsampleMessenger._subsample = staticmethod(self._whole)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        SubsampleMessenger._subsample = staticmethod(self._subsample)
        super().__exit__(*error)

    def _whole(self, name: str, size: Any = None, subsample_size: Any = None, *given: Any) -> Any:
        if size == self.count and subsample_size is not None and (not given or given[0] is None):
            self.used, subsample_size = True, None
        return self._subsample(name, size, subsample_size, *given)

    def _pyro_sample(self, message: Any) -> None:
        frames, fn, value = message["cond_indep_stack"], message["fn"], message["value"]
        if any(frame.size == -1 for frame in frames):
            self.used = True
            shape = fn.batch_shape
            if value is not None:
                shape = broadcast_shape(shape, value.shape[: value.dim() - fn.event_dim])

            def size_of(dim: int) -> int:
                own = shape[dim] if len(shape) >= -dim else 1
                return self.count if own == 1 else own

            sized = (frame._replace(size=size_of(frame.dim)) if frame.size == -1 else frame for frame in frames)
            message["cond_indep_stack"] = tuple(sized)
            BroadcastMessenger._pyro_sample(message)


@contextmanager
def rows_of_plate(name: str, rows: Tensor) -> Iterator[None]:
    """Context in which a plate that would draw its subsample takes these rows."""
    drawn = SubsampleMessenger._subsample

    def chosen(plate: str, size: Any = None, subsample_size: Any = None, *given: Any) -> Any:
        if plate == name and size is not None and (not given or given[0] is None):
            # Not as a sample site: the model would replay the guide's.
            return size, len(rows), rows if size != len(rows) else torch.arange(size, device=rows.device)
        return drawn(plate, size, subsample_size, *given)

    SubsampleMessenger._subsample = staticmethod(chosen)
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(drawn)


def with_whole_plates(function: PyroFunction, batch: Batch) -> PyroFunction:
    """Wrap a function whose plates have no size, or subsample (`_WholePlates`). All others are returned as they are."""

    @functools.wraps(function)
    def whole(x: Any = None, *args: Any, **kwargs: Any) -> Any:
        with _WholePlates(kwargs.get("n", 1) if x is None else len(x)) as whole.plates:  # type: ignore[attr-defined]
            return function(x, *args, **kwargs)

    trace_of(whole, batch)
    return whole if whole.plates.used else function  # type: ignore[attr-defined]


def under_samples(function: PyroFunction, num_samples: int, dim: int) -> PyroFunction:
    """Wrap a function in a plate of samples.

    :param dim: dimension of that plate, left of all other plates.
    """
    return pyro.plate(SAMPLES, num_samples, dim=dim)(function)


def replayed(guide: PyroFunction, model: PyroFunction, batch: Batch, detach: bool = False) -> Traces:
    """Run the guide, and then the model at the values that the guide has drawn.

    :param detach: detach the values from the parameters that they were drawn with.
    """
    with _Detach() if detach else nullcontext():
        drawn = trace_of(guide, batch)
    return Traces(drawn, trace_of(poutine.replay(model, trace=drawn), batch))


def cut_traces(
    guide: PyroFunction, model: PyroFunction, latent: Iterable[str], batch: Batch, detach: bool = False
) -> tuple[poutine.Trace, Traces, dict[str, Tensor]]:
    """As `replayed`, with the model at leaves: tensors with the drawn values that gradients do not pass through.

    :param latent: names of the sites whose values are replaced by leaves.
    :returns: the trace of the guide, the traces of both, and the leaves.
    """
    with _Detach() if detach else nullcontext():
        drawn = trace_of(guide, batch)
    at, leaves = _with_values(drawn, latent, leaf)
    return drawn, Traces(drawn, trace_of(poutine.replay(model, trace=at), batch)), leaves


def conditioned(guide: PyroFunction, model: PyroFunction, values: dict[str, Tensor], batch: Batch) -> Traces:
    """Run guide and model at given values of the latent sites."""
    guide, model = (poutine.condition(function, values) for function in (guide, model))
    return Traces(trace_of(guide, batch), trace_of(model, batch))


class _Detach(Messenger):
    """Handler that detaches sampled values."""

    def _pyro_post_sample(self, message: Any) -> None:
        message["value"] = message["value"].detach()


# With the guide's parameters detached ------------------------------------------------------------------------------


def frozen_guide_traces(
    pair: "Pair", guide: PyroFunction, model: PyroFunction, batch: Batch, cut: bool = False
) -> tuple[poutine.Trace, Traces, dict[str, Tensor]]:
    """Traces for a gradient through z alone (Roeder et al. 2017): the guide is replayed with detached parameters.

    Detached distributions would not do. The guide's distribution of one site may depend on z of another site, and this
    path must stay.

    :param pair: whose functions, perhaps for several samples, guide and model are. Its running statistics move once.
    :param cut: use leaves, as `cut_traces` does, instead of clones.
    :returns: the trace in which the guide has drawn z; the traces of the replayed guide and of the model at clones of
        these values; and the clones. Gradients from one latent site of the guide to another do not pass through them.
    """
    with aside(pair.modules):  # the guide runs once more
        drawn = trace_of(guide, batch)
    at, values = _with_values(drawn, pair.latent, leaf if cut else torch.clone)
    guide, model = (poutine.replay(function, trace=at) for function in (guide, model))
    frozen_trace = _frozen_trace(guide, pair.read_by_guide, pair.latent, batch)
    return drawn, Traces(frozen_trace, trace_of(model, batch)), values


def frozen_guide_traces_at(
    guide: PyroFunction, model: PyroFunction, held: Held, values: dict[str, Tensor], batch: Batch
) -> Traces:
    """As `conditioned`, with the guide's parameters detached.

    :param held: what holds the guide's parameters, except those of `pyro.param` statements.
    """
    guide, model = (poutine.condition(function, values) for function in (guide, model))
    return Traces(_frozen_trace(guide, held, values, batch), trace_of(model, batch))


def _frozen_trace(guide: PyroFunction, held: Held, latent: Iterable[str], batch: Batch) -> poutine.Trace:
    """The trace of a guide with detached parameters, and its log-densities. Some distributions, such as flows, read
    their parameters only when the density is computed."""
    with _DetachParameters(), frozen(*held), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was not registered in the param store")  # by pyro.module
        trace = trace_of(guide, batch)
        for name in latent:
            trace.nodes[name]["masked_log_prob"] = masked_log_prob(trace.nodes[name])
    return trace


def _with_values(
    trace: poutine.Trace, latent: Iterable[str], change: Callable[[Tensor], Tensor]
) -> tuple[poutine.Trace, dict[str, Tensor]]:
    """A copy of a trace with changed values of the latent sites, and these values."""
    changed = trace.copy()
    values = {name: change(trace.nodes[name]["value"]) for name in latent}
    for name, value in values.items():
        changed.nodes[name] = changed.nodes[name] | {"value": value}
    return changed, values


def leaf(value: Tensor) -> Tensor:
    """A tensor with the same value that requires a gradient, if the value does, and does not pass it on."""
    return value.detach().requires_grad_(value.requires_grad)


class _DetachParameters(Messenger):
    """Handler that detaches the values of `pyro.param` statements. (Those of modules are `frozen`.)"""

    def _pyro_post_param(self, message: Any) -> None:
        message["value"] = message["value"].detach()
