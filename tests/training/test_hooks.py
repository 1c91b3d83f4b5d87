"""What is called after each epoch: a function of the user's own, early stopping, curves for TensorBoard."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import FEW, same_runs
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.run import Run


def test_on_epoch_ends_training(elsewhere: Path, x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    """As if it were the last epoch: resuming trains no further, and nothing says that training is unfinished."""
    epochs: list[int] = []

    def stop(run: Run, metrics: dict[str, Any]) -> bool:
        epochs.append(metrics["epoch"])
        assert run.metrics["epoch"].iloc[-1] == metrics["epoch"] and set(metrics["train"]) == {
            "elbo",
            "reconstruction",
            "kl",
        }
        return metrics["epoch"] == 2

    run = Run.fit("vae", data=x, on_epoch=stop, out="stopped", **FEW | {"epochs": 5})
    whole = Run.fit("vae", data=x, out="whole", **FEW)
    assert epochs == [1, 2] and same_runs(run, whole)
    assert run.metrics["epoch"].tolist() == [0, 1, 2] and run.evaluation is not None
    capsys.readouterr()
    again = Run.open("stopped", data=x).resume(quiet=True)
    assert again.metrics["epoch"].tolist() == [0, 1, 2] and same_runs(again, whole)
    _ = Run.open("stopped", data=x).model
    assert "training stopped" not in capsys.readouterr().err


def test_patience(elsewhere: Path, x: Tensor) -> None:
    """Stops at the first epoch that is so many after the best one, also where the run is resumed in between."""

    def interrupt(run: Run, metrics: dict[str, Any]) -> None:
        if metrics["epoch"] == 3:
            raise KeyboardInterrupt

    options = FEW | {"epochs": 60, "learning_rate": 0.05, "patience": 3}
    run = Run.fit("vae", data=x, out="whole", **options)
    elbos = run.metrics["validation.elbo"].tolist()
    assert len(elbos) < 61 and int(np.argmax(elbos)) == len(elbos) - 4
    assert all(int(np.argmax(elbos[: n + 1])) > n - 3 for n in range(len(elbos) - 1))
    with pytest.raises(KeyboardInterrupt):
        Run.fit("vae", data=x, out="cut", on_epoch=interrupt, **options)
    assert same_runs(Run.open("cut", data=x).resume(quiet=True), run)
    with pytest.raises(BadInput, match="patience 1: needs a validation split"):
        Run.fit("gan", data="digits", train_size=40, epochs=1, patience=1, binarization="none", quiet=True)


def test_early_stopping_needs_a_bound_on_validation_images(elsewhere: Path, x: Tensor) -> None:
    options: dict[str, Any] = {"patience": 1, "latent_dim": 2, "hidden_dims": (4,), "quiet": True}
    with pytest.raises(BadInput, match="patience 1: needs a validation split and a bound"):
        Run.fit("gan", data=(255 * x).byte(), **options)
    with pytest.raises(BadInput, match="patience 1: needs a validation split and a bound"):
        Run.fit("vae", data="digits", train_size=1_497, **options)
    assert list(elsewhere.iterdir()) == []


def test_tensorboard(elsewhere: Path, x: Tensor) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run = Run.fit("vae", data=x, tensorboard=True, **FEW)
    assert list((run.path / "tensorboard").iterdir())
