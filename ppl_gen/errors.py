"""The one error that a person is shown without a traceback."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """What a user gave cannot be used. One sentence that names it and says what to do; exit status 2."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def require(condition: bool, option: str, value: object, rule: str) -> None:
    """Raise `BadInput` naming the command-line option unless `condition` holds."""
    if not condition:
        raise BadInput(f"--{option.replace('_', '-')} {value}: {rule}")
