"""Log-densities from the methods of a pair are those of its functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import CONFIG, SMALL, same, small_config
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.importance import log_marginal_likelihood, log_weights, weighted_blocks
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.observed import observe
from ppl_gen.inference.pair import Pair
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.mixture import Mixture
from ppl_gen.models.vae import VAE
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.training.loop import train

DATA = DataOptions(data="digits", train_size=200)
SMALL_VAE = ("vae", {"latent_dim": 2, "hidden_dims": (8,)})
NET = ("belief-net", {"latent_dim": 4, "init_scale": 0.5})


def _read(model: nn.Module, guide: nn.Module, x: Tensor) -> Pair:
    with evaluating(model, guide):
        return Pair.read(model, guide, x[:8])


def _gradients(pair: Pair, name: str, options: Any, x: Tensor, modules: nn.Module) -> tuple[Tensor, list[Any]]:
    with evaluating(modules):
        elbo = bind(construct(name, **options), pair, x[:8])
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(pair.model, pair.guide, x)
    return loss, list(torch.autograd.grad(loss, [*modules.parameters()], allow_unused=True))


@pytest.mark.parametrize(
    ("name", "model", "guide", "options"),
    [
        ("elbo", SMALL_VAE, ("normal", {"input_dropout": 0.3}), {}),
        ("elbo", SMALL_VAE, ("flow", {"transform": "iaf"}), {"num_particles": 3}),
        ("elbo", SMALL_VAE, ("mixture", {"num_components": 2}), {"num_particles": 2}),
        ("elbo-analytic-kl", SMALL_VAE, ("normal", {}), {"num_particles": 2}),
        ("beta", SMALL_VAE, ("student-t", {}), {"beta": 3.0}),
        ("stl", SMALL_VAE, ("multivariate-normal", {}), {}),
        ("stl", SMALL_VAE, ("flow", {"transform": "spline-coupling", "num_transforms": 2}), {}),
        ("dreg", SMALL_VAE, ("normal", {}), {"num_particles": 4}),
        ("iwae", SMALL_VAE, ("mixture", {"num_components": 2}), {"num_particles": 4}),
        ("piwae", SMALL_VAE, ("normal", {}), {"num_particles": 4}),
        ("vimco", NET, ("bernoulli", {}), {"num_particles": 4}),
        ("rws", NET, ("bernoulli", {}), {"num_particles": 4}),
        ("wake-sleep", SMALL_VAE, ("normal", {}), {"num_particles": 2}),
    ],
)
def test_loss_and_gradients_are_those_of_the_functions(
    data: Data, name: str, model: Any, guide: Any, options: dict[str, Any]
) -> None:
    """From the same noise, in training mode and in float64."""
    modules = nn.ModuleDict(
        dict(zip(("model", "guide"), assemble(Config(*model, *guide, data=DATA), data), strict=True))
    ).double()
    x = data.targets("train")[:20].double()
    pair = _read(modules["model"], modules["guide"], x)
    assert pair.direct is not None
    found = [_gradients(each, name, options, x, modules) for each in (pair, replace(pair, direct=None))]
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-10, atol=1e-8)
    for ours, theirs in zip(*(gradients for _, gradients in found), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("prior", ["vamp", "flow"])
def test_priors_and_estimates(data: Data, prior: str) -> None:
    """Log weights, with and without a KL divergence in closed form, and log p(x) are those of the functions."""
    config = Config(*SMALL_VAE, "normal", {}, data=DATA, prior=prior)
    model, guide = assemble(config, data)
    model.double(), guide.double()
    x = data.targets("test")[:6].double()
    function, of_guide = (lambda x=None, n=1: model.model(x, n=n)), guide.guide
    torch.manual_seed(1)
    ours = log_weights(model, guide, x, num_samples=7)
    torch.manual_seed(1)
    theirs = log_weights(function, of_guide, x, num_samples=7)
    assert _read(model, guide, x).direct is not None and _read(function, of_guide, x).direct is None  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)
    torch.manual_seed(1)
    estimate = log_marginal_likelihood(model, guide, x, num_samples=30, ask_again=False)
    torch.manual_seed(1)
    other = log_marginal_likelihood(function, of_guide, x, num_samples=30, ask_again=False)
    torch.testing.assert_close(estimate.log_px, other.log_px, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(estimate.latent_mean["z"], other.latent_mean["z"])


class Plain(nn.Module):
    """q(z | x) as the package's guides have it."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.net = nn.Linear(data_dim, latent_dim)

    def encode(self, x: Tensor) -> Tensor:
        return self.net(x)

    def posterior(self, context: Tensor) -> Any:
        return dist.Normal(context, 0.9).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


class Detached(Plain):
    """The same log-density, and another gradient."""

    def posterior(self, context: Tensor) -> Any:
        return dist.Normal(context.detach(), 0.9).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 0.9).to_event(1))


class Wider(Plain):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


class Failing(Plain):
    def posterior(self, context: Tensor) -> Any:
        raise RuntimeError("not today")

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


class Factored(Plain):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))
            pyro.factor("penalty", x[:, 0], has_rsample=False)


@pytest.mark.parametrize("cls", [Detached, Wider, Failing, Factored])
def test_methods_that_say_something_else_are_not_used(cls: Any) -> None:
    """The log weights are then those of the functions."""
    torch.manual_seed(0)
    model, guide, x = VAE((4, 4), latent_dim=2, hidden_dims=(5,)), cls(16, 2), torch.bernoulli(torch.rand(9, 16))
    assert _read(model, Plain(16, 2), x).direct is not None
    assert _read(model, guide, x).direct is None
    torch.manual_seed(1)
    ours = log_weights(model, guide, x, num_samples=5)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, log_weights(model.model, guide.guide, x, num_samples=5))


def test_missing_pixels_and_labels_go_through_the_functions() -> None:
    model, guide, x = VAE((4, 4), latent_dim=2, hidden_dims=(5,)), Plain(16, 2), torch.bernoulli(torch.rand(9, 16))

    class Labelled(Plain):
        def guide(self, x: Tensor, y: Tensor | None = None) -> None:  # type: ignore[override]
            super().guide(x)

    with evaluating(model, guide):
        assert Pair.read(model, Labelled(16, 2), x).direct is not None
        assert Pair.read(model, Labelled(16, 2), x, torch.arange(9)).direct is None
    incomplete = x.clone()
    incomplete[7, 3] = torch.nan
    observe(model, guide)
    for images in (x, incomplete):  # missing pixels may be in other images than these
        assert _read(model, guide, images).direct is None


class Changing(Plain):
    """In training its functions and its methods differ from some step on."""

    def __init__(self, data_dim: int, latent_dim: int, steps: int, methods: bool = True):
        super().__init__(data_dim, latent_dim)
        self.steps, self.methods = steps, methods
        self.runs = list[int]()  # what is in a list is not compared
        self.register_buffer("calls", torch.zeros(()))

    def posterior(self, context: Tensor) -> Any:
        if not self.methods:
            raise RuntimeError("no methods")
        return super().posterior(context)

    def encode(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().encode(x)

    def guide(self, x: Tensor) -> None:
        self.runs += [1] if self.training else []
        scale = 0.9 if self.calls < self.steps or not self.training else 0.5
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), scale).to_event(1))


def _train(
    guide: nn.Module,
    data: Data,
    path: Path,
    quiet: bool = True,
    model: nn.Module | None = None,
    config: Config | None = None,
) -> nn.ModuleDict:
    config = config or small_config()
    model = model or assemble(config, data)[0]
    run = RunDirectory.create(path, "run", CONFIG)
    fitted = Fitted(config, model, guide, data, Given(), run)
    train(fitted, quiet=quiet)
    return nn.ModuleDict({"model": model, "guide": guide})


def test_a_difference_in_training_is_found_after_an_epoch(
    tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says so, and the steps that follow are those of the functions."""
    line = (
        "model() and guide() of VAE and Changing differ from prior(), likelihood(z), encode(x) and posterior(context)"
    )
    # Four steps in each of three epochs. The functions are compared before them, and after the first and the second.
    for methods, told, runs in ((True, 1, 3 + 4), (False, 0, 12)):
        torch.manual_seed(0)
        guide = Changing(data.dim, 3, steps=6, methods=methods)
        _train(guide, data, tmp_path / str(methods), quiet=False)
        assert capsys.readouterr().err.count(line) == told
        assert len(guide.runs) == runs


class Rounding(Plain):
    """Where products are of bfloat16 numbers, its methods differ from its function."""

    def posterior(self, context: Tensor) -> Any:
        if torch.get_float32_matmul_precision() == "medium":
            context = 1.1 * context
        return super().posterior(context)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", super().posterior(self.encode(x)))


def test_rounding_to_bfloat16_is_no_difference(tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = small_config(replace(SMALL, matmul_precision="medium"))
    _train(Rounding(data.dim, 3), data, tmp_path / "run", quiet=False, config=config)
    assert "differ" not in capsys.readouterr().err


class Counting(Plain):
    """Its scale shrinks with every call of its function in training."""

    def __init__(self, data_dim: int, latent_dim: int, methods: bool):
        super().__init__(data_dim, latent_dim)
        self.calls, self.methods = 0, methods

    def posterior(self, context: Tensor) -> Any:
        if not self.methods:
            raise RuntimeError("no methods")
        return dist.Normal(context, 0.9 * 0.99**self.calls).to_event(1)

    def guide(self, x: Tensor) -> None:
        self.calls += self.training
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 0.9 * 0.99**self.calls).to_event(1))


def test_what_functions_do_beside_drawing_is_done(tmp_path: Path, data: Data) -> None:
    """A count of steps in an attribute: as without methods, to the bit, from the first step on."""
    ends = []
    for methods in (True, False):
        torch.manual_seed(0)
        ends.append(_train(Counting(data.dim, 3, methods), data, tmp_path / str(methods)))
    assert [modules["guide"].calls for modules in ends] == [12, 12]
    assert same(*ends)


class Restless(Mixture):
    """From its second call in training on, the prior of its function is uniform."""

    calls = 0

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        self.calls += self.training
        prior = self.prior() if self.calls < 2 else dist.Categorical(logits=0 * self.level)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", prior, infer={"enumerate": "parallel"})
            return pyro.sample("x", self.likelihood(z), obs=x)


class Darker(Mixture):
    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
            return pyro.sample("x", BernoulliVector(self.weight[z] + self.bias - 1), obs=x)


@pytest.mark.parametrize("make", [Mixture, BeliefNet, Darker])
def test_a_sum_over_states(make: Any) -> None:
    """The loss and every gradient are those of the functions, also where the methods say something else."""
    torch.manual_seed(0)
    model, x = make(6).double(), torch.bernoulli(torch.rand(9, 6, dtype=torch.float64))
    pair = _read(model, Enumerated(), x)
    assert (pair.direct is None) == (make is Darker)
    found = [_gradients(each, "elbo", {}, x, model) for each in (pair, replace(pair, direct=None))]
    torch.testing.assert_close(*(loss for loss, _ in found), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*(gradients for _, gradients in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_a_sum_over_states_that_differs_in_training(
    tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found before the first step: a count in `model` would stand still otherwise."""
    model = Restless(data.dim, num_components=3)
    _train(Enumerated(), data, tmp_path / "run", quiet=False, model=model)
    assert "note: in training, model() of Restless differs from prior() and likelihood(z)" in capsys.readouterr().err
    assert model.calls == 3 * 4


def test_batch_statistics_move_once_a_step(tmp_path: Path, data: Data) -> None:
    """As with the functions alone: neither reading a pair nor comparing moves them."""

    def made(methods: bool) -> nn.Module:
        torch.manual_seed(0)

        class Normed(Plain):
            def __init__(self, data_dim: int, latent_dim: int):
                super().__init__(data_dim, latent_dim)
                self.net = nn.Sequential(nn.BatchNorm1d(data_dim), nn.Linear(data_dim, latent_dim))  # type: ignore[assignment]

            def guide(self, x: Tensor) -> None:
                with pyro.plate("data", len(x)):
                    pyro.sample("z", dist.Normal(self.encode(x), 0.9).to_event(1))

            def posterior(self, context: Tensor) -> Any:
                if not methods:
                    raise RuntimeError("no methods")
                return super().posterior(context)

        return Normed(data.dim, 3)

    one, two = (_train(made(methods), data, tmp_path / str(methods)) for methods in (True, False))
    norms = [modules["guide"].net[0] for modules in (one, two)]
    assert norms[0].num_batches_tracked == norms[1].num_batches_tracked == 3 * 4
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)
    for ours, theirs in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noise", ["none", "common", "own"])
def test_the_encoder_runs_once_for_all_chunks(noise: str) -> None:
    """An encoder that draws noise for each image is left to the functions: each sample has its own. Noise that all
    share is refused."""

    class Encoder(Plain):
        counted = 0

        def encode(self, x: Tensor) -> Tensor:
            self.counted += 1
            if noise == "none":
                return super().encode(x)
            return super().encode(x) + 0.1 * torch.randn(1 if noise == "common" else len(x), 2)

    torch.manual_seed(0)
    model, guide, x = VAE((4, 4), latent_dim=2, hidden_dims=(5,)), Encoder(16, 2), torch.bernoulli(torch.rand(9, 16))
    if noise == "common":
        with pytest.raises(BadInput, match="draws noise beside z once for all images"):
            _read(model, guide, x)
        return
    pair = _read(model, guide, x)
    assert (pair.direct is None) == (noise == "own")
    if noise == "own":
        return
    before = guide.counted
    torch.manual_seed(1)
    with evaluating(model, guide):
        found = [each for _, each in weighted_blocks(pair, Batch(x, (), {}), 100, 90)]
    assert guide.counted - before == 1
    torch.manual_seed(1)
    with evaluating(model, guide):
        apart = [pair.terms(x, num_samples=10) for _ in range(10)]
    for ours, theirs in zip(found[0], apart, strict=True):
        torch.testing.assert_close(ours.log_weight, theirs.log_weight)
