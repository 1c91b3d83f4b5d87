"""`python -m ppl_gen`, or `ppl-gen`: List the commands, or run one of them."""

import ast
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from ppl_gen.core import interrupts


def commands() -> dict[str, str]:
    """Description of each command, by name: the first line of every file of this folder that defines `command`."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        file = ast.parse(path.read_text(encoding="utf-8"))  # read, not imported: that would import torch
        if any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in file.body):
            first = (ast.get_docstring(file) or "").splitlines()[0]
            found[path.stem] = first.partition("`: ")[2]
    return found


def main() -> NoReturn:
    """Run the command that `sys.argv` names, as `python -m ppl_gen.NAME` does."""
    interrupts.end_at_once()
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in commands():
        from ppl_gen.core import cli

        cli.main(_without_command)
    sys.argv[1:] = rest
    runpy.run_module(f"ppl_gen.{name}", run_name="__main__", alter_sys=True)
    sys.exit(0)


def _without_command(arguments: list[str]) -> None:
    """List the commands, or print the version."""
    name = (arguments or ["--help"])[0]
    if name in ("-h", "--help"):
        lines = [f"  {each:<18}{about}" for each, about in commands().items()]
        print("\n".join(["usage: ppl-gen NAME [options], or python -m ppl_gen.NAME [options]", "", *lines, ""]))
        print("ppl-gen NAME --help lists the options of a command; ppl-gen --version prints the version")
        print("report.html, the page of each run, explains the terms of the tables")
    elif name == "--version":
        from ppl_gen import __version__

        print(f"ppl_gen {__version__}")
    else:
        from ppl_gen.core.errors import BadInput, near_miss

        raise BadInput(f"{name}: no such command{near_miss(name, commands())}")


if __name__ == "__main__":
    main()
