"""`python -m ppl_gen.responsibilities RUN`: Say which component of a mixture explains which image."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ppl_gen.core import cli
from ppl_gen.evaluation.explaining import ResponsibilityOptions
from ppl_gen.experiment.fitted import Named
from ppl_gen.run import Run


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[ResponsibilityOptions, tyro.conf.arg(name="")] = field(default_factory=ResponsibilityOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    about = "Which component of a mixture explains which image, and what the labels say."
    given = cli.parse(Command, arguments, "python -m ppl_gen.responsibilities", about)
    options = given.options
    run = Run.open(given.run, **asdict(given.named), checkpoint=options.checkpoint, device=options.device)
    print(run.explain(options))
    print(f"written to {run.path / 'responsibilities.json'} and figures/")


if __name__ == "__main__":
    cli.main(command)
