"""The comparison of two ways to compute a training step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.inference.direct import same_gradients
from ppl_gen.inference.modes import snapshot, unchanged

_TOLERANCE = 1e-4  # relative, of the loss and of the change of a buffer: sums may be in another order
_ROUNDINGS = 10  # float roundings of a buffer that a step changes a little


def same_step(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], modules: nn.Module, batch: Any) -> bool:
    """True if two losses have the same value, the same gradients and the same effect on buffers and attributes, from
    the same noise, up to rounding; also if the second is not finite, which the loop reports. Modules are left as they
    were.

    >>> net = nn.Linear(3, 1)
    >>> x = torch.ones(2, 3)
    >>> same_step(lambda x: net(x).sum(), lambda x: 2 * net(x).mean(), net, (x,))
    True
    >>> same_step(lambda x: net(x).sum(), lambda x: net(x).sum().detach() + net(x).mean(), net, (x,))
    False

    :param modules: modules whose trainable parameters, buffers and attributes are compared.
    """
    trained = [parameter for parameter in modules.parameters() if parameter.requires_grad]
    before = [buffer.detach().clone() for buffer in modules.buffers()]
    found, effects = [], list[dict[str, Any]]()
    for loss in (ours, theirs):
        with unchanged(modules), _same_attributes(modules, effects):
            value = loss(*batch)
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
            found.append((value.detach(), gradients, [buffer.detach().clone() for buffer in modules.buffers()]))
    (value, gradients, after), (expected, slopes, then) = found
    if not all(each.isfinite().all() for each in (expected, *slopes) if each is not None):
        return True
    near = bool((value - expected).abs() <= _TOLERANCE * (1 + expected.abs()))
    near = near and effects[0] == effects[1]
    return near and same_gradients(gradients, slopes) and all(map(_moved_alike, after, then, before))


@contextmanager
def _same_attributes(modules: nn.Module, effects: list[dict[str, Any]]) -> Iterator[None]:
    """Restore the attributes of modules when the block ends, and add what it has changed to a list: the new number or
    text of an attribute, such as a count of steps; of other objects the type."""
    parts = dict(modules.named_modules())
    known = {path: dict(vars(part)) for path, part in parts.items()}
    restore = snapshot(t for each in known.values() for t in each.values() if type(t) is Tensor and t.is_leaf)
    yield
    changed = {}
    for path, part in parts.items():
        for name, value in vars(part).items():
            if value is not known[path].get(name):
                changed[f"{path}.{name}"] = value if isinstance(value, bool | int | float | str) else type(value)
        part.__dict__.clear()
        part.__dict__.update(known[path])
    restore()
    effects.append(changed)


def _moved_alike(ours: Tensor, theirs: Tensor, before: Tensor) -> bool:
    """True if two steps change a buffer alike. The change is compared, not the buffer: a running mean that has settled
    hardly changes in a step."""
    if not ours.is_floating_point() or torch.equal(ours, theirs):
        return torch.equal(ours, theirs)
    moved, size = (torch.linalg.vector_norm(each.double()) for each in (theirs - before, theirs))
    limit = _TOLERANCE * moved + _ROUNDINGS * torch.finfo(ours.dtype).eps * size
    return bool(torch.linalg.vector_norm((ours - theirs).double()) <= limit) or bool(
        torch.allclose(ours, theirs, equal_nan=True) and not theirs.isfinite().all()
    )
