"""Hidden pixels given visible ones. Truth is summed out by brute force in float64."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import ExactGuide, LinearGaussian
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.bernoulli import Bernoulli
from ppl_gen.inference.imputation import exact_imputation, importance_imputation, visible_part
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture

F64 = torch.float64

PIXELS = 7

VISIBLE = torch.tensor([True, False, True, True, False, False, True])


class StockMixture(Mixture):
    """With Pyro's own Bernoulli, which has no `select`."""

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=self.weight[z] + self.bias).to_event(1)


def _model(name: str) -> Any:
    model: Any
    if name == "belief-net":
        model = BeliefNet(PIXELS, latent_dim=3)
    else:
        model = {"mixture": Mixture, "stock": StockMixture}[name](PIXELS, num_components=3)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1.5)
    return model


def _joint(model: Any, x: Tensor) -> Tensor:
    """p(x, z), [states, images], state by state and pixel by pixel."""
    if isinstance(model, BeliefNet):
        states = [torch.tensor(bits, dtype=F64) for bits in itertools.product([0.0, 1.0], repeat=3)]
        on = model.logits.sigmoid()
        rows = [(torch.where(z == 1, on, 1 - on).prod(), (z @ model.weight + model.bias).sigmoid()) for z in states]
    else:
        weights = (0.1 * model.level).softmax(0)
        rows = [(weights[k], (model.weight[k] + model.bias).sigmoid()) for k in range(3)]
    return torch.stack([weight * torch.where(x == 1, p, 1 - p).prod(-1) for weight, p in rows]).detach()


def _conditional(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x_h | x_v) [images] and E[x_h | x_v] [images, hidden]: sums over all z and all hidden pixels."""
    hidden = int((~VISIBLE).sum())
    values = torch.tensor(list(itertools.product([0.0, 1.0], repeat=hidden)), dtype=F64)
    log_probs, means = [], []
    for image in x:
        completed = image.repeat(len(values), 1)
        completed[:, ~VISIBLE] = values
        p = _joint(model, completed).sum(0)
        log_probs.append((_joint(model, image[None]).sum() / p.sum()).log())
        means.append(p @ values / p.sum())
    return torch.stack(log_probs), torch.stack(means)


@pytest.mark.parametrize("name", ["mixture", "stock", "belief-net"])
def test_exact_imputation_is_the_sum_over_everything_hidden(name: str) -> None:
    model, x = _model(name), torch.bernoulli(torch.full((6, PIXELS), 0.5, dtype=F64))
    log_prob, mean = _conditional(model, x)
    draws = 4000
    found = exact_imputation(model, x, VISIBLE, draws)
    torch.testing.assert_close(found.log_prob, log_prob)
    torch.testing.assert_close(found.mean[:, ~VISIBLE], mean)
    assert torch.equal(found.mean[:, VISIBLE], x[:, VISIBLE])
    assert found.draws.shape == (draws, 6, PIXELS) and found.importance is None
    assert torch.equal(found.draws[:, :, VISIBLE], x[:, VISIBLE].expand(draws, -1, -1))
    # Frequencies of the draws, 18 of them, and correlations between hidden pixels: beyond 4.5 standard errors once in
    # 4,000 runs of this test.
    drawn = found.draws[:, :, ~VISIBLE]
    assert ((drawn.mean(0) - mean).abs() <= 4.5 * (mean * (1 - mean) / draws).sqrt()).all()
    both = x.clone()
    product = drawn[:, 0, 0] * drawn[:, 0, 1]
    hidden = (~VISIBLE).nonzero().flatten()[:2]
    both[0, hidden] = 1.0
    rest = (~VISIBLE).nonzero().flatten()[2:]
    total = 0.0
    for value in (0.0, 1.0):
        both[0, rest] = value
        total += float(_joint(model, both[:1]).sum())
    expected = total / float(_joint(model, x[:1]).sum() / log_prob[0].exp())
    assert abs(float(product.mean()) - expected) <= 4.5 * (expected * (1 - expected) / draws) ** 0.5


@pytest.mark.parametrize("name", ["mixture", "belief-net"])
def test_states_of_visible_pixels(name: str) -> None:
    model, x = _model(name), torch.bernoulli(torch.full((6, PIXELS), 0.5, dtype=F64))
    found = exact_imputation(model, x, VISIBLE)
    states = model.prior().enumerate_support(expand=False)
    likelihood = model.likelihood(states.unsqueeze(1)).select(VISIBLE)
    log_joint = likelihood.log_prob(x[:, VISIBLE]) + model.prior().log_prob(states).unsqueeze(-1)
    probabilities = log_joint.softmax(0)
    mean = torch.einsum("ki,kd->id", probabilities, model.likelihood(states).mean)
    torch.testing.assert_close(found.mean[:, ~VISIBLE], mean[:, ~VISIBLE])


def test_importance_imputation_of_a_belief_net() -> None:
    """Three images and four standard errors: a false alarm once in 5,000 seeds."""
    model, x = _model("belief-net"), torch.bernoulli(torch.full((3, PIXELS), 0.5, dtype=F64))
    guide = Bernoulli(PIXELS, torch.full((PIXELS,), 0.5), 3, "z").double()
    log_prob, mean = _conditional(model, x)
    filler = torch.full((PIXELS,), 0.5, dtype=F64)
    found = importance_imputation(model, guide, x, VISIBLE, filler, 20_000, 2)
    assert found.importance is not None
    whole, seen = found.importance
    error = (whole.log_px_mc_var + seen.log_px_mc_var).sqrt()
    assert ((found.log_prob - log_prob).abs() <= 4 * error).all() and (error < 0.1).all()
    # Self-normalized weights at an effective sample size: E[x] within 4.5 of the errors of as many draws.
    spread = (mean * (1 - mean) / seen.ess[:, None]).sqrt()
    assert ((found.mean[:, ~VISIBLE] - mean).abs() <= 4.5 * spread).all()
    assert found.draws.shape == (2, 3, PIXELS)


def test_importance_imputation_of_a_linear_gaussian() -> None:
    """The proposal is refined, since z can be reparametrized; p(x_h | x_v) is a Gaussian in closed form. Four images
    and four standard errors: a false alarm once in 4,000 seeds."""
    model = LinearGaussian()
    guide = ExactGuide(model, widen=1.3)
    visible = torch.tensor([True, True, False, True, False])
    x = model.model(n=4).detach()
    filler = torch.zeros(5, dtype=F64)
    found = importance_imputation(model, guide, x, visible, filler, 5000)
    covariance = (model.weight @ model.weight.T + model.noise**2 * torch.eye(5, dtype=F64)).detach()
    seen = dist.MultivariateNormal(torch.zeros(3, dtype=F64), covariance[visible][:, visible])
    expected = model.log_px(x).detach() - seen.log_prob(x[:, visible])
    assert found.importance is not None
    error = sum(estimates.log_px_mc_var for estimates in found.importance).sqrt()  # type: ignore[union-attr]
    assert ((found.log_prob - expected).abs() <= 4 * error).all() and (error < 0.05).all()
    mean = x[:, visible] @ torch.linalg.solve(covariance[visible][:, visible], covariance[visible][:, ~visible])
    torch.testing.assert_close(found.mean[:, ~visible], mean, atol=0.15, rtol=0)
    # Unrefined, the guide takes the filler for pixels; refined, its weights vary less.
    with torch.no_grad():
        q = guide.posterior(torch.where(visible, x, filler))
        z = q.sample(torch.Size((5000,)))
        part, pixels = visible_part(model.likelihood(z), torch.where(visible, x, torch.nan))
        share = (model.prior().log_prob(z) + part.log_prob(pixels) - q.log_prob(z)).softmax(0)
    assert (found.importance[1].ess > 1.2 / share.square().sum(0)).all()


@pytest.mark.parametrize("name", ["mixture", "stock", "belief-net"])
@pytest.mark.parametrize("known", [True, False])
def test_every_image_may_hide_other_pixels(name: str, known: bool) -> None:
    """Each image alone, with its own mask for all, has the same result."""
    model, x = _model(name), torch.bernoulli(torch.full((6, PIXELS), 0.5, dtype=F64))
    visible = torch.rand(6, PIXELS) < 0.5
    found = exact_imputation(model, x if known else torch.where(visible, x, 0.0), visible, known=known)
    for image in range(6):
        alone = exact_imputation(model, x[image : image + 1], visible[image])
        torch.testing.assert_close(found.mean[image : image + 1], alone.mean)
        torch.testing.assert_close(found.log_px_visible[image : image + 1], alone.log_px_visible)
        if known:
            assert found.log_px is not None and alone.log_px is not None
            torch.testing.assert_close(found.log_px[image : image + 1], alone.log_px)
    assert known or (found.log_px is None and found.log_prob is None)


def test_pixels_that_depend_on_each_other_given_z_are_refused() -> None:
    likelihood = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    with pytest.raises(BadInput, match="independent of the others given z"):
        visible_part(likelihood, torch.tensor([[0.0, torch.nan, 0.0], [0.0, torch.nan, 0.0]]))


class TwoSided(nn.Module):
    """z and -z are alike given the first eight pixels; the others tell them apart."""

    def prior(self) -> Any:
        return dist.Normal(torch.zeros(1, dtype=F64), 2.0).to_event(1)

    def likelihood(self, z: Tensor) -> Any:
        return dist.Bernoulli(logits=torch.cat([2 * z.abs().expand(*z.shape[:-1], 8) - 6, 4 * z], -1)).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.likelihood(pyro.sample("z", self.prior())), obs=x)


class OneSided(nn.Module):
    """q(z | x) knows z > 0 alone."""

    def encode(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 1), 3.8, dtype=F64)

    def posterior(self, context: Tensor) -> Any:
        return dist.Normal(context, 1.0).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


def test_a_guide_that_misses_half_of_the_posterior() -> None:
    """log p(x_v) is log 2 too low with k-hat below 0.7, and the second opinion finds it."""
    model, guide, x = TwoSided(), OneSided(), torch.ones(40, 9, dtype=F64)
    visible = torch.arange(9) < 8
    z = torch.linspace(-20, 20, 4001, dtype=F64).unsqueeze(-1)
    joint = model.prior().log_prob(z) + model.likelihood(z).base_dist.log_prob(x[0])[:, :8].sum(-1)
    true = float(joint.logsumexp(0)) + math.log(0.01)
    found = importance_imputation(model, guide, x, visible, torch.zeros(9, dtype=F64), num_samples=2000)
    assert found.importance is not None
    whole, seen = found.importance
    assert whole is not None
    assert float(seen.khat.max()) < 0.7 and bool(seen.untrusted.all()) and seen.at_least
    assert abs(float(seen.log_px.mean()) - (true - math.log(2))) < 0.05
