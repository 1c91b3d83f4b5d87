"""`python -m ppl_gen.quality RUN [RUN …]`: Score samples by a classifier that was trained on the same images."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.use_options import QualityOptions
from ppl_gen.experiment.arguments import Named
from ppl_gen.experiment.run_directory import RunDirectory

ABOUT = "Score samples by a classifier that is trained on the same images as the model."


@dataclass(frozen=True)
class Command:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")] = ()
    """Run directories. Runs that were fitted to the same images share one classifier."""
    options: Annotated[QualityOptions, tyro.conf.arg(name="")] = field(default_factory=QualityOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    given = cli.parse(Command, arguments, "python -m ppl_gen.quality", ABOUT)
    if not given.runs:
        raise BadInput("name at least one run: python -m ppl_gen.quality RUN")
    options, runs = given.options, []
    for path in given.runs:
        named = given.named.restricted(RunDirectory.open(path))
        runs.append(ppl_gen.Run.open(path, **asdict(named), checkpoint=options.checkpoint, device=options.device))
    for run, found in zip(runs, ppl_gen.Run.quality_of(runs, options), strict=True):
        print(found)
        print(f"written to {run.path / 'quality.json'}, figures/sample_classes.png and figures/neighbours.png")


if __name__ == "__main__":
    cli.main(command)
