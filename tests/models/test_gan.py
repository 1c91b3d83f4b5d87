"""The GAN's two losses, and the density that it is given."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from fits import interrupt_after
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.config import Config, training_defaults
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.prior import Prior
from ppl_gen.inference.annealed import Annealing, fit_scale
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import adversarial, construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.models.gan import GAN
from ppl_gen.models.vae import VAE
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]
F64 = torch.float64


def _gan(**options: Any) -> GAN:
    return GAN((4, 3), **{"latent_dim": 2, "hidden_dims": (6, 8)} | options).double()


def _gradients(loss: Tensor, model: GAN) -> dict[str, Tensor | None]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True), strict=True))


@pytest.mark.parametrize("loss", ["non-saturating", "minimax", "wasserstein"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_each_loss_moves_its_own_player(loss: str, network: str) -> None:
    """The generator's has no gradient for the discriminator, nor the other way round, and together they move all
    parameters but the noise."""
    model = _gan(loss=loss, network=network)
    x = torch.rand(5, 12, dtype=F64)
    for value, own in zip(model.adversarial_losses(x), ("generator", "discriminator"), strict=True):
        gradients = _gradients(value, model)
        moved = {
            name for name, gradient in gradients.items() if gradient is not None and float(gradient.abs().sum()) > 0
        }
        assert moved
        assert all(name.startswith(own) for name in moved)
    assert gradients["log_scale"] is None


@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
def test_losses_are_those_written_out(loss: str) -> None:
    model = _gan(loss=loss).eval()
    x = torch.rand(5, 12, dtype=F64)
    torch.manual_seed(3)
    generator, discriminator = model.adversarial_losses(x)
    torch.manual_seed(3)
    made = model.likelihood(model.prior().sample((5,))).base_dist.loc
    real, fake = model.discriminator(x).sigmoid(), model.discriminator(made).sigmoid()
    value = real.log().mean() + (1 - fake).log().mean()
    torch.testing.assert_close(discriminator, -value)
    torch.testing.assert_close(generator, -fake.log().mean() if loss == "non-saturating" else (1 - fake).log().mean())
    torch.manual_seed(3)
    with torch.no_grad():
        told = model.monitor(x)
        value, generator, real, fake = (each.detach() for each in (value, generator, real, fake))
    assert told["value"] == pytest.approx(float(value))
    assert told["d_real"] == pytest.approx(float(real.mean()))
    assert told["d_fake"] == pytest.approx(float(fake.mean()))
    assert told["loss_generator"] == pytest.approx(float(generator))


def test_critic_is_held_to_its_slope() -> None:
    """For a linear critic w . x the penalty is (|w| - 1)^2 whatever the images."""
    model = _gan(loss="wasserstein", gradient_penalty=3.0).eval()
    model.discriminator = nn.Sequential(nn.Linear(12, 1)).double()
    x = torch.rand(5, 12, dtype=F64)
    torch.manual_seed(3)
    generator, discriminator = model.adversarial_losses(x)
    torch.manual_seed(3)
    made = model.likelihood(model.prior().sample((5,))).base_dist.loc
    scores = [model.discriminator(images).mean() for images in (made, x)]
    slope = model.discriminator[0].weight.norm()
    torch.testing.assert_close(discriminator, scores[0] - scores[1] + 3 * (slope - 1) ** 2)
    torch.testing.assert_close(generator, -scores[0])


def test_its_bound_is_prior_sampling() -> None:
    model = _gan().eval().requires_grad_(False)
    x = torch.rand(3, 12, dtype=F64)
    guide = Prior("z", model)
    torch.manual_seed(0)
    one = log_marginal_likelihood(model, guide, x, num_samples=40)
    torch.manual_seed(0)
    other = proposal_log_px(model, [], x, num_samples=40, prior_share=1)
    torch.testing.assert_close(one.log_px, other.log_px)
    torch.testing.assert_close(one.kl, torch.zeros(3, dtype=F64))


class _Line(nn.Module):
    """x = W z + noise, with a mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 10, generator=generator, dtype=F64))
        self.log_scale = nn.Parameter(torch.tensor(-2.0, dtype=F64))

    def prior(self) -> dist.TorchDistribution:
        return dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(z @ self.weight, self.log_scale.exp()).to_event(1)


def test_noise_is_the_most_probable() -> None:
    """Against log p(x) in closed form on a grid of a hundred scales."""
    model = _Line()
    with torch.no_grad():
        x = model.prior().sample((60,)) @ model.weight + 0.5 * torch.randn(60, 10, dtype=F64)
        scales = torch.linspace(0.2, 1.2, 101, dtype=F64)
        covariances = [model.weight.T @ model.weight + s**2 * torch.eye(10, dtype=F64) for s in scales]
        log_px = [dist.MultivariateNormal(torch.zeros(10, dtype=F64), c).log_prob(x).mean() for c in covariances]
    best = float(scales[torch.stack(log_px).argmax()])
    fit_scale(model, x, Annealing(60, num_chains=16, leapfrog_steps=5))
    assert float(model.log_scale.detach().exp()) == pytest.approx(best, rel=0.04)
    assert model.weight.requires_grad


def test_only_a_model_with_two_losses_is_trained_by_them() -> None:
    model = VAE((4, 3), latent_dim=2, hidden_dims=(4,))
    x = torch.ones(3, 12)
    with evaluating():
        pair = Pair.read(model, Prior("z", model), x)
    with pytest.raises(BadInput, match="has no adversarial_losses"):
        bind(construct("adversarial"), pair, x)
    for wrong in ({"loss": "hinge"}, {"latent_dim": 0}, {"hidden_dims": (0,)}, {"gradient_penalty": -1.0}):
        with pytest.raises(BadInput):
            _gan(**wrong)


def test_a_fit(elsewhere: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and pictures of its own, a chosen noise, and an annealed log p(x); then a guide for its generator."""
    monkeypatch.setattr(adversarial, "fit_scale", fit_scale)
    quick = ("--data", "digits", "--epochs", "3", "--latent-dim", "4", "--hidden-dims", "16", "--num-samples", "30")
    status, out, err = call(fit.command, "gan", *quick, "--out", "gan")
    assert status == 0, err
    assert "V -" in err and "D(G(z))" in err
    run = elsewhere / "gan"
    for name in ("learning_curves", "samples", "interpolation"):
        assert (run / "figures" / f"{name}.png").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert set(lines[-1]["train"]) == {"loss_generator", "loss_discriminator", "d_real", "d_fake", "value"}
    assert lines[-1]["train"]["value"] == pytest.approx(-lines[-1]["train"]["loss_discriminator"])
    summary = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["log_px"]["estimator"] == "annealed"
    assert summary["observation"] == "density"
    assert summary["log_px"]["mean"] == pytest.approx(summary["log_px_importance"]["mean"], abs=1)  # 4 latent units
    assert math.isfinite(summary["sandwich"]["width"]["mean"])
    assert "at least" in out
    refit = ("--init-from", "gan", "--refit-guide", "normal", "--epochs", "1", "--num-samples", "20", "--out", "refit")
    assert call(fit.command, *refit)[0] == 0
    assert (
        json.loads((elsewhere / "refit" / "evaluation.json").read_text(encoding="utf-8"))["log_px"]["estimator"]
        == "importance"
    )


def test_few_units_have_quadrature(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two units log p(x) of a fit is by quadrature, as its gap is, though a GAN's default is annealing; not if
    annealing is asked for."""
    few = {"num_images": 5, "sandwich": 3, "annealed": {"num_temperatures": 4, "leapfrog_steps": 2}}
    monkeypatch.setattr(GAN, "evaluation_defaults", GAN.evaluation_defaults | few)
    quick: dict[str, Any] = {"data": "digits", "epochs": 1, "latent_dim": 2, "hidden_dims": [8], "num_samples": 30}
    for asked, estimator in (({}, "quadrature"), ({"estimator": "annealed"}, "annealed")):
        found = Run.fit("gan", quiet=True, **quick, **asked).evaluation
        assert found is not None and found.log_px.estimator == estimator
        values = found.to_dataframe()
        differ = (values["log_px"] - values["elbo"] - values["gap"]).abs().max()
        assert (differ < 1e-9) == (estimator == "quadrature")


def test_interrupted_and_resumed_equals_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of batch normalization, both players, and the noise that is chosen at the end."""
    monkeypatch.setattr(GAN, "evaluation_defaults", {"num_images": 5})
    config = Config(
        "gan",
        {"latent_dim": 2, "hidden_dims": (8,)},
        "prior",
        data=DataOptions("digits", "dequantized", train_size=300),
        training=TrainingOptions(**training_defaults(GAN) | {"epochs": 3}),
        num_samples=30,
    )
    whole = Run.start(config, out=tmp_path / "whole", quiet=True).directory
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(7, patch)
        Run.start(config, out=tmp_path / "cut", quiet=True)
    cut = Run.open(tmp_path / "cut").resume(quiet=True).directory
    ours, theirs = whole.load_checkpoint(), cut.load_checkpoint()
    assert ours is not None and theirs is not None
    assert ours[0].keys() == theirs[0].keys() and all(torch.equal(ours[0][k], theirs[0][k]) for k in ours[0])
    assert any("running_mean" in name for name in ours[0])
    summaries = [
        json.loads((run.path / "evaluation.json").read_text(encoding="utf-8")) | {"seconds": 0} for run in (whole, cut)
    ]
    assert summaries[0] == summaries[1]


def test_nothing_but_the_seed_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of batches, too: what is tried before the first step leaves none behind."""
    monkeypatch.setattr(GAN, "evaluation_defaults", {"num_images": 5})
    config = Config(
        "gan",
        {"latent_dim": 2, "hidden_dims": (8,)},
        "prior",
        data=DataOptions("digits", "dequantized", train_size=100),
        training=TrainingOptions(**training_defaults(GAN) | {"epochs": 1}),
        num_samples=10,
    )
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(Run.start(config, out=tmp_path / str(state), quiet=True).directory.load_checkpoint())
    ours, theirs = found
    assert ours is not None and theirs is not None
    assert [name for name in ours[0] if not torch.equal(ours[0][name], theirs[0][name])] == []
