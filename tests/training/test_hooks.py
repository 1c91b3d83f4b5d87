"""What is called after each epoch: a function of the user's own, early stopping, curves for TensorBoard."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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


def test_only_true_ends_training(elsewhere: Path, x: Tensor) -> None:
    """What a function returns by accident is refused, and the run can be continued."""
    whole = Run.fit("vae", data=x, out="whole", **FEW)
    for n, value in enumerate((1, 1.0, torch.tensor(True), [3], "yes")):
        with pytest.raises(
            BadInput, match=r"on_epoch: returned .* after epoch 1; return True to end training"
        ) as error:
            Run.fit("vae", data=x, out=f"cut{n}", on_epoch=lambda run, metrics, value=value: value, **FEW)
        assert f"Run.open('cut{n}').resume(on_epoch=…)" in str(error.value)
    assert same_runs(Run.open("cut0", data=x).resume(quiet=True), whole)
    for n, (value, epochs) in enumerate(((None, 2), (False, 2), (np.False_, 2), (np.True_, 1), (True, 1))):
        run = Run.fit("vae", data=x, out=f"run{n}", on_epoch=lambda run, metrics, value=value: value, **FEW)
        assert len(run.metrics) == epochs + 1


@pytest.mark.parametrize("hook", [3, lambda: None, lambda run: None, lambda run, metrics, more: None, [].append])
def test_what_cannot_be_called_is_refused_before_training(elsewhere: Path, x: Tensor, hook: Any) -> None:
    with pytest.raises(BadInput, match=r"^on_epoch=.*: must be a function of two arguments, the run and its metrics$"):
        Run.fit("vae", data=x, on_epoch=hook, **FEW)
    assert list(elsewhere.iterdir()) == []


def test_a_function_without_a_signature_is_called(elsewhere: Path, x: Tensor) -> None:
    with pytest.raises(BadInput, match="on_epoch: returned"):
        Run.fit("vae", data=x, on_epoch=lambda run, metrics: max(run.path.name, "a"), **FEW)
    with pytest.raises(TypeError):  # max itself, which finds nothing to compare
        Run.fit("vae", data=x, on_epoch=max, **FEW)


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
    with pytest.raises(BadInput, match="patience 1: needs a validation split and an ELBO"):
        Run.fit("gan", data=(255 * x).byte(), **options)
    with pytest.raises(BadInput, match="patience 1: needs a validation split and an ELBO"):
        Run.fit("vae", data="digits", train_size=1_497, **options)
    assert list(elsewhere.iterdir()) == []


def test_tensorboard(elsewhere: Path, x: Tensor) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run = Run.fit("vae", data=x, tensorboard=True, **FEW)
    assert list((run.path / "tensorboard").iterdir())


def test_a_hook_leaves_training_as_it_is(elsewhere: Path, x: Tensor) -> None:
    """Looking at the model sets it to evaluation; training goes on with dropout, and with its own random numbers."""
    steps: list[tuple[int, int]] = []

    def look(run: Run, metrics: dict[str, Any]) -> None:
        evaluation = run.evaluate(num_samples=5, num_images=5, quiet=True)
        steps.append((metrics["step"], evaluation.summary["training_step"]))
        assert not run.guide.training and torch.rand(3).shape == (3,)
        assert run.evaluation is None and not (run.path / "evaluation.json").exists()  # of weights that are not saved

    options = FEW | {"epochs": 4, "guide_options": {"input_dropout": 0.5}, "checkpoint_every": 3}
    plain = Run.fit("vae", data=x, out="plain", **options)
    seen = Run.fit("vae", data=x, out="seen", on_epoch=look, **options)
    assert same_runs(plain, seen) and plain.metrics["loss"].equals(seen.metrics["loss"])
    assert steps == [(step, step) for step in seen.metrics["step"][1:]]
    assert seen.evaluation is not None and seen.evaluation.summary["num_images"] == 20
