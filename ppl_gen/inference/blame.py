"""The site of a model or a guide at which a computation stops being finite."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppl_gen.core.errors import describe
from ppl_gen.inference.densities import masked_log_prob
from ppl_gen.inference.pair import Pair
from ppl_gen.networks.supports import Site, bad_argument, inside, parts

_WRAPPERS = str(Path(__file__).parent)  # the package's functions around those of a user


def blame(pair: Pair, compute: Callable[[Pair], Any]) -> str | None:
    """Compute something again, and name the first site of the pair that is not finite, in a clause; None if every site
    is. NaN counts before infinity, which a log-density may have where it does no harm.

    :param compute: a computation that runs the model and the guide of the pair that it is given, with the noise that it
        had.
    """
    watch = _Watch(pair)
    try:
        with watch:
            compute(replace(pair, direct=None))
    except Exception as error:  # what is not finite may be refused further on
        return watch.nan or watch.infinite or describe(error)
    return watch.nan or watch.infinite


class _Watch(Messenger):
    """Look at every sample statement. `nan` and `infinite` describe the first site that is NaN, and infinite."""

    def __init__(self, pair: Pair):
        super().__init__()
        self.pair = pair
        self.owners = [("model", pair.model_name, _codes(pair.model)), ("guide", pair.guide_name, _codes(pair.guide))]
        self.nan: str | None = None
        self.infinite: str | None = None

    def _pyro_post_sample(self, message: Any) -> None:
        if self.nan is None and not site_is_subsample(message) and not message["infer"].get("_deterministic"):
            with torch.no_grad():
                self._look(message)

    def _look(self, site: Site) -> None:
        found = _not_finite(site)
        if found is None:
            return
        what, bad, is_nan = found
        dim = self.pair.plate.dim
        image = ""
        if bad.dim() >= -dim and bad.shape[dim] > 1 and not bad.all():
            rows = bad.movedim(dim, 0).reshape(bad.shape[dim], -1).any(1)
            image = f" for image {int(rows.nonzero()[0])} of {len(rows)}"
        text = f"{self._place()}, site '{site['name']}': {what}{image}"
        if is_nan:
            self.nan = text
        else:
            self.infinite = self.infinite or text

    def _place(self) -> str:
        """The function that has the sample statement, with its line."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            for kind, name, codes in self.owners:
                if frame.f_code in codes:
                    return f"{kind} {name} ({frame.f_code.co_filename}:{frame.f_lineno})"
            frame = frame.f_back
        return "objective"


def _not_finite(site: Site) -> tuple[str, Tensor, bool] | None:
    """What is not finite at a site: in words, as a mask of its batch, and whether it is NaN."""
    fn, value = site["fn"], site["value"]
    batch = len(fn.batch_shape)
    for part in parts(fn):
        for name in getattr(part, "arg_constraints", {}):
            argument = vars(part).get(name)
            if isinstance(argument, Tensor) and argument.is_floating_point() and argument.isnan().any():
                return f"parameter {name} of {type(part).__name__} is NaN", _of_batch(argument.isnan(), batch), True
    if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
        bad = ~value.isfinite()
        why = _reason(site)
        return f"its value is {_shown(value)}{why}", _of_batch(bad, batch), bool(value.isnan().any())
    try:
        log_prob = masked_log_prob(site)
    except Exception as error:
        return f"log_prob fails: {describe(error)}", torch.ones(()), True
    if log_prob.isfinite().all():
        return None
    return f"log_prob is {_shown(log_prob)}{_reason(site)}", ~log_prob.isfinite(), bool(log_prob.isnan().any())


def _of_batch(bad: Tensor, batch: int) -> Tensor:
    """A mask of values as one of the batch: any of an event."""
    return bad.flatten(batch).any(-1) if bad.dim() > batch else bad


def _shown(values: Tensor) -> str:
    if values.isnan().any():
        return "NaN"
    return "-inf" if (values == -torch.inf).any() else "inf"


def _reason(site: Site) -> str:
    """Why a log-density may not be finite, if the distribution tells."""
    if (bad := bad_argument(site["fn"])) is not None:
        return f" ({bad})"
    for part in parts(site["fn"]):
        for name in getattr(part, "arg_constraints", {}):
            argument = vars(part).get(name)
            if isinstance(argument, Tensor) and argument.isinf().any():
                return f" (parameter {name} of {type(part).__name__} is infinite)"
    try:
        admitted = inside(site, grey=True)
    except Exception:  # a distribution of a user's
        return ""
    return "" if admitted is None or bool(admitted.all()) else " (the value is outside the support)"


def _codes(function: Any) -> set[CodeType]:
    """The code of a Pyro function of a user, below the package's own wrappers and those of Pyro's handlers."""
    found: set[CodeType] = set()
    queue, seen = [function], set[int]()
    while queue:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, partial):
            queue.append(each.func)
        elif isinstance(each, nn.Module):
            queue += [vars(base)["forward"] for base in type(each).__mro__ if "forward" in vars(base)]
        elif inspect.ismethod(each):
            # A method may call the one of its base class.
            bases = type(each.__self__).__mro__
            queue += [each.__func__, *(vars(base)[each.__name__] for base in bases if each.__name__ in vars(base))]
        elif inspect.isfunction(each):
            wrapped = [cell.cell_contents for cell in each.__closure__ or () if _is_function(cell.cell_contents)]
            queue += [*wrapped, *([each.__wrapped__] if hasattr(each, "__wrapped__") else [])]
            if not each.__code__.co_filename.startswith(_WRAPPERS):
                found.add(each.__code__)
    return found


def _is_function(each: Any) -> bool:
    return inspect.isfunction(each) or inspect.ismethod(each) or isinstance(each, partial)
