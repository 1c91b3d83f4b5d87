import json
import math
import signal
import threading
from collections.abc import Callable
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
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import assemble, load_checkpoint
from ppl_gen.experiment.config import Given
from ppl_gen.experiment.fitted import Assembled, Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.experiment.state import tensors_of
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.elbos import ScaleLatents, scaled
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.objectives.loss import bind
from ppl_gen.inference.pair import Pair
from ppl_gen.training import monitor
from ppl_gen.training.checks import prepare, without_gradient
from ppl_gen.training.loop import Diverged, loss_per_image, loss_with_gradient, train
from ppl_gen.training.optimizer import OneOptimizer


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


def test_parameters_that_nothing_depends_on_are_told(data: Data) -> None:
    """And those that model and guide share are counted once."""
    config = small_config()
    assert "8 of 8 parameters have a gradient" in str(prepare(config))
    model, guide = assemble(config, data)
    guide.shared, model.unused = model.decoder, nn.Linear(2, 3)
    missing = without_gradient(Assembled(config, model, guide, data, Given()))
    assert missing == ["model.unused.weight", "model.unused.bias"]
    modules = nn.ModuleDict({"model": model, "guide": guide})
    assert sum(1 for _ in modules.parameters()) == 10


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
        elbo = bind(construct(chosen.objective, num_particles=chosen.num_particles), pair, x[:8])
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
        elbo.loss_and_grads(stock_model, stock_guide, x)
        for one, parameter in zip(gradients, others, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(one, parameter.grad / len(x), rtol=1e-4, atol=1e-6)
            parameter.grad = None
        torch.manual_seed(5)
        theirs = SVI(stock_model, stock_guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step(x) / len(x)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for (name, one), other in zip(modules.named_parameters(), others, strict=True):
        # Adam's first step is the sign of the gradient: entries whose gradient is rounding are free.
        assert (one - other).abs().gt(1e-5).double().mean() < 0.02, name


def test_particles_average_the_elbo(data: Data) -> None:
    model, guide = assemble(small_config(), data)
    x = data.targets("train")[:64]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
        elbo = bind(construct("elbo", num_particles=2000), pair, x[:8])
        estimate = -elbo.differentiable_loss(pair.model, pair.guide, x) / 64
        terms = pair.terms(x, num_samples=2000)
        se = terms.log_weight.std(0).square().mean().sqrt() / math.sqrt(64 * 2000)
        # Both are estimates: the difference has twice the variance. 4 standard errors: false-alarm rate 6e-5.
        assert (estimate - terms.log_weight.mean()).abs() < 4 * math.sqrt(2) * se


@pytest.mark.parametrize("name", ["elbo", "elbo-analytic-kl"])
def test_warmup_scales_the_kl_term_alone(data: Data, name: str) -> None:
    model, guide = assemble(small_config(), data)
    x = data.targets("train")[:64]
    warmup = ScaleLatents()
    values = {}
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
        elbo = bind(construct(name), pair, x[:8])
        for scale in (0.0, 0.5, 1.0):
            warmup.scale = scale
            torch.manual_seed(1)
            values[scale] = elbo.differentiable_loss(scaled(pair.model, warmup), scaled(pair.guide, warmup), x).item()
        torch.manual_seed(1)
        terms = pair.terms(x, analytic_kl=True)
    torch.manual_seed(1)
    kl = (terms.log_guide - terms.log_prior).sum().item() if name == "elbo" else terms.kl.sum().item()  # type: ignore[union-attr]
    assert values[1.0] - values[0.0] == pytest.approx(kl, rel=1e-3)
    assert values[0.5] - values[0.0] == pytest.approx(kl / 2, rel=1e-3)


def test_analytic_kl_is_refused_where_there_is_none(data: Data) -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(3.0, torch.zeros(3), torch.ones(3)).to_event(1))

    model, _ = assemble(small_config(), data)
    x = data.targets("train")[:8]
    with evaluating(model):
        pair = Pair.read(model, guide, x)
        assert isinstance(bind(construct("elbo"), pair, x), Trace_ELBO)
        with pytest.raises(BadInput, match="no closed-form KL"):
            bind(construct("elbo-analytic-kl"), pair, x)


def test_schedules() -> None:
    rates = {
        name: [TrainingOptions(learning_rate=2.0, schedule=name).rate(step, 100) for step in range(100)]  # type: ignore[arg-type]
        for name in ("constant", "cosine", "one-cycle")
    }
    assert set(rates["constant"]) == {2.0}
    assert rates["cosine"][0] == 2 and rates["cosine"][50] == pytest.approx(1) and rates["cosine"][-1] < 0.001
    cycle = rates["one-cycle"]
    assert cycle[0] == pytest.approx(0.08) and cycle[30] == 2 and cycle[-1] < 0.01
    assert cycle[:31] == sorted(cycle[:31]) and cycle[30:] == sorted(cycle[30:], reverse=True)


def test_clipping_bounds_the_gradient(data: Data) -> None:
    model, guide = assemble(small_config(), data)
    parameters = [*model.parameters(), *guide.parameters()]
    optimizer = OneOptimizer(parameters, TrainingOptions(clip_grad_norm=0.5))
    norms: list[Tensor] = []
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    step = optimizer.parts["adam"].step
    optimizer.parts["adam"].step = lambda: norms.append(nn.utils.get_total_norm([p.grad for p in parameters])) or step()  # type: ignore[assignment,func-returns-value,misc]
    optimizer(set())
    assert norms[0].item() == pytest.approx(0.5, rel=1e-4)


def test_muon_steps_along_orthogonal_matrices_and_adam_along_the_rest() -> None:
    """The first step: singular values near 1 (0.68 to 1.2 by five iterations of Newton and Schulz) times 0.2 lr times
    the root of the longer side, whatever the gradient's; and Adam's, the rate times the sign."""
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.zeros(8, 5)), nn.Parameter(torch.zeros(6))
    optimizer = OneOptimizer([matrix, vector], TrainingOptions(optimizer="muon", learning_rate=0.1))
    matrix.grad, vector.grad = torch.randn(8, 5) @ torch.diag(torch.tensor([9.0, 3, 1, 1, 0.5])), torch.randn(6)
    sign = vector.grad.sign()
    optimizer(set())
    sizes = torch.linalg.svdvals(matrix) / (0.1 * 0.2 * 8**0.5)
    assert sizes.min() > 0.6 and sizes.max() < 1.3
    torch.testing.assert_close(vector.detach(), -0.1 * sign)
    assert matrix.grad is None and vector.grad is None


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, data: Data) -> None:
    with pytest.raises(Diverged, match=r"not finite at step \d+"):
        fit_pair(tmp_path / "run", data, replace(SMALL, learning_rate=1e20))
    content = RunDirectory.open(tmp_path / "run").load_checkpoint()
    assert content is not None and all(t.isfinite().all() for name, t in content[0].items() if name.startswith("last."))


# Resuming ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 6, 9])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "one-cycle", "clip_grad_norm": 5.0, "optimizer": "muon"},
        {"kl_warmup": 2, "num_particles": 2, "checkpoint_every": 2},
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


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path, data: Data) -> None:
    whole, _ = fit_pair(tmp_path / "whole", data)
    content = whole.load_checkpoint()
    cut = RunDirectory.create(tmp_path / "partial", "run", {})
    # As after a kill between the metrics and the checkpoint of the last epoch, in the middle of a line.
    lines = whole.metrics()
    for line in lines:
        cut.append_metrics(line)
    with open(cut.path / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "st')
    assert len(cut.metrics()) == len(lines)
    cut.cut_metrics(lines[1]["step"])
    assert cut.metrics() == lines[:2]
    assert content is not None and content[1]["epoch"] == 3


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


def test_metrics_hold_no_nan(tmp_path: Path, call: Callable[..., Any]) -> None:
    run = RunDirectory.create(tmp_path / "run", "run", {"x": float("nan")})
    run.append_metrics({"step": 0, "elbo": float("inf")})
    for name in ("config.json", "metrics.jsonl"):
        json.loads((run.path / name).read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(text))
