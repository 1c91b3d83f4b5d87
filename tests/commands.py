"""What tests of several commands ask of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Call = Callable[..., tuple[int, str, str]]

REFUSED: list[tuple[tuple[str, ...], list[str]]] = [
    (("nowhere",), ["nowhere", "no such run"]),
    ((), ["run directory"]),
    (("vae", "--seed", "-1"), ["--seed -1"]),
    (("vae", "--split", "tset"), ["tset"]),
]
"""Arguments that every use of a run refuses, with words of the message."""


def read(path: str) -> dict[str, Any]:
    """The content of a .json file."""
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def refused(call: Call, command: Callable[[list[str]], None], *arguments: str, words: list[str]) -> None:
    """One line on standard error that has these words, exit status 2, and no file that was not there before."""
    before = sorted(Path().rglob("*"))
    status, out, err = call(command, *arguments)
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("error: "), err
    assert out == ""
    for word in words:
        assert word in err
    assert sorted(Path().rglob("*")) == before
