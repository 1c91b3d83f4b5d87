"""Errors that a user sees: one sentence, no traceback."""

import difflib
import math
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ppl_gen.core.memory import is_out_of_memory

NARROWER = "the guide leaves out a part of the prior's support; more of log p(x) may be there"
"""Note beside the figures of a guide whose support is narrower than the prior's."""

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
        resumed = re.sub(r"--resume (\S+)", r"Run.open('\1').resume()", self.sentence)
        return re.sub(r"--([a-z][\w.-]*\w)", _argument, resumed)


def _argument(option: re.Match[str]) -> str:
    """The argument that an option of the command line is in Python."""
    return _IN_PYTHON.get(option[1], option[1].replace("-", "_"))


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
        "density": "densities of grey pixels: they cannot be compared with probabilities of binary pixels",
        "unchecked": "values outside the likelihood's support, accepted because of validate_args=False: these "
        "figures are not log-probabilities of any data",
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


@contextmanager
def as_bad_input(what: str) -> Iterator[None]:
    """Turn an exception of a user's code into a `BadInput` that begins with `what`. A `BadInput` passes unchanged, and
    so does an error that says that memory does not suffice."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise BadInput(f"{what}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """The first line of an error, and the innermost line of code outside installed libraries that it came from."""
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    if "Shape mismatch inside plate" in message:
        message += "; make a vector per image one event: .to_event(1)"
    standard = sysconfig.get_path("stdlib")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith((standard, "<"))
    ]
    return f"{message} ({frames[-1].filename}:{frames[-1].lineno})" if frames else message
