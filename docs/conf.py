"""The site: `python -m sphinx -W docs docs/_build`."""

import contextlib
import html
import importlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside the pages, before an installed one

import ppl_gen
from ppl_gen.__main__ import commands
from ppl_gen.core.glossary import TERMS

project = "ppl_gen"
author = "the ppl_gen authors"
version = release = ppl_gen.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence"]  # figures with captions
myst_heading_anchors = 3
source_suffix = {".md": "markdown", ".ipynb": "markdown"}  # a notebook is read as Markdown: `notebook_as_markdown`
html_theme = "furo"
html_title = f"ppl_gen {version}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build"]
default_role = "code"
smartquotes = False  # it would make one dash of the two of an option
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented_params"

REFERENCE = Path(__file__).parent / "reference"
FIRST = ("fit", "evaluate", "compare", "sweep")
"""The commands that stand first; the others follow by name."""
SHOWN = {"fit": ["vae"], "calibrate": ["RUN"]}
"""Words after the name of a command that decide which options it has."""


class Group(NamedTuple):
    """A group of options as `--help` prints it."""

    title: str
    about: str
    options: list[tuple[str, str]]
    """Names with their values, and the text."""


def printed_help(command: str, arguments: list[str]) -> str:
    """What a command prints of its options, without colours."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(f"ppl_gen.{command}").command([*arguments, "--help"])
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def read_help(text: str) -> tuple[str, str, list[Group]]:
    """Usage, description and groups of options in the output of `--help`. Lines are joined again."""
    usage, description, rest = text.split("\n\n", 2)
    rest = re.sub(r"\n\s*\n", "\n", rest)
    groups = []
    for title, body in re.findall(r"^ (\S.*)\n -+\n((?:  .*\n?)*)", rest, re.MULTILINE):
        *about, entries = re.split(r"^  -+\n", body, flags=re.MULTILINE)
        found = re.findall(r"^  (\S(?: ?\S)*)(?:  +(\S.*))?\n?((?:   +\S.*\n?)*)", entries, re.MULTILINE)
        options = [(name, " ".join(f"{beside} {below}".split())) for name, beside, below in found]
        groups.append(Group(title, " ".join(" ".join(about).split()), options))
    first = {"positional arguments": 0, "options": 1}
    return usage, description, sorted(groups, key=lambda group: first.get(group.title, 2))


def command_page(command: str) -> str:
    """The page of a command. Every option has an anchor."""
    usage, description, groups = read_help(printed_help(command, SHOWN.get(command, [])))
    title = " ".join([command, *SHOWN.get(command, [])])
    parts = [f"# {title}", description, f"```text\n{usage.removeprefix('usage: ')}\n```"]
    if command == "fit":
        parts.append("Other models and guides have other options: `python -m ppl_gen.fit MODEL --guide NAME --help`.")
    parts.append(f"```{{program}} {command}\n```")
    for group in groups:
        parts.append(f"## {group.title.capitalize()}" + (f"\n\n{group.about}" if group.about else ""))
        for name, text in group.options:
            if name.startswith("-h,"):
                continue
            about = text.replace("<", "&lt;")  # a placeholder, such as <model>, is no element of HTML
            about = re.sub(r"\((default: [^()]*|required|repeatable)\)$", r"*(\1)*", about)
            about = re.sub(r"(?<![\w`])--[a-z][\w.*-]*\w", r"`\g<0>`", about)
            kind = f"{{option}} {name}" if name.startswith("-") else f"{{describe}} {name}"
            parts.append(f":::{kind}\n{about}\n:::")
    return "\n\n".join(parts) + "\n"


def write_commands(app: object) -> None:
    """The pages of the commands, from the code."""
    folder = REFERENCE / "commands"
    folder.mkdir(exist_ok=True)
    about = commands()
    names = list(dict.fromkeys([*FIRST, *about]))
    for name in names:
        (folder / f"{name}.md").write_text(command_page(name), encoding="utf-8")
    lines = "\n".join(f"- [{name}](commands/{name}.md): {about[name]}" for name in names)
    listed = "\n".join(f"commands/{name}" for name in names)
    lead = "For users of the command line: every option of every command, as `python -m ppl_gen.NAME --help` prints it."
    text = f"# Commands\n\n{lead}\n\n{lines}\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    (REFERENCE / "commands.md").write_text(text, encoding="utf-8")


# The glossary and the notebook ---------------------------------------------------------------------------------


def glossary_page() -> str:
    """The page of the terms, from the code."""
    lead = "For readers of a table or of `report.html`: what each term means, and when to distrust it."
    parts = [f"# Glossary\n\n{lead}"]
    for term in TERMS:
        if term.more in ("samples.md", "uses.md"):
            continue  # these pages define their own terms
        parts.append(f"## {term.name}\n\n{term.text}" + (f" [More]({term.more})" if term.more else ""))
    return "\n\n".join(parts) + "\n"


def notebook_as_markdown(notebook: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown, with the outputs that it holds."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            found = {kind: "".join(value) for kind, value in output.get("data", {}).items()}
            if "image/png" in found:
                picture = (
                    f'<img alt="Output of the cell above" src="data:image/png;base64,{found["image/png"].strip()}">'
                )
                parts.append(f"```{{raw}} html\n{picture}\n```")
            elif "text/html" in found:
                parts.append(f'```{{raw}} html\n<div class="output">{found["text/html"]}</div>\n```')
            else:
                shown = found.get("text/plain", "".join(output.get("text", "")))
                parts.append(f'```{{raw}} html\n<pre class="output">{html.escape(shown)}</pre>\n```')
    return "\n\n".join(parts) + "\n"


def read_source(app: object, name: str, source: list[str]) -> None:
    if name == "notebook":
        source[0] = notebook_as_markdown(json.loads(source[0]))


def keep_options_whole(app: object, name: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Let a browser break a long command between words only, and not after the dashes of an option."""
    blocks = re.compile(r'(?<=<div class="highlight-bash)[^\0]*?(?=</pre>)')
    context["body"] = blocks.sub(
        lambda block: re.sub(r"(?<=</span>)-[\w.-]+", r'<span class="word">\g<0></span>', block[0]),
        context.get("body", ""),
    )


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("html-page-context", keep_options_whole)
    app.connect("builder-inited", write_commands)
    app.connect("source-read", read_source)
