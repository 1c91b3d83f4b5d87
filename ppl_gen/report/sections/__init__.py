"""Sections of the page of a run, one a file, in the order of the files' names.

A file has the name of the JSON file that its numbers come from, `FILE`, and a function `section(content, program)`
that returns a `Section`. A section is left out where its file is not there, or where the weights were trained on since.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppl_gen.core.commands import command, named_again, words
from ppl_gen.experiment.run_directory import Json, RunDirectory

if TYPE_CHECKING:
    from ppl_gen.core.tables import Row


@dataclass(frozen=True)
class Table:
    """Numbers with their errors."""

    rows: "list[Row]"
    caption: str
    units: str
    """Heading of the numbers."""
    note: str
    """Heading of the notes."""


@dataclass(frozen=True)
class Section:
    """Tables under one heading, and the command that makes their numbers again."""

    heading: str
    lead: str
    tables: list[Table]
    again: tuple[str, Sequence[str]]
    """A comment and the words of the command, as `again` makes them."""


def results(run: RunDirectory) -> dict[str, Json]:
    """The content of every result that a run has, by the name of its section."""
    found = {name: run.read_json(module.FILE) for name, module in _modules().items()}
    return {name: content for name, content in found.items() if content and not run.stale(content)}


def sections(run: RunDirectory, found: Mapping[str, Json]) -> list[Section]:
    """The sections of a run's results, as `results` returns them."""
    modules, named = _modules(), named_again(run.config)
    return [modules[name].section(content, [run.path, *named]) for name, content in found.items()]


def again(
    text: str, content: Mapping[str, Any], module: str, arguments: Sequence[object], defaults: Mapping[str, Any]
) -> tuple[str, Sequence[str]]:
    """A comment, and the command that makes a result again, with the options that it was made with.

    :param content: the JSON file of the result.
    :param module: name of the command.
    :param arguments: the run, and its classes that are named again.
    :param defaults: options that need not be written.
    """
    program = command(module, *arguments)
    if "options" not in content:
        return f"{text}; an earlier version did not record the options that made them", program
    return text, [*program, *words(content["options"], defaults)]


def _modules() -> dict[str, Any]:
    """The files of this folder, by name."""
    return {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
