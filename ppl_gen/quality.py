"""`python -m ppl_gen.quality RUN [RUN …]`: Score samples by a classifier of the same images."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.quality import QualityOptions
from ppl_gen.experiment.fitted import Named
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.run import Run


@dataclass(frozen=True)
class Command:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")] = ()
    """Run directories; those of the same images share one classifier."""
    options: Annotated[QualityOptions, tyro.conf.arg(name="")] = field(default_factory=QualityOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    about = "How samples look to a classifier of the same images."
    given = cli.parse(Command, arguments, "python -m ppl_gen.quality", about)
    if not given.runs:
        raise BadInput("name at least one run: python -m ppl_gen.quality RUN")
    options, runs = given.options, []
    for path in given.runs:
        named = given.named.restricted(RunDirectory.open(path))
        runs.append(Run.open(path, **asdict(named), checkpoint=options.checkpoint, device=options.device))
    for run, found in zip(runs, Run.quality_of(runs, options), strict=True):
        print(found)
        print(f"written to {run.path / 'quality.json'}, figures/sample_classes.png and figures/neighbours.png")


if __name__ == "__main__":
    cli.main(command)
