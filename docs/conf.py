"""The site: `python -m sphinx -W docs docs/_build`."""

import contextlib
import importlib
import io
import os
from pathlib import Path

import ppl_gen
from ppl_gen.__main__ import commands

project = "ppl_gen"
author = "the ppl_gen authors"
version = release = ppl_gen.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"ppl_gen {version}"
html_copy_source = False
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"

FIRST = ("fit", "evaluate", "compare", "sweep")
"""The commands that stand first; the others follow by name."""


def _help(command: str, arguments: list[str]) -> str:
    """What a command prints of its options, without colours, as wide as the page."""
    os.environ |= {"COLUMNS": "84", "NO_COLOR": "1", "TERM": "dumb"}
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f"ppl_gen.{command}").command(arguments)
    return text.getvalue()


def _write_commands(app: object) -> None:
    """The page of all commands, from the code."""
    others = "`python -m ppl_gen.fit MODEL --guide NAME --help`"
    parts = [f"# Commands\n\nWhat `--help` prints. Options of other models and guides: {others}.\n"]
    words = {"fit": [["vae"]], "calibrate": [[], ["RUN"]]}
    both = [(command, more) for command in dict.fromkeys([*FIRST, *commands()]) for more in words.get(command, [[]])]
    for command, more in both:
        title, text = " ".join([command, *more]), _help(command, [*more, "--help"]).strip()
        parts.append(f"## {title}\n\n{commands()[command]}\n\n```text\n{text}\n```\n")
    page = Path(__file__).parent / "reference" / "commands.md"
    page.write_text("\n".join(parts), encoding="utf-8")


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("builder-inited", _write_commands)
