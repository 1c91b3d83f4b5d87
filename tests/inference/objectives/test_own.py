"""Objectives of a user's own, of each of the three forms, against what they are by hand; float64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyro
import pytest
import torch
from affine import F64, Affine
from pairs import LinearGaussian, TwoModes
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.mixture import DiagonalMixture
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind, has_kl_term
from ppl_gen.inference.pair import Pair, Terms

Call = Callable[..., tuple[int, str, str]]
MIWAE = '''
import math


class MultiplyImportanceWeighted:
    """The mean over M groups of the IWAE bound of K samples (Rainforth et al. 2018, MIWAE).

    :param num_particles: M K.
    :param groups: M.
    """

    def __init__(self, *, num_particles: int = 8, groups: int = 2):
        self.num_particles, self.groups = num_particles, groups

    def surrogate(self, terms):
        w = terms.log_weight.unflatten(0, (self.groups, -1))
        return (w.logsumexp(1) - math.log(w.shape[1])).mean(0)
'''


def _pair() -> tuple[LinearGaussian, Affine, Tensor, Pair]:
    model = LinearGaussian(3, 2)
    guide, x = Affine(model), torch.randn(5, 3, dtype=F64)
    return model, guide, x, Pair.read(model, guide, x)


def _same_gradients(ours: Tensor, theirs: Tensor, *modules: nn.Module) -> None:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    pairs = [torch.autograd.grad(each, parameters) for each in (ours, theirs)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.fixture
def miwae(elsewhere: Path) -> str:
    Path("my_bound.py").write_text(MIWAE, encoding="utf-8")
    return "my_bound.py:MultiplyImportanceWeighted"


@pytest.mark.parametrize("groups", [1, 3])
def test_a_surrogate_in_a_file(miwae: str, groups: int) -> None:
    """Value and gradient, in model and guide, are those of the formula, from the same noise."""
    model, guide, x, pair = _pair()
    elbo = bind(construct(miwae, num_particles=6, options={"groups": groups}), pair, x)
    torch.manual_seed(7)
    loss = elbo.differentiable_loss(None, None, x)
    torch.manual_seed(7)
    blocks = guide.log_weights(model, x, 6).chunk(groups)
    bounds = [block.exp().mean(0).log() for block in blocks]
    by_hand = -torch.stack(bounds).mean(0).sum()
    torch.testing.assert_close(loss, by_hand)
    _same_gradients(loss, by_hand, model, guide)


def test_a_surrogate_is_trained(miwae: str) -> None:
    """On a pair whose log p(x) is known: after 200 steps the bound is at most 0.1 nats from it."""
    model, guide, x, pair = _pair()
    with torch.no_grad():
        guide.a += 1  # far from the posterior
    elbo = bind(construct(miwae), pair, x)
    adam = torch.optim.Adam(guide.parameters(), lr=0.05)
    losses = []
    for _ in range(200):
        adam.zero_grad()
        loss = elbo.differentiable_loss(None, None, x)
        loss.backward()
        adam.step()
        losses.append(loss.detach() / len(x))
    first, last = torch.stack(losses[:20]).mean(), torch.stack(losses[-20:]).mean()
    assert last < first - 0.5
    torch.testing.assert_close(-last, model.log_px(x).mean().detach(), rtol=0, atol=0.1)


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", None, True])
def test_a_number_of_samples_that_is_none(count: Any) -> None:
    class Mine:
        num_particles = count

        def surrogate(self, terms: Any) -> Tensor:
            return terms.log_weight.mean(0)

    _, _, x, pair = _pair()
    with pytest.raises(BadInput, match=r"num_particles .*: must be a whole number, at least 1"):
        bind(Mine(), pair, x)


class Climbing(nn.Module):
    """The ELBO by the score function, with a baseline that is learned (Mnih and Gregor 2014)."""

    def __init__(self, data_dim: int = 3):
        super().__init__()
        self.baseline = nn.Linear(data_dim, 1, dtype=F64)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        terms = pair.terms(x, *args, detach=True)
        error = terms.log_weight[0].detach() - self.baseline(x).squeeze(1)
        surrogate = terms.log_weight[0] + error.detach() * terms.log_guide[0] - error.square()
        return -(terms.log_weight[0].detach() + surrogate - surrogate.detach()).sum()


def test_a_loss_with_parameters_of_its_own() -> None:
    """-ELBO, with the gradients of model, guide and baseline by hand, from the same noise."""
    model, guide, x, pair = _pair()
    objective = construct(Climbing)
    assert isinstance(objective, Climbing) and construct(objective) is objective
    torch.manual_seed(3)
    loss = bind(objective, pair, x).differentiable_loss(None, None, x)
    torch.manual_seed(3)
    q = guide.distribution(x)
    z = q.sample()
    log_joint, log_q = model.prior().log_prob(z) + model.likelihood(z).log_prob(x), q.log_prob(z)
    torch.testing.assert_close(loss, (log_q - log_joint).sum())
    error = (log_joint - log_q).detach() - objective.baseline(x).squeeze(1)
    # The gradient of log w itself is a part of the guide's, whose mean is zero.
    by_hand = ((1 - error.detach()) * log_q - log_joint + error.square()).sum()
    _same_gradients(loss, by_hand, model, guide, objective)


class Stock:
    """Pyro's `Trace_ELBO`."""

    def elbo(self, pair: Pair, x: Tensor, *args: Any) -> ELBO:
        return Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=pair.max_plate_nesting)


def test_an_elbo_of_pyro() -> None:
    """Has a KL term to scale."""
    _, _, x, pair = _pair()
    wrapped = Stock()
    torch.manual_seed(1)
    ours = bind(wrapped, pair, x).differentiable_loss(pair.model, pair.guide, x)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, -pair.terms(x, num_samples=2).log_weight.mean(0).sum())
    assert has_kl_term(wrapped, pair) and not has_kl_term(Climbing(), pair)


class OfTerms:
    """E_q[log p(x | z)] - 3 KL(q(z | x) || p(z)), which is no function of the log weights alone."""

    num_particles = 3

    def surrogate(self, terms: Terms) -> Tensor:
        return (terms.log_likelihood - 3 * (terms.log_guide - terms.log_prior)).mean(0)


def test_a_choice_in_the_guide() -> None:
    """The gradient of 10,000 draws of a mixture with two far components, in weights, means and scales, is that of the
    integral, within 4.5 standard errors of each of six (false alarms of 7e-6 each): the score of the choice is added to
    any surrogate."""
    count, grid = 10_000, torch.linspace(-12, 12, 3001, dtype=F64)
    context = torch.tensor([0.4, -0.3, -4.0, 4.0, 0.2, -0.1], dtype=F64)

    def mixture(context: Tensor) -> DiagonalMixture:
        logits, locs, log_scales = context.unflatten(-1, (3, 2)).unbind(-2)
        return DiagonalMixture(locs.unsqueeze(-1), log_scales.exp().unsqueeze(-1), logits)

    model = TwoModes(noise=2.0)
    each = nn.Parameter(context.expand(count, -1).clone())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture(each[torch.arange(len(x)) % count]))

    x = torch.full((count, 1), 4.0, dtype=F64)
    pair = Pair.read(model, guide, x)
    assert pair.scored == ("z",)
    loss = bind(OfTerms(), pair, x).differentiable_loss(None, None, x)
    (draws,) = torch.autograd.grad(-loss, each)
    context.requires_grad_()
    log_q, z = mixture(context).log_prob(grid[:, None]), grid[:, None]
    value = model.likelihood(z).log_prob(x[:1]) - 3 * (log_q - model.prior().log_prob(z))
    (truth,) = torch.autograd.grad((log_q.exp() * value).sum() * (grid[1] - grid[0]), context)
    error = draws.std(0) / math.sqrt(count)
    assert ((draws.mean(0) - truth).abs() < 4.5 * error).all(), (draws.mean(0), truth, error)
    assert error.max() < 0.2 * truth.abs().max()


WATCHED = """
from pathlib import Path


class Watched:
    num_particles = 1

    def surrogate(self, terms):
        return terms.log_weight.mean(0)

    def monitor(self, pair, x, *args):
        return {"spread": float(pair.terms(x, *args, num_samples=4).log_weight.std(0).mean())}

    def finish(self, model, x):
        Path("finished.txt").write_text(str(len(x)))
"""


def test_measured_by_another_number(elsewhere: Path, call: Call) -> None:
    """It is in `metrics.jsonl`, in what is printed, and in the picture; and `finish` is called once, after the end."""
    Path("watched.py").write_text(WATCHED, encoding="utf-8")
    small = ("--data", "digits", "--train-size", "60", "--epochs", "2", "--num-samples", "5", "--latent-dim", "4")
    status, _, err = call(fit.command, "vae", *small, "--objective", "watched.py:Watched", "--out", "run")
    assert status == 0, err
    assert "epoch 2/2  train spread " in err and "  validation spread " in err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["train"].keys() for line in lines] == [{"spread"}] * 3
    assert Path("run/figures/learning_curves.png").exists()
    assert 0 < int(Path("finished.txt").read_text()) < 1800


class Wrong:
    num_particles = 2

    def surrogate(self, terms: Terms) -> Any:
        return terms.log_weight


class WrongBound(OfTerms):
    def bound(self, terms: Terms) -> Any:
        return terms.log_weight.mean().item()


class WrongLoss:
    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Any:
        return pair.terms(x).elbo


class WrongDraws(OfTerms):
    draws: ClassVar = "sampled"


class Choosy(OfTerms):
    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        raise BadInput(f"not of {len(x)} images")


class Failing(OfTerms):
    def surrogate(self, terms: Terms) -> Tensor:
        return terms.log_joint.mean(0)  # type: ignore[attr-defined,no-any-return]


class WrongELBO:
    def elbo(self, pair: Pair, x: Tensor, *args: Any) -> Any:
        return TraceGraph_ELBO()


class NoNumber:
    def surrogate(self, terms: Terms) -> Tensor:
        return terms.log_weight.mean(0)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Wrong, r"objective Wrong: surrogate\(terms\) returns a tensor \[2, 5\]; it must return one number for each"),
        (WrongBound, r"objective WrongBound: bound\(terms\) returns a float"),
        (WrongLoss, r"objective WrongLoss: loss\(pair, x\) returns a tensor \[5\]; it must return one number, the sum"),
        (WrongDraws, "objective WrongDraws: draws = 'sampled': choose from reparametrized, detached, frozen-guide"),
        (Choosy, "not of 5 images"),
        (Failing, r"objective Failing fails: AttributeError: 'Terms' object has no .*log_joint.*test_own\.py:\d+, in "),
        (WrongELBO, "objective WrongELBO: .* returns a TraceGraph_ELBO, which has no differentiable_loss"),
        (NoNumber, "objective NoNumber: .*surrogate also needs an attribute num_particles"),
    ],
)
def test_mistakes_are_told(cls: Any, words: str) -> None:
    _, _, x, pair = _pair()
    with pytest.raises(BadInput, match=words):
        bind(construct(cls), pair, x).differentiable_loss(None, None, x)
