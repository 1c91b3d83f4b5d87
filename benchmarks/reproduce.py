"""Make a row, or a table, of the documentation again: `python -m benchmarks.reproduce burda-1-iwae-50`.

The name of a run: runs the commands of docs/results*.md that make `runs/burda-1-iwae-50`, after those of the runs that
it starts from, and stores what they found, with the protocol, in benchmarks/results/burda-1-iwae-50.json. A run that is
there already goes on where it stopped. The name of a sweep does the same for all its runs. Tables whose first column is
`name of the run`, or `row of` a sweep, have the numbers of these files; a test compares them. A row that names several
runs, with a comma between them, has their means.

The name of a script whose command is on one of these pages, such as `gap`: runs it, and stores the tables that it
prints. All other tables of results are these, or are listed by that test.

A heading, or the start of one: runs the commands under it. Without a name, all that have one are listed.
"""

import argparse
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS, markdown, tables_of
from benchmarks.timing import machine
from ppl_gen.evaluation.entries import entry_of, verdicts
from ppl_gen.inference.differences import critical

RESULTS = Path(__file__).parent / "results"
SCRIPT = "python -m benchmarks."
"""How the command begins of a script that prints tables."""
COPY = "cp -r runs/"
"""How a command begins that copies a run, for another evaluation of it."""
Record = dict[str, Any]
"""What is stored of a run: its commands, machine, minutes, config.json, evaluation.json, and what `USES` write."""
USES = ("evaluate", "calibrate", "splice", "fill", "responsibilities", "quality")
"""Commands for a run whose results are stored with it."""
RESULTS_OF_USES = ("gaps", "calibration", "splice", "fill", "responsibilities", "quality")
"""The names of their files of JSON, beside evaluation.json."""
_OF_IMAGES = ("per_image", "table")


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
    """The commands that make each run or sweep, by its name: those of the run that it starts from or is a copy of, its
    fit, and its `USES`; or all sweeps into one directory. A run of a sweep may be copied, too. And those of each script
    on the pages of results, by its name: the commands of the runs that it reads, and its own."""
    every = [line for commands in sections(docs).values() for line in commands]
    fits = {name: line for line in every if ".fit " in line and (name := _after(line, "--out"))}
    fits |= {_copied(line)[1]: line for line in every if line.startswith(COPY)}
    sweeps: dict[str, list[str]] = {}
    for line in every:
        if ".sweep " in line:
            sweeps.setdefault(_after(line, "--out"), []).append(line)

    def of(name: str) -> list[str]:
        start = _copied(fits[name])[0] if fits[name].startswith(COPY) else _after(fits[name], "--init-from")
        before = of(start) if start in fits else sweeps.get(start.partition("/")[0], [])
        uses = tuple(f"python -m ppl_gen.{each} " for each in USES)
        after = [line for line in every if line.startswith(uses) and f"runs/{name}" in line.split()]
        return [*before, fits[name], *after]

    scripts = {}
    results = "".join(page.read_text(encoding="utf-8") for page in docs.glob("results*.md"))
    for line in every:
        if line.startswith(SCRIPT) and line in results:
            name, *words = line.removeprefix(SCRIPT).split()
            runs = (word.removeprefix("runs/") for word in words)
            scripts[name] = [*(command for run in runs if run in fits for command in of(run)), line]
    return {name: of(name) for name in fits} | sweeps | scripts


def _copied(command: str) -> list[str]:
    """The names of the run that is copied, and of the copy: `cp -r runs/one runs/other`."""
    return [word.removeprefix("runs/") for word in command.split()[2:]]


def _after(command: str, option: str) -> str:
    """The name of the run that follows an option; empty if there is none."""
    words = shlex.split(command)
    return words[words.index(option) + 1].removeprefix("runs/") if option in words[:-1] else ""


# What is stored, and how a table has it ----------------------------------------------------------------------------


def record(run: Path, commands: list[str]) -> Record:
    """What is stored of a finished run."""
    metrics = _metrics(run)
    config, evaluation = (
        json.loads((run / name).read_text(encoding="utf-8")) for name in ("config.json", "evaluation.json")
    )
    del config["command"]  # of somebody's machine; `commands` are those of the page
    minutes = {"training": metrics[-1]["seconds"] / 60, "evaluation": evaluation["seconds"] / 60}
    found = {"commands": commands, "machine": machine(), "minutes": minutes, "last_epoch": metrics[-1]}
    found |= {"config": config, "evaluation": evaluation}
    for name in RESULTS_OF_USES:
        if (file := run / f"{name}.json").exists():
            found[name] = _without_images(json.loads(file.read_text(encoding="utf-8")))
    return found


def _without_images(result: Any) -> Any:
    """A result without the values of each image, or of each component.

    >>> _without_images({"contexts": {"elbo": {"mean": -2.0}, "per_image": {"elbo": [-1.0, -3.0]}}})
    {'contexts': {'elbo': {'mean': -2.0}}}
    """
    if not isinstance(result, dict):
        return result
    return {key: _without_images(value) for key, value in result.items() if key not in _OF_IMAGES}


def record_of_sweep(directory: Path, commands: list[str]) -> Record:
    """What is stored of a finished sweep: the rows of `python -m ppl_gen.compare`, by what tells them apart in the
    names of their runs; with means over seeds of the ELBO after each epoch, and the time of a step."""
    from benchmarks.steps import milliseconds_of
    from ppl_gen import Comparison

    compared = Comparison(sorted(path.parent for path in directory.glob("*/evaluation.json"))).to_json()
    rows = {}
    for row in compared["rows"]:
        paths = [Path(run) for run in row["runs"]]
        label = paths[0].name.removeprefix(f"{row['model']}-").rpartition("-")[0]
        metrics = [_metrics(path) for path in paths]
        curves = {split: _epochs_elbo(metrics, split) for split in ("train", "validation")}
        last = metrics[0][-1]
        rows[label] = row | {"runs": [path.name for path in paths], "epochs_elbo": curves}
        rows[label]["steps_per_epoch"] = last["step"] // last["epoch"]
    times = milliseconds_of([directory / row["runs"][0] for row in rows.values()])
    for row, time_of_step in zip(rows.values(), times, strict=True):
        row["milliseconds"] = round(time_of_step, 2)
        config = json.loads((directory / row["runs"][0] / "config.json").read_text(encoding="utf-8"))
        if config["training"]["schedule"] == "constant":  # else a part of a run is not what a shorter run would be
            row["equal_time_elbo"] = _at(row["epochs_elbo"]["validation"], row["epochs"] * min(times) / time_of_step)
    return {"commands": commands, "machine": machine(), "images": compared["images"], "rows": rows}


def record_of_script(printed: str, commands: list[str]) -> Record:
    """What is stored of a script: the tables that it printed, as rows of cells, the first of which is the header."""
    return {"commands": commands, "machine": machine(), "tables": tables_of(printed)}


def _metrics(run: Path) -> list[Record]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _epochs_elbo(metrics: list[list[Record]], split: str) -> list[float]:
    """The ELBO of the images of a split after each epoch, from epoch 0 on: means over the metrics of several runs."""
    values = ([epoch[split]["elbo"] for epoch in run] for run in metrics)
    return [round(statistics.mean(each), 3) for each in zip(*values, strict=True)]


def _at(curve: list[float], epoch: float) -> float:
    """The ELBO after a part of the epochs, on the line between the two epochs beside it.

    >>> _at([-30.0, -20.0, -16.0], 1.25)
    -19.0
    """
    whole = min(int(epoch), len(curve) - 2)
    return curve[whole] + (epoch - whole) * (curve[whole + 1] - curve[whole])


def _plus_minus(entry: Record, digits: int = 2) -> str:
    """Mean ± standard error over images, and ± over seeds where there are several."""
    errors = [entry["se"], entry.get("se_seeds")]
    return " ± ".join(f"{value:.{digits}f}" for value in (entry["mean"], *errors) if value is not None)


def _mean(*keys: str, digits: int = 2) -> Callable[[Record], str]:
    return lambda found: _plus_minus(_entry(found.get("evaluation", found), keys), digits)


def _entry(found: Any, keys: tuple[str, ...]) -> Any:
    """What lies under one key of another."""
    for key in keys:
        found = found[key]
    return found


def _percent(share: Record, digits: int) -> str:
    """A share ± its standard error, in percent."""
    return f"{100 * share['mean']:.{digits}f} ± {100 * share['se']:.{digits}f} %"


def _log_px(*estimators: str) -> Callable[[Record], str]:
    """log p(x) by the first of these estimators that there is; by the primary one without estimators. With the words of
    a table where it is not trusted."""

    def cell(found: Record) -> str:
        evaluation = found.get("evaluation", found)
        entries = [entry_of(evaluation, name) for name in estimators] or [evaluation["log_px"]]
        entry = next(filter(None, entries), {})
        return ("at least " if entry["at_least"] else "") + _plus_minus(entry)

    return cell


def _over_seeds(found: Record) -> str:
    """Half of the 95 % interval of log p(x) for other seeds, by Student's t."""
    entry = found["evaluation"]["log_px"]
    return f"± {critical(entry['num_seeds'] - 1, num_rows=2) * entry['se_seeds']:.2f}"


def _settled(found: Record) -> str:
    """The share of images whose log p(x) is settled, by importance sampling or annealing."""
    entry = entry_of(found["evaluation"], "settled") or {}
    return f"{1 - entry['settled']['fraction_left']:.1%}"


def _use(*keys: str, digits: int = 2, bounded: bool = False) -> Callable[[Record], str]:
    """A mean ± its error in the results of `USES`.

    :param bounded: with "at least" where the gaps are.
    """

    def cell(found: Record) -> str:
        entry = _entry(found, keys)
        doubted = bounded and found["gaps"]["contexts"]["at_least"]
        return "at least " * doubted + _plus_minus(entry, digits)

    return cell


def _by_chance(key: str) -> Callable[[Record], str]:
    """A measure of components against labels, and its value by chance."""

    def cell(found: Record) -> str:
        entry = found["responsibilities"][key]
        return f"{entry['mean']:.3f} ({entry['chance']:.3f})"

    return cell


def _wrong(of: str) -> Callable[[Record], str]:
    """The share of images whose most probable class is wrong."""

    return lambda found: _percent(found["responsibilities"]["error"][of], 2)


def _coverage(when: str, of: str) -> Callable[[Record], str]:
    """The share of z in regions or intervals of nominal coverage 90 %."""

    def cell(found: Record) -> str:
        entry = found["calibration"][when]["coverage"]
        return _percent(entry[of][entry["levels"].index(0.9)], 1)

    return cell


SWEEP_CELLS: dict[str, Callable[[Record], str]] = {
    "seeds": lambda row: str(len(row["seeds"])),
    "epochs": lambda row: f"{row['epochs']:.0f}",
    "training ELBO": lambda row: f"{row['epochs_elbo']['train'][-1]:.2f}",
    "ELBO": _mean("elbo"),
    "IWAE bound, k = 100": lambda row: _plus_minus(row["iwae"]) if row["iwae"]["k"] == 100 else "",
    "log p(x)": _log_px(),
    "difference to the best": _mean("log_px_difference"),
    "S": lambda row: f"{row['log_px']['num_samples']:,}",
    "gap": lambda row: ("at least " if row["gap"]["at_least"] else "") + f"{row['gap']['mean']:.2f}",
    "active units": lambda row: f"{row['active_units']:.0f}",
    "effective samples, median": lambda row: f"{row['ess_median']:.1f}",
    "minutes of training": lambda row: f"{row['seconds'] / 60:.0f}",
    "ms a step": lambda row: f"{row['milliseconds']:.0f}",
    "validation ELBO": lambda row: f"{row['epochs_elbo']['validation'][-1]:.2f}",
    "validation ELBO at equal time": lambda row: f"{row['equal_time_elbo']:.2f}",
}
"""The columns of a table of a sweep, as text. At equal time: when the run with the fastest step has ended."""
CELLS: dict[str, Callable[[Record], str]] = {
    "objective": lambda found: found["config"]["training"]["objective"],
    "guide": lambda found: found["config"]["guide"],
    "K": lambda found: str(found["config"]["training"]["num_particles"]),
    "epochs": lambda found: str(found["config"]["training"]["epochs"]),
    "seed": lambda found: str(found["config"]["training"]["seed"]),
    "training ELBO": lambda found: f"{found['last_epoch']['train']['elbo']:.2f}",
    "validation ELBO": lambda found: f"{found['last_epoch']['validation']['elbo']:.2f}",
    "ELBO": _mean("elbo"),
    "reconstruction": _mean("reconstruction"),
    "KL": _mean("kl"),
    "IWAE bound, k = 10": _mean("iwae", "10"),
    "IWAE bound, k = 100": _mean("iwae", "100"),
    "log p(x)": _log_px(),
    "for other seeds, 95 %": _over_seeds,
    "estimator": lambda found: found["evaluation"]["log_px"]["estimator"],
    "S": lambda found: f"{found['evaluation']['log_px']['num_samples']:,}",
    "images": lambda found: f"{found['evaluation']['num_images']:,}",
    "importance sampling": _log_px("importance"),
    "exact, or by quadrature": _log_px("exact", "quadrature"),
    "annealing": _log_px("annealed"),
    "annealing less importance sampling": _mean("disagreement"),
    "settled log p(x)": _log_px("settled"),
    "settled images": _settled,
    "distance of the two bounds": _mean("sandwich_importance", "width", digits=3),
    "distance of the annealed bounds": _mean("sandwich", "width"),
    "effective samples, median": lambda found: f"{found['evaluation']['ess']['median']:.1f}",
    "k-hat too high": lambda found: f"{found['evaluation']['khat']['fraction_above_threshold']:.0%}",
    "calibration of the guide": lambda found: verdicts(found["calibration"]),
    "90 % regions hold": _coverage("before", "joint"),
    "90 % intervals hold": _coverage("before", "central"),
    "90 % regions hold, with weights": _coverage("after", "joint"),
    "90 % intervals hold, with weights": _coverage("after", "central"),
    "effective samples of these": lambda found: f"{found['calibration']['ess']['median']:.1f}",
    "images of the split": lambda found: str(found["gaps"]["contexts"]["num_images"]),
    "ELBO of these": _use("gaps", "contexts", "elbo"),
    "ELBO, best context of each image": _use("gaps", "contexts", "best_elbo"),
    "log p(x) of these": _use("gaps", "contexts", "log_px", bounded=True),
    "approximation gap": _use("gaps", "contexts", "approximation", bounded=True),
    "amortization gap": _use("gaps", "contexts", "amortization"),
    "approximation gap of three images": _use("gaps", "contexts_of_these", "approximation"),
    "with weights of their own": _use("gaps", "copies", "approximation"),
    "ROC AUC": _use("splice", "roc_auc", digits=3),
    "power on 10 images": _use("splice", "two_sample_test", "power", "10", digits=3),
    "log p(hidden given visible)": _use("fill", "log_p_hidden"),
    "bits per hidden pixel": lambda found: f"{found['fill']['log_p_hidden']['bits_per_hidden_pixel']:.3f}",
    "purity (chance)": _by_chance("purity"),
    "mutual information (chance)": _by_chance("normalized_mutual_information"),
    "wrong by q(y given x)": _wrong("q(y | x)"),
    "wrong by p(y given x)": _wrong("p(y | x)"),
    "Fréchet distance": _use("quality", "frechet"),
    "kernel distance": _use("quality", "kernel", digits=3),
    "precision": _use("quality", "precision", digits=3),
    "recall": _use("quality", "recall", digits=3),
    "classes": lambda found: str(found["quality"]["classes"]["covered"]),
    "KL of classes": lambda found: f"{found['quality']['classes']['divergence']:.3f}",
    "nearest training image": lambda found: f"{found['quality']['nearest']['samples']:.2f}",
    "components in use": lambda found: str(found["evaluation"]["components"]["in_use"]),
    "gap": _mean("gap"),
    "active units": lambda found: str(found["evaluation"]["active_units"]),
    "minutes of training": lambda found: f"{found['minutes']['training']:.0f}",
    "seconds of training": lambda found: f"{60 * found['minutes']['training']:.0f}",
    "minutes of evaluation": lambda found: f"{found['minutes']['evaluation']:.0f}",
}
"""The columns of a table of runs, as text."""
TYPED = ("published", "on MNIST")
"""Columns that no run can tell."""


def stored(name: str, results: Path = RESULTS) -> Record:
    found: Record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    return found


def mean_of(records: list[Any]) -> Any:
    """The mean of each number of the records of several runs, which differ in their seed. An entry's error over images
    is the mean of theirs; `se_seeds` is the error over the `num_seeds`. What differs and has no mean is left out.

    >>> mean_of([{"elbo": {"mean": -2.0, "se": 0.1}, "seed": 0}, {"elbo": {"mean": -4.0, "se": 0.3}, "seed": 1}])
    {'elbo': {'mean': -3.0, 'se': 0.2, 'se_seeds': 1.0, 'num_seeds': 2}}
    """
    first, *others = records
    if not others or all(each == first for each in others):
        return first
    if all(isinstance(each, dict) for each in records):
        shared = [key for key in first if all(key in each for each in others)]
        means = {key: mean_of([each[key] for each in records]) for key in shared}
        found = {key: value for key, value in means.items() if value is not None}
        if "mean" in found and "se" in found:
            error = statistics.stdev(each["mean"] for each in records) / math.sqrt(len(records))
            found |= {"se_seeds": error, "num_seeds": len(records)}
            if "at_least" in first:
                found["at_least"] = any(each["at_least"] for each in records)
        return found
    return statistics.fmean(records) if all(isinstance(each, float) for each in records) else None


def show(found: Record) -> str:
    """All columns that a record has: one in a line; for a sweep a table, as a page has it. A script has printed its."""
    if "tables" in found:
        return f"{len(found['tables'])} tables"
    if "rows" not in found:
        return "\n".join(f"{column}: {cell}" for column, cell in _cells(CELLS, found).items())
    rows = {label: _cells(SWEEP_CELLS, row) for label, row in found["rows"].items()}
    columns = [column for column in SWEEP_CELLS if any(column in row for row in rows.values())]
    cells = ([label, *(row.get(column, "") for column in columns)] for label, row in rows.items())
    return markdown(["row", *columns], cells)


def _cells(cells: dict[str, Callable[[Record], str]], found: Record) -> dict[str, str]:
    """Those columns that a record has."""
    there = {}
    for column, cell in cells.items():
        try:
            there[column] = cell(found)
        except (KeyError, TypeError):
            continue
    return there


# Commands ----------------------------------------------------------------------------------------------------------


def _run(command: str) -> tuple[int, str]:
    """Run a command; a fit that has a directory already is resumed, and a run is copied once.

    :returns: the exit status, and what a script printed.
    """
    words = shlex.split(command)
    out = _after(command, "--out")
    if command.startswith(COPY) and Path(words[-1]).exists():
        return 0, ""
    if ".fit " in command and Path("runs", out).exists():
        words = ["python", "-m", "ppl_gen.fit", "--resume", f"runs/{out}"]
    print(f"$ {shlex.join(words)}", flush=True)
    started = time.perf_counter()
    if words[0] == "python":
        words[0] = sys.executable
    if not command.startswith(SCRIPT):
        status, printed = subprocess.run(words).returncode, ""
    else:
        with subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8") as running:
            lines = []
            for line in running.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        status, printed = running.returncode, "".join(lines)
    print(f"{time.perf_counter() - started:.0f} s", flush=True)
    return status, printed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__)
    parser.add_argument(
        "name", nargs="?", help="a run, sweep, script, or start of a heading; without it, all are listed"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the pages are (default docs/)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where results are stored (default benchmarks/results/)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")
    given = parser.parse_args(arguments)
    runs, headings = recipes(given.docs), sections(given.docs)
    if given.name is None:
        print("\n".join(["Runs, sweeps and scripts:", *runs, "", "Headings:", *headings]))
        return 0
    chosen = [title for title in headings if title.lower().startswith(given.name.lower())]
    if given.name not in runs and len(chosen) != 1:
        print(
            f"'{given.name}' is no run, sweep or script, and begins {len(chosen)} headings; list all with no name",
            file=sys.stderr,
        )
        return 2
    commands = runs[given.name] if given.name in runs else headings[chosen[0]]
    printed = ""
    for command in commands:
        if given.dry_run:
            print(f"$ {command}")
            continue
        status, printed = _run(command)
        if status:
            print(f"ended with status {status}", file=sys.stderr)
            return 1
    if given.name in runs and not given.dry_run:
        if commands[-1].startswith(SCRIPT):
            found = record_of_script(printed, commands)
        else:
            made = record_of_sweep if ".sweep " in commands[-1] else record  # a copied run of a sweep has more after it
            found = made(Path("runs", given.name), commands)
        given.results.mkdir(exist_ok=True)
        (given.results / f"{given.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(show(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
