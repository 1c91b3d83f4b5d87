"""The commands, end to end, as a user has them."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ppl_gen
from ppl_gen import compare, evaluate, fit
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation import gap_split
from ppl_gen.evaluation.table import table
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.report.run_page import write_report
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
QUICK = ("--data", "digits", "--train-size", "200", "--epochs", "2", "--num-samples", "50", "--hidden-dims", "16")

GUIDE = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class MyGuide(nn.Module):
    """A guide of one's own.

    :param scale: standard deviation of everything.
    """

    def __init__(self, data_dim, latent_dim, *, scale: float = 0.5, wide: bool = False):
        super().__init__()
        self.loc = nn.Linear(data_dim, latent_dim)
        self.scale = scale * (2 if wide else 1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), self.scale).to_event(1))
'''

MODEL = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Two(nn.Module):
    """Two latent sites, neither called z, conditioned on the label."""

    def __init__(self, data_dim, *, width: int = 4):
        super().__init__()
        self.net = nn.Linear(width, data_dim)
        self.embed = nn.Embedding(10, width)
        self.width = width

    def model(self, x=None, y=None, *, n=1):
        count = n if x is None else len(x)
        y = torch.zeros(count, dtype=torch.long) if y is None else y
        with pyro.plate("images", count):
            a = pyro.sample("a", dist.Normal(torch.zeros(self.width), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            logits = self.net(b + self.embed(y))
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class TwoGuide(nn.Module):
    def __init__(self, data_dim, model):
        super().__init__()
        self.net = nn.Linear(data_dim, 2 * model.width)

    def guide(self, x):
        a, b = self.net(x).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("a", dist.Normal(a, 0.5).to_event(1))
            pyro.sample("b", dist.Normal(b, 0.5).to_event(1))
'''


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the default pair, fitted from Python."""
    config = Config(
        model_options={"hidden_dims": (16,)},
        data=DataOptions(data="digits", train_size=200),
        training=TrainingOptions(epochs=2),
        num_samples=50,
    )
    return Run.start(config, out=tmp_path_factory.mktemp("runs") / "run", quiet=True).directory.path


def test_the_directory_of_a_run(finished: Path) -> None:
    assert sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()) == [
        "checkpoint.safetensors",
        "config.json",
        "evaluation.json",
        "evaluation.nc",
        "explorer.json",
        "figures/aggregate_posterior.png",
        "figures/bound_against_k.png",
        "figures/gap_histogram.png",
        "figures/interpolations.png",
        "figures/latent_space.png",
        "figures/learning_curves.png",
        "figures/manifold.png",
        "figures/reconstructions.png",
        "figures/samples.png",
        "figures/through_training.png",
        "metrics.jsonl",
        "report.html",
        "samples.npz",
    ]
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["model_options"]["latent_dim"] == 20 and config["guide_options"]["input_dropout"] == 0.0
    assert config["training"]["seed"] == 0 and config["versions"]["torch"] == version("torch")


def test_the_evaluation_of_a_run(finished: Path) -> None:
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["log_px"]["estimator"] == "importance" and summary["log_px"]["num_samples"] == 50
    assert list(summary["iwae"]) == ["1", "10"]
    assert summary["num_images"] == 300 and summary["binarization"] == "dynamic" and summary["split"] == "test"
    assert summary["elbo"]["mean"] == pytest.approx(summary["reconstruction"]["mean"] - summary["kl"]["mean"])
    assert summary["gap"]["mean"] == pytest.approx(summary["log_px"]["mean"] - summary["elbo"]["mean"])
    assert summary["elbo"]["mean"] < summary["iwae"]["10"]["mean"] < summary["log_px"]["mean"]
    assert summary["num_parameters"] == 64 * 16 + 16 + 16 * 40 + 40 + 20 * 16 + 16 + 16 * 64 + 64
    for key in ("ess", "khat", "active_units", "seconds", "seed"):
        assert key in summary


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("units", [0, 3])
def test_a_collapsed_posterior_is_told(finished: Path, units: int) -> None:
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8")) | {"active_units": units}
    assert ("z is not used, its mean is the same for every image: --kl-warmup" in table(summary)) == (units == 0)


def test_evaluation_nc_in_xarray_and_arviz(finished: Path) -> None:
    import arviz
    import xarray

    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    with xarray.open_dataset(finished / "evaluation.nc", group="evaluation", engine="h5netcdf") as dataset:
        assert dataset.sizes == {"image": 300, "k": 2}
        assert dataset.attrs["estimator"] == "importance" and dataset["label"].shape == (300,)
        assert set(dataset["untrusted"].values.tolist()) <= {0, 1}
        assert bool(dataset["untrusted"].any()) == summary["gap"]["at_least"]
        for name in ("elbo", "log_px", "kl", "reconstruction", "gap"):
            assert float(dataset[name].mean()) == pytest.approx(summary[name]["mean"])
            assert dataset[name].attrs["units"] == "nats"
            assert float(dataset[name].std(ddof=1)) / math.sqrt(300) == pytest.approx(summary[name]["se"])
        assert float(dataset["iwae"].sel(k=10).mean()) == pytest.approx(summary["iwae"]["10"]["mean"])
    tree = arviz.from_netcdf(finished / "evaluation.nc")
    assert "log_px" in tree["evaluation"]


def test_load_gives_the_pair_that_was_evaluated(finished: Path) -> None:
    model, guide, data, config = ppl_gen.load(finished)
    assert config["model"] == "vae" and data.name == "digits"
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    result = ppl_gen.log_marginal_likelihood(model, guide, data.targets("test"), num_samples=50)
    assert result.log_px.mean().item() == summary["log_px"]["mean"]
    assert "by importance sampling, S = 50" in str(result)


def test_evaluate_command(finished: Path, call: Call) -> None:
    before = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    arguments = (finished, "--split", "validation", "--num-images", "40", "--num-samples", "25", "--checkpoint", "best")
    status, out, _ = call(evaluate.command, *arguments)
    assert status == 0
    summary = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert (summary["split"], summary["num_images"], summary["checkpoint"]) == ("validation", 40, "best")
    assert summary["log_px"]["num_samples"] == 25
    for words in ("ELBO", "log p(x)", "gap", "k-hat", "40 validation images of digits", "±"):
        assert words in out
    assert call(evaluate.command, finished)[0] == 0
    again = json.loads((finished / "evaluation.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}


PRIOR = """
import pyro.distributions as dist
import torch
from torch import nn


class Wide(nn.Module):
    \'\'\'A wide Gaussian.

    :param scale: standard deviation.
    \'\'\'

    def __init__(self, latent_dim, *, scale: float = 1.5):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.scale = scale

    def prior(self):
        return dist.Normal(self.loc, self.scale).to_event(1)
"""


DEAF = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Deaf(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(3, data_dim)

    def prior(self):
        return dist.Normal(torch.zeros(3), 1.0).to_event(1)

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)
"""


def test_starting_from_another_run(elsewhere: Path, finished: Path, call: Call) -> None:
    """Epoch 0 is where the other run ended, with the same guide; with another guide only the model is taken."""
    import shutil

    shutil.copytree(finished, "first")
    last = json.loads(Path("first/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    arguments = ("--init-from", "first", *QUICK, "--out", "second")
    status, out, _ = call(fit.command, "vae", *arguments, "--objective", "elbo-analytic-kl")
    assert status == 0 and "starts from first: its model, and 4 of the 4 tensors of the guide" in out
    lines = [json.loads(line) for line in Path("second/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0]["validation"] == last["validation"] and lines[1]["validation"] != last["validation"]

    shutil.rmtree("first")  # a run that has started does not need it
    Path("second/evaluation.json").unlink()
    status, _, err = call(fit.command, "--resume", "second")
    assert status == 0 and "training was finished before" in err
    Path("second/checkpoint.safetensors").unlink()
    status, _, err = call(fit.command, "--resume", "second")
    assert status == 2 and "first: no such run directory" in err

    Path("my_guide.py").write_text(GUIDE)
    config = Config(
        model_options={"hidden_dims": (16,)},
        guide="my_guide.py:MyGuide",
        data=DataOptions(data="digits", train_size=200),
        training=TrainingOptions(epochs=1, learning_rate=1e-30),
        num_samples=1,
        init_from=str(finished),
    )
    run = Run.start(config, out="third", quiet=True).directory
    ours, theirs = (ppl_gen.load(path, guide) for path, guide in ((run.path, config.guide), (finished, None)))
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, theirs.model.state_dict()[name])


def test_refitting_the_guide(elsewhere: Path, finished: Path, call: Call) -> None:
    """The model, with its data and prior, is the other run's, and stays as it was to the last bit; the guide moves."""
    import shutil

    shutil.copytree(finished, "first")
    arguments = ("--init-from", "first", "--refit-guide", "multivariate-normal", "--epochs", "1", "--num-samples", "20")
    status, out, err = call(fit.command, *arguments, "--out", "second")
    assert status == 0, err
    assert "starts from first: its model, and 2 of the 4 tensors of the guide" in out
    before, after = ppl_gen.load("first"), ppl_gen.load("second")
    assert after.config["guide"] == "multivariate-normal" and after.config["data"] == before.config["data"]
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, after.model.state_dict()[name])
    hidden = "encoder.0.weight"
    assert not torch.equal(before.guide.state_dict()[hidden], after.guide.state_dict()[hidden])
    lines = [json.loads(line) for line in Path("second/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["validation"]["elbo"] > lines[0]["validation"]["elbo"]
    Path("second/evaluation.json").unlink()
    status, _, err = call(fit.command, "--resume", "second")
    assert status == 0, err

    for wrong, words in (
        (("vae", "--refit-guide", "normal"), "name it with --init-from"),
        (("--init-from", "first", "--refit-guide", "normal", "--guide", "flow"), "leave out --guide"),
        (("--init-from", "first", "--refit-guide", "norml"), "did you mean 'normal'"),
        (("--init-from", "first", "--refit-guide", "normal", "--prior", "flow"), "has another --prior"),
        (("--init_from", "first", "--refit_guide", "normal", "--guide", "flow"), "leave out --guide"),
    ):
        status, _, err = call(fit.command, *wrong, "--out", "third")
        assert status == 2 and words in err, err
    assert not Path("third").exists()


def test_a_prior_of_ones_own(elsewhere: Path, call: Call) -> None:
    """From a file, with options; named again to be evaluated, never imported otherwise."""
    Path("my_prior.py").write_text(PRIOR)
    named = ("--prior", "my_prior.py:Wide")
    status, out, err = call(fit.command, "vae", *named, "--help")
    assert status == 0 and "--prior.scale" in out and "standard deviation" in out
    status, out, err = call(fit.command, "vae", *named, "--prior.scale", "2", *QUICK, "--out", "run")
    assert status == 0, err
    assert "prior my_prior.py:Wide" in out
    assert json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["prior"] == "my_prior.py:Wide"
    status, _, err = call(evaluate.command, "run")
    assert status == 2 and "name it again: --prior my_prior.py:Wide" in err
    assert call(evaluate.command, "run", *named)[0] == 0
    status, _, err = call(evaluate.command, "run", "--prior", "flow")
    assert status == 2 and "was fitted with my_prior.py:Wide" in err


def test_a_prior_that_the_model_ignores(elsewhere: Path, call: Call) -> None:
    Path("deaf.py").write_text(DEAF)
    status, _, err = call(fit.command, "deaf.py:Deaf", "--prior", "flow", *QUICK[:-2], "--out", "run")
    assert status == 2 and "prior() and model() disagree" in err and err.count("\n") == 1


WRONG = (
    DEAF.replace(
        "        with pyro.plate",
        "        self.seen = True\n        with pyro.plate",
    )
    + """
    def likelihood(self, z):
        return dist.Bernoulli(logits=2 * self.net(z)).to_event(1)
"""
)


def test_a_likelihood_that_is_not_the_models(elsewhere: Path, call: Call) -> None:
    Path("wrong.py").write_text(WRONG)
    status, _, err = call(fit.command, "wrong.py:Deaf", *QUICK[:-2], "--out", "run")
    assert status == 2 and "prior() and likelihood(z) and model() disagree" in err and err.count("\n") == 1
    assert not Path("run").exists()


def test_gaps_that_cannot_be_split(elsewhere: Path, call: Call) -> None:
    net = ("belief-net", "--guide", "bernoulli", "--latent-dim", "3", *QUICK[:-2], "--binarization", "static")
    assert call(fit.command, *net, "--out", "net")[0] == 0
    status, _, err = call(evaluate.command, "net", "--gaps")
    assert status == 2 and "can be reparametrized" in err and err.count("\n") == 1
    status, _, err = call(fit.command, "--init-from", "net", "--refit-guide", "enumerated", "--out", "other")
    assert status == 2 and "neither model nor guide has a parameter to train" in err


def test_gaps_of_a_run(elsewhere: Path, finished: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_gen.inference import gaps

    monkeypatch.setattr(gap_split, "Search", lambda: gaps.Search(window=3, patience=1, most_windows=4))
    before = (finished / "evaluation.json").read_text(encoding="utf-8")
    arguments = (finished, "--gaps", "--num-images", "5", "--num-samples", "50")
    status, out, _ = call(evaluate.command, *arguments)
    assert status == 0 and "approximation gap" in out and "amortization gap" in out
    assert (finished / "evaluation.json").read_text(encoding="utf-8") == before
    found = json.loads((finished / "gaps.json").read_text(encoding="utf-8"))["contexts"]
    whole = found["log_px"]["mean"] - found["elbo"]["mean"]
    assert found["approximation"]["mean"] + found["amortization"]["mean"] == pytest.approx(whole)
    assert len(found["per_image"]["elbo"]) == found["num_images"] == 5
    assert call(fit.command, "--init-from", finished, "--guide", "flow", *QUICK[2:], "--out", "flow")[0] == 0
    how = ("--estimator", "annealed", "--annealed.num-temperatures", "60", "--annealed.start", "guide")
    status, out, _ = call(evaluate.command, *arguments, *how)
    larger = json.loads((finished / "gaps.json").read_text(encoding="utf-8"))
    of_log_px = {"importance": "importance sampling", "annealed": "annealed"}[larger["contexts"]["estimator"]]
    assert status == 0 and f"log p(x), {of_log_px}" in out
    assert larger["annealed"]["num_temperatures"] == 60
    assert larger["contexts"]["log_px"]["mean"] >= found["log_px"]["mean"]
    assert call(evaluate.command, "flow", *arguments[1:], "--gap-copies", "2")[0] == 0
    parts = json.loads(Path("flow/gaps.json").read_text(encoding="utf-8"))
    assert parts["copies"]["num_images"] == parts["contexts_of_these"]["num_images"] == 2
    assert parts["contexts_of_these"]["per_image"]["elbo"] == parts["contexts"]["per_image"]["elbo"][:2]


def test_auto_falls_back_and_says_so(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_gen.data import loading

    loading.import_torchvision()
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    status, out, err = call(fit.command, "vae", "--data", "auto", *QUICK[2:], "--out", "run")
    assert status == 0
    assert "using scikit-learn's 8x8 digits instead" in out
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    assert config["data"]["data"] == "digits" and "MNIST is not on disk" in config["data_notice"]
    # Standard error is no terminal here: plain lines with the time left.
    assert "epoch 1/2  train ELBO" in err and "s left" in err and "\r" not in err
    exact = ("mixture", "--data", "digits", "--epochs", "1", "--num-components", "2", "--out", "exact")
    assert "epoch 1/1  train log p(x) -" in call(fit.command, *exact)[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--network", "conv", "--channels", "4", "8", "--activation", "tanh"),
        ("--objective", "elbo-analytic-kl", "--num-particles", "3", "--kl-warmup", "1"),
        ("--binarization", "static", "--schedule", "one-cycle", "--clip-grad-norm", "10"),
        ("--binarization", "threshold", "--latent-dim", "1", "--no-init-output-bias", "--guide.input-dropout", "0.1"),
        ("--binarization", "none"),
        ("--binarization", "none", "--likelihood", "continuous-bernoulli"),
        ("--binarization", "none", "--likelihood", "normal", "--guide.hidden-dims", "8", "8"),
        ("--train-size", "1497"),
        ("--hidden-dims",),
    ],
)
def test_options(elsewhere: Path, call: Call, arguments: tuple[str, ...]) -> None:
    status, out, err = call(fit.command, "vae", *QUICK, *arguments, "--out", "run")
    assert status == 0, err
    summary = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert math.isfinite(summary["log_px"]["mean"])
    grey = "none" in arguments
    kind = "density" if "--likelihood" in arguments else "cross-entropy" if grey else "probability"
    assert summary["observation"] == kind
    assert ("no bound on a log-probability" in out) == (kind == "cross-entropy")
    assert ("not comparable with probabilities" in out) == (kind == "density")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(("validation" in line) == ("1497" not in arguments) for line in lines)


def test_pictures_where_no_validation_split_is_left(elsewhere: Path, call: Call, all_pictures: None) -> None:
    status, _, err = call(fit.command, "vae", *QUICK, "--train-size", "1497", "--latent-dim", "2", "--out", "run")
    assert status == 0, err
    assert Path("run/figures/latent_space.png").exists() and Path("run/report.html").exists()


# Somebody's own classes ----------------------------------------------------------------------------------------


def test_a_guide_in_a_file(elsewhere: Path, call: Call) -> None:
    Path("my_guide.py").write_text(GUIDE)
    reference = "my_guide.py:MyGuide"
    options = ("--guide", reference, "--guide.scale", "0.25", "--guide.wide")
    assert call(fit.command, "vae", *options, *QUICK, "--out", "run")[0] == 0
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    assert config["guide"] == reference and config["guide_options"] == {"scale": 0.25, "wide": True}
    first = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))

    for command, arguments in ((evaluate.command, ["run"]), (fit.command, ["--resume", "run"])):
        status, _, err = call(command, *arguments)
        assert status == 2
        assert err == f"error: run: was fitted with the guide {reference}; name it again: --guide {reference}\n"
        status, _, err = call(command, *arguments, "--guide", "normal")
        assert status == 2 and "was fitted with my_guide.py:MyGuide" in err
        status, _, err = call(command, *arguments, "--guide", reference)
        assert status == 0 and "has changed" not in err
    again = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert again["elbo"] == first["elbo"]
    assert type(ppl_gen.load("run", guide=reference).guide).__name__ == "MyGuide"
    with pytest.raises(ppl_gen.BadInput, match="name it again"):
        ppl_gen.load("run")

    Path("elsewhere.py").write_text(GUIDE + "\n# changed\n")
    status, _, err = call(evaluate.command, "run", "--guide", "elsewhere.py:MyGuide")
    assert status == 0 and "warning: elsewhere.py:MyGuide has changed since the run was fitted" in err


PAIR = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Unseen(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(3, data_dim)

    def prior(self):
        return dist.Normal(torch.zeros(3), 1.0).to_event(1)

    def likelihood(self, z):
        return dist.TransformedDistribution(dist.Normal(self.net(z), 1.0).to_event(1), [])  # has no mean

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", self.likelihood(pyro.sample("z", self.prior())), obs=x)


class Guide(nn.Module):
    def __init__(self, data_dim, model):
        super().__init__()
        assert isinstance(model, Unseen)
        self.net = nn.Linear(data_dim, 3)

    def encode(self, x):
        return self.net(x)

    def posterior(self, context):
        return dist.Normal(context, 1.0).to_event(1)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))
"""


@pytest.mark.filterwarnings("ignore:.*grey values under")
def test_a_pair_of_one_file_that_cannot_be_drawn(elsewhere: Path, call: Call, all_pictures: None) -> None:
    """Both classes are of one module; and what cannot be drawn is said, not the end of the run."""
    Path("pair.py").write_text(PAIR)
    named = ("pair.py:Unseen", "--guide", "pair.py:Guide")
    status, _, err = call(fit.command, *named, *QUICK[:-2], "--binarization", "dequantized", "--out", "run")
    assert status == 0, err
    for what in ("samples", "reconstructions", "the latent space"):
        assert f"warning: no picture of {what}: " in err
    assert Path("run/report.html").is_file() and Path("run/figures/gap_histogram.png").is_file()


def test_a_file_of_images_is_known_by_its_content(elsewhere: Path, call: Call) -> None:
    """Another draw under the same name: evaluating says so, and what was evaluated on either cannot be compared."""
    images = np.random.default_rng(0).random((2, 60, 12)) < 0.3
    np.save("mine.npy", images[0])
    mixture = ("mixture", "--data", "mine.npy", "--epochs", "1", "--num-components", "2")
    assert call(fit.command, *mixture, "--out", "first")[0] == 0
    status, _, err = call(evaluate.command, "first")
    assert status == 0 and "has changed" not in err
    assert call(fit.command, *mixture, "--num-components", "3", "--out", "second")[0] == 0
    assert call(compare.command, "first", "second")[0] == 0

    np.save("mine.npy", images[1])
    assert call(evaluate.command, "second")[2].startswith("warning: mine.npy has changed since the run was fitted\n")
    assert "warning: mine.npy has changed since the run was started" in call(fit.command, "--resume", "second")[2]
    status, _, err = call(compare.command, "first", "second")
    assert status == 2 and "first and second cannot be compared: the images' SHA-256 is" in err


def test_what_was_found_before_more_training_is_found_again(
    elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped, evaluated, and continued; the evaluation of a finished run stays."""
    options = [*QUICK, "--latent-dim", "1", "--epochs", "4"]
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
    assert status == 0 and "warning: training stopped after 2 of 4 epochs" in err and "in the place of" not in out
    status, out, _ = call(compare.command, "run")
    assert status == 0 and "run stopped after 2 of 4 epochs" in out
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "20 test images" in report and "not evaluated yet" not in report

    def stop_again(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("ppl_gen.run.evaluate", stop_again)
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


def test_no_stopwatch_keeps_a_run_from_going_on(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long is refused before it starts, not on the way; what does not fit into memory, always."""
    options = ("belief-net", "--data", "digits", "--train-size", "60", "--epochs", "1", "--latent-dim", "2")
    assert call(fit.command, *options, "--out", "run")[0] == 0
    config = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    config["training"]["max_hours"] = 1e-12
    Path("run/config.json").write_text(json.dumps(config))
    assert call(fit.command, "--resume", "run")[0] == 0
    monkeypatch.setattr("ppl_gen.inference.state_memory.free_memory", lambda device: 0)
    status, _, err = call(fit.command, "--resume", "run")
    assert status == 2 and "latent states" in err and "0.0 GB are free" in err, err


def test_loaded_modules_are_for_evaluation(finished: Path) -> None:
    """Not in training mode, whatever their parts do in it."""
    model, guide, _, _ = ppl_gen.load(finished)
    assert not any(module.training for part in (model, guide) for module in part.modules())


def test_help_shows_a_guides_own_options(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_guide.py").write_text(GUIDE)
    with pytest.raises(SystemExit):
        fit.command(["vae", "--guide", "my_guide.py:MyGuide", "--help"])
    out = capsys.readouterr().out
    assert "--guide.scale FLOAT" in out and "standard deviation of everything" in out and "--guide.wide" in out
    assert "--guide.input-dropout" not in out and "--latent-dim" in out and "--batch-size" in out


def test_a_run_directory_cannot_name_code(elsewhere: Path, finished: Path, call: Call) -> None:
    """Not even with an edited config.json: a file is run only if the user names it."""
    import shutil

    shutil.copytree(finished, "run")
    Path("evil.py").write_text("open('ran', 'w')")
    original = Path("run/config.json").read_text(encoding="utf-8")
    for kind in ("model", "guide"):
        Path("run/config.json").write_text(json.dumps(json.loads(original) | {kind: "evil.py:Code"}))
        status, _, err = call(evaluate.command, "run")
        assert status == 2 and f"name it again: --{kind} evil.py:Code" in err
    assert not Path("ran").exists()


def test_a_model_with_several_sites_and_labels(elsewhere: Path, call: Call) -> None:
    Path("two.py").write_text(MODEL)
    # Its only option, and the common ones.
    arguments = [a for a in QUICK if a not in ("--hidden-dims", "16")]
    pair = ("two.py:Two", "--guide", "two.py:TwoGuide")
    status, out, err = call(fit.command, *pair, *arguments, "--width", "3", "--dry-run")
    assert status == 0, err
    assert "latent 'a', event shape (3,)" in out and "plate of images 'images'" in out
    assert "5 of 5 parameters have a gradient" in out
    status, out, err = call(fit.command, *pair, *arguments, "--width", "3", "--out", "run")
    assert status == 0, err
    named = ("--model", "two.py:Two", "--guide", "two.py:TwoGuide")
    assert call(evaluate.command, "run", *named)[0] == 0
    assert call(fit.command, "two.py:Two", "--resume", "run", *named[2:])[0] == 0


def test_dry_run_writes_nothing(elsewhere: Path, call: Call) -> None:
    status, out, _ = call(fit.command, "vae", "--data", "digits", "--dry-run")
    assert status == 0 and "8 of 8 parameters have a gradient" in out
    assert list(elsewhere.iterdir()) == []


# As processes --------------------------------------------------------------------------------------------------


def _process(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_exit_status_of_the_modules(elsewhere: Path) -> None:
    done = _process("ppl_gen.fit", "vae", *QUICK, "--latent-dim", "1", "--out", "run", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    done = _process("ppl_gen.evaluate", "run", "--num-images", "5", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    done = _process("ppl_gen.evaluate", "nowhere", cwd=elsewhere)
    assert done.returncode == 2 and done.stderr == "error: nowhere: no such run directory\n" and done.stdout == ""


def test_importing_the_package_is_light_and_changes_nothing() -> None:
    code = (
        "import sys, ppl_gen; assert 'torch' not in sys.modules and 'pyro' not in sys.modules;"
        "import torch, pyro; before = (torch.get_rng_state().tolist(), pyro.settings.get(), torch.get_num_threads());"
        "import ppl_gen.fit, ppl_gen.evaluate;"
        "assert before == (torch.get_rng_state().tolist(), pyro.settings.get(), torch.get_num_threads());"
        "heavy = {'matplotlib', 'arviz', 'torchvision', 'sklearn', 'xarray', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _seconds_left_out(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


@pytest.mark.slow
def test_killed_at_ten_random_moments(elsewhere: Path) -> None:
    """SIGKILL at any moment leaves a run that resumes to the same weights, metrics and evaluation."""
    arguments = ["--data", "digits", "--epochs", "40", "--num-samples", "300", "--seed", "4"]
    assert _process("ppl_gen.fit", "vae", *arguments, "--out", "whole", cwd=elsewhere).returncode == 0

    rng = np.random.default_rng(5)
    kills = 0
    start = ["ppl_gen.fit", "vae", *arguments, "--out", "cut"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    while kills < 10:
        assert not (elsewhere / "cut" / "evaluation.json").exists(), f"finished after {kills} kills: too fast to test"
        resumable = (elsewhere / "cut").exists()
        command = ["ppl_gen.fit", "--resume", "cut"] if resumable else start
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=elsewhere, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # "run: …": start-up is over
        try:
            process.wait(rng.uniform(0, 0.35))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
    done = _process("ppl_gen.fit", "--resume", "cut", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    for name in ("evaluation.json", "metrics.jsonl"):
        assert _seconds_left_out(elsewhere / "whole" / name) == _seconds_left_out(elsewhere / "cut" / name)
    from safetensors.torch import load_file

    ours, theirs = (load_file(elsewhere / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
