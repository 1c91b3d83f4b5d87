"""The command line: options from dataclasses by tyro, errors in one line, exit statuses.

0: done. 2: bad input, in one line on standard error. 1: failure: a loss that is not
finite, a failed run of a sweep, or an interrupt.
"""

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import tyro

from ppl_gen.core.errors import ALIASES, BadInput, Failed

T = TypeVar("T")


def parse(options: Callable[..., T], arguments: list[str], program: str, description: str) -> T:
    """Parse options into a dataclass. Raises `BadInput`, in one line, in place of tyro's box of several lines."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(options, args=arguments, prog=program, description=description)
    except SystemExit as exit:
        if exit.code in (0, None):
            raise  # --help
        raise BadInput(_one_line(errors.getvalue()) + f" (see {program} --help)") from None


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
    try:
        if _is_distributed() and not distributed:
            raise BadInput(
                "torchrun: only fit and evaluate can run in several processes; start this command without it"
            )
        command(sys.argv[1:])
        sys.stdout.flush()
    except BadInput as error:
        _wait_unless_first()
        print("error: " + " ".join(error.sentence.split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        _wait_unless_first()
        if _is_first():
            print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Failed as error:  # anything else keeps its traceback: that is for our bugs
        _wait_unless_first()
        print(f"error: {error.sentence}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _wait_unless_first() -> None:
    """Let only the first of several processes print an error that all of them meet: torchrun ends the others while they
    sleep."""
    if not _is_first():
        time.sleep(5)


def _is_distributed() -> bool:
    """True if torchrun has started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _is_first() -> bool:
    return not _is_distributed() or os.environ.get("RANK", "0") == "0"
