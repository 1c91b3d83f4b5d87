import math
from typing import Any

import pytest
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.guides.normal import Normal
from ppl_gen.inference.importance import elbo_terms, log_marginal_likelihood, pairs_at_a_time
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.quadrature import quadrature_log_px
from ppl_gen.models.vae import VAE


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "continuous-bernoulli", "normal", "categorical", "discretized-logistic-mixture"]
)
def test_model_is_prior_times_likelihood(network: str, likelihood: str) -> None:
    options: dict[str, Any] = {"network": network, "likelihood": likelihood}
    model = VAE((4, 5), data_levels=4, latent_dim=3, hidden_dims=(6,), channels=(2,), **options)
    guide = Normal((4, 5), 3, "z", model, hidden_dims=(6,))
    x = torch.bernoulli(torch.full((5, 20), 0.5))
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x)
        terms = pair.terms(x, num_samples=4)
        z = terms.latents["z"]
        torch.testing.assert_close(terms.log_likelihood, model.likelihood(z).log_prob(x))
        torch.testing.assert_close(terms.log_prior, model.prior().log_prob(z))
        torch.testing.assert_close(terms.log_guide, guide.posterior(guide.encode(x)).log_prob(z))
    assert pair.vectorized
    assert pair.discrete == (likelihood not in ("normal", "continuous-bernoulli"))
    assert model.model(n=6).shape == (6, 20)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_output_before_training(network: str) -> None:
    """Zero: every pixel at 1/2, an ELBO of -784 log 2 = -543.4 less the KL. Else about the mean of each pixel."""
    x = torch.bernoulli(torch.full((50, 784), 0.2))
    mean = x.mean(0).clamp(0.01, 0.99)
    options: dict[str, Any] = {"network": network, "channels": (2,), "hidden_dims": (32,)}
    zero = VAE((28, 28), mean, init_output_bias=False, **options)
    guide = Normal((28, 28), 20, "z", zero)
    with evaluating(zero, guide):
        terms = elbo_terms(zero, guide, Pair.read(zero, guide, x), x, seed=0)
    assert terms["reconstruction"] == pytest.approx(-784 * math.log(2), rel=1e-6)
    assert -1 < terms["kl"] < 3
    start = VAE((28, 28), mean, **options).likelihood(torch.zeros(20)).mean
    assert (start - mean).abs().mean() < 0.06


@pytest.mark.parametrize("likelihood", ["categorical", "discretized-logistic-mixture"])
def test_weights_of_levels_do_not_depend_on_the_chunks(likelihood: str) -> None:
    """Fewer images and samples at once for an output that is large, and log p(x) that an image has alone. The exact
    log p(x), by quadrature, is within 4 Monte Carlo errors (false alarms: 6e-5 for each image)."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"likelihood": likelihood, "latent_dim": 1, "hidden_dims": (6,), "num_logistics": 2}
    model = VAE((3, 2, 2), data_levels=256, **options)
    guide = Normal((3, 2, 2), 1, "z", model, hidden_dims=(6,))
    x = model.model(n=5)
    assert model.numbers_per_pixel == (256 if likelihood == "categorical" else 20 // 3)
    assert pairs_at_a_time(model, None, x) == 2048 // model.numbers_per_pixel
    found = log_marginal_likelihood(model, guide, x, num_samples=400, ask_again=False)
    exact = quadrature_log_px(model, x)
    apart = (found.log_px - exact.log_px).abs()
    assert (apart < 4 * found.log_px_mc_var.sqrt() + found.log_px_bias.abs() + 1e-3).all()


def test_mirrored_by_its_guide() -> None:
    model = VAE((4, 4), latent_dim=2, hidden_dims=(8, 5), activation="tanh")
    guide = Normal((4, 4), 2, "z", model)
    sizes = [layer.out_features for layer in guide.encoder if hasattr(layer, "out_features")]
    assert sizes == [8, 5, 4]
    assert [layer.out_features for layer in model.decoder if hasattr(layer, "out_features")] == [5, 8, 16]
    assert any(isinstance(layer, torch.nn.Tanh) for layer in guide.encoder)


def test_input_dropout_only_in_training() -> None:
    model = VAE((4, 4), latent_dim=2, hidden_dims=(8,))
    guide = Normal((4, 4), 2, "z", model, input_dropout=0.5)
    x = torch.ones(1, 16)
    assert not torch.equal(guide.encode(x), guide.encode(x))
    guide.eval()
    assert torch.equal(guide.encode(x), guide.encode(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_dim": 0}, "latent_dim 0"),
        ({"hidden_dims": (3, 0)}, "hidden_dims"),
        ({"activation": "swish"}, "activation swish"),
        ({"likelihood": "poisson"}, "likelihood poisson"),
        ({"network": "conv", "channels": ()}, "channels"),
        ({"likelihood": "categorical"}, "use --binarization none".replace("--", "")),
        ({"likelihood": "discretized-logistic-mixture", "num_logistics": 0}, "num_logistics 0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        VAE((4, 4), **options)  # type: ignore[arg-type]
