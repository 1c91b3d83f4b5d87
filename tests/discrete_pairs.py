"""Pairs of discrete sites written as strangers write them, in float64, and their ELBO by one call for each state."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

PIXELS = 4


class _Stranger(nn.Module):
    """Random weights in float64, for a model and a guide."""

    states: dict[str, list[Tensor]]
    """Values of an image's site, by name, without the plate of images."""

    def __init__(self, **sizes: tuple[int, int]):
        super().__init__()
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs))
        self.double()
        with torch.no_grad():
            for name, each in self.named_parameters():
                # No state is so rare that a test of a few thousand draws would not see it.
                each.normal_(0, 0.5 if name.startswith(("encoder", "upward")) else 1.5)

    def pixels(self, z: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=self.out(self.hidden(z).tanh())).to_event(1)

    def elbo(self, x: Tensor) -> Tensor:
        """sum_z q (log p - log q) over all states [images], by stock Pyro."""
        found = []
        for image in x.split(1):
            total = torch.zeros((), dtype=x.dtype)
            for values in itertools.product(*self.states.values()):
                known = {name: each.unsqueeze(self.at) for name, each in zip(self.states, values, strict=True)}
                q, p = (
                    poutine.trace(poutine.condition(function, known)).get_trace(image).log_prob_sum()
                    for function in (self.guide, self.model)
                )
                total = total if bool(q == -math.inf) else total + q.exp() * (p - q)
            found.append(total)
        return torch.stack(found)

    at = 0
    """Dimension of the images in a value."""


class Plates(_Stranger):
    """Three binary units in a plate of their own, left of the images."""

    at, flat = -1, False

    def __init__(self) -> None:
        super().__init__(encoder=(PIXELS, 3), hidden=(3, 4), out=(4, PIXELS), prior=(1, 3))
        states = itertools.product([0.0, 1.0], repeat=3)
        self.states = {"z": [torch.tensor(each, dtype=torch.float64) for each in states]}

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            with pyro.plate("units", 3, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(logits=self.prior.bias.unsqueeze(-1)))
            z = z.transpose(-1, -2)
            pyro.sample("x", self.pixels(z if self.flat else z.unsqueeze(-3)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1), pyro.plate("units", 3, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x).T))


class Flat(Plates):
    """The same, in a model that takes no other dimensions: no plate of samples fits around it."""

    flat = True


class Layers(_Stranger):
    """Two layers of two binary units each; the guide draws the lower one first."""

    def __init__(self) -> None:
        super().__init__(
            encoder=(PIXELS, 2), upward=(2, 2), downward=(2, 2), hidden=(2, 4), out=(4, PIXELS), top=(1, 2)
        )
        states = [torch.tensor(each, dtype=torch.float64) for each in itertools.product([0.0, 1.0], repeat=2)]
        self.states = {"upper": states, "lower": states}

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            upper = pyro.sample("upper", dist.Bernoulli(logits=self.top.bias).to_event(1))
            lower = pyro.sample("lower", dist.Bernoulli(logits=self.downward(upper)).to_event(1))
            pyro.sample("x", self.pixels(lower), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            lower = pyro.sample("lower", dist.Bernoulli(logits=self.encoder(x)).to_event(1))
            pyro.sample("upper", dist.Bernoulli(logits=self.upward(lower)).to_event(1))


class OneHot(_Stranger):
    """Two units of three categories, and below them one unit of three."""

    def __init__(self) -> None:
        super().__init__(
            encoder=(PIXELS, 3), upward=(3, 6), downward=(6, 3), hidden=(3, 4), out=(4, PIXELS), top=(1, 6)
        )
        one = list(torch.eye(3, dtype=torch.float64))
        self.states = {"upper": [torch.stack(each) for each in itertools.product(one, repeat=2)], "lower": one}

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            top = self.top.bias.reshape(2, 3)
            upper = pyro.sample("upper", dist.OneHotCategorical(logits=top).to_event(1))
            lower = pyro.sample("lower", dist.OneHotCategorical(logits=self.downward(upper.flatten(-2))))
            pyro.sample("x", self.pixels(lower), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            lower = pyro.sample("lower", dist.OneHotCategorical(logits=self.encoder(x)))
            logits = self.upward(lower).unflatten(-1, (2, 3))
            pyro.sample("upper", dist.OneHotCategorical(logits=logits).to_event(1))


class Impossible(OneHot):
    """The same, where the last category has no probability."""

    possible = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            top = self.top.bias.reshape(2, 3) + self.possible
            upper = pyro.sample("upper", dist.OneHotCategorical(logits=top).to_event(1))
            logits = self.downward(upper.flatten(-2)) + self.possible
            lower = pyro.sample("lower", dist.OneHotCategorical(logits=logits))
            pyro.sample("x", self.pixels(lower), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            lower = pyro.sample("lower", dist.OneHotCategorical(logits=self.encoder(x) + self.possible))
            logits = self.upward(lower).unflatten(-1, (2, 3)) + self.possible
            pyro.sample("upper", dist.OneHotCategorical(logits=logits).to_event(1))


class Fork(_Stranger):
    """Two sites, independent in the guide and the prior. The image depends on both."""

    def __init__(self) -> None:
        super().__init__(encoder=(PIXELS, 3), hidden=(3, 4), out=(4, PIXELS), prior=(1, 3))
        self.states = {
            "one": [torch.tensor([each], dtype=torch.float64) for each in (0.0, 1.0)],
            "two": [torch.tensor(each, dtype=torch.float64) for each in itertools.product([0.0, 1.0], repeat=2)],
        }

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            two = pyro.sample("two", dist.Bernoulli(logits=self.prior.bias[1:]).to_event(1))
            one = pyro.sample("one", dist.Bernoulli(logits=self.prior.bias[:1]).to_event(1))
            pyro.sample("x", self.pixels(torch.cat([one, two], -1)), obs=x)

    def guide(self, x: Tensor) -> None:
        logits = self.encoder(x)
        with pyro.plate("images", len(x)):
            pyro.sample("one", dist.Bernoulli(logits=logits[..., :1]).to_event(1))
            pyro.sample("two", dist.Bernoulli(logits=logits[..., 1:]).to_event(1))


class Index(_Stranger):
    """A category as an index."""

    def __init__(self) -> None:
        super().__init__(encoder=(PIXELS, 3), table=(3, PIXELS), prior=(1, 3))
        self.states = {"k": list(torch.arange(3))}

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.prior.bias))
            pyro.sample("x", dist.Bernoulli(logits=self.table.weight.T[k]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.encoder(x)))


ALL: dict[str, Callable[[], Any]] = {
    "plates": Plates,
    "flat": Flat,
    "layers": Layers,
    "one-hot": OneHot,
    "impossible": Impossible,
    "index": Index,
    "fork": Fork,
}


def images(count: int = 2) -> Tensor:
    return torch.bernoulli(torch.full((count, PIXELS), 0.5, dtype=torch.float64))
