"""Values of options from Python, as the types that the command line gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pytest

from ppl_gen.core.convert import convert
from ppl_gen.core.errors import BadInput


@dataclass(frozen=True)
class Inner:
    """A group of options within others."""

    steps: int = 3
    start: Literal["prior", "guide"] = "prior"


class Entry(TypedDict):
    """Content of a file."""

    mean: float
    parts: NotRequired[list[int]]


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (np.int64(3), int, 3),
        (3, float, 3.0),
        (np.float32(0.5), float, 0.5),
        (np.bool_(True), bool, True),
        ("runs/a", Path, Path("runs/a")),
        ([4, np.int32(5)], tuple[int, ...], (4, 5)),
        ((1, 2.0), tuple[int, float], (1, 2.0)),
        (None, int | None, None),
        (2, int | None, 2),
        (2, str | int, 2),
        ("a", Literal["a", "b"], "a"),
        ({"free": 1}, dict, {"free": 1}),
        (object, None, object),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ([1, 2], list[float], [1.0, 2.0]),
        ({"mean": 1, "more": "x"}, Entry, {"mean": 1.0, "more": "x"}),
        ({"steps": np.int64(4)}, Inner, Inner(4)),
        (Inner(np.int64(4)), Inner, Inner(4)),  # type: ignore[arg-type]
    ],
)
def test_converted(value: Any, hint: Any, expected: Any) -> None:
    found = convert("option", value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("3", int, "learning_rate '3': must be a whole number"),
        (3.0, int, "learning_rate 3.0: must be a whole number"),
        (True, int, "learning_rate True: must be a whole number"),
        ("3", float, "learning_rate '3': must be a number"),
        (None, float, "learning_rate None: must be a number"),
        (1, bool, "learning_rate 1: must be True or False"),
        (3, str, "learning_rate 3: must be text"),
        (3, tuple[int, ...], "learning_rate 3: must be a list"),
        ({}, Entry, "learning_rate.mean: is missing"),
        ({"mean": "x"}, Entry, "learning_rate.mean 'x': must be a number"),
        ({"mean": 1.0, "parts": [3, "y"]}, Entry, "learning_rate.parts[1] 'y': must be a whole number"),
        (3, Entry, "learning_rate 3: must be a dictionary"),
        ([3, "4"], tuple[int, ...], "learning_rate '4': must be a whole number"),
        ([3], tuple[int, int], "learning_rate [3]: must have 2 entries"),
        ("c", Literal["a", "b"], "learning_rate c: choose from a, b"),
        ([1], Mapping[str, Any], "learning_rate [1]: must be a dictionary of options by name"),
        ({1: 2}, Mapping[str, Any], "learning_rate {1: 2}: must be a dictionary of options by name"),
        (3, Inner, "learning_rate 3: must be a dictionary of options by name, or Inner(…)"),
        ({"step": 4}, Inner, "learning_rate.step: unknown option; did you mean 'steps'?"),
        ({"steps": "4"}, Inner, "learning_rate.steps '4': must be a whole number"),
        (Inner(4.5), Inner, "learning_rate.steps 4.5: must be a whole number"),  # type: ignore[arg-type]
        ({"start": "here"}, Inner, "learning_rate.start here: choose from prior, guide"),
        ("x" * 99, int, f"learning_rate '{'x' * 59}…: must be a whole number"),
        ("x", int | None, "learning_rate 'x': must be a whole number"),
    ],
)
def test_refused(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        convert("learning_rate", value, hint)
    assert str(error.value) == message
