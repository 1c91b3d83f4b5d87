"""Errors that a user sees: one sentence, no traceback."""

import difflib
import math
import os
import re
import shlex
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ppl_gen.core.memory import is_out_of_memory

NARROWER = "the guide leaves out a part of the prior's support; more of log p(x) may be there"
UNOPPOSED = "the guide has no density for a z that it has not drawn, so that nothing looks for modes that it misses"
HEAVY_TAIL = "the terms of the ELBO have a heavy tail: it may be -infinity, and its error may be too small"
ABOVE_ZERO = "above 0, which no log-probability is"
MISSED = "hardly ever draws a value of a discrete unit to which p(z | x) gives a share"
"""Notes beside the figures of a guide: its support is narrower than the prior's, …"""

ALIASES = {
    "lr": "learning-rate",
    "num-epochs": "epochs",
    "max-epochs": "epochs",
    "bs": "batch-size",
    "z-dim": "latent-dim",
    "latent-size": "latent-dim",
    "hidden-dim": "hidden-dims",
    "dataset": "data",
    "grad-clip": "clip-grad-norm",
}
"""Names that other programs give to options of this package, and our names for them."""
MOST = 10_000_000
"""Largest whole number that an option can have, seeds excepted."""
_IN_PYTHON = {"refit-guide": "fixed_model"}
"""Arguments of Python that have another name than the option of the command line."""


class _Sentence(Exception):
    """An error of one sentence, which names command-line options. Printed in Python, it names arguments instead."""

    def __init__(self, sentence: str = ""):
        self.sentence = sentence.partition("\nTrace Shapes:")[0]  # Pyro appends shapes to errors under a trace
        super().__init__(self.sentence)

    def __str__(self) -> str:
        return _IN_SENTENCE.sub(_in_python, self.sentence)


_IN_SENTENCE = re.compile(
    r"""--resume[ ](?P<run>(?:[\w@%+=:,./-]|'[^']*'|"[^"]*")+)  # a run, as `commands.line` quotes it
    |(?<![\w./'"-])--(?P<option>[a-z][\w.-]*\w)""",
    re.VERBOSE | re.ASCII,
)


def _in_python(found: re.Match[str]) -> str:
    """The call that continues a run, or the argument that an option of the command line is in Python."""
    if found["run"] is not None:
        return f"Run.open({shlex.split(found['run'])[0]!r}).resume()"
    return _IN_PYTHON.get(found["option"], found["option"].replace("-", "_"))


class BadInput(_Sentence, ValueError):
    """Input of a user that cannot be used. One sentence names the input and says what to do; exit status 2.

    The sentence names command-line options, as a command prints it. Printed in Python, it names arguments instead.

    >>> print(BadInput("--num-samples 0: must be at least 1"))
    num_samples 0: must be at least 1
    """


class Failed(_Sentence, RuntimeError):
    """Work that was begun and cannot be finished, such as a run that diverged. One sentence says why, and what is kept;
    exit status 1."""


def warnings_of(observation: str) -> list[str]:
    """Warnings that a kind of p(x) needs beside its figures, one sentence each.

    :param observation: kind of p(x), as `check_images` returns it.
    """
    warnings = {
        "cross-entropy": "grey values under a Bernoulli: these figures do not bound the log-probability of any data",
        "density": "these are densities of grey pixels, which cannot be compared with probabilities of binary pixels",
        "unchecked": "values outside the likelihood's support, accepted because of validate_args=False: these "
        "figures are not log-probabilities of any data",
        "unnormalized": "the model has a factor: these figures are log p(x) only if p(x, z) sums to 1 with it",
    }
    return [warnings[observation]] if observation in warnings else []


def near_miss(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name is close, else `; known:` and the list of known names."""
    known = sorted(known)
    alias = ALIASES.get(name.replace("_", "-"), "")
    if (ours := alias.replace("-", "_")) in known:
        return f"; did you mean '{ours}'?"
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def shown(value: object) -> str:
    """A value of a user's in a sentence: its first characters, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"


def words_of(error: object, most: int = 200) -> str:
    """What an error says, in one printable line of so many characters at most; the name of its type if it says
    nothing.

    >>> words_of(ValueError("bad\\n  header")), words_of(EOFError())
    ('bad header', 'EOFError')
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text[:most])


def require(condition: bool, option: str, value: object, rule: str) -> None:
    """Raise `BadInput` naming the command-line option unless `condition` holds."""
    if not condition:
        raise BadInput(f"--{option.replace('_', '-')} {value}: {rule}")


def require_choice(option: str, value: object, choices: Any) -> None:
    """Raise `BadInput` naming the option unless a value is one of a `Literal`."""
    known = get_args(choices)
    require(value in known, option, value, f"choose from {', '.join(map(str, known))}")


def require_choices(options: Any, prefix: str = "") -> None:
    """Raise `BadInput` if a field of a dataclass whose type is a `Literal` has another value. The command line checks
    that itself; Python does not."""
    for name, hint in get_type_hints(type(options)).items():
        if get_origin(hint) is Literal:
            require_choice(prefix + name, getattr(options, name), hint)


def require_number(option: str, value: Any) -> None:
    """Raise `BadInput` for a number, or a number in a tuple, that no option of the package can have: a whole number
    above `MOST`, or a number that float32 does not hold. Anything else passes."""
    if isinstance(value, tuple):
        for each in value:
            require_number(option, each)
    elif isinstance(value, int):
        # A number of some thousand digits cannot be printed.
        text = value if abs(value) < 10**18 else f"{'-' if value < 0 else ''}10^{math.log10(abs(value)):.0f}"
        require(abs(value) <= MOST, option, text, f"must be at most {MOST}")
    elif isinstance(value, float):
        require(math.isfinite(value), option, value, "must be a finite number")
        held = value == 0 or 1e-30 <= abs(value) <= 1e30
        require(held, option, value, "must be 0, or between 1e-30 and 1e30 in size")


def require_numbers(options: Any, prefix: str = "", **least: int) -> None:
    """Raise `BadInput` for a field of a dataclass that is below its least value, for a number that no option can have,
    and for a field `seed` that torch does not take."""
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name == "seed":
            require(0 <= value < 2**63, prefix + "seed", value, "must be at least 0 and below 2^63")
        else:
            require_number(prefix + each.name, value)
    for name, smallest in least.items():
        value = getattr(options, name)
        require(value is None or value >= smallest, prefix + name, value, f"must be at least {smallest}")


# Code of users ------------------------------------------------------------------------------------------------

TRACEBACK = "PPL_GEN_TRACEBACK"
"""Environment variable that has a command print the whole trace of an error above its line."""

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_STANDARD = tuple(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib"))

named_files: set[str] = set()
"""Files of installed packages whose classes and functions the user has named: their code is the user's, too."""


class Kept(str):
    """A note on an exception of a user's code: what is kept of the work that was begun, or how to go on."""


@contextmanager
def as_bad_input(what: str) -> Iterator[None]:
    """Turn an exception of a user's code into a `BadInput` that begins with `what`. A `BadInput` passes unchanged, and
    so does an error that says that memory does not suffice."""
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise BadInput(f"{what}: {describe(error)}") from error


@contextmanager
def begun(kept: str) -> Iterator[None]:
    """Note on an exception of a user's code what is kept of the work. A command that it ends has exit status 1.

    The exception stays what it is, so that Python shows it with its own traceback, and the note below.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if not isinstance(error, _Sentence) or users_frame(users_fault(error)) is not None:
            error.add_note(Kept(kept))
        raise


def kept(error: BaseException) -> list[str]:
    """The notes of `begun` on an exception; none before work was begun."""
    return [note for note in getattr(error, "__notes__", ()) if isinstance(note, Kept)]


def describe(error: BaseException) -> str:
    """The first line of an error, and the innermost line of the user's code that it came from. Without any, that of
    code outside installed libraries."""
    message = type(error).__name__
    try:
        lines = [" ".join(line.split()) for line in str(error).strip().splitlines()]
    except Exception:  # its own __str__ fails
        lines = []
    if lines:
        message += f": {lines[0]}"
        if lines[0].endswith(":") and len(lines) > 1 and not lines[1].startswith("tensor("):
            message += f" {lines[1]}"
    if "Shape mismatch inside plate" in message:
        message += "; make a vector per image one event: .to_event(1)"
    if isinstance(error, BaseExceptionGroup):
        message += f"; the first is {describe(error.exceptions[0])}"
    frame = users_frame(error) or next((each for each in _frames(error) if each.filename.startswith(_PACKAGE)), None)
    return f"{message} ({frame.filename}:{frame.lineno}, in {frame.name})" if frame else message


def users_fault(error: BaseException) -> BaseException | None:
    """The exception that may be of a user's code: an error itself, or what a `BadInput` says in other words."""
    return error.__cause__ if isinstance(error, _Sentence) else error


def users_frame(error: BaseException | None, but_for: str = _PACKAGE) -> traceback.FrameSummary | None:
    """The innermost frame of an exception in code of the user's own: not of this package, of Python or of an installed
    library.

    :param but_for: a further folder whose code is not the user's.
    """
    own = (each for each in _frames(error) if _is_own(each.filename))
    return next((each for each in own if not each.filename.startswith((_PACKAGE, but_for))), None)


def _frames(error: BaseException | None) -> Iterator[traceback.FrameSummary]:
    """The frames of an exception's traceback, the innermost first."""
    walked = [] if error is None else list(traceback.walk_tb(error.__traceback__))
    for frame, line in reversed(walked):
        yield traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)


def _is_own(filename: str) -> bool:
    library = "site-packages" in filename or "dist-packages" in filename or filename.startswith((*_STANDARD, "<"))
    return filename in named_files or not library
