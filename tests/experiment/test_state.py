"""The tensors of a pair."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fits import SMALL, small_config
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.experiment.state import check, restore, snapshot, tensors_of
from ppl_gen.training.loop import train
from ppl_gen.training.optimizer import OneOptimizer

FILE = Path("run/checkpoint.safetensors")


def test_shared_parameters_are_saved_and_trained_once(tmp_path: Path, data: Data) -> None:
    model, guide = assemble(small_config(), data)
    guide.shared = model  # type: ignore[assignment]
    modules = nn.ModuleDict({"model": model, "guide": guide})
    names = tensors_of(modules)
    assert len(names) == len(list(modules.parameters()))
    run = RunDirectory.create(tmp_path / "run", "run", {})
    train(Fitted(small_config(replace(SMALL, epochs=1)), model, guide, data, Given(), run), quiet=True)
    content = run.load_checkpoint()
    assert content is not None
    assert sorted(k.removeprefix("last.") for k in content[0] if k.startswith("last.")) == sorted(names)


def _snapshot(optimizer: str = "adam", steps: int = 1) -> tuple[nn.ModuleDict, OneOptimizer, dict[str, Tensor]]:
    """Modules and their optimizer after some steps, and the tensors of their checkpoint."""
    modules = nn.ModuleDict({"model": nn.Linear(3, 4), "guide": nn.BatchNorm1d(2)})
    made = OneOptimizer(list(modules.parameters()), TrainingOptions(optimizer=optimizer))  # type: ignore[arg-type]
    for _ in range(steps):
        for parameter in modules.parameters():
            parameter.grad = torch.ones_like(parameter)
        made(set())
    return modules, made, {name: tensor.clone() for name, tensor in snapshot(modules, made.parts).items()}


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "has the shape": lambda tensor: tensor.reshape(-1)[:1].expand(3).clone(),
    "torch.float64, not": lambda tensor: tensor.double(),
    "torch.int32, not": lambda tensor: tensor.int(),
    "torch.float8_e4m3fn, not": lambda tensor: tensor.float().to(torch.float8_e4m3fn),
    "not finite": lambda tensor: tensor * torch.nan,
}


@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        ("adam", "last.model.weight"),
        ("adam", "last.guide.running_var"),
        ("adam", "adam.0.step"),
        ("adam", "adam.0.exp_avg"),
        ("adam", "adam.3.exp_avg_sq"),
        ("muon", "muon.0.momentum_buffer"),
        ("muon", "adam.0.exp_avg"),
    ],
)
def test_a_tensor_of_another_kind_is_refused(optimizer: str, name: str, words: str) -> None:
    """Adam would read and write beyond a state that is shorter than its parameter. Nothing is changed."""
    modules, made, tensors = _snapshot(optimizer)
    before = {key: tensor.clone() for key, tensor in snapshot(modules, made.parts).items()}
    with pytest.raises(BadInput, match=rf"checkpoint.safetensors: .*'{name}'.*{words}"):
        restore(modules, made.parts, tensors | {name: CHANGES[words](tensors[name])}, FILE, stepped=True)
    assert all(torch.equal(before[key], now) for key, now in snapshot(modules, made.parts).items())


@pytest.mark.parametrize(
    ("missing", "added", "words"),
    [
        ("last.model.bias", {}, "'last.model.bias', which is missing"),
        ("adam.1.exp_avg", {}, "'adam.1.exp_avg', which is missing"),
        ("random.cpu", {}, "'random.cpu', which is missing"),
        ("", {"adam.9.exp_avg": torch.zeros(3)}, "'adam.9.exp_avg', which belongs to nothing"),
        ("", {"adam.x.exp_avg": torch.zeros(3)}, "'adam.x.exp_avg', which belongs to nothing"),
        ("", {"surplus": torch.zeros(3)}, "'surplus', which belongs to nothing"),
        ("", {"best.model.weight": torch.zeros(4, 3)}, "'best.guide.bias', which is missing"),
        ("", {"random.cpu": torch.zeros(5, dtype=torch.uint8)}, r"'random.cpu', which has the shape \[5\]"),
        ("", {"random.cuda": torch.zeros(5, dtype=torch.uint8)}, r"'random.cuda', which has the shape \[5\]"),
        ("", {"random.cpu": torch.zeros(5056, dtype=torch.uint8)}, "damaged at 'random'"),
    ],
)
def test_a_tensor_that_is_missing_or_surplus_is_refused(missing: str, added: dict[str, Tensor], words: str) -> None:
    modules, made, tensors = _snapshot()
    found = {name: tensor for name, tensor in (tensors | added).items() if name != missing}
    with pytest.raises(BadInput, match=words):
        restore(modules, made.parts, found, FILE, stepped=True)


def test_a_state_is_there_once_there_was_a_step() -> None:
    """Before the first step an optimizer has none; later a parameter without a gradient has none."""
    modules, made, tensors = _snapshot(steps=0)
    restore(modules, made.parts, tensors, FILE, stepped=False)
    with pytest.raises(BadInput, match=r"'adam.0.exp_avg', which is missing"):
        restore(modules, made.parts, tensors, FILE, stepped=True)
    modules, made, tensors = _snapshot()
    some = {name: tensor for name, tensor in tensors.items() if not name.startswith("adam.2.")}
    restore(modules, made.parts, some, FILE, stepped=True)


def test_a_buffer_may_be_infinite_where_its_own_is() -> None:
    """Such as a mask. Other places must be finite."""
    modules = nn.ModuleDict({"model": nn.Linear(2, 2)})
    modules["model"].register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    ours = tensors_of(modules)
    check({name: tensor.clone() for name, tensor in ours.items()}, ours, FILE)
    with pytest.raises(BadInput, match=r"'model.mask', which is not finite"):
        check(ours | {"model.mask": torch.tensor([-torch.inf, 0.0])}, ours, FILE)
