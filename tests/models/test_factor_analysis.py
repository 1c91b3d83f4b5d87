"""Factor analysis and probabilistic PCA against their closed forms and scikit-learn's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import within
from sklearn import decomposition
from torch import Tensor

from ppl_gen import evaluate, fit
from ppl_gen.core.components import construct, find
from ppl_gen.core.errors import BadInput
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.guides.exact_gaussian import ExactGaussian
from ppl_gen.guides.normal import Normal
from ppl_gen.inference import objectives
from ppl_gen.inference.importance import log_marginal_likelihood, log_weights
from ppl_gen.inference.observed import observe
from ppl_gen.inference.pair import Pair
from ppl_gen.models.factor_analysis import FactorAnalysis

Call = Callable[..., tuple[int, str, str]]
PIXELS, UNITS = 6, 2


def _model(noise: Any = "diagonal") -> tuple[FactorAnalysis, Tensor]:
    torch.manual_seed(0)
    model = FactorAnalysis(PIXELS, latent_dim=UNITS, noise=noise).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        return model, model.model(n=5)


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
def test_closed_forms(noise: str) -> None:
    """log p(x) is that of N(mu, W^T W + psi); with the exact guide every weight is log p(x), and so is its gradient."""
    model, x = _model(noise)
    guide = ExactGaussian("z", model)
    whole = model.weight.T @ model.weight + model.psi.diag()
    truth = torch.distributions.MultivariateNormal(model.loc, whole).log_prob(x)
    torch.testing.assert_close(model.log_px(x), truth)
    weights = log_weights(model, guide, x, num_samples=20)
    torch.testing.assert_close(weights, truth.detach().expand(20, -1), rtol=1e-10, atol=1e-10)
    pair = Pair.read(model, guide, x)
    loss = objectives.bind(objectives.construct("elbo"), pair, x).differentiable_loss(pair.model, pair.guide, x)
    parameters = list(model.parameters())
    for ours, true in zip(
        torch.autograd.grad(-loss, parameters), torch.autograd.grad(truth.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(ours, true, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("missing", [False, True])
def test_principal_components_of_many_pixels(missing: bool) -> None:
    """The posterior's precision is symmetric, though the products of orthogonal weights are rounded: Pyro checks it."""
    torch.manual_seed(0)
    examples = 10 * torch.randn(1000, 10) @ torch.randn(10, 784) + torch.randn(1000, 784)
    model = FactorAnalysis(784, examples, latent_dim=10, noise="isotropic")
    x = examples[:20].clone()
    if missing:
        x[::2, ::3] = torch.nan
    guide = ExactGaussian("z", model)
    precision = guide.posterior(guide.encode(x)).precision_matrix
    assert torch.equal(precision, precision.mT)
    observe(model, guide)
    found = log_marginal_likelihood(model, guide, x, num_samples=100)
    assert not found.at_least  # the weights differ by the rounding of float32 alone, and k-hat is of that
    exact = model.log_px(x)
    torch.testing.assert_close(found.log_px, exact.detach().double(), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
def test_scikit_learns_parameters_give_its_scores(noise: str) -> None:
    x = np.random.default_rng(0).normal(size=(200, UNITS)) @ np.random.default_rng(1).normal(size=(UNITS, PIXELS))
    x += np.random.default_rng(2).normal(size=x.shape) * np.linspace(0.3, 1, PIXELS)
    model = FactorAnalysis(PIXELS, latent_dim=UNITS, noise=noise).double()  # type: ignore[arg-type]
    if noise == "diagonal":
        theirs = decomposition.FactorAnalysis(UNITS, svd_method="lapack").fit(x)
        weight, psi = theirs.components_, theirs.noise_variance_
    else:
        theirs = decomposition.PCA(UNITS).fit(x)
        psi = np.array([theirs.noise_variance_])
        weight = np.sqrt(theirs.explained_variance_ - psi)[:, None] * theirs.components_
    with torch.no_grad():
        model.scaled_weight.copy_(torch.from_numpy(weight / np.sqrt(psi)))
        model.log_psi.copy_(torch.from_numpy(psi).log())
        model.loc.copy_(torch.from_numpy(theirs.mean_))
        ours = model.log_px(torch.from_numpy(x))
    torch.testing.assert_close(ours, torch.from_numpy(theirs.score_samples(x)), rtol=1e-9, atol=1e-9)


def test_gap_of_the_linear_vae() -> None:
    """A diagonal Gaussian guide whose mean falls short: the gap is its divergence from the posterior, within the errors
    of the ELBO of 5 images."""
    model, x = _model()
    guide = Normal((PIXELS,), UNITS, "z", model, hidden_dims=()).double()
    exact = ExactGaussian("z", model)
    (layer,) = (module for module in guide.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        mean = exact.encode(torch.eye(PIXELS, dtype=torch.float64) + model.loc).T
        scale = exact.posterior(exact.encode(x[:1])).variance[0].sqrt()
        layer.weight.copy_(torch.cat([0.7 * mean, torch.zeros_like(mean)]))
        layer.bias.copy_(torch.cat([-0.7 * mean @ model.loc, scale.log()]))
    found = log_marginal_likelihood(model, guide, x, num_samples=4000)
    with torch.no_grad():
        q: Any = guide.posterior(guide.encode(x)).base_dist  # type: ignore[attr-defined]
        ours = torch.distributions.MultivariateNormal(q.loc, torch.diag_embed(q.scale.square()))
        kl = torch.distributions.kl_divergence(ours, exact.posterior(exact.encode(x)))
        gap = model.log_px(x) - found.elbo
    assert bool((kl > 0.1).all())
    within(gap, kl, found.elbo_mc_var, largest=0.03)


def test_fitted_as_scikit_learn_does(elsewhere: Path, call: Call) -> None:
    """On the digits: the exact value beside equal bounds, and within 0.1 nats of maximum likelihood on the training
    images. The noise of the dequantization is another at every epoch."""
    arguments = (
        "--data",
        "digits",
        "--latent-dim",
        "5",
        "--epochs",
        "30",
        "--batch-size",
        "100",
        "--num-samples",
        "20",
    )
    status, out, err = call(fit.command, "factor-analysis", *arguments, "--out", "run")
    assert status == 0, err
    assert "densities of grey pixels" in out and "exact" in out
    summary = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert summary["log_px"]["estimator"] == "exact" and summary["binarization"] == "dequantized"
    assert abs(summary["gap"]["mean"]) < 1e-3
    last = json.loads(Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    x = load_data(DataOptions("digits", "dequantized")).targets("train").double().numpy()
    best = decomposition.FactorAnalysis(5, svd_method="lapack", tol=1e-6, max_iter=3000).fit(x).score(x)
    assert last["train"]["elbo"] == pytest.approx(best, abs=0.1)
    assert call(evaluate.command, "run", "--estimator", "importance", "--num-images", "20")[0] == 0
    assert json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["log_px"]["estimator"] == "importance"

    for wrong, words in (
        (("factor-analysis", "--binarization", "static"), "use dequantized or none"),
        (("vae", "--binarization", "dequantized"), "no density of grey pixels"),
        (("vae", "--guide", "exact-gaussian"), "exact-gaussian needs the model factor-analysis, not VAE"),
        (("factor-analysis", "--latent-dim", "64"), "--latent-dim 64"),
        (("factor-analysis", "--noise", "loud"), "--noise"),
    ):
        status, _, err = call(fit.command, *wrong, "--data", "digits", "--out", "other")
        assert status == 2 and words in err, err


def test_dequantized_pixels(elsewhere: Path) -> None:
    """(level + u) / levels: uniform in the level of the pixel; one draw for tests, another at every use in training."""
    data = load_data(DataOptions("digits", "dequantized"))
    grey = load_data(DataOptions("digits", "none"))
    for name in ("train", "validation", "test"):
        levels = grey.targets(name) * 16
        x = data.targets(name)
        torch.testing.assert_close((x * 17).floor(), levels)
        assert torch.equal(x, data.targets(name))
        noise = x * 17 - levels
        assert abs(float(noise.mean()) - 0.5) < 5 / (12 * noise.numel()) ** 0.5  # false alarms of 6e-7
    index = torch.arange(20)
    assert not torch.equal(data.batch(index), data.batch(index))
    with pytest.raises(BadInput, match="needs grey levels"):
        np.save("real.npy", np.random.default_rng(0).random((50, 4)).astype("float32"))
        load_data(DataOptions("real.npy", "dequantized"))


def test_sizes() -> None:
    for chosen in ({"latent_dim": 0}, {"latent_dim": PIXELS}):
        with pytest.raises(BadInput, match="latent_dim"):
            construct("model", find("model", "factor-analysis"), {"data_dim": PIXELS}, chosen)
