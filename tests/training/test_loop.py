"""Training: a step, a run, and a run that is interrupted."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fits import SMALL, fit_pair, interrupt_after, same, small_config, without_times
from pyro.infer import SVI
from torch import Tensor, nn

from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble, load_checkpoint
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.experiment.state import tensors_of
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.training import monitor
from ppl_gen.training.diverging import Diverged
from ppl_gen.training.loop import Loop, loss_per_image, loss_with_gradient, train
from ppl_gen.training.optimizer import OneOptimizer


def _process(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


def _seconds_left_out(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    entries = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def test_every_parameter_moves_twice_in_one_process(tmp_path: Path, data: Data) -> None:
    for attempt in range(2):
        model, guide = assemble(small_config(), data)
        modules = nn.ModuleDict({"model": model, "guide": guide})
        before = {name: tensor.clone() for name, tensor in tensors_of(modules).items()}
        run = RunDirectory.create(tmp_path / str(attempt), "run", {})
        train(Fitted(small_config(), model, guide, data, Given(), run), quiet=True)
        for name, tensor in tensors_of(modules).items():
            assert not torch.equal(tensor, before[name]), name
    assert len(pyro.get_param_store()) == 0


def test_settings_and_generators_are_left_as_they_were(tmp_path: Path, data: Data) -> None:
    before = (torch.get_rng_state(), torch.get_float32_matmul_precision(), pyro.settings.get())
    handlers = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    fit_pair(tmp_path / "run", data, replace(SMALL, epochs=1, matmul_precision="medium"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_float32_matmul_precision(), pyro.settings.get())
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_same_seed_same_run_and_other_seed_other_run(tmp_path: Path, data: Data) -> None:
    first, ours = fit_pair(tmp_path / "a", data)
    second, theirs = fit_pair(tmp_path / "b", data)
    assert same(ours, theirs) and without_times(first) == without_times(second)
    assert not same(ours, fit_pair(tmp_path / "c", data, replace(SMALL, seed=1))[1])


@pytest.mark.parametrize(("optimizer", "gain"), [("adam", 1.0), ("muon", 0.75)])
def test_learns(tmp_path: Path, data: Data, optimizer: Literal["adam", "muon"], gain: float) -> None:
    """More than the 0.56 nats that pixels on their own gain, without z."""
    options = replace(SMALL, epochs=60, batch_size=20, learning_rate=3e-3, optimizer=optimizer)
    run, _ = fit_pair(tmp_path / "run", data, options)
    lines = run.metrics()
    assert [line["epoch"] for line in lines] == list(range(61))
    assert lines[-1]["train"]["elbo"] > lines[0]["train"]["elbo"] + gain
    for line in lines:
        for split in ("train", "validation"):
            terms = line[split]
            assert terms["elbo"] == pytest.approx(terms["reconstruction"] - terms["kl"])


@pytest.mark.parametrize("options", [{}, {"num_particles": 4}, {"objective": "elbo-analytic-kl"}])
def test_a_step_is_pyros(tmp_path: Path, data: Data, options: dict[str, Any]) -> None:
    """Gradients and the first step equal stock Pyro's, with `pyro.module` and `pyro.optim.Adam`, on the same noise."""
    chosen = TrainingOptions(**options)
    model, guide = assemble(small_config(), data)
    x = data.targets("train")[:64]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
        objective: Any = construct(chosen.objective, num_particles=chosen.num_particles)
        elbo, of_pyro = bind(objective, pair, x[:8]), objective.elbo(pair, x[:8])
    assert pair.direct is not None
    modules = nn.ModuleDict({"model": model, "guide": guide})
    loss = partial(loss_per_image, elbo)
    loss_and_grads = partial(loss_with_gradient, loss)
    optimizer = OneOptimizer(list(modules.parameters()), chosen)
    torch.manual_seed(5)
    loss_and_grads(pair.model, pair.guide, x)
    gradients = [parameter.grad.clone() for parameter in modules.parameters() if parameter.grad is not None]
    modules.zero_grad()
    torch.manual_seed(5)
    ours = SVI(pair.model, pair.guide, optimizer, loss=loss, loss_and_grads=loss_and_grads).step(x)

    other_model, other_guide = assemble(small_config(), data)

    def stock_model(x: Tensor) -> None:
        pyro.module("model", other_model)
        other_model.model(x)  # type: ignore[operator]

    def stock_guide(x: Tensor) -> None:
        pyro.module("guide", other_guide)
        other_guide.guide(x)  # type: ignore[operator]

    others = [*other_model.parameters(), *other_guide.parameters()]
    with pyro.get_param_store().scope():
        torch.manual_seed(5)
        of_pyro.loss_and_grads(stock_model, stock_guide, x)
        for one, parameter in zip(gradients, others, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(one, parameter.grad / len(x), rtol=1e-4, atol=1e-6)
            parameter.grad = None
        torch.manual_seed(5)
        theirs = SVI(stock_model, stock_guide, pyro.optim.Adam({"lr": 1e-3}), of_pyro).step(x) / len(x)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for (name, one), other in zip(modules.named_parameters(), others, strict=True):
        # Adam's first step is the sign of the gradient: entries whose gradient is rounding are free.
        assert (one - other).abs().gt(1e-5).double().mean() < 0.02, name


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, data: Data) -> None:
    with pytest.raises(Diverged, match=r"not finite at step \d+"):
        fit_pair(tmp_path / "run", data, replace(SMALL, learning_rate=1e20))
    content = RunDirectory.open(tmp_path / "run").load_checkpoint()
    assert content is not None and all(t.isfinite().all() for name, t in content[0].items() if name.startswith("last."))


@pytest.mark.parametrize("steps", [3, 6, 9])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "one-cycle", "clip_grad_norm": 5.0, "optimizer": "muon"},
        {"kl_warmup": 2, "num_particles": 2, "checkpoint_every": 2},
        {"ema_decay": 0.9},
    ],
)
def test_interrupted_and_resumed_equals_undisturbed(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch, steps: int, options: dict[str, Any]
) -> None:
    chosen = replace(SMALL, **options)
    whole, weights = fit_pair(tmp_path / "whole", data, chosen, input_dropout=0.2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(steps, patch)
        fit_pair(tmp_path / "cut", data, chosen, input_dropout=0.2)
    cut, resumed = fit_pair(tmp_path / "cut", data, chosen, input_dropout=0.2)
    assert same(weights, resumed)
    assert without_times(whole) == without_times(cut)
    ours, theirs = whole.load_checkpoint(), cut.load_checkpoint()
    assert ours is not None and theirs is not None
    assert ours[0].keys() == theirs[0].keys() and all(torch.equal(ours[0][k], theirs[0][k]) for k in ours[0])
    kept, again = whole.arrays("samples.npz"), cut.arrays("samples.npz")
    assert set(kept) == set(again) == {"epoch_0", "epoch_2", "epoch_3"}
    assert all(np.array_equal(kept[key], again[key]) for key in kept)


def test_an_interrupt_while_the_last_checkpoint_is_written(
    tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training has ended then, but what follows does not begin."""
    save = Loop.save

    def interrupted(self: Loop) -> None:
        if self.state.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        save(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "save", interrupted)
        fit_pair(tmp_path / "cut", data, replace(SMALL, epochs=1))
    cut, resumed = fit_pair(tmp_path / "cut", data, replace(SMALL, epochs=1))
    whole, weights = fit_pair(tmp_path / "whole", data, replace(SMALL, epochs=1))
    assert same(weights, resumed) and without_times(whole) == without_times(cut)


def test_best_on_validation_is_kept(tmp_path: Path, data: Data) -> None:
    run, modules = fit_pair(tmp_path / "run", data, replace(SMALL, epochs=12, learning_rate=0.03))
    content = run.load_checkpoint()
    assert content is not None
    validation = [line["validation"]["elbo"] for line in run.metrics()]
    best = max(validation)
    assert content[1]["best"] == {"epoch": validation.index(best), "elbo": best}
    assert validation[-1] < best  # or the test says nothing
    model, guide = assemble(small_config(), data)
    load_checkpoint(run, model, guide, "best")
    with evaluating(model, guide):
        pair = Pair.read(model, guide, data.targets("validation")[:8])
    terms = elbo_terms(model, guide, pair, data.targets("validation"), seed=monitor._SEED)
    assert terms["elbo"] == best
    load_checkpoint(run, model, guide, "last")
    assert same(nn.ModuleDict({"model": model, "guide": guide}), modules)


def test_labels_reach_a_pair_that_takes_them(tmp_path: Path) -> None:
    """Each beside its own image, in every batch, which is shuffled: labels that can be told from the pixels."""

    def told(x: Tensor) -> Tensor:
        return x.sum(-1).long() % 10

    data = load_data(DataOptions("digits", "threshold", train_size=200))
    splits = {name: data.split(name) for name in ("train", "validation", "test")}
    data = replace(data, **{name: replace(split, labels=told(split.pixels())) for name, split in splits.items()})
    seen = 0
    model, _ = assemble(small_config(), data)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 3)

        def guide(self, x: Tensor, y: Tensor) -> None:
            nonlocal seen
            assert torch.equal(y, told(x)) and y.dtype == torch.int64
            seen += len(set(y.tolist())) > 1
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.table(y), 1.0).to_event(1))

    run = RunDirectory.create(tmp_path / "run", "run", {})
    train(Fitted(small_config(replace(SMALL, epochs=1)), model, Guide(), data, Given(), run), quiet=True)
    assert seen >= 4  # batches of training images


def test_no_interrupts_are_caught_outside_the_main_thread(tmp_path: Path, data: Data) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            fit_pair(tmp_path / "run", data, replace(SMALL, epochs=1))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.slow
def test_killed_at_ten_random_moments(elsewhere: Path) -> None:
    """SIGKILL at any moment leaves a run that resumes to the same weights, metrics and evaluation."""
    arguments = ["--data", "digits", "--epochs", "40", "--num-samples", "300", "--seed", "4"]
    assert _process("ppl_gen.fit", "vae", *arguments, "--out", "whole", cwd=elsewhere).returncode == 0

    rng = np.random.default_rng(5)
    kills = 0
    start = ["ppl_gen.fit", "vae", *arguments, "--out", "cut"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    while kills < 10:
        assert not (elsewhere / "cut" / "evaluation.json").exists(), f"finished after {kills} kills: too fast to test"
        resumable = (elsewhere / "cut").exists()
        command = ["ppl_gen.fit", "--resume", "cut"] if resumable else start
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=elsewhere, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # "run: …": start-up is over
        try:
            process.wait(rng.uniform(0, 0.35))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
    done = _process("ppl_gen.fit", "--resume", "cut", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    for name in ("evaluation.json", "metrics.jsonl"):
        assert _seconds_left_out(elsewhere / "whole" / name) == _seconds_left_out(elsewhere / "cut" / name)
    from safetensors.torch import load_file

    ours, theirs = (load_file(elsewhere / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
