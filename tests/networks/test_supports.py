"""Values outside of a support: held against integrals on a fine grid, and refused where there is no answer."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pairs import integral, log_px_within, near_guide, number, one_site, standard_guide
from torch import Tensor

import ppl_gen
from ppl_gen.core.errors import UNOPPOSED, BadInput
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.networks.supports import certainly_narrower, own_log_prob, unbounded

DOUBLE = torch.float64


def _moved(base: dist.Distribution, *chain: Any) -> dist.Distribution:
    return dist.TransformedDistribution(base, list(chain))


PRIORS = {
    # Of these torch says that they are real, or what all components have in common.
    "moved exponential": (_moved(dist.Exponential(number(1.0)), T.AffineTransform(1.0, 1.0)), 1, 40),
    "negative exponential": (_moved(dist.Exponential(number(1.0)), T.AffineTransform(0.0, -1.0)), -40, 0),
    "stretched beta": (_moved(dist.Beta(number(2.0), number(2.0)), T.AffineTransform(0.5, 2.0)), 0.5, 2.5),
    "composed": (
        _moved(
            dist.Gamma(number(2.0), number(1.0)),
            T.ComposeTransform([T.AffineTransform(0.0, 2.0), T.AffineTransform(-1.0, 1.0)]),
        ),
        -1,
        60,
    ),
    "mixture of uniforms": (
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7], dtype=DOUBLE)),
            dist.Uniform(torch.tensor([-1.0, 1.0], dtype=DOUBLE), torch.tensor([0.0, 3.0], dtype=DOUBLE)),
        ),
        -1,
        3,
    ),
    "angle": (dist.VonMises(number(0.5), number(0.5)), -math.pi, math.pi),
    "exponential": (dist.Exponential(number(1.0)), 0, 40),
    "gamma": (dist.Gamma(number(2.0), number(1.0)), 0, 40),
    "log-normal": (dist.LogNormal(number(0.0), number(1.0)), 0, 100),
    "half-normal": (dist.HalfNormal(number(1.0)), 0, 20),
    "uniform": (dist.Uniform(number(0.0), number(2.0)), 0, 2),
    "beta": (dist.Beta(number(2.0), number(3.0)), 0, 1),
    "pareto": (dist.Pareto(number(0.5), number(3.0)), 0.5, 100),
}


def _of_mixture(prior: Any, z: Tensor) -> Tensor:
    """0.3 on [-1, 0] and 0.7 on [1, 3], written out."""
    inside = torch.where((z > -1) & (z < 0), 0.3, torch.where((z > 1) & (z < 3), 0.7 / 2, 0.0))
    return inside.log()


@pytest.mark.parametrize("name", PRIORS)
def test_a_guide_that_leaves_the_prior_s_support(name: str) -> None:
    """z drawn where p(z) = 0 has weight zero, so that log p(x) is right and the ELBO is -inf; of 8 images, each within
    4 of its errors (false alarms 5e-4). Torch's density there would make it up to 2.7 nats too large, or no number."""
    prior, low, high = PRIORS[name]
    x = torch.tensor([-0.7, 0.1, 0.4, 0.9, 1.3, 1.8, 2.5, 3.1], dtype=DOUBLE)
    model = one_site(prior, lambda z: dist.Normal(z, 1.0))
    density = own_log_prob(prior, torch.linspace(low, high, 3, dtype=DOUBLE)[1:2]) is None

    def log_joint(z: Tensor, each: Tensor) -> Tensor:
        p = prior.log_prob(z) if density or name == "uniform" else _of_mixture(prior, z)
        return p + dist.Normal(z, 1.0).log_prob(each)

    exact = integral(x, log_joint, low, high)
    found = ppl_gen.log_marginal_likelihood(model, near_guide, x, num_samples=20_000)
    log_px_within(found, exact, largest=0.08)
    assert bool((found.elbo == -math.inf).all()) and "ELBO      -inf" in str(found)
    assert not found.log_px.isnan().any() and not found.reconstruction.isnan().any()
    mixed = proposal_log_px(model, [near_guide], x, num_samples=20_000, prior_share=0.3)
    log_px_within(mixed, exact, largest=0.05)


def test_a_guide_with_less_support_than_the_prior_beside_it() -> None:
    """Samples of the prior that the guide has no density for: q = 0 there, where log-normals say NaN."""

    def positive(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(len(x), dtype=DOUBLE), 1.0))

    x = torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE)
    model = one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Normal(z, 1.0))
    found = proposal_log_px(model, [positive], x, num_samples=20_000, prior_share=0.5)
    log_px_within(found, dist.Normal(0.0, math.sqrt(2)).log_prob(x), largest=0.05)


def test_a_mask_is_no_support() -> None:
    """A value that a mask leaves out may be anything: z ~ Exponential(1), masked for every other image."""
    seen = torch.tensor([True, False, True, False])

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Exponential(number(1.0)).expand([len(x)]).mask(seen))
            pyro.sample("x", dist.Normal(torch.where(seen, z, 0.0), 1.0), obs=x)

    def guide(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x * 0 - 1, 0.01).mask(seen))

    weights = ppl_gen.log_weights(model, guide, torch.zeros(4, dtype=DOUBLE), seen, num_samples=50)
    assert bool((weights[:, seen] == -math.inf).all()) and bool(weights[:, ~seen].isfinite().all())


def test_a_support_that_depends_on_z() -> None:
    """x ~ Uniform(0, e^z): samples with e^z < x have weight zero; of 4 images, within 4 errors (false alarms 3e-4)."""
    x = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=DOUBLE)
    model = one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Uniform(0.0, z.exp()))
    normal = dist.Normal(number(0.0), 1.0)
    exact = integral(
        x, lambda z, each: torch.where(each < z.exp(), normal.log_prob(z) - z, torch.tensor(-math.inf)), -12, 12
    )
    log_px_within(ppl_gen.log_marginal_likelihood(model, standard_guide, x, num_samples=50_000), exact, largest=0.05)


def test_enumeration_over_supports_that_depend_on_z() -> None:
    """x ~ Uniform(0, 1 + z), z in {0, 1, 2}: p(1.5) = (1/2 + 1/3) / 3 and p(0.5) = (1 + 1/2 + 1/3) / 3."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3, dtype=DOUBLE)))
            pyro.sample("x", dist.Uniform(0.0, 1.0 + z.double()), obs=x)

    from ppl_gen.inference.exact import exact_log_px

    exact = torch.tensor([(1 / 2 + 1 / 3) / 3, (1 + 1 / 2 + 1 / 3) / 3], dtype=DOUBLE).log()
    torch.testing.assert_close(exact_log_px(model, torch.tensor([1.5, 0.5], dtype=DOUBLE)), exact)


def test_a_guide_that_tells_no_support() -> None:
    """Flows of Zuko through Pyro's wrapper, and any distribution of one's own: -3.54 nats in closed form, 6 images each
    within 4 errors (false alarms 4e-4)."""
    import zuko
    from pyro.contrib.zuko import ZukoToPyro

    flow = zuko.flows.MAF(features=2, context=2, transforms=1, hidden_features=[4])

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", ZukoToPyro(flow(x)))

    x = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-0.4, 0.9], [0.0, 0.0], [0.7, 0.7], [-1.0, 0.2]])
    exact = dist.Normal(number(0.0), math.sqrt(2)).log_prob(x.double()).sum(1)
    log_px_within(ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20_000), exact, largest=0.1)


def test_log_weights_that_are_no_numbers() -> None:
    """A density that is no number at some z is told with its site and image."""
    model = one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Normal(torch.where(z > 1, math.nan, z), 1.0))
    with pytest.raises(BadInput):
        ppl_gen.log_weights(model, standard_guide, torch.zeros(3, dtype=DOUBLE), num_samples=200)


def test_simplex_in_single_precision() -> None:
    """Compositions of many parts sum to 1 but for rounding; torch's check of 1e-6 would take some for impossible."""
    concentration = torch.full((400,), 0.5)
    x = torch.distributions.Dirichlet(concentration).sample((20,)).float() * (1 + 3e-6)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Dirichlet(concentration * z.exp()[..., None]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 0.1))

    assert bool(ppl_gen.log_weights(model, guide, x, num_samples=3).isfinite().all())


# A narrower guide, other shapes, other arguments ---------------------------------------------------------------


def test_which_guide_is_narrower() -> None:
    """Certainly, certainly not, or for values to tell."""
    one = torch.ones(())
    real, positive, unit = dist.Normal(0.0, 1.0), dist.LogNormal(0.0, 1.0), dist.Beta(one, one)
    assert certainly_narrower(positive, real) and not certainly_narrower(real, positive)
    assert certainly_narrower(dist.Gamma(one, one), positive) is False  # [0, inf) and (0, inf)
    assert certainly_narrower(unit, positive) and certainly_narrower(positive, unit) is False
    assert certainly_narrower(_moved(dist.Exponential(one), T.AffineTransform(1.0, 1.0)), positive) is None
    three, five = dist.Categorical(torch.ones(3)), dist.Categorical(torch.ones(5))
    assert certainly_narrower(three, five) and certainly_narrower(five, three) is False


@pytest.mark.parametrize(("states", "of_guide"), [(5, 3), (5, 7), (5, 5)])
def test_categories_of_other_numbers(states: int, of_guide: int) -> None:
    """A guide of fewer states than the prior is at least what it says; one of more draws some without weight, which a
    table of probabilities has no place for. 6 images, each within 4 errors (false alarms 4e-4)."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(states, dtype=DOUBLE)))
            pyro.sample("x", dist.Normal(z.double(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(len(x), of_guide, dtype=DOUBLE)))

    x = torch.linspace(-1, 4, 6, dtype=DOUBLE)
    seen = torch.arange(float(min(states, of_guide)), dtype=DOUBLE)
    exact = (dist.Normal(seen, 1.0).log_prob(x[:, None]) - math.log(states)).logsumexp(1)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=5000)
    log_px_within(found, exact, largest=0.05)
    assert found.narrower == (of_guide < states)


def test_a_uniform_guide_that_draws_its_end() -> None:
    """In float32 a narrow interval has few numbers, and its upper end among them, which has the density of the rest."""

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Uniform(x / 2 - 1e-6, x / 2 + 1e-6))

    x = torch.linspace(0.5, 1, 12)
    weights = ppl_gen.log_weights(
        one_site(dist.Normal(0.0, 1.0), lambda z: dist.Normal(z, 1.0)), guide, x, num_samples=200
    )
    assert bool(weights.isfinite().all())


def test_a_likelihood_of_moved_bounds() -> None:
    """x = z + Exponential(1): torch says that the support is real. Exact by integration over z < x; 4 images, each
    within 4 errors (false alarms 3e-4)."""
    x = torch.tensor([-0.5, 0.3, 1.0, 2.0], dtype=DOUBLE)
    model = one_site(
        dist.Normal(number(0.0), 1.0),
        lambda z: dist.TransformedDistribution(dist.Exponential(torch.ones_like(z)), [T.AffineTransform(z, 1.0)]),
    )
    normal = dist.Normal(number(0.0), 1.0)
    exact = integral(
        x, lambda z, each: torch.where(z < each, normal.log_prob(z) - (each - z), torch.tensor(-math.inf)), -12, 12
    )
    log_px_within(ppl_gen.log_marginal_likelihood(model, standard_guide, x, num_samples=50_000), exact, largest=0.05)


def _flow_pair(transforms: list[Any]) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """x ~ N(z, 1) with z ~ N(0, 1), and transforms of a normal distribution as guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x / 2, 0.8).to_event(1), transforms))

    return model, guide


def test_a_planar_guide_is_scored_where_it_draws() -> None:
    """Pyro's planar flow has no density elsewhere: there is no second opinion on it. 5 images of N(0, 2), each within 4
    errors (false alarms 3e-4)."""
    x = torch.linspace(-1, 1, 5)[:, None]
    found = ppl_gen.log_marginal_likelihood(*_flow_pair([T.planar(1)]), x, num_samples=20_000)
    log_px_within(found, dist.Normal(0.0, math.sqrt(2)).log_prob(x[:, 0]).double(), largest=0.1)
    assert found.second_opinion is None and found.unopposed and UNOPPOSED in str(found)
    normal = ppl_gen.log_marginal_likelihood(*_flow_pair([]), x, num_samples=30)
    assert normal.second_opinion is not None and not normal.unopposed


@pytest.mark.parametrize(("residual", "narrower"), [(None, True), ("normal", False)])
def test_a_flow_with_a_bounded_range(residual: str | None, narrower: bool) -> None:
    """A block autoregressive flow without residual is a sum of tanh, though it states all real numbers. All images of
    its estimate are at least, as is the mean."""
    pair, x = _flow_pair([T.block_autoregressive(1, residual=residual)]), torch.linspace(-1, 1, 5)[:, None]
    found = ppl_gen.log_marginal_likelihood(*pair, x, num_samples=100)
    assert found.narrower == narrower
    assert not narrower or (bool(found.untrusted.all()) and found.at_least)


def test_a_likelihood_with_a_shape_of_its_own() -> None:
    """A zero-inflated Poisson: log of the integral over z, 3 images, each within 4 errors (false alarms 2e-4)."""
    gate = torch.tensor(0.3, dtype=DOUBLE)
    x = torch.tensor([0.0, 1.0, 3.0], dtype=DOUBLE)
    model = one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.ZeroInflatedPoisson(z.exp(), gate=gate))

    def log_joint(z: Tensor, each: Tensor) -> Tensor:
        poisson = dist.Poisson(z.exp()).log_prob(each) + math.log(0.7)
        return dist.Normal(0.0, 1.0).log_prob(z) + (torch.logaddexp(poisson, gate.log()) if each == 0 else poisson)

    log_px_within(
        ppl_gen.log_marginal_likelihood(model, standard_guide, x, num_samples=20_000),
        integral(x, log_joint, -12, 5),
        largest=0.1,
    )


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [
        (lambda z: dist.Binomial(5, 0.5 + 0.14 * z), "parameter probs"),
        (lambda z: dist.Gamma(3.5 + z, 1.0), "parameter concentration"),
    ],
)
def test_arguments_that_are_bad_at_some_z(likelihood: Callable[[Tensor], dist.Distribution], words: str) -> None:
    model = one_site(dist.Normal(number(0.0), 1.0), likelihood)
    with pytest.raises(BadInput, match=words):
        ppl_gen.log_weights(model, standard_guide, torch.tensor([1.0, 4.0], dtype=DOUBLE), num_samples=20_000)


def test_half_precision_is_added_up_in_more() -> None:
    """Densities of half-precision arguments at half-precision values, 300 pixels: to float32 rounding; in half
    precision they would be off by tenths of a nat."""
    x = torch.randn(6, 300).half()

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z.unsqueeze(-1).expand(*z.shape, 300).half(), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    exact = dist.Normal(number(0.0), 1.0).log_prob(x.double()).sum(1)
    found = ppl_gen.log_weights(model, guide, x, num_samples=3)
    torch.testing.assert_close(found.double(), exact.expand(3, 6), rtol=1e-5, atol=1e-3)


def test_a_family_that_is_written_as_a_transform() -> None:
    """Gumbel(0, 1) at -6 has the density exp(6 - e^6): its own inverse underflows there in float32. As prior and as
    likelihood, against its formula."""
    x = torch.tensor([-5.0, -6.0, 0.5])

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Gumbel(0.0, 1.0))
            pyro.sample("x", dist.Gumbel(0 * z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x, 1e-3))

    with evaluating():
        terms = Pair.read(model, guide, x).terms(x, num_samples=5)
    z = terms.latents["z"].squeeze(-1)
    torch.testing.assert_close(terms.log_prior, -z - (-z).exp(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.log_likelihood, (-x - (-x).exp()).expand(5, 3), rtol=1e-4, atol=1e-4)


def test_what_is_unbounded() -> None:
    """Angles and transforms of bounded values are not, whatever support they state."""
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    normal = dist.Normal(zero, one)
    shifted = [T.AffineTransform(zero + 1, -one)]
    bounded = [
        dist.VonMises(zero, one),
        dist.VonMises(zero, one).to_event(1),
        dist.TransformedDistribution(dist.Uniform(zero, one), shifted),
        dist.TransformedDistribution(dist.Exponential(one), shifted),
        dist.Gamma(one, one),
        dist.LogNormal(zero, one),
    ]
    free = [normal, dist.StudentT(3 * one), dist.TransformedDistribution(normal, shifted), dist.Gumbel(zero, one)]
    assert not any(map(unbounded, bounded)) and all(map(unbounded, free))
