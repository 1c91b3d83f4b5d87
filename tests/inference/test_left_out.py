"""What a guide has besides q(z | x), and what a model leaves out: factors, observed and auxiliary sites, masks."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.objectives import bind, construct
from ppl_gen.inference.pair import Pair

F64 = torch.float64
ZERO, ONE = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
SIGMAS = 5
"""Standard errors; a false alarm once in 1.7 million numbers."""


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(5), dtype=F64)


def _model(x: Tensor, y: Tensor | None = None) -> None:
    """p(x) = N(0, 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _log_px(x: Tensor) -> Tensor:
    return torch.distributions.Normal(ZERO, math.sqrt(2)).log_prob(x)


class Guide(nn.Module):
    """The posterior N(x / 2, 1 / 2), and what does not belong to it."""

    kind = "nothing"

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if self.kind == "factor":
                loss = -7.0 * dist.Bernoulli(logits=self.slope * x).log_prob(y)
                pyro.factor("loss", loss, has_rsample=False)
            if self.kind == "factor of samples":
                z = pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))
                return pyro.factor("loss", -7.0 * dist.Bernoulli(logits=self.slope * z).log_prob(y), has_rsample=True)
            if self.kind == "observed":
                pyro.sample("t", dist.Bernoulli(logits=self.slope * x), obs=y)
            if self.kind == "observed and auxiliary":
                pyro.sample("t", dist.Bernoulli(logits=self.slope * x), obs=y, infer={"is_auxiliary": True})
            if self.kind == "scaled":
                with pyro.poutine.scale(scale=4.0):
                    pyro.sample("t", dist.Bernoulli(logits=self.slope * x), obs=y)
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))
        return None


KINDS = {"factor": "loss", "factor of samples": "loss", "observed": "t", "observed and auxiliary": "t", "scaled": "t"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_part_of_q(x: Tensor, kind: str) -> None:
    """Every weight is p(x), as the guide is the posterior; and the result says what was left out."""
    guide, y = Guide(), (x > 0).double()
    guide.kind = kind
    pair = Pair.read(_model, guide, x, y)
    assert pair.left_out == pair.penalties == (KINDS[kind],) and pair.latent == ("z",)
    found = ppl_gen.log_marginal_likelihood(_model, guide, x, y, num_samples=30)
    for each in (found.log_px, found.elbo, found.iwae[10]):
        torch.testing.assert_close(each, _log_px(x), rtol=1e-12, atol=1e-12)
    assert found.left_out == (KINDS[kind],) and f"'{KINDS[kind]}'" in str(found)


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "scaled"])
def test_training_subtracts_it_as_pyro_does(x: Tensor, kind: str) -> None:
    """Value and gradient are those of `Trace_ELBO`, from the same noise."""
    guide, y = Guide(), (x > 0).double()
    guide.kind = kind
    loss = bind(construct("elbo"), Pair.read(_model, guide, x, y), x, y)
    torch.manual_seed(1)
    ours = loss.differentiable_loss(_model, guide.guide, x, y)
    torch.manual_seed(1)
    pyros = Trace_ELBO().differentiable_loss(_model, guide.guide, x, y)
    torch.testing.assert_close(ours, pyros)
    torch.testing.assert_close(*(torch.autograd.grad(each, guide.slope) for each in (ours, pyros)))


def test_auxiliary_latents_of_a_guide(x: Tensor) -> None:
    """z ~ q(z | x, a), a ~ q(a): weights are p(x, z) / q(z | x, a), of mean p(x) for every a."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(ZERO, 0.3), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + a, 1.0))

    pair = Pair.read(_model, guide, x)
    assert pair.left_out == ("a",) and pair.penalties == () and pair.latent == ("z",)
    found = ppl_gen.log_marginal_likelihood(_model, guide, x, num_samples=4000)
    error = (found.log_px - _log_px(x)) / found.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(found.log_px_mc_var.max()) < 0.01
    unmarked = pyro.poutine.infer_config(guide, lambda site: {"is_auxiliary": None})
    with pytest.raises(BadInput, match="samples 'a', which is not a latent site"):
        ppl_gen.log_weights(_model, unmarked, x, num_samples=1)


# Values that are partly observed -----------------------------------------------------------------------------------


def _partly(x: Tensor, seen: Tensor) -> None:
    """z shared by the pixels of an image, of which some are missing."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)


def _shared(x: Tensor, seen: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        count = seen.double().sum(-1, keepdim=True)
        pyro.sample("z", dist.Normal((x * seen).sum(-1, keepdim=True) / (count + 1), (count + 1) ** -0.5))


def _with_missing(x: Tensor, seen: Tensor) -> None:
    """The guide samples missing pixels too, and z from all of them."""
    with pyro.plate("data", len(x), dim=-2):
        with pyro.plate("pixels", x.shape[1], dim=-1):
            missing = pyro.sample("x_unobserved", dist.Normal(0.2 * x.mean(-1, keepdim=True), 1.5).mask(~seen))
        whole = torch.where(seen, x, missing)
        pyro.sample("z", dist.Normal(whole.sum(-1, keepdim=True) / (x.shape[1] + 1), 0.6))


@pytest.fixture
def images(x: Tensor) -> Tensor:
    return torch.stack([x, x + 1, -x], -1)


@pytest.fixture
def seen(images: Tensor) -> Tensor:
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) < 0.6


def _exact(images: Tensor, seen: Tensor) -> Tensor:
    """log p of the observed pixels of each image."""
    found = []
    for x, mask in zip(images, seen, strict=True):
        count = int(mask.sum())
        covariance = torch.eye(count, dtype=F64) + 1
        each = dist.MultivariateNormal(torch.zeros(count, dtype=F64), covariance) if count else None
        found.append(each.log_prob(x[mask]) if each else ZERO)
    return torch.stack(found)


def test_a_guide_without_the_missing_part(images: Tensor, seen: Tensor) -> None:
    """The guide is the posterior given what is observed, so that every weight is p(x_observed)."""
    assert len(set(seen.sum(1).tolist())) > 2
    pair = Pair.read(_partly, _shared, images, seen)
    assert pair.latent == ("z",) and pair.observed == ("x_observed",) and pair.vectorized
    found = ppl_gen.log_weights(_partly, _shared, images, seen, num_samples=5)
    torch.testing.assert_close(found, _exact(images, seen).expand(5, -1), rtol=1e-12, atol=1e-12)


def test_a_guide_with_the_missing_part(images: Tensor, seen: Tensor) -> None:
    """It is a latent site then."""
    pair = Pair.read(_partly, _with_missing, images, seen)
    assert set(pair.latent) == {"z", "x_unobserved"} and pair.masked
    found = ppl_gen.log_marginal_likelihood(_partly, _with_missing, images, seen, num_samples=4000)
    error = (found.log_px - _exact(images, seen)) / found.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(found.log_px_mc_var.max()) < 0.01


# Masks of sites that are summed ------------------------------------------------------------------------------------

START, MOVE = torch.tensor([0.1, 0.9], dtype=F64), torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=F64)


def _chain(x: Tensor, seen: Tensor, marked: bool = True) -> None:
    """The first state is masked out for some images; the second one depends on it, and is observed for all."""
    infer: Any = {"enumerate": "parallel"} if marked else {}
    with pyro.plate("data", len(x)):
        with pyro.poutine.mask(mask=seen):
            first = pyro.sample("first", dist.Categorical(START), infer=infer)
            pyro.sample("x_1", dist.Normal(first.to(F64), 1.0), obs=x)
        second = pyro.sample("second", dist.Categorical(MOVE[first.long()]), infer=infer)
        pyro.sample("x_2", dist.Normal(2.0 * second.to(F64), 1.0), obs=x)


def _chain_by_hand(x: Tensor, seen: Tensor) -> Tensor:
    """A masked state has no density, and the value that its distribution draws."""
    states = torch.arange(2, dtype=F64)
    normal = torch.distributions.Normal
    one = torch.where(seen[:, None], normal(states, 1.0).log_prob(x[:, None]), ZERO) + START.log()
    two = normal(2 * states, 1.0).log_prob(x[:, None])
    return (one[:, :, None] + MOVE.log() + two[:, None]).logsumexp((1, 2))


def test_a_masked_state_that_others_depend_on(x: Tensor) -> None:
    """As by samples of the prior, and as Pyro's `TraceEnum_ELBO`: not as if each masked state were equally likely."""
    seen = torch.tensor([True, False] * 3)
    expected = _chain_by_hand(x, seen)
    torch.testing.assert_close(exact_log_px(_chain, x, seen), expected, rtol=1e-12, atol=1e-12)

    def guide(x: Tensor, seen: Tensor) -> None:
        pass

    torch.testing.assert_close(ppl_gen.log_weights(_chain, guide, x, seen, num_samples=1)[0], expected)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(_chain, guide, x, seen)
    assert -loss == pytest.approx(float(expected.sum()), rel=1e-9)
    options: Any = {"num_samples": 4000, "from_prior": True}
    found = ppl_gen.log_marginal_likelihood(_chain, guide, x, seen, **options)
    error = (found.log_px - expected) / found.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS


def test_a_masked_state_by_one_call_for_each_state(x: Tensor) -> None:
    """A model that does not broadcast over states."""
    seen = torch.tensor([True, False] * 3)

    def stubborn(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=seen):
                first = pyro.sample("first", dist.Categorical(START))
                pyro.sample("x_1", dist.Normal(first.to(F64), 1.0), obs=x)
            second = pyro.sample("second", dist.Categorical(torch.stack([MOVE[k] for k in first.tolist()])))
            pyro.sample("x_2", dist.Normal(2.0 * second.to(F64), 1.0), obs=x)

    torch.testing.assert_close(exact_log_px(stubborn, x, seen), _chain_by_hand(x, seen), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("enumerate_in", ["model", "guide"])
def test_a_masked_label_beside_a_sampled_latent(x: Tensor, enumerate_in: str) -> None:
    """Where y is masked out, the model that enumerates it draws it: p(x) is a mixture over its values everywhere. With
    a guide that enumerates it, p(x) would be a mixture with the guide's shares: refused."""
    seen, prior, q = torch.tensor([True, False] * 3), torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([0.3, 0.7])
    q = q.to(F64)

    def model(x: Tensor, seen: Tensor) -> None:
        infer: Any = {"enumerate": "parallel"} if enumerate_in == "model" else {}
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=seen):
                y = pyro.sample("y", dist.Categorical(prior), infer=infer)
            z = pyro.sample("z", dist.Normal(2.0 * y.to(F64), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if enumerate_in == "guide":
                with pyro.poutine.mask(mask=seen):
                    y = pyro.sample("y", dist.Categorical(q), infer={"enumerate": "parallel"})
                pyro.sample("z", dist.Normal((x + 2.0 * y.to(F64)) / 2, math.sqrt(0.5)))
            else:
                pyro.sample("z", dist.Normal(x / 2 + 0.5, 1.2))

    if enumerate_in == "guide":
        with pytest.raises(BadInput, match="uses values of 'y' that its mask leaves out"):
            ppl_gen.log_marginal_likelihood(model, guide, x, seen, num_samples=20)
        return
    each = torch.distributions.Normal(2 * torch.arange(2, dtype=F64), math.sqrt(2)).log_prob(x[:, None])
    expected = (each + prior.log()).logsumexp(1)
    found = ppl_gen.log_marginal_likelihood(model, guide, x, seen, num_samples=4000)
    error = (found.log_px - expected) / found.log_px_mc_var.sqrt()
    assert float(error.abs().max()) < SIGMAS and float(found.log_px_mc_var.max()) < 0.01
