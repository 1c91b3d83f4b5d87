"""A user's modules with state of their own train and are evaluated as in plain PyTorch: running statistics, layers that
initialize themselves, parts that are frozen, branches that start at zero."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import small_config
from torch import Tensor, nn

import ppl_gen
from ppl_gen.core.seeds import seed_torch
from ppl_gen.experiment.config import Given
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.training.averaging import AveragedWeights
from ppl_gen.training.checks import prepare
from ppl_gen.training.loop import _NOISE_STREAM
from ppl_gen.training.monitor import _SEED

pytestmark = pytest.mark.usefixtures("elsewhere")
SMALL: dict[str, Any] = {
    "data": "digits", "binarization": "threshold", "train_size": 400, "num_samples": 20, "latent_dim": 4,
    "hidden_dims": (8,), "learning_rate": 1e-2,
}  # fmt: skip
RATE = 0.999


class Linear(nn.Module):
    """q(z | x), normal, with log-scales and means that are linear in `changed(x)`."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.net = nn.Linear(data_dim, 2 * latent_dim)

    def changed(self, x: Tensor) -> Tensor:
        return x

    def widened(self, scale: Tensor) -> Tensor:
        return scale

    def guide(self, x: Tensor) -> None:
        loc, log_scale = self.net(self.changed(x)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, self.widened(log_scale.exp())).to_event(1))


class Annealed(Linear):
    """A scale that is less widened at each step, and the statistics of batches."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.register_buffer("extra", torch.tensor(2.0))
        self.steps = 0
        self.norm = nn.BatchNorm1d(data_dim)

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.extra.mul_(RATE)
            self.steps += 1
        normed: Tensor = self.norm(x)
        return normed

    def widened(self, scale: Tensor) -> Tensor:
        return (1 + self.extra) * scale


@pytest.mark.parametrize(("objective", "num_particles", "options"), [
    ("elbo", 1, {}), ("stl", 1, {}), ("stl", 3, {}), ("dreg", 3, {}), ("iwae", 5, {}),
])  # fmt: skip
def test_running_statistics_move_once_a_step(objective: str, num_particles: int, options: dict[str, Any]) -> None:
    """However often an objective runs the guide: `stl` and `dreg` run it once more with frozen parameters."""
    run = ppl_gen.Run.fit(
        "vae", guide=Annealed, objective=objective, num_particles=num_particles, objective_options=options, epochs=5,
        quiet=True, out="run", **SMALL,
    )  # fmt: skip
    guide, steps = run.guide, int(run.metrics["step"].iloc[-1])
    assert steps == guide.steps == guide.norm.num_batches_tracked
    assert guide.extra.item() == pytest.approx(2 * RATE**steps, rel=1e-5)


class Counting(Linear):
    """A scale that is less widened at each step, by a plain attribute."""

    extra: Any = 2.0

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.extra = self.extra * RATE
        return x

    def widened(self, scale: Tensor) -> Tensor:
        return (1 + self.extra) * scale


@pytest.mark.parametrize("objective", ["dreg", "iwae"])
def test_a_thinned_gradient_moves_state_once_a_step(objective: str) -> None:
    run = ppl_gen.Run.fit(
        "vae", guide=Counting, objective=objective, num_particles=5, objective_options={"backward": 2}, epochs=3,
        quiet=True, out="run", **SMALL,
    )  # fmt: skip
    assert run.guide.extra == pytest.approx(2 * RATE ** int(run.metrics["step"].iloc[-1]), rel=1e-9)


class Standardized(Linear):
    """Running means of pixels in a buffer that is not persistent."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.make(torch.zeros(data_dim))

    def make(self, mean: Tensor) -> None:
        self.register_buffer("mean", mean, persistent=False)

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return x - self.mean


class InPlace(Standardized):
    def make(self, mean: Tensor) -> None:
        self.mean = mean

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean


class Attribute(Standardized):
    def make(self, mean: Tensor) -> None:
        self.mean = mean


class Persistent(Standardized):
    def make(self, mean: Tensor) -> None:
        self.register_buffer("mean", mean)


class Cached(Linear):
    """It keeps what it has computed last, which is no state."""

    last: Any = None

    def changed(self, x: Tensor) -> Tensor:
        self.last = 2 * x
        return x


@pytest.mark.parametrize("kind", [Standardized, InPlace, Attribute, Persistent, Cached])
def test_state_that_a_checkpoint_lacks_is_told(kind: type[Linear], capsys: pytest.CaptureFixture[str]) -> None:
    """Trying the loss does not move it. What a guide has computed last is no state."""
    guide = kind(64, 3)
    config = replace(small_config(), guide="own", guide_options={})
    prepare(config, Given(guide=guide), quiet=False)
    told = (
        f"warning: {kind.__name__}.mean changes in training, but a checkpoint keeps parameters and persistent buffers"
    )
    assert (told in capsys.readouterr().err) == (kind in (Standardized, InPlace, Attribute))
    assert guide.last is None if isinstance(guide, Cached) else not guide.mean.any()  # type: ignore[attr-defined]


class LateCache(Linear):
    """Buffers that a step makes, or makes of another shape, and that are never saved."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.register_buffer("cache", None, persistent=False)
        self.register_buffer("rows", torch.zeros(1), persistent=False)

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache, self.rows = torch.arange(x.shape[-1]) / 64, torch.zeros(len(x))
        return x if self.cache is None else x + self.cache


def test_a_buffer_that_a_step_makes_anew_is_no_state(capsys: pytest.CaptureFixture[str]) -> None:
    run = ppl_gen.Run.fit("vae", guide=LateCache, epochs=1, out="run", **SMALL)
    assert "warning" not in capsys.readouterr().err and run.guide.cache.shape == (64,)


class ActNorm(nn.Module):
    """A layer that its first batch initializes (Kingma and Dhariwal 2018)."""

    def __init__(self, size: int):
        super().__init__()
        self.bias, self.initialized = nn.Parameter(torch.zeros(size)), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.initialized:
            with torch.no_grad():
                self.bias.copy_(-x.mean(0))
            self.initialized = True
            self.by = len(x), self.training
        return x + self.bias


class Initialized(Linear):
    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.norm = ActNorm(data_dim)

    def changed(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


@pytest.mark.parametrize("objective", ["elbo", "stl", "iwae"])
def test_the_first_batch_initializes_a_layer(objective: str) -> None:
    """And none of the few images on which a pair is tried."""
    small = SMALL | {"learning_rate": 1e-7}
    run = ppl_gen.Run.fit(
        "vae", guide=Initialized, objective=objective, num_particles=2, epochs=1, batch_size=100, quiet=True, out="run",
        **small,
    )  # fmt: skip
    norm, x = run.guide.norm, run.data.targets("train")
    first = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:100]]
    assert norm.by[1] and torch.allclose(norm.bias, -first.mean(0), atol=1e-5)


class OfEncoder(nn.Module):
    """A guide with a part that is given."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(8, 8)

    def guide(self, x: Tensor) -> None:
        loc, log_scale = self.head(self.encoder(x)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@pytest.mark.parametrize("objective", ["elbo", "stl"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_part_stays_in_eval_mode(objective: str, frozen: bool) -> None:
    """Of a network that is kept as it is neither dropout nor the statistics of batches are on."""
    encoder = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5 if frozen else 0.0))
    encoder.eval().requires_grad_(not frozen)
    before = copy.deepcopy(encoder.state_dict())
    modes = set[bool]()
    encoder[3].register_forward_hook(lambda part, *_: modes.add(part.training))
    ppl_gen.Run.fit("vae", guide=OfEncoder(encoder), objective=objective, epochs=2, quiet=True, out="run", **SMALL)
    same = all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert same == frozen and modes == ({False} if frozen else {False, True})


class Gated(nn.Module):
    """A model with a branch that starts at zero, and that goes wrong if samples are stacked: a softmax over dim 1."""

    latent_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 64), nn.Linear(8, 64)
        self.gate = nn.Parameter(torch.zeros(()))

    def of(self, z: Tensor) -> Any:
        hidden = self.first(z).tanh()
        return dist.Bernoulli(
            logits=self.second(hidden) + self.gate * self.third(8 * (3 * hidden).softmax(1))
        ).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            seen: Tensor = pyro.sample("x", self.of(z), obs=x)
            return seen


class WithMethods(Gated):
    def prior(self) -> Any:
        return dist.Normal(torch.zeros(4), 1.0).to_event(1)

    def likelihood(self, z: Tensor) -> Any:
        return self.of(z)


@pytest.mark.parametrize("kind", [Gated, WithMethods])
def test_samples_are_not_stacked_where_a_branch_would_mix_them(kind: type[Gated]) -> None:
    """A branch that is silent at the first weights is found before the first step: the weights are those of plain
    PyTorch, with a call for each sample and the same noise."""
    torch.manual_seed(0)
    model, guide = kind(), Linear(64, 4)
    ours, theirs = copy.deepcopy((model, guide)), (model, guide)
    small = {name: value for name, value in SMALL.items() if name not in ("latent_dim", "hidden_dims")}
    run = ppl_gen.Run.fit(
        ours[0], guide=ours[1], epochs=2, num_particles=3, batch_size=100, quiet=True, out="run", **small
    )
    x, parameters = run.data.targets("train"), [*model.parameters(), *guide.parameters()]
    adam = torch.optim.Adam(parameters, lr=1e-2)
    seed_torch(_NOISE_STREAM % 2**63)
    for epoch in range(2):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(100):
            loc, log_scale = guide.net(x[rows]).chunk(2, -1)
            q = dist.Normal(loc, log_scale.exp()).to_event(1)
            prior = dist.Normal(torch.zeros(4), 1.0).to_event(1)
            samples = [q.rsample() for _ in range(3)]
            elbo = [model.of(z).log_prob(x[rows]) + prior.log_prob(z) - q.log_prob(z) for z in samples]
            adam.zero_grad()
            (-torch.stack(elbo).mean()).backward()
            adam.step()
    assert theirs[0].gate.item() != 0
    for one, other in zip([p for part in ours for p in part.parameters()], parameters, strict=True):
        assert torch.allclose(one, other, atol=2e-5)
    assert not run.fitted.pair.vectorized


class Rising(Gated):
    """A branch that no parameter nearby shows: it is silent until the gate, which is not trained, is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.zeros(()))

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "gate":
            super().__setattr__(name, value)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        if self.training:
            self._buffers["gate"] = self._buffers["gate"] + 0.1  # type: ignore[operator]
        return super().model(x, n=n)


def test_samples_are_drawn_apart_from_the_epoch_on_that_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    small = {name: value for name, value in SMALL.items() if name not in ("latent_dim", "hidden_dims")}
    run = ppl_gen.Run.fit(Rising, guide=Linear, epochs=2, num_particles=3, out="run", **small)
    assert "samples of Rising and Linear change each other when drawn together; they are drawn apart" in (
        capsys.readouterr().err
    )
    assert not run.fitted.pair.vectorized


def test_an_average_leaves_a_mask_as_it_is() -> None:
    """-inf has no average, and NaN would end the run."""
    part = nn.Linear(2, 1)
    part.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = AveragedWeights(nn.ModuleDict({"guide": part}), decay=0.5)
    for step in (1, 2):
        average.update(step)
    with average.in_place():
        assert part.mask.tolist() == [0.0, -torch.inf]


class Trainer:
    """An object of a user with many rows of data, and a network in a wrapper."""

    def __init__(self, rows: int):
        torch.manual_seed(0)
        self.rows = [[[float(row)] for row in range(rows)] for _ in range(2)]
        self.held = {"net": [nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 6))]}

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.held["net"][0](z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))


def test_a_network_is_found_among_many_rows_of_data() -> None:
    """In eval mode, without dropout: else log p(x) would be noise. What is not searched is told."""
    x, modes = torch.ones(3, 6), list[bool]()
    for trainer in map(Trainer, (10, 15_000)):
        trainer.held["net"][0][1].register_forward_hook(lambda part, *_: modes.append(part.training))
        ppl_gen.log_weights(trainer.model, trainer.guide, x, num_samples=5)
    assert modes and not any(modes)
    trainer = Trainer(15_000)
    with pytest.warns(UserWarning, match=r"refer to more than 20,000 objects, and not all were searched"):
        trainer.rows = [[[object_of(row)] for row in range(15_000)] for _ in range(2)]  # type: ignore[misc]
        ppl_gen.log_weights(trainer.model, trainer.guide, x, num_samples=5)


def object_of(row: int) -> Any:
    return {"row": [row]}


class BuiltLate(Linear):
    """A layer that is made at the first call."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.size, self.late = data_dim, None

    def changed(self, x: Tensor) -> Tensor:
        if self.late is None:
            self.late = nn.Linear(self.size, self.size)
            self.first = self.late.weight.detach().clone()
        made: Tensor = self.late(x)
        return made


def test_a_layer_that_is_made_at_the_first_call_is_trained() -> None:
    run = ppl_gen.Run.fit("vae", guide=BuiltLate, epochs=1, quiet=True, out="run", **SMALL)
    assert not torch.equal(run.guide.late.weight, run.guide.first)
    assert "late.weight" in dict(run.guide.named_parameters())


class FrozenStatistics(Annealed):
    """The statistics of batches are kept, as in fine-tuning, by a `train` of its own."""

    def train(self, mode: bool = True) -> "FrozenStatistics":
        super().train(mode)
        self.norm.eval()
        return self


@pytest.mark.parametrize("objective", ["elbo", "stl"])
def test_a_train_method_of_a_user_is_called(objective: str) -> None:
    run = ppl_gen.Run.fit("vae", guide=FrozenStatistics, objective=objective, epochs=1, quiet=True, out="run", **SMALL)
    assert run.guide.norm.num_batches_tracked == 0 and run.guide.steps > 0


class Reader(nn.Module):
    def __init__(self, mean: Tensor):
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = x - self.mean
        return shifted


class Shared(Linear):
    """A buffer that one part writes and another reads."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.register_buffer("mean", torch.zeros(data_dim))
        self.reader, self.seen = Reader(self.mean), list[float]()

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.mean(0), 0.5)
        shifted: Tensor = self.reader(x)
        SEEN.append(float(shifted.detach().mean()))
        return shifted


SEEN: list[float] = []


def test_a_shared_buffer_is_the_same_for_both_passes() -> None:
    """z is drawn from the q that scores it."""
    run = ppl_gen.Run.fit("vae", guide=Shared, objective="stl", epochs=2, batch_size=50, quiet=True, out="run", **SMALL)
    guide = run.guide
    guide.train()
    pair, x = run.fitted.pair, run.data.targets("train")
    assert guide.reader.mean is guide.mean
    for first in (0, 50):
        SEEN.clear()
        pair.terms(x[first : first + 50], frozen_guide=True)
        assert len(SEEN) == 2 and SEEN[0] == SEEN[1]


class Restless(Linear):
    """Buffers and attributes of all kinds, each of which counts steps."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.register_buffer("plain", torch.zeros(()))
        self.register_buffer("parameter", nn.Parameter(torch.zeros(()), requires_grad=False))
        self.numpy, self.pair = np.float64(0), (0, 0)

    def changed(self, x: Tensor) -> Tensor:
        if self.training:
            self.plain.add_(1)
            self.parameter.add_(1)
            self.numpy, self.pair = self.numpy + 1, (self.pair[0] + 1, 0)
        return x


def test_state_of_each_kind_moves_once_and_stays_the_same_object() -> None:
    guide = Restless(64, 4)
    before = guide.plain, guide.parameter
    run = ppl_gen.Run.fit("vae", guide=guide, objective="stl", epochs=2, quiet=True, out="run", **SMALL)
    steps = int(run.metrics["step"].iloc[-1])
    assert guide.plain is before[0] and guide.parameter is before[1]
    assert [int(guide.plain), int(guide.parameter), int(guide.numpy), guide.pair[0]] == [steps] * 4


class InPosterior(Linear):
    """A guide with methods, whose scale is less widened at each call of `posterior`, which has no parameter."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.register_buffer("extra", torch.tensor(2.0))

    def encode(self, x: Tensor) -> Tensor:
        context: Tensor = self.net(x)
        return context

    def posterior(self, context: Tensor) -> Any:
        if self.training:
            self.extra = self.extra * RATE
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, (1 + self.extra) * log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


@pytest.mark.parametrize("objective", ["elbo", "stl", "dreg"])
def test_state_of_a_posterior_moves_once_a_step(objective: str) -> None:
    run = ppl_gen.Run.fit(
        "vae", guide=InPosterior, objective=objective, num_particles=2, epochs=2, quiet=True, out="run", **SMALL
    )
    assert run.guide.extra.item() == pytest.approx(2 * RATE ** int(run.metrics["step"].iloc[-1]), rel=1e-5)


def test_the_curve_is_of_samples_that_are_drawn_apart() -> None:
    """From the epoch on that shows that they must be."""
    small = {name: value for name, value in SMALL.items() if name not in ("latent_dim", "hidden_dims")}
    run = ppl_gen.Run.fit(Rising, guide=Linear, epochs=2, num_particles=3, quiet=True, out="run", **small)
    x = run.data.targets("train")
    terms = elbo_terms(run.model, run.guide, run.fitted.pair, x, seed=_SEED)
    assert not run.fitted.pair.vectorized
    assert run.metrics["train.elbo"].iloc[-1] == pytest.approx(terms["elbo"], abs=1e-4)


@pytest.mark.parametrize("kind", ["missing", "sparse", "read-only"])
def test_tensors_of_a_user_are_not_written(kind: str) -> None:
    """NaN, as of missing pixels; tensors that cannot be compared; memory that cannot be written."""
    held = {
        "missing": torch.tensor([0.5, torch.nan]),
        "sparse": torch.eye(2).to_sparse(),
        "read-only": torch.ones(1).expand(2),
    }[kind]
    weight = torch.ones(2, requires_grad=True)
    part = nn.Linear(2, 2)
    part.held = held

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(part(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    loss = (weight * (held.to_dense() if kind == "sparse" else held)).nansum()
    ppl_gen.log_weights(model, guide, torch.ones(3, 2), num_samples=5)
    loss.backward()
    assert weight.grad is not None
