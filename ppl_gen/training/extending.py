"""Training of a run for more epochs than it was made for."""

from dataclasses import replace

from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory


def with_epochs(directory: RunDirectory, config: Config, epochs: int) -> Config:
    """The configuration of a run, with another number of epochs.

    :raises BadInput: for fewer epochs than the run has, or than it was made for.
    """
    before = config.training.epochs
    done = directory.last.get("epoch", 0)
    if epochs < max(before, done + 1) and epochs != before:
        raise BadInput(f"--epochs {epochs}: {directory.path} has {done} of {before} epochs; choose a larger number")
    return replace(config, training=replace(config.training, epochs=epochs))


def record_epochs(directory: RunDirectory, now: TrainingOptions, *, quiet: bool) -> None:
    """Write another number of epochs than a run was made for to `config.json`, and say what it does to the schedule."""
    recorded = directory.config.get("training", {})
    before = replace(now, epochs=recorded.get("epochs", now.epochs))
    if now.epochs == before.epochs:
        return
    content = directory.config | {"training": recorded | {"epochs": now.epochs}}
    directory.write_json("config.json", content)
    directory.config = content
    if quiet:
        return
    done = directory.last.get("epoch", 0)
    print(f"{directory.path}: training continues from epoch {done} to {now.epochs}")
    if now.schedule != "constant":
        rates = [options.rate(done, options.epochs) for options in (before, now)]
        print(
            f"the {now.schedule} schedule is now for {now.epochs} epochs: the learning rate changes from "
            f"{rates[0]:.2g} to {rates[1]:.2g}. A run of {now.epochs} epochs from the start would give other weights"
        )
