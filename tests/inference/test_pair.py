"""What is known of a pair once it is read, and what it draws and scores."""

from dataclasses import FrozenInstanceError, replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian, random_mixture
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives.loss import broadcast_weights
from ppl_gen.inference.pair import Pair

F64 = torch.float64


def _model(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        with poutine.mask(mask=torch.tensor(True)):
            y = pyro.sample("y", dist.LogNormal(torch.zeros((), dtype=F64), 1.0))
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1))
        with poutine.scale(scale=0.5):
            pyro.sample("pixels", dist.Poisson(y.unsqueeze(-1) * z.exp()).to_event(1), obs=x)


def _guide(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        with poutine.mask(mask=torch.tensor(True)):
            pyro.sample("y", dist.LogNormal(x.mean(-1), 0.5))
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def test_what_is_known_of_a_pair() -> None:
    pair = Pair.read(_model, _guide, torch.ones(4, 3, dtype=F64))
    assert (pair.model_name, pair.guide_name, pair.guide_module) == ("_model", "_guide", None)
    assert (pair.plate.name, pair.max_plate_nesting, pair.sample_dim) == ("images", 1, -2)
    assert (pair.observed, pair.image, pair.latent) == (("pixels",), "pixels", ("y", "z"))
    assert pair.event_shapes == {"y": (), "z": (3,)} and pair.num_states is None
    assert pair.discrete and pair.masked and pair.reparametrized and pair.vectorized
    assert not (pair.unbounded or pair.enumerated or pair.exceeds_prior or pair.narrower or pair.scored)
    assert not pair.may_leave_support
    assert pair.scales == {"pixels": 0.5}


def test_what_is_known_of_an_enumerated_pair() -> None:
    model = random_mixture(6, components=5)
    pair = Pair.read(model, Enumerated(), torch.zeros(4, 6, dtype=F64))
    assert pair.enumerated and pair.num_states == 5 and pair.latent == ("z",)
    assert (pair.sums_states, pair.pixels_per_state) == (False, 1)
    assert isinstance(pair.guide_module, Enumerated) and pair.model == model.model


def test_a_pair_does_not_change() -> None:
    pair = Pair.read(_model, _guide, torch.ones(4, 3, dtype=F64))
    with pytest.raises(FrozenInstanceError):
        pair.vectorized = False  # type: ignore[misc]


def test_reading_leaves_nothing_behind() -> None:
    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5, dtype=F64), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            pyro.sample("y", dist.LogNormal(x.mean(-1), scale))
            pyro.sample("z", dist.Normal(x, scale).to_event(1))

    state = torch.get_rng_state()
    Pair.read(_model, guide, torch.ones(4, 3, dtype=F64))
    assert torch.equal(torch.get_rng_state(), state) and not list(pyro.get_param_store())


@pytest.mark.parametrize("vectorized", [True, False])
def test_what_is_drawn_is_scored(vectorized: bool) -> None:
    """With the exact posterior every weight is p(x), of `terms`, and of `draw` with `log_guide`; and every density is
    the one of its formula."""
    model = LinearGaussian()
    guide, x = ExactGuide(model), torch.randn(3, 5, dtype=F64)
    with evaluating(model, guide):
        pair = replace(Pair.read(model, guide, x), vectorized=vectorized)
        terms = pair.terms(x, num_samples=4)
        expected = model.log_px(x).expand(4, 3)
        torch.testing.assert_close(terms.log_weight, expected)
        torch.testing.assert_close(terms.elbo, expected[0])
        torch.testing.assert_close(terms.log_prior, model.prior().log_prob(terms.latents["z"]))
        values, log_likelihood, log_prior = pair.draw(x, num_samples=4)
        log_guide = pair.log_guide(values, x, num_samples=4)
        torch.testing.assert_close(log_likelihood + log_prior - log_guide, expected)
        z = values["z"].reshape(4, 3, 2)
        torch.testing.assert_close(log_likelihood, model.likelihood(z).log_prob(x))
        torch.testing.assert_close(log_guide, guide.posterior(x).log_prob(z))


@pytest.mark.parametrize("vectorized", [True, False])
def test_values_from_the_prior_and_moved(vectorized: bool) -> None:
    model = LinearGaussian()
    guide, x = ExactGuide(model), torch.randn(3, 5, dtype=F64)
    with evaluating(model, guide):
        pair = replace(Pair.read(model, guide, x), vectorized=vectorized)
        values, _, log_prior = pair.draw(x, num_samples=2, prior=True)
        torch.testing.assert_close(log_prior, model.prior().log_prob(values["z"].reshape(2, 3, 2)))
        moved, likelihood, _ = pair.draw(x, num_samples=2, transform=lambda all: {"z": torch.ones_like(all["z"])})
        assert bool((moved["z"] == 1).all())
        at_one = model.likelihood(torch.ones(2, dtype=F64)).log_prob(x)
        torch.testing.assert_close(likelihood, at_one.expand(2, 3))
        spread = broadcast_weights(pair, torch.arange(6.0).reshape(2, 3), "z", values["z"])
        assert (spread * values["z"]).shape == values["z"].shape
        torch.testing.assert_close(spread.flatten(), torch.arange(6.0))


def test_dreams_are_scored_by_the_guide() -> None:
    """log q(z | x') at the model's own z and x': its mean is that of log p(z | x'), here the entropy of the posterior,
    within 4 errors of 20,000 draws (false alarms 6e-5)."""
    model = LinearGaussian()
    guide, x = ExactGuide(model), torch.zeros(20_000, 5, dtype=F64)
    with evaluating(model, guide):
        found = Pair.read(model, guide, x[:4]).dream(x)
        expected = -model.posterior(x[:1]).entropy()
    assert abs(float(found.mean() - expected)) < 4 * float(found.std()) / 20_000**0.5


def test_simulated_z_are_posterior_samples_of_their_images() -> None:
    """With the exact posterior as guide, the weight of every z is p(x') of its image, to 1e-9; and z are those that the
    images were drawn with: the residuals of 500 images of 5 pixels have the noise's variance within 4.5 standard errors
    (false alarms 7e-6)."""
    model = LinearGaussian()
    guide, x = ExactGuide(model), torch.zeros(500, 5, dtype=F64)
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:4])
        images, drawn = pair.draw_images(x)
        terms = pair.terms_at(drawn, images)
        torch.testing.assert_close(terms.log_weight[0], model.log_px(images), rtol=0, atol=1e-9)
        residuals = (images - terms.latents["z"][0] @ model.weight.T) / model.noise
    assert abs(float(residuals.square().mean()) - 1) < 4.5 * (2 / 2500) ** 0.5


def test_a_model_that_draws_nothing_has_no_dreams() -> None:
    pair = Pair.read(_model, _guide, torch.ones(4, 3, dtype=F64))
    with pytest.raises(BadInput, match=r"_model cannot draw images: model\(x=None, n=4\)"):
        pair.dream(torch.ones(4, 3, dtype=F64))
