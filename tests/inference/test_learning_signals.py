"""The terms of the log weight that the value of a site changes, which are its learning signal."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete_pairs import ALL, PIXELS, Layers, images
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.hierarchical_bernoulli import HierarchicalBernoulli
from ppl_gen.inference.learning_signals import parts_of
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, Part, sampled
from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet


def _read(own: Any, x: Tensor) -> Pair:
    return Pair.read(own.model, own.guide, x)


def test_parts_of_layers() -> None:
    """Of a chain z3 - z2 - z1 - x whose guide draws z1 first: a layer changes its neighbors and all above it."""
    model, x = HierarchicalBeliefNet(PIXELS, latent_dims=(3, 2, 2)), images().float()
    with torch.no_grad():
        for each in model.parameters():
            each.zero_()  # what does not depend on z now may do so after a step
    pair = Pair.read(model, HierarchicalBernoulli(PIXELS, torch.full((PIXELS,), 0.5), model), x)
    everything = ("z1", "z2", "z3")
    assert {name: tuple(map(set, part[:2])) for name, part in parts_of(pair, x).items()} == {
        "z1": (set(everything), set(everything)),
        "z2": ({"z2", "z3"}, set(everything)),
        "z3": ({"z3"}, {"z2", "z3"}),
    }
    assert [name for name, part in parts_of(pair, x).items() if part.likelihood] == ["z1"]


def test_parts_of_strangers_pairs() -> None:
    """Independent sites; and pairs of a single site, whose signal is the whole log weight."""
    x = images()
    assert parts_of(_read(ALL["fork"](), x), x) == {
        "one": Part(("one",), ("one",), True),
        "two": Part(("two",), ("two",), True),
    }
    assert parts_of(_read(ALL["layers"](), x), x)["upper"] == Part(("upper",), ("upper", "lower"), False)
    for name in ("plates", "flat", "index"):
        pair = _read(ALL[name](), x)
        assert parts_of(pair, x) == {}
        found = sampled(pair, x, num_samples=2, draw=Choice.sample)
        assert torch.equal(found.signal(pair.latent[0]), found.log_weight)


@pytest.mark.parametrize("name", ["layers", "one-hot", "fork"])
def test_what_is_left_out_does_not_depend_on_the_site(name: str) -> None:
    """The log weight less the signal of a site stays the same when the site and those that depend on it change."""
    own, x = ALL[name](), images(5)
    pair = _read(own, x)
    parts = parts_of(pair, x)
    first = sampled(pair, x, num_samples=20, draw=Choice.sample, parts=parts)
    for site, part in parts.items():

        def draw(choice: Choice, part: Part = part) -> Tensor:
            return choice.sample() if choice.name in part.guide else first.values[choice.name]

        other = sampled(pair, x, num_samples=20, draw=draw, parts=parts)
        left = [(found.log_weight - found.signal(site)).detach() for found in (first, other)]
        torch.testing.assert_close(*left, rtol=0, atol=1e-12)
        assert not torch.equal(first.signal(site), other.signal(site))


class _Hidden(Layers):
    """A model whose image depends on the upper layer too, through numbers of Python."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            upper = pyro.sample("upper", dist.Bernoulli(logits=self.top.bias).to_event(1))
            lower = pyro.sample("lower", dist.Bernoulli(logits=self.downward(upper)).to_event(1))
            level = torch.tensor(upper.detach().as_subclass(Tensor).tolist(), dtype=x.dtype).sum(-1, keepdim=True)
            logits = self.out(self.hidden(lower).tanh()) + level
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class _Failing(Layers):
    """A model whose tensors may not be of another class."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            upper = pyro.sample("upper", dist.Bernoulli(logits=self.top.bias).to_event(1))
            assert type(upper) is Tensor
            lower = pyro.sample("lower", dist.Bernoulli(logits=self.downward(upper)).to_event(1))
            pyro.sample("x", self.pixels(lower), obs=x)


@pytest.mark.parametrize("kind", [_Hidden, _Failing])
def test_where_it_cannot_be_found_nothing_is_left_out(kind: type[Layers]) -> None:
    x = images()
    pair = _read(kind(), x)
    assert parts_of(pair, x) == {}
    assert bind(construct("rloo"), pair, x).differentiable_loss(pair.model, pair.guide, x).isfinite()


def _written(one: Tensor, two: Tensor) -> Tensor:
    code = torch.zeros(*one.shape, 2)
    code[..., 0], code[..., 1] = one, two
    return code


def _through_a_view(one: Tensor, two: Tensor) -> Tensor:
    code = one.new_zeros(*one.shape, 2)
    code[..., 1].copy_(two)
    return code


def _result_in(one: Tensor, two: Tensor) -> Tensor:
    code = torch.empty(*one.shape, 2)
    torch.stack([one, two], -1, out=code)
    return code


def _into_its_own(one: Tensor, two: Tensor) -> Tensor:
    code = one.new_zeros(*one.shape, 2)
    code[..., 0], code[..., 1] = one, two
    return code


Code = Callable[[Tensor, Tensor], Tensor]
"""A function of two bits [images], which returns both [images, 2]."""
CODES: dict[str, Code] = {
    "written": _written,
    "through a view": _through_a_view,
    "out=": _result_in,
    "NumPy": lambda one, two: torch.from_numpy(np.stack([one.numpy(), two.numpy()], -1)),
    "an array": lambda one, two: torch.from_numpy(np.stack([np.asarray(one), np.asarray(two)], -1)),
    "a number": lambda one, two: torch.stack([one, torch.full_like(one, two.mean().item())], -1),
    "vmap": torch.func.vmap(lambda one, two: torch.stack([one, two], -1)),
}
FOLLOWED: dict[str, Code] = {
    "stacked": lambda one, two: torch.stack([one, two], -1),
    "where": lambda one, two: torch.where(torch.stack([one, two], -1) > 0, 1.0, 0.0),
    "table": lambda one, two: torch.eye(4)[(2 * one + two).long()][..., :2],
    "into its own": _into_its_own,
}


@pytest.mark.parametrize("name", CODES | FOLLOWED)
def test_a_dependence_that_no_weight_shows_yet(name: str) -> None:
    """The decoder's weights are 0: x does not change with the bits, but will after a step. Where a value leaves the
    tensors that are followed, nothing is left out, and `elbo` is refused."""
    code = (CODES | FOLLOWED)[name]
    weight, half = torch.zeros(2, PIXELS), torch.tensor(0.5)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            one, two = (pyro.sample(each, dist.Bernoulli(half)) for each in ("one", "two"))
            logits = code(one.expand(len(x)), two.expand(len(x))) @ weight
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            for each in ("one", "two"):
                pyro.sample(each, dist.Bernoulli(torch.tensor(0.4)))

    x = images().float()
    pair = Pair.read(model, guide, x)
    if name in FOLLOWED:
        assert parts_of(pair, x) == {each: Part((each,), (each,), True) for each in ("one", "two")}
        bind(construct("elbo"), pair, x)
    else:
        assert parts_of(pair, x) == {}
        with pytest.raises(BadInput, match=r"'x' may depend on '(one|two)'"):
            bind(construct("elbo"), pair, x)


@pytest.mark.parametrize("name", ["rloo", "nvil", "rebar"])
def test_the_gradient_of_an_upper_layer_varies_less(name: str) -> None:
    """With its own signal the variance of the gradient is lower than with that of the whole z, by a fifth at least, and
    the mean is the same: no parameter is off by 5 standard errors (false alarms below 1e-5)."""
    torch.manual_seed(3)
    own, x = Layers(), images(20)
    pair, parameters = _read(own, x), list(own.upward.parameters())
    objective: Any = construct(name)
    bind(objective, pair, x)
    if name != "rloo":
        objective.eval()
        with torch.no_grad():
            for each in objective.parameters():
                each.mul_(0.5)
    means, variances = [], []
    for whole in (False, True):
        elbo = bind(objective, pair, x)
        if whole:
            objective.parts = {each: Part(pair.latent, pair.latent, True) for each in pair.latent}
        losses = (elbo.differentiable_loss(pair.model, pair.guide, x) for _ in range(400))
        draws = torch.stack(
            [torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)]) for loss in losses]
        )
        means.append(draws.mean(0))
        variances.append(draws.var(0))
    assert variances[0].sum() < 0.8 * variances[1].sum()
    assert ((means[0] - means[1]).abs() < 5 * (torch.stack(variances).sum(0) / 400).sqrt()).all()
    assert math.isfinite(float(means[0].sum()))


class _WritingBernoulli(dist.Bernoulli):
    """Its draws are written into a tensor, which Pyro cannot follow."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_WritingBernoulli":
        return _WritingBernoulli(logits=self.logits.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            z = torch.zeros(self._extended_shape(torch.Size(sample_shape)), dtype=self.logits.dtype)
            z[torch.rand_like(z) < self.probs.expand(z.shape)] = 1.0
        return z


class _WritingNormal(dist.Normal):
    """The same with reparametrized draws."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_WritingNormal":
        return _WritingNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        z = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.loc.dtype)
        z[...] = self.loc + self.scale * z
        return z


@pytest.mark.parametrize("second", ["bernoulli", "normal"])
def test_a_draw_that_is_written_into_a_tensor_depends_on_what_it_was_drawn_from(second: str) -> None:
    """`elbo`: the mean gradient, in the log-odds of the first of two sites, is that of the ELBO, summed over both
    values of the first site. 40 means of 500 images are within 5 standard errors (false alarms of 1e-5)."""
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    one = torch.ones((), dtype=torch.float64)

    def prior_of_b() -> Any:
        return dist.Bernoulli(logits=2 * one) if second == "bernoulli" else dist.Normal(0 * one, one)

    def guide_of_b(a: Tensor) -> Any:
        return _WritingBernoulli(logits=4 * a - 2) if second == "bernoulli" else _WritingNormal(2 * a, one)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Bernoulli(logits=0 * one))
            b = pyro.sample("b", prior_of_b())
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=logit))
            pyro.sample("b", guide_of_b(a))

    x = torch.full((500,), 0.7, dtype=torch.float64)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_a = dist.Bernoulli(logits=logit).log_prob(values)
    if second == "bernoulli":
        log_b = guide_of_b(values).log_prob(values.unsqueeze(1))  # [b, a]
        inner = (log_b.exp() * (prior_of_b().log_prob(values) - 0.5 * (x[0] - values) ** 2).unsqueeze(1)).sum(0)
        inner = inner - (log_b.exp() * log_b).sum(0)
    else:  # -KL(N(2a, 1) || N(0, 1)) and E[-(x - b)^2 / 2]
        inner = -0.5 * (2 * values) ** 2 - 0.5 * ((x[0] - 2 * values) ** 2 + 1)
    (expected,) = torch.autograd.grad((log_a.exp() * (inner - log_a)).sum(), logit)
    loss = bind(construct("elbo"), Pair.read(model, guide, x), x)
    found = torch.stack(
        [-torch.autograd.grad(loss.differentiable_loss(model, guide, x), logit)[0] / len(x) for _ in range(40)]
    )
    assert float((found.mean() - expected).abs()) < 5 * float(found.std()) / 40**0.5
    assert float(expected.abs()) > 10 * float(found.std()) / 40**0.5  # enough to tell
