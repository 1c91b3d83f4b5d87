"""What a user hands over: functions that lead to modules, parameters in Pyro's store, arrays; and what is refused."""

import collections
import contextvars
import dataclasses
import functools
import itertools
import math
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.modes import evaluating, reading
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.reached import modules_of
from ppl_gen.inference.signatures import name_of, parameters_of


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


def _class_attribute(module: nn.Module) -> Any:
    class Networks:
        held = module

    return lambda x: Networks.held.guide(x)  # type: ignore[operator]


def _own_class(module: nn.Module) -> Any:
    class Guide(nn.Module):
        held = (module,)

        @property
        def net(self) -> Any:
            return self.held[0]

        @classmethod
        def helper(cls, x: Tensor) -> None:
            cls.held[0].guide(x)  # type: ignore[operator]

        def guide(self, x: Tensor) -> None:
            self.helper(x)

    return Guide()


def _static(module: nn.Module) -> Any:
    class Guide:
        @staticmethod
        def guide(x: Tensor) -> None:
            module.guide(x)  # type: ignore[operator]

    return Guide()


def _property(module: nn.Module) -> Any:
    class Guide(nn.Module):
        @property
        def net(self) -> Any:
            return module

        def guide(self, x: Tensor) -> None:
            self.net.guide(x)

    return Guide()


class _Slots:
    __slots__ = ("held",)

    def __init__(self, held: nn.Module):
        self.held = held


@dataclasses.dataclass(slots=True)
class _Data:
    held: Any


_Named = collections.namedtuple("_Named", "held")


def _held_by(make: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    """A guide with the attribute `held` of an object."""

    def guide_of(module: nn.Module) -> Any:
        holder = make(module)
        return lambda x: holder.held.guide(x)

    return guide_of


def _looked_up(make: Callable[[nn.Module], Any], look: Callable[[Any], Any]) -> Callable[[nn.Module], Any]:
    def guide_of(module: nn.Module) -> Any:
        holder = make(module)
        return lambda x: look(holder).guide(x)

    return guide_of


def _in_module(make: Callable[[nn.Module], Any], look: Callable[[Any], Any]) -> Callable[[nn.Module], Any]:
    """A module whose attribute `part` is something that holds the module."""

    class Guide(nn.Module):
        def __init__(self, part: Any):
            super().__init__()
            self.part = part

        def guide(self, x: Tensor) -> None:
            look(self.part).guide(x)

    return lambda module: Guide(make(module))


networks: Any = types.ModuleType("my_networks")  # a Python module of a user
sys.modules["my_networks"] = networks
exec("def decode(x):\n    decoder.guide(x)", vars(networks))


def _python_module(function: Callable[[Tensor], None]) -> Callable[[nn.Module], Any]:
    def guide_of(module: nn.Module) -> Any:
        networks.decoder = module
        return function

    return guide_of


def _imports_inside(x: Tensor) -> None:
    import my_networks  # type: ignore[import-not-found]

    my_networks.decoder.guide(x)


def _imports_from(x: Tensor) -> None:
    from my_networks import decoder as renamed

    renamed.guide(x)


class _Names:
    """An object whose method calls another, which names a global variable."""

    def helper(self, x: Tensor) -> None:
        named.guide(x)

    def __call__(self, x: Tensor) -> None:
        self.helper(x)


class _NamesModule(nn.Module):
    guide = _Names.helper


named: Any = None


def _global(make: Callable[[], Any]) -> Callable[[nn.Module], Any]:
    def guide_of(module: nn.Module) -> Any:
        global named
        named = module
        return make()

    return guide_of


def _default(module: nn.Module) -> Any:
    def guide(x: Tensor, *, which: Any = module) -> None:
        which.guide(x)

    return guide


_variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


def _context(module: nn.Module) -> Any:
    _variable.set(module)
    return lambda x: _variable.get().guide(x)


WAYS: dict[str, Callable[[_Moody], Any]] = {
    "class attribute": _class_attribute,
    "class attribute of a module": _own_class,
    "static method": _static,
    "property": _property,
    "slots": _held_by(_Slots),
    "data class with slots": _held_by(_Data),
    "named tuple": _held_by(_Named),
    "namespace": _held_by(lambda m: types.SimpleNamespace(held=m)),
    "deque": _looked_up(lambda m: collections.deque([m]), lambda d: d[0]),
    "mapping proxy": _looked_up(lambda m: types.MappingProxyType({"a": m}), lambda d: d["a"]),
    "weak reference": _looked_up(weakref.ref, lambda r: r()),
    "weak dictionary": _looked_up(lambda m: weakref.WeakValueDictionary(a=m), lambda d: d["a"]),
    "iterator": _looked_up(itertools.repeat, next),
    "cache": _looked_up(lambda m: functools.lru_cache(lambda: m), lambda f: f()),
    "context": _context,
    "keyword default": _default,
    "namespace in a module": _in_module(lambda m: types.SimpleNamespace(a=m), lambda n: n.a),
    "data class in a module": _in_module(_Data, lambda d: d.held),
    "partial in a module": _in_module(lambda m: functools.partial(m.guide), lambda p: types.SimpleNamespace(guide=p)),
    "python module": _python_module(lambda x: networks.decoder.guide(x)),
    "function of a python module": _python_module(lambda x: networks.decode(x)),
    "text": _python_module(lambda x: getattr(networks, "decoder").guide(x)),  # noqa: B009
    "import": _python_module(_imports_inside),
    "import from": _python_module(_imports_from),
    "global in a method": _global(_Names),
    "global in a module's method": _global(_NamesModule),
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
    weights = ppl_gen.log_weights(_model, WAYS[way](module), X, num_samples=7)
    torch.testing.assert_close(weights, EXACT.expand(7, -1), rtol=0, atol=1e-12)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_eval_mode_of_a_global() -> None:
    weights = ppl_gen.log_weights(_model, _by_global, X, num_samples=7)
    torch.testing.assert_close(weights, EXACT.expand(7, -1), rtol=0, atol=1e-12)
    assert moody.norm.training and moody.norm.num_batches_tracked == 0


class _Normalized(nn.Module):
    """q(z | x) = N(0, 2) in eval mode, by a transform that is a module with statistics of batches."""

    def __init__(self) -> None:
        super().__init__()
        norm = transforms.BatchNorm(1)
        norm.moving_variance.fill_(2.0)
        base = dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1)
        self.q = dist.TransformedDistribution(base, [norm])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.q)


def test_eval_mode_of_a_transform() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), math.sqrt(2)).to_event(1))
            pyro.sample("x", dist.Normal(0 * z, 1.0).to_event(1), obs=x)

    guide, x = _Normalized(), X.float()[:, None]
    weights = ppl_gen.log_weights(model, guide, x, num_samples=5)
    exact = dist.Normal(0.0, 1.0).log_prob(x)[:, 0]  # the guide is the prior, of which x knows nothing
    torch.testing.assert_close(weights, exact.expand(5, -1), rtol=0, atol=1e-4)
    norm: Any = guide.q.transforms[0]
    assert norm.training and norm.moving_variance == 2 and norm.moving_mean == 0


def test_looking_for_modules_runs_no_code() -> None:
    class Touchy:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        __len__ = __iter__ = __eq__ = __hash__ = __repr__ = __bool__ = None  # type: ignore[assignment]

    touchy, module = Touchy(), nn.Linear(1, 1)
    assert modules_of(lambda: (touchy, module)) == [module]


def test_a_module_that_was_not_made_in_full() -> None:
    module = nn.Module.__new__(nn.Module)
    assert modules_of(lambda: module) == []


def test_what_is_not_named_is_not_looked_at() -> None:
    """Global variables that no function names, and modules of libraries, lead nowhere."""
    assert modules_of(_model, _guide, torch, pyro) == []


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
    "masked": np.ma.masked_array(X.numpy(), mask=X.numpy() > 1),
    "masked rows": list(np.ma.masked_array(X[:, None].numpy(), mask=X[:, None].numpy() > 1)),
    "nested": torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged),
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


Y = torch.arange(40)
LABELS: dict[str, Any] = {
    "tensor": Y,
    "array": Y.numpy(),
    "list": Y.tolist(),
    "tuple": tuple(Y.tolist()),
    "range": range(40),
    "whole numbers of numpy": list(Y.numpy()),
    "numbers of numpy": list(Y.numpy().astype(np.float32)),
    "tensors": list(Y),
    "series": pd.Series(Y.numpy(), index=Y.numpy()[::-1]),
}


def _labelled_model(x: Tensor, y: Tensor) -> None:
    """Subtracts the label from the image."""
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)


def _labelled_guide(x: Tensor, y: Tensor) -> None:
    _guide(x - y)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("name", LABELS)
def test_labels_go_along_with_the_images(name: str, by_name: bool) -> None:
    args, kwargs = ((), {"y": LABELS[name]}) if by_name else ((LABELS[name],), {})
    weights = ppl_gen.log_weights(_labelled_model, _labelled_guide, Y.double() + 1, *args, **kwargs, num_samples=2)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(weights, exact.expand(2, 40), rtol=0, atol=1e-7)


def test_labels_of_other_estimators() -> None:
    """By position and by name: half of the images have the label 1, and z is 0 or 1."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.3)))

    labels = [0, 1] * 20
    x = torch.linspace(-2, 2, 40, dtype=torch.float64)
    logs = [math.log(p) + dist.Normal(z + torch.tensor(labels), 1.0).log_prob(x) for z, p in ((0, 0.7), (1, 0.3))]
    exact = torch.logaddexp(*logs)
    for args, kwargs in (((labels,), {}), ((), {"y": np.array(labels)})):
        torch.testing.assert_close(exact_log_px(model, x, *args, **kwargs), exact, rtol=0, atol=1e-6)
        found = proposal_log_px(model, [guide], x, *args, num_samples=2000, **kwargs)
        assert float(((found.log_px - exact) / found.log_px_mc_var.sqrt()).abs().max()) < 5  # 1 in 20,000 runs


def test_rows_of_labels() -> None:
    """A list of lists has a row for each image."""

    def model(x: Tensor, y: Tensor) -> None:
        _labelled_model(x, y.sum(1))

    def guide(x: Tensor, y: Tensor) -> None:
        _labelled_guide(x, y.sum(1))

    rows = [[float(i), 1.0] for i in range(40)]
    weights = ppl_gen.log_weights(model, guide, Y.double() + 1, y=rows, num_samples=2)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(weights, exact.expand(2, 40), rtol=0, atol=1e-7)


def _keyword_model(x: Tensor, *, y: Any = None) -> None:
    _labelled_model(x, torch.zeros(()) if y is None else y)


def _any_guide(x: Tensor, *args: Any, **kwargs: Any) -> None:
    _guide(x)


@pytest.mark.parametrize(
    ("model", "guide", "told"),
    [
        (_model, _guide, "_model and _guide take 1 by position, with x, but 2 arguments are given"),
        (_keyword_model, _guide, "_keyword_model and _guide take 1 by position"),
        (_keyword_model, _labelled_guide, "_keyword_model takes y by name only: give y=…"),
        (_keyword_model, _any_guide, "_keyword_model takes y by name only: give y=…"),
    ],
)
def test_no_label_is_dropped(model: Any, guide: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        ppl_gen.log_weights(model, guide, X, torch.arange(9), num_samples=3)


def test_a_label_of_one_function() -> None:
    """A function that takes fewer is given fewer."""
    weights = ppl_gen.log_weights(_labelled_model, _guide, X, torch.zeros(9), num_samples=3)
    torch.testing.assert_close(weights, EXACT.expand(3, -1), rtol=0, atol=1e-7)


def test_labels_that_lose_their_mask() -> None:
    masked = np.ma.masked_array(np.zeros(9), mask=np.arange(9) > 3)
    for args, kwargs in (((masked,), {}), ((), {"y": masked})):
        with pytest.raises(BadInput, match="is a masked array, whose mask would be lost"):
            ppl_gen.log_weights(_labelled_model, _labelled_guide, X, *args, **kwargs, num_samples=3)


# Refused without a trace ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_an_autoguide_is_refused_as_it_was(kind: type) -> None:
    """It has no parameters yet, or they are of certain images. It can be set up and trained on them afterwards."""
    guide = kind(_model)
    holder, networks.decoder = types.SimpleNamespace(guide=guide), guide
    global named
    named = types.SimpleNamespace(guide=guide)
    ways = (guide, lambda x: guide(x), lambda x: holder.guide(x), lambda x: networks.decoder(x), _NamesModule())
    for given in ways:
        unset = given is guide and kind is AutoNormal
        words = "no parameters yet" if unset else r"write a guide that computes the parameters of .* from x$"
        with pytest.raises(BadInput, match=words):
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


class _Mean:
    """A plain object that remembers the mean of the images that it is first called on."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"first": {}}
        self.count = 0

    def guide(self, x: Tensor) -> None:
        if not self.count:
            self.count = len(x)
        self.seen["first"].setdefault("mean", x.mean())
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.seen["first"]["mean"], 1.0))


class _MeanModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _Mean.__init__(self)  # type: ignore[arg-type]

    guide = _Mean.guide


def _closed(owner: Any) -> Any:
    """The same, in the variables of a closure."""
    count, seen = 0, owner.seen

    def guide(x: Tensor) -> None:
        nonlocal count
        count = owner.count = count or len(x)
        seen["first"].setdefault("mean", x.mean())
        _guide(x)

    return guide


def _poisson(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


MEANS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "object": lambda: (o := _Mean(), o),
    "module": lambda: (o := _MeanModule(), o),
    "closure": lambda: (o := types.SimpleNamespace(count=0, seen={"first": {}}), _closed(o)),
}


@pytest.mark.parametrize("kind", MEANS)
def test_what_is_set_up_is_set_up_on_all_images(kind: str) -> None:
    """And not on the few that a pair is read on."""
    owner, guide = MEANS[kind]()
    ppl_gen.log_weights(_model, guide, X + 1, num_samples=3)
    assert owner.count == 9 and owner.seen["first"]["mean"] == (X + 1).mean()


@pytest.mark.parametrize("kind", MEANS)
def test_a_refusal_after_the_pair_was_read_changes_nothing(kind: str) -> None:
    """An image that no z explains is found when all images are looked at."""
    owner, guide = MEANS[kind]()
    for call in (ppl_gen.log_weights, ppl_gen.log_marginal_likelihood):
        with pytest.raises(BadInput, match="image 8 is impossible for every z"):
            call(_poisson, guide, torch.tensor([1.0] * 8 + [0.5]), num_samples=3)
        assert owner.count == 0 and owner.seen == {"first": {}}


def test_a_parameter_that_begins_at_the_images() -> None:
    """Begins at all of them."""
    begun = []

    def guide(x: Tensor) -> None:
        begun.append(pyro.param("mean", lambda: x.mean()).item())
        _guide(x)

    with pyro.get_param_store().scope():
        ppl_gen.log_weights(_model, guide, X + 1, num_samples=3)
        assert begun[-1] == (X + 1).mean() and "mean" not in pyro.get_param_store()


def test_buffers_are_restored() -> None:
    """Those that the user's own code changes, in eval mode too."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def guide(self, x: Tensor) -> None:
            self.calls += 1
            _guide(x)

    guide = Counting()
    ppl_gen.log_weights(_model, guide, X, num_samples=3)
    with torch.inference_mode():
        ppl_gen.log_marginal_likelihood(_model, guide, X, num_samples=3)
    assert guide.calls == 0


def test_a_guide_with_plates_of_its_own() -> None:
    """An EasyGuide keeps the size of its plates. It can be trained after it was refused."""

    class Easy(EasyGuide):  # type: ignore[misc]
        def guide(self, x: Tensor) -> None:
            with self.plate("images", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x / 2, 0.8))

    guide = Easy(_model)
    with pytest.raises(BadInput, match="fails on 3 images"):
        ppl_gen.log_weights(_model, guide, X, num_samples=3)
    with pyro.get_param_store().scope():
        SVI(_model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(X)


def test_a_parameter_for_each_image() -> None:
    """Is named as the reason, whether it is there yet or not."""

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", lambda: torch.zeros(len(x))), 1.0))

    store = pyro.get_param_store()
    with store.scope():
        for _ in range(2):
            with pytest.raises(BadInput, match="runs on all 9 images alone, as with a parameter for each"):
                ppl_gen.log_weights(_model, guide, X, num_samples=3)
            store.setdefault("loc", torch.zeros(9))


@pytest.mark.parametrize("context", [reading, evaluating])
def test_running_statistics_are_restored(context: Any) -> None:
    """`batch_norm` changes them without a new version of the tensor."""
    layer = torch.nn.BatchNorm1d(2)
    with context(layer):
        layer.training = True
        layer(torch.ones(4, 2))
        assert (layer.running_mean != 0).all()  # type: ignore[union-attr]
    assert (layer.running_mean == 0).all() and (layer.running_var == 1).all() and layer.num_batches_tracked == 0  # type: ignore[union-attr]


def test_functions_that_a_handler_of_pyro_decorates() -> None:
    """`@poutine.scale(scale=0.5)` hides the signature. The pair is that of `poutine.scale(model, scale=0.5)`."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal((x - y) / 2, 0.7))

    x, y = torch.randn(5), torch.randn(5)
    for handler in (lambda: poutine.scale(scale=1.0), lambda: poutine.mask(mask=True)):
        twice = handler()(handler()(model))
        for wrapped in ((handler()(model), guide), (model, handler()(guide)), (twice, handler()(guide))):
            assert name_of(wrapped[0]) == "model"
            torch.manual_seed(0)
            found = ppl_gen.log_marginal_likelihood(*wrapped, x, y, num_samples=30)
            torch.manual_seed(0)
            torch.testing.assert_close(
                found.log_px, ppl_gen.log_marginal_likelihood(model, guide, x, y, num_samples=30).log_px
            )
    partly = functools.partial(model, y=y)
    assert set(parameters_of(partly)) == set(parameters_of(poutine.scale(scale=2.0)(model))) == {"x", "y"}
