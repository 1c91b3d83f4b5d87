"""All images under Pyro's checks: what is refused, and what p(x) is of the others."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import number, one_site, standard_guide
from torch import Tensor

import ppl_gen
from ppl_gen.core.errors import BadInput

DOUBLE = torch.float64


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
    model = one_site(dist.Normal(number(0.0), 1.0), likelihood)
    with pytest.raises(BadInput) as error:
        ppl_gen.log_marginal_likelihood(model, standard_guide, torch.tensor(x), num_samples=10)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_one_image_of_many() -> None:
    """All images are looked at, not only those that a pair is read on."""
    x = torch.zeros(1200)
    x[1100] = 2.0
    model = one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Bernoulli(logits=z))
    with pytest.raises(BadInput, match="image 1100 is impossible"):
        ppl_gen.log_weights(model, standard_guide, x, num_samples=1)


def test_a_bad_argument_for_one_image() -> None:
    """A scale of the guide that is negative for one image of many is refused, though a normal's density takes it."""

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0 - x))

    x = torch.zeros(300, dtype=DOUBLE)
    x[250] = 3.0
    with pytest.raises(BadInput, match="parameter scale"):
        ppl_gen.log_weights(
            one_site(dist.Normal(number(0.0), 1.0), lambda z: dist.Normal(z, 1.0)), guide, x, num_samples=2
        )


MARKS = {
    "binary": (lambda z: dist.Bernoulli(logits=z), BINARY, "probability", ""),
    "counts": (lambda z: dist.Poisson(z.exp()), torch.tensor([0.0, 3.0, 7.0]), "probability", ""),
    "grey": (lambda z: dist.Bernoulli(logits=z), torch.tensor([0.0, 0.5, 1.0]), "cross-entropy", "do not bound"),
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
        "do not bound",
    ),
    "real": (lambda z: dist.Normal(z, 1.0), torch.tensor([-1.0, 0.3, 7.0]), "density", "densities"),
}


@pytest.mark.parametrize("name", MARKS)
def test_what_p_of_x_is(name: str) -> None:
    """The result says it, and is printed with it, as the commands' tables are."""
    likelihood, x, observation, words = MARKS[name]
    found = ppl_gen.log_marginal_likelihood(
        one_site(dist.Normal(number(0.0), 1.0), likelihood), standard_guide, x, num_samples=30
    )
    assert found.observation == observation
    assert words in str(found) and len(str(found).splitlines()) == 4 + bool(words) + ("may be unseen" in str(found))


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


@pytest.mark.parametrize("part", ["image", "unit"])
def test_values_that_a_mask_leaves_out_must_not_be_used(part: str) -> None:
    """Neither p(z) nor q(z | x) counts them: log p(x) would depend on how the guide draws them. A model that puts a
    constant in their place has a log p(x), here that of a Normal."""

    def masked(prior: dist.Normal, x: Tensor) -> tuple[dist.Distribution, Tensor]:
        """A prior with a mask on images, or on the second unit of some, and the units that it keeps."""
        kept = torch.stack([torch.ones_like(x) > 0, x > 0], -1)
        if part == "unit":
            return prior.mask(kept).to_event(1), kept
        return prior.to_event(1).mask(kept.all(-1)), kept.all(-1, keepdim=True)

    def model(x: Tensor, constant: bool) -> None:
        prior, kept = masked(dist.Normal(torch.zeros(len(x), 2, dtype=DOUBLE), 1.0), x)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", prior)
            if constant:
                z = torch.where(kept, z, 0.0)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor, constant: bool) -> None:
        proposal, _ = masked(dist.Normal((x / 3)[:, None].expand(-1, 2), 1.2), x)
        with pyro.plate("images", len(x)):
            pyro.sample("z", proposal)

    x = torch.tensor([0.3, -0.4], dtype=DOUBLE)
    with pytest.raises(BadInput, match="uses values of 'z' that its mask leaves out"):
        ppl_gen.log_weights(model, guide, x, False, num_samples=2)
    weights = ppl_gen.log_weights(model, guide, x, True, num_samples=4000)
    seen = torch.tensor([2.0, 0.0 if part == "image" else 1.0], dtype=DOUBLE)
    truth = dist.Normal(0.0, (1 + seen).sqrt()).log_prob(x)
    weight = (weights - truth).exp()
    # Two images, each mean within 4 standard errors: a false alarm in 1 of 8,000 seeds.
    assert ((weight.mean(0) - 1).abs() <= 4 * weight.std(0) / 4000**0.5 + 1e-9).all()


def test_factors_alone_are_no_probability() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0))
            pyro.factor("x", -((x - z) ** 2))

    found = ppl_gen.log_marginal_likelihood(model, standard_guide, torch.zeros(3, dtype=DOUBLE), num_samples=30)
    assert found.observation == "unnormalized"
