"""Importance sampling against log p(x) in closed form and by quadrature."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from pairs import ExactGuide, LinearGaussian, TwoLayers, gauss_hermite, log_px_within
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.importance import (
    ImportanceEstimate,
    _summarize,
    block_bounds,
    elbo_terms,
    jackknife_bounds,
    weight_statistics,
)
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.pareto import khat
from ppl_gen.models.vae import VAE


@pytest.fixture
def linear() -> LinearGaussian:
    return LinearGaussian()


def _data(model: LinearGaussian, count: int) -> Tensor:
    return model.model(n=count).detach()


def test_exact_posterior_gives_constant_weights(linear: LinearGaussian) -> None:
    x = _data(linear, 7)
    weights = ppl_gen.log_weights(linear, ExactGuide(linear), x, num_samples=50)
    assert weights.shape == (50, 7)
    torch.testing.assert_close(weights, linear.log_px(x).expand(50, 7), rtol=0, atol=1e-12)
    estimates = ppl_gen.log_marginal_likelihood(linear, ExactGuide(linear), x, num_samples=50)
    torch.testing.assert_close(estimates.gap, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(estimates.ess, torch.full((7,), 50.0, dtype=torch.float64))
    assert not estimates.untrusted.any()


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_agrees_with_quadrature(latent_dim: int) -> None:
    """Within the errors of estimates of 16 images, all below 0.05 nats; and the ELBO is lower."""
    torch.manual_seed(latent_dim)
    model = VAE((4, 3), latent_dim=latent_dim, hidden_dims=(8,), activation="tanh").double()
    guide = Normal((4, 3), latent_dim, "z", model).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # a posterior that is not the prior
        x = model.model(n=16)
        exact = gauss_hermite(model, x, latent_dim)
    estimates = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20_000)
    log_px_within(estimates, exact, largest=0.05)
    assert (estimates.elbo < exact).all()


def test_coverage_of_the_interval(linear: LinearGaussian) -> None:
    """The 95 % interval covers at a rate in [0.91, 0.98] over 200 repetitions (binomial tails below 1 %)."""
    x = _data(linear, 1)
    repeated = x.expand(200, -1)
    estimates = ppl_gen.log_marginal_likelihood(linear, ExactGuide(linear, 1.3), repeated, num_samples=400)
    error = (estimates.log_px - linear.log_px(x)).abs()
    covered = (error < 1.96 * estimates.log_px_mc_var.sqrt()).double().mean()
    assert 0.91 <= covered <= 0.98


def test_jackknife_is_that_of_leaving_one_out() -> None:
    """The bias (S - 1) (mean_s theta_(-s) - theta) of theta = log mean w, with every subset of S - 1 weights written
    out, on weights of which one may be nearly all, or e^100 times the others; what it corrects to is the corrected
    bound of order 1."""
    for count, spread in itertools.product((2, 7, 20), (3, 30, 100)):
        log_w = spread * torch.randn(count, 5, dtype=torch.float64)
        whole = log_w.logsumexp(0) - math.log(count)
        others = [torch.cat([log_w[:s], log_w[s + 1 :]]) for s in range(count)]
        left_out = [each.logsumexp(0) - math.log(count - 1) for each in others]
        bias = (count - 1) * (torch.stack(left_out).mean(0) - whole)
        found = weight_statistics(log_w)
        torch.testing.assert_close(found["log_px"], whole)
        torch.testing.assert_close(found["log_px_bias"], bias, rtol=1e-9, atol=1e-12)
        assert bool((bias < -0.01).all())
        torch.testing.assert_close(found["log_px"] - found["log_px_bias"], jackknife_bounds(log_w, count, 1))
    one = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64).unsqueeze(1)
    assert float(weight_statistics(one)["log_px_bias"]) == pytest.approx(-2 / 3 * 700 + 2 * math.log(3 / 2))


def test_bounds_increase_with_k(linear: LinearGaussian) -> None:
    """In expectation: the mean over 400 images, each step paired and larger than 3 standard errors."""
    x = _data(linear, 400)
    estimates = ppl_gen.log_marginal_likelihood(linear, ExactGuide(linear, 2.0), x, num_samples=1000)
    bounds = [estimates.elbo, *(estimates.iwae[k] for k in (10, 100, 1000))]
    torch.testing.assert_close(estimates.elbo, estimates.iwae[1])
    torch.testing.assert_close(estimates.log_px, estimates.iwae[1000])
    for lower, higher in ((bounds[0], bounds[1]), (bounds[1], bounds[2])):
        difference = higher - lower
        assert difference.mean() > 3 * difference.std() / 20
    difference = bounds[3] - bounds[2]
    assert difference.mean() > -3 * difference.std() / 20
    assert (bounds[3] - linear.log_px(x)).mean().abs() < 0.02


def test_analytic_and_sampled_kl_agree() -> None:
    """In expectation, within 4 standard errors per image (false-alarm rate of the test 1e-3)."""
    model = VAE((4, 3), latent_dim=3, hidden_dims=(8,)).double()
    guide = Normal((4, 3), 3, "z", model).double()
    x = torch.bernoulli(torch.full((16, 12), 0.5, dtype=torch.float64))
    estimates = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=5000)
    with evaluating(model, guide):
        terms = Pair.read(model, guide, x).terms(x, num_samples=5000)
        kl = terms.log_guide - terms.log_prior
        exact = torch.distributions.kl_divergence(guide.posterior(guide.encode(x)), model.prior())
    assert estimates.kl_analytic is not None
    torch.testing.assert_close(estimates.kl_analytic, exact)
    assert ((estimates.kl - exact).abs() < 4 * kl.std(0) / math.sqrt(5000)).all()
    torch.testing.assert_close(estimates.elbo, estimates.reconstruction - estimates.kl)


def test_several_sites_and_plates() -> None:
    """Two latent sites under other names, a plate of pixels, the images' plate under another name: within the errors
    of estimates of 6 images."""
    pair = TwoLayers()
    x = torch.randn(6, 3, dtype=torch.float64)
    estimates = ppl_gen.log_marginal_likelihood(pair.model, pair.guide, x, num_samples=20_000)
    log_px_within(estimates, pair.log_px(x), largest=0.05)
    assert set(estimates.latent_mean) == {"upper", "lower"}
    assert estimates.latent_mean["lower"].shape == (6, 1)


class _FixedShape(LinearGaussian):
    """Does not broadcast: it fails, or silently mixes images, under an outer plate."""

    def __init__(self, silent: bool):
        super().__init__()
        self.silent = silent

    def likelihood(self, z: Tensor) -> dist.Distribution:
        z = z - z.mean(0) * 0.3 if self.silent and z.dim() > 2 else z
        if not self.silent:
            z = z.view(-1, 2) if z.dim() == 2 else z.view(len(z), -1)
        return super().likelihood(z)


@pytest.mark.parametrize("silent", [False, True])
def test_pairs_that_do_not_broadcast(silent: bool) -> None:
    model = _FixedShape(silent)
    x = LinearGaussian.model(model, n=5).detach()
    with evaluating():
        assert not Pair.read(model, ExactGuide(model), x).vectorized
    weights = ppl_gen.log_weights(model, ExactGuide(model), x, num_samples=8)
    torch.testing.assert_close(weights, model.log_px(x).expand(8, 5), rtol=0, atol=1e-12)


def test_masks_apply_and_scales_do_not(linear: LinearGaussian) -> None:
    x = _data(linear, 4)
    mask = torch.tensor([True, False, True, True])

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)), pyro.poutine.scale(scale=3.0):
            z = pyro.sample("z", linear.prior())
            pyro.sample("x", linear.likelihood(z).mask(mask), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", linear.posterior(x))

    with evaluating():
        terms = Pair.read(model, guide, x, mask).terms(x, mask, num_samples=3)
    assert (terms.log_likelihood[:, 1] == 0).all()
    expected = linear.log_px(x)[mask].expand(3, 3)
    torch.testing.assert_close(terms.log_weight[:, mask], expected, rtol=0, atol=1e-10)


def test_a_masked_latent_contributes_nothing(linear: LinearGaussian) -> None:
    """Where z is masked in model and guide there is no log p(z), no log q(z | x) and no KL, and the weight is the
    likelihood; the other images' terms are what they are without a mask, from the same noise."""
    x = _data(linear, 4)
    mask = torch.tensor([True, False, True, False])

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=seen):
                z = pyro.sample("z", linear.prior())
            pyro.sample("x", linear.likelihood(z), obs=x)

    def guide(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(linear.posterior(x).loc, 0.4).to_event(1))

    found = []
    with evaluating():
        for seen in (mask, torch.ones(4, dtype=torch.bool)):
            torch.manual_seed(0)
            found.append(Pair.read(model, guide, x, seen).terms(x, seen, num_samples=3, analytic_kl=True))
    masked, plain = found
    zero = torch.zeros(3, 4, dtype=torch.float64)
    for name in ("log_prior", "log_guide", "kl"):
        torch.testing.assert_close(getattr(masked, name), torch.where(mask, getattr(plain, name), zero))
        assert bool((getattr(plain, name) != 0).all())
    torch.testing.assert_close(masked.log_likelihood, plain.log_likelihood)
    torch.testing.assert_close(masked.log_weight, torch.where(mask, plain.log_weight, plain.log_likelihood))


def test_labels_go_along(linear: LinearGaussian) -> None:
    """Arguments with a row per image are cut with them; a function that takes fewer is given fewer."""
    x, y = _data(linear, 40), torch.arange(40, dtype=torch.float64)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", linear.prior())
            pyro.sample("x", linear.likelihood(z), obs=x - y[:, None])

    class Guide(nn.Module):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", linear.posterior(x - 1))

    weights = ppl_gen.log_weights(model, Guide(), x, y, num_samples=500)
    exact = linear.log_px(x[1] - 1)
    torch.testing.assert_close(weights[:, 1], exact.expand(500), rtol=0, atol=1e-10)


def test_chunks_change_nothing_but_the_noise(linear: LinearGaussian) -> None:
    x = _data(linear, 40)
    for chunk_size in (1, 7, 100_000):
        weights = ppl_gen.log_weights(linear, ExactGuide(linear), x, num_samples=5, chunk_size=chunk_size)
        torch.testing.assert_close(weights, linear.log_px(x).expand(5, 40), rtol=0, atol=1e-12)


def test_nothing_global_is_left_behind(linear: LinearGaussian) -> None:
    guide = ExactGuide(linear)
    guide.train()
    before = (torch.is_grad_enabled(), pyro.settings.get(), sorted(pyro.get_param_store().keys()))
    ppl_gen.log_weights(linear, guide, _data(linear, 3), num_samples=2)
    assert (torch.is_grad_enabled(), pyro.settings.get(), sorted(pyro.get_param_store().keys())) == before
    assert guide.training


def test_khat_of_known_tails() -> None:
    """exp of an exponential variable with mean k is Pareto with shape k; equal weights have no tail."""
    exponential = torch.distributions.Exponential(torch.tensor(1.0, dtype=torch.float64)).sample((20_000, 3))
    for shape in (0.3, 0.8):
        assert khat(exponential * shape).sub(shape).abs().max() < 0.12
    assert khat(torch.zeros(100, 2)).isnan().all()
    assert khat(torch.randn(10, 2)).isnan().all()


@pytest.mark.parametrize("count", [25, 100, 225, 226, 1000])
def test_khat_is_that_of_arviz(count: int) -> None:
    """Of light and heavy tails, weights of all sizes, zero weights, single huge ones, and ties."""
    normal = torch.randn(count, 60, dtype=torch.float64)
    zeros = torch.where(torch.rand(count, 60) < torch.linspace(0, 1, 60), -math.inf, normal)
    kinds = [normal * scale for scale in (1e-5, 1.0, 5.0, 300.0)] + [(normal * 20).round(), normal - 1e5, zeros]
    log_w = torch.cat([*kinds, normal / torch.randn(60), normal.exp()], 1)
    log_w[3, :10] = math.inf
    log_w[5, 300:305] = math.nan
    found = khat(log_w)
    assert 0.5 < found.isfinite().double().mean() < 1
    fitted = found.isfinite()
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(array_stats.psislw(-log_w.T[fitted].numpy())[1])
    torch.testing.assert_close(found[fitted], expected, rtol=1e-9, atol=1e-9)
    # What has no number: infinite or unknown weights, and tails of which less than half differ.
    tail = log_w.sort(0).values[-math.ceil(min(count / 5, 3 * count**0.5)) :]
    single = (log_w == log_w.float()).all(0)  # numbers of float32 have its rounding
    rounding = torch.where(single, 1e-6, 1e-14)
    differ = (tail.diff(dim=0) > rounding * tail[1:].abs().clamp(min=1)).double().mean(0)
    assert torch.equal(fitted, (differ >= 0.5) & ~log_w.isnan().any(0) & (log_w.max(0).values < math.inf))


def test_block_bounds_leave_out_the_rest() -> None:
    weights = torch.randn(10, 2, dtype=torch.float64)
    expected = torch.stack([weights[i : i + 3].logsumexp(0) - math.log(3) for i in (0, 3, 6)]).mean(0)
    torch.testing.assert_close(block_bounds(weights, 3), expected)


def test_elbo_terms_match_and_keep_the_generator(linear: LinearGaussian) -> None:
    x, guide = _data(linear, 50), ExactGuide(linear)
    with evaluating():
        pair = Pair.read(linear, guide, x)
    state = torch.get_rng_state()
    terms = elbo_terms(linear, guide, pair, x, seed=3, batch_size=7)
    assert torch.equal(state, torch.get_rng_state())
    assert terms["elbo"] == pytest.approx(linear.log_px(x).mean().item(), abs=1e-10)
    assert terms["elbo"] == terms["reconstruction"] - terms["kl"]


def test_active_units() -> None:
    """A unit whose posterior mean moves with x is active; one that is the prior is not, despite Monte Carlo noise."""
    model = LinearGaussian(data_dim=3, latent_dim=2)
    with torch.no_grad():
        model.weight[:, 1] = 0
    x = _data(model, 200)
    assert ppl_gen.log_marginal_likelihood(model, ExactGuide(model), x, num_samples=20).active_units == 1
    one = ppl_gen.log_marginal_likelihood(model, ExactGuide(model), x, num_samples=1)
    assert one.active_units is None and one.latent_mc_var["z"].isnan().all()  # whose noise is not known


@pytest.mark.parametrize("one_hot", [False, True])
def test_active_units_of_binary_ones(one_hot: bool) -> None:
    """The first of two units follows x, the second is the prior. Labels of a category have no mean."""
    x = (torch.rand(200, 1) > 0.5).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(len(x), 2).double()).to_event(1))
            if one_hot:
                pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(len(x), 3).double()))
            pyro.sample("w", dist.Categorical(logits=torch.zeros(len(x), 3).double()))
            pyro.sample("x", dist.Bernoulli(logits=6 * z[..., :1] - 3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = torch.cat([6 * x - 3, torch.zeros_like(x)], 1)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))
            if one_hot:
                pyro.sample("y", dist.OneHotCategorical(logits=torch.cat([4 * x, 0 * x, 0 * x], 1)))
            pyro.sample("w", dist.Categorical(logits=torch.cat([4 * x, 0 * x, 0 * x], 1)))

    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=50)
    assert found.active_units == (4 if one_hot else 1) and "w" not in found.latent_mean


def _active(mean: Tensor, noise: Tensor) -> int:
    """The active units of latent samples [samples, images] = mean + noise."""
    zero = torch.zeros(noise.shape, dtype=torch.float64)
    latents = (mean + noise).unsqueeze(-1)
    terms = Terms(zero, zero, zero, None, {"z": latents.expand(*noise.shape, 1)}, frozenset())
    return ImportanceEstimate(num_samples=len(noise), **_summarize([terms])).active_units


def test_a_unit_is_active_above_a_hundredth() -> None:
    """Var_x(E[z | x]) of 0.0099 is inactive and of 0.0101 active (Burda et al. 2016, section 5.2). With the noise of
    S = 2 samples from N(E[z | x], 1), 0.5 in the variance of their mean, a unit with a variance of 0 is inactive and
    one of 0.02 active: over 200,000 images what is left has a standard error of 0.0022, so that either is wrong at
    another seed with probability 5e-6."""
    images = 200_000
    spread = torch.linspace(-1, 1, images, dtype=torch.float64)
    spread = spread / spread.std()
    none = torch.zeros(2, images, dtype=torch.float64)
    noise = torch.randn(2, images, dtype=torch.float64)
    for variance, active in ((0.0099, 0), (0.0101, 1)):
        assert _active(variance**0.5 * spread, none) == active
    for variance, active in ((0.0, 0), (0.02, 1)):
        assert _active(variance**0.5 * spread, noise) == active
    assert _active(spread[:1], noise[:, :1]) == 0  # of one image nothing is known


# Pairs that are refused ----------------------------------------------------------------------------------------


def _plain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _plain_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def _global_latent(x: Tensor) -> None:
    w = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def _global_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def _sequential(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])


def _sequential_guide(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(x[i], 1.0))


def _nothing(x: Tensor) -> None:
    pass


def _extra_guide(x: Tensor) -> None:
    _plain_guide(x)
    with pyro.plate("more", len(x)):
        pyro.sample("u", dist.Normal(x, 1.0))


def _wide_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 1.0).to_event(1))


def _misnamed_guide(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def _no_event_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1).expand(-1, 2), 1.0))


def _left_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1), 1.0))


def _failing(x: Tensor) -> None:
    raise KeyError("lost")


def _no_observation(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [
        (_global_latent, _global_guide, "outside the plate 'data'"),
        (_plain, _misnamed_guide, "outside the plate 'data', in 'images';"),
        (_plain, _misnamed_guide, "with pyro.plate('data', len(x))"),
        (_plain, _no_event_guide, ".to_event(1)"),
        (_plain, _left_guide, "the plate 'data' has dim -2 in _left_guide, but -1 in _plain"),
        (_sequential, _sequential_guide, "vectorized"),
        (_plain, _nothing, "does not sample 'z'"),
        (_plain, _extra_guide, "samples 'u'"),
        (_plain, _wide_guide, "does not fit"),
        (_plain, _failing, "KeyError: 'lost'"),
        (_no_observation, _plain_guide, "observes nothing"),
    ],
)
@pytest.mark.filterwarnings("ignore:Found .* in guide but not model:UserWarning")
def test_refused_with_a_sentence(model: object, guide: object, words: str) -> None:
    with pytest.raises(BadInput) as error:
        ppl_gen.log_weights(model, guide, torch.randn(4), num_samples=2)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_no_images_and_no_samples() -> None:
    with pytest.raises(BadInput, match="no images"):
        ppl_gen.log_weights(_plain, _plain_guide, torch.randn(0), num_samples=2)
    with pytest.raises(BadInput, match="at least 1"):
        ppl_gen.log_weights(_plain, _plain_guide, torch.randn(3), num_samples=0)
    weights = ppl_gen.log_weights(_plain, _plain_guide, torch.randn(1), num_samples=2)
    assert weights.shape == (2, 1)
