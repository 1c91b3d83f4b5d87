"""log p(x) by quadrature against closed forms, adaptive integrals of SciPy, and sums over fine grids; in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import TwoLayers, TwoModes, integral, near_guide, number, one_site
from scipy.integrate import dblquad, quad
from scipy.special import expit, log_expit
from scipy.stats import beta, gamma
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from ppl_gen.core.components import construct, find
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.annealed import annealed_log_px
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.quadrature import (
    Quadrature,
    TooMuchWork,
    check_grid,
    importance_work,
    quadrature_log_px,
    why_no_quadrature,
)
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.mixture import Mixture
from ppl_gen.models.vae import VAE

PIXELS = 6
FINE = Quadrature(tolerance=1e-6)


class Own(nn.Module):
    """A model of a given prior and likelihood."""

    def __init__(self, prior: dist.Distribution, likelihood: Callable[[Tensor], dist.Distribution]):
        super().__init__()
        self.given, self.of_z = prior, likelihood

    def prior(self) -> dist.Distribution:
        return self.given

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return self.of_z(z)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)


def standard(units: int) -> dist.Distribution:
    """N(0, I)."""
    return dist.Normal(torch.zeros(units, dtype=torch.float64), 1.0).to_event(1)


def vae(units: int, scale: float = 2.0, **options: Any) -> VAE:
    """A small VAE with weights that make its posterior another than the prior."""
    model = VAE((3, 2), latent_dim=units, **{"hidden_dims": (8,), "activation": "tanh", **options}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder."):
                parameter.mul_(scale)
    return model


def binary(count: int = 4) -> Tensor:
    return torch.randint(2, (count, PIXELS)).double()


def on_a_grid(model: Any, x: Tensor, half: float = 8.0, count: int = 240) -> Tensor:
    """log p(x) by a sum over a grid on [-half, half]^units, where z may have any real values."""
    with torch.no_grad():
        units = math.prod(model.prior().event_shape)
        side = (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * half / count) - half
        z = torch.cartesian_prod(*[side] * units).reshape(-1, units)
        images = [model.likelihood(z).log_prob(image.expand(len(z), -1)) for image in x]
        joint = torch.stack(images, 1) + model.prior().log_prob(z).unsqueeze(1)
        return joint.logsumexp(0) + units * math.log(2 * half / count)


def close(model: Any, x: Tensor, exact: Tensor, within: float = 1e-9, quadrature: Quadrature = FINE) -> None:
    """log p(x) by quadrature is exact to so many nats, and the change says no less than the error."""
    found = quadrature_log_px(model, x, quadrature=quadrature)
    assert found.log_px.dtype == torch.float64 and float(found.change.max()) <= quadrature.tolerance
    torch.testing.assert_close(found.log_px, exact.detach(), rtol=0, atol=within)


# Closed forms and adaptive integrals -------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 2, 3])
def test_closed_form_to_nine_digits(units: int) -> None:
    model = FactorAnalysis(16, latent_dim=units).double()
    with torch.no_grad():
        x = model.model(n=4)
    close(model, x, model.log_px(x))


@pytest.mark.parametrize(("activation", "within"), [("tanh", 1e-9), ("relu", 2e-6)])
def test_adaptive_integral_of_one_unit(activation: str, within: float) -> None:
    """With ReLU the integrand has kinks, where the error of the midpoint rule is of second order in the step."""
    model, x = vae(1, activation=activation), binary(3)
    (first, _, last), p = model.decoder, {name: each.detach().numpy() for name, each in model.named_parameters()}
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)

    def joint(z: float, image: Any) -> float:
        hidden = p["decoder.0.weight"][:, 0] * z + p["decoder.0.bias"]
        hidden = hidden.clip(min=0) if activation == "relu" else torch.from_numpy(hidden).tanh().numpy()
        logits = p["decoder.2.weight"] @ hidden + p["decoder.2.bias"]
        return float(math.exp((log_expit((2 * image - 1) * logits)).sum() - z * z / 2) / math.sqrt(2 * math.pi))

    kinks = (-p["decoder.0.bias"] / p["decoder.0.weight"][:, 0]).tolist() if activation == "relu" else None
    exact = [quad(joint, -9, 9, (image.numpy(),), points=kinks, epsrel=1e-12, limit=400)[0] for image in x]
    close(model, x, torch.tensor(exact, dtype=torch.float64).log(), within)


@pytest.mark.parametrize(("activation", "tolerance", "within"), [("tanh", 1e-6, 1e-9), ("relu", 1e-4, 1e-5)])
def test_adaptive_integral_of_two_units(activation: str, tolerance: float, within: float) -> None:
    """Of one image."""
    model, image = vae(2, hidden_dims=(3,), activation=activation), binary(1)
    weight, bias, last, last_bias = (each.detach().numpy() for each in model.decoder.parameters())
    signs = (2 * image - 1).numpy()[0]

    def joint(second: float, first: float) -> float:
        hidden = weight @ (first, second) + bias
        hidden = hidden.clip(min=0) if activation == "relu" else 2 * expit(2 * hidden) - 1
        likelihood = log_expit(signs * (last @ hidden + last_bias)).sum()
        return float(math.exp(likelihood - (first * first + second * second) / 2) / (2 * math.pi))

    exact, _ = dblquad(joint, -7, 7, -7, 7, epsabs=0, epsrel=1e-6 if activation == "tanh" else 1e-4)
    close(model, image, number(math.log(exact)).reshape(1), within, Quadrature(tolerance))


# Priors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tolerance", "within"), [("flow", 0.01, 2e-3), ("vamp", 1e-6, 1e-8)])
def test_trained_priors(name: str, tolerance: float, within: float) -> None:
    """The networks of a flow have kinks, as a decoder with ReLU has."""
    model, x = vae(2), binary()
    guide = Normal((3, 2), 2, "z", model).double()
    chosen = {"flow": {"num_transforms": 1, "transform_dims": (8,)}, "vamp": {"num_components": 5}}[name]
    supplied = {"latent_dim": 2, "guide": guide, "data_examples": torch.rand(5, PIXELS).double()}
    prior: Any = construct("prior", find("prior", name), supplied, chosen).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model = Own(prior.prior(), model.likelihood)
    close(model, x, on_a_grid(model, x), within, Quadrature(tolerance))


def test_mixture_of_two_far_modes() -> None:
    """The prior has most of its mass where few samples of the range are, and a narrow mode far from it."""
    modes = dist.Normal(torch.tensor([[-8.0], [5.0]], dtype=torch.float64), torch.tensor([[0.02], [1.0]]).double())
    prior = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.7, 0.3]).double()), modes.to_event(1))
    model, x = Own(prior, vae(1).likelihood), binary()
    close(model, x, on_a_grid(model, x, half=12.0, count=40_000))


BOUNDED: dict[str, tuple[dist.Distribution, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "beta": (dist.Beta(number(0.5), number(0.5)), torch.sigmoid, lambda u: (u.sigmoid() * (-u).sigmoid()).log()),
    "log-normal": (dist.LogNormal(number(0.5), number(1.5)), torch.exp, lambda u: u),
    # These state the real line as their support.
    "1 - exponential": (
        dist.TransformedDistribution(dist.Exponential(number(1.0)), [AffineTransform(number(1.0), number(-1.0))]),
        lambda u: 1 - u.exp(),
        lambda u: u,
    ),
    "stretched uniform": (
        dist.TransformedDistribution(dist.Uniform(number(0.0), 1.0), [AffineTransform(number(-1.0), number(3.0))]),
        lambda u: 3 * u.sigmoid() - 1,
        lambda u: (3 * u.sigmoid() * (-u).sigmoid()).log(),
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_priors(name: str) -> None:
    """The sum is over unbounded coordinates: the density of Beta(1/2, 1/2) is infinite at both ends."""
    prior, values, log_slope = BOUNDED[name]
    weight = torch.linspace(-3, 3, PIXELS, dtype=torch.float64)
    model = Own(
        prior.expand([1]).to_event(1), lambda z: dist.Bernoulli(logits=z.clamp(max=100) * weight - 0.5).to_event(1)
    )

    def joint(u: Tensor, image: Tensor) -> Tensor:
        z = values(u)
        likelihood = dist.Bernoulli(logits=z[:, None].clamp(max=100) * weight - 0.5).log_prob(image).sum(1)
        return likelihood + prior.log_prob(z) + log_slope(u)

    x = binary()
    close(model, x, integral(x, joint, -60, 30), 1e-5, Quadrature(1e-4))


# Likelihoods and decoders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous-bernoulli", "normal"])
def test_likelihoods(likelihood: str) -> None:
    model = vae(2, likelihood=likelihood)
    x = binary() if likelihood == "bernoulli" else torch.rand(4, PIXELS).double()
    close(model, x, on_a_grid(model, x))


def by_hand(z: Tensor) -> dist.Distribution:
    """Of a user: stock Pyro, and z [points, units] alone."""
    weight = torch.linspace(-2, 3, 2 * PIXELS, dtype=torch.float64).reshape(2, PIXELS)
    return dist.Bernoulli(logits=z @ weight).to_event(1)


def flattened(z: Tensor) -> dist.Distribution:
    """It takes no further dimension."""
    return by_hand(z.view(len(z), -1))


def fixed(z: Tensor) -> dist.Distribution:
    """It fails for a further dimension."""
    points, units = z.shape
    return by_hand(z.reshape(points, units))


@pytest.mark.parametrize("likelihood", [by_hand, flattened, fixed])
def test_likelihoods_of_a_user(likelihood: Callable[[Tensor], dist.Distribution]) -> None:
    model, x = Own(standard(2), likelihood), binary()
    close(model, x, on_a_grid(model, x))


def test_convolutional_decoder() -> None:
    model, x = vae(2, network="conv", channels=(3,)), binary()
    close(model, x, on_a_grid(model, x))


def test_float32() -> None:
    """The sum is as exact as the densities, and is kept in float64."""
    model, x = vae(2), binary(8)
    exact = on_a_grid(model, x)
    close(model.float(), x.float(), exact, 1e-5, Quadrature(1e-3))


# Peaks that a coarse grid does not see -----------------------------------------------------------------------------


@pytest.mark.parametrize(("units", "ratio"), [(2, 100.0), (2, 1000.0), (3, 20.0)])
def test_narrow_and_tilted_posteriors(units: int, ratio: float) -> None:
    """Ridges along a diagonal, as long as the prior and narrower by this ratio."""
    across, _ = torch.linalg.qr(torch.randn(units, units, dtype=torch.float64))
    weight = across[:, :1] * 0.5  # along which z is known to 1 / ratio
    noise = 0.5 / ratio
    model = Own(standard(units), lambda z: dist.Normal(z @ weight, noise).to_event(1))
    x = torch.tensor([[-0.9], [0.0], [0.33], [0.8]], dtype=torch.float64)
    exact = dist.Normal(number(0.0), math.sqrt(0.25 + noise**2)).log_prob(x[:, 0])
    close(model, x, exact, 3e-3, Quadrature())


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_narrow_in_every_unit(scale: float) -> None:
    model = Own(standard(2), lambda z: dist.Normal(z, scale).to_event(1))
    x = torch.randn(8, 2, dtype=torch.float64)
    exact = dist.Normal(number(0.0), math.sqrt(1 + scale**2)).log_prob(x).sum(1)
    close(model, x, exact, 1e-4, Quadrature())


def test_modes_of_a_likelihood_of_squares() -> None:
    """Every image has two modes, or with two units four, of the same mass."""
    x = torch.tensor([[0.04], [1.0], [2.56], [6.25]], dtype=torch.float64)
    alone = Own(standard(1), lambda z: dist.Normal(z.square(), 0.02).to_event(1))

    def joint(z: Tensor, image: Tensor) -> Tensor:
        return dist.Normal(z.square(), 0.02).log_prob(image) + dist.Normal(0.0, 1.0).log_prob(z)

    exact = integral(x, joint, -9, 9)
    close(alone, x, exact, 1e-6)
    both = Own(standard(2), lambda z: dist.Normal(z.square(), 0.02).to_event(1))
    close(both, x.expand(-1, 2), 2 * exact, 1e-6)


def waves(frequency: float, scale: float, prior: Any = None, pixels: int = 1) -> Own:
    """Pixels whose mean oscillates with z: its posterior has a narrow peak in every half period."""
    prior = dist.Normal(torch.zeros(1), 1.0) if prior is None else prior

    def likelihood(z: Tensor) -> dist.Distribution:
        mean = 0.5 + 0.4 * (frequency * z).sin()
        return dist.Normal(mean.expand(*z.shape[:-1], pixels), scale).to_event(1)

    return Own(prior.to_event(1), likelihood)


@pytest.mark.parametrize(
    ("frequency", "scale"),
    [(5, 0.02), (10, 0.02), (19, 0.02), (20, 0.02), (22, 0.02), (25, 0.005), (19, 0.1), (64, 0.1)],
)
def test_a_grid_in_step_with_an_oscillation_does_not_settle(frequency: float, scale: float) -> None:
    """Two steps of such a grid may agree to a hundredth, and both be nats off."""
    z = torch.linspace(-8, 8, 500_001, dtype=torch.float64)[:, None]
    x = torch.tensor([[0.5], [0.3], [0.62], [0.85]])
    model = waves(frequency, scale)
    log_joint = torch.stack([model.likelihood(z).log_prob(each.double()) for each in x]) + dist.Normal(
        0.0, 1.0
    ).log_prob(z[:, 0])
    truth = log_joint.logsumexp(1) + math.log(16 / 500_000)
    assert (quadrature_log_px(model, x).log_px - truth).abs().max() < 0.01


@pytest.mark.parametrize(
    ("frequency", "scale", "pixels"), [(50, 0.05, 4), (100, 0.05, 4), (200, 0.05, 4), (20, 0.02, 1)]
)
def test_an_image_alone_has_the_log_px_that_it_has_among_others(frequency: float, scale: float, pixels: int) -> None:
    """Other images refine the grid, too, where one alone shows no peak at the points of a coarse grid."""
    model = waves(frequency, scale, pixels=pixels)
    mean = 0.5 + 0.4 * (frequency * torch.randn(30, 1, dtype=torch.float64)).sin()
    x = mean + scale * torch.randn(30, pixels, dtype=torch.float64)
    points = torch.linspace(-9, 9, 400_001, dtype=torch.float64)[:, None]
    log_joint = model.likelihood(points[:, None]).log_prob(x) + model.prior().log_prob(points)[:, None]
    exact = log_joint.logsumexp(0) + float((points[1] - points[0]).log())
    close(model, x, exact, within=1e-3, quadrature=Quadrature(tolerance=1e-3))
    for image in range(5):
        alone = slice(image, image + 1)
        close(model, x[alone], exact[alone], within=5e-3, quadrature=Quadrature(tolerance=1e-3))


def test_a_grid_that_misses_a_peak_is_found_out() -> None:
    """By importance sampling, and by samples of the prior, which tell it from a guide of another density."""
    model = waves(50, 0.05, pixels=4)
    x = model.likelihood(torch.tensor([[0.3], [0.7]], dtype=torch.float64)).sample()
    found = quadrature_log_px(model, x)
    low = replace(found, log_px=found.log_px - torch.tensor([0.0, 0.2]))
    sampled = proposal_log_px(model, [], x, num_samples=100_000, prior_share=1.0)
    check_grid(model, x, found, sampled)
    with pytest.raises(BadInput, match=r"the grid misses a part of p.x, z.: log p.x. of image 1 is"):
        check_grid(model, x, low, sampled)
    too_high = replace(sampled, log_px=sampled.log_px + 0.2)  # as of a guide with a wrong density
    check_grid(model, x, found, too_high)


def test_tails_that_no_grid_covers_are_refused() -> None:
    x, zero = torch.zeros(2, 1), torch.zeros(1)
    with pytest.raises(BadInput, match="tails too heavy for a grid"):
        quadrature_log_px(waves(1.0, 0.1, dist.Cauchy(zero, 1.0)), x)
    assert quadrature_log_px(waves(1.0, 0.1, dist.StudentT(3.0, zero, 1.0)), x).log_px.isfinite().all()


ENDS = {
    "angle": dist.VonMises(number(0.3), 2.0),
    "half of it below 1e-6": dist.Gamma(number(0.05), 1.0),
    "infinite at both ends": dist.Beta(number(0.6), number(0.5)),
}


@pytest.mark.parametrize("name", ENDS)
def test_mass_near_the_ends_of_a_support(name: str) -> None:
    """Against SciPy's adaptive integral over the prior's own distribution function, or over the angle."""
    prior, one = ENDS[name].expand([1]).to_event(1), ENDS[name]
    model = Own(prior, lambda z: dist.Bernoulli(logits=torch.cat([z, -2 * z, 3 * z.sin()], -1)).to_event(1))
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    found = quadrature_log_px(model, x, quadrature=FINE).log_px
    scipy = {"half of it below 1e-6": gamma(0.05), "infinite at both ends": beta(0.6, 0.5)}.get(name)
    for row, image in zip(found, x, strict=True):

        def px(z: float, image: Tensor = image) -> float:
            return float(model.likelihood(torch.tensor([z], dtype=torch.float64)).log_prob(image).exp())

        if scipy is None:
            truth, _ = quad(lambda z, px=px: px(z) * float(one.log_prob(number(z)).exp()), -math.pi, math.pi)
        else:
            truth, _ = quad(lambda share, px=px: px(scipy.ppf(share)), 0, 1, epsabs=1e-10, limit=500)
        assert float(row) == pytest.approx(math.log(truth), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_prior_too_near_to_an_end_for_its_numbers_is_refused(dtype: torch.dtype) -> None:
    """A part of Beta(0.05, 0.05) is nearer to 1 than any number of the dtype."""
    prior = dist.Beta(torch.full((1,), 0.05, dtype=dtype), torch.full((1,), 0.05, dtype=dtype)).to_event(1)
    model = Own(prior, lambda z: dist.Bernoulli(logits=z).to_event(1))
    with pytest.raises(BadInput, match=r"integrates to 0\.\d+ on a grid"):
        quadrature_log_px(model, torch.ones(2, 1, dtype=dtype))


def test_a_prior_in_float32_of_images_in_float64() -> None:
    x = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    model = Own(dist.Normal(torch.zeros(1), 1.0).to_event(1), lambda z: dist.Normal(z, 1.0).to_event(1))
    close(model, x, dist.Normal(number(0.0), math.sqrt(2)).log_prob(x[:, 0]), 1e-5)


def test_a_mode_that_an_encoder_misses() -> None:
    model, x = TwoModes(2), torch.tensor([[1.0, 0.3], [4.0, -1.0], [9.0, 0.0]], dtype=torch.float64)
    close(model, x, model.log_px_by_quadrature(x), 1e-7)


def test_posterior_outside_of_the_prior_samples() -> None:
    """The likelihood moves the posterior to 30 standard deviations of the prior."""
    model = Own(standard(1), lambda z: dist.Normal(z, 0.1).to_event(1))
    x = torch.tensor([[-30.0], [0.0], [12.0]], dtype=torch.float64)
    close(model, x, dist.Normal(number(0.0), math.sqrt(1.01)).log_prob(x[:, 0]), 1e-7)


def test_impossible_images() -> None:
    """x ~ U(0, z) and z ~ Beta(2, 1): p(x) = 2 (1 - x) on [0, 1], and 0 above. The integrand has a step."""
    prior = dist.Beta(number(2.0), number(1.0)).expand([1]).to_event(1)
    model = Own(prior, lambda z: dist.Uniform(0.0, z, validate_args=False).to_event(1))
    x = torch.tensor([[0.5], [1.5], [0.1], [2.0]], dtype=torch.float64)
    found = quadrature_log_px(model, x, quadrature=Quadrature(1e-3))
    assert found.log_px[[1, 3]].tolist() == [-math.inf] * 2 and found.change[[1, 3]].tolist() == [0.0] * 2
    exact = (2 * (1 - x[[0, 2], 0])).log()
    torch.testing.assert_close(found.log_px[[0, 2]], exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("units", [1, 2])
def test_edges(units: int) -> None:
    """x ~ U(z - 1/2, z + 1/2): p(x, z) is a piece of the prior with sharp edges. The change is no bound there."""
    model = Own(standard(units), lambda z: dist.Uniform(z - 0.5, z + 0.5, validate_args=False).to_event(1))
    x = torch.tensor([[0.3], [1.0], [-2.2]], dtype=torch.float64).expand(-1, units)
    exact = (torch.special.ndtr(x + 0.5) - torch.special.ndtr(x - 0.5)).log().sum(1)
    close(model, x, exact, 0.03, Quadrature())


def test_no_possible_image() -> None:
    prior = dist.Beta(number(2.0), number(1.0)).expand([1]).to_event(1)
    model = Own(prior, lambda z: dist.Uniform(0.0, z, validate_args=False).to_event(1))
    found = quadrature_log_px(model, torch.tensor([[1.5], [2.0]], dtype=torch.float64))
    assert found.log_px.tolist() == [-math.inf] * 2


# What it returns, and what it refuses ------------------------------------------------------------------------------


def test_what_it_returns() -> None:
    """Images do not depend on each other, nor on the generator, which is left as it was."""
    model, x, done = vae(2), binary(12), list[int]()
    state = torch.get_rng_state()
    found = quadrature_log_px(model, x, progress=done.append)
    assert torch.equal(torch.get_rng_state(), state) and sum(done) == len(x)
    torch.manual_seed(5)
    alone = torch.cat([quadrature_log_px(model, each).log_px for each in x.split(5)])
    torch.testing.assert_close(alone, found.log_px, rtol=0, atol=1e-9)
    assert not found.at_least and found.mc_se == found.bias == 0 and not found.sampled
    assert found.settings_entry()["tolerance"] == 0.01 and found.points_per_image == found.evaluations // 12 > 100
    assert set(found.variables("quadrature")) == {"log_px_quadrature", "change_quadrature"}


class Flat(dist.Normal):  # type: ignore[misc]
    """An improper prior, that samples as a normal distribution does."""

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)


class Open(dist.Exponential):  # type: ignore[misc]
    """It says that its values may be any numbers."""

    support = dist.constraints.real


FOUR = Own(standard(4), by_hand)
DISCRETE = Mixture(PIXELS, num_components=3).double()
REFUSED: dict[str, tuple[Any, str]] = {
    "four units": (FOUR, "Own: quadrature needs a latent of 1 to 3 units and one prior.* for all, not 4 units"),
    "discrete": (DISCRETE, "needs a continuous latent; enumerate a finite one"),
    "a batch of priors": (Own(dist.Normal(torch.zeros(5).double(), 1.0), by_hand), r"not a batch \[5\] of priors"),
    "several sites": (TwoLayers(), r"needs a model of one latent site, with prior\(\) and likelihood\(z\)"),
    "a constant": (Own(dist.Delta(torch.zeros(2).double()).to_event(1), by_hand), "are equal: it has no density"),
    "no end": (
        Own(Flat(torch.zeros(2).double(), 1.0).to_event(1), lambda z: by_hand(0.0 * z)),
        r"p\(x, z\) has no end within .* times the range of the prior",
    ),
    "a mixture of intervals": (
        Own(
            dist.MixtureSameFamily(
                dist.Categorical(torch.ones(2).double()),
                dist.Uniform(number([[0.0], [2.0]]), number([[1.0], [4.0]])).to_event(1),
            ),
            by_hand,
        ),
        "the components of its mixture have supports of their own",
    ),
    "outside of its support": (
        Own(Open(number(1.0)), lambda z: by_hand(z.unsqueeze(-1).expand(*z.shape, 2))),
        "does not fall beyond its samples",
    ),
    "NaN": (Own(standard(2), lambda z: by_hand(torch.where(z > 1, math.nan, z))), "NaN|fails"),
    "no event": (Own(standard(2), lambda z: dist.Bernoulli(logits=z @ torch.ones(2, PIXELS).double())), "its event an"),
    "it fails": (Own(standard(2), lambda z: by_hand(z @ torch.ones(3, 2).double())), r"likelihood\(z\) fails"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    model, message = REFUSED[name]
    with pyro.validation_enabled(False), pytest.raises(BadInput, match=message):
        quadrature_log_px(model, binary())


def test_settings_that_are_refused() -> None:
    for tolerance in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(BadInput, match=r"quadrature\.tolerance"):
            Quadrature(tolerance)


def test_why_a_pair_has_none() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    layers: Any = TwoLayers()
    reason = why_no_quadrature(Pair.read(layers, layers, x), layers)
    assert reason is not None and "one latent and one observed site" in reason
    model = vae(2)
    pair = Pair.read(model, Normal((3, 2), 2, "z", model).double(), binary())
    assert why_no_quadrature(pair, model) is None
    labelled = why_no_quadrature(pair, model, torch.zeros(4))
    assert labelled is not None and "without labels" in labelled
    function = one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Normal(z, 1.0))
    nameless = why_no_quadrature(Pair.read(function, near_guide, x[:, 0]), function)
    assert nameless is not None and "prior() and likelihood(z)" in nameless


def test_too_much_work() -> None:
    """It ends as soon as the work exceeds what is allowed, or is expected to."""
    model, x = vae(2), binary(50)
    spent = importance_work(model, x, 10)
    with pytest.raises(TooMuchWork, match=r"quadrature takes about .* operations, but .* are allowed") as raised:
        quadrature_log_px(model, x, most_work=spent)
    assert spent < raised.value.work < 100 * spent
    quadrature_log_px(model, x, most_work=1000 * spent)


def test_memory_is_estimated_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_gen.inference.refinement.free_memory", lambda device: 10**6)
    model = FactorAnalysis(PIXELS, latent_dim=1)
    with pytest.raises(BadInput, match=r"quadrature of 20 images takes up to 0\.1 GB, but 0\.0 GB are free"):
        quadrature_log_px(model, model.model(n=20).detach())


def test_a_likelihood_that_draws_noise_is_refused() -> None:
    """By quadrature and by annealing: the same z has another density at each call. So is dropout in training alone
    none."""
    decoder = nn.Sequential(nn.Linear(2, PIXELS), nn.Dropout(0.2)).double()
    zero = torch.zeros(2, dtype=torch.float64)
    prior = dist.Normal(zero, 1.0).to_event(1)
    x = torch.zeros(3, PIXELS, dtype=torch.float64)
    model = Own(prior, lambda z: dist.Normal(nn.functional.dropout(decoder[0](z), 0.2), 1.0).to_event(1))
    for estimate in (quadrature_log_px, annealed_log_px):
        with pytest.raises(BadInput, match=r"likelihood\(z\) draws random numbers, so that the same z has another"):
            estimate(model, x)
    model = Own(prior, lambda z: dist.Normal(decoder(z), 1.0).to_event(1))
    model.decoder = decoder
    assert quadrature_log_px(model, x).log_px.isfinite().all() and model.training
