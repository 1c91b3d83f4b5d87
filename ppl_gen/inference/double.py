"""A pair in float64, for a while: what differs there from float32 is rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ppl_gen.inference.arguments import map_leaves
from ppl_gen.inference.reached import modules_of


def as_double(value: Any) -> Any:
    """Tensors and packed sequences of floating-point numbers in float64, also in dictionaries, tuples and lists;
    everything else as it is."""

    def widen(leaf: Any) -> Any:
        data = leaf.data if isinstance(leaf, PackedSequence) else leaf
        if not isinstance(data, Tensor) or not data.is_floating_point():
            return leaf
        # `pyro.module` leaves out what has no gradient.
        return leaf.double().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf.double()

    return map_leaves(widen, value)


@contextmanager
def in_double(*functions: Any) -> Iterator[None]:
    """Context in which the parameters and buffers that functions can reach, and those of Pyro, are copies in float64.
    The tensors themselves stay as they are: nothing is converted back."""
    stores: list[dict[str, Any]] = [
        store for module in modules_of(*functions) for store in (module._parameters, module._buffers)
    ]
    kept = [(store, dict(store)) for store in stores]
    state = pyro.get_param_store().get_state()
    try:
        for store in stores:
            store.update({name: as_double(value) for name, value in store.items()})
        with pyro.get_param_store().scope({**state, "params": as_double(dict(state["params"]))}):
            yield
    finally:
        for store, values in kept:
            store.clear()
            store.update(values)
