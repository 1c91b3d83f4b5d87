"""Runs of every guide with every objective, every value of an option and every seed.

Each run is a `ppl_gen.fit` process of its own. Finished runs are skipped, and interrupted ones are continued, so that
the same command picks up where it stopped.
"""

import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from ppl_gen.core.commands import words
from ppl_gen.core.components import kebab_case
from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.files import opened, read_bytes, readable_errors
from ppl_gen.core.interrupts import AGAIN, interrupts
from ppl_gen.core.options import text
from ppl_gen.core.paths import exists
from ppl_gen.experiment.arguments import parse
from ppl_gen.experiment.config import Config, Given, check_same
from ppl_gen.experiment.run_directory import RunDirectory, check_folder, check_new

PROGRAM = "python -m ppl_gen.sweep"
_OWN = (
    "--guide",
    "--refit-guide",
    "--objective",
    "--prior",
    "--seed",
    "--out",
    "--model",
    "--resume",
    "--dry-run",
    "--no-dry-run",
)
"""Options of `fit` that a sweep sets itself, or that make no run."""


@dataclass(frozen=True)
class SweepOptions:
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Model, as for fit: a name, or file.py:Class."""
    out: Path
    """Directory for the run directories and their logs."""
    guides: tuple[str, ...] | None = None
    """Guides: names, such as normal; or flow,transform=iaf, with an option of the guide; or file.py:Class. By default
    the model's own guide."""
    objectives: tuple[str, ...] | None = None
    """Objectives: names, or file.py:Class. :K sets the number of particles, as in vimco:50; after a comma are options
    of the objective, as in miwae:8,groups=4. By default the model's own objective."""
    priors: tuple[str, ...] = ()
    """Priors: names, or file.py:Class. By default the model's own prior."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option of fit and its values, as in learning-rate 1e-3 3e-3. Give --vary once for each option; every
    combination is run."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights, the order of the images and the noise."""
    jobs: int | None = None
    """Number of runs at a time. They share the cores. By default as many as there are cores."""

    def __post_init__(self) -> None:
        for name in ("guides", "objectives", "seeds"):
            require(getattr(self, name) is None or len(getattr(self, name)) > 0, name, "", "needs at least one")
        for name, *values in self.vary:
            require(len(values) > 0, "vary", name, "needs at least one value")
        require(self.jobs is None or self.jobs >= 1, "jobs", self.jobs, "must be at least 1")


class Planned(NamedTuple):
    """A run of the sweep."""

    path: Path
    config: Config
    arguments: list[str]
    """Arguments of `fit` that start the run."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.name}.log")


def plan(options: SweepOptions, rest: Sequence[str]) -> list[Planned]:
    """The runs of a sweep, in order.

    :param rest: options of `fit` for all runs.
    :raises BadInput: for options that `fit` cannot read, and for options that the sweep sets itself.
    """
    _check_shared(options, rest)
    check_folder(options.out)
    planned: dict[str, Planned] = {}
    varied = [[(name, value) for value in values] for name, *values in options.vary]
    parts = [options.guides or (None,), options.priors or (None,), options.objectives or (None,)]
    for (guide, prior, objective), values in itertools.product(itertools.product(*parts), itertools.product(*varied)):
        chosen, label = _chosen(guide, prior, objective, values)
        config, _ = parse([options.model, *chosen, *rest])
        label = label or [config.guide, config.training.objective]
        for seed in options.seeds:
            named = [options.model, *label, str(seed)]
            name = "-".join(kebab_case(word.rpartition(":")[2]) for word in named)
            if name in planned:
                raise BadInput(
                    f"two runs would have the name {name}; give every guide, objective, prior and seed only once"
                )
            path = options.out / name
            arguments = [options.model, *chosen, "--seed", str(seed), "--out", str(path), *rest]
            planned[name] = Planned(path, replace(config, training=replace(config.training, seed=seed)), arguments)
    return list(planned.values())


def with_options(kind: str, given: str, example: str) -> tuple[str, list[str]]:
    """The name and the options in `flow,transform=iaf`."""
    name, *options = given.split(",")
    if not all("=" in option for option in options):
        raise BadInput(f"--{kind}s {given}: after the comma give options of the {kind}, as in {example}")
    return name, options


def with_particles(objective: str) -> tuple[str, str]:
    """The name and the number of particles in `vimco:50`, without options. The number is empty if there is none. The
    text after the colon of `file.py:Class` is no number of particles."""
    name, colon, particles = objective.rpartition(":")
    if not colon or name.endswith(".py") or ("." in name and not particles.isdigit()):
        return objective, ""
    return name, particles


def _check_shared(options: SweepOptions, rest: Sequence[str]) -> None:
    """Raise `BadInput` if an option after -- is one that the sweep sets itself."""
    own = {f"--{name.replace('_', '-')}" for name, *_ in options.vary}
    named = [each.partition(",")[0] for each in options.objectives or ()]
    particles = {"--num-particles"} if any(with_particles(name)[1] for name in named) else set()
    for argument in rest:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in {*_OWN, *own, *particles}:
            raise BadInput(f"{flag}: the sweep sets this option itself; leave it out after --")
    for flag in sorted(own & {*_OWN, *particles}):
        raise BadInput(
            f"--vary {flag.removeprefix('--')}: use the sweep's own option for it, such as --guides or --seeds"
        )


def _chosen(
    guide: str | None, prior: str | None, objective: str | None, varied: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """The options of `fit` for one combination, and the words of its name."""
    chosen: list[str] = []
    label: list[str] = []
    if guide is not None:
        name, options = with_options("guide", guide, "flow,transform=iaf")
        chosen += ["--guide", name, *(f"--guide.{option}" for option in options)]
        label += [name, *(option.partition("=")[2] for option in options)]
    if prior is not None:
        chosen += ["--prior", prior]
        label.append(prior)
    if objective is not None:
        named, options = with_options("objective", objective, "miwae:8,groups=4")
        name, particles = with_particles(named)
        chosen += ["--objective", name, *(["--num-particles", particles] if particles else [])]
        chosen += [f"--objective.{option}" for option in options]
        label += [name, *([particles] if particles else []), *(option.partition("=")[2] for option in options)]
    for name, value in varied:
        chosen += [f"--{name}", value]
        label += [name, text(value)]
    return chosen, label


def remaining(planned: Sequence[Planned]) -> list[Planned]:
    """The unfinished runs, each with the arguments of `fit` that start or continue it.

    :raises BadInput: for an existing directory that is no run, or is a run with other options.
    """
    found = []
    for run in planned:
        if not exists(run.path, "--out"):
            check_new(run.path)
            found.append(run)
            continue
        there = RunDirectory.open(run.path)
        check_same(there, run.config, Given(**run.config.externals()))
        evaluation = there.find_json("evaluation.json")
        done = evaluation is not None and not there.stale(evaluation) and there.finished(run.config.training.epochs)
        if not (done and exists(there.path / "report.html")):  # the page is written last
            again = ["--resume", str(run.path), *words(run.config.externals())]
            found.append(run._replace(arguments=again))
    return found


def check_first(planned: Sequence[Planned]) -> None:
    """Build model, guide, objective and data of a run, before the first run of a sweep starts. If a run fails, the next
    one is tried: an option that all runs have in common fails in all of them.

    :raises BadInput: if no run of the sweep can be built, with the error of the first.
    """
    from ppl_gen.data.loading import load_data  # torch, which --help does without
    from ppl_gen.experiment.fitted import Assembled, resolve_device

    error: BadInput | None = None
    for run in planned:
        if exists(run.path, "--out") or run.config.training.seed != planned[0].config.training.seed:
            continue
        try:
            resolve_device(run.config.training.device)
            given = Given(**run.config.externals())
            data = load_data(run.config.data, given.data)
            assembled = Assembled.make(run.config, data, given)
            _ = assembled.pair, assembled.objective  # made when they are first used
            return
        except BadInput as failed:
            error = error or failed
    if error is not None:
        raise error


# Running -------------------------------------------------------------------------------------------------------


class _Running(NamedTuple):
    planned: Planned
    process: "subprocess.Popen[bytes]"
    start: float


def run(todo: Sequence[Planned], jobs: int, threads: int, lock: int) -> dict[str, str]:
    """Run the processes of `fit`, with a line on standard error when each starts and ends.

    :param jobs: number of processes at a time.
    :param threads: threads of each process.
    :param lock: the file descriptor from `locked`. The processes hold it, too.
    :returns: the reason of each failed run, by name.
    :raises KeyboardInterrupt: after an interrupt, when all processes have written their checkpoints.
    """
    waiting, running = list(todo), list[_Running]()
    failures: dict[str, str] = {}
    seconds: list[float] = []
    stopping = False
    with interrupts() as interrupted:
        try:
            while running or (waiting and not stopping):
                if interrupted.is_set() and not stopping:
                    stopping = True
                    say(f"interrupted: waiting for {len(running)} runs to write their checkpoints")
                    _interrupt(running)
                while waiting and len(running) < jobs and not stopping:
                    running.append(_start(waiting.pop(0), threads, lock))
                for child in [child for child in running if child.process.poll() is not None]:
                    running.remove(child)
                    name, took = child.planned.name, time.perf_counter() - child.start
                    left = len(waiting) + len(running)
                    if child.process.returncode == 0:
                        seconds.append(took)
                        rest = f", about {_duration(sum(seconds) / len(seconds) * left / jobs)}" if left else ""
                        say(f"done      {name} in {_duration(took)}; {left} left{rest}")
                    elif not stopping:
                        failures[name] = _last_line(child.planned, child.process.returncode)
                        say(f"failed    {name} after {_duration(took)}; {left} left")
                time.sleep(0.1)
        finally:  # a second interrupt ends up here with processes running, and is passed on to them
            _interrupt(running)
            for child in running:
                child.process.wait()
    if stopping:
        raise KeyboardInterrupt(AGAIN)
    return failures


def _start(planned: Planned, threads: int, lock: int) -> _Running:
    environment = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    say(f"{'continue' if exists(planned.path) else 'start':<10}{planned.name}")
    with readable_errors(planned.log):
        log = opened(planned.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ppl_gen.fit", *planned.arguments],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Otherwise the terminal's Ctrl-C would reach the process as well. The signal from here would be its second
            # one, which does not wait for a checkpoint.
            start_new_session=True,
            pass_fds=[lock],
        )
    return _Running(planned, process, time.perf_counter())


def locked(out: Path) -> int:
    """Make a directory if it does not exist, and lock it. It stays locked while any process holds the returned file
    descriptor: this process, and the runs that it starts, which may outlive it.

    :raises BadInput: if it cannot be written, or another process holds the lock.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A file, because a network file system locks no directory.
        lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(
            f"--out {out}: another sweep writes there, or a run of a killed sweep; wait for it, or end it"
        ) from None
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written: {error.strerror}") from None
    return lock


def _interrupt(running: Sequence[_Running]) -> None:
    for each in running:
        each.process.send_signal(signal.SIGTERM)  # Ctrl-C is ignored where a script runs the sweep in the background


def _last_line(planned: Planned, status: int) -> str:
    lines = read_bytes(planned.log).decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"killed by signal {-status}; its last line: {last}" if status < 0 else last


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
