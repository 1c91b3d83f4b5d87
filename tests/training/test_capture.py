"""Recorded steps are the pair's own, and what a record cannot be of is told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import CONFIG, SMALL, fit_pair, same, small_config, without_times
from torch import Tensor, nn

from ppl_gen import fit
from ppl_gen.core.errors import BadInput, Failed
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind, recordable
from ppl_gen.inference.pair import Pair
from ppl_gen.training.capture import Captured
from ppl_gen.training.loop import train

Call = Callable[..., tuple[int, str, str]]
DATA = DataOptions(data="digits", train_size=200)
VAE = ("vae", {"latent_dim": 2, "hidden_dims": (8,)})


def _gradients(loss: Callable[..., Tensor], modules: nn.Module, x: Tensor, seed: int) -> list[Tensor | None]:
    for parameter in modules.parameters():
        parameter.grad = None
    torch.manual_seed(seed)
    loss(x).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in modules.parameters()]


@pytest.mark.parametrize(
    ("name", "model", "guide", "options"),
    [
        ("elbo", VAE, ("normal", {"input_dropout": 0.3}), {}),
        ("elbo", VAE, ("flow", {"transform": "iaf"}), {"num_particles": 3}),
        ("elbo", ("hierarchical-vae", {}), ("hierarchical", {}), {}),
        ("elbo", ("factor-analysis", {"latent_dim": 2}), ("exact-gaussian", {}), {}),
        ("elbo-analytic-kl", VAE, ("normal", {}), {"num_particles": 2}),
        ("beta", VAE, ("normal", {}), {"beta": 3.0}),
        ("stl", VAE, ("multivariate-normal", {}), {}),
        ("dreg", VAE, ("normal", {}), {"num_particles": 4}),
        ("vimco", VAE, ("normal", {}), {"num_particles": 4}),
        ("wake-sleep", VAE, ("normal", {}), {"num_particles": 2}),
    ],
)
def test_loss_and_gradients_are_those_of_the_objective(
    data: Data, name: str, model: Any, guide: Any, options: dict[str, Any]
) -> None:
    """Of other images than it was recorded on, after the weights have moved, and of a batch of another size."""
    modules = nn.ModuleDict(
        dict(zip(("model", "guide"), assemble(Config(*model, *guide, data=DATA), data), strict=True))
    )
    x = data.targets("train")
    with evaluating(modules):
        pair = Pair.read(modules["model"], modules["guide"], x[:8])
        objective = construct(name, **options)
        elbo = bind(objective, pair, x[:8])
        recorded = bind(recordable(objective, pair), pair, x[:8])

    def of(elbo: Any) -> Callable[..., Tensor]:
        return lambda x: elbo.differentiable_loss(pair.model, pair.guide, x) / len(x)

    parameters = list(modules.parameters())
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        before = [tensor.clone() for tensor in modules.state_dict().values()]
        noise = torch.get_rng_state()
        captured = Captured(of(recorded), modules, (x[:20],), (x[60:80],))
        assert torch.equal(noise, torch.get_rng_state())
        assert all(torch.equal(one, two) for one, two in zip(before, modules.state_dict().values(), strict=True))
        with torch.no_grad():
            for parameter in parameters:
                parameter += 0.03 * torch.randn_like(parameter)
        for images in (x[20:40], x[40:60], x[60:67]):
            gradients = _gradients(of(elbo), modules, images, seed=3)
            torch.manual_seed(3)
            expected = of(elbo)(images)
            torch.manual_seed(3)
            torch.testing.assert_close(captured(None, None, images), expected, rtol=1e-5, atol=1e-5)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    assert parameter.grad is None
                else:
                    assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
                    limit = 1e-4 * float(gradient.norm())
                    torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=limit + 1e-7)


def test_gradients_are_an_optimizers_to_change() -> None:
    """None is a view of another, of a weight or of the batch, or in another order than its parameter."""
    a, b, c = (nn.Parameter(torch.randn(4, 3)) for _ in range(3))
    c.data = torch.randn(3, 4).T

    def loss(x: Tensor) -> Tensor:
        return ((a + b) * x).sum() + a.sum() + (c * x).sum()

    modules = nn.ParameterList([a, b, c])
    x = torch.randn(4, 3)
    captured = Captured(loss, modules, (torch.zeros(4, 3),), (torch.ones(4, 3),))
    captured(None, None, x)
    expected = (x + 1, x.clone(), x.clone())
    for parameter, gradient in zip((a, b, c), expected, strict=True):
        assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, gradient)
        parameter.grad.zero_()
    assert x.abs().min() > 0 and len({p.grad.data_ptr() for p in (a, b, c) if p.grad is not None}) == 3


def test_moments_of_batches_move_with_steps_alone() -> None:
    """Those of batch normalization: not when it is recorded or checked, and as without a record."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(3, 10, 3)
    captured = Captured(lambda x: nets[0](x).square().mean(), nets[0], (x[0],), (x[2],))
    captured.check(x[1])
    for each in x:
        captured(None, None, each)
        nets[1](each)
    for (name, one), two in zip(nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_a_fit_interrupted_and_resumed(tmp_path: Path, data: Data) -> None:
    """Ends with the same weights, bit for bit; and near those of a fit without a record, as far as rounding goes."""
    options = replace(SMALL, capture=True)
    whole, modules = fit_pair(tmp_path / "whole", data, options)
    fit_pair(tmp_path / "cut", data, replace(options, epochs=2))
    run, resumed = fit_pair(tmp_path / "cut", data, options)
    assert same(modules, resumed)
    assert without_times(whole) == without_times(run)
    plain, _ = fit_pair(tmp_path / "plain", data, SMALL)
    for ours, theirs in zip(whole.metrics(), plain.metrics(), strict=True):
        assert ours["train"]["elbo"] == pytest.approx(theirs["train"]["elbo"], abs=1e-3)


class Counting(nn.Module):
    """Shrinks its scale with every call in training."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.loc, self.calls = nn.Linear(data_dim, latent_dim), 0

    def guide(self, x: Tensor) -> None:
        self.calls += self.training
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 0.99**self.calls).to_event(1))


class Looking(Counting):
    """Asks what a value is."""

    def guide(self, x: Tensor) -> None:
        loc = self.loc(x)
        if loc.abs().max() < 1e9:
            loc = 2 * loc
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


class OutOfSight(Counting):
    """Takes the values of an image past torch: they would be constants of the record."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(torch.tensor(x.tolist())), 1.0).to_event(1))


class Assigning(Counting):
    """Keeps a mean in a new tensor at each step."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.register_buffer("mean", torch.zeros(data_dim))

    def guide(self, x: Tensor) -> None:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x - self.mean), 1.0).to_event(1))


class Averaging(Counting):
    """Keeps a running mean, which the loss does not use, by a count of its own."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__(data_dim, latent_dim)
        self.calls = 40  # a mean that has nearly settled
        self.register_buffer("mean", torch.zeros(data_dim))

    def guide(self, x: Tensor) -> None:
        self.calls += 1
        self.mean += (x.mean(0) - self.mean) / self.calls  # type: ignore[operator]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 1.0).to_event(1))


class Shrinking(Counting):
    """Changes a weight that is trained, by a count of its own, but not its loss."""

    def guide(self, x: Tensor) -> None:
        self.calls += 1
        with torch.no_grad():
            self.loc.bias.mul_(1 - 0.1 / self.calls)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x) - self.loc.bias, 1.0).to_event(1))


class Late(Counting):
    """Does something else from one step of training on."""

    def guide(self, x: Tensor) -> None:
        self.calls += self.training and len(x) == SMALL.batch_size
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc(x), 0.5 if self.calls < 6 else 0.1).to_event(1))


def _train(guide: nn.Module, data: Data, path: Path, **changes: Any) -> RunDirectory:
    options = replace(SMALL, capture=True, **changes)
    model, _ = assemble(small_config(options), data)
    run = RunDirectory.create(path, "run", CONFIG)
    train(Fitted(small_config(options), model, guide, data, Given(), run), quiet=True)
    return run


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Counting, "no longer computes what was recorded"),
        (Looking, r"looks at values of tensors; train it without: .*test_capture\.py"),
        (OutOfSight, "no longer computes what was recorded"),
        (Averaging, "no longer computes what was recorded"),
        (Shrinking, "no longer computes what was recorded"),
        (Assigning, "assigns a new tensor to a buffer"),
    ],
)
def test_what_is_not_its_operations_is_refused(tmp_path: Path, data: Data, cls: Any, words: str) -> None:
    with pytest.raises(BadInput, match=f"capture: .*{words}"):
        _train(cls(data.dim, 3), data, tmp_path / "run")


def test_what_changes_on_the_way_is_told_before_it_is_kept(tmp_path: Path, data: Data) -> None:
    """In the last epoch, too: four whole batches in each, and one that is checked."""
    guide = Late(data.dim, 3)
    with pytest.raises(Failed, match="no longer computes what was recorded"):
        _train(guide, data, tmp_path / "run", epochs=4)
    run = RunDirectory.open(tmp_path / "run")
    assert len(run.metrics() or []) < 5 and run.metrics()[-1]["step"] == run.step()


def test_weights_that_are_not_trained_move_with_steps_alone() -> None:
    """A running mean that is a parameter without a gradient."""
    torch.manual_seed(0)
    mean, weight = nn.Parameter(torch.zeros(3), requires_grad=False), nn.Parameter(torch.ones(3))
    modules = nn.ParameterList([mean, weight])

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            mean.mul_(0.9).add_(0.1 * x.mean(0))
        return ((x - mean) * weight).square().sum()

    x = torch.randn(4, 5, 3)
    captured = Captured(loss, modules, (x[0],), (x[1],))
    captured.check(x[2])
    assert mean.tolist() == [0, 0, 0]
    for each in x:
        captured(None, None, each)
    expected = sum(0.1 * 0.9 ** (3 - step) * each.mean(0) for step, each in enumerate(x))
    torch.testing.assert_close(mean.detach(), expected)


def test_what_cannot_be_recorded(elsewhere: Path, call: Call) -> None:
    quick = ("--data", "digits", "--train-size", "50", "--epochs", "1", "--num-samples", "5", "--capture")
    for arguments, words in (
        (("mixture",), "--capture: cannot record enumeration"),
        (("gan",), "--capture: cannot record enumeration, a score function with a baseline, or the losses of a GAN"),
        (("belief-net", "--guide", "bernoulli"), "--capture: cannot record enumeration, a score function"),
        (("vae", "--kl-warmup", "1"), "the same at every step, but --kl-warmup 1 changes it"),
    ):
        status, _, err = call(fit.command, *arguments, *quick, "--out", "run")
        assert status == 2 and words in err and err.count("error:") == 1 and not Path("run").exists(), err
