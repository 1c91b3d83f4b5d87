"""Values of options from Python, as the types that the options declare. The command line does that by itself."""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from ppl_gen.core.errors import BadInput, near_miss, require, require_choice, shown

T = TypeVar("T")

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", Path: "a path"}


def convert(option: str, value: Any, hint: Any) -> Any:
    """The value of an option as its type: a list as a tuple, NumPy's numbers as Python's, text as a `Path`, and a
    dictionary as a dataclass of options. A dictionary whose type is a `TypedDict` may have more keys.

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
        require(isinstance(value, list | tuple), option, shown(value), "must be a list")
        inner = parts[:1] * len(value) if parts[-1:] == (...,) else parts
        require(len(inner) == len(value), option, shown(value), f"must have {len(inner)} entries")
        return tuple(convert(option, each, one) for each, one in zip(value, inner, strict=True))
    elif kind is list:
        require(isinstance(value, list), option, shown(value), "must be a list")
        return [convert(f"{option}[{index}]", each, parts[0]) for index, each in enumerate(value)]
    elif kind is Mapping or is_typeddict(hint):
        named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        require(named, option, shown(value), "must be a dictionary" + " of options by name" * (parts[1:] == (Any,)))
        hints = _hints(hint) if is_typeddict(hint) else dict.fromkeys(value, parts[1])
        for name in sorted(getattr(hint, "__required_keys__", set()) - value.keys()):
            raise BadInput(f"--{_within(option, name)}: is missing")
        return {name: convert(_within(option, name), each, hints.get(name)) for name, each in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, Mapping):
            return hint(**convert_fields(hint, convert(option, value, Mapping[str, Any]), f"{option}."))
        fits = isinstance(value, hint)
        require(fits, option, shown(value), f"must be a dictionary of options by name, or {hint.__name__}(…)")
        return converted(value, f"{option}.")
    elif hint in _NAMES:
        return _plain(option, value, hint)
    return value


def convert_all(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """As `convert`, for several options by name. A name without a type keeps its value.

    :param prefix: words before each name in messages, such as `guide.`
    """
    return {name: convert(prefix + name, value, hints.get(name)) for name, value in values.items()}


def convert_fields(cls: Any, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """As `convert_all`, for fields of a dataclass.

    :raises BadInput: for a name that is no field, too.
    """
    hints = get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise BadInput(f"{prefix}{name}: unknown option{near_miss(name, hints)}")
    return convert_all(values, hints, prefix)


def converted(options: T, prefix: str = "") -> T:
    """An instance of a dataclass with its fields as their types."""
    values = {each.name: getattr(options, each.name) for each in fields(options)}  # type: ignore[arg-type]
    return replace(options, **convert_fields(type(options), values, prefix))  # type: ignore[type-var]


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _within(option: str, name: str) -> str:
    """The name of an entry of a dictionary in messages."""
    name = name if name.isidentifier() and len(name) < 40 else shown(name)
    return f"{option}.{name}" if option else name


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
        Path: isinstance(value, str | os.PathLike),
    }[kind]
    require(fits, option, shown(value), f"must be {_NAMES[kind]}")
    return kind(value)
