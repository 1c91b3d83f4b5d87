"""`python -m ppl_gen.fit MODEL`: Train a model and a guide, evaluate them, draw pictures; or resume a run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.experiment.arguments import PROGRAM, Named, parse
from ppl_gen.experiment.run_directory import RunDirectory


@dataclass(frozen=True)
class ResumeCommand:
    resume: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    epochs: int | None = None
    """Number of epochs to train to, more than the run has. A schedule of the learning rate goes on as one over all of
    these epochs."""
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)
    objective: str | None = None
    """file.py:Class of the objective, if the run was trained with your own."""
    estimator: tuple[str, ...] = ()
    """file.py:NAME of the estimators, if the run was fitted with your own."""


def command(arguments: list[str]) -> None:
    if any(argument.partition("=")[0] == "--resume" for argument in arguments):
        rest = ["--model", *arguments] if not arguments[0].startswith("-") else arguments
        about = "Continue an interrupted run with its own options, or train a finished one for longer with --epochs."
        resumed = cli.parse(ResumeCommand, rest, f"{PROGRAM} --resume RUN", about)
        RunDirectory.open(resumed.resume)  # for its errors: they come at once, before torch is imported
        again = {**asdict(resumed.named), "objective": resumed.objective, "estimator": resumed.estimator}
        run = ppl_gen.Run.open(resumed.resume, **again).resume(resumed.epochs)
    else:
        config, options = parse(arguments)
        if options.dry_run:
            print(ppl_gen.Run.dry_run(config))
            return
        run = ppl_gen.Run.start(config, out=options.out)
    if run.directory.writes:
        written = f"pictures are in {run.path / 'figures'}; the page with all results is {run.path / 'report.html'}"
        print(f"\n{run.evaluation}\n\n{written}")
    from ppl_gen.core import parallel  # torch, which a word that is mistyped does without

    parallel.leave()


if __name__ == "__main__":
    cli.main(command, distributed=True)
