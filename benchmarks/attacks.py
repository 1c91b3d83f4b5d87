"""Kills, and two processes at once: `python -m benchmarks.attacks` counts what the page on reliability quotes.

A kill: a command is started and killed by SIGKILL at a random moment, with all processes that it has started. The same
command, or `fit --resume`, then goes to its end. The kill is held if the run has the same weights, measurements and
evaluation as one that nothing has killed.

A pair: two commands that write to the same run are started at once. The pair is held if each ends with status 0, or is
refused in one line with status 2; and if the run then resumes and evaluates, with every epoch recorded once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, NamedTuple

from ppl_gen.experiment.run_directory import RunDirectory

_LITTLE = ("--data", "digits", "--train-size", "200", "--num-samples", "50")
_SMALL = (*_LITTLE, "--hidden-dims", "8", "--latent-dim", "2")
_TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
_SWEEP = ("vae", "--guides", "normal", "flow", "--seeds", "0", "1", "--out", "run")


class Job(NamedTuple):
    """Work that is killed: a command that begins it, and one that goes on with it."""

    begin: tuple[str, ...]
    again: tuple[str, ...]
    """After a kill that left a run; `begin` is started again if there is none."""
    number: int
    """Runs that it makes."""
    before: tuple[str, ...] = ()
    """A command that is not killed, whose run is there when the job begins."""


def _fit(*options: str, python: tuple[str, ...] = ()) -> Job:
    module = (*python, "-m", "ppl_gen.fit")
    return Job((*module, *options, "--out", "run"), (*module, "--resume", "run"), 1)


_SWEEPING = ("-m", "ppl_gen.sweep", *_SWEEP, "--", *_SMALL, "--epochs", "3")
_WHOLE = ("-m", "ppl_gen.fit", "vae", *_SMALL, "--epochs", "3", "--out", "run")
_EVALUATING = ("-m", "ppl_gen.evaluate", "run", "--num-samples", "60")
JOBS = {
    "vae": _fit("vae", *_SMALL, "--epochs", "30"),
    "mixture": _fit("mixture", *_LITTLE, "--epochs", "30"),
    "gan": _fit("gan", *_SMALL, "--epochs", "10"),
    "two ranks": _fit("vae", *_SMALL, "--epochs", "20", python=_TWO),
    "sweep of four": Job(_SWEEPING, _SWEEPING, 4),
    "evaluation and page": Job(_EVALUATING, _EVALUATING, 1, before=_WHOLE),
}
WRITERS = {
    "fit --resume": ("fit", "--resume", "run", "--epochs", "6"),
    "evaluate": ("evaluate", "run", "--num-samples", "60"),
    "evaluate --gaps": ("evaluate", "run", "--gaps", "--num-images", "2", "--num-samples", "50"),
    "fill": ("fill", "run", "--num-images", "4", "--num-samples", "20"),
    "splice": ("splice", "run", "--num-images", "10", "--num-samples", "20"),
    "calibrate": ("calibrate", "run", "--num-images", "30", "--num-samples", "30"),
    "quality": ("quality", "run", "--num-images", "30", "--classifier-steps", "10"),
    "sample": ("sample", "run", "--out", "samples.png"),
    "compare --report": ("compare", "run", "--report", "compared.html"),
}


def _start(arguments: Sequence[str], folder: Path, log: str) -> "subprocess.Popen[bytes]":
    """A process in a group of its own, which signals to this one do not reach."""
    with open(folder / log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=file, stderr=file, start_new_session=True
        )


def result(run: Path) -> Any:
    """What a run has come to, without times: weights, measurements, evaluation, pictures, and the names of its
    files."""
    directory = RunDirectory.open(run)
    content = directory.load_checkpoint()
    assert content is not None
    weights = {name: value.tolist() for name, value in content[0].items()}
    lines = [{key: value for key, value in line.items() if key != "seconds"} for line in directory.metrics()]
    evaluation = directory.read_json("evaluation.json") or {}
    evaluation.pop("seconds", None)
    page = run / "report.html"
    whole = page.exists() and page.read_text().rstrip().endswith("</html>")
    files = sorted(path for path in run.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = {path.name: sha256(path.read_bytes()).hexdigest() for path in files if path.suffix == ".png"}
    return json.dumps([weights, lines, evaluation, pictures, [path.name for path in files], whole], sort_keys=True)


@contextmanager
def _copy(made: Path) -> Iterator[Path]:
    """A folder with a copy of the run that is in another one, if there is a run."""
    with tempfile.TemporaryDirectory() as folder:
        if (made / "run").exists():
            shutil.copytree(made / "run", Path(folder) / "run")
        yield Path(folder)


def _make(arguments: Sequence[str], folder: Path) -> None:
    """Run a command that nothing kills."""
    if _start(arguments, folder, "whole.log").wait() != 0:
        raise SystemExit(f"{' '.join(arguments)}: {_last_line(folder / 'whole.log')}")


def _runs(folder: Path, number: int) -> list[Path]:
    run = folder / "run"
    return [run] if number == 1 else sorted(path.parent for path in run.glob("*/config.json"))


def kill(job: Job, sound: dict[str, Any], seconds: float, folder: Path) -> str:
    """Kill a job after some seconds, and let it go on. Returns "held" or what is wrong."""
    process = _start(job.begin, folder, "killed.log")
    time.sleep(seconds)
    for number in _family(process.pid):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()
    left = (folder / "run").exists()
    if (status := _start(job.again if left else job.begin, folder, "again.log").wait()) != 0:
        return f"status {status} after a kill at {seconds:.2f} s: {_last_line(folder / 'again.log')}"
    found = {path.name: result(path) for path in _runs(folder, job.number)}
    rest = sorted(path.name for path in folder.rglob("*") if ".tmp" in path.name)
    return "held" if found == sound and not rest else f"differs after a kill at {seconds:.2f} s; left: {rest}"


def _family(number: int) -> list[int]:
    """A process and all that it has started, and they in turn. torchrun starts its processes in groups of their own."""
    children = Path(f"/proc/{number}/task/{number}/children")
    found = children.read_text().split() if children.exists() else []
    return [number, *(each for child in found for each in _family(int(child)))]


def kills(names: Sequence[str], number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Each job, killed `number` times at moments that are spread over its time."""
    chance = random.Random(seed)
    for name in names:
        job = JOBS[name]
        with tempfile.TemporaryDirectory() as made:
            if job.before:
                _make(job.before, Path(made))
            with _copy(Path(made)) as folder:
                began = time.perf_counter()
                _make(job.begin, folder)
                taken = time.perf_counter() - began
                sound = {path.name: result(path) for path in _runs(folder, job.number)}
            for index in range(number):
                with _copy(Path(made)) as folder:
                    yield name, kill(job, sound, taken * (index + chance.random()) / number, folder)


def pair(names: Sequence[str], folder: Path) -> str:
    """Start two commands on the run of a folder at once. Returns "held", "held, one refused", or what is wrong."""
    started = [_start(["-m", *_module(WRITERS[name])], folder, f"{i}.log") for i, name in enumerate(names)]
    statuses = [process.wait() for process in started]
    texts = [(folder / f"{index}.log").read_text(errors="replace") for index in range(len(names))]
    for status, text, name in zip(statuses, texts, names, strict=True):
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        if "Traceback" in text or status not in (0, 2) or (status == 2) != (len(errors) == 1):
            return f"{name}: status {status}: {_last_line(folder / f'{names.index(name)}.log')}"
    for arguments in (("fit", "--resume", "run"), ("evaluate", "run"), ("compare", "run")):
        if _start(["-m", *_module(arguments)], folder, "after.log").wait() != 0:
            return f"after both, {arguments[0]}: {_last_line(folder / 'after.log')}"
    epochs = [line["epoch"] for line in RunDirectory.open(folder / "run").metrics()]
    if epochs != list(range(len(epochs))):
        return f"epochs {epochs}"
    return "held, one refused" if 2 in statuses else "held"


def _module(arguments: Sequence[str]) -> list[str]:
    return [f"ppl_gen.{arguments[0]}", *arguments[1:]]


def pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every two of the commands, at once."""
    with tempfile.TemporaryDirectory() as made:
        _make(_WHOLE, Path(made))
        for two in combinations_with_replacement(names, 2):
            with _copy(Path(made)) as folder:
                yield " + ".join(two), pair(two, folder)


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=list(JOBS), help="what is killed")
    parser.add_argument("--kills", type=int, default=20, help="kills of each job")
    parser.add_argument("--writers", nargs="*", choices=WRITERS, default=list(WRITERS), help="commands of the pairs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1"}
    for what, found in (("kills", kills(given.jobs, given.kills, given.seed)), ("pairs", pairs(given.writers))):
        counts: Counter[str] = Counter()
        for name, outcome in found:
            counts[outcome if outcome.startswith("held") else "LOST"] += 1
            if what == "pairs" or outcome != "held":
                print(f"  {name}: {outcome}", flush=True)
        print(f"{what}: {counts.total()} tried, " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
