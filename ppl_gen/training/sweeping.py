"""Runs of every guide with every objective, every value of an option and every seed.

Each run is a `ppl_gen.fit` process of its own. Finished runs are skipped, and interrupted ones are continued, so that
the same command picks up where it stopped.
"""

import fcntl
import itertools
import os
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
from ppl_gen.core.interrupts import AGAIN, interrupts
from ppl_gen.core.options import text
from ppl_gen.core.paths import exists
from ppl_gen.experiment.arguments import parse
from ppl_gen.experiment.config import Config, Given, check_same
from ppl_gen.experiment.run_directory import RunDirectory, check_folder, check_new
from ppl_gen.training.engines import TOGETHER, Engine, EngineName, Fit, Job, resources_of

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
    of the objective, as in miwae:8,groups=4 or nvil,normalize=True. By default the model's own objective."""
    priors: tuple[str, ...] = ()
    """Priors: names, or file.py:Class. By default the model's own prior."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option of fit and its values, as in learning-rate 1e-3 3e-3. An option that is on or off has the values True
    and False. Give --vary once for each option; every combination is run."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights, the order of the images and the noise."""
    jobs: int | None = None
    """Number of runs at a time. On this machine they share the cores, and there are as many as cores by default. On a
    cluster all runs are submitted by default."""
    engine: EngineName = "local"
    """Where the runs are done. local: processes of this machine. slurm: jobs of a Slurm cluster, by submitit. ray:
    tasks of the Ray cluster that RAY_ADDRESS names."""
    resources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE …")] = ()
    """Resources of each run on a cluster: cpus_per_task=2 timeout_min=240 slurm_partition=long for Slurm, or num_cpus=2
    num_gpus=1 for Ray."""

    def __post_init__(self) -> None:
        for name in ("guides", "objectives", "seeds"):
            require(getattr(self, name) is None or len(getattr(self, name)) > 0, name, "", "needs at least one")
        for name, *values in self.vary:
            require(len(values) > 0, "vary", name, "needs at least one value")
        require(self.jobs is None or self.jobs >= 1, "jobs", self.jobs, "must be at least 1")
        if self.resources and self.engine == "local":
            raise BadInput("--resources: processes of this machine take none; choose --engine slurm or ray")
        resources_of(self.resources)  # for its errors


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
    def again(self) -> list[str]:
        """Arguments of `fit` that continue the run."""
        return ["--resume", str(self.path), *words(self.config.externals())]


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
        _check_once(chosen, rest)
        config, _ = parse([options.model, *chosen, *rest])
        label = label or [config.guide, config.training.objective]
        for seed in options.seeds:
            named = [options.model, *label, str(seed)]
            # A value may be a path.
            name = "-".join(kebab_case(word.rpartition(":")[2].strip("/").replace("/", "-")) for word in named)
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
    """Raise `BadInput` for an option that a sweep sets by an option of its own."""
    for flag in map(_flag, rest):
        if flag in _OWN:
            raise BadInput(f"{flag}: the sweep sets this option itself; leave it out after --")
    for name, *_ in options.vary:
        if _flag(f"--{name}") in _OWN:
            raise BadInput(f"--vary {name}: use the sweep's own option for it, such as --guides or --seeds")


def _check_once(chosen: Sequence[str], rest: Sequence[str]) -> None:
    """Raise `BadInput` if an option of a run is given twice: the last one would count, whatever the run's name says."""
    flags = [_flag(word) for word in chosen if word.startswith("--")]
    for flag in flags:
        if flags.count(flag) > 1:
            raise BadInput(f"{flag}: the sweep sets this option twice; give it once, with all its values")
        if flag in map(_flag, rest):
            raise BadInput(f"{flag}: the sweep sets this option itself; leave it out after --")


def _flag(word: str) -> str:
    """The option that a word of the command line sets: `--objective.baseline` for `--objective.no-baseline`."""
    of, dot, name = word.partition("=")[0].replace("_", "-").removeprefix("--").rpartition(".")
    return f"--{of}{dot}{name.removeprefix('no-')}" if word.startswith("--") else word


def _chosen(
    guide: str | None, prior: str | None, objective: str | None, varied: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str]]:
    """The options of `fit` for one combination, and the words of its name."""
    chosen: list[str] = []
    label: list[str] = []
    if guide is not None:
        name, options = with_options("guide", guide, "flow,transform=iaf")
        chosen += ["--guide", name]
        label.append(name)
        _add(chosen, label, "guide", options)
    if prior is not None:
        chosen += ["--prior", prior]
        label.append(prior)
    if objective is not None:
        named, options = with_options("objective", objective, "miwae:8,groups=4")
        name, particles = with_particles(named)
        chosen += ["--objective", name, *(["--num-particles", particles] if particles else [])]
        label += [name, *([particles] if particles else [])]
        _add(chosen, label, "objective", options)
    for name, value in varied:
        chosen.append(as_word(name, value))
        label += [name, text(value)]
    return chosen, label


def _add(chosen: list[str], label: list[str], kind: str, options: Sequence[str]) -> None:
    """Add options such as `transform=iaf` of a guide or an objective. The name of a run has their values, or the name
    of an option that is on or off."""
    for option in options:
        name, _, value = option.partition("=")
        word = as_word(f"{kind}.{name}", value)
        chosen.append(word)
        label.append(value if "=" in word else word.rpartition(".")[2])


def as_word(option: str, value: str) -> str:
    """An option of `fit` and its value. An option that is on or off has no value.

    >>> as_word("objective.backward", "8"), as_word("objective.baseline", "False")
    ('--objective.backward=8', '--objective.no-baseline')
    """
    if value not in ("True", "False"):
        return f"--{option}={value}"
    of, dot, name = option.rpartition(".")
    return f"--{of}{dot}{'' if value == 'True' else 'no-'}{name}"


def remaining(planned: Sequence[Planned]) -> list[Planned]:
    """The unfinished runs.

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
            found.append(run)
    return found


def check_first(planned: Sequence[Planned]) -> None:
    """Build model, guide, objective and data of a run, before the first run of a sweep starts. If a run fails, the next
    one is tried: an option that all runs have in common fails in all of them.

    :raises BadInput: if no run of the sweep can be built, with the error of the first.
    """
    from ppl_gen.data.loading import load_data  # torch, which --help does without
    from ppl_gen.experiment.fitted import Assembled, resolve_device
    from ppl_gen.training.hooks import hooks_of

    error: BadInput | None = None
    for run in planned:
        if exists(run.path, "--out") or run.config.training.seed != planned[0].config.training.seed:
            continue
        try:
            resolve_device(run.config.training.device)
            hooks_of(run.config.training)  # for its errors alone
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
    job: Job
    start: float


def run(todo: Sequence[Planned], jobs: int, engine: Engine) -> dict[str, str]:
    """Run the runs on an engine, with a line on standard error when each starts and ends.

    :param jobs: number of runs at a time.
    :returns: the reason of each failed run, by name.
    :raises KeyboardInterrupt: after an interrupt, when all runs have written their checkpoints.
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
                    engine.interrupt([child.job for child in running])
                if waiting and len(running) < jobs and not stopping:
                    running += _start(engine, waiting, min(jobs - len(running), TOGETHER))
                for child, reason in [(child, child.job.ended()) for child in running]:
                    if reason is None:
                        continue
                    running.remove(child)
                    now, left, name = time.perf_counter(), len(waiting) + len(running), child.planned.name
                    took = _duration(now - child.start)
                    if not reason:
                        seconds.append(now - child.start)
                        said, rest = f"in {took}", f", about {_duration(sum(seconds) / len(seconds) * left / jobs)}"
                        if engine.queues:  # for how long, the others decide who use the cluster
                            said, rest = f"{took} after its submission", ""
                        say(f"done      {name} {said}; {left} left{rest if left else ''}")
                    elif not stopping:
                        failures[name] = reason
                        say(f"failed    {name} after {took}; {left} left")
                time.sleep(engine.pause)
        finally:  # a second interrupt ends up here with runs at work, and is passed on to them
            if running:
                engine.interrupt([child.job for child in running])
            while any(child.job.ended() is None for child in running):
                time.sleep(engine.pause)
    if stopping:
        raise KeyboardInterrupt(AGAIN)
    return failures


def _start(engine: Engine, waiting: list[Planned], count: int) -> list[_Running]:
    """Start the first of the waiting runs, which wait no longer."""
    some = waiting[:count]
    del waiting[:count]
    if engine.queues:
        say(f"submit    {len(some):,} run{'s' if len(some) > 1 else ''}, from {some[0].name}")
    else:
        for each in some:
            say(f"{'continue' if exists(each.path) else 'start':<10}{each.name}")
    jobs = engine.start([Fit(each.path, each.arguments, each.again) for each in some])
    return [_Running(*each, time.perf_counter()) for each in zip(some, jobs, strict=True)]


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
