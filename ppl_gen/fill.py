"""`python -m ppl_gen.fill RUN`: Fill in the hidden pixels of images given their visible ones."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ppl_gen.core import cli
from ppl_gen.evaluation.filling import FillOptions
from ppl_gen.experiment.fitted import Named
from ppl_gen.run import Run


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[FillOptions, tyro.conf.arg(name="")] = field(default_factory=FillOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    about = "The hidden pixels of an image given its visible ones."
    given = cli.parse(Command, arguments, "python -m ppl_gen.fill", about)
    options = given.options
    run = Run.open(given.run, **asdict(given.named), checkpoint=options.checkpoint, device=options.device)
    print(run.fill(options))
    print(f"written to {run.path / 'fill.json'} and figures/fill.png")


if __name__ == "__main__":
    cli.main(command)
