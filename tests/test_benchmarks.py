"""What the benchmarks compare is the same number."""

import copy
import io
import json
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO

from benchmarks import closed_form, em, enumeration, growth, null_comparisons, profiles, remake, rows, wall
from benchmarks.__main__ import draw, markdown
from benchmarks.steps import training_step
from benchmarks.timing import Comparison, medians
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.guides.enumerated import Enumerated
from ppl_gen.inference.annealed import Annealing, bidirectional_bounds
from ppl_gen.inference.exact import exact_log_px


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
    figure = closed_form.draw_bounds({1: {5: (-1.0, 2.0, 0.1, 0.2)}, 2: {5: (0.1, 0.2, 0.3, 0.1)}}, "title")
    figure.draw_without_rendering()
    names = ["upper bound", "lower bound", "exact log p(x)"]
    for axes, title in zip(figure.axes, ("1 latent unit", "2 latent units"), strict=True):
        assert axes.get_legend_handles_labels()[1] == [names[2], *names[:2]] and axes.get_title() == title
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


def test_slope_of_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.slope({n: 1e-3 + 1e-5 * n for n in (1, 10, 1000, 10_000, 100_000)}) == pytest.approx(1, abs=0.05)
    assert growth.slope({n: 1.0 * n * n for n in (1, 2, 4, 8)}) == pytest.approx(2)
    assert growth.slope(dict.fromkeys((1, 2, 4, 8), 1.0)) is None
    few = {
        name: (meaning, title, lambda: {1: lambda: None, 2: lambda: None})
        for name, (meaning, title, _) in growth.KINDS.items()
    }
    monkeypatch.setattr(growth, "KINDS", few)
    growth.main(["--rounds", "2", "--out", str(tmp_path / "figures" / "growth.png")])
    assert (tmp_path / "figures" / "growth.png").stat().st_size > 1000
    assert capsys.readouterr().out.count("slope") == 5


@pytest.mark.parametrize("model", ["vae", "mixture", "belief-net", "factor-analysis", "gan"])
def test_steps_that_are_measured(model: str) -> None:
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        first, second = growth.step_of(model, 20, (6, 6)), growth.step_of(model, 20, (6, 6))
        assert all(isinstance(step(), float) for step in (first, second, first))


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
    draw(shown).savefig(io.BytesIO())


@pytest.mark.parametrize(("rounds", "calls"), [(3, 3 + 2), (60, (12 + 1) * 6)])
def test_calls_in_turns(rounds: int, calls: int) -> None:
    """Of many rounds five calls in a turn, after one that is not counted; one turn is for warming up."""
    called = []
    medians({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, rounds=rounds, warmup=2)
    assert called.count("a") == called.count("b") == calls


def test_the_figure_of_a_table_has_its_numbers() -> None:
    every = rows.table()
    assert len(every) == 9 and every["normal, dreg-50"]["log_px"]["mean"] == -88.83
    axes = rows.draw().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "normal, iwae-50",
        "flow iaf, elbo",
        "normal, stl",
        "normal, elbo",
    ]
    ends = [line.get_xdata()[:2] for line in axes.lines if line.get_linewidth() == 2]
    assert [list(map(float, each)) for each in ends[:2]] == [[-103.67, -89.43], [-95.13, -90.96]]


def test_tables_are_made_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands under a heading, until one fails; a heading that is none, or several, is refused."""
    every = remake.sections()
    assert every["The default VAE"][0] == "python -m ppl_gen.fit vae --data mnist --out runs/default"
    assert all(line.startswith(("python -m ", "torchrun ")) for commands in every.values() for line in commands)
    monkeypatch.setattr(
        remake, "sections", lambda: {"One": ["python -c 1", "python -c 2 --no"], "Two": ["false", "true"]}
    )
    assert remake.main(["one"]) == 0 and capsys.readouterr().out.count("$ python -c") == 2
    assert remake.main(["two"]) == 1 and "true" not in capsys.readouterr().out
    assert remake.main(["two", "--dry-run"]) == 0 and "$ true" in capsys.readouterr().out
    assert remake.main([]) == 0 and capsys.readouterr().out == "One\nTwo\n"
    for title in ("Three", ""):
        assert remake.main([title]) == 2 and "there are: One, Two" in capsys.readouterr().err


def test_null_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    """A table of the size that it says, whose rates are percentages. What they are is a test of `differences`."""
    null_comparisons.main(["--repetitions", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 12
    assert all(line.count("%") == 4 for line in lines[3:]) and "none of methods" in lines[2]
