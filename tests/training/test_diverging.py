"""Training that diverges: the site, the parameter or the ELBO that tells it, and the checkpoint that is kept."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.blame import blame
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.pair import Pair
from ppl_gen.run import Run
from ppl_gen.training.diverging import Diverged, lost

LATE = 10  # calls in training from which a pair below is at fault: after the checks, in the first epoch


class Late(nn.Module):
    """A part of a pair that is at fault from a call in training on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def at_fault(self) -> bool:
        self.calls += self.training
        return self.calls > LATE


class Plain(Late):
    """A model without a fault, which the models below change."""

    def __init__(self, data_dim: int):
        super().__init__()
        self.decoder = nn.Linear(2, data_dim)

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z)
            if self.at_fault():
                logits = self.spoil(z, logits)
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def spoil(self, z: Tensor, logits: Tensor) -> Tensor:
        return logits


class OneImage(Plain):
    def spoil(self, z: Tensor, logits: Tensor) -> Tensor:
        return torch.cat([logits[..., :7, :], logits[..., 7:, :] * math.inf], -2)


class LogOfZero(Plain):
    def spoil(self, z: Tensor, logits: Tensor) -> Tensor:
        pyro.factor("penalty", (0 * z).sum(-1).log())
        return logits


class Enumerated(Late):
    def __init__(self, data_dim: int):
        super().__init__()
        self.weights, self.rows = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.randn(3, data_dim))

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        weights = self.weights * (math.nan if self.at_fault() else 1.0)
        with pyro.plate("data", n if x is None else len(x)):
            k = pyro.sample("k", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Bernoulli(logits=self.rows[k]).to_event(1), obs=x)


class Guide(Late):
    """A guide without a fault, which the guides below change."""

    def __init__(self, data_dim: int):
        super().__init__()
        self.loc, self.raw = nn.Linear(data_dim, 2), nn.Linear(data_dim, 2)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), self.scale(self.raw(x), self.at_fault())).to_event(1))

    def scale(self, raw: Tensor, fault: bool) -> Tensor:
        return softplus(raw) + 0.01


class Underflow(Guide):
    def scale(self, raw: Tensor, fault: bool) -> Tensor:
        return softplus(raw - (200.0 if fault else 0.0))


class RootOfNegative(Guide):
    def scale(self, raw: Tensor, fault: bool) -> Tensor:
        return (raw**2 + (-100.0 if fault else 1.0)).sqrt()


class RootOfZero(Guide):
    def scale(self, raw: Tensor, fault: bool) -> Tensor:
        return (raw * (0.0 if fault else 1.0)).abs().sqrt() + 0.01


class OwnLoss:
    """An objective that draws by itself, and is at fault itself if its pair is not."""

    def __init__(self, *, spoiled: bool = True):
        self.spoiled, self.calls = spoiled, 0

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        self.calls += 1
        return -pair.terms(x, *args).log_weight.sum() * (math.nan if self.spoiled and self.calls > LATE else 1.0)


def _diverge(out: Path, model: type, guide: Any = None, **options: Any) -> str:
    """The sentence with which a fit ends. Its checkpoint is finite."""
    options = {"data": "digits", "train_size": 100, "batch_size": 10, "epochs": 3, **options}
    with pytest.raises(Diverged) as error:
        Run.fit(model, guide=guide, out=out, quiet=True, **options)
    content = RunDirectory.open(out).load_checkpoint()
    assert content is not None and all(t.isfinite().all() for t in content[0].values() if t.is_floating_point())
    assert f"the last good checkpoint is kept in {out}" in error.value.sentence
    return error.value.sentence


@pytest.mark.parametrize(
    ("model", "guide", "options", "words"),
    [
        (Plain, Underflow, {}, ["guide Underflow", "site 'z'", "parameter scale of Normal must be", "softplus"]),
        (Plain, Underflow, {"objective": "iwae", "num_particles": 3}, ["guide Underflow", "site 'z'", "scale"]),
        (Plain, Underflow, {"kl_warmup": 2}, ["guide Underflow", "site 'z'", "scale"]),
        (Plain, Underflow, {"objective": OwnLoss, "objective_options": {"spoiled": False}}, ["guide Underflow", "'z'"]),
        (Plain, RootOfNegative, {}, ["guide RootOfNegative", "site 'z'", "parameter scale of Normal is NaN"]),
        (OneImage, Guide, {}, ["model OneImage", "site 'x'", "for image 7 of 10"]),
        (LogOfZero, Guide, {}, ["model LogOfZero", "site 'penalty'", "log_prob is -inf"]),
        (Enumerated, "enumerated", {}, ["model Enumerated", "site 'k'", "parameter logits", "NaN"]),
        (Plain, Guide, {"objective": OwnLoss}, ["every site of model and guide is finite", "objective"]),
    ],
)
def test_the_site_is_named(tmp_path: Path, model: type, guide: Any, options: dict[str, Any], words: list[str]) -> None:
    sentence = _diverge(tmp_path / "run", model, guide, **options)
    assert "not finite at step" in sentence and all(word in sentence for word in words), sentence
    if "site" in words[1]:
        assert f"{Path(__file__).name}:" in sentence  # the line of the sample statement


@pytest.mark.parametrize(("clip", "word"), [(None, "guide.raw"), (1.0, "--clip-grad-norm spreads it")])
def test_a_gradient_that_is_not_finite_names_the_parameter(tmp_path: Path, clip: float | None, word: str) -> None:
    sentence = _diverge(tmp_path / "run", Plain, RootOfZero, clip_grad_norm=clip)
    assert "a gradient was not finite, although its loss was" in sentence and word in sentence


def test_the_step_is_computed_again_with_its_noise(tmp_path: Path) -> None:
    """A fault of one step in ten is found in the same draw."""
    drawn: list[Tensor] = []

    class Rare(Plain):
        def spoil(self, z: Tensor, logits: Tensor) -> Tensor:
            if not self.training:
                return logits
            drawn.append(z.detach().clone())
            return logits.masked_fill((z[..., :1] > 2.4), math.nan)

    for seed in range(2):
        drawn.clear()
        sentence = _diverge(tmp_path / str(seed), Rare, Guide, epochs=50, seed=seed)
        assert "model Rare" in sentence and torch.equal(drawn[-1], drawn[-2])


def test_random_numbers_and_weights_stay(tmp_path: Path) -> None:
    """Looking at every site of a computation changes none of its numbers."""
    model, guide, x = Plain(6), Guide(6), torch.ones(5, 6)
    pair = Pair.read(model.model, guide.guide, x)
    torch.manual_seed(3)
    plain, after = pair.terms(x).log_weight, torch.rand(3)
    torch.manual_seed(3)
    found: list[Tensor] = []
    assert blame(pair, lambda pair: found.append(pair.terms(x).log_weight)) is None
    assert torch.equal(found[0], plain) and torch.equal(torch.rand(3), after)


def test_an_estimate_that_is_nan_names_the_site_and_the_image() -> None:
    model, guide, x = OneImage(6).eval(), Guide(6).eval(), torch.ones(9, 6)
    pair = SimpleNamespace(model=model.model, guide=guide.guide)
    model.calls = LATE + 1
    with pytest.raises(BadInput, match=r"NaN for image 7; model model \(.*test_diverging.py:\d+\), site 'x'"):
        log_marginal_likelihood(pair.model, pair.guide, x, num_samples=20)


@pytest.mark.parametrize(("model", "rate"), [("mixture", 1e30), ("belief-net", 1e8), ("gan", 1e10)])
def test_divergence_that_stays_finite(tmp_path: Path, model: str, rate: float) -> None:
    options = {"data": "digits", "train_size": 100, "batch_size": 50, "epochs": 2, "learning_rate": rate}
    with pytest.raises(Diverged, match=r"training has diverged: the (ELBO|largest weight) .* kept in"):
        Run.fit(model, out=tmp_path / "run", quiet=True, **options)
    with pytest.raises(Diverged, match="training has diverged"):  # what a resumed run has to compare with is kept
        Run.open(tmp_path / "run").resume(quiet=True)


@pytest.mark.parametrize(
    ("elbo", "first", "pixels", "expected"),
    [
        (-5.6e30, -44, 64, True),
        (-2e6, -44, 64, True),
        (-1.3e5, 4.4, 64, False),  # factor analysis at a learning rate of 10, which recovers
        (-1e6, -543, 784, False),
        (-1e9, -1e6, 64, False),  # a density of a start far from the data
        (1e9, 4.4, 64, False),
    ],
)
def test_what_counts_as_divergence(elbo: float, first: float, pixels: int, expected: bool) -> None:
    assert lost(elbo, first, pixels) is expected
