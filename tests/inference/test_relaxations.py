"""Draws of discrete sites, and their densities, against torch's own and against formulas."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from ppl_gen.inference.objectives.reinmax import Reinmax
from ppl_gen.inference.objectives.straight_through import StraightThrough
from ppl_gen.inference.relaxations import (
    Choice,
    choice_of,
    concrete_log_prob,
    hard,
    noise_for,
    perturbed_given,
    relaxed,
)
from ppl_gen.networks.distributions import BernoulliVector

F64 = torch.float64
LOGITS = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -2.0]], dtype=F64)


def _choice(fn: Any) -> Choice:
    found = choice_of("z", fn)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (dist.Bernoulli(logits=LOGITS), "binary"),
        (dist.Bernoulli(LOGITS.sigmoid()).to_event(1), "binary"),
        (dist.Bernoulli(logits=LOGITS).to_event(2).expand((4,)), "binary"),
        (BernoulliVector(LOGITS).expand((4, 2)), "binary"),
        (dist.OneHotCategorical(logits=LOGITS), "one-hot"),
        (dist.OneHotCategorical(LOGITS.softmax(-1)).to_event(1), "one-hot"),
        (dist.Categorical(logits=LOGITS), "index"),
        (dist.Categorical(logits=LOGITS).to_event(1), "index"),
    ],
)
def test_a_choice_is_what_it_says(fn: Any, kind: str) -> None:
    choice, value = _choice(fn), fn.sample()
    assert choice.kind == kind and choice.sample().shape == value.shape
    torch.testing.assert_close(choice.log_prob(value).expand(fn.batch_shape), fn.log_prob(value).to(F64))
    if kind != "index":
        torch.testing.assert_close(choice.mean, fn.mean.expand(value.shape))
        assert choice.logits.shape == value.shape


@pytest.mark.parametrize("fn", [dist.Normal(0.0, 1.0), dist.Poisson(1.0), dist.Bernoulli(0.5).mask(False)])
def test_no_choice(fn: Any) -> None:
    assert choice_of("z", fn) is None


@pytest.mark.parametrize("kind", ["binary", "one-hot"])
def test_noise_chooses_by_probability(kind: str) -> None:
    """Of 20,000 draws each probability is within 5 standard errors: false alarms below 1e-5."""
    count = 20_000
    fn: Any = dist.Bernoulli(logits=LOGITS) if kind == "binary" else dist.OneHotCategorical(logits=LOGITS)
    choice = _choice(fn.expand((count, *fn.batch_shape)))
    values = hard(choice, noise_for(choice))
    assert set(values.unique().tolist()) == {0.0, 1.0}
    share, exact = values.mean(0), choice.mean[0]
    assert ((share - exact).abs() < 5 * (exact * (1 - exact) / count).sqrt()).all()
    # Relaxed values lie between, and are those hard values at a low temperature.
    noise = noise_for(choice)
    torch.testing.assert_close(relaxed(choice, noise, 1e-9), hard(choice, noise), atol=1e-2, rtol=0)
    soft = relaxed(choice, noise, 1.0)
    assert ((soft > 0) & (soft < 1)).all()


@pytest.mark.parametrize("kind", ["binary", "one-hot"])
def test_noise_given_its_choice(kind: str) -> None:
    """It makes the same choice; over choices it is distributed as the noise itself, by the test of Kolmogorov and
    Smirnov at a level of 1e-5 for each of three units; and depends on the logits as the quantile function does."""
    logits = LOGITS[0].expand(5000, 3)
    choice = _choice(dist.Bernoulli(logits=logits) if kind == "binary" else dist.OneHotCategorical(logits=logits))
    value = choice.sample()
    again = perturbed_given(choice, choice.logits, value)
    if kind == "binary":
        assert torch.equal((again > 0).to(F64), value)
    else:
        assert torch.equal(again.argmax(-1), value.argmax(-1))
    for unit in range(3):
        law = "logistic" if kind == "binary" else "gumbel_r"
        assert kstest((again - choice.logits)[:, unit].numpy(), law).pvalue > 1e-5


def test_concrete_densities_are_those_of_torch() -> None:
    at = torch.randn(2, 3, dtype=F64)
    binary = _choice(dist.Bernoulli(logits=LOGITS))
    expected = LogitRelaxedBernoulli(torch.tensor(0.7, dtype=F64), logits=LOGITS).log_prob(at)
    torch.testing.assert_close(concrete_log_prob(binary, at, 0.7), expected)
    normalized = at.log_softmax(-1)
    expected = ExpRelaxedCategorical(torch.tensor(0.7, dtype=F64), logits=LOGITS).log_prob(normalized)
    one_hot = _choice(dist.OneHotCategorical(logits=LOGITS))
    torch.testing.assert_close(concrete_log_prob(one_hot, normalized, 0.7), expected)


def _jacobian(p: Tensor) -> Tensor:
    return p.diag() - torch.outer(p, p)


def test_reinmax_and_straight_through_by_their_jacobians() -> None:
    """ReinMax is 2 J((z + p) / 2) v - J(p) v / 2 with J(p) = diag(p) - p p' (Liu et al. 2023, algorithm 2), and
    straight-through is J(p) v, for a derivative v of the objective."""
    logits, v = LOGITS[0].clone().requires_grad_(), torch.tensor([0.3, -2.0, 1.0], dtype=F64)
    p = logits.detach().softmax(-1)
    for _ in range(5):
        choice = _choice(dist.OneHotCategorical(logits=logits))
        value = Reinmax().draw(choice)
        ours = torch.autograd.grad(value @ v, logits, retain_graph=True)[0]
        torch.testing.assert_close(ours, 2 * _jacobian((value.detach() + p) / 2) @ v - _jacobian(p) @ v / 2)
        ours = torch.autograd.grad(StraightThrough().draw(choice) @ v, logits)[0]
        torch.testing.assert_close(ours, _jacobian(p) @ v)


@pytest.mark.parametrize(("curvature", "exact"), [(0.0, {"reinmax", "straight-through"}), (1.5, {"reinmax"})])
def test_reinmax_is_exact_for_a_quadratic(curvature: float, exact: set[str]) -> None:
    """The mean over both values of one binary unit, of f(z) = z + c z^2: its derivative is p (1 - p) (f(1) - f(0))."""
    logits = torch.tensor([0.8], dtype=F64, requires_grad=True)
    p = float(logits.detach().sigmoid())
    truth = p * (1 - p) * (1 + curvature)
    for name, draw in (("reinmax", Reinmax().draw), ("straight-through", StraightThrough().draw)):
        mean = 0.0
        for value, chance in ((1.0, p), (0.0, 1 - p)):
            choice = Choice("z", _Fixed(value), "binary", logits)
            z = draw(choice)
            mean += chance * float(torch.autograd.grad((z + curvature * z.square()).sum(), logits)[0])
        assert math.isclose(mean, truth, rel_tol=1e-9) == (name in exact)


class _Fixed:
    """A distribution that draws one value."""

    def __init__(self, value: float):
        self.value = value

    def sample(self) -> Tensor:
        return torch.tensor([self.value], dtype=F64)
