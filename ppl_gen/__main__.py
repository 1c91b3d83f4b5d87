"""`python -m ppl_gen`, or `ppl-gen`: the commands, one line each, and `ppl-gen NAME …` to run one."""

import sys
from importlib import import_module
from typing import NoReturn

COMMANDS = {
    "fit": "Train a model and a guide, evaluate them, draw pictures; or resume a run.",
    "evaluate": "Estimate ELBO, IWAE bounds and log p(x) of a run.",
    "compare": "Put runs side by side, with paired differences.",
    "sweep": "Fit a model with every guide and objective, from every seed.",
    "sample": "Make images from a fitted model.",
    "fill": "Fill in the hidden pixels of images given their visible ones.",
    "splice": "Tell spliced images from natural ones by log p(x).",
    "responsibilities": "Say which component of a mixture explains which image.",
    "quality": "Score samples by a classifier of the same images.",
    "calibrate": "Hold every estimator of log p(x) against exact values.",
}
_DISTRIBUTED = ("fit", "evaluate")  # several processes can share their work


def main() -> NoReturn:
    """Run the command that `sys.argv` names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {each:<18}{about}" for each, about in COMMANDS.items()]
        print("\n".join(["usage: ppl-gen NAME [options], or python -m ppl_gen.NAME [options]", "", *lines, ""]))
        print("ppl-gen NAME --help says what each takes; ppl-gen --version, which version this is")
        sys.exit(0)
    if name == "--version":
        from ppl_gen import __version__

        print(f"ppl_gen {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        from ppl_gen.core.errors import near_miss

        print(f"error: {name}: no command{near_miss(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    module = import_module(f"ppl_gen.{name}")
    from ppl_gen.core import cli

    sys.argv = [str(module.__file__), *rest]  # as a run records what made it
    cli.main(module.command, distributed=name in _DISTRIBUTED)


if __name__ == "__main__":
    main()
