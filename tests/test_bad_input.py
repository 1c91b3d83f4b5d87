"""Everything that a user can get wrong: one clear line on standard error, exit status 2, nothing half-written."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppl_gen import evaluate, fit
from ppl_gen.core.errors import BadInput
from ppl_gen.core.files import readable_errors
from ppl_gen.data import downloads
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment import run_directory as runs
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.inference.annealed import Annealing
from ppl_gen.models.vae import VAE

Call = Callable[..., tuple[int, str, str]]
DIGITS = ("--data", "digits")

GUIDES = """
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Base(nn.Module):
    size = 20

    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(data_dim, self.size)

    def posterior(self, context):
        return dist.Normal(context, 1.0).to_event(1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.net(x)))


class TooWide(Base):
    size = 21


class OtherSite(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("w", self.posterior(self.net(x)))


class Observes(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.net(x)), obs=self.net(x))


class NegativeScale(Base):
    def posterior(self, context):
        return dist.Normal(context, -1.0, validate_args=False).to_event(1)


class OtherPixels(nn.Module):
    def __init__(self, *, latent_dim: int = 3):
        super().__init__()
        self.net = nn.Linear(latent_dim, 784)

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.net.in_features), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class NoDefaults(OtherPixels):
    def model(self, x):
        return super().model(x)


class NoEvent(OtherPixels):
    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.net.in_features), 1.0))
            return pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


class Fails(Base):
    def guide(self, x):
        raise RuntimeError("on purpose")


class Disagrees(Base):
    def encode(self, x):
        return self.net(x) + 1


class Stored(Base):
    def guide(self, x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), 20))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(loc))


class Certain(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.net(x)).to_event(1))


class Batch(Base):
    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.norm = nn.BatchNorm1d(20, track_running_stats=False)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.norm(self.net(x))))


class Total(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x) - self.net(x).mean(0), 1.0).to_event(1))


class NoDefault(Base):
    def __init__(self, data_dim, width):
        super().__init__(data_dim)


class Constructor(Base):
    def __init__(self, data_dim, *, width: int = 3):
        raise RuntimeError("no such width")


class NoModule:
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))


class NoMethod(nn.Module):
    pass
"""


@pytest.fixture
def here(elsewhere: Path) -> Path:
    Path("guides.py").write_text(GUIDES)
    Path("broken.py").write_text("def f(:\n")
    np.save("bright.npy", np.full((20, 4), 2.0))
    np.save("missing.npy", np.where(np.eye(20, 4) == 1, np.nan, 0.5))
    Path("cut.npy").write_bytes(b"\x93NUMPY\x01")
    Path("text.txt").write_text("hello")
    Path("there").mkdir()
    Path("file").write_text("")
    return elsewhere


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # names
        ((), ["name a model first", "vae"]),
        (("vea",), ["unknown model 'vea'", "did you mean 'vae'"]),
        (("nothing.py:Model",), ["'nothing.py'", "no such file"]),
        (("no.such.module:Model",), ["no.such.module", "cannot be imported"]),
        (("torch.nn:Linear",), ["torch.nn:Linear", "needs a method 'model(self, x, ...)'"]),
        (("vae", "--guide", "nrmal"), ["unknown guide 'nrmal'", "did you mean 'normal'"]),
        (("vae", "--data", "mnits"), ["--data mnits", "did you mean 'mnist'"]),
        (("vae", "--objective", "vimco:5", *DIGITS), ["objective 'vimco:5'", "--num-particles NUMBER"]),
        (("vae", "--guide", "flow,transform=iaf", *DIGITS), ["guide 'flow,transform=iaf'", "--guide.OPTION VALUE"]),
        (("vae", "--objective", "elob", *DIGITS), ["unknown objective 'elob'", "did you mean 'elbo'"]),
        (("vae", "--objective", "own.py", "--objective.w", "2"), ["unknown objective 'own.py'", "file.py:Class"]),
        (("vae", "--binarization", "dynamical"), ["dynamical", "--binarization"]),
        (("vae", "--activation", "rleu"), ["rleu", "--activation"]),
        (("vae", "--latent-dimm", "3"), ["--latent-dimm", "did you mean --latent-dim"]),
        # guides that do not fit
        (("vae", "--guide", "guides.py:Nothing"), ["guides.py", "no class 'Nothing'"]),
        (("vae", "--guide", "broken.py:Guide"), ["broken.py", "SyntaxError"]),
        (("vae", "--guide", "guides.py:TooWide", *DIGITS), ["TooWide does not fit VAE", "(21,)", "(20,)"]),
        (("vae", "--guide", "guides.py:OtherSite", *DIGITS), ["OtherSite", "does not sample 'z'", "but 'w'"]),
        (("vae", "--guide", "guides.py:Observes", *DIGITS), ["Observes observes 'z'", "leave out obs="]),
        (("vae", "--guide", "guides.py:NegativeScale", *DIGITS), ["NegativeScale: site 'z': parameter scale"]),
        (("guides.py:OtherPixels", *DIGITS), ["OtherPixels: site 'x' has event shape (784,)", "(2, 64)", "data_dim"]),
        (("guides.py:NoDefaults", *DIGITS), ["NoDefaults: model(self, x=None, *, n=1)", "argument: 'x'"]),
        (("guides.py:NoEvent", *DIGITS), ["Shape mismatch inside plate", ".to_event(1)"]),
        (("vae", "--guide", "guides.py:Fails", *DIGITS), ["Fails", "RuntimeError: on purpose", "guides.py:"]),
        (("vae", "--guide", "guides.py:Disagrees", *DIGITS), ["Disagrees", "posterior(encode(x)) and guide()"]),
        (("vae", "--guide", "guides.py:Stored", *DIGITS), ["pyro.param('loc')", "compute what belongs to an image"]),
        (("vae", "--guide", "guides.py:Certain", *DIGITS), ["'z' is a Delta", "Normal"]),
        (("vae", "--guide", "guides.py:Batch", *DIGITS), ["fail on one image alone"]),
        (("vae", "--guide", "guides.py:Total", *DIGITS), ["images change each other's densities", "alone"]),
        (("vae", "--guide", "guides.py:NoDefault", *DIGITS), ["'width'", "a type and a default"]),
        (("vae", "--guide", "guides.py:Constructor", *DIGITS), ["Constructor", "no such width"]),
        (("vae", "--guide", "guides.py:NoModule", *DIGITS), ["NoModule", "torch.nn.Module"]),
        (("vae", "--guide", "guides.py:NoMethod", *DIGITS), ["needs a method 'guide(self, x, ...)'"]),
        (("vae", "--guide", "normal", "--guide.depth", "3"), ["--guide.depth"]),
        # data
        (("vae", "--data", "nowhere.npy"), ["nowhere.npy", "no such file"]),
        (("vae", "--data", "cut.npy"), ["cut.npy", "truncated"]),
        (("vae", "--data", "text.txt"), ["text.txt", ".npy"]),
        (("vae", "--data", "bright.npy"), ["bright.npy", "every pixel is 2"]),
        (("vae", "--data", "missing.npy"), ["missing.npy", "4 pixels are not finite numbers"]),
        (("vae", "--data", "binarized-mnist"), ["binarized_mnist_train.amat is missing"]),
        (("vae", "--train-size", "0", *DIGITS), ["--train-size 0", "1 to 1497"]),
        (("vae", "--train-size", "1498", *DIGITS), ["--train-size 1498"]),
        (("vae", "--likelihood", "normal", *DIGITS), ["use dequantized or none"]),
        # numbers out of range
        (("vae", "--epochs", "0", *DIGITS), ["--epochs 0"]),
        (("vae", "--batch-size", "-1", *DIGITS), ["--batch-size -1"]),
        (("vae", "--learning-rate", "nan", *DIGITS), ["--learning-rate nan"]),
        (("vae", "--learning-rate", "fast", *DIGITS), ["--learning-rate", "fast"]),
        (("vae", "--num-samples", "0", *DIGITS), ["--num-samples 0"]),
        (("vae", "--num-particles", "0", *DIGITS), ["--num-particles 0"]),
        (("vae", "--latent-dim", "0", *DIGITS), ["--latent-dim 0"]),
        (("vae", "--latent-dim", "2.5", *DIGITS), ["--latent-dim", "2.5"]),
        (("vae", "--hidden-dims", "5", "-5", *DIGITS), ["--hidden-dims"]),
        (("vae", "--guide.input-dropout", "1", *DIGITS), ["--guide.input-dropout 1"]),
        (("vae", "--seed", "-1", *DIGITS), ["--seed -1"]),
        (("vae", "--kl-warmup", "-1", *DIGITS), ["--kl-warmup -1"]),
        (("vae", "--clip-grad-norm", "0", *DIGITS), ["--clip-grad-norm 0"]),
        (("vae", "--ema-decay", "1", *DIGITS), ["--ema-decay 1"]),
        (("vae", "--checkpoint-every", "0", *DIGITS), ["--checkpoint-every 0"]),
        (("vae", "--max-hours", "inf", *DIGITS), ["--max-hours inf", "finite"]),
        (("vae", "--learning-rate", "1e-320", *DIGITS), ["--learning-rate 1e-320", "between 1e-30 and 1e30"]),
        (("vae", "--epochs", "1" + "0" * 400, *DIGITS), ["--epochs 10^400: must be at most 10000000"]),
        (("vae", "--hidden-dims", "8", "10000000000", *DIGITS), ["--hidden-dims 10000000000"]),
        (("mixture", "--init-scale", "inf", *DIGITS), ["--init-scale inf: must be a finite number"]),
        (("vae", "--guide", "student-t", "--guide.df", "inf", *DIGITS), ["--guide.df inf: must be a finite number"]),
        (("belief-net", "--latent-dim", "1100", *DIGITS), ["10^331 latent states", "more memory than any machine has"]),
        # an empty word
        (("vae", "--guide", "", *DIGITS), ["unknown guide ''"]),
        (("vae", "--objective=", *DIGITS), ["--objective '': is empty"]),
        (("vae", "--out", " ", *DIGITS), ["--out '': is empty"]),
        (("", *DIGITS), ["unknown model ''"]),
        # where it goes
        (("vae", "--out", "there", *DIGITS), ["--out there", "exists already"]),
        (("vae", "--out", "file/run", *DIGITS), ["--out file/run", "cannot be written"]),
        (("vae", "--out", "/proc/run", *DIGITS), ["/proc", "cannot be written"]),
        # resuming
        (("--resume", "nowhere"), ["nowhere", "no such run"]),
        (("--resume", "there"), ["there", "not a run directory"]),
        (("--resume", "there", "--epoch", "5"), ["--epoch", "did you mean --epochs"]),
    ],
)
def test_fit(here: Path, call: Call, arguments: tuple[str, ...], words: list[str]) -> None:
    before = sorted(path.name for path in here.rglob("*") if "pycache" not in str(path))
    status, _, err = call(fit.command, *arguments)
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("error: "), err
    for word in words:
        assert word in err
    assert sorted(path.name for path in here.rglob("*") if "pycache" not in str(path)) == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainingOptions(schedule="cosin"), ["schedule cosin", "cosine"]),
        (lambda: DataOptions(binarization="treshold"), ["binarization treshold", "threshold"]),
        (lambda: EvaluationOptions(estimator="exakt"), ["estimator exakt", "exact"]),
        (lambda: Annealing(schedule="liner"), ["annealed.schedule liner", "linear"]),
        (lambda: VAE(4, (2, 2), network="cnv"), ["network cnv", "conv"]),
    ],
)
def test_choices_from_python(make: Callable[[], Any], words: list[str]) -> None:
    """What the command line's parser refuses by itself."""
    with pytest.raises(BadInput) as error:
        make()
    assert all(word in str(error.value) for word in words)


def test_no_cuda(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = call(fit.command, "vae", "--device", "cuda", *DIGITS)
    assert status == 2 and err.count("\n") == 1 and "--device cuda" in err


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_no_network(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(downloads.SERVERS, name, "http://127.0.0.1:9/")
    status, _, err = call(fit.command, "vae", "--data", name)
    assert status == 2 and err.count("\n") == 1
    assert f"--data {name}" in err and "PPL_GEN_DATA" in err
    assert not Path("data").exists()


def _edit_config(**changes: Any) -> None:
    path = Path("run/config.json")
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))


def _cut_checkpoint() -> None:
    path = Path("run/checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "arguments", "words"),
    [
        (None, ("run", "--num-samples", "0"), ["--num-samples 0"]),
        (None, ("run", "--num-images", "301"), ["--num-images 301", "300"]),
        (None, ("run", "--split", "tset"), ["tset", "--split"]),
        (None, ("run", "--estimator", "guess"), ["guess", "--estimator"]),
        (None, ("run", "--guide", "guides.py:Base"), ["--guide guides.py:Base", "was fitted with normal"]),
        (None, (), ["run directory"]),
        (lambda: Path("run/config.json").unlink(), ("run",), ["run", "not a run directory"]),
        (lambda: _edit_config(format=2), ("run",), ["run", "later version"]),
        (lambda: Path("run/config.json").write_text("{"), ("run",), ["config.json", "damaged"]),
        (lambda: _edit_config(training={"epoch": 3}), ("run",), ["config.json", "damaged"]),
        (lambda: _edit_config(model="vea"), ("run",), ["unknown model 'vea'"]),
        (lambda: _edit_config(model_options={"latent_dim": 3}), ("run",), ["checkpoint", "does not match"]),
        (lambda: _edit_config(model_options={"depth": 3}), ("run",), ["--depth", "no such option"]),
        (_cut_checkpoint, ("run",), ["checkpoint", "damaged"]),
        (lambda: Path("run/checkpoint.safetensors").unlink(), ("run",), ["no checkpoint", "--resume"]),
    ],
)
def test_evaluate(
    here: Path,
    fitted: Path,
    call: Call,
    damage: Callable[[], Any] | None,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    shutil.copytree(fitted, "run")
    if damage is not None:
        damage()
    before = Path("run/evaluation.json").read_bytes()
    status, out, err = call(evaluate.command, *arguments)
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("error: "), err
    assert out == ""
    for word in words:
        assert word in err
    assert Path("run/evaluation.json").read_bytes() == before


def test_starting_from_a_run_that_does_not_fit(here: Path, fitted: Path, call: Call) -> None:
    shutil.copytree(fitted, "run")
    for arguments, words in (
        (("--init-from", "there", "--hidden-dims", "4"), ["there", "not a run directory"]),
        (("--init-from", "run", "--hidden-dims", "5"), ["--init-from run", "its model differs", "'model.decoder."]),
    ):
        status, _, err = call(fit.command, "vae", "--latent-dim", "2", *arguments, *DIGITS, "--out", "new")
        assert status == 2 and err.count("\n") == 1 and all(word in err for word in words), err
    Path("run/checkpoint.safetensors").unlink()
    status, _, err = call(fit.command, "vae", "--init-from", "run", *DIGITS, "--out", "new")
    assert status == 2 and "--init-from run: has no checkpoint" in err and not Path("new").exists()


def test_a_disk_that_fills_up_in_drawing(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no picture that a model cannot have."""
    write = runs.write_files

    def full(contents: Mapping[Path, bytes]) -> None:
        with readable_errors(Path()):
            if any(path.stem == "reconstructions" for path in contents):
                raise OSError(28, "No space left on device")
        write(contents)

    monkeypatch.setattr(runs, "write_files", full)
    quick = ("--epochs", "1", "--num-samples", "5", "--hidden-dims", "4", "--out", "full")
    status, _, err = call(fit.command, "vae", *DIGITS, *quick)
    assert status == 2 and "No space left on device" in err.splitlines()[-1]
    assert "no picture of" not in err


def test_a_disk_that_fills_up_in_training(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run keeps its last checkpoint, and continues once there is space."""
    fsync, count = runs.os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 9:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    arguments = ("vae", *DIGITS, "--epochs", "6", "--num-samples", "5", "--hidden-dims", "4", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", full)
        status, _, err = call(fit.command, *arguments)
    assert status == 2 and "No space left on device" in err.splitlines()[-1]
    status, out, _ = call(fit.command, "--resume", "run")
    assert status == 0 and "log p(x)" in out
    assert [
        json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ] == list(range(7))


def test_a_loss_that_is_not_finite(here: Path, call: Call) -> None:
    arguments = ("vae", *DIGITS, "--epochs", "3", "--learning-rate", "1e20", "--out", "run")
    status, _, err = call(fit.command, *arguments)
    assert status == 1
    last = err.splitlines()[-1]
    assert "not finite at step" in last and "--learning-rate" in last and "Traceback" not in err


def test_ctrl_c_says_how_to_go_on(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from ppl_gen.data.splits import Data

    batch = Data.batch

    def interrupt(self: Data, index: torch.Tensor) -> torch.Tensor:
        if len(index) > 8:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(self, index)

    arguments = ("vae", *DIGITS, "--epochs", "3", "--num-samples", "5", "--guide", "guides.py:Base", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(Data, "batch", interrupt)
        status, _, err = call(fit.command, *arguments)
    assert status == 1
    last = "interrupted: continue with: python -m ppl_gen.fit --resume run --guide guides.py:Base"
    assert err.splitlines()[-1] == last
    assert call(fit.command, "--resume", "run", "--guide", "guides.py:Base")[0] == 0
