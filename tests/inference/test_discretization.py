"""Sums over points of z against closed forms, in float64."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import LinearGaussian
from pyro import poutine
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.grid import Grid
from ppl_gen.inference.discretization import PointMasses, TraceNodes, at_nodes, discretized, few_nodes, grid_terms
from ppl_gen.inference.importance import elbo_terms, log_marginal_likelihood
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair

F64 = torch.float64


class GaussHermite(nn.Module):
    """Points of one's own: a product rule for N(0, I) with fixed points."""

    def __init__(self, model: Any, count: int, units: int):
        super().__init__()
        self.model, self.count, self.units = model, count, units

    def guide(self, x: Tensor) -> None:
        pass

    def nodes(self, finer: int = 1) -> tuple[Tensor, Tensor]:
        import numpy as np

        nodes, weights = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(self.count * finer))
        z = torch.cartesian_prod(*[nodes] * self.units).reshape(-1, self.units)
        mass = torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * self.units).reshape(len(z), -1).prod(-1)
        return z, mass.log()


def _pair(model: Any, guide: nn.Module, x: Tensor, *labels: Tensor) -> Pair:
    with evaluating(model, guide):
        return Pair.read(model, guide, x, *labels)


def _images(model: LinearGaussian, count: int) -> Tensor:
    with torch.no_grad():
        return model.model(n=count)


@pytest.mark.parametrize("units, points", [(1, 60), (2, 60), (3, 30)])
def test_the_loss_and_its_gradient_are_those_of_the_closed_form(units: int, points: int) -> None:
    """A grid so fine that its error, about 2 exp(-2 (pi sigma / step)^2), does not count."""
    model = LinearGaussian(latent_dim=units, noise=1.0)
    x = _images(model, 7)
    pair = _pair(model, Grid(units, "z", model, points=points, width=7.0), x)
    assert pair.enumerated and pair.discretized and pair.num_states is None
    loss = bind(construct("elbo"), pair, x).differentiable_loss(pair.model, pair.guide, x)
    truth = -model.log_px(x).sum()
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)
    ours, exact = (torch.autograd.grad(each, model.weight)[0] for each in (loss, truth))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("units", [1, 2, 3])
def test_the_sum_over_a_shifted_grid_is_unbiased(units: int) -> None:
    """On a grid so coarse that its logarithm is low, the mean over 1,000 shifts of the sum is p(x), within 5
    standard errors: false alarms of 6e-7 for each of 3 images. The mean logarithm is lower by more than that."""
    model = LinearGaussian(latent_dim=units, noise=0.5)
    guide, x = Grid(units, "z", model, points=8, width=6.0).train(), _images(model, 3)
    exact, ratios = model.log_px(x).detach(), []
    with torch.no_grad():
        for _ in range(1000):
            z, log_mass = guide.nodes()
            joint = model.likelihood(z.unsqueeze(1)).log_prob(x) + log_mass.unsqueeze(-1)
            ratios.append((joint.logsumexp(0) - exact).exp())
    found = torch.stack(ratios)
    (mean, error), (low, error_of_low) = ((each.mean(0), each.std(0) / 1000**0.5) for each in (found, found.log()))
    assert ((mean - 1).abs() < 5 * error + 1e-7).all() and (low < -5 * error_of_low).all()


def test_training_asks_for_new_points_at_every_step_and_evaluation_for_the_middles() -> None:
    model = LinearGaussian()
    guide, x = Grid(2, "z", model, points=6), _images(model, 4)
    pair = _pair(model, guide, x)
    objective = bind(construct("elbo"), pair, x)
    torch.manual_seed(3)
    losses = [float(objective.differentiable_loss(pair.model, pair.guide, x).detach()) for _ in range(2)]
    torch.manual_seed(3)
    again = []
    for _ in losses:
        z, log_mass = guide.nodes()
        joint = model.likelihood(z.unsqueeze(1)).log_prob(x) + log_mass.unsqueeze(1)
        again.append(-float(joint.logsumexp(0).sum().detach()))
    assert losses == pytest.approx(again, rel=1e-12) and abs(losses[0] - losses[1]) > 1e-3
    middles = guide.eval().nodes()[0]
    assert torch.equal(middles, guide.nodes()[0]) and middles[0].tolist() == pytest.approx([-5 + 5 / 6] * 2)


def test_points_of_ones_own() -> None:
    """Gauss-Hermite quadrature of 40 points for each unit has 6 digits here."""
    model = LinearGaussian(noise=1.5)
    x = _images(model, 5)
    guide = GaussHermite(model, 40, 2)
    pair = _pair(model, guide, x)
    loss = bind(construct("elbo"), pair, x).differentiable_loss(pair.model, pair.guide, x)
    torch.testing.assert_close(loss, -model.log_px(x).sum(), rtol=1e-6, atol=0)


def test_the_error_of_a_grid_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over the points and over those of half the step, written out; also where points come in several parts."""
    from ppl_gen.inference import discretization

    model = LinearGaussian()
    guide, x = Grid(2, "z", model, points=8).eval(), _images(model, 700)
    pair = _pair(model, guide, x)
    sums = []
    with torch.no_grad():
        for finer in (1, 2):
            z, log_mass = guide.nodes(finer)
            sums.append((model.likelihood(z.unsqueeze(1)).log_prob(x) + log_mass.unsqueeze(1)).logsumexp(0))
    truth = {"elbo": float(sums[0].mean()), "grid_bias": float((sums[0] - sums[1])[:500].mean())}
    for points in (2**13, 100):
        monkeypatch.setattr(discretization, "_POINTS", points)
        with evaluating(model, guide):
            # Masses in one part that add up to 1 within 1e-3 are normalized.
            assert grid_terms(pair, x) == pytest.approx(truth, abs=1e-3)
    assert truth["grid_bias"] < -0.02
    model.log_px = None  # type: ignore[assignment]
    assert elbo_terms(model, guide, pair, x, seed=0) == pytest.approx(truth, abs=1e-3)


def test_evaluation_does_not_use_the_points() -> None:
    """The pair's model has its continuous z: importance samples come from the prior, and agree with log p(x)."""
    model = LinearGaussian()
    guide, x = Grid(2, "z", model, points=2), _images(model, 20)
    pair = _pair(model, guide, x)
    z = poutine.trace(pair.model).get_trace(x).nodes["z"]["value"]
    assert len(z.unique()) == z.numel()  # two points would repeat
    found = log_marginal_likelihood(model, guide, x, num_samples=5000)
    # Within 5 errors on each image: false alarms below 1e-3 in all, where weights are heavy; the seed is fixed.
    assert ((found.log_px - model.log_px(x)).abs() < 5 * found.log_px_mc_var.sqrt() + 0.05).all()


def test_masses_at_points() -> None:
    values, log_mass = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), torch.tensor([0.2, 0.3, 0.5]).log()
    masses = PointMasses(values, log_mass).expand([4])
    assert masses.batch_shape == (4,) and masses.event_shape == (2,)
    assert masses.enumerate_support(expand=False).shape == (3, 1, 2) and masses.enumerate_support().shape == (3, 4, 2)
    torch.testing.assert_close(masses.log_prob(masses.enumerate_support(expand=False)), log_mass[:, None].expand(3, 4))
    torch.testing.assert_close(masses.log_prob(values[1].expand(4, 2)), log_mass[1].expand(4))
    assert (masses.log_prob(torch.ones(4, 2)) == -math.inf).all()
    drawn = masses.sample((10_000,))
    assert drawn.shape == (10_000, 4, 2)
    share = (drawn[..., 0] == 4).double().mean()
    assert abs(float(share) - 0.5) < 5 * 0.5 / 40_000**0.5  # a false alarm of 6e-7
    torch.testing.assert_close(masses.log_prob(drawn)[drawn[..., 0] == 4].unique(), log_mass[2:])
    scalar = PointMasses(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]).log(), (3,))
    assert scalar.sample().shape == (3,) and scalar.log_prob(torch.tensor(2.0)).exp().tolist() == [0.5] * 3


class Labelled(LinearGaussian):
    """p(z | y) depends on the label."""

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:  # type: ignore[override]
        with pyro.plate("data", n if x is None else len(x)):
            shift = torch.zeros(1, dtype=F64) if y is None else y.unsqueeze(-1)
            z = pyro.sample("z", dist.Normal(shift.expand(-1, 2), 1.0).to_event(1))
            return pyro.sample("x", self.likelihood(z), obs=x)


class Wrong(GaussHermite):
    def __init__(self, model: Any, nodes: tuple[Tensor, Tensor]):
        super().__init__(model, 2, 2)
        self.wrong = nodes

    def nodes(self, finer: int = 1) -> tuple[Tensor, Tensor]:
        return self.wrong


def test_what_cannot_be_summed() -> None:
    model = LinearGaussian()
    x = _images(model, 6)
    for nodes, message in (
        ((torch.zeros(5, 3, dtype=F64), torch.zeros(5, dtype=F64)), "must return points"),
        ((torch.full((5, 2), math.nan, dtype=F64), torch.zeros(5, dtype=F64)), "not finite"),
    ):
        pair = _pair(model, Wrong(model, nodes), x)
        with pytest.raises(BadInput, match=message):
            TraceNodes(pair, x)
    labelled, y = Labelled(), torch.arange(6, dtype=F64)
    pair = _pair(labelled, Grid(2, "z", labelled), x, y)
    with pytest.raises(BadInput, match="differs between images"):
        TraceNodes(pair, x, y)


def test_few_points_stand_for_many() -> None:
    model = LinearGaussian()
    pair = _pair(model, Grid(2, "z", model, points=100), _images(model, 3))
    (z, log_mass), count = few_nodes(pair)
    assert count == 10_000 and len(z) == len(log_mass) == 4096 and discretized(pair, (z, log_mass)).num_states == 4096
    trace = poutine.trace(at_nodes(pair.model, "z", (z, log_mass))).get_trace(_images(model, 3))
    assert isinstance(trace.nodes["z"]["fn"], PointMasses)
