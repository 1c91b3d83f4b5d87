"""`python -m ppl_gen.responsibilities RUN`: Say which component of a mixture explains which image."""

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.evaluation.use_options import ResponsibilityOptions
from ppl_gen.experiment.arguments import RunCommand

ABOUT = "Say which component of a mixture explains which image, and compare components with labels."


def command(arguments: list[str]) -> None:
    given = cli.parse(RunCommand[ResponsibilityOptions], arguments, "python -m ppl_gen.responsibilities", ABOUT)
    opening = given.opening()
    run = ppl_gen.Run.open(**opening)
    print(run.explain(given.options))
    print(f"written to {run.path / 'responsibilities.json'} and figures/")


if __name__ == "__main__":
    cli.main(command)
