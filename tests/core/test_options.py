"""Options say for themselves whether they identify a run, and which column they have."""

import doctest
from dataclasses import dataclass, field, fields

from ppl_gen.core import options
from ppl_gen.core.options import flat, option, options_of


@dataclass(frozen=True)
class Inner:
    size: int = option(3, column="size")
    """Size of it."""


@dataclass(frozen=True)
class Outer:
    name: str
    seed: int = option(0, identifies=False)
    plain: float = 0.5
    inner: Inner = field(default_factory=Inner)


def test_fields_say_what_they_are() -> None:
    found = options_of(Outer)
    assert list(found) == ["name", "seed", "plain", "inner.size"]
    assert found["seed"].metadata == {"identifies": False, "column": None} and found["plain"].metadata == {}
    assert found["inner.size"].metadata["column"] == "size" and found["inner.size"].default == 3
    assert Outer("a") == Outer("a", 0, 0.5, Inner(3))
    assert [each.name for each in fields(Outer)] == ["name", "seed", "plain", "inner"]


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": None, "g": {}}) == {
        "a.b.c": 1,
        "a.d": [{"e": 2}],
        "f": None,
    }


def test_examples() -> None:
    assert doctest.testmod(options).failed == 0
