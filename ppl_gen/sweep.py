"""`python -m ppl_gen.sweep MODEL … -- FIT OPTIONS…`: Fit a model with every guide and objective, from every seed."""

import os
from pathlib import Path

from ppl_gen.core import cli
from ppl_gen.core.commands import command as words
from ppl_gen.core.commands import line
from ppl_gen.core.errors import Failed
from ppl_gen.core.paths import exists
from ppl_gen.training.engines import Engine, Processes, Ray, Slurm, check_engine, resources_of
from ppl_gen.training.sweeping import PROGRAM, SweepOptions, check_first, cores, locked, plan, remaining, run, say


def command(arguments: list[str]) -> None:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = cli.parse(
        SweepOptions,
        arguments[:cut],
        PROGRAM,
        "Fit a model with every guide and objective, from every seed. Options of fit after -- apply to all runs.",
    )
    check_engine(options.engine)
    planned = plan(options, arguments[cut + 1 :])
    todo = remaining(planned)
    if len(todo) == len(planned):
        check_first(planned)
    lock = locked(options.out)
    begun = sum(exists(run.path) for run in todo)
    try:
        engine, jobs = _engine(options, len(planned), lock)
        threads = engine.threads
        say(
            f"{len(planned)} runs: {len(planned) - len(todo)} already finished, {begun} to continue, "
            f"{len(todo) - begun} to start; {jobs} at a time, {threads} thread{'s' if threads > 1 else ''} each"
        )
        failures = run(todo, jobs, engine)
    finally:
        os.close(lock)
    for name, how in failures.items():
        say(f"{name}: {how}")
    if failures:
        raise Failed(
            f"{len(failures)} of {len(planned)} runs failed; their logs are {options.out}/<name>.log; run the same "
            "command to try them again"
        )
    print(f"all {len(planned)} runs are finished; compare them: {_comparison(options.out)}")


def _engine(options: SweepOptions, runs: int, lock: int) -> tuple[Engine, int]:
    """The engine of a sweep, and the number of runs at a time."""
    resources = resources_of(options.resources)
    if options.engine == "slurm":
        return Slurm(options.out, resources), options.jobs or runs
    if options.engine == "ray":
        return Ray(resources), options.jobs or runs
    # As if none were finished: a run that is continued gets the threads that it began with, and the same numbers.
    jobs = min(options.jobs or cores(), runs)
    return Processes(max(1, cores() // jobs), lock), jobs


def _comparison(out: Path) -> str:
    """The command that compares the runs of a sweep. The pattern matches directories, so it leaves out the logs beside
    them."""
    return f"{line(words('compare', out))}/*/"


if __name__ == "__main__":
    cli.main(command)
