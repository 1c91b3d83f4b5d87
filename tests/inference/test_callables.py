"""What a user hands over: functions that lead to modules, parameters in Pyro's store, arrays; and what is refused."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import ppl_gen
from ppl_gen.errors import BadInput
from ppl_gen.inference.callables import modules_of


def _model(x: Tensor) -> None:
    """p(x) = N(0, 2)."""
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _guide(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


X = torch.linspace(-2, 2, 9, dtype=torch.float64)
EXACT = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(X)


# Pyro's parameter store ----------------------------------------------------------------------------------------


def _trained(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(5.0, dtype=torch.float64))
    scale = pyro.param("scale", torch.tensor(3.0, dtype=torch.float64), constraint=dist.constraints.positive)
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def test_parameters_are_those_of_the_store() -> None:
    """A guide whose store holds the exact posterior has equal weights, all log p(x); the initial values do not. The
    store is what it was."""
    store = pyro.get_param_store()
    with store.scope():
        store.setdefault("slope", torch.tensor(0.5, dtype=torch.float64))
        store.setdefault("scale", torch.tensor(math.sqrt(0.5), dtype=torch.float64), dist.constraints.positive)
        before = {name: (value, value.clone()) for name, value in store._params.items()}
        weights = ppl_gen.log_weights(_model, _trained, X, num_samples=20)
        torch.testing.assert_close(weights, EXACT.expand(20, -1), rtol=0, atol=1e-12)
        assert list(store._params) == list(before)
        for name, (same, value) in before.items():
            assert store._params[name] is same and torch.equal(same, value)
    with store.scope():  # none is made either
        assert bool((ppl_gen.log_weights(_model, _trained, X, num_samples=5) < EXACT - 1).any())
        assert not store.keys()


def test_a_guide_trained_by_svi() -> None:
    """As Pyro's tutorials train one. Its ELBO is within 0.01 nats of log p(x) after 1,500 steps; at its initial values
    it would be 60 nats below."""
    with pyro.get_param_store().scope():
        svi = SVI(_model, _trained, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        for _ in range(1500):
            svi.step(X)
        found = ppl_gen.log_marginal_likelihood(_model, _trained, X, num_samples=500)
        assert abs(float((found.log_px - EXACT).mean())) < 0.01 and float(found.gap.mean()) < 0.01
        svi.step(X)  # training goes on


def test_modules_loaded_by_way_of_the_store() -> None:
    """Fresh modules under a restored store, with `update_module_params`, as programs of Pyro load a model: the weights
    are those of the store."""

    class Program:
        def __init__(self) -> None:
            self.net = nn.Linear(1, 1).double()

        def guide(self, x: Tensor) -> None:
            net = pyro.module("net", self.net, update_module_params=True)
            with pyro.plate("images", len(x)):
                pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], math.sqrt(0.5)))

    trained = Program()
    with torch.no_grad():
        trained.net.weight.fill_(0.5)
        trained.net.bias.zero_()
    with pyro.get_param_store().scope() as state:
        trained.guide(X)
    with pyro.get_param_store().scope(state):
        weights = ppl_gen.log_weights(_model, Program().guide, X, num_samples=20)
    torch.testing.assert_close(weights, EXACT.expand(20, -1), rtol=0, atol=1e-12)


# Modules behind functions --------------------------------------------------------------------------------------


class _Moody(nn.Module):
    """The exact posterior in eval mode, and noise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(1, eps=0.0).double(), nn.Dropout(0.5)

    def model(self, x: Tensor) -> None:
        _model(x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.drop(self.norm(x[:, None]))[:, 0] / 2, math.sqrt(0.5)))


moody = _Moody()


def _by_global(x: Tensor) -> None:
    moody.guide(x)


class _Holder:
    def __init__(self, module: nn.Module):
        self.parts = {"guide": [module]}

    def run(self, x: Tensor) -> None:
        self.parts["guide"][0].guide(x)  # type: ignore[operator]


def _closure(module: nn.Module) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        module.guide(x)  # type: ignore[operator]

    return guide


WAYS: dict[str, Callable[[_Moody], Any]] = {
    "module": lambda m: m,
    "bound method": lambda m: m.guide,
    "closure": _closure,
    "lambda": lambda m: lambda x: m.guide(x),
    "partial": lambda m: functools.partial(lambda which, x: which.guide(x), m),
    "default": lambda m: lambda x, which=m: which.guide(x),
    "object": lambda m: _Holder(m).run,
    "handler": lambda m: pyro.poutine.scale(m.guide, 1.0),
    "wrapper": lambda m: functools.wraps(m.guide)(lambda *args: m.guide(*args)),
}


@pytest.mark.parametrize("way", WAYS)
def test_eval_mode_however_a_module_is_reached(way: str) -> None:
    """Statistics of batches and dropout are off, and nothing of the module has changed."""
    module = _Moody()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = ppl_gen.log_weights(module.model, WAYS[way](module), X, num_samples=7)
    torch.testing.assert_close(weights, EXACT.expand(7, -1), rtol=0, atol=1e-12)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_eval_mode_of_a_global() -> None:
    weights = ppl_gen.log_weights(_model, _by_global, X, num_samples=7)
    torch.testing.assert_close(weights, EXACT.expand(7, -1), rtol=0, atol=1e-12)
    assert moody.norm.training and moody.norm.num_batches_tracked == 0


def test_looking_for_modules_ends() -> None:
    around: dict[str, Any] = {"module": nn.Linear(1, 1)}
    around["itself"] = around
    assert len(modules_of(lambda: around)) == 1 and modules_of(None, 3, "text", torch) == []


# Images and numbers --------------------------------------------------------------------------------------------


IMAGES: dict[str, Any] = {
    "array": X.numpy(),
    "big-endian": X.numpy().astype(">f8"),
    "single": X.numpy().astype(np.float32),
    "reversed": X.numpy()[::-1][::-1],
    "list": X.tolist(),
    "tuple": tuple(X.tolist()),
    "tensors": list(X),
    "rows of an array": list(X.numpy()),
}


@pytest.mark.parametrize("name", IMAGES)
def test_arrays_and_lists_are_images(name: str) -> None:
    torch.manual_seed(0)
    expected = ppl_gen.log_weights(_model, _guide, X.float(), num_samples=3)
    torch.manual_seed(0)
    torch.testing.assert_close(ppl_gen.log_weights(_model, _guide, IMAGES[name], num_samples=3), expected)
    moody_weights = ppl_gen.log_weights(_Moody().double(), _Moody().double(), IMAGES[name], num_samples=3)
    assert moody_weights.dtype is torch.float64  # as the parameters are


REFUSED: dict[str, Any] = {
    "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X)),
    "data set": torch.utils.data.TensorDataset(X),
    "text": "mnist",
    "nothing": None,
    "mapping": {"x": X},
    "generator": (each for each in X),
    "number": 3.0,
    "scalar": torch.tensor(3.0),
    "ragged": [[1.0], [1.0, 2.0]],
    "objects": np.array([{}, {}]),
    "strings": np.array(["a", "b"]),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_images(name: str) -> None:
    with pytest.raises(BadInput) as error:
        ppl_gen.log_marginal_likelihood(_model, _guide, REFUSED[name], num_samples=3)
    assert str(error.value).startswith("x is") and "\n" not in str(error.value)


@pytest.mark.parametrize("number", [3, 3.0, np.int64(3), np.float32(3), torch.tensor(3)])
def test_numbers_of_samples(number: Any) -> None:
    assert ppl_gen.log_weights(_model, _guide, X, num_samples=number).shape == (3, 9)


@pytest.mark.parametrize("number", [2.5, "3", True, None, 0, -1, math.nan, math.inf, [3]])
def test_no_number_of_samples(number: Any) -> None:
    with pytest.raises(BadInput, match="must be a whole number, at least 1"):
        ppl_gen.log_weights(_model, _guide, X, num_samples=number)


def test_labels_as_an_array_or_a_list() -> None:
    """Go along with the images: the model subtracts its label."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        _guide(x - y)

    y = torch.arange(40)
    for labels in (y, y.numpy(), y.tolist()):
        weights = ppl_gen.log_weights(model, guide, y.double() + 1, labels, num_samples=2)
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.ones((), dtype=torch.float64))
        torch.testing.assert_close(weights, exact.expand(2, 40), rtol=0, atol=1e-7)


# Refused without a trace ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_an_autoguide_is_refused_as_it_was(kind: type) -> None:
    """Its parameters are of certain images. It can be set up and trained on them afterwards."""
    guide = kind(_model)
    for given in (guide, lambda x: guide(x)):
        with pytest.raises(BadInput, match="write a guide that computes the parameters"):
            ppl_gen.log_marginal_likelihood(_model, given, X, num_samples=3)
        assert guide.prototype_trace is None and not list(guide.parameters())
    with pyro.get_param_store().scope():
        SVI(_model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X)


class _SetsItselfUp(nn.Module):
    """Fixes the number of images when it is first called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def guide(self, x: Tensor) -> None:
        self.calls += 1
        if not hasattr(self, "loc"):
            self.loc = nn.Parameter(torch.zeros(len(x), dtype=torch.float64))
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def test_a_refused_guide_is_as_it_was() -> None:
    guide = _SetsItselfUp()
    with pytest.raises(BadInput, match="fails on 3 images"):
        ppl_gen.log_weights(_model, guide, X, num_samples=3)
    assert not hasattr(guide, "loc") and not list(guide.parameters()) and guide.calls == 0
    guide.guide(X)
    assert len(guide.loc) == len(X)


def test_a_parameter_for_each_image() -> None:
    """Is named as the reason, whether it is there yet or not."""

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.zeros(len(x))), 1.0))

    store = pyro.get_param_store()
    with store.scope():
        for _ in range(2):
            with pytest.raises(BadInput, match="runs on all 9 images alone, such as with a parameter for each"):
                ppl_gen.log_weights(_model, guide, X, num_samples=3)
            store.setdefault("loc", torch.zeros(9))
