"""What the benchmarks compare is the same number."""

import argparse
import copy
import io
import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
import xarray
from pyro.infer import TraceEnum_ELBO
from torch import nn

from benchmarks import (
    closed_form,
    em,
    enumeration,
    exact_training,
    gap,
    gradient_series,
    growth,
    importance,
    khat,
    null_comparisons,
    pages,
    profiles,
    trusted,
    vae_step,
    wall,
)
from benchmarks.__main__ import draw, from_tables, markdown
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.steps import training_step
from benchmarks.timing import Comparison, medians, show
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.annealed import Annealing, bidirectional_bounds
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.exact import exact_log_px

pytestmark = pytest.mark.drawn


def test_ways_to_sum_over_a_belief_net() -> None:
    model = enumeration.BeliefNet(9, latent_dim=3, init_scale=1.0).double()
    x = torch.bernoulli(torch.full((5, 9), 0.5, dtype=torch.float64))
    with pyro.validation_enabled(False):
        losses = [way(model, x)() for way in (enumeration.separate_sites, enumeration.broadcast, enumeration.ours)]
    for loss in losses:
        torch.testing.assert_close(loss, -exact_log_px(model, x).sum(), rtol=1e-12, atol=0)


def test_bounds_of_annealing_hold_within_their_errors() -> None:
    """Means and standard errors over the images of each bound less log p(x) written out; the picture shows and names
    them."""
    model = closed_form.principal_components(load_data(DataOptions("digits", "dequantized")), 10)
    torch.manual_seed(0)
    lower, upper, lower_error, upper_error = closed_form.bounds(model, 10, 2)
    torch.manual_seed(0)
    between = bidirectional_bounds(model, 10, annealing=Annealing(2))
    weight, psi = model.weight.double(), model.psi.double()
    x = between.x.double() - model.loc.double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(64).double(), weight.T @ weight + psi.diag())
    for mean, error, bound in ((lower, lower_error, between.lower), (upper, upper_error, between.upper)):
        away = (bound - exact.log_prob(x)).numpy()
        assert (mean, error) == (
            pytest.approx(away.mean(), abs=1e-3),
            pytest.approx(away.std(ddof=1) / 10**0.5, abs=1e-3),
        )
    assert lower < -2 * lower_error < 0 < 2 * upper_error < upper  # so few temperatures are far from log p(x)
    figure = closed_form.draw_bounds({1: {5: (-1.0, 2.0, 0.1, 0.2)}, 2: {5: (0.1, 0.2, 0.3, 0.1)}})
    figure.draw_without_rendering()
    for axes, title in zip(figure.axes, ("1 latent unit", "2 latent units"), strict=True):
        names = {text.get_text() for text in axes.texts}
        assert names == {"upper bound", "lower bound", "exact log p(x)"} and axes.get_title(loc="left") == title
    bars = [container.lines[2][0].get_segments()[0][:, 1].tolist() for container in figure.axes[0].containers]
    assert bars == [pytest.approx([2 - 0.392, 2 + 0.392]), pytest.approx([-1 - 0.196, -1 + 0.196])]


def test_ways_to_sum_over_a_mixture() -> None:
    model = enumeration.Mixture(9, num_components=4).double()
    x = torch.bernoulli(torch.full((5, 9), 0.5, dtype=torch.float64))
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        stock = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
            enumeration.stock_mixture(model), enumeration.no_guide, x
        )
        losses = [stock, *(way(model, x)() for way in (enumeration.hand_written, enumeration.ours))]
    for loss in losses:
        torch.testing.assert_close(loss, -exact_log_px(model, x).sum(), rtol=1e-8, atol=0)  # softplus from 20 on is l


def test_mixture_steps() -> None:
    """Each optimizer moves its own copy of the model to the same place."""
    x = torch.bernoulli(torch.full((5, 9), 0.5))
    first = enumeration.Mixture(9, num_components=4)
    models = [copy.deepcopy(first) for _ in range(3)]
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        enumeration._step(enumeration.hand_written(models[0], x), models[0])()
        training_step(models[1], Enumerated(), x, TrainingOptions())()
        enumeration._stock_svi(models[2], x)()
    for model in models:
        assert not torch.equal(model.weight, first.weight)
        torch.testing.assert_close(model.weight, models[0].weight, rtol=0, atol=1e-5)


def test_wall_in_its_own_process() -> None:
    measured = wall._in_own_process("ours", 2)
    assert measured["seconds"] > 0 and measured["bytes"] >= 0
    with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
        wall._in_own_process("ours", "two")  # type: ignore[arg-type]


@pytest.mark.painted
def test_wall(tmp_path: Path) -> None:
    """All ways up to M = 3 on tiny images, their figure, and the figure of what was written down."""
    results = {way: wall.climb(way, 3, lambda way, units: wall.measure(way, units, 4, 9)) for way in wall.WAYS}
    assert [len(result["points"]) for result in results.values()] == [3] * 4
    (tmp_path / "wall.json").write_text(json.dumps(results))
    wall.main(["--draw-only", str(tmp_path / "wall.json"), "--out", str(tmp_path / "figures" / "wall.png")])
    assert (tmp_path / "figures" / "wall.png").stat().st_size > 1000


def test_where_the_wall_stops() -> None:
    def memory(way: str, units: int) -> dict[str, float]:
        return {"seconds": 0.1, "bytes": 1e9 * 2**units}

    def slow(way: str, units: int) -> dict[str, float]:
        return {"seconds": 20.0 * 2**units, "bytes": 0}

    def failing(way: str, units: int) -> dict[str, float]:
        raise RuntimeError("only tensors with up to 64 dims are supported")

    stopped = [wall.climb("ours", 5, measured) for measured in (memory, slow, failing)]
    assert [len(each["points"]) for each in stopped] == [3, 2, 0]
    assert [each["stop"] for each in stopped] == [
        "memory: M = 4 would take 16.0 GB",
        "time: M = 2 took 80 s",
        "M = 1: only tensors with up to 64 dims are supported",
    ]
    wall.draw(dict(zip(wall.WAYS, stopped, strict=False))).savefig(io.BytesIO())


def test_the_wall_says_how_far_ten_seconds_reach() -> None:
    times = {"sites": (1.0, 9.0, 12.0), "broadcast": (2.0, 11.0, 12.0), "ours": (1.0, 2.0, 9.9)}
    results = {
        way: {"points": [{"units": m, "seconds": s, "bytes": 1e6} for m, s in enumerate(each, 1)], "stop": ""}
        for way, each in times.items()
    }
    assert (wall.within(results, "sites", "broadcast"), wall.within(results, "ours")) == (2, 3)
    assert "stock Pyro $2^{2}$ states, ppl_gen $2^{3}$" in wall.draw(results).get_suptitle()
    assert wall.within({"ours": {"points": []}}, "ours") is None


def test_slope_of_the_wall() -> None:
    points = [{"units": m, "seconds": 1 + 3 * 2.0**m, "bytes": 4.0**m} for m in range(1, 12)]
    assert wall.slope(points, "seconds") == pytest.approx(1, abs=0.01)
    assert wall.slope(points, "bytes") == pytest.approx(2)
    assert wall.slope(points[:4], "bytes") is None


def test_em_climbs() -> None:
    torch.manual_seed(0)
    x = torch.bernoulli(torch.tensor([[0.9] * 4 + [0.1] * 4, [0.1] * 4 + [0.9] * 4])[torch.arange(200) % 2])
    bounds = [em.log_joint(x, *em.fit(x, 2, n)).logsumexp(-1).mean() for n in (0, 1, 5, 20)]
    assert bounds == sorted(bounds) and bounds[-1] > bounds[0] + 0.5


def test_slope_of_growth() -> None:
    assert growth.slope({n: 1e-3 + 1e-5 * n for n in (1, 10, 1000, 10_000, 100_000)}) == pytest.approx(1, abs=0.05)
    assert growth.slope({n: 1.0 * n * n for n in (1, 2, 4, 8)}) == pytest.approx(2)
    assert growth.slope(dict.fromkeys((1, 2, 4, 8), 1.0)) is None


@pytest.mark.painted
def test_growth_of_the_two_smallest_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured, printed, and drawn as they are printed."""
    kept, picture = str(tmp_path / "growth.json"), str(tmp_path / "figures" / "growth.png")
    growth.main(["--rounds", "2", "--sizes", "2", "--json", kept, "--out", picture])
    assert (tmp_path / "figures" / "growth.png").stat().st_size > 1000
    out = capsys.readouterr().out
    growth.main(["--draw-only", kept, "--out", picture])
    assert capsys.readouterr().out == out
    assert out.count("slope unknown") == 5  # of two sizes
    printed = [(int(size), float(ms)) for size, ms in re.findall(r"^ +(\d+) +([\d.]+) ms$", out, re.MULTILINE)]
    assert [size for size, _ in printed] == [64, 128, 400, 784, 32, 128, 256, 1024, 50, 200]
    assert all(ms > 0 for _, ms in printed)


def test_the_figure_of_growth_has_its_numbers() -> None:
    (axes,) = growth.draw({"S": {2: 0.5, 20: 2.5, 200: 25.0}, "N": {1: 1.0, 4: 4.0}}).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 1], [10, 5], [100, 50]]
    assert axes.lines[-1].get_xydata().tolist() == [[1, 1], [100, 100]]
    assert {text.get_text() for text in axes.texts} == {"S, samples", "N, images", "proportional"}


@pytest.mark.parametrize("model", ["vae", "mixture", "belief-net", "factor-analysis", "gan"])
def test_steps_that_are_measured(model: str) -> None:
    """The same weights and noise have the same loss, and a step changes it."""
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        steps, losses = [], []
        for _ in range(2):
            torch.manual_seed(1)
            steps.append(growth.step_of(model, 20, (6, 6)))
        for step in (*steps, steps[0]):
            torch.manual_seed(2)
            losses.append(step())
        assert losses[0] == losses[1] and losses[2] != losses[0] and all(map(math.isfinite, losses))


def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    """The kinds are told apart, and an optimizer's matrix products are the optimizer's."""
    parameter = torch.nn.Parameter(torch.randn(300, 300))
    optimizer = torch.optim.Adam([parameter])

    def call() -> None:
        (parameter @ torch.randn(300, 300)).exp().sum().backward()
        optimizer.step()

    seconds, parts = profiles.shares(call, 5)
    assert seconds > 0 and set(parts) == {*profiles.KINDS, "Python"}
    assert all(parts[name] > 0 for name in profiles.KINDS)
    profiles.main(["--only", "mixture", "--calls", "2"])
    assert "mixture, N = 500" in capsys.readouterr().out


def test_table_and_figure_of_the_ratios() -> None:
    shown = [Comparison("step", {"plain": 0.002, "ours": 0.003}, "plain")]
    assert shown[0].ratios() == {"plain": 1.0, "ours": pytest.approx(1.5)}
    assert markdown(shown).splitlines()[2:] == ["| plain | 2.00 | 1.00 |", "| ours | 3.00 | 1.50 |"]
    texts = [text.get_text() for text in draw(shown).axes[0].texts]
    assert {"step", "1 = plain, 2.00 ms", "ours", "1.50"} <= set(texts)


def test_figures_of_tables_have_their_numbers() -> None:
    """The tables of docs/ give what is measured, so that a figure can be drawn without measuring again."""
    steps = {each.title.partition(",")[0]: each for each in from_tables()}
    step = steps["VAE training step"]
    assert step.reference == "hand-written PyTorch, fused Adam" and len(step.seconds) == 6
    assert step.ratios()["stock Pyro"] == pytest.approx(1.6) and step.more["stock Pyro"] == [1.57, 1.62]
    missed = gap.from_table()
    assert list(missed) == ["ELBO", "IWAE bound, k = 10", "IWAE bound, k = 100", "importance sampling, S = 1,000"]
    assert missed["ELBO"][16] == 3.20 and missed["IWAE bound, k = 100"][2] == 0.0015
    trained = exact_training.from_table()
    assert trained["grid", "exact"][50] == (-136.5, 0.13) and trained["elbo", "elbo"][5] == (-161.7, 0.44)
    assert trained["iwae", "importance"][20] == (-144.4, 0.38) and len(trained) == 6


@pytest.mark.parametrize(("rounds", "calls"), [(3, 3 + 2), (60, (12 + 1) * 6)])
def test_calls_in_turns(rounds: int, calls: int) -> None:
    """Of many rounds five calls in a turn, after one that is not counted; one turn is for warming up."""
    called = []
    medians({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=rounds, warmup=2)
    assert called.count("a") == called.count("b") == calls


def test_medians_are_of_the_calls_that_count() -> None:
    """By a clock that each call moves: two turns warm up, and of five calls in a turn the first is left out."""
    now = [0.0]

    def taking(seconds: list[float]) -> Callable[[], None]:
        rest = iter(seconds)
        return lambda: now.__setitem__(0, now[0] + next(rest))

    candidates = {"a": taking([90, 80, 4, 1, 2]), "b": taking([70, 60, 6, 12, 9])}
    found = medians(candidates, rounds=3, warmup=2, clock=lambda: now[0])
    assert found == {"a": 2, "b": 9}
    candidates = {"a": taking([90, 3, 5, 4]), "b": taking([80, 1, 2, 9])}
    assert medians(candidates, rounds=3, warmup=0, in_turn=3, clock=lambda: now[0]) == {"a": 4, "b": 2}


def _printed(out: str) -> list[tuple[float, float]]:
    """Milliseconds and ratio of each row."""
    return [(float(ms), float(ratio)) for ms, ratio in re.findall(r"([\d.]+) ms +([\d.]+) x$", out, re.MULTILINE)]


def test_ratios_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show("step", {"plain": 0.002, "ours": 0.003}, "plain")
    assert _printed(capsys.readouterr().out) == [(2.0, 1.0), (3.0, 1.5)]


def test_ways_to_step_a_vae() -> None:
    """From the same weights and noise all have the same loss, and move to the same weights."""
    x = torch.bernoulli(torch.rand(8, 784))
    pair = vae_step.default_pair()
    models = [nn.ModuleList(pair), *(nn.ModuleList(vae_step.nets()) for _ in range(2))]
    model, guide = pair
    start = [*guide.encoder.parameters(), *model.decoder.parameters()]
    for each in models[1:]:
        for parameter, first in zip(each.parameters(), start, strict=True):
            parameter.data.copy_(first.data)
    losses = []
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        plain, stock = (tuple(each) for each in models[1:])
        for step in (vae_step.ours(x, pair), vae_step.hand_written(x, plain), vae_step.stock_pyro(x, stock)):  # type: ignore[arg-type]
            torch.manual_seed(2)
            losses.append(step())
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5), pytest.approx(8 * losses[0], rel=1e-5)]
    for each in models[1:]:
        for parameter, moved in zip(each.parameters(), start, strict=True):
            # Adam's first step is the sign of the gradient: entries whose gradient is rounding are free.
            assert (parameter - moved).abs().gt(1e-5).double().mean() < 0.02


def test_steps_of_a_vae_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = vae_step.main(rounds=1)
    printed = _printed(capsys.readouterr().out)
    assert len(printed) == len(found.seconds) == 6 and printed[0][1] == 1
    for (ms, ratio), seconds in zip(printed, found.seconds.values(), strict=True):
        assert ms == pytest.approx(1e3 * seconds, abs=0.01) and ms > 0
        assert ratio == pytest.approx(seconds / found.seconds[found.reference], abs=0.01)


def test_ways_to_sample_importance_weights(capsys: pytest.CaptureFixture[str]) -> None:
    """Mean log weights of four images, within 5 standard errors of a difference (1e-5 of false alarms)."""
    products, ours, estimate, one, all_images = importance.candidates(4, 300).values()
    assert products() is None
    weights: list[Any] = [each() for each in (ours, one, all_images)]
    assert all(each.shape == (300, 4) for each in weights)
    errors = [each.var(0) / 300 for each in weights]
    for other, error in zip(weights[1:], errors[1:], strict=True):
        assert bool(((other.mean(0) - weights[0].mean(0)).abs() < 5 * (error + errors[0]).sqrt()).all())
    found: Any = estimate()
    assert bool(((found.elbo - weights[0].mean(0)).abs() < 5 * (found.elbo_mc_var + errors[0]).sqrt()).all())
    (compared,) = importance.main(1, num_images=2, num_samples=50)
    assert len(_printed(capsys.readouterr().out)) == len(compared.seconds) == 5


def test_null_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    """A table of the size that it says, whose rates are percentages. What they are is a test of `differences`."""
    null_comparisons.main(["--repetitions", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 12
    assert all(line.count("%") == 4 for line in lines[3:]) and "none of methods" in lines[2]


@pytest.mark.painted
def test_exact_training(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is log p(x), and is in the table; a training that is done is not made again."""
    arguments = ["--small", "--methods", "elbo", "--runs", str(tmp_path), "--out", str(tmp_path / "it.png")]
    exact_training.main(arguments)
    records = json.loads((tmp_path / "exact-training.json").read_text())
    assert [(each["method"], each["seed"], each["epoch"]) for each in records] == [("elbo", 0, 1), ("elbo", 0, 2)]
    for each in records:
        assert each["elbo"] < each["exact"] and abs(each["importance"] - each["exact"]) < 0.3
    capsys.readouterr()
    monkeypatch.setattr(exact_training, "train", None)
    exact_training.main(arguments)
    grid = {"method": "grid", "seed": 0, "epoch": 2, "minutes": 1.0, "exact": -3.0, "change": 1e-3, "images": 50}
    several = exact_training.table([*records, grid, {**grid, "seed": 1, "exact": -5.0}])
    assert f"| elbo | 2 | 0.0 | {records[1]['exact']:.2f} |" in capsys.readouterr().out
    assert (tmp_path / "it.png").stat().st_size > 1000
    assert "| grid | 2 | 1.0 | -4.00 ± 1.41 | 0.001 |  |  |  |  |" in several


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmarks_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--device", "cuda"])
    with pytest.raises(SystemExit, match="2"):
        benchmarks_main()
    assert "--device cuda: torch finds no CUDA device" in capsys.readouterr().err


def test_gradients_of_nets_of_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of the tables are those of `gradients.json`, without exponents."""
    options = ["--units", "2", "--data", "digits", "--epochs", "1", "--draws", "20", "--warm-up", "1"]
    gradient_series.main([*options, "--runs", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count("| variance, ") == out.count("| squared bias, ") == 2
    points = json.loads((tmp_path / "units-2" / "gradients.json").read_text())["points"]
    trained = next(point for point in points if point["at"] == "trained")
    rloo = next(row["guide"] for row in trained["rows"] if row["objective"] == "rloo")
    row = out[out.index("variance, after") :].split("| `rloo` |")[1].splitlines()[0]
    assert float(row.split("|")[0]) == float(f"{rloo['variance']:.2g}")
    assert gradient_series._rounded(3.14e-5, 2) == "0.000031" and gradient_series._rounded(27.0, 2) == "27"


def test_estimates_against_quadrature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every estimate has a row, and a model that is trained is not trained again."""
    arguments = ["--small", "--models", "normal-5", "--out", str(tmp_path)]
    monkeypatch.setattr(trusted, "SMALL", replace(trusted.SMALL, samples=(30,)))
    trusted.main(arguments)
    (found,) = json.loads((tmp_path / "trusted.json").read_text())
    assert len(found["rows"]) == 5 and found["rows"][-1]["estimator"] == "annealed"
    assert all(abs(row["mean_error"]) < 0.5 for row in found["rows"])
    gaps = found["gaps"]
    total = gaps["approximation_by_quadrature"][0] + gaps["amortization"][0]
    assert total == pytest.approx(gaps["gap_by_quadrature"][0]) and gaps["images"] == trusted.SMALL.gap_images
    assert f"log p(x) by quadrature {found['exact'][0]:.3f}" in capsys.readouterr().out
    before = (tmp_path / "normal-5" / "checkpoint.safetensors").stat().st_mtime_ns
    trusted.trained("normal-5", argparse.Namespace(small=True, data="digits", device="auto", seed=0, out=tmp_path))
    assert (tmp_path / "normal-5" / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_what_khat_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means, medians and shares of the images of each range of k-hat. An image whose k-hat is unknown is in none."""
    values = {"khat": [0.2, 0.7, 0.9, 2.0, math.nan], "log_px_annealed": [-1.0, -2.0, -3.0, -4.0, -5.0]}
    values |= {"log_px_importance": [-1.1, -2.5, -3.2, -7.0, -5.0], "disagrees": [0.0, 1.0, 0.0, 1.0, 0.0]}
    images = xarray.Dataset({name: ("image", each) for name, each in values.items()})
    images.to_netcdf(tmp_path / "evaluation.nc", group="evaluation", engine="h5netcdf")
    khat.main([str(tmp_path)])
    (table,), correlation = pages.tables_of(out := capsys.readouterr().out), out.split()[-1]
    assert [row[1:] for row in table[1:]] == [
        ["2", "0.30", "0.30", "50 %"],
        ["1", "0.20", "0.20", "0 %"],
        ["0", "–", "–", "–"],
        ["1", "3.00", "3.00", "100 %"],
    ]
    assert float(correlation) == round(statistics.correlation([0.2, 0.7, 0.9, 2.0], [0.1, 0.5, 0.2, 3.0]), 2)


def test_errors_of_trusted_images() -> None:
    """Four of five images are trusted; of these one is 0.3 nats low, one 0.6 high, and both are beyond their errors."""
    exact = torch.full((5,), -50.0, dtype=torch.float64)
    error = torch.tensor([0.0, -0.3, 0.6, 0.05, -9.0], dtype=torch.float64)
    values = {"log_px": exact + error, "log_px_mc_var": torch.full_like(exact, 1e-4), "log_px_bias": 0 * exact}
    estimate = Estimate(estimator="test", num_samples=100, khat=(error < -1).double(), **values)
    found = trusted.held_against(exact, estimate, trusted.by_khat(estimate))
    assert found["trusted"] == 0.8 and found["low"] == {"0.1": 0.25, "0.5": 0.0} and found["high"]["0.5"] == 0.25
    assert found["beyond_its_error"] == 0.75 and found["worst"] == pytest.approx(0.6)
    assert found["mean_error"] == pytest.approx(-1.73) and found["mean_error_of_trusted"] == pytest.approx(0.0875)
    none = trusted.held_against(exact, estimate, torch.zeros(5, dtype=torch.bool))
    assert none["trusted"] == 0 and "worst" not in none
