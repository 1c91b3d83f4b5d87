"""The hierarchical VAE and its guide."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pairs import log_px_within
from torch import Tensor

from ppl_gen.core.components import construct, find
from ppl_gen.core.errors import BadInput
from ppl_gen.guides.hierarchical import Hierarchical
from ppl_gen.inference import objectives
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.pair import Pair
from ppl_gen.models.hierarchical_vae import HierarchicalVAE

PIXELS = 6


def _make(latent_dims: tuple[int, ...]) -> tuple[Any, Hierarchical, Tensor]:
    torch.manual_seed(2)
    model = HierarchicalVAE(PIXELS, latent_dims=latent_dims, hidden_dims=(5,) * len(latent_dims)).double()
    return model, Hierarchical(PIXELS, model).double(), torch.randint(2, (4, PIXELS)).double()


def test_log_px_is_that_of_quadrature() -> None:
    """z_2 and the noise of z_1 on a Gauss–Hermite grid; importance sampling within the errors of estimates of 4
    images."""
    model, guide, x = _make((1, 1))
    points, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(80))
    log_weights = weights.log() - math.log(2 * math.pi) / 2
    upper, noise = points[:, None, None, None], points[None, :, None, None]
    with torch.no_grad():
        loc, log_scale = model.layers[0](upper).chunk(2, -1)
        logits = model.decoder(loc + log_scale.exp() * noise)
        likelihood = -torch.nn.functional.binary_cross_entropy_with_logits(
            logits.expand(80, 80, 4, PIXELS), x.expand(80, 80, 4, PIXELS), reduction="none"
        ).sum(-1)
        truth = (likelihood + log_weights[:, None, None] + log_weights[None, :, None]).flatten(0, 1).logsumexp(0)
    found = log_marginal_likelihood(model, guide, x, num_samples=4000)
    log_px_within(found, truth, largest=0.05)


@pytest.mark.parametrize("latent_dims", [(3,), (4, 3), (4, 3, 2)])
def test_any_number_of_layers(latent_dims: tuple[int, ...]) -> None:
    model, guide, x = _make(latent_dims)
    pair = Pair.read(model, guide, x)
    assert pair.vectorized and set(pair.latent) == {f"z{n}" for n in range(1, len(latent_dims) + 1)}
    assert pair.event_shapes == {f"z{n}": (size,) for n, size in enumerate(latent_dims, 1)}
    assert model.model(n=7).shape == (7, PIXELS)
    parameters = [*model.parameters(), *guide.parameters()]
    for name in ("elbo", "iwae", "stl", "dreg", "rws", "wake-sleep"):
        elbo = objectives.bind(objectives.construct(name, num_particles=3), pair, x)
        loss = elbo.differentiable_loss(pair.model, pair.guide, x)
        assert all(bool((g != 0).any()) for g in torch.autograd.grad(loss, parameters)), name


def test_the_kl_term_is_sampled() -> None:
    """Pyro has a divergence for each site; that of z_1 at a sample of z_2 is not a term of KL(q || p), whose mean it
    misses. So there is none, and the objective that needs one is refused."""
    model, guide, x = _make((2, 2))
    assert Pair.read(model, guide, x).terms(x, analytic_kl=True).kl is None
    assert log_marginal_likelihood(model, guide, x, num_samples=30).kl_analytic is None
    with pytest.raises(BadInput, match="several latent sites; use elbo"):
        objectives.bind(objectives.construct("elbo-analytic-kl"), Pair.read(model, guide, x), x)


def test_other_sizes_are_refused() -> None:
    for chosen, option in (({"latent_dims": ()}, "latent_dims"), ({"hidden_dims": (3,)}, "hidden_dims")):
        with pytest.raises(BadInput, match=option):
            construct("model", find("model", "hierarchical-vae"), {"data_dim": PIXELS}, chosen)
    with pytest.raises(BadInput, match="latent_dims, but Linear has none"):
        Hierarchical(PIXELS, torch.nn.Linear(1, 1))
