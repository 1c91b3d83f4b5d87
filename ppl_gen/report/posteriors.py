"""The file `posteriors.npz` of a run: its posteriors of a few test images. It is read without torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppl_gen.experiment.run_directory import RunDirectory, to_npz
from ppl_gen.figures.posteriors import Posteriors

FILE = "posteriors.npz"


def write_posteriors(run: RunDirectory, found: Posteriors) -> None:
    """Write `posteriors.npz`, with the training step of the weights that it was made of."""
    step = run.step()
    arrays = found.arrays() | ({} if step is None else {"training_step": np.array(step)})
    run.write_file(FILE, to_npz(arrays))


def read_posteriors(run: RunDirectory) -> Posteriors | None:
    """The posteriors of a run; None if there are none, or its weights were trained on after they were made."""
    arrays = run.arrays(FILE)
    made = {"training_step": int(arrays["training_step"])} if "training_step" in arrays else {}
    try:
        return None if run.stale(made) else Posteriors.of(arrays)
    except KeyError:  # no file, or a damaged one
        return None


def shared_posteriors(runs: Mapping[str, Path]) -> dict[str, Posteriors]:
    """The posteriors of those runs that have them of the same images as the first of them, by the runs' labels. A run
    whose evaluation is of other weights than the last ones is left out.

    :param runs: run directories by their labels.
    """
    shared: dict[str, Posteriors] = {}
    for label, path in runs.items():
        run = RunDirectory.open(path)
        found = read_posteriors(run)
        if found is None or (run.read_json("evaluation.json") or {}).get("checkpoint") != "last":
            continue
        first = next(iter(shared.values()), found)
        if np.array_equal(first.images, found.images):
            shared[label] = found
    return shared
