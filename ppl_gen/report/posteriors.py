"""The file `posteriors.npz` of a run: its posteriors of a few test images. It is read without torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ppl_gen.experiment.run_directory import RunDirectory, to_npz
from ppl_gen.figures.posteriors import MASSES, Posteriors

FILE = "posteriors.npz"
MOST = 20
"""Most runs whose posteriors are drawn. Each takes half a second and four inches."""


def write_posteriors(run: RunDirectory, found: Posteriors) -> None:
    """Write `posteriors.npz`, with the training step of the weights that it was made of."""
    step = run.step()
    arrays = found.arrays() | ({} if step is None else {"training_step": np.array(step)})
    run.write_file(FILE, to_npz(arrays))


def read_posteriors(run: RunDirectory) -> Posteriors | None:
    """The posteriors of a run; None if there are none, or they are damaged, or the weights were trained on after they
    were made."""
    arrays = run.arrays(FILE)
    if not arrays:
        return None
    try:
        made = {"training_step": arrays["training_step"].item()} if "training_step" in arrays else {}
        found = Posteriors.of(arrays)
        _check(found)
    except (KeyError, ValueError) as error:
        run.leave_out(FILE, error)
        return None
    return None if run.stale(made) else found


def _check(found: Posteriors) -> None:
    """Raise `ValueError` for arrays that do not fit each other, or cannot be drawn."""
    count = len(found.images) if found.images.ndim in (3, 4) else 0
    fits = count > 0 and found.images.size > 0 and bool(np.isfinite(found.images).all())
    fits = fits and found.kl.shape == (count, 2)
    for each in (found.exact, found.guide):
        if each is not None and fits:
            cells = each.axes.shape[-1] if each.axes.ndim else 0
            shapes = each.axes.shape, each.log_density.shape, each.levels.shape
            fits = cells > 1 and shapes == ((count, 2, cells), (count, cells, cells), (count, len(MASSES)))
            fits = fits and all(np.isfinite(values).all() for values in (each.axes, each.levels))
            fits = fits and bool((np.diff(each.axes) > 0).all()) and not np.isnan(each.log_density).any()
            fits = fits and bool((each.log_density.max((1, 2)) >= each.levels.min(1)).all())
    if not fits:
        raise ValueError("its arrays do not fit each other")


def shared_posteriors(runs: Mapping[str, Path]) -> dict[str, Posteriors]:
    """The posteriors of those runs that have them of the same images as the first of them, by the runs' labels. A run
    whose evaluation is of other weights than the last ones is left out. At most `MOST` are read.

    :param runs: run directories by their labels.
    """
    shared: dict[str, Posteriors] = {}
    for label, path in runs.items():
        if len(shared) == MOST:
            break
        run = RunDirectory.open(path)
        found = read_posteriors(run)
        if found is None or (run.read_json("evaluation.json") or {}).get("checkpoint") != "last":
            continue
        first = next(iter(shared.values()), found)
        if np.array_equal(first.images, found.images):
            shared[label] = found
    return shared
