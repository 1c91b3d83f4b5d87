"""`python -m ppl_gen.splice RUN`: Tell spliced images from natural ones by log p(x)."""

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.evaluation.use_options import SpliceOptions
from ppl_gen.experiment.arguments import RunCommand

ABOUT = "Tell spliced images, each made of the halves of two, from natural ones by log p(x)."


def command(arguments: list[str]) -> None:
    given = cli.parse(RunCommand[SpliceOptions], arguments, "python -m ppl_gen.splice", ABOUT)
    opening = given.opening()
    run = ppl_gen.Run.open(**opening)
    print(run.splice(given.options))
    print(f"written to {run.path / 'splice.json'}, figures/spliced.png and figures/splice_power.png")


if __name__ == "__main__":
    cli.main(command)
