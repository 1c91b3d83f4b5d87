"""What is found before the first step."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import FEW, PLAIN, SHORT, Laplace, small_config
from own_classes import PAIRS
from pyro.distributions import transforms
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.inference.pair import Terms
from ppl_gen.run import Run
from ppl_gen.training.checks import prepare, without_gradient

Call = Callable[..., tuple[int, str, str]]

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


def test_a_prior_that_the_model_ignores(elsewhere: Path, call: Call) -> None:
    Path("deaf.py").write_text(DEAF)
    status, _, err = call(fit.command, "deaf.py:Deaf", "--prior", "flow", *PLAIN, "--out", "run")
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


def test_a_likelihood_with_noise(elsewhere: Path, call: Call) -> None:
    """Dropout that is always on: two calls differ, which is no disagreement of two methods."""
    noisy = WRONG.replace("2 * self.net(z)", "self.net(nn.functional.dropout(z))").replace(
        "logits=self.net(z)", "logits=self.net(nn.functional.dropout(z))"
    )
    Path("noisy.py").write_text(noisy)
    status, _, err = call(fit.command, "noisy.py:Deaf", *PLAIN, "--out", "run")
    assert status == 2 and "Deaf: likelihood(z) draws random numbers" in err and err.count("\n") == 1
    assert not Path("run").exists()


def test_a_likelihood_that_is_not_the_models(elsewhere: Path, call: Call) -> None:
    Path("wrong.py").write_text(WRONG)
    status, _, err = call(fit.command, "wrong.py:Deaf", *PLAIN, "--out", "run")
    assert status == 2 and "prior() and likelihood(z) and model() disagree" in err and err.count("\n") == 1
    assert not Path("run").exists()


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


def test_parameters_that_nothing_depends_on_are_told(data: Data) -> None:
    """And those that model and guide share are counted once."""
    config = small_config()
    assert "8 of 8 parameters have a gradient" in str(prepare(config))
    model, guide = assemble(config, data)
    guide.shared, model.unused = model.decoder, nn.Linear(2, 3)
    missing = without_gradient(Assembled(config, model, guide, data, Given()))
    assert missing == ["model.unused.weight", "model.unused.bias"]
    modules = nn.ModuleDict({"model": model, "guide": guide})
    assert sum(1 for _ in modules.parameters()) == 10


@pytest.mark.parametrize("unused", [False, True])
def test_a_baseline_that_the_objective_does_not_use_is_no_fault(
    data: Data, capsys: pytest.CaptureFixture[str], unused: bool
) -> None:
    """It is among the parameters without a gradient, and there is no warning of it. There is one of others."""
    config = replace(
        small_config(TrainingOptions(objective="vimco", num_particles=2)),
        model="belief-net",
        guide="bernoulli",
        model_options={"latent_dim": 3},
    )
    given = Given()
    if unused:
        model, guide = assemble(config, data)
        model.unused = nn.Linear(2, 3)
        config, given = replace(config, model_options={}), Given(model, guide)
    found = prepare(config, given, quiet=False)
    baseline = [
        f"guide.baseline.{name}"
        for name in ("level", "network.0.weight", "network.0.bias", "network.2.weight", "network.2.bias")
    ]
    others = ["model.unused.weight", "model.unused.bias"] if unused else []
    assert sorted(found.missing) == sorted(baseline + others)
    err = capsys.readouterr().err
    assert err == ("warning: no gradient reaches model.unused.weight, model.unused.bias\n" if unused else "")


class Averaging(nn.Module):
    """A guide with Pyro's moving average as its baseline."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.net = nn.Linear(data_dim, latent_dim)

    def guide(self, x: Tensor) -> None:
        infer: Any = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.net(x)).to_event(1), infer=infer)


def test_a_moving_average_of_pyro_is_refused(data: Data) -> None:
    """It is a parameter that no checkpoint keeps."""
    config = replace(small_config(), model="belief-net", model_options={"latent_dim": 3}, guide="instance:Averaging")
    with pytest.raises(BadInput, match="use_decaying_avg_baseline of 'z' keeps an average that no checkpoint has"):
        prepare(config, Given(guide=Averaging(data.dim, 3)), quiet=True)


class Warming:
    """A surrogate that counts its steps, in Python or in a buffer."""

    num_particles = 1

    def __init__(self) -> None:
        self.steps = 0

    def surrogate(self, terms: Terms) -> Tensor:
        self.steps += 1
        return terms.log_likelihood.mean(0) + min(1.0, self.steps / 100) * (terms.log_prior - terms.log_guide).mean(0)


class InTensors:
    """Steps in a list, a running mean, and what the last loss has left, which is no state."""

    num_particles = 1

    def __init__(self) -> None:
        self.all, self.steps, self.last, self.weights = [], torch.zeros(()), torch.zeros(()), torch.zeros(0)

    def surrogate(self, terms: Terms) -> Tensor:
        self.all.append(1)
        self.steps = self.steps + 1
        self.last, self.weights = terms.log_weight.mean().detach(), terms.log_weight
        return terms.log_weight.mean(0)


class First:
    """What a first step alone does."""

    num_particles = 1

    def __init__(self) -> None:
        self.started = False

    @property
    def steps(self) -> int:
        return int(self.started)

    def surrogate(self, terms: Terms) -> Tensor:
        self.started = True
        return terms.log_weight.mean(0)


class InABuffer(nn.Module):
    num_particles = 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    surrogate = Warming.surrogate


@pytest.mark.parametrize("kind", [Warming, InTensors, First, InABuffer])
def test_numbers_that_no_checkpoint_keeps_are_told(data: Data, capsys: pytest.CaptureFixture[str], kind: Any) -> None:
    """Trying the objective does not count as a step."""
    objective = kind()
    prepare(small_config(), Given(objective=objective), quiet=False)
    err = capsys.readouterr().err
    assert int(objective.steps) == 0
    if kind is InABuffer:
        assert not err
    else:
        names = {
            Warming: "Warming.steps",
            InTensors: "InTensors.all, InTensors.steps",
            First: "First.started",
        }[kind]
        assert err.startswith(
            f"warning: {names} changes in training, but a checkpoint keeps parameters and persistent buffers"
        )


class SumOrMean:
    """A loss of a user's own."""

    def __init__(self, reduce: str) -> None:
        self.reduce = reduce

    def loss(self, pair: Any, x: Tensor, *args: Any) -> Tensor:
        bounds: Tensor = pair.terms(x, *args, num_samples=2).log_weight.mean(0)
        return -bounds.mean() if self.reduce == "mean" else -bounds.sum()


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_loss_that_is_a_mean_over_images_is_told(data: Data, capsys: pytest.CaptureFixture[str], reduce: str) -> None:
    prepare(small_config(), Given(objective=SumOrMean(reduce)), quiet=False)
    told = "warning: objective SumOrMean: its loss is the same for twice as many images; return the sum over"
    assert (told in capsys.readouterr().err) == (reduce == "mean")


def test_a_guide_that_leaves_the_support_is_not_fitted(elsewhere: Path, call: Call) -> None:
    """Its ELBO is -inf, whether or not a few draws show it."""
    uniform = "dist.Uniform(-9 * torch.ones(4), 9.0).to_event(1)"
    Path("own.py").write_text(
        PAIRS.replace(
            "dist.Normal(torch.zeros(4), 1.0).to_event(1))\n            near", f"{uniform})\n            near"
        )
    )
    status, _, err = call(fit.command, "own.py:Bounded", "--guide", "own.py:BoundedGuide", *SHORT, "--out", "run")
    assert status == 2 and "draws 'z' outside the support of its prior in Bounded" in err and err.count("\n") == 1, err


class Transformed(nn.Module):
    """A normal guide with one of Pyro's transforms."""

    def __init__(self, transform: nn.Module, data_dim: int = 64):
        super().__init__()
        self.net, self.transform = nn.Linear(data_dim, 6), transform

    def guide(self, x: Tensor) -> None:
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            normal = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(normal, [self.transform]))


@pytest.mark.parametrize(
    ("transform", "objective", "words"),
    [
        (transforms.batchnorm(3), "elbo", "Pyro's transform BatchNorm has another density than its samples"),
        (transforms.planar(3), "stl", "ConditionedPlanar has no inverse, and so no density for a z that"),
        (transforms.planar(3), "rws", "ConditionedPlanar has no inverse"),
        (transforms.planar(3), "elbo", ""),
        (transforms.affine_coupling(3, [4]), "stl", ""),
    ],
)
def test_transforms_without_a_density(transform: nn.Module, objective: str, words: str) -> None:
    particles = 5 if objective == "rws" else 1
    config = small_config(TrainingOptions(objective=objective, num_particles=particles))
    given = Given(guide=Transformed(transform))
    if not words:
        prepare(config, given)
        return
    with pytest.raises(BadInput, match=words) as error:
        prepare(config, given)
    assert "KeyError" not in str(error.value)


def test_a_contract_that_a_plate_breaks_is_refused(elsewhere: Path, call: Call) -> None:
    """`prior()` is of one event per image."""
    prior = "\n    def prior(self):\n        return dist.Normal(torch.zeros(4), 1.0).to_event(1)\n"
    Path("own.py").write_text(PAIRS.replace("\n\nclass PlateGuide", f"{prior}\n\nclass PlateGuide"))
    status, _, err = call(fit.command, "own.py:Plate", "--guide", "own.py:PlateGuide", *SHORT, "--out", "run")
    assert status == 2 and "site 'z' is in a plate within 'data'" in err and err.count("\n") == 1, err


class Detached:
    """An objective whose surrogate lets no gradient through."""

    num_particles = 1

    def surrogate(self, terms: Any) -> Tensor:
        return terms.log_weight.mean(0).detach()


class DetachedLoss:
    """Likewise, as a loss, which may be of an enumerated pair."""

    def loss(self, pair: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return -pair.terms(x).log_weight.sum()


class Strict(Laplace):
    """A guide that fails in training alone."""

    def guide(self, x: Tensor) -> None:
        if self.training and torch.is_grad_enabled():
            raise KeyError("width")
        super().guide(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": Detached}, "objective Detached: its loss has no gradient; do not detach it"),
        ({"objective": DetachedLoss}, "objective DetachedLoss: its loss has no gradient; do not detach it"),
        ({"guide": Strict}, "VAE and Strict fail in training mode: KeyError: 'width' ("),
    ],
)
def test_what_cannot_be_trained_is_told(elsewhere: Path, x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        Run.fit("vae", data=x, **options, **FEW)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert list(elsewhere.iterdir()) == []
