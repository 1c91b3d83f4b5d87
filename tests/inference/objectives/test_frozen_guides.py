"""`stl` and `dreg` evaluate log q(z | x) at detached parameters, wherever these are; float64.

The gradients are those of a plain module with the same network, from the same draws. Other tests compare these with the
truth.
"""

import copy
import functools
from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from affine import F64
from torch import Tensor, nn

from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair

OBJECTIVES = [("stl", {}), ("dreg", {"num_particles": 4}), ("dreg", {"num_particles": 4, "backward": 2})]


class _Net(nn.Sequential):
    """x [images] -> location and log-scale of q(z | x), [images] each."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x.unsqueeze(-1)).unbind(-1)


def _net() -> _Net:
    torch.manual_seed(0)
    return _Net(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)).double()


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(1, 1)).double()
        nn.init.constant_(self.inner[0].weight, 1.3)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(self.inner(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)


def _sample(net: Any, x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        loc, log_scale = net(x)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))


class _Plain(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def guide(self, x: Tensor) -> None:
        _sample(self.net, x)


class _Twice(_Plain):
    """The first layer has two names, as in `self.first = Linear(…)`, `self.net = Sequential(self.first, …)`."""

    def __init__(self, net: _Net):
        super().__init__(net)
        self.first, self.other = net[0], nn.ModuleList([net, net[2]])


class _TwiceWithMethods(_Twice):
    """The same, with the methods that stand for `guide`; `posterior` has parameters of its own."""

    def encode(self, x: Tensor) -> Tensor:
        return x

    def posterior(self, context: Tensor) -> dist.Normal:
        loc, log_scale = self.net(context)
        return dist.Normal(loc, log_scale.exp())


class _WithModel(_Plain):
    """A guide that holds the model in a list, so that it is no submodule."""

    def __init__(self, net: _Net, model: nn.Module):
        super().__init__(net)
        self.of_model = [model]


class _Held:
    """An object that is no module."""

    def __init__(self, net: _Net):
        self.net = net

    def guide(self, x: Tensor) -> None:
        _sample(self.net, x)


def _closure(net: _Net) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        _sample(net, x)

    return guide


def _registered(net: _Net) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        _sample(net, x)

    return guide


def _of_tensors(net: _Net) -> Callable[[Tensor], None]:
    """Its closure holds the parameters themselves."""
    first, bias, last, shift = net.parameters()

    def guide(x: Tensor) -> None:
        _sample(lambda x: ((x.unsqueeze(-1) @ first.T + bias).tanh() @ last.T + shift).unbind(-1), x)

    return guide


GUIDES: dict[str, Callable[[_Net, _Model], Any]] = {
    "alias": lambda net, _: _Twice(net),
    "alias, methods": lambda net, _: _TwiceWithMethods(net),
    "model in a list": _WithModel,
    "part of the model in a list": lambda net, model: _WithModel(net, model.inner),
    "closure": lambda net, _: _closure(net),
    "partial": lambda net, _: functools.partial(_sample, net),
    "pyro.module": lambda net, _: _registered(net),
    "tensors": lambda net, _: _of_tensors(net),
    "method of an object": lambda net, _: _Held(net).guide,
}


def _gradients(guide: Any, trained: list[nn.Parameter], model: _Model, name: str, options: dict[str, Any]) -> Any:
    """The gradients of the second of two steps, in float64."""
    torch.manual_seed(1)
    x = torch.linspace(-1.5, 2.0, 7, dtype=F64)
    with pyro.get_param_store().scope():
        pair = Pair.read(model, guide, x)
        given = {key: value for key, value in options.items() if key == "num_particles"}
        loss = bind(construct(name, **given, options={k: v for k, v in options.items() if k not in given}), pair, x)
        for _ in range(2):
            torch.manual_seed(2)
            total = loss.differentiable_loss(pair.model, pair.guide, x)
            found = torch.autograd.grad(total, trained)
    return found


@pytest.mark.parametrize(("form", "objective"), [*product(GUIDES, OBJECTIVES)])
def test_parameters_are_detached_wherever_the_guide_has_them(form: str, objective: tuple[str, dict[str, Any]]) -> None:
    net, model = _net(), _Model()
    trained = [*net.parameters(), *model.parameters()]
    expected = _gradients(_Plain(net), trained, model, *objective)
    found = _gradients(GUIDES[form](net, model), trained, model, *objective)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    now = [*net.parameters(), *model.parameters()]
    assert all(one is two and one.requires_grad for one, two in zip(now, trained, strict=True))
    assert min(float(g.abs().sum()) for g in found) > 1e-3  # none is left out


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_network_that_model_and_guide_share(objective: tuple[str, dict[str, Any]]) -> None:
    """Its gradient is the sum of those of two copies, one in the model and one in the guide."""
    shared = nn.Sequential(nn.Linear(1, 1)).double()
    nn.init.constant_(shared[0].weight, 0.7)

    def pair_of(of_model: nn.Module, of_guide: nn.Module) -> tuple[_Model, Callable[[Tensor], None]]:
        model = _Model()
        model.inner = of_model

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(of_guide(x.unsqueeze(-1)).squeeze(-1), 0.8))

        return model, guide

    one, two = copy.deepcopy(shared), copy.deepcopy(shared)
    model, guide = pair_of(one, two)
    apart = _gradients(guide, [*one.parameters(), *two.parameters()], model, *objective)
    model, guide = pair_of(shared, shared)
    together = _gradients(guide, [*shared.parameters()], model, *objective)
    torch.testing.assert_close(together, tuple(apart[i] + apart[i + 2] for i in range(2)), rtol=1e-10, atol=1e-12)
