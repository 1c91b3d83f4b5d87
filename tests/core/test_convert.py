"""Values of options from Python, as the types that the command line gives them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from ppl_gen.core.convert import convert
from ppl_gen.core.errors import BadInput


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
        ([3, "4"], tuple[int, ...], "learning_rate '4': must be a whole number"),
        ([3], tuple[int, int], "learning_rate [3]: must have 2 entries"),
        ("c", Literal["a", "b"], "learning_rate c: choose from a, b"),
        ("x", int | None, "learning_rate 'x': must be a whole number"),
    ],
)
def test_refused(value: Any, hint: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        convert("learning_rate", value, hint)
    assert str(error.value) == message
