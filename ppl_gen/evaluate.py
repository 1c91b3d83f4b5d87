"""`python -m ppl_gen.evaluate RUN`: Estimate ELBO, IWAE bounds and log p(x) of a run."""

from contextlib import suppress
from dataclasses import replace

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.arguments import RunCommand, parse_with_estimators

Command = RunCommand[EvaluationOptions]
ABOUT = "Estimate the ELBO, IWAE bounds and log p(x) of a run."


def command(arguments: list[str]) -> None:
    given, own = parse_with_estimators(Command, arguments, "python -m ppl_gen.evaluate", ABOUT)
    options = replace(given.options, estimator_options=own)
    opening = given.opening()
    from ppl_gen.core import parallel  # torch, which --help and a missing run do without

    parallel.join()
    run = ppl_gen.Run.open(**opening)
    run.directory.writes = parallel.rank() == 0
    if options.gaps:
        if parallel.world_size() > 1:
            raise BadInput("--gaps: needs a single process; start it without torchrun")
        print(run.split_gap(options))
        print(f"written to {run.path / 'gaps.json'}")
        return
    before = None
    with suppress(BadInput):  # a damaged one is replaced as well
        before = run.directory.read_json("evaluation.json")
    evaluation = run.evaluate(options, quiet=not run.directory.writes)
    parallel.leave()
    if run.directory.writes:
        print(evaluation)
        of = "" if before is None else f"{before.get('num_images')} {before.get('split')} images"
        replaced = f"; they replace an evaluation of {of}" if of else ""
        print(f"written to {run.path / 'evaluation.json'} and evaluation.nc{replaced}")


if __name__ == "__main__":
    cli.main(command, distributed=True)
