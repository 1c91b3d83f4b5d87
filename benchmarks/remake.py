"""Make a table of the documentation again from nothing: `python -m benchmarks.remake "A plane of digits"`.

Runs the commands that stand under a heading of docs/results*.md or docs/speed*.md, one after the other, in their order.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.pages import DOCS


def pages(docs: Path = DOCS) -> list[Path]:
    """The pages of results and of speed: results.md, results-discrete.md, …, speed.md, …"""
    return sorted([*docs.glob("results*.md"), *docs.glob("speed*.md")], key=lambda page: page.stem)


def sections(docs: Path = DOCS) -> dict[str, list[str]]:
    """The commands under each heading of these pages that has any."""
    found: dict[str, list[str]] = {}
    for page in pages(docs):
        for part in re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            title, _, text = part.partition("\n")
            blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            if commands := [line for block in blocks for line in block.splitlines() if line]:
                if title in found:
                    raise ValueError(f"two headings with commands are '{title}'")
                found[title] = commands
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remake", description=__doc__)
    parser.add_argument("title", nargs="?", help="a heading, or the start of one; without it, all headings are listed")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the pages are (default docs/)")
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    given = parser.parse_args(arguments)
    every = sections(given.docs)
    if given.title is None:
        print("\n".join(every))
        return 0
    chosen = [title for title in every if title.lower().startswith(given.title.lower())]
    if len(chosen) != 1:
        print(f"'{given.title}' begins {len(chosen)} headings; there are: {', '.join(every)}", file=sys.stderr)
        return 2
    for command in every[chosen[0]]:
        print(f"$ {command}", flush=True)
        if not given.dry_run:
            started = time.perf_counter()
            words = shlex.split(command)
            if words[0] == "python":
                words[0] = sys.executable
            if status := subprocess.run(words).returncode:
                print(f"ended with status {status}", file=sys.stderr)
                return 1
            print(f"{time.perf_counter() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
