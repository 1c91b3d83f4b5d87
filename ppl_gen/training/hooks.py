"""Hooks that run after each epoch: early stopping and TensorBoard. Both use nothing but `on_epoch`."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_gen.core.errors import BadInput, shown
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.modes import forked_rng, same_modes

if TYPE_CHECKING:
    from ppl_gen.run import Run

Hook = Callable[["Run", Json], bool | None]
"""Function that is called after each epoch with the run and its line of metrics. It returns `True` to end training, and
`None` or `False` to go on."""


class Patience:
    """Early stopping: end training when the validation ELBO has not reached a new best value for some epochs.

    The epochs are counted in the run's metrics, so that a resumed run stops at the same epoch.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def __call__(self, run: "Run", metrics: Json) -> bool:
        elbos = [line["validation"]["elbo"] for line in run.directory.metrics() if "elbo" in line.get("validation", {})]
        return len(elbos) - 1 - elbos.index(max(elbos)) >= self.epochs


class TensorBoard:
    """Learning curves for TensorBoard, in the run's `tensorboard/`."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput(
                "--tensorboard: needs the package tensorboard; install it: pip install tensorboard"
            ) from None
        self.make_writer = SummaryWriter

    def __call__(self, run: "Run", metrics: Json) -> None:
        folder = run.directory.path / "tensorboard"
        if folder.is_symlink():
            raise BadInput(f"{folder}: is a link, which is not followed; remove it")
        writer = self.make_writer(str(folder))
        for split in ("train", "validation"):
            for name, value in metrics.get(split, {}).items():
                writer.add_scalar(f"{name}/{split}", value, metrics["epoch"])
        for name in ("loss", "learning_rate"):
            writer.add_scalar(name, metrics[name], metrics["epoch"])
        writer.close()


def hooks_of(options: TrainingOptions, own: Hook | None = None) -> list[Hook]:
    """The hooks for early stopping and TensorBoard, if the options turn them on, and a user's own.

    :raises BadInput: without the package tensorboard, and for an own hook that is no function.
    """
    if own is not None:
        check(own)
    return [
        *([] if options.patience is None else [Patience(options.patience)]),
        *([TensorBoard()] if options.tensorboard else []),
        *([] if own is None else [own]),
    ]


def check(own: Any) -> None:
    """Raise `BadInput` for an `on_epoch` that cannot be called with a run and its metrics."""
    fits = callable(own)
    with suppress(ValueError):  # some functions of C have no signature
        try:
            inspect.signature(own).bind(None, None)
        except TypeError:
            fits = False
    if not fits:
        raise BadInput(f"on_epoch={shown(own)}: must be a function of two arguments, the run and its metrics")


def ends_training(hook: Hook, run: "Run", metrics: Json) -> bool:
    """Call a hook after an epoch. Returns True if it ends training.

    :raises BadInput: if it returns anything else than True, False and None.
    """
    answer = hook(run, metrics)
    if answer is not None and not isinstance(answer, bool | np.bool_):
        raise BadInput(
            f"on_epoch: returned {shown(answer)} after epoch {metrics['epoch']}; return True to end training, None "
            f"or False to continue. The run is intact: continue it with Run.open({str(run.path)!r}).resume(on_epoch=…)"
        )
    return bool(answer)


@contextmanager
def in_training(run: "Run", step: int) -> Iterator[None]:
    """After an epoch, a hook sees a run of the weights in training. The checkpoint may be of an earlier epoch:
    results are recorded with the step of these weights, and nothing is written. Modes and random numbers are
    restored."""
    directory, modules = run.directory, run.fitted.trained
    writes, loaded = directory.writes, directory.loaded
    run.in_training, directory.writes, directory.loaded = True, False, step
    try:
        with same_modes(modules), forked_rng(run.fitted.data.train.images):
            yield
    finally:
        run.in_training, directory.writes, directory.loaded = False, writes, loaded
