"""The lower half of an image given the upper half, against sums written out over all states."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairs import log_px_within
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.conditional_prior import ConditionalPrior
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.guides.hierarchical_bernoulli import HierarchicalBernoulli
from ppl_gen.inference import objectives
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.pair import Pair
from ppl_gen.models.structured_belief_net import StructuredBeliefNet
from ppl_gen.models.vae import VAE
from ppl_gen.networks.state_sums import binary_states
from ppl_gen.run import Run

SHAPE = (3, 3)  # of which the upper half is one row
SIZES: list[dict[str, Any]] = [
    {"latent_dims": (3,)},
    {"latent_dims": (3, 2)},
    {"latent_dims": (2, 3), "hidden_dims": (4,)},
]


def _make(**options: Any) -> StructuredBeliefNet:
    torch.manual_seed(2)
    model = StructuredBeliefNet(SHAPE, torch.full((9,), 0.4), **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def _log_prob(bits: Tensor, logits: Tensor) -> Tensor:
    bits, logits = torch.broadcast_tensors(bits, logits)
    return -F.binary_cross_entropy_with_logits(logits, bits, reduction="none").sum(-1)


def _brute_force(model: StructuredBeliefNet, x: Tensor) -> Tensor:
    """log p(x_lower | x_upper) [images], by one term for each joint state of all layers."""
    upper, lower, terms = x[:, :3] - model.upper_mean, x[:, 3:], []
    for states in itertools.product(*(binary_states(units, torch.float64) for units in model.latent_dims)):
        log_joint, before = torch.zeros(len(x), dtype=torch.float64), upper
        for state, net in zip(states, model.layers, strict=False):
            log_joint = log_joint + _log_prob(state, net(before))
            before = state.expand(len(x), -1)
        terms.append(log_joint + _log_prob(lower, model.layers[-1](before)))
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("options", SIZES)
def test_exact_log_px_and_its_gradient(options: dict[str, Any]) -> None:
    """By enumeration of all layers. Over all lower halves, the probabilities given an upper half add up to 1."""
    model, x = _make(**options), binary_states(9, torch.float64)
    truth = _brute_force(model, x)
    torch.testing.assert_close(exact_log_px(model, x), truth.detach(), rtol=1e-11, atol=1e-11)
    upper = (x[:, :3] @ torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).long()
    sums = torch.zeros(8, dtype=torch.float64).index_add_(0, upper, truth.detach().exp())
    torch.testing.assert_close(sums, torch.ones_like(sums))
    few = x[::37]
    pair = Pair.read(model, Enumerated(), few)
    loss = objectives.bind(objectives.construct("elbo"), pair, few).differentiable_loss(pair.model, pair.guide, few)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(-_brute_force(model, few).sum(), parameters)
    for ours, true in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-9)


def _amortized(model: StructuredBeliefNet) -> nn.Module:
    return HierarchicalBernoulli(9, torch.full((9,), 0.4), model).double()


@pytest.mark.parametrize("options", SIZES)
@pytest.mark.parametrize("make", [ConditionalPrior, _amortized])
def test_importance_sampling(make: Any, options: dict[str, Any]) -> None:
    """From p(z | x_upper), and from a guide that sees the whole image."""
    model = _make(**options)
    x = torch.bernoulli(torch.full((4, 9), 0.5, dtype=torch.float64))
    found = log_marginal_likelihood(model, make(model), x, num_samples=4000)
    log_px_within(found, _brute_force(model, x).detach(), largest=0.1)


@pytest.mark.parametrize("name", ["vimco", "rloo"])
def test_gradient_where_guide_and_model_share_networks(name: str) -> None:
    """The mean over 20 batches of 1,000 copies of an image is the gradient of E[L_2], or of the ELBO, from all pairs of
    states, within 7 standard errors of each number: false alarms of 1.2e-6 each (Student, 19 degrees of freedom)."""
    model = _make(latent_dims=(2,))
    x = torch.bernoulli(torch.full((1, 9), 0.5, dtype=torch.float64))
    pair = Pair.read(model, ConditionalPrior(model), x)
    bound = objectives.bind(objectives.construct(name, num_particles=2), pair, x)
    states = binary_states(2, torch.float64)
    log_q, log_p = (
        _log_prob(states, model.layers[0](x[:, :3] - model.upper_mean)),
        _log_prob(x[:, 3:], model.layers[1](states)),
    )
    both = torch.stack([log_p[:, None].expand(4, 4), log_p.expand(4, 4)])
    value = both.logsumexp(0) - math.log(2) if name == "vimco" else both.mean(0)
    expectation = ((log_q[:, None] + log_q).exp() * value).sum()
    parameters = list(model.parameters())
    found, many = [], x.expand(1000, -1)
    for _ in range(20):
        loss = bound.differentiable_loss(pair.model, pair.guide, many) / len(many)
        found.append(torch.autograd.grad(loss, parameters))
    for ours, true in zip(zip(*found, strict=True), torch.autograd.grad(-expectation, parameters), strict=True):
        draws = torch.stack(ours)
        error = draws.std(0) / len(draws) ** 0.5
        assert bool(((draws.mean(0) - true).abs() <= 7 * error + 1e-9).all())


@pytest.mark.parametrize("guide", ["conditional-prior", "hierarchical-bernoulli"])
def test_fitted(guide: str) -> None:
    run = Run.fit(
        "structured-belief-net", guide=guide, data="digits", train_size=100, epochs=3, quiet=True,
        num_samples=50, objective="vimco", num_particles=3, model_options={"latent_dims": (6, 4)},
    )  # fmt: skip
    assert run.metrics["validation.elbo"].iloc[-1] > run.metrics["validation.elbo"].iloc[0]
    assert "log p(x_lower | x_upper)  " in str(run.evaluation) and "log p(x)" not in str(run.evaluation)


def test_drawn_images_have_the_upper_halves_of_training_images() -> None:
    examples = torch.bernoulli(torch.full((2, 9), 0.5))
    model = StructuredBeliefNet(SHAPE, data_examples=examples, latent_dims=(3,))
    torch.testing.assert_close(model.model(n=5)[:, :3], examples[[0, 1, 0, 1, 0], :3])
    assert 0 < float(model.model(n=500)[:, 3:].mean()) < 1


@pytest.mark.parametrize("quantity, name", [("log p(x | c)", "log p(x | c)"), (3, "log p(x)"), (len, "log p(x)")])
def test_a_model_may_name_what_is_evaluated(quantity: Any, name: str) -> None:
    """Anything but a text of this name has another meaning."""
    model = type("Own", (VAE,), {"quantity": quantity})
    run = Run.fit(model, data="digits", train_size=100, epochs=1, quiet=True, num_samples=20)
    assert f"{name}  " in str(run.evaluation)


def test_what_has_no_halves() -> None:
    with pytest.raises(BadInput, match="have no upper and lower half"):
        StructuredBeliefNet((1, 9))
    with pytest.raises(BadInput, match="needs a model with draw_units"):
        ConditionalPrior(VAE((8, 8)))
    assert StructuredBeliefNet((5,)).upper.tolist() == [0, 1]
    assert StructuredBeliefNet((2, 2, 2)).upper.tolist() == [0, 1, 4, 5]
