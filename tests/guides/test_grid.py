"""Training without a guide."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from commands import Call
from fits import CONFIG, PLAIN, SMALL, interrupt_after, same, small_config, without_times
from torch import nn
from torch.distributions.transforms import AffineTransform

from ppl_gen import evaluate, fill, fit, sample
from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.guides.grid import Grid
from ppl_gen.models.vae import VAE
from ppl_gen.training.loop import train

PLANE = (*PLAIN, "--hidden-dims", "16", "--latent-dim", "2", "--guide", "grid")


class WithPrior(nn.Module):
    def __init__(self, prior: Any):
        super().__init__()
        self.given = prior

    def prior(self) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("prior", "outside"),
    [
        (dist.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])).to_event(1), 1e-6),
        (
            dist.MixtureSameFamily(
                dist.Categorical(logits=torch.zeros(2)),
                dist.Normal(torch.tensor([[-3.0, 0.0], [3.0, 1.0]]), torch.ones(2, 2)).to_event(1),
            ),
            1e-6,
        ),
        (  # without a formula for its mean
            dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [AffineTransform(2.0, 0.5, 1)]),
            1e-6,
        ),
        (dist.Normal(torch.tensor(4.0), 2.0), 6e-7),  # one unit that is no vector
        (dist.MultivariateNormal(torch.ones(2), torch.diag(torch.tensor([4.0, 1.0]))), 1e-6),
        (dist.Uniform(-torch.ones(2), 3.0).to_event(1), 4.6e-4),  # at four ends, 5 standard deviations of a logistic
        (  # which states that any number may be; 2 P(G < 0.43)
            dist.TransformedDistribution(
                dist.Gamma(5 * torch.ones(2), 1.0).to_event(1), [AffineTransform(1.0, -2.0, 1)]
            ),
            1.6e-4,
        ),
    ],
    ids=["normal", "mixture", "transformed", "scalar", "multivariate", "uniform", "bounded above"],
)
def test_the_grid_covers_the_prior(prior: Any, outside: float) -> None:
    """But for a known part of its mass. The range of the three is that of 1,000 samples."""
    guide = Grid(max(1, prior.event_shape.numel()), "z", WithPrior(prior), points=60)
    for _ in range(3):
        z, log_mass = guide.train().nodes()
        assert z.shape == (60 ** (prior.event_shape.numel() or 1), *prior.event_shape)
        assert float(log_mass.exp().sum()) == pytest.approx(1 - outside, abs=1e-4 if outside < 1e-5 else outside / 2)
    if outside == 1e-6 and not isinstance(prior, dist.TransformedDistribution):  # whose range is known by a formula
        assert all(torch.equal(one, other) for one, other in zip(guide.eval().nodes(), guide.nodes(), strict=True))
    assert len(guide.nodes(finer=2)[0]) == len(z) * 2 ** (prior.event_shape.numel() or 1)


def test_a_learned_prior_gets_a_gradient() -> None:
    loc = torch.zeros(2, requires_grad=True)
    z, log_mass = Grid(2, "z", WithPrior(dist.Normal(loc, 1.0).to_event(1)), points=5).nodes()
    assert not z.requires_grad and torch.autograd.grad(log_mass[0], loc)[0].abs().sum() > 0


def test_what_has_no_grid() -> None:
    vae = VAE((8, 8), latent_dim=2)
    for arguments, options, message in (
        ((2, None, vae), {}, "one latent site and a method prior"),
        ((2, "z", nn.Linear(2, 2)), {}, "one latent site and a method prior"),
        ((4, "z", VAE((8, 8), latent_dim=4)), {}, "1 to 3 latent units, but VAE has 4"),
        ((1, "z", WithPrior(dist.Bernoulli(torch.tensor(0.5)))), {}, "continuous vector"),
        ((2, "z", vae), {"points": 1}, "guide.points 1: must be at least 2"),
        ((2, "z", vae), {"points": 5000}, "guide.points 5000: must be at most 4096 for 2 latent units"),
        ((2, "z", vae), {"width": 0.0}, "guide.width 0.0: must be"),
    ):
        with pytest.raises(BadInput, match=message):
            Grid(*arguments, **options)  # type: ignore[arg-type]


def _fit(path: Path, data: Data, epochs: int = 3) -> tuple[RunDirectory, nn.ModuleDict]:
    config: Config = replace(
        small_config(replace(SMALL, epochs=epochs, learning_rate=0.01), points=10),
        guide="grid",
        model_options={"latent_dim": 2, "hidden_dims": (16,)},
    )
    model, guide = assemble(config, data)
    run = RunDirectory.open(path) if path.exists() else RunDirectory.create(path, "run", CONFIG)
    train(Fitted(config, model, guide, data, Given(), run), quiet=True)
    return run, nn.ModuleDict({"model": model, "guide": guide})


@pytest.mark.parametrize("steps", [2, 7])
def test_interrupted_and_resumed_equals_undisturbed(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    whole, weights = _fit(tmp_path / "whole", data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(steps, patch)
        _fit(tmp_path / "cut", data)
    cut, resumed = _fit(tmp_path / "cut", data)
    assert same(weights, resumed) and without_times(whole) == without_times(cut)


def test_training_improves(tmp_path: Path, data: Data) -> None:
    run, _ = _fit(tmp_path / "run", data, epochs=15)
    lines = run.metrics()
    assert set(lines[0]["train"]) == set(lines[0]["validation"]) == {"elbo", "grid_bias"}
    assert lines[-1]["validation"]["elbo"] > lines[0]["validation"]["elbo"] + 1
    assert abs(lines[-1]["loss"] + lines[-1]["train"]["elbo"]) < 1  # other weights, and binarized anew


def test_a_run_and_its_uses(elsewhere: Path, call: Call) -> None:
    """The fit says what a step costs and how far the grid is from a finer one; what takes samples of a guide refuses in
    one sentence; a guide can be fitted to the model."""
    status, out, err = call(fit.command, "vae", *PLANE, "--latent-dim", "1", "--guide.points", "3", "--out", "r")
    assert status == 0 and "a step sums 3 points of z for 128 images" in out
    assert "grid bias" in err
    refused: list[tuple[Any, tuple[str, ...], str]] = [
        (evaluate.command, ("r", "--gaps"), "encode(x)"),
        (evaluate.command, ("r", "--prior-share", "0.5"), "samples no z, so it cannot be a proposal"),
        (sample.command, ("r", "--source", "image", "--out", "s.png"), "Grid does not sample z"),
        (fill.command, ("r",), "fill by importance sampling needs"),
    ]
    for command, arguments, words in refused:
        status, _, err = call(command, *arguments)
        assert status == 2 and len(err.strip().splitlines()) == 1 and words in err, err
    start = ("--init-from", "r", "--refit-guide", "normal", "--epochs", "1", "--num-samples", "20", "--out", "refit")
    assert call(fit.command, *start)[0] == 0
    assert json.loads(Path("refit/config.json").read_text())["guide"] == "normal"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--objective", "iwae", "--num-particles", "5"), "Grid leaves VAE to a sum over points of z"),
        (("--num-particles", "2"), "use elbo with 1 particle"),
        (("--kl-warmup", "2"), "--kl-warmup 2: scales the KL term"),
        (("--prior", "vamp"), "the prior vamp needs a guide with encode"),
        (("--guide.points", "4096"), "Grid has 16,777,216 points.*GB are free.*--guide.points"),
        (("--max-hours", "0.000000001"), "1,600 points of z.*more than --max-hours 1e-09; use fewer points"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, elsewhere: Path, call: Call) -> None:
    import re

    status, _, err = call(fit.command, "vae", *PLANE, *arguments, "--out", "r")
    assert status == 2 and len(err.strip().splitlines()) == 1 and re.search(message, err), err
    assert not Path("r").exists()
