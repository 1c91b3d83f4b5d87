"""A run that starts from another: with a fixed model, it is the same function; changes are told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.models.vae import VAE
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
FEW = ("--epochs", "1", "--num-samples", "5")
SHORT: dict[str, Any] = {"epochs": 1, "num_samples": 5, "quiet": True}
MODEL = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, data_dim, *, temperature: float = 1.0):
        super().__init__()
        self.net, self.temperature = nn.Linear(2, data_dim), temperature

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z) * self.temperature).to_event(1), obs=x)


class Other(Own):
    pass
"""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--activation", "tanh"), "activation is tanh, not relu"),
        (("--likelihood", "continuous-bernoulli", "--binarization", "none"), "likelihood is continuous-bernoulli"),
        (("--guide.activation", "tanh"), None),
        (("--binarization", "static"), None),
    ],
)
def test_a_fixed_model_is_the_same_function(
    elsewhere: Path, finished: Path, call: Call, options: tuple[str, ...], words: str | None
) -> None:
    """Options that no shape shows are compared, too. Those of the guide and the data may change."""
    shutil.copytree(finished, "first")
    arguments = ("--init-from", "first", "--refit-guide", "normal", *options, *FEW, "--out", "second")
    status, _, err = call(fit.command, *arguments)
    if words is None:
        assert status == 0, err
    else:
        assert status == 2 and f"its model is to stay as it is, but {words}" in err
        assert not Path("second").exists()


def test_a_model_that_is_trained_further_may_be_another(elsewhere: Path, finished: Path, call: Call) -> None:
    shutil.copytree(finished, "first")
    status, out, err = call(fit.command, "--init-from", "first", "--activation", "tanh", *FEW, "--out", "second")
    assert status == 0, err
    assert "the model is another function of them: activation is tanh, not relu" in out
    status, out, err = call(fit.command, "--init-from", "first", *FEW, "--out", "third")
    assert status == 0 and "another function" not in out and "warning" not in err


def test_a_fixed_model_from_python(elsewhere: Path, finished: Path) -> None:
    """As an option, and as an instance, whose options nobody knows: its densities differ."""
    shutil.copytree(finished, "first")
    fixed: dict[str, Any] = {"init_from": "first", "fixed_model": True, **SHORT}
    with pytest.raises(BadInput, match="activation is tanh, not relu"):
        Run.fit(guide="normal", activation="tanh", **fixed)
    run = Run.fit(guide="normal", **fixed)
    size: Any = {"latent_dim": run.model.prior().event_shape[0], "hidden_dims": (16,)}  # type: ignore[operator, union-attr]
    with pytest.raises(BadInput, match="the same weights give other densities of images"):
        Run.fit(VAE((8, 8), activation="tanh", **size), guide="normal", **fixed)
    Run.fit(VAE((8, 8), **size), guide="normal", **fixed)


def test_a_model_of_ones_own(elsewhere: Path, call: Call) -> None:
    """Another option or another class of the same shapes is refused; changed code is told."""
    Path("own.py").write_text(MODEL, encoding="utf-8")
    data = ("--data", "digits", "--train-size", "100", *FEW)
    status, _, err = call(fit.command, "own.py:Own", *data, "--out", "first")
    assert status == 0, err
    fixed = ("--init-from", "first", "--refit-guide", "normal", *FEW)
    for wrong, words in (
        (("own.py:Own", "--temperature", "3"), "temperature is 3.0, not 1.0"),
        (("own.py:Other",), "the model is own.py:Other, not own.py:Own"),
    ):
        status, _, err = call(fit.command, *wrong, *fixed, "--out", "second")
        assert status == 2 and words in err, err
    status, _, err = call(fit.command, "own.py:Own", *fixed, "--out", "second")
    assert status == 0 and "warning" not in err
    Path("own.py").write_text(f"{MODEL}\n# changed\n", encoding="utf-8")
    status, _, err = call(fit.command, "own.py:Own", *fixed, "--out", "third")
    assert status == 0 and "warning: own.py:Own has changed since first was fitted" in err


def test_a_start_that_is_gone_when_a_run_goes_on(elsewhere: Path, finished: Path, call: Call) -> None:
    """A run that was ended before its first checkpoint starts again from the same weights, or not at all."""
    shutil.copytree(finished, "first")
    assert call(fit.command, "--init-from", "first", *FEW, "--out", "second")[0] == 0
    for name in ("checkpoint.safetensors", "evaluation.json", "evaluation.nc", "metrics.jsonl"):
        (Path("second") / name).unlink()
    shutil.copytree("second", "third")
    assert call(fit.command, "--resume", "second")[0] == 0
    assert call(fit.command, "--resume", "first", "--epochs", "3")[0] == 0
    status, _, err = call(fit.command, "--resume", "third")
    assert status == 2 and "was to start from first, which has been trained further since" in err
