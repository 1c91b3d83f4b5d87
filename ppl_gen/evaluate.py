"""`python -m ppl_gen.evaluate RUN`: the bound against log p(x)."""

from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ppl_gen.core import cli, parallel
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.fitted import Named
from ppl_gen.run import Run


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[EvaluationOptions, tyro.conf.arg(name="")] = field(default_factory=EvaluationOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    about = "ELBO, IWAE bounds and log p(x) of a run."
    given = cli.parse(Command, arguments, "python -m ppl_gen.evaluate", about)
    options = given.options
    parallel.join()
    run = Run.open(given.run, **asdict(given.named), checkpoint=options.checkpoint, device=options.device)
    run.directory.writes = parallel.rank() == 0
    if options.gaps:
        if parallel.world_size() > 1:
            raise BadInput("--gaps: takes one process")
        print(run.split_gap(options))
        print(f"written to {run.path / 'gaps.json'}")
        return
    before: dict[str, Any] | None = None
    with suppress(BadInput):  # a damaged one is replaced as well
        before = run.directory.read_json("evaluation.json")
    evaluation = run.evaluate(options, quiet=not run.directory.writes)
    parallel.leave()
    if run.directory.writes:
        print(evaluation)
        of = "" if before is None else f"{before.get('num_images')} {before.get('split')} images"
        replaced = f", in the place of one of {of}" if of else ""
        print(f"written to {run.path / 'evaluation.json'} and evaluation.nc{replaced}")


if __name__ == "__main__":
    cli.main(command, distributed=True)
