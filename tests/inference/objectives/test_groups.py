"""`miwae`, `piwae` and `ciwae`, and objectives with a surrogate for the guide, against explicit log weights and
integrals; float64."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from affine import F64, Affine, Repeated, TwoLayerGuide, gradient
from pairs import ExactGuide, LinearGaussian
from torch import Tensor, nn

from ppl_gen.core.contracts import Draws
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.guides.mixture import DiagonalMixture
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.models.belief_net import BeliefNet

Weights = Callable[[Tensor], Tensor]


class TwoSites(nn.Module):
    """upper ~ N(m, 1), lower ~ N(b upper, 1), x ~ N(c lower, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.2, 0.8, 1.3], dtype=F64))

    def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
        m, b, c = self.w
        with pyro.plate("images", n if x is None else len(x)):
            upper = pyro.sample("upper", dist.Normal(m, 1.0))
            lower = pyro.sample("lower", dist.Normal(b * upper, 1.0))
            pyro.sample("x", dist.Normal(c * lower.unsqueeze(-1), 1.0).expand([*lower.shape, 3]).to_event(1), obs=x)


class TwoSiteGuide(TwoLayerGuide):
    """A guide of two layers, for `TwoSites`."""

    def log_weights(self, model: TwoSites, x: Tensor, count: int) -> Tensor:
        a, b, c, d = self.w
        m, slope, loading = model.w
        ql = dist.Normal((a * x.mean(1)).expand(count, -1), b.exp())
        lower = ql.rsample()
        qu = dist.Normal(c * lower, d.exp())
        upper = qu.rsample()
        log_joint = dist.Normal(m, 1.0).log_prob(upper) + dist.Normal(slope * upper, 1.0).log_prob(lower)
        log_joint = log_joint + dist.Normal(loading * lower.unsqueeze(-1), 1.0).log_prob(x).sum(-1)
        return log_joint - ql.log_prob(lower) - qu.log_prob(upper)


def _pair(sites: int) -> tuple[Any, Any, Tensor, Pair]:
    torch.manual_seed(0)
    model: Any = LinearGaussian(3, 2) if sites == 1 else TwoSites()
    guide: Any = Affine(model) if sites == 1 else TwoSiteGuide()
    x = torch.randn(4, 3, dtype=F64)
    return model, guide, x, Pair.read(model, guide, x)


def _iwae(log_w: Tensor) -> Tensor:
    return log_w.exp().mean(0).log()


def _miwae(log_w: Tensor) -> Tensor:
    """Of 3 groups of 2."""
    return torch.stack([_iwae(log_w[:2]), _iwae(log_w[2:4]), _iwae(log_w[4:])]).mean(0)


def _ciwae(log_w: Tensor) -> Tensor:
    return 0.3 * log_w.mean(0) + 0.7 * _iwae(log_w)


OPTIONS: dict[str, dict[str, Any]] = {
    "miwae": {"options": {"groups": 3}},
    "piwae": {"options": {"groups": 3}},
    "ciwae": {"beta": 0.3},
}
BOUNDS: dict[str, tuple[Weights, Weights]] = {
    "miwae": (_miwae, _miwae),
    "piwae": (_iwae, _miwae),
    "ciwae": (_ciwae, _ciwae),
}
"""The bounds of the model and of the guide, of 6 samples."""


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("name", list(BOUNDS))
def test_value_and_gradients_by_hand(name: str, sites: int, vectorized: bool) -> None:
    """From the same noise, the model's gradient is that of its bound of explicit log weights, and the guide's that of
    its own. The reported number is the model's bound."""
    model, guide, x, pair = _pair(sites)
    pair = replace(pair, vectorized=vectorized)
    elbo = bind(construct(name, num_particles=6, **OPTIONS[name]), pair, x)
    torch.manual_seed(7)
    loss = elbo.differentiable_loss(None, None, x)
    torch.manual_seed(7)
    log_w = guide.log_weights(model, x, 6)
    for_model, for_guide = (bound(log_w).sum() for bound in BOUNDS[name])
    torch.testing.assert_close(loss, -for_model)
    for module, bound in ((model, for_model), (guide, for_guide)):
        ours = gradient(loss, module, retain_graph=True)
        torch.testing.assert_close(ours, -gradient(bound, module, retain_graph=True), rtol=1e-10, atol=1e-12)
    if name == "piwae":  # the two are different
        assert not torch.allclose(gradient(for_model, guide, retain_graph=True), gradient(for_guide, guide))


def test_order_of_the_bounds() -> None:
    """From the same weights ELBO <= MIWAE <= IWAE and ELBO <= CIWAE <= IWAE; and the ends are equal."""
    _, _, x, pair = _pair(1)
    terms = pair.terms(x, num_samples=8)

    def bound(name: str, **options: Any) -> Tensor:
        made: Any = construct(name, num_particles=8, **options)
        return made.surrogate(terms).detach()

    elbo, iwae = terms.log_weight.mean(0).detach(), bound("iwae")
    by_groups = [bound("miwae", options={"groups": groups}) for groups in (8, 4, 2, 1)]
    by_beta = [bound("ciwae", beta=beta) for beta in (1.0, 0.6, 0.2, 0.0)]
    for steps in (by_groups, by_beta):
        torch.testing.assert_close(steps[0], elbo)
        torch.testing.assert_close(steps[-1], iwae)
        assert all((low < high).all() for low, high in itertools.pairwise(steps))


def test_signal_to_noise_of_the_guidesgradient() -> None:
    """It grows as sqrt(M / K) (Rainforth et al. 2018, section 3): for 16 samples in 4 groups it is 4 times that of
    `iwae`, within a factor of 1.1, over 20,000 draws. The means' own noise is taken off."""
    model, count = LinearGaussian(3, 2), 20_000
    guide = Repeated(model, count, 0.5)
    x = torch.tensor([[0.3, -0.5, 0.8]], dtype=F64).expand(count, -1)
    pair = Pair.read(model, guide, x)

    def ratio(name: str, **options: Any) -> float:
        loss = bind(construct(name, num_particles=16, **options), pair, x).differentiable_loss(None, None, x)
        draws = torch.autograd.grad(loss, guide.s)[0]
        signal = draws.mean(0).square() - draws.var(0) / count
        return float((signal / draws.var(0)).sqrt().mean())

    assert 4 / 1.1 < ratio("miwae", options={"groups": 4}) / ratio("iwae") < 4 * 1.1


# A guide that chooses among components ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "groups"), [("miwae", 1), ("piwae", 2)])
def test_a_choice_in_the_guide(name: str, groups: int) -> None:
    """Of two samples, from a mixture with two far components: the mean gradient of 10,000 draws in each of seven
    parameters is that of the integral over both samples, within 4.5 standard errors (false alarms of 7e-6 each). For
    `piwae` in 2 groups, the guide climbs the ELBO and the model L_2."""
    count, grid = 10_000, torch.linspace(-9, 9, 721, dtype=F64)
    context = torch.tensor([0.4, -0.3, -4.0, 4.0, 0.2, -0.1], dtype=F64)
    shift = torch.tensor(0.3, dtype=F64)

    def mixture(context: Tensor) -> DiagonalMixture:
        logits, locs, log_scales = context.unflatten(-1, (3, 2)).unbind(-2)
        return DiagonalMixture(locs.unsqueeze(-1), log_scales.exp().unsqueeze(-1), logits)

    def log_joint(z: Tensor, shift: Tensor) -> Tensor:
        of_x = dist.Normal((1 + z).square() + shift, 4.0).log_prob(torch.tensor(9.0, dtype=F64))
        return dist.Normal(torch.zeros((), dtype=F64), 3.0).log_prob(z) + of_x

    each, shifts = nn.Parameter(context.expand(count, -1).clone()), nn.Parameter(shift.expand(count).clone())

    def model(x: Tensor) -> None:
        rows = torch.arange(len(x)) % count
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=F64), 3.0).to_event(1))
            pyro.sample("x", dist.Normal((1 + z).square() + shifts[rows].unsqueeze(-1), 4.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture(each[torch.arange(len(x)) % count]))

    x = torch.full((count, 1), 9.0, dtype=F64)
    pair = Pair.read(model, guide, x)
    assert pair.scored == ("z",)
    elbo = bind(construct(name, num_particles=2, options={"groups": groups}), pair, x)
    draws = torch.autograd.grad(-elbo.differentiable_loss(None, None, x), (each, shifts))

    context.requires_grad_()
    shift.requires_grad_()
    log_q = mixture(context).log_prob(grid[:, None])
    log_w = log_joint(grid, shift) - log_q
    step = grid[1] - grid[0]
    both = log_q[:, None] + log_q
    of_two = (both.exp() * (torch.logaddexp(log_w[:, None], log_w) - math.log(2))).sum() * step**2
    of_one = (log_q.exp() * log_w).sum() * step
    for_guide = of_two if groups == 1 else of_one
    truths = torch.autograd.grad(for_guide, context, retain_graph=True) + torch.autograd.grad(of_two, shift)
    for draw, truth in zip(draws, truths, strict=True):
        error = draw.std(0) / math.sqrt(count)
        assert ((draw.mean(0) - truth).abs() < 4.5 * error).all(), (draw.mean(0), truth, error)
        assert error.max() < 0.2 * truth.abs().max()


# Objectives of one's own with a surrogate for the guide ----------------------------------------------------------


class WakeWake:
    """`rws`: L_K for the model; for the guide, log q of weighted samples."""

    num_particles = 3
    draws: ClassVar[Draws] = "detached"

    def surrogate(self, terms: Terms) -> Tensor:
        return terms.log_weight.logsumexp(0) - math.log(len(terms.log_weight))

    def guide_surrogate(self, terms: Terms) -> Tensor:
        return (terms.log_weight.detach().softmax(0) * terms.log_guide).sum(0)


class Doubly(WakeWake):
    """`dreg`: for the guide, log weights times squared shares, through z alone."""

    draws: ClassVar[Draws] = "frozen-guide"

    def guide_surrogate(self, terms: Terms) -> Tensor:
        return (terms.log_weight.detach().softmax(0).square() * terms.log_weight).sum(0)


def test_wake_wake_of_discrete_latents() -> None:
    """The loss and both gradients are those of `rws`, from the same draws."""
    torch.manual_seed(0)
    model = BeliefNet(4, latent_dim=3).double()
    guide = Bernoulli(4, torch.full((4,), 0.5), 3, "z").double()
    x = torch.bernoulli(torch.full((5, 4), 0.5, dtype=F64))
    pair = Pair.read(model, guide, x)
    found = []
    for objective in (WakeWake(), construct("rws", num_particles=3)):
        torch.manual_seed(2)
        loss = bind(objective, pair, x).differentiable_loss(None, None, x)
        found.append([loss, *torch.autograd.grad(loss, [*model.parameters(), *guide.encoder.parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sites", [1, 2])
def test_doubly_reparametrized(sites: int) -> None:
    """The loss and both gradients are those of `dreg`, from the same draws."""
    model, guide, x, pair = _pair(sites)
    found = []
    for objective in (Doubly(), construct("dreg", num_particles=3)):
        torch.manual_seed(2)
        loss = bind(objective, pair, x).differentiable_loss(None, None, x)
        found.append([loss, *(gradient(loss, module, retain_graph=True) for module in (model, guide))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_shared_parameters_take_both() -> None:
    """A guide that is computed from the model's weights: they climb L_MK through p(x, z), and the mean over groups
    through z and q(z | x)."""
    model = LinearGaussian(3, 2)
    guide, x = ExactGuide(model, widen=1.3), torch.randn(4, 3, dtype=F64)
    pair = Pair.read(model, guide, x)
    torch.manual_seed(5)
    loss = bind(construct("piwae", num_particles=6, options={"groups": 3}), pair, x).differentiable_loss(None, None, x)
    parts = []
    for bound, in_model in ((_iwae, True), (_miwae, False)):
        torch.manual_seed(5)
        other = LinearGaussian(3, 2).requires_grad_(False)
        q = (ExactGuide(other, 1.3) if in_model else guide).posterior(x).expand([6, 4])
        z, p = q.rsample(), model if in_model else other
        log_w = p.prior().log_prob(z) + p.likelihood(z).log_prob(x) - q.log_prob(z)
        parts.append(gradient(-bound(log_w).sum(), model))
    torch.testing.assert_close(gradient(loss, model), parts[0] + parts[1], rtol=1e-10, atol=1e-12)


class WrongGuide(WakeWake):
    def guide_surrogate(self, terms: Terms) -> Any:
        return terms.log_guide


def test_mistakes_are_told() -> None:
    _, _, x, pair = _pair(1)
    with pytest.raises(BadInput, match=r"WrongGuide: guide_surrogate\(terms\) returns a tensor \[3, 4\]; it must"):
        bind(WrongGuide(), pair, x).differentiable_loss(None, None, x)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("miwae", {"num_particles": 7}, "num_particles 7: must be a multiple of the 2 groups; try 8"),
        (
            "piwae",
            {"num_particles": 6, "options": {"groups": 4}},
            "num_particles 6: must be a multiple of the 4 groups",
        ),
        ("miwae", {"options": {"groups": 0}}, "objective.groups 0: must be at least 1"),
        ("piwae", {"options": {"beta": 0.5}}, "objective.beta: PIWAE has no such option"),
        ("ciwae", {"num_particles": 1}, "num_particles 1: ciwae needs at least 2 samples; try 50"),
        ("ciwae", {"beta": 1.5}, "beta 1.5: must be from 0 to 1 for ciwae"),
        ("ciwae", {"beta": math.nan}, "beta nan"),
    ],
)
def test_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        construct(name, **options)
