"""Sections of the page of a run, one a file, in the order of the files' names.

A file has `FILE`, the name of the JSON file with its numbers, and a function `section(content, arguments)` that returns
a `Section`. A section is left out if its file is missing, or damaged, or the weights were trained on after it
was made.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppl_gen.core.calls import changed, method_call
from ppl_gen.core.commands import external_class_options, words
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
class Again:
    """How to make the numbers of a section again."""

    text: str
    """What is made, for a comment."""
    words: list[str]
    """The command, as words."""
    call: str
    """The same as a call of a `run` in Python."""
    checkpoint: str = "last"
    """The weights that the run is opened with."""


@dataclass(frozen=True)
class Section:
    """Tables under one heading, and how to make their numbers again."""

    heading: str
    lead: str
    tables: list[Table]
    again: Again


def results(run: RunDirectory) -> dict[str, Json]:
    """The content of every result of a run, by the name of its section."""
    found = {name: run.find_json(module.FILE) for name, module in _modules().items()}
    return {name: content for name, content in found.items() if content and not run.stale(content)}


def sections(run: RunDirectory, found: Mapping[str, Json]) -> list[Section]:
    """The sections for a run's `results`."""
    modules, named = _modules(), external_class_options(run.config)
    return [modules[name].section(content, [run.path, *named]) for name, content in found.items()]


def again(
    text: str,
    content: Mapping[str, Any],
    program: list[str],
    method: str,
    defaults: Mapping[str, Any],
) -> Again:
    """How to make a result again with the same options.

    :param content: content of the result's JSON file.
    :param program: the command without options, as words.
    :param method: the method of a `Run` that does the same.
    :param defaults: default of each option. Options with these values are left out.
    """
    options = content.get("options", {})  # a contributor's own result may have none
    of_method = {name: value for name, value in options.items() if name not in ("checkpoint", "gaps")}
    call = method_call(method, changed(of_method, defaults))
    return Again(text, [*program, *words(options, defaults)], call, content.get("checkpoint", "last"))


def _modules() -> dict[str, Any]:
    """The files of this folder, by name."""
    return {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
