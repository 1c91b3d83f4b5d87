"""Bounds from both sides by importance sampling, against log p(x) in closed form and by enumeration."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian, random_belief_net, random_mixture
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.table import rows
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.guides.prior import Prior
from ppl_gen.inference.bidirectional import BidirectionalBounds, importance_bounds, why_no_bounds
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.quadrature import quadrature_log_px
from ppl_gen.models.vae import VAE

F64 = torch.float64


class _Units(nn.Module):
    """Independent binary units of a belief net, with the log-odds that one step of mean field finds."""

    def __init__(self, model: Any):
        super().__init__()
        self.target = [model]

    def guide(self, x: Tensor) -> None:
        model = self.target[0]
        logits = model.logits + (x - model.bias.sigmoid()) @ model.weight.T / 2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


class _Component(nn.Module):
    """Components of a mixture, at half the log-odds of the posterior."""

    def __init__(self, model: Any):
        super().__init__()
        self.target = [model]

    def guide(self, x: Tensor) -> None:
        model = self.target[0]
        joint = model.likelihood(torch.arange(4)).log_prob(x.unsqueeze(1)) + model.prior().logits
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=joint / 2))


class _Layers(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x_d ~ N(z1, 1): log p(x) is that of a normal with covariance I + 2."""

    def model(self, x: Tensor | None = None, *, n: int = 1) -> None:
        with pyro.plate("images", n if x is None else len(x)):
            upper = pyro.sample("z2", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            lower = pyro.sample("z1", dist.Normal(upper, 1.0))
            pyro.sample("x", dist.Normal(lower.unsqueeze(-1), torch.ones(3, dtype=F64)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            lower = pyro.sample("z1", dist.Normal(x.mean(1) * 0.7, 0.8))
            pyro.sample("z2", dist.Normal(lower / 2, 1.0))

    def log_px(self, x: Tensor) -> Tensor:
        covariance = torch.eye(3, dtype=F64) + 2
        return dist.MultivariateNormal(torch.zeros(3, dtype=F64), covariance).log_prob(x)


class _Plates(nn.Module):
    """Three binary units in a plate of their own, whose prior and whose guide depend on a label y."""

    weight = torch.tensor([[1.0, -2.0], [2.0, 1.0], [-1.0, 1.5]], dtype=F64)

    def model(self, x: Tensor | None, y: Tensor, *, n: int = 1) -> None:
        with pyro.plate("images", n if x is None else len(x), dim=-1):
            with pyro.plate("units", 3, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(logits=2.0 * y - 2))
            loc = z.transpose(-1, -2) @ self.weight
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        logits = 2.0 * y - 2 + (self.weight @ x.T - self.weight.square().sum(1, keepdim=True) / 2) / 2
        with pyro.plate("images", len(x), dim=-1), pyro.plate("units", 3, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=logits))

    def log_px(self, x: Tensor, y: Tensor) -> Tensor:
        states = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3)
        prior = dist.Bernoulli(logits=(2.0 * y - 2).reshape(-1, 1, 1)).log_prob(states).sum(-1)
        return (prior + dist.Normal(states @ self.weight, 1.0).log_prob(x.unsqueeze(1)).sum(-1)).logsumexp(1)


def _softened(model: Any) -> Any:
    """A model whose posteriors are so near to its prior that the weights have light tails."""
    with torch.no_grad():
        model.weight.mul_(0.5)
    return model.requires_grad_(False)


def _pair(name: str) -> tuple[Any, Any, Callable[..., Tensor], int]:
    """Model, guide, log p(x) and number of pixels."""
    if name.startswith("belief net"):
        net = _softened(random_belief_net(9, int(name.split()[-1])))
        return net, _Units(net), lambda x: exact_log_px(net, x), 9
    if name == "mixture":
        mixture = _softened(random_mixture(6))
        return mixture, _Component(mixture), lambda x: exact_log_px(mixture, x), 6
    if name == "mixture, z from the prior":
        mixture = _softened(random_mixture(6))
        return mixture, Enumerated(), lambda x: exact_log_px(mixture, x), 6
    if name == "layers":
        return _Layers(), _Layers(), _Layers().log_px, 3
    if name == "vae, by quadrature":
        torch.manual_seed(4)
        vae = VAE((3, 3), latent_dim=2, hidden_dims=(8,), activation="tanh").double().requires_grad_(False)
        for weight in vae.decoder.parameters():
            weight.mul_(1.5)
        return vae, Prior("z", vae), lambda x: quadrature_log_px(vae, x).log_px, 9
    linear = LinearGaussian(noise=2.0).requires_grad_(False)
    return linear, ExactGuide(linear, 1.3) if name == "linear, wide" else Prior("z", linear), linear.log_px, 5


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize(
    "name",
    [
        "belief net 8",
        "belief net 16",
        "mixture",
        "mixture, z from the prior",
        "layers",
        "linear, wide",
        "linear, prior",
        "vae, by quadrature",
    ],
)
def test_the_truth_is_between_them(name: str, num_samples: int) -> None:
    """E[exp(lower) / p(x)] and, on images from the model, E[p(x) / exp(upper)] are 1: within 4 standard errors over
    the images. In expectation lower <= log p(x) <= upper: both by more than 4 standard errors for these guides. False
    alarms of each of the 16: 1e-4."""
    model, guide, log_px, pixels = _pair(name)
    count = 1000 if name in ("belief net 16", "vae, by quadrature") else 3000
    found = importance_bounds(model, guide, torch.zeros(count, pixels, dtype=F64), num_samples=num_samples)
    exact = log_px(found.x)
    for away in (found.lower - exact, exact - found.upper):
        ratio = away.exp()
        error = float(ratio.std()) / math.sqrt(count)
        assert abs(float(ratio.mean()) - 1) < 4 * error < 0.5
        assert float(away.mean()) < -4 * float(away.std()) / math.sqrt(count)


def test_labels_and_a_plate_of_units() -> None:
    """The images have the labels that are given; as above, of 3,000 images and 4 samples."""
    pair, y = _Plates(), (torch.arange(3000) % 3).double()
    found = importance_bounds(pair.model, pair.guide, torch.zeros(3000, 2, dtype=F64), y, num_samples=4)
    exact = pair.log_px(found.x, y)
    for away in (found.lower - exact, exact - found.upper):
        error = float(away.exp().std()) / math.sqrt(3000)
        assert abs(float(away.exp().mean()) - 1) < 4 * error < 0.1
        assert float(away.mean()) < -4 * float(away.std()) / math.sqrt(3000)
    away = found.lower - pair.log_px(found.x, 2 - y)
    assert float(away.mean()) > 4 * float(away.std()) / math.sqrt(3000)  # other labels are refuted


def test_the_posterior_leaves_nothing_between() -> None:
    linear = LinearGaussian().requires_grad_(False)
    found = importance_bounds(linear, ExactGuide(linear), torch.zeros(20, 5, dtype=F64), num_samples=3)
    torch.testing.assert_close(found.lower, linear.log_px(found.x), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.upper, linear.log_px(found.x), rtol=0, atol=1e-10)


def test_the_two_share_all_samples_but_one() -> None:
    """By hand, from the weights of the same noise; in chunks of other sizes, and with images that are handed over."""
    linear = LinearGaussian().requires_grad_(False)
    guide = ExactGuide(linear, 1.5)
    z = linear.prior().sample((7,))
    x = linear.likelihood(z).sample()
    end = linear.likelihood(z).log_prob(x) + linear.prior().log_prob(z) - guide.posterior(x).log_prob(z)
    for chunk_size in (3, 2048):
        torch.manual_seed(3)
        log_w = ppl_gen.log_weights(linear, guide, x, num_samples=10, chunk_size=chunk_size)
        torch.manual_seed(3)
        passed: list[int] = []
        found = importance_bounds(
            linear, guide, x, num_samples=10, drawn=(x, {"z": z}), chunk_size=chunk_size, progress=passed.append
        )
        assert sum(passed) == 7 and found.x is x
        torch.testing.assert_close(found.lower, log_w.logsumexp(0) - math.log(10))
        torch.testing.assert_close(found.upper, torch.cat([end[None], log_w[1:]]).logsumexp(0) - math.log(10))


def test_the_images_do_not_depend_on_the_samples() -> None:
    linear = LinearGaussian().requires_grad_(False)
    drawn = []
    for num_samples in (1, 40):
        torch.manual_seed(5)
        x = torch.zeros(700, 5, dtype=F64)
        drawn.append(importance_bounds(linear, ExactGuide(linear), x, num_samples=num_samples).x)
    assert torch.equal(*drawn) and drawn[0].std() > 0.5


def test_a_guide_that_leaves_out_a_part_has_no_upper_bound() -> None:
    """q(z | x) = 0 at the z of some images: their weight, and the bound, is infinite. They are counted as wide."""

    def model(x: Tensor | None = None, *, n: int = 1) -> None:
        with pyro.plate("images", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(1, dtype=F64)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Uniform(-torch.ones(len(x), dtype=F64), 1.0))

    found = importance_bounds(model, guide, torch.zeros(100, 1, dtype=F64), num_samples=50)
    infinite = int((found.upper == math.inf).sum())
    assert 10 < infinite < 60 and not found.upper.isnan().any() and found.lower.isfinite().all()
    assert found.wide()["num_images"] >= infinite and found.entry()["upper"]["mean"] == math.inf


def test_what_is_recorded() -> None:
    """And printed, with the exact value where it is known."""
    lower = torch.tensor([-3.0, -5.0], dtype=F64)
    bounds = BidirectionalBounds({"num_samples": 7}, torch.zeros(2, 1), lower, lower + 0.5, 0.04 * torch.ones(2))
    entry = bounds.entry()
    assert entry["num_images"] == 2 and entry["num_samples"] == 7 and entry["width"] == {"mean": 0.5, "se": 0.0}
    assert entry["lower"]["mc_se"] == pytest.approx(0.2 / math.sqrt(2)) and entry["lower"]["mean"] == -4
    assert entry["wide"]["num_images"] == 0 and "exact" not in entry
    known = BidirectionalBounds({"num_samples": 7}, bounds.x, lower, bounds.upper, lower, exact=lower + 0.1).entry()
    assert known["exact"]["mean"] == pytest.approx(-3.9)
    assert known["exact_minus_lower"]["mean"] == pytest.approx(0.1)
    assert known["upper_minus_exact"]["mean"] == pytest.approx(0.4)
    summary = {"log_px": {"mean": -4.0, "se": 0.1, "estimator": "exact"}, "num_parameters": 1, "seconds": 1}
    (said,) = (row for row in rows(summary | {"sandwich_importance": known}) if "from the model" in row.label)
    assert said.label == "7 importance samples on 2 images from the model:"
    assert said.note.startswith(
        "log p(x) between -4.00 and -3.50, 0.500 ± 0.000 apart, exactly -3.90; none is more than"
    )


class _Undrawn(LinearGaussian):
    def model(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().model(x)


class _Elsewhere(LinearGaussian):
    """Draws images at which its own density is not a number."""

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(torch.where(z[..., :1] == 0, torch.nan, z @ self.weight.T), 1.0).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        if x is not None:
            return super().model(x)
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Delta(torch.zeros(2, dtype=F64)).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.weight.T, 1.0).to_event(1))


class _OneWay(ExactGuide):
    """A guide with a density only for what it has drawn."""

    def guide(self, x: Tensor) -> None:
        flow = dist.TransformedDistribution(
            dist.Normal(torch.zeros(len(x), 2, dtype=F64), 1.0).to_event(1), [dist.transforms.Planar(2).double()]
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", flow)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (_Undrawn, ExactGuide, r"_Undrawn cannot draw images: model\(x=None, n=2\)"),
        (_Elsewhere, ExactGuide, r"log q\(z \| x\) is nan: make model\(x=None\) and model\(x\) one distribution"),
        (LinearGaussian, _OneWay, "ConditionedPlanar has no inverse, and so no density for a z that it has not drawn"),
    ],
)
def test_a_pair_without_bounds(model: Any, guide: Any, message: str) -> None:
    made = model().requires_grad_(False)
    x, approximate = torch.zeros(2, 5, dtype=F64), guide(made)
    with pytest.raises(BadInput, match=message):
        importance_bounds(made, approximate, x, num_samples=2)
    with evaluating(made, approximate):
        reason = why_no_bounds(Pair.read(made, approximate, x), x)
    assert reason is not None
