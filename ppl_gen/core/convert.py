"""Values of options from Python, as the types that the options declare. The command line does that by itself."""

from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ppl_gen.core.errors import BadInput, require, require_choice

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", Path: "a path"}


def convert(option: str, value: Any, hint: Any) -> Any:
    """The value of an option as its type: a list as a tuple, NumPy's numbers as Python's, text as a `Path`.

    >>> convert("hidden_dims", [400, 200], tuple[int, ...])
    (400, 200)
    >>> convert("learning_rate", 1, float)
    1.0

    :param hint: the type. A value of a type that is not listed here is returned as it is.
    :raises BadInput: for a value that is not of the type.
    """
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _first(option, value, parts)
    if kind is Literal:
        require_choice(option, value, hint)
    elif kind is tuple:
        require(isinstance(value, list | tuple), option, value, "must be a list")
        inner = parts[:1] * len(value) if parts[-1:] == (...,) else parts
        require(len(inner) == len(value), option, value, f"must have {len(inner)} entries")
        return tuple(convert(option, each, one) for each, one in zip(value, inner, strict=True))
    elif hint in _NAMES:
        return _plain(option, value, hint)
    return value


def convert_all(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """As `convert`, for several options by name. A name without a type keeps its value.

    :param prefix: words before each name in messages, such as `guide.`
    """
    return {name: convert(prefix + name, value, hints.get(name)) for name, value in values.items()}


def _first(option: str, value: Any, hints: tuple[Any, ...]) -> Any:
    """The value as the first of some types that it is."""
    if value is None and NoneType in hints:
        return None
    hints = tuple(each for each in hints if each is not NoneType)
    for each in hints[:-1]:
        try:
            return convert(option, value, each)
        except BadInput:
            continue
    return convert(option, value, hints[-1])


def _plain(option: str, value: Any, kind: type) -> Any:
    """A number, text or a path."""
    truth = type(value).__name__ in ("bool", "bool_")  # NumPy's, too
    fits = {
        bool: truth,
        int: isinstance(value, Integral) and not truth,
        float: isinstance(value, Real) and not truth,
        str: isinstance(value, str),
        Path: isinstance(value, str | Path),
    }[kind]
    require(fits, option, repr(value), f"must be {_NAMES[kind]}")
    return kind(value)
