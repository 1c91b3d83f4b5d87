"""The site: `python -m sphinx -W docs docs/_build`."""

import contextlib
import importlib
import io
import os
from pathlib import Path

import ppl_gen

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

COMMANDS = {
    "fit": ("fit vae", ["vae", "--help"]),
    "evaluate": ("evaluate", ["--help"]),
    "compare": ("compare", ["--help"]),
    "sweep": ("sweep", ["--help"]),
    "sample": ("sample", ["--help"]),
    "quality": ("quality", ["--help"]),
    "fill": ("fill", ["--help"]),
    "splice": ("splice", ["--help"]),
    "responsibilities": ("responsibilities", ["--help"]),
    "calibrate": ("calibrate", ["--help"]),
}


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
    parts = [f"# Commands\n\nWhat `--help` says. Options of other models and guides: {others}.\n"]
    for command, (title, arguments) in COMMANDS.items():
        parts.append(f"## {title}\n\n```text\n{_help(command, arguments).strip()}\n```\n")
    page = Path(__file__).parent / "reference" / "commands.md"
    page.write_text("\n".join(parts), encoding="utf-8")


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("builder-inited", _write_commands)
