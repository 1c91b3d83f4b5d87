"""`python -m ppl_gen.evaluate RUN`: the bound against log p(x)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import nn

from ppl_gen import cli, parallel
from ppl_gen.data import Data
from ppl_gen.errors import BadInput
from ppl_gen.evaluation import estimating
from ppl_gen.evaluation.evaluation import Evaluation
from ppl_gen.evaluation.fitted import Fitted
from ppl_gen.evaluation.gap_split import split_gap
from ppl_gen.evaluation.gap_table import gap_table
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.evaluation.proposal_runs import other_guides
from ppl_gen.loading import Config, Named, open_fitted
from ppl_gen.report import write_report
from ppl_gen.runs import Run


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[EvaluationOptions, tyro.conf.arg(name="")] = field(default_factory=EvaluationOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def evaluate(
    run: Run,
    config: Config,
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    options: EvaluationOptions,
    quiet: bool = False,
    others: Sequence[nn.Module] = (),
) -> Evaluation:
    """Estimate, and write `evaluation.nc` and `evaluation.json`.

    :param others: the guides of `options.proposals`.
    """
    return estimating.evaluate(Fitted(run, config, model, guide, data), options, others=others, quiet=quiet)


def command(arguments: list[str]) -> None:
    given = cli.parse(
        Command,
        arguments,
        "python -m ppl_gen.evaluate",
        "ELBO, IWAE bounds and log p(x) of a run.",
    )
    from ppl_gen.figures.run import draw_evaluation

    parallel.join()
    options = given.options
    fitted = Fitted(*open_fitted(given.run, given.named, checkpoint=options.checkpoint, device=options.device))
    run = fitted.directory
    run.writes = parallel.rank() == 0
    if options.gaps:
        if parallel.size() > 1:
            raise BadInput("--gaps: takes one process")
        found = split_gap(fitted, options)
        write_report(run)
        print(gap_table(found))
        print(f"written to {run.path / 'gaps.json'}")
        return
    others = other_guides(options, given.named)
    before: dict[str, Any] | None = None
    with suppress(BadInput):  # a damaged one is replaced as well
        before = run.read_json("evaluation.json")
    evaluation = estimating.evaluate(fitted, options, others=others, quiet=not run.writes)
    parallel.leave()
    if run.writes:
        draw_evaluation(run)
        write_report(run)
        print(evaluation)
        of = "" if before is None else f"{before.get('num_images')} {before.get('split')} images"
        replaced = f", in the place of one of {of}" if of else ""
        print(f"written to {run.path / 'evaluation.json'} and evaluation.nc{replaced}")


if __name__ == "__main__":
    cli.main(command, together=True)
