"""Errors that a user sees: one sentence, no traceback."""

import difflib
import re
import shlex
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin, get_type_hints

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


def require_least(options: Any, prefix: str = "", **least: int) -> None:
    """Raise `BadInput` for a field below its least value, and for a field `seed` that torch does not take."""
    for name, smallest in least.items():
        value = getattr(options, name)
        require(value is None or value >= smallest, prefix + name, value, f"must be at least {smallest}")
    seed = getattr(options, "seed", 0)
    require(0 <= seed < 2**63, prefix + "seed", seed, "must be at least 0 and below 2^63")


@contextmanager
def as_bad_input(what: str) -> Iterator[None]:
    """Turn an exception of a user's code into a `BadInput` that begins with `what`. A `BadInput` passes unchanged."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
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
