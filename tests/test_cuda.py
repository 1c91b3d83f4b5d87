"""Where there is a GPU: the same answers as without, to their errors, and runs that go on where they were."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ppl_gen import evaluate, fit
from ppl_gen.data.splits import Data
from ppl_gen.experiment.run_directory import RunDirectory

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
QUICK = ("--data", "digits", "--train-size", "200", "--num-samples", "500", "--hidden-dims", "16", "--latent-dim", "2")


def test_evaluated_on_either_device(elsewhere: Path, call: Call) -> None:
    """log p(x) of the same weights within 4 Monte Carlo standard errors: false alarms at 6e-5 each."""
    assert call(fit.command, "vae", "--device", "cuda", "--epochs", "3", *QUICK, "--out", "run")[0] == 0
    for estimator in ("importance", "prior", "annealed"):
        found = []
        for device in ("cuda", "cpu"):
            quick = ("--annealed.num-temperatures", "30", "--sandwich", "3") if estimator == "annealed" else ()
            options = ("--estimator", estimator, "--device", device, "--num-images", "50", *quick)
            status, _, err = call(evaluate.command, "run", *options)
            assert status == 0, err
            found.append(json.loads(Path("run/evaluation.json").read_text(encoding="utf-8")))
        ours, theirs = (each["log_px"] for each in found)
        within = 4 * math.hypot(ours["mc_se"], theirs["mc_se"]) + abs(ours["bias"]) + abs(theirs["bias"])
        assert abs(ours["mean"] - theirs["mean"]) < within < 0.5
        by_grid = [each["log_px_quadrature"]["mean"] for each in found if estimator != "importance"]
        assert all(abs(mean - by_grid[0]) < 1e-3 for mean in by_grid)
        assert found[0]["images_sha256"] == found[1]["images_sha256"]


def test_an_exact_model_on_either_device(elsewhere: Path, call: Call) -> None:
    model = ("mixture", "--data", "digits", "--binarization", "static", "--num-components", "4", "--epochs", "2")
    assert call(fit.command, *model, "--device", "cuda", "--out", "run")[0] == 0
    ours = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["log_px"]["mean"]
    assert call(evaluate.command, "run", "--device", "cpu")[0] == 0
    assert json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["log_px"]["mean"] == pytest.approx(
        ours, rel=1e-5
    )


@pytest.mark.parametrize("guide", ["normal", "grid"])
def test_resumed(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch, guide: str) -> None:
    """Random states of the GPU are part of a checkpoint: an interrupted run ends with the weights of another."""
    options = ("vae", "--guide", guide, "--device", "cuda", "--epochs", "4", *QUICK)
    assert call(fit.command, *options, "--out", "whole")[0] == 0
    batch, count = Data.batch, 0

    def counting(self: Data, index: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(Data, "batch", counting)
        assert call(fit.command, *options, "--out", "cut")[0] != 0
    assert call(fit.command, "--resume", "cut")[0] == 0
    ours, theirs = (RunDirectory.open(Path(name)).load_checkpoint() for name in ("whole", "cut"))
    assert ours is not None and theirs is not None
    for name, tensor in ours[0].items():
        torch.testing.assert_close(theirs[0][name], tensor, rtol=1e-4, atol=1e-6)
