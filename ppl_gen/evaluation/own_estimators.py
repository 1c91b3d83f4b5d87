"""Estimators of log p(x) of the user's own: found by name, constructed with their options, called and checked.

An estimator is a class with a method `estimate(model, guide, x, num_samples)`, an instance of one, or a function with
these arguments (`ppl_gen.core.contracts.Estimator`). It returns log weights or an `Estimate`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_gen.core import components
from ppl_gen.core.components import kebab_case
from ppl_gen.core.contracts import Estimator, missing
from ppl_gen.core.errors import BadInput, describe, near_miss, shown
from ppl_gen.evaluation.table import ESTIMATES
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.judging import judge


@dataclass(frozen=True)
class OwnEstimator:
    """An estimator of the user's own."""

    reference: str
    """Its name on the command line, or the name under which an object from Python is recorded."""
    name: str
    """Name of its estimate, unless the estimate has another one."""
    function: Callable[..., Any]
    """The function, or the method of an instance."""

    def estimate(self, model: Any, guide: Any, x: Tensor, *labels: Tensor, num_samples: int) -> Estimate:
        """log p(x) of images.

        :raises BadInput: if it fails, or does not return log weights or an estimate for each image.
        """
        try:
            parameters = inspect.signature(self.function).parameters.values()
            takes = any(each.name == "num_samples" or each.kind is each.VAR_KEYWORD for each in parameters)
            found = self.function(model, guide, x, *labels, **({"num_samples": num_samples} if takes else {}))
        except Exception as error:  # user code
            raise BadInput(f"--estimator {self.reference}: fails: {describe(error)}") from error
        if not isinstance(found, Estimate):
            try:
                found = of_log_weights(self.name, found)
            except BadInput as error:
                raise BadInput(
                    f"--estimator {self.reference}: returns no ppl_gen.Estimate and no log weights: {error.sentence}"
                ) from error
        _check_name(self.reference, found.estimator)
        if found.log_px.shape != (len(x),):
            raise BadInput(
                f"--estimator {self.reference}: returns log p(x) {list(found.log_px.shape)}; it must return log "
                f"weights [samples, {len(x)}], or a ppl_gen.Estimate whose log_px is [{len(x)}]"
            )
        if bool((found.log_px_mc_var < 0).any()):
            raise BadInput(f"--estimator {self.reference}: log_px_mc_var must be at least 0, or NaN if it is unknown")
        return found


def _check_name(reference: str, name: str) -> None:
    """Raise `BadInput` for a name that an estimate cannot have, because files have variables of its name, and of its
    name with an ending."""
    if name in ESTIMATES:
        raise BadInput(f"--estimator {reference}: '{name}' is a name of the package; choose another")
    if not name.strip() or not name.isprintable() or "/" in name or name.endswith(("_mc_se", "_bias")):
        raise BadInput(
            f"--estimator {reference}: its estimate has the name {shown(name)}; choose a word without / that does not "
            "end in _mc_se or _bias"
        )


def of_log_weights(name: str, log_weights: Any) -> Estimate:
    """log p(x) with its diagnostics, from log weights [samples, images]. The mean log weight is recorded under
    `elbo`.

    :raises BadInput: for an array of another shape or type, and for NaN or +inf.
    """
    judged = judge(log_weights)
    names = ("num_samples", "log_px", "log_px_mc_var", "log_px_bias", "ess", "khat", "largest")
    shared: dict[str, Any] = {each: getattr(judged, each) for each in names}
    elbo = float(judged.elbo.mean())
    # No `ImportanceEstimate`: an evaluation has one, whose ELBO is that of the guide.
    return Estimate(estimator=name, settings={"elbo": elbo} if math.isfinite(elbo) else {}, **shared)


def find(references: Sequence[Any], options: Mapping[str, Any]) -> list[OwnEstimator]:
    """The estimators of the user's own.

    :param references: `file.py:Class`, `file.py:function`, or classes, instances and functions from Python.
    :param options: options of their constructors. Each estimator is given those that it has.
    :raises BadInput: for a name or an object that is no estimator, and for an option that none of them has.
    """
    objects = [
        components.find_function("--estimator", each, or_class=True) if isinstance(each, str) else each
        for each in references
    ]
    known = {option.name for option in components.estimator_options(objects)}
    for name in options:
        if name not in known:
            hint = near_miss(name, known) if known else ""
            raise BadInput(f"--estimator.{name}: no estimator has this option{hint}")
    return [_own(reference, each, options) for reference, each in zip(references, objects, strict=True)]


def split(given: Any) -> tuple[str | tuple[str, ...], list[Any]]:
    """An argument `estimator` of Python: its names, as the command line takes them, and the objects in it."""
    each = list(given) if isinstance(given, list | tuple) else [given]
    names = tuple(name for name in each if isinstance(name, str))
    return names[0] if len(names) == 1 else names, [other for other in each if not isinstance(other, str)]


def _own(reference: Any, found: Any, options: Mapping[str, Any]) -> OwnEstimator:
    recorded = components.function_name(reference)
    if missing(found, Estimator) is not None:
        if callable(found) and not isinstance(found, type):
            return OwnEstimator(recorded, getattr(found, "__name__", type(found).__name__), found)
        words = "must be a function, or have a method 'estimate(self, model, guide, x, num_samples)'"
        raise BadInput(f"--estimator {reference if isinstance(reference, str) else shown(reference)}: {words}")
    its = {option.name for option in components.options("estimator", found)}
    made = components.construct("estimator", found, {}, {name: value for name, value in options.items() if name in its})
    cls = found if isinstance(found, type) else type(found)
    return OwnEstimator(recorded, kebab_case(cls.__name__).replace("-", "_"), made.estimate)
