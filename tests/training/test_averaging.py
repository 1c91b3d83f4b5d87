"""Averages of weights, against their definition."""

import doctest
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fits import SMALL, fit_pair, same, small_config
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.state import prefixed, tensors_of
from ppl_gen.training import averaging
from ppl_gen.training.averaging import AveragedWeights


def _copies(modules: nn.ModuleDict) -> dict[str, Tensor]:
    return {name: tensor.double().clone() for name, tensor in tensors_of(modules).items()}


def test_the_example() -> None:
    assert doctest.testmod(averaging) == (0, 7)


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_is_the_sum_of_the_definition(decay: float) -> None:
    """Parameters and running statistics; a number of steps is not averaged. While it is in place, so are the weights of
    the steps in the place of the average."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))}).double()
    average = AveragedWeights(modules, decay)
    expected, place = _copies(modules), [each.data_ptr() for each in tensors_of(modules).values()]
    for step in range(1, 30):
        modules["model"](torch.randn(5, 2, dtype=torch.float64)).square().sum().backward()
        for parameter in modules.parameters():
            assert parameter.grad is not None
            parameter.data -= 0.01 * parameter.grad
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = {name: kept * expected[name] + (1 - kept) * each for name, each in _copies(modules).items()}
    ours = _copies(modules)
    with average.in_place():
        for name, tensor in tensors_of(modules).items():
            if name.endswith("num_batches_tracked"):
                assert tensor == 29
            else:
                torch.testing.assert_close(tensor, expected[name])
                assert torch.equal(average.others[name], ours[name])
    assert all(torch.equal(ours[name], each) for name, each in _copies(modules).items())
    assert place == [each.data_ptr() for each in tensors_of(modules).values()]


def test_a_run_measures_and_saves_the_average(tmp_path: Path, data: Data) -> None:
    """The steps are those of a run without an average. Its last and best weights are averages, and so are those that
    the run is left with, also when it is opened again."""
    options = replace(SMALL, batch_size=len(data.train), epochs=4)  # a step for each epoch
    ours = [_copies(nn.ModuleDict(dict(zip(("model", "guide"), assemble(small_config(), data), strict=True))))]
    for epochs in range(1, 5):
        run, modules = fit_pair(tmp_path / str(epochs), data, replace(options, epochs=epochs))
        ours.append(_copies(modules))
    expected = ours[0]
    for step, weights in enumerate(ours[1:], 1):
        kept = (1 + step) / (10 + step)
        expected = {name: kept * expected[name] + (1 - kept) * each for name, each in weights.items()}
    averaged, modules = fit_pair(tmp_path / "averaged", data, replace(options, ema_decay=0.999))
    content = averaged.load_checkpoint()
    assert content is not None and content[1]["best"]["epoch"] == 4
    for kind in ("last", "best"):
        for name, tensor in prefixed(content[0], f"{kind}.").items():
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
    for name, tensor in prefixed(content[0], "in-training.").items():
        torch.testing.assert_close(tensor.double(), ours[-1][name], rtol=1e-5, atol=1e-6)
    of_steps, of_average = ([each.get("loss") for each in each.metrics()] for each in (run, averaged))
    assert of_steps[1:] == pytest.approx(of_average[1:], rel=1e-6)
    assert run.metrics()[-1]["validation"]["elbo"] > averaged.metrics()[-1]["validation"]["elbo"]  # it lags behind
    assert all(torch.equal(tensor, content[0][f"last.{name}"]) for name, tensor in tensors_of(modules).items())
    _, again = fit_pair(tmp_path / "averaged", data, replace(options, ema_decay=0.999))
    assert same(modules, again)


def test_a_checkpoint_without_the_weights_of_the_steps_is_damaged(tmp_path: Path, data: Data) -> None:
    options = replace(SMALL, epochs=1, ema_decay=0.9)
    run, _ = fit_pair(tmp_path / "run", data, options)
    content = run.load_checkpoint()
    assert content is not None
    tensors, state = content
    run.save_checkpoint({name: each for name, each in tensors.items() if not name.startswith("in-training.")}, state)
    with pytest.raises(BadInput, match=r"does not match the run's config.json at 'in-training\..*', which is missing"):
        fit_pair(tmp_path / "run", data, replace(options, epochs=2))
    run.save_checkpoint(tensors, state)
    with pytest.raises(BadInput, match=r"at 'in-training\..*', which belongs to nothing in this run"):
        fit_pair(tmp_path / "run", data, replace(options, epochs=2, ema_decay=None))
