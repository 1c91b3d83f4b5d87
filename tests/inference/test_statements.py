"""`pyro.param` statements through a fit: held to the same pair written with `nn.Parameter`, but for rounding."""

import json
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch

import ppl_gen
from ppl_gen import evaluate, fit, sample
from ppl_gen.runs import Run

Call = Callable[..., tuple[int, str, str]]
PAIRS = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints


class Stated(nn.Module):
    """Everything is a pyro.param; "bias" is the guide's as well."""

    def __init__(self, data_dim):
        super().__init__()
        self.data_dim = data_dim

    def prior(self):
        scale = pyro.param("prior.scale", torch.ones(2), constraint=constraints.positive)
        return dist.Normal(torch.zeros(2), scale).to_event(1)

    def likelihood(self, z):
        weight = pyro.param("weight", lambda: torch.linspace(-1, 1, 2 * self.data_dim).reshape(2, -1))
        noise = pyro.param("noise", torch.tensor(0.5), constraint=constraints.positive)
        return dist.Normal(z @ weight + pyro.param("bias", torch.zeros(self.data_dim)), noise).to_event(1)

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", self.likelihood(pyro.sample("z", self.prior())), obs=x)


class StatedGuide(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(data_dim, 2)

    def encode(self, x):
        return self.net(x - pyro.param("bias", torch.zeros(x.shape[-1])))

    def posterior(self, context):
        return dist.Normal(context, pyro.param("spread", torch.ones(2), constraint=constraints.positive)).to_event(1)

    def guide(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


class Owned(Stated):
    """The same, as parameters of modules."""

    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.scale, self.noise = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(0.5).log())
        self.weight = nn.Parameter(torch.linspace(-1, 1, 2 * data_dim).reshape(2, -1))
        self.bias = nn.Parameter(torch.zeros(data_dim))

    def prior(self):
        return dist.Normal(torch.zeros(2), self.scale.exp()).to_event(1)

    def likelihood(self, z):
        return dist.Normal(z @ self.weight + self.bias, self.noise.exp()).to_event(1)


class OwnedGuide(StatedGuide):
    def __init__(self, data_dim, model):
        super().__init__(data_dim)
        self.of_model = [model]
        self.spread = nn.Parameter(torch.zeros(2))

    def encode(self, x):
        return self.net(x - self.of_model[0].bias)

    def posterior(self, context):
        return dist.Normal(context, self.spread.exp()).to_event(1)


class Sometimes(StatedGuide):
    """A statement that is not reached in eval mode."""

    def guide(self, x):
        if self.training:
            pyro.param("late", torch.zeros(2))
        super().guide(x)
'''
OPTIONS = ("--data", "digits", "--binarization", "none", "--train-size", "200", "--num-samples", "50")
STATED = ("--model", "pairs.py:Stated", "--guide", "pairs.py:StatedGuide")


def _fit(call: Call, model: str, out: str, *more: str) -> None:
    status, _, err = call(
        fit.command, f"pairs.py:{model}", "--guide", f"pairs.py:{model}Guide", *OPTIONS, *more, "--out", out
    )
    assert status == 0, err


def _summary(run: str) -> dict[str, float]:
    found = json.loads(Path(run, "evaluation.json").read_text())
    return {key: found[key]["mean"] for key in ("elbo", "log_px", "kl")} | {"parameters": found["num_parameters"]}


@pytest.mark.parametrize("objective", [(), ("--objective", "dreg", "--num-particles", "3"), ("--objective", "stl")])
def test_the_same_numbers_as_of_parameters(elsewhere: Path, call: Call, objective: tuple[str, ...]) -> None:
    """Training, evaluation, and what is loaded, of one process in which Pyro's store has the same names."""
    Path("pairs.py").write_text(PAIRS)
    with pyro.get_param_store().scope():
        pyro.param("noise", torch.tensor(7.0))
        for model, out in (("Stated", "stated"), ("Owned", "owned")):
            _fit(call, model, out, "--epochs", "2", *objective)
        ours, theirs = (Run.open(Path(out)).metrics() for out in ("stated", "owned"))
        for one, other in zip(ours, theirs, strict=True):
            for split in ("train", "validation"):
                assert one[split] == pytest.approx(other[split], rel=1e-3)
        assert _summary("stated") == pytest.approx(_summary("owned"), rel=1e-3)
        loaded = [
            ppl_gen.load(out, model=f"pairs.py:{m}", guide=f"pairs.py:{m}Guide")
            for out, m in (("stated", "Stated"), ("owned", "Owned"))
        ]
        weights = []
        for model, guide, data, _ in loaded:
            torch.manual_seed(0)
            weights.append(ppl_gen.log_weights(model.model, guide.guide, data.targets("test")[:20], num_samples=5))
            assert float(model.likelihood(torch.zeros(2)).base_dist.scale.detach()[0]) != 7.0
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-2)
        assert list(pyro.get_param_store()) == ["noise"]


def test_an_interrupted_run_goes_on_to_the_same_bits(
    elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pairs.py").write_text(PAIRS)
    _fit(call, "Stated", "whole", "--epochs", "3")
    _fit(call, "Stated", "cut", "--epochs", "3")
    # Back to the checkpoint after the second epoch, as a kill would leave it.
    _fit(call, "Stated", "short", "--epochs", "2", "--schedule", "constant")
    Path("cut/checkpoint.safetensors").write_bytes(Path("short/checkpoint.safetensors").read_bytes())
    status, _, err = call(fit.command, "--resume", "cut", *STATED)
    assert status == 0, err
    ours, whole = (Run.open(Path(out)).load_checkpoint() for out in ("cut", "whole"))
    assert ours is not None and whole is not None and ours[1]["step"] == whole[1]["step"]
    assert all(torch.equal(value, whole[0][name]) for name, value in ours[0].items())
    assert "last.model.param_statements.param:prior%2Escale" in whole[0]


def test_other_commands(elsewhere: Path, call: Call) -> None:
    """The gaps optimize contexts, annealing takes prior() and likelihood(z), samples come from the trained prior; and
    another guide is fitted to the model, which stays as it is."""
    Path("pairs.py").write_text(PAIRS)
    _fit(call, "Stated", "run", "--epochs", "1")
    for command, more in (
        (evaluate.command, ("--estimator", "annealed", "--annealed.num-temperatures", "20", "--num-images", "5")),
        (sample.command, ("--num-images", "4")),
    ):
        status, _, err = call(command, "run", *STATED, *more)
        assert status == 0, err
    refit = ("--init-from", "run", "--refit-guide", "pairs.py:StatedGuide", "--epochs", "1", "--num-samples", "20")
    status, _, err = call(fit.command, "--model", "pairs.py:Stated", *refit, "--out", "refitted")
    if status != 0:
        status, _, err = call(fit.command, "pairs.py:Stated", *refit, "--out", "refitted")
    assert status == 0, err
    before, after = (Run.open(Path(out)).load_checkpoint() for out in ("run", "refitted"))
    assert before is not None and after is not None
    for name in ("weight", "noise", "bias", "prior%2Escale"):
        assert torch.equal(
            before[0][f"last.model.param_statements.param:{name}"], after[0][f"last.model.param_statements.param:{name}"]
        )


def test_a_statement_that_comes_late(elsewhere: Path, call: Call) -> None:
    """Would be trained by nothing and saved nowhere."""
    Path("pairs.py").write_text(PAIRS)
    status, _, err = call(
        fit.command, "pairs.py:Stated", "--guide", "pairs.py:Sometimes", *OPTIONS, "--epochs", "1", "--out", "run"
    )
    assert status == 2 and "pyro.param('late')" in err and err.count("\n") == 1, err
