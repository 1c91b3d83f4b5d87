"""`pyro.param` statements through a fit: held to the same pair written with `nn.Parameter`, but for rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

import ppl_gen
from ppl_gen import evaluate, fit, sample
from ppl_gen.experiment.run_directory import RunDirectory

Call = Callable[..., tuple[int, str, str]]
PAIRS = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

DIM = 2


class Stated(nn.Module):
    """Everything is a pyro.param; "bias" is the guide's as well."""

    def __init__(self, data_dim):
        super().__init__()
        self.data_dim = data_dim

    def prior(self):
        scale = pyro.param("prior.scale", torch.ones(DIM), constraint=constraints.positive)
        return dist.Normal(torch.zeros(DIM), scale).to_event(1)

    def likelihood(self, z):
        weight = pyro.param("weight", lambda: torch.linspace(-1, 1, DIM * self.data_dim).reshape(DIM, -1))
        noise = pyro.param("noise", torch.tensor(0.5), constraint=constraints.positive)
        return dist.Normal(z @ weight + pyro.param("bias", torch.zeros(self.data_dim)), noise).to_event(1)

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", self.likelihood(pyro.sample("z", self.prior())), obs=x)


class StatedGuide(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(data_dim, DIM)

    def encode(self, x):
        return self.net(x - pyro.param("bias", torch.zeros(x.shape[-1])))

    def posterior(self, context):
        return dist.Normal(context, pyro.param("spread", torch.ones(DIM), constraint=constraints.positive)).to_event(1)

    def guide(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


class Owned(Stated):
    """The same, as parameters of modules."""

    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.scale, self.noise = nn.Parameter(torch.zeros(DIM)), nn.Parameter(torch.tensor(0.5).log())
        self.weight = nn.Parameter(torch.linspace(-1, 1, DIM * data_dim).reshape(DIM, -1))
        self.bias = nn.Parameter(torch.zeros(data_dim))

    def prior(self):
        return dist.Normal(torch.zeros(DIM), self.scale.exp()).to_event(1)

    def likelihood(self, z):
        return dist.Normal(z @ self.weight + self.bias, self.noise.exp()).to_event(1)


class OwnedGuide(StatedGuide):
    def __init__(self, data_dim, model):
        super().__init__(data_dim)
        self.of_model = [model]
        self.spread = nn.Parameter(torch.zeros(DIM))

    def encode(self, x):
        return self.net(x - self.of_model[0].bias)

    def posterior(self, context):
        return dist.Normal(context, self.spread.exp()).to_event(1)


class Sometimes(StatedGuide):
    """A statement that is not reached in eval mode."""

    def guide(self, x):
        if self.training:
            pyro.param("late", torch.zeros(DIM))
        super().guide(x)
'''
FOUR = PAIRS.replace("DIM = 2", "DIM = 4")
"""Too many units for quadrature and the exact posterior, which take longer than these fits."""
NETS = """
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import constraints

OUTSIDE = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
WEIGHTS = torch.randn(64, 5, requires_grad=True)
DROPOUT = nn.Dropout()


class Model(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Linear(5, data_dim)

    def model(self, x=None, *, n=1):
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.net(z), 0.5).to_event(1), obs=x)


class Registered(nn.Module):
    def __init__(self, data_dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(data_dim, 10), nn.BatchNorm1d(10))
        self.shift = nn.Parameter(torch.zeros(()))

    def hidden(self, x):
        return self.net(x)

    def scale(self):
        return 1.0

    def guide(self, x):
        hidden = self.hidden(x)
        with pyro.plate("data", len(x)):
            loc, log_scale = hidden[:, :5] + self.shift, hidden[:, 5:]
            pyro.sample("z", dist.Normal(loc, self.scale() * log_scale.exp()).to_event(1))


class Listed(Registered):
    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.nets = {"a": [self.net]}
        del self.net

    def hidden(self, x):
        return pyro.module("a net.", self.nets["a"][0])(x)


class Global(Registered):
    def hidden(self, x):
        return pyro.module("outside", OUTSIDE)(x)


class Holding(Listed):
    def __init__(self, data_dim):
        super().__init__(data_dim)
        self.nets = {"a": [OUTSIDE]}


class Unnamed(Registered):
    def hidden(self, x):
        return OUTSIDE[0](x)


class Raw(Registered):
    def hidden(self, x):
        return self.net(x) + (x @ WEIGHTS).repeat(1, 2)


class Dropped(Registered):
    def hidden(self, x):
        return DROPOUT(self.net(x))


class ByName(Registered):
    def scale(self):
        pyro.param("scale", torch.tensor(0.25), constraint=constraints.positive)
        return pyro.param("scale")


NAMES = "type", "find", "training", "half", "", "a.b", "a/b", "a%2Eb", "T_destination", "σ"


class Named(Registered):
    def scale(self):
        return sum(pyro.param(name, torch.tensor(float(i))) for i, name in enumerate(NAMES)) / 45
"""
OPTIONS = ("--data", "digits", "--binarization", "none", "--train-size", "200", "--num-samples", "50")
STATED = ("--model", "pairs.py:Stated", "--guide", "pairs.py:StatedGuide")


def _fit(call: Call, model: str, out: str, *more: str) -> None:
    status, _, err = call(
        fit.command, f"pairs.py:{model}", "--guide", f"pairs.py:{model}Guide", *OPTIONS, *more, "--out", out
    )
    assert status == 0, err


def _summary(run: str) -> dict[str, float]:
    found = json.loads(Path(run, "evaluation.json").read_text(encoding="utf-8"))
    return {key: found[key]["mean"] for key in ("elbo", "log_px", "kl")} | {"parameters": found["num_parameters"]}


@pytest.mark.parametrize("objective", [(), ("--objective", "dreg", "--num-particles", "3"), ("--objective", "stl")])
def test_the_same_numbers_as_of_parameters(elsewhere: Path, call: Call, objective: tuple[str, ...]) -> None:
    """Training, evaluation, and what is loaded, of one process in which Pyro's store has the same names."""
    Path("pairs.py").write_text(FOUR if objective else PAIRS, encoding="utf-8")
    with pyro.get_param_store().scope():
        pyro.param("noise", torch.tensor(7.0))
        for model, out in (("Stated", "stated"), ("Owned", "owned")):
            _fit(call, model, out, "--epochs", "2", *objective)
        ours, theirs = (RunDirectory.open(Path(out)).metrics() for out in ("stated", "owned"))
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
            assert float(model.likelihood(torch.zeros(4 if objective else 2)).base_dist.scale.detach()[0]) != 7.0
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-2)
        assert list(pyro.get_param_store()) == ["noise"]


def test_an_interrupted_run_goes_on_to_the_same_bits(elsewhere: Path, call: Call) -> None:
    Path("pairs.py").write_text(FOUR, encoding="utf-8")
    _fit(call, "Stated", "whole", "--epochs", "3")
    _fit(call, "Stated", "cut", "--epochs", "3")
    # Back to the checkpoint after the second epoch, as a kill would leave it.
    _fit(call, "Stated", "short", "--epochs", "2", "--schedule", "constant")
    Path("cut/checkpoint.safetensors").write_bytes(Path("short/checkpoint.safetensors").read_bytes())
    status, _, err = call(fit.command, "--resume", "cut", *STATED)
    assert status == 0, err
    ours, whole = (RunDirectory.open(Path(out)).load_checkpoint() for out in ("cut", "whole"))
    assert ours is not None and whole is not None and ours[1]["step"] == whole[1]["step"]
    assert all(torch.equal(value, whole[0][name]) for name, value in ours[0].items())
    assert "last.model.param_statements.param:prior%2Escale" in whole[0]


def test_other_commands(elsewhere: Path, call: Call) -> None:
    """The gaps optimize contexts, annealing takes prior() and likelihood(z), samples come from the trained prior; and
    another guide is fitted to the model, which stays as it is."""
    Path("pairs.py").write_text(FOUR, encoding="utf-8")
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
    before, after = (RunDirectory.open(Path(out)).load_checkpoint() for out in ("run", "refitted"))
    assert before is not None and after is not None
    for name in ("weight", "noise", "bias", "prior%2Escale"):
        key = f"last.model.param_statements.param:{name}"
        assert torch.equal(before[0][key], after[0][key])


def test_a_statement_that_comes_late(elsewhere: Path, call: Call) -> None:
    """Would be trained by nothing and saved nowhere."""
    Path("pairs.py").write_text(FOUR, encoding="utf-8")
    status, _, err = call(
        fit.command, "pairs.py:Stated", "--guide", "pairs.py:Sometimes", *OPTIONS, "--epochs", "1", "--out", "run"
    )
    assert status == 2 and "pyro.param('late')" in err and err.count("\n") == 1, err


def _fit_guide(call: Call, guide: str, *more: str) -> tuple[int, str]:
    Path("nets.py").write_text(NETS, encoding="utf-8")
    pair = "nets.py:Model", "--guide", f"nets.py:{guide}"
    status, _, err = call(fit.command, *pair, *OPTIONS, "--epochs", "2", *more, "--out", guide)
    return status, err


def _guide(name: str) -> Any:
    return ppl_gen.load(name, model="nets.py:Model", guide=f"nets.py:{name}").guide


@pytest.mark.parametrize("objective", [(), ("stl",), ("dreg", "--num-particles", "3")])
def test_a_net_in_a_list_is_as_one_that_is_registered(elsewhere: Path, call: Call, objective: tuple[str, ...]) -> None:
    """Trained and saved, with its moments, and loaded in place."""
    for guide in ("Registered", "Listed"):
        assert _fit_guide(call, guide, *(("--objective", *objective) if objective else ()))[0] == 0
    assert _summary("Listed") == pytest.approx(_summary("Registered"))
    registered, listed = _guide("Registered").net, _guide("Listed").nets["a"][0]
    assert not listed.training and listed[1].num_batches_tracked > 0
    for ours, theirs in zip(listed.state_dict().values(), registered.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("guide", "told"),
    [
        ("Global", "pyro.module('outside') uses a network that is made outside"),
        ("Holding", "pyro.module('a net.') uses a network that is made outside"),
        ("Unnamed", "depends on weights (10, 64) of a Linear outside"),
        ("Raw", "depends on weights (64, 5) outside"),
        ("Dropped", "depends on a Dropout outside"),
    ],
)
def test_what_no_run_would_save_is_refused(elsewhere: Path, call: Call, guide: str, told: str) -> None:
    status, err = _fit_guide(call, guide)
    assert status == 2 and told in err and "self.net = …" in err and err.count("\n") == 1, err


def test_a_parameter_that_is_read_by_its_name_alone(elsewhere: Path, call: Call) -> None:
    """It stays constrained, as in Pyro."""
    status, err = _fit_guide(call, "ByName")
    assert status == 0, err
    guide = _guide("ByName")
    scale = guide.param_statements.find("scale").detach().exp()
    x = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    trace = pyro.poutine.trace(guide.guide).get_trace(x)
    torch.testing.assert_close(trace.nodes["z"]["fn"].base_dist.scale, scale * guide.hidden(x)[:, 5:].exp())
    assert 0.2 < float(scale) < 0.3  # from 0.25 in a few steps


def test_any_name_is_a_parameter_of_its_own(elsewhere: Path, call: Call) -> None:
    status, err = _fit_guide(call, "Named")
    assert status == 0, err
    table = _guide("Named").param_statements
    names = ("type", "find", "training", "half", "", "a.b", "a/b", "a%2Eb", "T_destination", "σ")
    assert [round(float(table.find(name).detach())) for name in names] == list(range(10))
    assert len(list(table.parameters())) == 10
