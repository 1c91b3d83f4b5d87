"""Every family of guides of a continuous latent, put to the same tests."""

import inspect
import re
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from families import FAMILIES, PIXELS, images, make
from torch import Tensor, nn

from ppl_gen.core.components import construct, find, known, options
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.models.hierarchical_vae import HierarchicalVAE
from ppl_gen.models.vae import VAE
from ppl_gen.networks import flows
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder

CASES = [(family, dim) for family in FAMILIES for dim in (1, 2)]


QUADRATURE = 1e-3  # error of the grid, from the kinks in a spline's density


def grid(dim: int) -> tuple[Tensor, Tensor]:
    """Nodes [n, dim] and weights [n] of the trapezoidal rule in arsinh z, which reaches |z| = 27."""
    t = torch.linspace(-4, 4, 501, dtype=torch.float64)
    z, w = t.sinh(), t.cosh() * (t[1] - t[0])
    return torch.cartesian_prod(*[z] * dim).reshape(-1, dim), torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(1)


def bounded(z: Tensor) -> Tensor:
    return (z * torch.arange(1, z.shape[-1] + 1)).sum(-1).sin() + (-z.square().sum(-1)).exp()


def test_all_families_are_here() -> None:
    others = {
        "bernoulli",
        "enumerated",
        "exact-gaussian",
        "grid",
        "prior",
        "hierarchical",
        "hierarchical-bernoulli",
        "conditional",
        "conditional-prior",
        "semi-supervised",
        "per-image",
    }
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
    """Its class, and every matrix of weights with its sizes: from the pixels to what `posterior` takes, and on."""
    _, guide = make(family, 3)
    printed = [(int(i), int(o)) for i, o in re.findall(r"in_features=(\d+), out_features=(\d+)", repr(guide))]
    assert repr(guide).startswith(f"{type(guide).__name__}(\n")
    assert printed == [tuple(reversed(p.shape)) for p in guide.parameters() if p.dim() == 2]
    assert [into for into, _ in printed[:2]] == [PIXELS, 8] and printed[0][1] == 8


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


@pytest.mark.parametrize("kind", ["model", "guide", "prior"])
def test_every_family_shows_its_code(kind: Any) -> None:
    """Its Pyro code is in its own class, in no base."""
    for cls in known(kind).values():
        assert kind in vars(cls) and cls.__bases__ == (nn.Module,)
    for name, _ in FAMILIES.values():
        assert {"__init__", "encode", "posterior", "guide"} <= vars(find("guide", name)).keys()


ENCODER = {
    "hidden_dims": (None, "Units of the encoder's hidden layers. By default the model's."),
    "activation": (None, "Nonlinearity between layers. By default the model's."),
    "network": (
        None,
        "Network of the encoder. mlp: linear layers. conv: stride-2 convolutions before the linear layers. By default "
        "the model's.",
    ),
    "channels": (None, "Features of each convolution, for a conv network. By default the model's."),
    "input_dropout": (0.0, "Probability of dropping a pixel at the encoder's input, in training."),
}


@pytest.mark.parametrize("name", sorted({name for name, _ in FAMILIES.values()}))
def test_options_of_the_encoder_are_the_familys_too(name: str) -> None:
    found = {option.name: option for option in options("guide", find("guide", name))}
    assert {name: (found[name].default, found[name].help) for name in ENCODER} == ENCODER
    assert found["hidden_dims"].type == tuple[int, ...] | None
    assert not {"options", "data_shape", "latent_dim", "latent_name", "model"} & found.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_options_reach_the_encoder(family: str) -> None:
    """Left out or None, they are the model's."""
    name, chosen = FAMILIES[family]
    model = VAE((4, 3), latent_dim=2, hidden_dims=(8, 5), activation="tanh", network="conv", channels=(2,))
    supplied = {"data_shape": (4, 3), "latent_dim": 2, "latent_name": "z", "model": model}
    mirrored = construct("guide", find("guide", name), supplied, chosen | {"hidden_dims": None, "network": None})
    kinds = [type(module) for module in mirrored.encoder.modules()]
    assert kinds.count(nn.Conv2d) == 1 and nn.Tanh in kinds and mirrored.dropout.p == 0
    assert [layer.out_features for layer in mirrored.encoder.head if isinstance(layer, nn.Linear)][:2] == [8, 5]
    changed = {"hidden_dims": (), "activation": "elu", "channels": (2, 3), "input_dropout": 0.25}
    other = construct("guide", find("guide", name), supplied, chosen | changed)
    kinds = [type(module) for module in other.encoder.modules()]
    assert kinds.count(nn.Conv2d) == 2 and nn.ELU in kinds and nn.Tanh not in kinds and other.dropout.p == 0.25
    assert [isinstance(layer, nn.Linear) for layer in other.encoder.head] == [True]


@pytest.mark.parametrize("name", ["normal", "flow", "bernoulli", "prior"])
def test_models_of_several_sites_are_refused(name: str) -> None:
    supplied = {"data_shape": (PIXELS,), "data_dim": PIXELS, "data_mean": torch.full((PIXELS,), 0.5), "latent_dim": 2}
    supplied |= {"latent_name": None, "model": HierarchicalVAE(PIXELS)}
    with pytest.raises(BadInput, match="is a guide of one latent site, but HierarchicalVAE has several"):
        construct("guide", find("guide", name), supplied, {})


class Laplace(nn.Module):
    """:param widen: factor on the scale."""

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        widen: float = 1.0,
        **options: Unpack[EncoderOptions],
    ):
        super().__init__()
        self.name, self.widen = latent_name, widen
        self.encoder = mirrored_encoder(model, data_shape, 2 * latent_dim, **options)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        loc, log_scale = context.chunk(2, -1)
        return dist.Laplace(loc, self.widen * log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(self.name, self.posterior(self.encode(x)))


class Wider(Laplace):
    """:param hidden_dims: units of its own words."""

    def __init__(self, *supplied: Any, deep: bool = True, **options: Any):
        super().__init__(*supplied, **options)


class Missing(TypedDict):
    needed: int


class Demanding(nn.Module):
    def __init__(self, **options: Unpack[Missing]):
        super().__init__()

    def guide(self, x: Tensor) -> None: ...


def test_a_family_of_ones_own() -> None:
    found = {option.name: option for option in options("guide", Laplace)}
    assert found["widen"].help == "factor on the scale." and found["hidden_dims"].help.startswith("Units of the")
    supplied = {"data_shape": (PIXELS,), "latent_dim": 3, "latent_name": "z", "model": make("normal", 3)[0]}
    guide = construct("guide", Laplace, supplied, {"widen": 2.0, "hidden_dims": (5,)})
    assert guide.encoder[0].out_features == 5
    assert guide.posterior(guide.encode(images(4).float())).rsample().shape == (4, 3)
    with pytest.raises(BadInput, match=r"guide\.widn: Laplace has no such option"):
        construct("guide", Laplace, supplied, {"widn": 2.0})


def test_a_copy_of_a_file_is_a_family_of_ones_own(tmp_path: Path) -> None:
    copy = tmp_path / "mine.py"
    copy.write_text(Path(inspect.getfile(find("guide", "normal"))).read_text(encoding="utf-8"), encoding="utf-8")
    cls = find("guide", f"{copy}:Normal")
    assert [o.name for o in options("guide", cls)] == [o.name for o in options("guide", find("guide", "normal"))]
    supplied = {"data_shape": (PIXELS,), "latent_dim": 3, "latent_name": "z", "model": make("normal", 3)[0]}
    assert construct("guide", cls, supplied, {"hidden_dims": (5,)}).encoder[0].out_features == 5


def test_options_of_a_base_and_of_a_typed_dict() -> None:
    """A class that passes any keyword arguments on has its base's, and its own words for them."""
    found = {option.name: option for option in options("guide", Wider)}
    assert found.keys() == {"deep", "widen", "hidden_dims", "activation", "network", "channels"}
    assert found["hidden_dims"].help == "units of its own words." and found["widen"].help == "factor on the scale."
    with pytest.raises(BadInput, match="its argument 'needed' needs a type and a default"):
        options("guide", Demanding)


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
    with pytest.raises(BadInput, match=rf"guide\.{option}"):
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


@pytest.mark.parametrize("num_bins", [None, 8])
@pytest.mark.parametrize(("weight", "most"), [(0.1, 12), (1.0, 16), (30.0, 40)])
def test_inverse_is_zukos_in_fewer_passes(num_bins: int | None, weight: float, most: int) -> None:
    """Values to the last bit, gradients to rounding, however strongly the units depend on each other."""
    torch.manual_seed(0)
    module = flows.Autoregressive(40, 3, reverse=True, passes=40, num_bins=num_bins, hidden_dims=[16]).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(weight)
    y = torch.randn(20, 40, dtype=torch.float64, requires_grad=True)
    ours = module(torch.randn(20, 3, dtype=torch.float64))
    inputs, meta, found = [y, *module.parameters()], ours.meta, []
    calls: list[Tensor] = []
    ours.meta = lambda x: calls.append(x) or meta(x)
    for inverse in (type(ours)._inverse, zuko.transforms.AutoregressiveTransform._inverse):
        x = inverse(ours, y)
        gradients = torch.autograd.grad(x.square().sum(), inputs, materialize_grads=True)
        calls.clear()
        with torch.no_grad():
            assert inverse(ours, y).equal(x)
        found.append((len(calls), x, *gradients))
    assert found[0][0] <= most <= found[1][0] == 40
    assert found[0][1].equal(found[1][1])
    torch.testing.assert_close(found[0][2:], found[1][2:], rtol=1e-9, atol=1e-9)
