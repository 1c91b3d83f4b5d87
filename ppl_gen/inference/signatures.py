"""What the functions of a pair are called with: their signatures."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppl_gen.core.contracts import Guide, Model, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.networks.autoguides import by_rows

PyroFunction = Callable[..., Any]
"""A Pyro model or guide: a function of x and further arguments."""


def model_function(model: Any) -> PyroFunction:
    """The Pyro function of a model: its method `model`, or the model itself if it has none. A network of that name does
    not count as a method."""
    return model.model if offers(model, Model) and not isinstance(model.model, nn.Module) else model


def guide_function(guide: Any) -> PyroFunction:
    """The Pyro function of a guide: its method `guide`, or the guide itself if it has none. That of Pyro's AutoNormal
    takes the row numbers of the images (`by_rows`)."""
    if isinstance(guide, AutoNormal):
        return by_rows(guide)
    return guide.guide if offers(guide, Guide) and not isinstance(guide.guide, nn.Module) else guide


def name_of(function: Any) -> str:
    """Name of a function or a class, or of the class of any other object."""
    function = _undecorated(function)
    return getattr(function, "__name__", type(function).__name__)


def parameters_of(function: PyroFunction) -> Mapping[str, inspect.Parameter]:
    """Parameters of a function, by name."""
    return inspect.signature(_undecorated(function)).parameters


def _undecorated(function: Any) -> Any:
    """The function that a handler of Pyro decorates, as in `@poutine.scale(scale=2.0)`, or the function itself."""
    while isinstance(function, partial) and isinstance(function.func, partial):  # as only Pyro makes it
        function = function.func.args[1]
    return function


class ByName(dict[str, Any]):
    """Arguments that a function is given by name, if it has parameters of these names. They stand among the positional
    ones, and so are cut into batches with them."""


def accepting(function: PyroFunction) -> PyroFunction:
    """Wrap a function so that it is called with as many of the positional arguments as it takes, and with those in a
    `ByName` that it has a name for."""
    names, known = positional_names(function), parameters_of(function)

    def accepted(*args: Any, **kwargs: Any) -> Any:
        by_name = {key: each for part in args if isinstance(part, ByName) for key, each in part.items() if key in known}
        rest, given = [part for part in args if not isinstance(part, ByName)], []
        for name in names:
            if name not in by_name and not rest:
                break
            given.append(by_name.pop(name) if name in by_name else rest.pop(0))
        return function(*given, **by_name, **kwargs)

    return accepted


def asks_for_index(model: Any, *guides: Any) -> bool:
    """True if the signature of the model or of a guide has `index`, the row numbers of the images."""
    functions = [model_function(model), *map(guide_function, guides)]
    return any("index" in parameters_of(each) for each in functions)


_ANY = 100  # positional arguments that *args counts as


def positional_names(function: PyroFunction) -> list[str]:
    """Names of the positional arguments that a function takes. `*args` counts as `_ANY` empty names."""
    parameters = parameters_of(function).values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        names += [""] * _ANY
    return names


def check_positional(model: PyroFunction, guide: PyroFunction, count: int) -> None:
    """Refuse a positional argument that would be dropped: neither function takes it, or one takes it as keyword only.

    :param count: number of positional arguments, x included.
    """
    both = (model, guide)
    names = max(map(positional_names, both), key=len)
    if len(names) < count:
        raise BadInput(
            f"{' and '.join(map(name_of, both))} take {len(names)} by position, with x, but {count} arguments are "
            "given: give the others by name, such as y=labels"
        )
    for function in both:
        parameters = parameters_of(function).values()
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        for name in names[len(positional_names(function)) : count]:
            if by_name and (not name or name in by_name):
                which = name or by_name[0]
                raise BadInput(f"{name_of(function)} takes {which} by name only: give {which}=…")


def takes_labels(model: Any, guide: Any) -> bool:
    """True if the signature of the model or the guide has labels `y`."""
    functions = (model_function(model), guide_function(guide))
    return any("y" in parameters_of(function) for function in functions)
