"""Hooks that run after each epoch: early stopping and TensorBoard. Both use nothing but `on_epoch`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import Json

if TYPE_CHECKING:
    from ppl_gen.run import Run

Hook = Callable[["Run", Json], bool | None]
"""Function that is called after each epoch with the run and its line of metrics. `True` ends training."""


class Patience:
    """Early stopping: end training when the validation ELBO has not reached a new best value for some epochs.

    The epochs are counted in the run's metrics, so that a resumed run stops at the same epoch.
    """

    def __init__(self, epochs: int):
        self.epochs = epochs

    def __call__(self, run: "Run", metrics: Json) -> bool:
        elbos = [line["validation"]["elbo"] for line in run.directory.metrics()]
        return len(elbos) - 1 - elbos.index(max(elbos)) >= self.epochs


class TensorBoard:
    """Learning curves for TensorBoard, in the run's `tensorboard/`."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BadInput("--tensorboard: needs the package tensorboard; pip install tensorboard") from None
        self.make_writer = SummaryWriter

    def __call__(self, run: "Run", metrics: Json) -> None:
        writer = self.make_writer(str(run.directory.path / "tensorboard"))
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
    if own is not None and not callable(own):
        raise BadInput(f"on_epoch={own!r}: must be a function of the run and its metrics")
    return [
        *([] if options.patience is None else [Patience(options.patience)]),
        *([TensorBoard()] if options.tensorboard else []),
        *([] if own is None else [own]),
    ]
