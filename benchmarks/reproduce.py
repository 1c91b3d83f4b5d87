"""Make a row, or a table, of the documentation again: `python -m benchmarks.reproduce layers-200`.

The name of a run: runs the commands of docs/results*.md that make `runs/layers-200`, after those of the runs that it
starts from, and stores what they found, with the protocol, in benchmarks/results/layers-200.json. A run that is there
already goes on where it stopped. Tables whose first column is `name of the run` have the numbers of these files; a
test compares them.

A heading, or the start of one: runs the commands under it. Without a name, all runs and headings are listed.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS
from benchmarks.timing import machine

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
"""What is stored of a run: its commands, machine, minutes, config.json, evaluation.json."""


def pages(docs: Path = DOCS) -> list[Path]:
    """The pages of results and of speed: results.md, results-discrete.md, …, speed.md, …"""
    return sorted([*docs.glob("results*.md"), *docs.glob("speed*.md")], key=lambda page: page.stem)


def sections(docs: Path = DOCS) -> dict[str, list[str]]:
    """The commands under each heading of these pages that has any."""
    found: dict[str, list[str]] = {}
    for page in pages(docs):
        for part in re.split(r"^##? ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            title, _, text = part.partition("\n")
            blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            if commands := [line for block in blocks for line in block.splitlines() if line]:
                if title in found:
                    raise ValueError(f"two headings with commands are '{title}'")
                found[title] = commands
    return found


def recipes(docs: Path = DOCS) -> dict[str, list[str]]:
    """The commands that make each run, by its name: those of the run that it starts from, its fit, its evaluation."""
    every = [line for commands in sections(docs).values() for line in commands]
    fits = {name: line for line in every if ".fit " in line and (name := _after(line, "--out"))}

    def of(name: str) -> list[str]:
        start = _after(fits[name], "--init-from")
        before = of(start) if start in fits else []
        after = [
            line for line in every if line.startswith("python -m ppl_gen.evaluate ") and f"runs/{name}" in line.split()
        ]
        return [*before, fits[name], *after]

    return {name: of(name) for name in fits}


def _after(command: str, option: str) -> str:
    """The name of the run that follows an option; empty if there is none."""
    words = shlex.split(command)
    return words[words.index(option) + 1].removeprefix("runs/") if option in words[:-1] else ""


# What is stored, and how a table has it ----------------------------------------------------------------------------


def record(run: Path, commands: list[str]) -> Record:
    """What is stored of a finished run."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    config, evaluation = (
        json.loads((run / name).read_text(encoding="utf-8")) for name in ("config.json", "evaluation.json")
    )
    del config["command"]  # of somebody's machine; `commands` are those of the page
    minutes = {"training": metrics[-1]["seconds"] / 60, "evaluation": evaluation["seconds"] / 60}
    found = {"commands": commands, "machine": machine(), "minutes": minutes, "last_epoch": metrics[-1]}
    return found | {"config": config, "evaluation": evaluation}


def _mean(*keys: str) -> Callable[[Record], str]:
    def cell(found: Record) -> str:
        entry = found["evaluation"]
        for key in keys:
            entry = entry[key]
        return f"{entry['mean']:.2f} ± {entry['se']:.2f}"

    return cell


def _log_px(found: Record) -> str:
    """With the words of a table where the estimate is not trusted."""
    return ("at least " if found["evaluation"]["log_px"]["at_least"] else "") + _mean("log_px")(found)


CELLS: dict[str, Callable[[Record], str]] = {
    "objective": lambda found: found["config"]["training"]["objective"],
    "guide": lambda found: found["config"]["guide"],
    "K": lambda found: str(found["config"]["training"]["num_particles"]),
    "epochs": lambda found: str(found["config"]["training"]["epochs"]),
    "seed": lambda found: str(found["config"]["training"]["seed"]),
    "training ELBO": lambda found: f"{found['last_epoch']['train']['elbo']:.2f}",
    "ELBO": _mean("elbo"),
    "IWAE bound, k = 100": _mean("iwae", "100"),
    "log p(x)": _log_px,
    "estimator": lambda found: found["evaluation"]["log_px"]["estimator"],
    "S": lambda found: f"{found['evaluation']['log_px']['num_samples']:,}",
    "gap": _mean("gap"),
    "active units": lambda found: str(found["evaluation"]["active_units"]),
    "minutes of training": lambda found: f"{found['minutes']['training']:.0f}",
    "minutes of evaluation": lambda found: f"{found['minutes']['evaluation']:.0f}",
}
"""The columns of a table of runs, as text."""
TYPED = ("published",)
"""Columns that no run can tell."""


def stored(name: str, results: Path = RESULTS) -> Record:
    found: Record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    return found


def show(found: Record) -> str:
    """All columns that a record has, one in a line."""
    lines = []
    for column, cell in CELLS.items():
        try:
            lines.append(f"{column}: {cell(found)}")
        except (KeyError, TypeError):
            continue
    return "\n".join(lines)


# Commands ----------------------------------------------------------------------------------------------------------


def _run(command: str) -> int:
    """Run a command; a fit that has a directory already is resumed."""
    words = shlex.split(command)
    out = _after(command, "--out")
    if ".fit " in command and Path("runs", out).exists():
        words = ["python", "-m", "ppl_gen.fit", "--resume", f"runs/{out}"]
    print(f"$ {shlex.join(words)}", flush=True)
    started = time.perf_counter()
    if words[0] == "python":
        words[0] = sys.executable
    status = subprocess.run(words).returncode
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    return status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument("name", nargs="?", help="a run, or a heading or its start; without it, all are listed")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the pages are (default docs/)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where results are stored (default benchmarks/results/)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    given = parser.parse_args(arguments)
    runs, headings = recipes(given.docs), sections(given.docs)
    if given.name is None:
        print("\n".join(["Runs:", *runs, "", "Headings:", *headings]))
        return 0
    chosen = [title for title in headings if title.lower().startswith(given.name.lower())]
    if given.name not in runs and len(chosen) != 1:
        print(f"'{given.name}' is no run, and begins {len(chosen)} headings; list all with no name", file=sys.stderr)
        return 2
    commands = runs[given.name] if given.name in runs else headings[chosen[0]]
    for command in commands:
        if given.dry_run:
            print(f"$ {command}")
        elif status := _run(command):
            print(f"ended with status {status}", file=sys.stderr)
            return 1
    if given.name in runs and not given.dry_run:
        found = record(Path("runs", given.name), commands)
        given.results.mkdir(exist_ok=True)
        (given.results / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(show(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
