"""The command line: options from dataclasses by tyro, errors in one line, exit statuses.

0: done. 2: bad input, in one line on standard error. 1: failure: a loss that is not
finite, a failed run of a sweep, an exception of a user's own code in the midst of the work, or an interrupt.
"""

import contextlib
import io
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

import docstring_parser
import tyro

from ppl_gen.core import interrupts, launch, streams
from ppl_gen.core.errors import ALIASES, TRACEBACK, BadInput, Failed, describe, kept, users_fault, users_frame
from ppl_gen.core.memory import is_out_of_memory, limited_memory

T = TypeVar("T")

_LARGE = 100  # numbers on a command line from which memory may depend on them


def parse(options: Callable[..., T], arguments: list[str], program: str, description: str) -> T:
    """Parse options into a dataclass. Raises `BadInput`, in one line, in place of tyro's box of several lines."""
    errors = io.StringIO()
    _check_empty(arguments)
    _describe(options)
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(options, args=arguments, prog=program, description=description)
    except SystemExit as exit:
        if exit.code in (0, None):
            raise  # --help
        raise BadInput(_one_line(errors.getvalue()) + f" (see {program} --help)") from None


def _check_empty(arguments: list[str]) -> None:
    """Raise `BadInput` for an empty word, which a variable of the shell leaves that is not set. No option has a use for
    it, and as a path it would be the working directory."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = word.partition("=")
        if not word.strip() or (flag.startswith("--") and equals and not value.strip()):
            flag = flag if equals else before
            named = f"{flag} '{value}'" if flag.startswith("--") else f"argument '{word}'"
            raise BadInput(f"{named}: is empty; give a value, or leave this out")


def _describe(options: Any) -> None:
    """Tell tyro how to show every field of a dataclass, and of the dataclasses in it."""
    cls = get_origin(options) or options
    for inner in get_args(options):
        _describe(inner)
    if isinstance(cls, type) and is_dataclass(cls):
        _describe_fields(cls)


@cache  # once for each class, since it changes the class
def _describe_fields(cls: Any) -> None:
    """Annotate fields with their docstrings as one line, where tyro would keep the line breaks of the source, and with
    no `None` among the values and defaults."""
    hints = dict(vars(cls).get("__annotations__", {}))
    described = all(_has_help(hint) for hint in hints.values())
    parsed = [] if described else docstring_parser.parse_from_object(cls).params
    texts = {each.arg_name: each.description for each in parsed}
    defaults = {each.name: each.default for each in fields(cls)}
    for name, hint in hints.items():
        _describe(hint)
        shown = shown_as(hint, defaults.get(name))
        if text := texts.get(name) or _group_help(hint):
            shown["help"] = " ".join(text.split())
        if shown:
            cls.__annotations__[name] = Annotated[hint, tyro.conf.arg(**shown)]


def _has_help(hint: Any) -> bool:
    """True if an annotation holds the help of its field. For others, tyro and docstring_parser parse the file of the
    class."""
    return any(getattr(each, "help", None) is not None for each in getattr(hint, "__metadata__", ()))


def _group_help(hint: Any) -> str | None:
    """The first line of a dataclass of options. None for any other type; tyro looks for that in the source, which takes
    longer."""
    cls: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return (cls.__doc__ or "").partition("\n")[0] if is_dataclass(cls) and cls.__module__ != "types" else None


_VALUES: dict[Any, str] = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def shown_as(hint: Any, default: Any) -> dict[str, Any]:
    """The arguments of `tyro.conf.arg` for an option whose default is None or (): its values, and no default.

    >>> shown_as(int | None, None)
    {'metavar': 'INT', 'help_behavior_hint': ''}
    >>> shown_as(int, 3)
    {}
    """
    if default not in (None, ()):
        return {}
    if get_origin(hint) is Annotated:  # it has a name for its values
        return shown_as(get_args(hint)[0], default) and {"help_behavior_hint": ""}
    kinds = [hint] if default == () else [kind for kind in get_args(hint) if kind is not type(None)]
    if default is None and type(None) not in get_args(hint):
        return {}
    names = []
    for kind in kinds:
        values = get_args(kind)
        if kind in _VALUES:
            names.append(_VALUES[kind])
        elif get_origin(kind) is Literal:
            names.append(",".join(map(str, values)) if len(values) == 1 else f"{{{','.join(map(str, values))}}}")
        elif get_origin(kind) is tuple and values[0] in _VALUES and values[1:] == (...,):
            names.append(f"[{_VALUES[values[0]]} ...]")
        else:
            return {}
    return {"metavar": "|".join(names), "help_behavior_hint": ""}


def _one_line(box: str) -> str:
    """Extract the message from tyro's error box: the text above its first rule, and the option that it suggests."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:  # the first line has the title
        row = line.strip(" │╰╯|+")  # tyro draws in ASCII where the terminal has no other characters
        if row.strip("─-"):
            paragraphs[-1].append(row)
        elif paragraphs[-1]:
            paragraphs.append([])
    message = re.sub(r"^Error parsing (?:[A-Z]\w+: )?", "", " ".join(paragraphs[0]))
    message = message.replace("{None}|", "").replace("{None,", "{")  # None is a default, and no value to type
    message = re.sub(r"\{(\w+|\[.*\])\}", r"\1", message)
    message = re.sub(r"no type matching (.*) could be instantiated from \[(.*)\]\.?", r"must be \1, not \2", message)
    for name in re.findall(r"--[\w-]+", message):
        if name.replace("_", "-")[2:] in ALIASES:
            return f"{message}; did you mean --{ALIASES[name.replace('_', '-')[2:]]}?"
    for paragraph in paragraphs[1:]:
        if paragraph and paragraph[0].startswith("Perhaps you meant"):
            message += f"; did you mean {paragraph[1].split()[0]}?" if len(paragraph) > 1 else ""
    return message or "the command line cannot be read; --help lists the options"


def main(command: Callable[[list[str]], Any], *, distributed: bool = False) -> NoReturn:
    """Run a command on `sys.argv` and exit with one of the statuses above.

    :param distributed: True if several processes can share its work.
    """
    streams.replace()
    shared = os.environ.get("WORLD_SIZE", "1") != "1"
    interrupts.raise_once(shared=shared)
    status, line = _run(command, distributed)
    interrupts.told()
    if status and not interrupts.speaks():
        time.sleep(5)  # torchrun ends the other processes meanwhile: the first prints the error that all of them meet
    if line is not None and (interrupts.speaks() or not line.startswith("interrupted")):
        print(line, file=sys.stderr)
    sys.stderr.flush()
    sys.exit(status)


def _run(command: Callable[[list[str]], Any], distributed: bool) -> tuple[int, str | None]:
    """Run a command. Returns the exit status, and the line that says why it is not 0.

    An error that is our own bug passes through, with its traceback.
    """
    status = 0
    try:
        if launch.world_size() > 1 and not distributed:
            raise BadInput(
                "torchrun: only fit and evaluate can run in several processes; start this command without it"
            )
        launch.rank(), launch.local_rank()  # called for their errors alone
        with limited_memory():
            command(sys.argv[1:])
    except KeyboardInterrupt as error:
        # One that passed through `exec` of a text, as in a dataclass, has Python end by the signal, whatever we do with
        # it. The next `exec` resets that.
        exec("")
        return 1, f"interrupted: {str(error) or interrupts.AGAIN}"
    except BaseException as error:
        told = _in_one_line(error, getattr(command, "__code__", _run.__code__).co_filename)
        if told is not None:
            if os.environ.get(TRACEBACK, "0") not in ("", "0"):
                traceback.print_exception(error)
            return told
        if not isinstance(error, SystemExit):
            raise
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1  # 0: --help
        if isinstance(error.code, str):
            return status, error.code
    unwritten = streams.unwritten()
    return (status, None) if unwritten is None or status else (1, f"error: {unwritten}")


def _in_one_line(error: BaseException, program: str) -> tuple[int, str] | None:
    """Exit status and line of an error that is the user's to mend: bad input, a failure, an exception of the user's own
    code, too little memory. None for any other.

    :param program: the file of the command. Its folder is no code of the user's.
    """
    if isinstance(error, BadInput | Failed):
        status, sentence = 1 if isinstance(error, Failed) else 2, error.sentence
    elif is_out_of_memory(error):
        status, sentence = 1, _out_of_memory(sys.argv[1:])
    else:
        status, sentence = 1, describe(error)
    users = users_frame(users_fault(error), f"{Path(program).parent}{os.sep}") is not None
    if not users and not isinstance(error, BadInput | Failed) and not is_out_of_memory(error):
        return None
    hint = f" ({TRACEBACK}=1 shows the whole trace)" if users else ""
    notes = kept(error)
    return 1 if notes else status, " ".join("; ".join([f"error: {sentence}{hint}", *notes]).split())


def _out_of_memory(arguments: list[str]) -> str:
    """The sentence for memory that does not suffice. It names the options of the largest numbers on the command
    line."""
    sizes: dict[str, int] = {}
    flag = ""
    for word in arguments:
        name, equals, value = word.partition("=")
        flag = name if word.startswith("--") else flag
        for text in (value if equals else word).split(","):
            if flag and text.isdecimal() and flag != "--seed":
                sizes[flag] = max(int(text), sizes.get(flag, 0))
    large = sorted((flag for flag, size in sizes.items() if size >= _LARGE), key=lambda flag: -sizes[flag])[:2]
    less = f"a smaller {' or '.join(f'{flag} than {sizes[flag]}' for flag in large)}" if large else "smaller sizes"
    return f"the memory of this machine does not suffice; choose {less}, or end other programs"
