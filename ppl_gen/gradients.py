"""`python -m ppl_gen.gradients RUN`: Compare gradient estimators of a discrete z with the exact gradient."""

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.evaluation.use_options import GradientOptions
from ppl_gen.experiment.arguments import RunCommand

ABOUT = (
    "Compare the gradients of objectives for a discrete z with the exact gradient of the ELBO, which is a sum over the "
    "states of z: squared bias, variance and processor time."
)


def command(arguments: list[str]) -> None:
    given = cli.parse(RunCommand[GradientOptions], arguments, "python -m ppl_gen.gradients", ABOUT)
    opening = given.opening()
    run = ppl_gen.Run.open(**opening)
    print(run.gradients(given.options))
    print(f"written to {run.path / 'gradients.json'} and figures/gradients.png")


if __name__ == "__main__":
    cli.main(command)
