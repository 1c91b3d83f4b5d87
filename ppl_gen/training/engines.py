"""Where the runs of a sweep run: processes of this machine, jobs of a Slurm cluster, or tasks of a Ray cluster.

An engine starts runs and says how each has ended. submitit and Ray are optional, and are imported only where they are
used. A job of a cluster is the process of its run, and starts no other: a signal reaches it once.
"""

import ast
import io
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ppl_gen.core.errors import BadInput
from ppl_gen.core.files import opened, read_bytes, readable_errors
from ppl_gen.core.paths import exists

EngineName = Literal["local", "slurm", "ray"]
_NEEDED = {"slurm": "submitit", "ray": "ray"}
_CLUSTER = "slurm"
"""The executor of submitit."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TOGETHER = 1000
"""Most jobs of an array at a time. A cluster's own limit, MaxArraySize, is 1001 by default."""


class Fit(NamedTuple):
    """A run to start or to continue."""

    path: Path
    arguments: list[str]
    """Arguments of `fit` that start the run."""
    again: list[str]
    """Arguments of `fit` that continue it, once its directory exists."""

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def words(self) -> list[str]:
        """The arguments of `fit` now."""
        return self.again if exists(self.path) else self.arguments


class Job(Protocol):
    """A run that an engine has started."""

    def ended(self) -> str | None:
        """None while it waits or runs, an empty string if it has succeeded, else the reason why it has not."""


class Engine(Protocol):
    """Something that runs the runs of a sweep."""

    threads: int
    """Threads of each run."""
    pause: float
    """Seconds between two looks at the jobs."""
    queues: bool
    """True if jobs may wait for their turn, so that the time since a start is not that of the run."""

    def start(self, fits: Sequence[Fit]) -> Sequence[Job]:
        """Start runs. Raises `BadInput` if they are refused."""

    def interrupt(self, jobs: Sequence[Any]) -> None:
        """Let jobs write their checkpoints and end; those that wait never start."""


def check_engine(name: EngineName) -> None:
    """Raise `BadInput` if an engine cannot be used here: its library is missing, or Slurm is."""
    if name in _NEEDED and find_spec(_NEEDED[name]) is None:
        raise BadInput(f"--engine {name}: needs {_NEEDED[name]}; install it: pip install 'ppl_gen[{name}]'")
    if name == "slurm" and shutil.which("sbatch") is None:
        raise BadInput("--engine slurm: there is no sbatch on this machine; run the sweep where jobs are submitted")


def resources_of(words: Sequence[str]) -> dict[str, Any]:
    """Resources by name, from words of the command line.

    >>> resources_of(["cpus_per_task=2", "slurm_partition=long"])
    {'cpus_per_task': 2, 'slurm_partition': 'long'}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"--resources {word}: must have the form NAME=VALUE, such as cpus_per_task=2")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    lines = read_bytes(log).decode(errors="replace").split("\n") if exists(log) else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _log_of(fit: Fit) -> Any:
    with readable_errors(fit.log):
        return opened(fit.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


# Processes -----------------------------------------------------------------------------------------------------


class _Process(NamedTuple):
    fit: Fit
    process: "subprocess.Popen[bytes]"

    def ended(self) -> str | None:
        status = self.process.poll()
        if not status:
            return None if status is None else ""
        last = last_line(self.fit.log)
        return f"killed by signal {-status}; its last line: {last}" if status < 0 else last


class Processes:
    """Processes of this machine.

    :param lock: the file descriptor from `sweeping.locked`. The processes hold it, too.
    """

    pause, queues = 0.1, False

    def __init__(self, threads: int, lock: int):
        self.threads, self._lock = threads, lock

    def start(self, fits: Sequence[Fit]) -> list[_Process]:
        return [_Process(fit, self._start(fit)) for fit in fits]

    def _start(self, fit: Fit) -> "subprocess.Popen[bytes]":
        environment = dict.fromkeys(_THREADS, str(self.threads)) | {"PYTHONUNBUFFERED": "1"}
        with _log_of(fit) as log:
            return subprocess.Popen(
                [sys.executable, "-m", "ppl_gen.fit", *fit.words],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Otherwise the terminal's Ctrl-C would reach the process as well. The signal from here would be its
                # second one, which does not wait for a checkpoint.
                start_new_session=True,
                pass_fds=[self._lock],
            )

    def interrupt(self, jobs: Sequence[_Process]) -> None:
        for job in jobs:
            job.process.send_signal(signal.SIGTERM)  # Ctrl-C is ignored where a script runs the sweep in the background


# Jobs of a cluster ---------------------------------------------------------------------------------------------


def fit_here(fit: Fit, folder: Path) -> int:
    """Do what `python -m ppl_gen.fit` does, in this process, which does nothing else. Returns the exit status.

    :param folder: the working directory of the sweep.
    """
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a script runs the sweep in the background
    sys.argv = ["fit", *fit.words]
    log = io.TextIOWrapper(_log_of(fit), encoding="utf-8", line_buffering=True)
    with log, redirect_stdout(log), redirect_stderr(log):
        try:
            runpy.run_module("ppl_gen.fit", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return int(end.code or 0)
        except Exception:
            traceback.print_exc()
    return 1


class _InSlurm:
    """What a job of Slurm calls. SIGINT from the sweep lets the run write its checkpoint and ends the job. SIGUSR2,
    which Slurm sends before it preempts a job or its time is over, does so, too, and puts the job back in the queue:
    the run continues there. SIGTERM may come before it."""

    def __init__(self, fit: Fit):
        self.fit, self.folder = fit, Path.cwd()

    def __call__(self) -> int:
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # of submitit
        preempted = []

        def stop(*_: object) -> None:
            preempted.append(True)
            signal.raise_signal(signal.SIGINT)

        signal.signal(signal.SIGUSR2, stop)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status = fit_here(self.fit, self.folder)
        if status and preempted:
            requeue(signal.SIGUSR2, None)
        return status

    def checkpoint(self) -> Any:
        """What the job calls when it has been put back. submitit asks for it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _SlurmJob(NamedTuple):
    fit: Fit
    job: Any

    def ended(self) -> str | None:
        if not self.job.done():
            return None
        if exists(self.job.paths.result_pickle) or self.job.state == "COMPLETED":
            with suppress(Exception):  # submitit's, if the job has raised one, or has left no result
                return "" if self.job.result() == 0 else last_line(self.fit.log)
        return (
            f"job {self.job.job_id} has ended as {self.job.state}; see {self.job.paths.stderr}; the last line of its "
            f"log: {last_line(self.fit.log)}"
        )


class Slurm:
    """Jobs of a Slurm cluster, by submitit. Runs that are started together are one array of jobs.

    :param out: the directory of the sweep; `.jobs` in it has what submitit writes.
    :param resources: parameters of `submitit.AutoExecutor.update_parameters`.
    """

    pause, queues = 5.0, True

    def __init__(self, out: Path, resources: dict[str, Any]):
        import submitit

        resources = dict[str, Any](cpus_per_task=1, timeout_min=24 * 60, name=out.name) | resources
        self.threads = resources["cpus_per_task"]
        python = shlex.join(["env", *(f"{name}={self.threads}" for name in _THREADS), sys.executable])
        # Of the executor for Slurm, and of the one for processes of this machine, which tests use.
        self._executor = submitit.AutoExecutor(out / ".jobs", _CLUSTER, slurm_python=python, local_python=python)
        try:
            self._executor.update_parameters(slurm_array_parallelism=TOGETHER, **resources)
        except Exception as error:
            raise BadInput(f"--resources: {_first_line(error)}") from None

    def start(self, fits: Sequence[Fit]) -> list[_SlurmJob]:
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(_InSlurm(fit)) for fit in fits]
        except Exception as error:
            raise BadInput(
                f"--engine slurm: the jobs were refused: {_first_line(error)}; --jobs limits their number"
            ) from None
        return [_SlurmJob(*each) for each in zip(fits, jobs, strict=True)]

    def interrupt(self, jobs: Sequence[_SlurmJob]) -> None:
        arrays = sorted({each.job.job_id.partition("_")[0] for each in jobs})
        for which in ("--state=PENDING", "--signal=INT"):  # without a signal, running jobs would get several
            subprocess.run(["scancel", which, *arrays], check=False, capture_output=True)
        jobs[0].job.watcher.clear()  # it asks seldom about jobs that have been there for long


class _RayTask(NamedTuple):
    fit: Fit
    task: Any

    def ended(self) -> str | None:
        import ray

        if not ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            return "" if ray.get(self.task) == 0 else last_line(self.fit.log)
        except Exception as error:  # the worker was killed, or its machine has failed
            return f"{type(error).__name__}; the last line of its log: {last_line(self.fit.log)}"


class Ray:
    """Tasks of the Ray cluster that the variable RAY_ADDRESS names; without it, of this machine.

    :param resources: options of `ray.remote`.
    """

    pause, queues = 1.0, True

    def __init__(self, resources: dict[str, Any]):
        import ray

        resources = dict[str, Any](num_cpus=1) | resources
        self.threads = max(1, int(resources["num_cpus"]))
        variables = dict.fromkeys(_THREADS, str(self.threads))
        try:
            # A worker ends with its task: what a fit has changed in it is not there for the next one.
            once = ray.remote(max_calls=1, max_retries=0, runtime_env={"env_vars": variables}, **resources)
            self._fit = once(fit_here)
        except Exception as error:
            raise BadInput(f"--resources: {_first_line(error)}") from None
        try:
            ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except Exception as error:
            raise BadInput(f"--engine ray: {_first_line(error)}") from None

    def start(self, fits: Sequence[Fit]) -> list[_RayTask]:
        return [_RayTask(fit, self._fit.remote(fit, Path.cwd())) for fit in fits]

    def interrupt(self, jobs: Sequence[_RayTask]) -> None:
        import ray

        for job in jobs:
            ray.cancel(job.task)
