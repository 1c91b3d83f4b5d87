"""Log-densities of observed pixels, against sums over the pixels one by one."""

import itertools
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.networks.distributions import BernoulliVector, ContinuousBernoulli, LinearBernoulliVector
from ppl_gen.networks.observed import filled, mean_of, observed_log_prob, observed_part

PIXELS = 5
NAN = torch.nan


def _one_by_one(pixel: Any, x: Tensor) -> Tensor:
    """The sum over the observed pixels of one image, in a loop.

    :param pixel: returns the distribution of a pixel.
    """
    seen = [pixel(d).log_prob(x[d]) for d in range(PIXELS) if not x[d].isnan()]
    return torch.stack(seen).sum() if seen else torch.tensor(0.0)


def _with_missing(x: Tensor) -> Tensor:
    missing = torch.rand(x.shape) < 0.5
    missing[0], missing[1] = True, False  # an image without any pixel, and a complete one
    return x.masked_fill(missing, NAN)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("of_states", [True, False])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("kind", [BernoulliVector, dist.Bernoulli])
def test_binary_pixels(kind: Any, scale: float, of_states: bool, grad: bool) -> None:
    x = _with_missing(torch.bernoulli(torch.full((6, PIXELS), 0.5)))
    logits = scale * torch.randn((3, 1, PIXELS) if of_states else (6, PIXELS))
    with torch.set_grad_enabled(grad):
        made = kind(logits=logits.requires_grad_(grad))
        likelihood = made if kind is BernoulliVector else made.to_event(1)
        found = observed_log_prob(likelihood, x)
    rows = logits.expand(-1, 6, -1) if of_states else logits.expand(1, -1, -1)
    for state, image in itertools.product(range(len(rows)), range(6)):
        expected = _one_by_one(lambda d, of=rows[state, image]: dist.Bernoulli(logits=of[d]), x[image])
        ours = found[state, image] if of_states else found[image]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if grad:
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        residual = torch.where(x.isnan(), 0.0, x.nan_to_num() - rows.sigmoid())
        torch.testing.assert_close(gradient, residual.sum(1, keepdim=True) if of_states else residual[0])


def test_the_states_of_a_belief_net() -> None:
    states = BernoulliVector(torch.zeros(3)).enumerate_support().unsqueeze(1)
    likelihood = LinearBernoulliVector(states, torch.randn(3, PIXELS), torch.randn(PIXELS))
    x = _with_missing(torch.bernoulli(torch.full((6, PIXELS), 0.5)))
    plain = dist.Bernoulli(logits=states @ likelihood.weight + likelihood.bias).to_event(1)
    torch.testing.assert_close(observed_log_prob(likelihood, x), observed_log_prob(plain, x))


def test_a_belief_net_of_too_many_states_is_refused() -> None:
    states = BernoulliVector(torch.zeros(20)).enumerate_support(expand=False).unsqueeze(1)
    likelihood = LinearBernoulliVector(states, torch.zeros(20, 784), torch.zeros(784))
    with pytest.raises(BadInput, match="logits of every state"):
        observed_part(likelihood, torch.ones(2, 784, dtype=torch.bool))


@pytest.mark.parametrize(
    "likelihood",
    [
        lambda p: dist.Normal(p, 0.3),
        lambda p: ContinuousBernoulli(logits=p),
        lambda p: dist.Beta(p.exp(), 2.0),  # -inf at 0, with a gradient that is NaN
        lambda p: dist.LogNormal(p, 1.0),
        lambda p: dist.Normal(p, 0.3).mask(torch.tensor([True, True, False, True, True])),
    ],
)
def test_grey_pixels(likelihood: Any) -> None:
    x = _with_missing(torch.rand(6, PIXELS))
    parameter = torch.randn(6, PIXELS, requires_grad=True)
    found = observed_log_prob(likelihood(parameter).to_event(1), x)
    pixels = likelihood(parameter.detach()).log_prob(x.nan_to_num(0.5))
    torch.testing.assert_close(found, torch.where(x.isnan(), 0.0, pixels).sum(1))
    (gradient,) = torch.autograd.grad(found.sum(), parameter)
    assert gradient.isfinite().all() and (gradient[x.isnan()] == 0).all()


def test_levels_and_channels() -> None:
    logits, x = torch.randn(2, 3, PIXELS, 4), torch.randint(4, (2, 3, PIXELS)).float()
    x[0, 1], x[1, :, 2] = NAN, NAN
    found = observed_log_prob(dist.Categorical(logits=logits).to_event(2), x)
    terms = dist.Categorical(logits=logits).log_prob(x.nan_to_num(0))
    torch.testing.assert_close(found, torch.where(x.isnan(), 0.0, terms).sum((1, 2)))
    vectors = BernoulliVector(logits[..., 0]).to_event(1)
    binary = torch.where(x.isnan(), NAN, (x > 1).float())
    torch.testing.assert_close(
        observed_log_prob(vectors, binary), observed_log_prob(dist.Bernoulli(logits=logits[..., 0]).to_event(2), binary)
    )


def test_masks_add_up() -> None:
    first, second = torch.tensor([True, True, False, True, False]), torch.tensor([True, False, True, True, False])
    both = BernoulliVector(torch.randn(PIXELS)).observed(first).observed(second)
    part = BernoulliVector(both.logits).observed(first & second)
    x = torch.ones(PIXELS)
    assert both.log_prob(x) == part.log_prob(x) == both.select(first).log_prob(x[first])
    assert both.expand((3,)).log_prob(x).shape == (3,)


@pytest.mark.parametrize(
    "likelihood",
    [
        dist.MultivariateNormal(torch.zeros(PIXELS), torch.eye(PIXELS)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, PIXELS), 1.0).to_event(1)),
    ],
)
def test_pixels_that_depend_on_each_other_are_refused(likelihood: Any) -> None:
    x = torch.zeros(2, PIXELS)
    assert observed_log_prob(likelihood, x).shape == (2,)
    x[0, 0] = NAN
    with pytest.raises(BadInput, match="independent of the others given z"):
        observed_log_prob(likelihood, x)


def test_fillers_are_values_of_the_distribution() -> None:
    x, observed = torch.tensor([1.0, NAN]), torch.tensor([True, False])
    assert filled(dist.Bernoulli(torch.full((2,), 0.5)), x, observed).tolist() == [1.0, 0.0]
    assert filled(dist.Beta(torch.ones(2), 1.0), x, observed).tolist() == [1.0, 0.5]


def test_a_likelihood_without_a_mean() -> None:
    """Pyro knows no mean of a transformed distribution."""
    base = dist.Normal(torch.zeros(3), 1.0)
    assert mean_of(base.to_event(1), "fill").equal(torch.zeros(3))
    transformed = dist.TransformedDistribution(base, [dist.transforms.SigmoidTransform()])
    with pytest.raises(
        BadInput, match=r"fill needs the mean of p\(x \| z\), which TransformedDistribution does not know"
    ):
        mean_of(transformed.to_event(1), "fill")
