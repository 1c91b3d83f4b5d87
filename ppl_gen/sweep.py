"""`python -m ppl_gen.sweep MODEL … -- FIT OPTIONS…`: Fit a model with every guide and objective, from every seed."""

import os
from pathlib import Path

from ppl_gen.core import cli
from ppl_gen.core.commands import command as words
from ppl_gen.core.commands import line
from ppl_gen.core.errors import Failed
from ppl_gen.core.paths import exists
from ppl_gen.training.sweeping import PROGRAM, SweepOptions, check_first, cores, locked, plan, remaining, run, say


def command(arguments: list[str]) -> None:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = cli.parse(
        SweepOptions,
        arguments[:cut],
        PROGRAM,
        "Fit a model with every guide and objective, from every seed. Options of fit after -- apply to all runs.",
    )
    planned = plan(options, arguments[cut + 1 :])
    todo = remaining(planned)
    if len(todo) == len(planned):
        check_first(planned)
    lock = locked(options.out)
    # As if none were finished: a run that is continued gets the threads that it began with, and the same numbers.
    jobs = min(options.jobs or cores(), len(planned))
    threads = max(1, cores() // jobs)
    begun = sum(exists(run.path) for run in todo)
    say(
        f"{len(planned)} runs: {len(planned) - len(todo)} already finished, {begun} to continue, {len(todo) - begun} "
        f"to start; {jobs} at a time, {threads} thread{'s' if threads > 1 else ''} each"
    )
    try:
        failures = run(todo, jobs, threads, lock)
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


def _comparison(out: Path) -> str:
    """The command that compares the runs of a sweep. The pattern matches directories, so it leaves out the logs beside
    them."""
    return f"{line(words('compare', out))}/*/"


if __name__ == "__main__":
    cli.main(command)
