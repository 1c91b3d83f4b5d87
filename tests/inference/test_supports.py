"""Values outside of a support: held against integrals on a fine grid, and refused where there is no answer."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pairs import log_px_within
from torch import Tensor

import ppl_gen
from ppl_gen.errors import BadInput
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.supports import certainly_narrower, own_log_prob
from ppl_gen.inference.traces import Pair

DOUBLE = torch.float64


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def _model(prior: dist.Distribution, likelihood: Callable[[Tensor], dist.Distribution]) -> Callable[[Tensor], None]:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


def _near(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x.double() - 1, 1.2))


def _standard(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=DOUBLE), 1.0))


def _integral(x: Tensor, log_joint: Callable[[Tensor, Tensor], Tensor], low: float, high: float) -> Tensor:
    """log of the integral of exp(log_joint(z, x)) over z by the midpoint rule, for each x."""
    edges = torch.linspace(low, high, 400_001, dtype=DOUBLE)
    z = (edges[1:] + edges[:-1]) / 2
    return torch.stack([(log_joint(z, each)).logsumexp(0) + math.log(edges[1] - edges[0]) for each in x])


def _moved(base: dist.Distribution, *chain: Any) -> dist.Distribution:
    return dist.TransformedDistribution(base, list(chain))


PRIORS = {
    # Of these torch says that they are real, or what all components have in common.
    "moved exponential": (_moved(dist.Exponential(_number(1.0)), T.AffineTransform(1.0, 1.0)), 1, 40),
    "negative exponential": (_moved(dist.Exponential(_number(1.0)), T.AffineTransform(0.0, -1.0)), -40, 0),
    "stretched beta": (_moved(dist.Beta(_number(2.0), _number(2.0)), T.AffineTransform(0.5, 2.0)), 0.5, 2.5),
    "composed": (
        _moved(
            dist.Gamma(_number(2.0), _number(1.0)),
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
    "angle": (dist.VonMises(_number(0.5), _number(0.5)), -math.pi, math.pi),
    "exponential": (dist.Exponential(_number(1.0)), 0, 40),
    "gamma": (dist.Gamma(_number(2.0), _number(1.0)), 0, 40),
    "log-normal": (dist.LogNormal(_number(0.0), _number(1.0)), 0, 100),
    "half-normal": (dist.HalfNormal(_number(1.0)), 0, 20),
    "uniform": (dist.Uniform(_number(0.0), _number(2.0)), 0, 2),
    "beta": (dist.Beta(_number(2.0), _number(3.0)), 0, 1),
    "pareto": (dist.Pareto(_number(0.5), _number(3.0)), 0.5, 100),
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
    model = _model(prior, lambda z: dist.Normal(z, 1.0))
    density = own_log_prob(prior, torch.linspace(low, high, 3, dtype=DOUBLE)[1:2]) is None

    def log_joint(z: Tensor, each: Tensor) -> Tensor:
        p = prior.log_prob(z) if density or name == "uniform" else _of_mixture(prior, z)
        return p + dist.Normal(z, 1.0).log_prob(each)

    exact = _integral(x, log_joint, low, high)
    found = ppl_gen.log_marginal_likelihood(model, _near, x, num_samples=20_000)
    log_px_within(found, exact, largest=0.08)
    assert bool((found.elbo == -math.inf).all()) and "ELBO      -inf" in str(found)
    assert not found.log_px.isnan().any() and not found.reconstruction.isnan().any()
    mixed = proposal_log_px(model, [_near], x, num_samples=20_000, prior_share=0.3)
    log_px_within(mixed, exact, largest=0.05)


def test_a_guide_with_less_support_than_the_prior_beside_it() -> None:
    """Samples of the prior that the guide has no density for: q = 0 there, where log-normals say NaN."""

    def positive(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(len(x), dtype=DOUBLE), 1.0))

    x = torch.tensor([-1.0, 0.0, 2.0], dtype=DOUBLE)
    model = _model(dist.Normal(_number(0.0), 1.0), lambda z: dist.Normal(z, 1.0))
    found = proposal_log_px(model, [positive], x, num_samples=20_000, prior_share=0.5)
    log_px_within(found, dist.Normal(0.0, math.sqrt(2)).log_prob(x), largest=0.05)


def test_a_mask_is_no_support() -> None:
    """A value that a mask leaves out may be anything: z ~ Exponential(1), masked for every other image."""
    seen = torch.tensor([True, False, True, False])

    def model(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Exponential(_number(1.0)).expand([len(x)]).mask(seen))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x * 0 - 1, 0.01).mask(seen))

    weights = ppl_gen.log_weights(model, guide, torch.zeros(4, dtype=DOUBLE), seen, num_samples=50)
    assert bool((weights[:, seen] == -math.inf).all()) and bool(weights[:, ~seen].isfinite().all())


def test_a_support_that_depends_on_z() -> None:
    """x ~ Uniform(0, e^z): samples with e^z < x have weight zero; of 4 images, within 4 errors (false alarms 3e-4)."""
    x = torch.tensor([0.2, 0.5, 1.0, 2.0], dtype=DOUBLE)
    model = _model(dist.Normal(_number(0.0), 1.0), lambda z: dist.Uniform(0.0, z.exp()))
    normal = dist.Normal(_number(0.0), 1.0)
    exact = _integral(
        x, lambda z, each: torch.where(each < z.exp(), normal.log_prob(z) - z, torch.tensor(-math.inf)), -12, 12
    )
    log_px_within(ppl_gen.log_marginal_likelihood(model, _standard, x, num_samples=50_000), exact, largest=0.05)


def test_enumeration_over_supports_that_depend_on_z() -> None:
    """x ~ Uniform(0, 1 + z), z in {0, 1, 2}: p(1.5) = (1/2 + 1/3) / 3 and p(0.5) = (1 + 1/2 + 1/3) / 3."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3, dtype=DOUBLE)))
            pyro.sample("x", dist.Uniform(0.0, 1.0 + z.double()), obs=x)

    from ppl_gen.inference.enumeration import exact_log_px

    exact = torch.tensor([(1 / 2 + 1 / 3) / 3, (1 + 1 / 2 + 1 / 3) / 3], dtype=DOUBLE).log()
    torch.testing.assert_close(exact_log_px(model, torch.tensor([1.5, 0.5], dtype=DOUBLE)), exact)


BINARY = torch.tensor([0.0, 1.0, 1.0])
REFUSED = {
    "bytes": (lambda z: dist.Bernoulli(logits=z), [0.0, 255.0, 3.0], "image 1 is impossible"),
    "minus one to one": (lambda z: dist.Bernoulli(logits=z), [0.0, 1.0, -1.0], "image 2 is impossible"),
    "negative": (lambda z: dist.Exponential(z.exp()), [1.0, 2.0, -0.5], "image 2 is impossible"),
    "half a count": (lambda z: dist.Poisson(z.exp()), [2.5, 1.0, 1.0], "image 0 is impossible"),
    "too many": (lambda z: dist.Binomial(16, logits=z), [0.0, 17.0, 3.0], "IntegerInterval"),
    "between classes": (lambda z: dist.Categorical(logits=torch.stack([z, -z], -1)), [0.0, 0.5, 1.0], "image 1"),
    "not a number": (lambda z: dist.Normal(z, 1.0), [0.0, math.nan, 1.0], "image 1"),
    "infinite": (lambda z: dist.Normal(z, 1.0), [0.0, math.inf, 1.0], "image 1"),
    "probability": (lambda z: dist.Bernoulli(probs=2 + z.square()), [0.0, 1.0, 1.0], "parameter probs"),
    "scale": (lambda z: dist.Normal(0.0, -z.square()), [0.0, 1.0, 1.0], "parameter scale"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_likelihood_does_not_admit(name: str) -> None:
    likelihood, x, words = REFUSED[name]
    model = _model(dist.Normal(_number(0.0), 1.0), likelihood)
    with pytest.raises(BadInput) as error:
        ppl_gen.log_marginal_likelihood(model, _standard, torch.tensor(x), num_samples=10)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_one_image_of_many() -> None:
    """All images are looked at, not only those that a pair is read on."""
    x = torch.zeros(1200)
    x[1100] = 2.0
    model = _model(dist.Normal(_number(0.0), 1.0), lambda z: dist.Bernoulli(logits=z))
    with pytest.raises(BadInput, match="image 1100 is impossible"):
        ppl_gen.log_weights(model, _standard, x, num_samples=1)


def test_a_bad_argument_for_one_image() -> None:
    """A scale of the guide that is negative for one image of many is refused, though a normal's density takes it."""

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0 - x))

    x = torch.zeros(300, dtype=DOUBLE)
    x[250] = 3.0
    with pytest.raises(BadInput, match="parameter scale"):
        ppl_gen.log_weights(
            _model(dist.Normal(_number(0.0), 1.0), lambda z: dist.Normal(z, 1.0)), guide, x, num_samples=2
        )


MARKS = {
    "binary": (lambda z: dist.Bernoulli(logits=z), BINARY, "probability", ""),
    "counts": (lambda z: dist.Poisson(z.exp()), torch.tensor([0.0, 3.0, 7.0]), "probability", ""),
    "grey": (lambda z: dist.Bernoulli(logits=z), torch.tensor([0.0, 0.5, 1.0]), "cross-entropy", "no bound"),
    "unchecked": (
        lambda z: dist.Bernoulli(logits=z, validate_args=False),
        torch.tensor([0.0, 3.0, 1.0]),
        "unchecked",
        "validate_args=False",
    ),
    "unchecked grey": (
        lambda z: dist.Bernoulli(logits=z, validate_args=False),
        torch.tensor([0.0, 0.3, 1.0]),
        "cross-entropy",
        "no bound",
    ),
    "real": (lambda z: dist.Normal(z, 1.0), torch.tensor([-1.0, 0.3, 7.0]), "density", "densities"),
}


@pytest.mark.parametrize("name", MARKS)
def test_what_p_of_x_is(name: str) -> None:
    """The result says it, and is printed with it, as the commands' tables are."""
    likelihood, x, observation, words = MARKS[name]
    found = ppl_gen.log_marginal_likelihood(
        _model(dist.Normal(_number(0.0), 1.0), likelihood), _standard, x, num_samples=30
    )
    assert found.observation == observation
    assert words in str(found) and len(str(found).splitlines()) == 4 + bool(words) + ("may be unseen" in str(found))


def _delta(x: Tensor) -> dist.Distribution:
    return dist.Delta(x / 2)


def _straight_through(x: Tensor) -> dist.Distribution:
    return dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=torch.full_like(x, 0.4))


def _mixture_of_deltas(x: Tensor) -> dist.Distribution:
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(len(x), 2)), dist.Delta(torch.stack([x / 2, x], -1)))


@pytest.mark.parametrize(
    "posterior",
    [
        _straight_through,
        _mixture_of_deltas,
        lambda x: dist.ZeroInflatedDistribution(dist.Normal(x / 2, 0.8), gate=torch.full_like(x, 0.1)),
        _delta,
        lambda x: dist.Delta(x / 2, log_density=torch.zeros_like(x)),
        lambda x: _delta(x).mask(torch.ones(len(x), dtype=torch.bool)),
        lambda x: _delta(x).expand([len(x)]),
        lambda x: dist.TransformedDistribution(_delta(x), [dist.transforms.AffineTransform(1.0, 2.0)]),
    ],
)
def test_a_guide_without_a_density(posterior: Callable[[Tensor], dist.Distribution]) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", posterior(x))

    model = _model(
        dist.RelaxedBernoulli(torch.tensor(0.7), probs=torch.tensor(0.4))
        if posterior is _straight_through
        else dist.Normal(0.0, 1.0),
        lambda z: dist.Normal(z, 1.0),
    )
    with pytest.raises(BadInput, match=r"'z' is a .*, which has no density"):
        ppl_gen.log_marginal_likelihood(model, guide, torch.randn(5), num_samples=10)


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
    exact = dist.Normal(_number(0.0), math.sqrt(2)).log_prob(x.double()).sum(1)
    log_px_within(ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20_000), exact, largest=0.1)


def test_log_weights_that_are_no_numbers() -> None:
    """A density that is no number at some z is told with its site and image."""
    model = _model(dist.Normal(_number(0.0), 1.0), lambda z: dist.Normal(torch.where(z > 1, math.nan, z), 1.0))
    with pytest.raises(BadInput):
        ppl_gen.log_weights(model, _standard, torch.zeros(3, dtype=DOUBLE), num_samples=200)


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


def test_leaving_the_support_is_seen_before_training() -> None:
    x = torch.zeros(4, dtype=DOUBLE)
    for guide, left in ((_near, "z"), (_standard, "z")):
        with evaluating():
            pair = Pair(_model(dist.Exponential(_number(1.0)), lambda z: dist.Normal(z, 1.0)), guide, x)
            assert pair.leaves_support(x) == left
    with evaluating():
        assert (
            Pair(_model(dist.Normal(_number(0.0), 1.0), lambda z: dist.Normal(z, 1.0)), _near, x).leaves_support(x)
            is None
        )


# A narrower guide, other shapes, other arguments ---------------------------------------------------------------


def test_a_narrower_guide_is_at_least() -> None:
    """A guide of bounded support under a normal prior in 20 dimensions: 10 nats are missing, which k-hat cannot see."""
    zero = torch.zeros(20, dtype=DOUBLE)

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Uniform(x / 1.09 - 0.25, x / 1.09 + 0.25).to_event(1))

    x = torch.linspace(-2, 2, 160, dtype=DOUBLE).reshape(8, 20)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=500)
    exact = dist.Normal(0.0, math.sqrt(1.09)).log_prob(x).sum(1)
    assert bool((found.log_px < exact - 5).all()) and found.at_least
    assert "at least" in str(found) and "leaves out a part of the prior's support" in str(found)


def test_which_guide_is_narrower() -> None:
    """Certainly, certainly not, or for values to tell."""
    one = torch.ones(())
    real, positive, unit = dist.Normal(0.0, 1.0), dist.LogNormal(0.0, 1.0), dist.Beta(one, one)
    assert certainly_narrower(positive, real) and not certainly_narrower(real, positive)
    assert certainly_narrower(dist.Gamma(one, one), positive) is False  # [0, inf) and (0, inf)
    assert certainly_narrower(unit, positive) is None
    assert certainly_narrower(_moved(dist.Exponential(one), T.AffineTransform(1.0, 1.0)), positive) is None
    assert certainly_narrower(dist.Categorical(torch.ones(3)), dist.Categorical(torch.ones(5))) is None


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
        _model(dist.Normal(0.0, 1.0), lambda z: dist.Normal(z, 1.0)), guide, x, num_samples=200
    )
    assert bool(weights.isfinite().all())


def test_a_likelihood_of_moved_bounds() -> None:
    """x = z + Exponential(1): torch says that the support is real. Exact by integration over z < x; 4 images, each
    within 4 errors (false alarms 3e-4)."""
    x = torch.tensor([-0.5, 0.3, 1.0, 2.0], dtype=DOUBLE)
    model = _model(
        dist.Normal(_number(0.0), 1.0),
        lambda z: dist.TransformedDistribution(dist.Exponential(torch.ones_like(z)), [T.AffineTransform(z, 1.0)]),
    )
    normal = dist.Normal(_number(0.0), 1.0)
    exact = _integral(
        x, lambda z, each: torch.where(z < each, normal.log_prob(z) - (each - z), torch.tensor(-math.inf)), -12, 12
    )
    log_px_within(ppl_gen.log_marginal_likelihood(model, _standard, x, num_samples=50_000), exact, largest=0.05)


def test_a_planar_guide_is_scored_where_it_draws() -> None:
    """Pyro's planar flow has no density elsewhere: there is no second opinion on it. 5 images of N(0, 2), each within 4
    errors (false alarms 3e-4)."""
    flow = T.planar(1)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x / 2, 0.8).to_event(1), [flow]))

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.linspace(-1, 1, 5)[:, None]
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=20_000)
    log_px_within(found, dist.Normal(0.0, math.sqrt(2)).log_prob(x[:, 0]).double(), largest=0.1)
    assert found.second_opinion is None


def test_a_likelihood_with_a_shape_of_its_own() -> None:
    """A zero-inflated Poisson: log of the integral over z, 3 images, each within 4 errors (false alarms 2e-4)."""
    gate = torch.tensor(0.3, dtype=DOUBLE)
    x = torch.tensor([0.0, 1.0, 3.0], dtype=DOUBLE)
    model = _model(dist.Normal(_number(0.0), 1.0), lambda z: dist.ZeroInflatedPoisson(z.exp(), gate=gate))

    def log_joint(z: Tensor, each: Tensor) -> Tensor:
        poisson = dist.Poisson(z.exp()).log_prob(each) + math.log(0.7)
        return dist.Normal(0.0, 1.0).log_prob(z) + (torch.logaddexp(poisson, gate.log()) if each == 0 else poisson)

    log_px_within(
        ppl_gen.log_marginal_likelihood(model, _standard, x, num_samples=20_000),
        _integral(x, log_joint, -12, 5),
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
    model = _model(dist.Normal(_number(0.0), 1.0), likelihood)
    with pytest.raises(BadInput, match=words):
        ppl_gen.log_weights(model, _standard, torch.tensor([1.0, 4.0], dtype=DOUBLE), num_samples=20_000)


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

    exact = dist.Normal(_number(0.0), 1.0).log_prob(x.double()).sum(1)
    found = ppl_gen.log_weights(model, guide, x, num_samples=3)
    torch.testing.assert_close(found.double(), exact.expand(3, 6), rtol=1e-5, atol=1e-3)


def test_masks_that_differ_are_refused() -> None:
    """A weight without log p(z) and with log q(z | x) is none, nor the other way round."""

    def model(x: Tensor, masked: bool) -> None:
        with pyro.plate("images", len(x)):
            with pyro.poutine.mask(mask=x > 0 if masked else True):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(x > 0, z, 0 * z), 1.0), obs=x)

    def guide(x: Tensor, masked: bool) -> None:
        with pyro.plate("images", len(x)), pyro.poutine.mask(mask=True if masked else x > 0):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    for masked in (True, False):
        with pytest.raises(BadInput, match="give both the same mask"):
            ppl_gen.log_weights(model, guide, torch.linspace(-1, 1, 8), masked, num_samples=2)


def test_a_part_of_a_plate_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0))
            with pyro.plate("pixels", 4, subsample_size=2, dim=-1) as some:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, some])

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.6))

    with pytest.raises(BadInput, match="'pixels' takes 2 of 4"):
        ppl_gen.log_weights(model, guide, torch.randn(5, 4), num_samples=2)


def test_factors_alone_are_no_probability() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
            pyro.factor("x", -((x - z) ** 2))

    found = ppl_gen.log_marginal_likelihood(model, _standard, torch.zeros(3, dtype=DOUBLE), num_samples=30)
    assert found.observation == "density"


def test_an_elbo_is_minus_infinity_whatever_was_drawn() -> None:
    """A normal guide has mass below 0, where Exponential(1) has none, though none of 200 samples is there: the ELBO and
    the bounds of fewer samples are -inf, and log p(x) is right (2 images, each within 4 errors: false alarms 1e-4)."""
    prior = dist.Exponential(_number(1.0))

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x.double(), 0.9))

    x = torch.tensor([5.0, 6.0], dtype=DOUBLE)
    model = _model(prior, lambda z: dist.Normal(z, 1.0))
    torch.manual_seed(0)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, num_samples=1000)
    exact = _integral(x, lambda z, each: prior.log_prob(z) + dist.Normal(z, 1.0).log_prob(each), 0, 40)
    log_px_within(found, exact, largest=0.1)
    assert bool((found.elbo == -math.inf).all() and (found.kl == math.inf).all())
    assert [bool((found.iwae[k] == -math.inf).all()) for k in (1, 10, 100, 1000)] == [True, True, True, False]


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
        terms = Pair(model, guide, x).terms(x, num_samples=5)
    z = terms.latents["z"].squeeze(-1)
    torch.testing.assert_close(terms.log_prior, -z - (-z).exp(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.log_likelihood, (-x - (-x).exp()).expand(5, 3), rtol=1e-4, atol=1e-4)
