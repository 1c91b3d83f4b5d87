"""Pictures of a run, one kind a file: computed from model, guide and data, drawn by `ppl_gen.figures`.

A file has a function `draw(fitted)` that yields pictures with their names, and `ABOUT`, the words of a warning if that
fails. `CAPTIONS` has captions by name, for pictures that no file of `ppl_gen.figures` has captions of.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ppl_gen.core.errors import BadInput, describe
from ppl_gen.core.seeds import seed_torch
from ppl_gen.core.tables import named
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.distances import distances
from ppl_gen.evaluation.entries import quantity_of
from ppl_gen.evaluation.reading import read
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.figures.bounds import gap_histogram
from ppl_gen.figures.canvas import Figure, pictures
from ppl_gen.figures.distances import how_far
from ppl_gen.figures.learning_curves import adversarial_curves, learning_curves, monitored_curves
from ppl_gen.inference.modes import evaluating, forked_rng

_FIRST = ("samples", "through_training", "reconstructions", "own", "latent_space", "units")
"""Pictures that share one stream of random numbers. Others draw after them, so that they change none of them."""

Drawn = Iterator[tuple[str, Figure]]
"""Pictures with their names. Each picture is computed when the iterator reaches it."""


def save(run: RunDirectory, name: str, figure: Figure) -> None:
    """Write a picture to `figures/` of a run."""
    figure.rename(partial(named, quantity=quantity_of(run)))
    run.write_file(f"figures/{name}.png", figure.png())


def draw_evaluation(run: RunDirectory) -> None:
    """Save the pictures of the run's evaluation."""
    for name, figure in of_evaluation(run):
        save(run, name, figure)


def draw_training(fitted: Fitted) -> None:
    """Save learning curves, and the pictures of every file of this folder. If a picture cannot be drawn, a warning on
    standard error gives the reason."""
    run = fitted.directory
    metrics = run.metrics()
    if metrics:
        measured = metrics[0]["train"]
        kinds_of_curves = {"elbo": learning_curves, "d_real": adversarial_curves}
        curves = next((each for name, each in kinds_of_curves.items() if name in measured), monitored_curves)
        with _drawing("the learning curves"):
            save(run, "learning_curves", curves(metrics))
    if not fitted.pair.observes_x:
        print(f"warning: no pictures of images: {fitted.pair.model_name} observes other values", file=sys.stderr)
        return
    with evaluating(fitted.model, fitted.guide), forked_rng(fitted.batch[0]):
        seed_torch(0)
        for module in kinds().values():
            with _drawing(module.ABOUT):
                for name, figure in module.draw(fitted):
                    save(run, name, figure)


def kinds() -> dict[str, Any]:
    """The files of this folder, by name, in the order in which they draw."""
    names = [info.name for info in pkgutil.iter_modules(__path__)]
    ordered = [*_FIRST, *(name for name in names if name not in _FIRST)]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in ordered}


@contextmanager
def _drawing(what: str) -> Iterator[None]:
    """Turn an error into a warning. A user's model or guide need not support every picture."""
    try:
        yield
    except BadInput:  # such as a full disk
        raise
    except Exception as error:
        print(f"warning: no picture of {what}: {describe(error)}", file=sys.stderr)


def as_images(values: Tensor, data: Data) -> np.ndarray:
    """Images [..., pixels] as arrays [..., height, width], or [..., height, width, 3] if in color, in [0, 1]. A missing
    pixel is mid-grey."""
    return pictures(values.clamp(0, 1).nan_to_num(0.5), data.shape)


def of_evaluation(run: RunDirectory) -> Drawn:
    """Bounds and estimates on one axis, and the histogram of the gap, from the run's evaluation. There are none if log
    p(x) is all that it has, as where every z is enumerated."""
    summary = run.read_json("evaluation.json")
    if summary is None or "iwae" not in summary:
        return
    found = read(run.path)
    shown = distances([found])
    if shown.rows[0].levels:
        yield "how_far", how_far(shown)
    if found.gap is None or found.untrusted is None:
        raise run.damaged("evaluation.nc", "the gap of each image is missing")
    yield "gap_histogram", gap_histogram(found.gap, found.untrusted, bool(summary["gap"]["at_least"]))
