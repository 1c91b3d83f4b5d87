"""`python -m ppl_gen.splice RUN`: Tell spliced images from natural ones by log p(x)."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ppl_gen.core import cli
from ppl_gen.evaluation.splicing import SpliceOptions
from ppl_gen.experiment.fitted import Named
from ppl_gen.run import Run


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[SpliceOptions, tyro.conf.arg(name="")] = field(default_factory=SpliceOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    about = "Does log p(x) tell spliced digits from natural ones?"
    given = cli.parse(Command, arguments, "python -m ppl_gen.splice", about)
    options = given.options
    run = Run.open(given.run, **asdict(given.named), checkpoint=options.checkpoint, device=options.device)
    print(run.splice(options))
    print(f"written to {run.path / 'splice.json'}, figures/spliced.png and figures/splice_power.png")


if __name__ == "__main__":
    cli.main(command)
