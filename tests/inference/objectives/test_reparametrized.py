"""Objectives of reparametrized samples, on pairs where the truth is known; float64."""

import math
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from affine import F64, Affine, Repeated, TwoLayerGuide
from affine import gradient as gradient_in
from pairs import ExactGuide, LinearGaussian, TwoLayers
from pyro import poutine
from pyro.infer import RenyiELBO
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.models.vae import VAE

SAMPLED = ["iwae", "renyi", "stl", "dreg"]


def _pair(seed: int = 0) -> tuple[LinearGaussian, Affine, Tensor, Pair]:
    torch.manual_seed(seed)
    model = LinearGaussian(3, 2)
    guide, x = Affine(model), torch.randn(4, 3, dtype=F64)
    return model, guide, x, Pair.read(model, guide, x)


@pytest.mark.parametrize("name, alpha", [("iwae", 0.0), ("renyi", 0.5), ("renyi", -1.0), ("dreg", 0.0), ("stl", None)])
def test_values_are_per_image(name: str, alpha: float | None) -> None:
    """The loss is minus the sum over images of each image's own bound, from the same noise."""
    model, guide, x, pair = _pair()
    elbo = bind(construct(name, num_particles=5, **({"alpha": alpha} if name == "renyi" else {})), pair, x)
    torch.manual_seed(7)
    loss = elbo.differentiable_loss(None, None, x)
    torch.manual_seed(7)
    log_w = guide.log_weights(model, x, 5)
    if alpha is None:
        expected = log_w.mean(0)
    else:
        expected = (((1 - alpha) * log_w).logsumexp(0) - math.log(5)) / (1 - alpha)
    torch.testing.assert_close(loss, -expected.sum())


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_renyi_is_pyros_where_pyros_is_right(alpha: float) -> None:
    """One unscaled plate covers every site: the same number from the same noise, and the same gradient."""
    _model, guide, x, pair = _pair()
    ours = bind(construct("renyi", num_particles=4, alpha=alpha), pair, x)
    theirs = RenyiELBO(alpha=alpha, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(3)
    gradient = gradient_in(loss := ours.differentiable_loss(None, None, x), guide)
    torch.manual_seed(3)

    def known_to_pyro(x: Tensor) -> None:
        pyro.module("guide", guide)
        guide.guide(x)

    with pyro.get_param_store().scope():
        value = theirs.loss_and_grads(pair.model, known_to_pyro, x)
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None]), gradient
    )


@pytest.mark.parametrize("name, rest", [("stl", "elbo"), ("dreg", "iwae")])
def test_gradient_vanishes_at_the_posterior(name: str, rest: str) -> None:
    """Roeder et al. (2017): every sample's guide gradient is zero where the guide is the posterior, not only its mean.
    That of the ELBO, or of L_K, is not."""
    model = LinearGaussian(3, 2)
    with torch.no_grad():
        posterior = model.posterior(torch.eye(3, dtype=F64))
    loc, factor = nn.Parameter(posterior.loc.clone()), nn.Parameter(posterior.scale_tril[0].clone())

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.factor = loc, factor

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(x @ self.loc, scale_tril=self.factor))

    guide, x = Exact(), torch.randn(4, 3, dtype=F64)
    pair = Pair.read(model, guide, x)
    for each, zero in ((name, True), (rest, False)):
        loss = bind(construct(each, num_particles=3), pair, x).differentiable_loss(pair.model, pair.guide, x)
        gradient = gradient_in(loss, guide)
        assert (float(gradient.abs().max()) < 1e-12) is zero


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name, same_as", [("stl", "elbo"), ("dreg", "iwae")])
def test_guides_gradient_is_unbiased(name: str, same_as: str, layers: int) -> None:
    """The means of both estimators over 20,000 draws agree within 5 standard errors of their difference: false alarms
    of 6e-7 for each of at most 8 parameters. With two layers, a gradient through detached distributions would miss the
    path from the first through the second."""
    torch.manual_seed(0)
    model: Any = LinearGaussian(3, 2) if layers == 1 else TwoLayers()
    guide: Any = Affine(model) if layers == 1 else TwoLayerGuide()
    x = torch.randn(1, 3, dtype=F64)
    repeated = x.expand(500, -1)
    pair = Pair.read(model, guide, x)
    means, errors = [], []
    for each in (name, same_as):
        elbo = bind(construct(each, num_particles=4), pair, x)
        draws = torch.stack(
            [gradient_in(elbo.differentiable_loss(pair.model, pair.guide, repeated) / 500, guide) for _ in range(40)]
        )
        means.append(draws.mean(0))
        errors.append(draws.var(0) / 40)
    assert ((means[0] - means[1]).abs() < 5 * (errors[0] + errors[1]).sqrt() + 1e-12).all()
    assert (means[1].abs() > 5 * errors[1].sqrt()).any()  # there is something to agree on


@pytest.mark.parametrize("vectorized", [True, False])
def test_doubly_reparametrized_by_hand(vectorized: bool) -> None:
    """Tucker et al. (2019), equation 8, and the model's gradient that of L_K, from the same noise."""
    model, guide, x, pair = _pair()
    pair = replace(pair, vectorized=vectorized)
    elbo = bind(construct("dreg", num_particles=3), pair, x)
    torch.manual_seed(5)
    loss = elbo.differentiable_loss(None, None, x)
    ours, models = gradient_in(loss, guide, retain_graph=True), gradient_in(loss, model)

    torch.manual_seed(5)
    q = guide.distribution(x).expand([3, 4])
    z = q.rsample()
    frozen = dist.Normal(q.base_dist.loc.detach(), q.base_dist.scale.detach()).to_event(1)
    log_w = model.prior().log_prob(z) + model.likelihood(z).log_prob(x) - frozen.log_prob(z)
    share = log_w.detach().softmax(0)
    expected = -gradient_in((share.square() * log_w).sum(), guide, retain_graph=True)
    torch.testing.assert_close(ours, expected)
    detached = z.detach()
    log_joint = model.prior().log_prob(detached) + model.likelihood(detached).log_prob(x)
    torch.testing.assert_close(models, -gradient_in((share * log_joint).sum(), model))


@pytest.mark.parametrize("name, wider, expected", [("dreg", 0.1, 4.0), ("iwae", 0.5, 0.25)])
def test_signal_to_noise_against_samples(name: str, wider: float, expected: float) -> None:
    """From 4 to 64 samples the signal-to-noise ratio of the guide's gradient falls by a factor of 4 for `iwae`
    (Rainforth et al. 2018), and rises by as much for `dreg` (Tucker et al. 2019): within a factor of 1.3, over 40,000
    draws near the posterior, where theory holds at such K. The means' own noise is taken off."""
    model, count = LinearGaussian(3, 2), 40_000
    guide = Repeated(model, count, wider)
    x = torch.tensor([[0.3, -0.5, 0.8]], dtype=F64).expand(count, -1)
    pair = Pair.read(model, guide, x)

    def ratio(k: int) -> float:
        loss = bind(construct(name, num_particles=k), pair, x).differentiable_loss(None, None, x)
        draws = torch.autograd.grad(loss, guide.s)[0]
        signal = draws.mean(0).square() - draws.var(0) / count
        return float((signal / draws.var(0)).sqrt().mean())

    assert expected / 1.3 < ratio(64) / ratio(4) < expected * 1.3


def test_beta_weighs_the_kl_term() -> None:
    """At beta = 3, E[log p(x | z)] - 3 KL from the same noise."""
    model, guide, x, pair = _pair()
    torch.manual_seed(2)
    loss = bind(construct("beta", beta=3.0), pair, x).differentiable_loss(pair.model, pair.guide, x)
    torch.manual_seed(2)
    z = guide.distribution(x).rsample()
    kl = guide.distribution(x).log_prob(z) - model.prior().log_prob(z)
    torch.testing.assert_close(loss, -(model.likelihood(z).log_prob(x) - 3 * kl).sum())


def test_sleep_trains_the_guide_on_dreams() -> None:
    """The guide's gradient is that of -log q(z | x) under the model: its mean is zero at the posterior, within 5
    standard errors (false alarms below 1e-5), and not elsewhere. The model's is that of `rws`."""
    model = LinearGaussian(3, 2)
    x = torch.randn(200, 3, dtype=F64)

    class Exact(nn.Module):
        def __init__(self, shift: float):
            super().__init__()
            with torch.no_grad():
                self.factor = model.posterior(x[:1]).scale_tril
            self.shift = nn.Parameter(torch.full((2,), shift, dtype=F64))

        def guide(self, x: Tensor) -> None:
            with torch.no_grad():
                loc = model.posterior(x).loc
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(loc + self.shift, scale_tril=self.factor))

    for shift, zero in ((0.0, True), (0.3, False)):
        guide = Exact(shift)
        pair = Pair.read(model, guide, x)
        elbo = bind(construct("wake-sleep", num_particles=2), pair, x)
        draws = torch.stack([gradient_in(elbo.differentiable_loss(None, None, x), guide) for _ in range(50)])
        error = draws.std(0) / math.sqrt(50)
        assert bool((draws.mean(0).abs() < 5 * error).all()) is zero
    dreamt = bind(construct("wake-sleep", num_particles=2), pair, x)
    torch.manual_seed(4)
    dreamt_loss = dreamt.differentiable_loss(None, None, x)
    torch.manual_seed(4)
    pair.dream(x)  # the same noise before the samples
    awake = bind(construct("rws", num_particles=2), pair, x).differentiable_loss(None, None, x)
    torch.testing.assert_close(dreamt_loss, awake)
    torch.testing.assert_close(gradient_in(dreamt_loss, model), gradient_in(awake, model))


@pytest.mark.parametrize("name", SAMPLED)
def test_a_second_latent_and_a_mask_are_respected(name: str) -> None:
    """An image that is masked at every site, in model and guide, contributes nothing: the loss is the sum of the
    others' own, from the same noise; and so is its gradient."""
    model, guide = TwoLayers(), TwoLayerGuide()
    x = torch.randn(4, 3, dtype=F64)
    pair = Pair.read(model, guide, x)
    elbo = bind(construct(name, num_particles=6), pair, x)
    torch.manual_seed(0)
    whole = elbo.differentiable_loss(None, None, x)
    assert whole.isfinite() and bool((gradient_in(whole, guide) != 0).all())
    torch.manual_seed(0)
    log_w = pair.terms(x, num_samples=6).log_weight.detach()
    average = {"iwae": 0.0, "dreg": 0.0, "renyi": 0.5, "stl": None}[name]
    if average is None:
        own = log_w.mean(0)
    else:
        own = (((1 - average) * log_w).logsumexp(0) - math.log(6)) / (1 - average)
    torch.testing.assert_close(-whole, own.sum())
    mask = torch.tensor([True, True, False, False])

    def masked(x: Any = None, *, n: int = 1) -> None:
        with poutine.mask(mask=mask):
            model.model(x, n=n)

    def masked_guide(x: Tensor) -> None:
        with poutine.mask(mask=mask):
            guide.guide(x)

    elbo.pair = replace(pair, model=masked, guide=masked_guide)
    torch.manual_seed(0)
    half = elbo.differentiable_loss(None, None, x)
    torch.testing.assert_close(-half, own[mask].sum())
    # Nothing that is masked has a gradient either: another image in its place changes none.
    gradient = gradient_in(half, guide)
    torch.manual_seed(0)
    other = torch.where(mask[:, None], x, 7.0)
    torch.testing.assert_close(gradient_in(elbo.differentiable_loss(None, None, other), guide), gradient)


def _scaled(x: Tensor) -> None:
    with pyro.plate("data", len(x)), poutine.scale(scale=0.5):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _one(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def test_misuse_is_refused() -> None:
    _model, _guide, x, pair = _pair()
    for name in ("iwae", "dreg", "renyi"):
        with pytest.raises(BadInput, match=r"num_particles 1: .* at least 2"):
            bind(construct(name, num_particles=1), pair, x)
    with pytest.raises(BadInput, match="alpha 1"):
        bind(construct("renyi", num_particles=2, alpha=1.0), pair, x)
    with pytest.raises(BadInput, match=r"alpha 0.5: belongs to the objective renyi"):
        bind(construct("iwae", num_particles=2, alpha=0.5), pair, x)
    with pytest.raises(BadInput, match=r"beta 0.0"):
        bind(construct("beta", beta=0.0), pair, x)
    with pytest.raises(BadInput, match=r"has the scale 0.5"):
        bind(construct("elbo"), Pair.read(_scaled, _one, x[:, 0]), x[:, 0])
    vae = VAE((3, 3), latent_dim=2, hidden_dims=(4,))
    noisy = Normal((3, 3), 2, "z", vae, input_dropout=0.1)
    images = torch.zeros(4, 9)
    with pytest.raises(BadInput, match="such as dropout"):
        bind(construct("stl"), Pair.read(vae, noisy, images), images)
    with pytest.raises(BadInput, match="cannot draw images"):
        bind(construct("wake-sleep"), Pair.read(_one_model, _one, x[:, 0]), x[:, 0])


def _one_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=F64), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_exact_guide_gives_one_weight() -> None:
    """Then every bound is log p(x), whatever K and alpha."""
    model = LinearGaussian(3, 2)
    x = torch.randn(4, 3, dtype=F64)
    pair = Pair.read(model, ExactGuide(model), x)
    for name in SAMPLED:
        loss = bind(construct(name, num_particles=2), pair, x).differentiable_loss(None, None, x)
        torch.testing.assert_close(-loss, model.log_px(x).sum())


def test_plain_functions_with_parameters() -> None:
    """`pyro.param` is detached too: at the posterior every gradient of `stl` is zero."""

    def guide(x: Tensor) -> None:
        half = pyro.param("half", torch.tensor(0.5, dtype=F64))
        scale = pyro.param("scale", torch.tensor(0.5**0.5, dtype=F64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(half * x, scale))

    x = torch.randn(4, dtype=F64)
    with pyro.get_param_store().scope():
        pair = Pair.read(_one_model, guide, x)
        loss = bind(construct("stl"), pair, x).differentiable_loss(None, None, x)
        gradients = torch.autograd.grad(loss, [pyro.param("half"), pyro.param("scale")])
    assert all(float(g.abs()) < 1e-12 for g in gradients)
