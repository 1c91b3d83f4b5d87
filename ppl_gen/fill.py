"""`python -m ppl_gen.fill RUN`: Fill in the hidden pixels of images given their visible ones."""

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.evaluation.use_options import FillOptions
from ppl_gen.experiment.arguments import RunCommand

ABOUT = "Fill in the hidden pixels of images given their visible ones."


def command(arguments: list[str]) -> None:
    given = cli.parse(RunCommand[FillOptions], arguments, "python -m ppl_gen.fill", ABOUT)
    opening = given.opening()
    run = ppl_gen.Run.open(**opening)
    print(run.fill(given.options))
    print(f"written to {run.path / 'fill.json'} and figures/fill.png")


if __name__ == "__main__":
    cli.main(command)
