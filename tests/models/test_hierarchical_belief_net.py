"""The sigmoid belief net with several layers, and its guide, against sums written out over all states."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pairs import log_px_within
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.guides.hierarchical_bernoulli import HierarchicalBernoulli
from ppl_gen.inference import objectives
from ppl_gen.inference.exact import exact_log_px
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.pair import Pair
from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet
from ppl_gen.models.vae import VAE
from ppl_gen.networks.state_sums import binary_states
from ppl_gen.run import Run

PIXELS = 5
DATA = DataOptions(data="digits", train_size=100)
SHAPES: list[dict[str, Any]] = [
    {"latent_dims": (3,)},
    {"latent_dims": (3, 2)},
    {"latent_dims": (2, 3, 2), "hidden_dims": (4, 3)},
]


def _make(**options: Any) -> tuple[HierarchicalBeliefNet, HierarchicalBernoulli]:
    torch.manual_seed(2)
    model = HierarchicalBeliefNet(PIXELS, **options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model, HierarchicalBernoulli(PIXELS, torch.full((PIXELS,), 0.4), model).double()


def _log_prob(bits: Tensor, logits: Tensor) -> Tensor:
    return -F.binary_cross_entropy_with_logits(logits.expand_as(bits), bits, reduction="none").sum(-1)


def _brute_force(model: HierarchicalBeliefNet, x: Tensor) -> Tensor:
    """log p(x) [images], by one term for each joint state of all layers."""
    terms = []
    for state in itertools.product(*(binary_states(units, torch.float64) for units in model.latent_dims)):
        log_joint = _log_prob(state[-1], model.top)
        for number, (upper, lower) in enumerate(zip(state[1:], state[:-1], strict=True), 1):
            log_joint = log_joint + _log_prob(lower, model.layers[number](upper))
        terms.append(log_joint + _log_prob(x, model.layers[0](state[0])))
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("options", SHAPES)
def test_exact_log_px_and_its_gradient(options: dict[str, Any]) -> None:
    """By enumeration of all layers: for every image there is, and as the loss of training without a guide."""
    model, _ = _make(**options)
    x = binary_states(PIXELS, torch.float64)
    truth = _brute_force(model, x)
    found = exact_log_px(model, x)
    torch.testing.assert_close(found, truth.detach(), rtol=1e-11, atol=1e-11)
    assert abs(found.logsumexp(0).item()) < 1e-10
    pair = Pair.read(model, Enumerated(), x)
    loss = objectives.bind(objectives.construct("elbo"), pair, x).differentiable_loss(pair.model, pair.guide, x)
    torch.testing.assert_close(loss, -truth.sum(), rtol=1e-11, atol=1e-11)
    parameters = list(model.parameters())
    for ours, true in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(-truth.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [*SHAPES, {"latent_dims": (2, 3), "categories": 3}])
def test_importance_sampling_and_objectives(options: dict[str, Any]) -> None:
    """Within the errors of estimates of 4 images; every objective for discrete z trains every network."""
    model, guide = _make(**options)
    x = torch.bernoulli(torch.full((4, PIXELS), 0.5, dtype=torch.float64))
    if "categories" not in options:
        found = log_marginal_likelihood(model, guide, x, num_samples=4000)
        log_px_within(found, _brute_force(model, x).detach(), largest=0.1)
    pair = Pair.read(model, guide, x)
    assert pair.vectorized and not pair.reparametrized
    assert model.model(n=7).shape == (7, PIXELS)
    networks = [*model.parameters(), *guide.layers.parameters()]
    for name, count in (("elbo", 1), ("vimco", 3), ("rws", 3)):
        elbo = objectives.bind(objectives.construct(name, num_particles=count), pair, x)
        loss = elbo.differentiable_loss(pair.model, pair.guide, x)
        assert all(bool((g != 0).any()) for g in torch.autograd.grad(loss, networks)), name


def test_one_hot_units() -> None:
    """log p(x, z) and log q(z | x) of drawn z are the entries of softmaxes."""
    model, guide = _make(latent_dims=(2, 3), categories=3)
    x = torch.bernoulli(torch.full((4, PIXELS), 0.5, dtype=torch.float64))
    drawn = poutine.trace(guide.guide).get_trace(x)
    joint = poutine.trace(poutine.replay(model.model, trace=drawn)).get_trace(x)
    z1, z2 = (drawn.nodes[name]["value"] for name in ("z1", "z2"))
    assert z1.shape == (4, 2, 3) and z2.shape == (4, 3, 3) and bool((z1.sum(-1) == 1).all())

    def log_prob(z: Tensor, logits: Tensor) -> Tensor:
        return (logits.unflatten(-1, z.shape[-2:]).log_softmax(-1) * z).sum()

    expected = log_prob(z2, model.top) + log_prob(z1, model.layers[1](z2.flatten(1)))
    expected = expected + _log_prob(x, model.layers[0](z1.flatten(1))).sum()
    torch.testing.assert_close(joint.log_prob_sum(), expected)
    by_guide = log_prob(z1, guide.layers[0](x - 0.4)) + log_prob(z2, guide.layers[1](z1.flatten(1)))
    torch.testing.assert_close(drawn.log_prob_sum(), by_guide)


def test_sizes() -> None:
    """The networks of Tucker et al. (2017): one nonlinear layer of 200 units has 200-200-200-784 and its mirror."""
    model = HierarchicalBeliefNet(784, latent_dims=(200,), hidden_dims=(200, 200))
    guide = HierarchicalBernoulli(784, torch.full((784,), 0.1), model, baseline="none")
    assert [tuple(p.shape) for p in model.layers.parameters() if p.dim() == 2] == [(200, 200), (200, 200), (784, 200)]
    assert [tuple(p.shape) for p in guide.parameters() if p.dim() == 2] == [(200, 784), (200, 200), (200, 200)]
    for options in ({"latent_dims": ()}, {"hidden_dims": (0,)}, {"categories": 1}):
        with pytest.raises(BadInput, match=next(iter(options))):
            HierarchicalBeliefNet(784, **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="needs a model with latent_dims, but VAE has none"):
        HierarchicalBernoulli(64, torch.full((64,), 0.5), VAE((8, 8)))


def test_guides_that_do_not_fit(tmp_path: Path) -> None:
    """One-hot units cannot be listed, and a guide of Gaussian layers asks for another model."""
    config = Config("hierarchical-belief-net", {"latent_dims": (3,), "categories": 3}, "enumerated", data=DATA)
    with pytest.raises(BadInput, match="not every one has a finite support that Pyro can list"):
        Run.start(config, out=tmp_path / "run")
    with pytest.raises(BadInput, match="needs a model with hidden_dims"):
        Run.start(Config("hierarchical-belief-net", {}, "hierarchical", data=DATA), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
