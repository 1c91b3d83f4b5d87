"""Training for longer than was planned, and what was found before it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fits import FEW, QUICK, same_runs
from torch import Tensor

from ppl_gen import compare, evaluate, fit
from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.report.run_page import write_report
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def test_training_for_longer_is_training_for_so_long(elsewhere: Path, x: Tensor, call: Call) -> None:
    """With a constant learning rate, to the bit; and the optimizer's state goes on."""
    longer = Run.fit("vae", data=x, out="longer", **FEW).resume(4, quiet=True)
    whole = Run.fit("vae", data=x, out="whole", **FEW | {"epochs": 4})
    assert same_runs(longer, whole) and longer.config.training.epochs == 4
    assert longer.evaluation is not None and whole.evaluation is not None
    assert longer.evaluation.summary | {"seconds": 0} == whole.evaluation.summary | {"seconds": 0}
    with pytest.raises(BadInput, match="epochs 3: longer has 4 of 4 epochs"):
        longer.resume(3, quiet=True)


def test_a_number_of_epochs_is_a_whole_number(elsewhere: Path, x: Tensor) -> None:
    """NumPy's, too. Another one changes nothing."""
    run = Run.fit("vae", data=x, out="run", **FEW)
    for epochs in (50.5, 2.5, "50", True):
        with pytest.raises(BadInput, match=rf"^epochs {epochs!r}: must be a whole number$"):
            run.resume(epochs=epochs, quiet=True)  # type: ignore[arg-type]
    assert run.config.training.epochs == 2 and len(run.metrics) == 3
    run.resume(epochs=np.int64(3), quiet=True)
    assert run.config.training.epochs == Run.open("run").config.training.epochs == 3 and len(run.metrics) == 4


def test_a_schedule_goes_on(elsewhere: Path, call: Call) -> None:
    options = ("--data", "digits", "--train-size", "60", "--num-samples", "5", "--num-components", "2")
    assert call(fit.command, "mixture", *options, "--schedule", "cosine", "--epochs", "2", "--out", "run")[0] == 0
    status, out, err = call(fit.command, "--resume", "run", "--epochs", "4")
    assert status == 0, err
    assert "the cosine schedule is now for 4 epochs: the learning rate changes from " in out
    rates = Run.open("run").metrics["learning_rate"]
    assert rates[2] == 0 < rates[3]
    status, _, err = call(fit.command, "--resume", "run", "--epochs", "3")
    assert status == 2 and "--epochs 3: run has 4 of 4 epochs" in err


def test_a_run_that_was_stopped_is_trained_for_longer(elsewhere: Path, x: Tensor) -> None:
    """The stop was one of so many epochs. Resuming without more of them trains no further."""
    run = Run.fit("vae", data=x, on_epoch=lambda run, metrics: metrics["epoch"] == 2, **FEW | {"epochs": 4})
    assert run.resume(quiet=True).metrics["epoch"].tolist() == [0, 1, 2]
    run.resume(epochs=6, quiet=True)
    assert run.metrics["epoch"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    again = Run.open(run.path, data=x)  # the directory is whole
    assert again.config.training.epochs == 6 and again.evaluation is not None
    whole = Run.fit("vae", data=x, **FEW | {"epochs": 6})
    assert same_runs(again, whole)


def test_what_was_found_before_more_training_is_found_again(
    elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped, evaluated, and continued; the evaluation of a finished run stays."""
    options = [*QUICK, "--epochs", "4"]
    assert call(fit.command, "vae", *options, "--out", "whole")[0] == 0
    append = RunDirectory.append_metrics

    def stop(run: RunDirectory, line: dict[str, Any]) -> None:
        append(run, line)
        if line["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "append_metrics", stop)
        assert call(fit.command, "vae", *options, "--out", "run")[0] == 1
    few = ("--num-images", "20", "--num-samples", "10")
    status, out, err = call(evaluate.command, "run", *few)
    assert status == 0 and "warning: training stopped after 2 of 4 epochs" in err and "they replace" not in out
    status, out, _ = call(compare.command, "run")
    assert status == 0 and "run stopped after 2 of 4 epochs" in out
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "20 test images" in report and "not evaluated yet" not in report

    def stop_again(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ppl_gen.run.evaluate_after_training", stop_again)
        assert call(fit.command, "--resume", "run")[0] == 1
    status, _, err = call(compare.command, "run")
    assert status == 2 and "run: was trained after its evaluation; evaluate it" in err
    write_report(RunDirectory.open(Path("run")))
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "20 test images" not in report and "not evaluated yet, as it is now" in report

    assert call(fit.command, "--resume", "run")[0] == 0
    whole, again = (json.loads(Path(name, "evaluation.json").read_text(encoding="utf-8")) for name in ("whole", "run"))
    assert whole | {"seconds": 0} == again | {"seconds": 0} and again["training_step"] == 8
    status, out, err = call(evaluate.command, "run", *few)
    assert status == 0 and err.count("warning") == 0 and "they replace an evaluation of 300 test images" in out
    Path("run/evaluation.json").write_text("{")
    assert call(evaluate.command, "run", *few)[0] == 0
    assert call(fit.command, "--resume", "run")[0] == 0
    assert json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["num_images"] == 20


def test_a_checkpoint_that_is_refused_leaves_the_number_of_epochs(elsewhere: Path, x: Tensor) -> None:
    run = Run.fit("vae", data=x, out="run", **FEW)
    whole = run.directory.checkpoint_path.read_bytes()
    run.directory.checkpoint_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match="checkpoint"):
        Run.open("run", data=x).resume(epochs=6, quiet=True)
    assert Run.open("run").config.training.epochs == FEW["epochs"]
    run.directory.checkpoint_path.write_bytes(whole)
    assert len(Run.open("run", data=x).resume(epochs=3, quiet=True).metrics) == 4
