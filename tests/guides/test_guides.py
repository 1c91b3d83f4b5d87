"""Every family of guides of a continuous latent, put to the same tests."""

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import zuko
from torch import Tensor, nn

from ppl_gen import flows
from ppl_gen.components import construct, find, known, options
from ppl_gen.errors import BadInput
from ppl_gen.guides.amortized import Amortized
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.models.vae import VAE

FLOW = {"num_transforms": 2, "transform_dims": (16,), "num_features": 8}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "normal": ("normal", {}),
    "full": ("multivariate-normal", {}),
    "low-rank": ("multivariate-normal", {"rank": 1}),
    "student-t": ("student-t", {"df": 4.0}),
    "mixture": ("mixture", {"num_components": 3}),
    "iaf": ("flow", {"transform": "iaf", **FLOW}),
    "spline": ("flow", {"transform": "spline", **FLOW}),
    "spline-coupling": ("flow", {"transform": "spline-coupling", **FLOW}),
    "planar": ("flow", {"transform": "planar", "num_transforms": 3}),
    "semi-amortized": ("semi-amortized", {}),
}
PIXELS = 12
CASES = [(family, dim) for family in FAMILIES for dim in (1, 2)]


def make(family: str, latent_dim: int, seed: int = 0) -> tuple[VAE, Any]:
    """A small VAE and a guide with distinct parameters, in float64."""
    torch.manual_seed(seed)
    name, chosen = FAMILIES[family]
    model = VAE((PIXELS,), latent_dim=latent_dim, hidden_dims=(8,), activation="tanh").double()
    supplied = {"data_shape": (PIXELS,), "latent_dim": latent_dim, "latent_name": "z", "model": model}
    guide = construct("guide", find("guide", name), supplied, chosen).double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(1.5)
    return model, guide


def images(count: int) -> Tensor:
    return torch.randint(2, (count, PIXELS)).double()


QUADRATURE = 1e-3  # error of the grid, from the kinks in a spline's density


def grid(dim: int) -> tuple[Tensor, Tensor]:
    """Nodes [n, dim] and weights [n] of the trapezoidal rule in arsinh z, which reaches |z| = 27."""
    t = torch.linspace(-4, 4, 501, dtype=torch.float64)
    z, w = t.sinh(), t.cosh() * (t[1] - t[0])
    return torch.cartesian_prod(*[z] * dim).reshape(-1, dim), torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(1)


def bounded(z: Tensor) -> Tensor:
    return (z * torch.arange(1, z.shape[-1] + 1)).sum(-1).sin() + (-z.square().sum(-1)).exp()


def test_all_families_are_here() -> None:
    others = {"bernoulli", "enumerated", "exact-gaussian", "prior", "hierarchical"}
    assert set(known("guide")) == {name for name, _ in FAMILIES.values()} | others


@pytest.mark.parametrize("family, dim", CASES)
def test_density_is_that_of_the_samples(family: str, dim: int) -> None:
    """The density integrates to 1, and the samples' mean of a bounded function is its integral, within 4.5 standard
    errors: false alarms of 7e-6 each."""
    _, guide = make(family, dim)
    z, weights = grid(dim)
    with torch.no_grad():
        q = guide.posterior(guide.encode(images(1)))
        density = q.log_prob(z).exp() * weights
        assert float(density.sum()) == pytest.approx(1, abs=QUADRATURE)
        values = bounded(q.expand([20_000, 1]).sample().squeeze(1))
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean() - (density * bounded(z)).sum())) < 4.5 * error + QUADRATURE


@pytest.mark.parametrize("family, dim", CASES)
def test_gradient_is_that_of_the_integral(family: str, dim: int) -> None:
    """d/dc E[f(z)] along a random direction: reparametrized samples against central differences of the integral, within
    4.5 standard errors."""
    _, guide = make(family, dim)
    z, weights = grid(dim)
    context = guide.encode(images(1)).detach()
    direction = torch.randn_like(context)

    def integral(c: Tensor) -> float:
        return float((guide.posterior(c).log_prob(z).exp() * weights * bounded(z)).sum())

    with torch.no_grad():
        truth = (integral(context + 1e-3 * direction) - integral(context - 1e-3 * direction)) / 2e-3
    copies = context.expand(20_000, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bounded(guide.posterior(copies).rsample()).sum(), copies)
    along = (gradient * direction).sum(1)
    assert abs(float(along.mean()) - truth) < 4.5 * float(along.std()) / len(along) ** 0.5 + QUADRATURE


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes(family: str) -> None:
    _, guide = make(family, 3)
    x = images(5)
    context = guide.encode(x)
    q = guide.posterior(context)
    assert context.shape[0] == 5 and q.batch_shape == (5,) and q.event_shape == (3,)
    z = q.rsample()
    assert z.shape == (5, 3) and q.log_prob(z).shape == (5,)
    wide = q.expand([4, 5])
    z = wide.rsample()
    assert z.shape == (4, 5, 3) and wide.log_prob(z).shape == (4, 5)
    # The density of the last sample is remembered; that of a copy is not.
    torch.testing.assert_close(q.log_prob(z.clone()), wide.log_prob(z), rtol=1e-7, atol=1e-7)
    several = guide.posterior(context.expand(4, 5, -1))
    torch.testing.assert_close(several.log_prob(z.clone()), q.log_prob(z.clone()))


@pytest.mark.parametrize("family", FAMILIES)
def test_pair_is_read_and_vectorized(family: str) -> None:
    model, guide = make(family, 3)
    with evaluating(model, guide):
        pair = Pair.read(model, guide, images(6))
    assert pair.vectorized and pair.reparametrized


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    _, first = make(family, 3, seed=0)
    _, second = make(family, 3, seed=1)
    x, z = images(4), torch.randn(4, 3, dtype=torch.float64)

    def log_q(guide: Any) -> Tensor:
        return guide.posterior(guide.encode(x)).log_prob(z)

    assert not torch.allclose(log_q(first), log_q(second))
    torch.save(first.state_dict(), tmp_path / "weights")
    second.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    assert torch.equal(log_q(first), log_q(second))


@pytest.mark.parametrize("family", FAMILIES)
def test_printed(family: str) -> None:
    _, guide = make(family, 3)
    assert repr(guide).startswith(type(guide).__name__) and "encoder" in repr(guide)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_unit_depends_on_the_image(family: str) -> None:
    _, guide = make(family, 3)
    x = images(1).requires_grad_()
    torch.manual_seed(3)
    z = guide.posterior(guide.encode(x)).rsample()
    for unit in range(3):
        (gradient,) = torch.autograd.grad(z[0, unit], x, retain_graph=True)
        assert bool((gradient != 0).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_gradient(family: str) -> None:
    model, guide = make(family, 3)
    q = guide.posterior(guide.encode(images(4)))
    z = q.rsample()
    (q.log_prob(z).sum() + model.likelihood(z).log_prob(images(4)).sum()).backward()
    assert [name for name, parameter in guide.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_score_of_a_sample(family: str) -> None:
    """The density of a sample that was drawn without gradients has all the gradients of that of its copy."""
    _, guide = make(family, 3)
    q = guide.posterior(guide.encode(images(4)))
    z = q.expand([5, 4]).sample()
    assert not z.requires_grad
    parameters = list(guide.parameters())
    for ours, true in zip(
        torch.autograd.grad(q.log_prob(z).sum(), parameters, retain_graph=True),
        torch.autograd.grad(q.log_prob(z.clone()).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, true)


@pytest.mark.parametrize("family", FAMILIES)
def test_density_under_detached_parameters(family: str) -> None:
    """For `stl` and `dreg` the guide is replayed: the same density, and no gradient but through z."""
    model, guide = make(family, 3)
    x = images(4)
    pair = Pair.read(model, guide, x)
    torch.manual_seed(1)
    live = pair.terms(x, num_samples=2)
    torch.manual_seed(1)
    frozen = pair.terms(x, num_samples=2, frozen_guide=True)
    torch.testing.assert_close(frozen.log_guide, live.log_guide, rtol=1e-7, atol=1e-7)
    # Cut at z, nothing of the guide is left in it.
    inputs = [frozen.values["z"], *(p for p in guide.parameters() if p.requires_grad)]
    by_z, *_ = torch.autograd.grad(frozen.log_guide.sum(), inputs, allow_unused=True, retain_graph=True)
    through_z = torch.autograd.grad(frozen.values["z"], inputs[1:], by_z, allow_unused=True, retain_graph=True)
    whole = torch.autograd.grad(frozen.log_guide.sum(), inputs[1:], allow_unused=True)
    for ours, all_of_it in zip(through_z, whole, strict=True):
        if ours is not None or all_of_it is not None:
            torch.testing.assert_close(ours, all_of_it)


@pytest.mark.parametrize("name", ["normal", "flow", "mixture"])
def test_options_of_the_encoder_are_the_familys_too(name: str) -> None:
    found = {option.name: option for option in options("guide", find("guide", name))}
    assert found["hidden_dims"].help.startswith("units of each hidden layer")
    assert "context_dim" not in found


class Laplace(Amortized):
    """:param widen: factor on the scale."""

    def __init__(self, *supplied: Any, widen: float = 1.0, **amortized: Any):
        super().__init__(*supplied, **amortized)
        self.widen = widen

    def context_dim(self) -> int:
        return 2 * self.latent_dim

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        loc, log_scale = context.chunk(2, -1)
        return dist.Laplace(loc, self.widen * log_scale.exp()).to_event(1)


def test_a_family_of_ones_own() -> None:
    found = {option.name: option for option in options("guide", Laplace)}
    assert found["widen"].help == "factor on the scale." and found["hidden_dims"].help.startswith("units of each")
    supplied = {"data_shape": (PIXELS,), "latent_dim": 3, "latent_name": "z", "model": make("normal", 3)[0]}
    guide = construct("guide", Laplace, supplied, {"widen": 2.0, "hidden_dims": (5,)})
    assert guide.encoder[0].out_features == 5
    assert guide.posterior(guide.encode(images(4).float())).rsample().shape == (4, 3)
    with pytest.raises(BadInput, match=r"--guide\.widn: Laplace has no such option"):
        construct("guide", Laplace, supplied, {"widn": 2.0})


def test_steps_of_the_semi_amortized_guide_raise_the_bound() -> None:
    model, _ = make("semi-amortized", 3)
    x = images(50)
    supplied = {"data_shape": (PIXELS,), "latent_dim": 3, "latent_name": "z", "model": model}
    bounds = []
    for steps in (0, 1, 10):
        torch.manual_seed(5)
        guide = construct("guide", find("guide", "semi-amortized"), supplied, {"num_steps": steps}).double()
        with torch.no_grad():
            bounds.append(float(guide._elbo(guide.encode(x), x).mean()))
    assert bounds[0] < bounds[1] < bounds[2]


@pytest.mark.parametrize(
    "name, chosen",
    [
        ("flow", {"transform": "spiral"}),
        ("flow", {"num_transforms": 0}),
        ("mixture", {"num_components": 0}),
        ("student-t", {"df": 0.0}),
        ("multivariate-normal", {"rank": -1}),
        ("semi-amortized", {"step_size": 0.0}),
    ],
)
def test_bad_options_are_named(name: str, chosen: dict[str, Any]) -> None:
    supplied = {"data_shape": (PIXELS,), "latent_dim": 2, "latent_name": "z", "model": nn.Linear(1, 1)}
    (option,) = chosen
    with pytest.raises(BadInput, match=rf"--guide\.{option.replace('_', '-')}"):
        construct("guide", find("guide", name), supplied, chosen)


def test_spline_is_zukos() -> None:
    """Values, log-determinants, inverses and gradients, to rounding."""
    sizes = [torch.randn(40, 5, count, dtype=torch.float64).mul(3).requires_grad_() for count in (8, 8, 7)]
    x = 3 * torch.randn(40, 5, dtype=torch.float64)
    found = []
    for spline in (flows._Spline(*sizes), zuko.transforms.MonotonicRQSTransform(*sizes)):
        y, log_det = spline.call_and_ladj(x)
        gradients = torch.autograd.grad(y.sin().sum() + log_det.sum(), sizes, retain_graph=True)
        found.append((y, log_det, spline.inv(y), *gradients))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
