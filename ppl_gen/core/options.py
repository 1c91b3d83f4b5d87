"""Options as dataclass fields. Their metadata hold whether they identify a run, and the column that shows them."""

from contextlib import suppress
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def option(default: T, *, identifies: bool = True, column: str | None = None) -> T:
    """A field of a dataclass of options.

    :param identifies: False if runs that differ only in this option are runs of one method: the seed, the device.
    :param column: heading of the column that shows it in a comparison; None to show it in the column `options`.
    """
    found: T = field(default=default, metadata={"identifies": identifies, "column": column})
    return found


def options_of(cls: Any) -> dict[str, Field[Any]]:
    """The fields of a dataclass and of the dataclasses in it, by dotted name.

    >>> from ppl_gen.experiment.config import Config
    >>> options_of(Config)["training.num_particles"].metadata["column"]
    'objective'
    """
    options: dict[str, Field[Any]] = {}
    for each in fields(cls):
        inner = each.default_factory
        if is_dataclass(inner):
            options |= {f"{each.name}.{name}": option for name, option in options_of(inner).items()}
        else:
            options[each.name] = each
    return options


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names.

    >>> flat({"epochs": 3, "data": {"data": "digits"}})
    {'epochs': 3, 'data.data': 'digits'}
    """
    result: dict[str, Any] = {}
    for name, value in content.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def text(value: Any) -> str:
    """A value in the name of a run. 1e-3, 0.001 and "1e-3" have the same name.

    >>> text("1e-3"), text(3), text([400, 200])
    ('0.001', '3', '400-200')
    """
    if isinstance(value, tuple | list):
        return "-".join(map(text, value))
    with suppress(ValueError):
        return str(int(str(value)))
    with suppress(ValueError):
        return str(float(str(value)))
    return str(value)
