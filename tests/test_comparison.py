"""`Comparison` against numbers worked out by hand, on runs written by hand and on one that was fitted."""

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from written import write

import ppl_gen
from ppl_gen import compare
from ppl_gen.comparison import Comparison
from ppl_gen.core.errors import BadInput
from ppl_gen.core.options import flat
from ppl_gen.data.options import DataOptions
from ppl_gen.evaluation.columns import COLUMNS, labels, layout
from ppl_gen.evaluation.reading import OPTIONS
from ppl_gen.experiment.config import ORIGIN, Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.run import Run

Call = Callable[..., tuple[int, str, str]]


def compared(*paths: Path) -> dict[str, Any]:
    return Comparison(paths).to_json()


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(
        model_options={"hidden_dims": (4,), "latent_dim": 2},
        data=DataOptions(data="digits", train_size=60),
        training=TrainingOptions(epochs=1),
        num_samples=30,
    )
    return Run.start(config, out=tmp_path_factory.mktemp("runs") / "run", quiet=True).directory.path


def test_paired_differences(elsewhere: Path) -> None:
    """Of log p(x) -1, -2, -3, -2: mean -2, sd sqrt(2/3). Of the ELBO -1, 1, 1, -1: mean 0, sd sqrt(4/3)."""
    worse = write("worse", [-11, -20, -30, -41], [-10, -20, -30, -40], guide="other")
    better = write("better", [-10, -21, -31, -40], [-9, -18, -27, -38])
    result = compared(worse, better)
    first, second = result["rows"]
    assert first["runs"] == ["better"] and second["runs"] == ["worse"]
    nothing = dict.fromkeys(("mean", "se", "se_seeds", "low", "high", "of"))
    assert first["log_px_difference"] == first["elbo_difference"] == nothing
    assert second["log_px_difference"]["mean"] == pytest.approx(-2)
    assert second["log_px_difference"]["se"] == pytest.approx(math.sqrt(2 / 3) / 2)
    assert second["elbo_difference"]["mean"] == pytest.approx(0)
    assert second["elbo_difference"]["se"] == pytest.approx(math.sqrt(4 / 3) / 2)
    assert second["log_px_difference"]["se_seeds"] is None
    # Far less than the errors of the two means, which have what is hard for both in them: sd sqrt(500 / 3).
    assert second["log_px"]["mean"] == -25 and second["log_px"]["se"] == pytest.approx(math.sqrt(500 / 3) / 2)
    assert second["gap"] == {"mean": pytest.approx(0.5), "at_least": False}
    assert first["iwae"] == {
        "k": 10,
        "mean": pytest.approx(-25.4),
        "se": pytest.approx(math.sqrt(167) / 2),
        "se_seeds": None,
    }
    expected = {"khat_median": 0.5, "ess_median": 12.5, "active_units": 2, "num_parameters": 1234}
    expected |= {"seconds": 7.5, "epochs": 3, "prior": None, "options": {}, "objective": "elbo"}
    assert {key: first[key] for key in expected} == expected


def test_the_bound_is_below_the_importance_samples(elsewhere: Path) -> None:
    """Of an annealed log p(x), too: at k = S the bound is the importance-sampled log p(x) itself."""
    annealed = {"mean": -8.0, "estimator": "annealed", "num_temperatures": 10, "at_least": False}
    sampled = {"mean": -9.0, "estimator": "importance", "num_samples": 100}
    found = {"evaluation.log_px": annealed, "evaluation.log_px_importance": sampled, "nc.num_samples": 100}
    write("run", [-10, -11], [-8, -8], **found)
    assert compared(Path("run"))["rows"][0]["iwae"]["k"] == 10


def test_seeds_are_one_row(elsewhere: Path) -> None:
    """Means of log p(x) are -10 and -12 for a, over seeds -11 ± 1; -14, -15 and -16 for b, -15 ± 1/sqrt(3)."""
    paths = [
        *(write(f"b{s}", [-20, -20], [-13.0 - s, -15.0 - s], guide="other", **{"training.seed": s}) for s in range(3)),
        write("a0", [-20, -20], [-10, -10]),
        write("a1", [-22, -22], [-11, -13], **{"training.seed": 1, "num_threads": 9, "git_commit": "x"}),
    ]
    a, b = compared(*paths)["rows"]
    assert (a["seeds"], b["seeds"]) == ([0, 1], [0, 1, 2])
    assert a["runs"] == ["a0", "a1"]
    # Averaged over seeds the images of a are at -10.5 and -11.5: sd sqrt(1/2), over sqrt(2).
    assert a["log_px"]["mean"] == -11 and a["log_px"]["se"] == pytest.approx(0.5) and a["log_px"]["se_seeds"] == 1
    assert a["elbo"] == {"mean": -21, "se": 0, "se_seeds": 1}
    assert b["log_px"]["se_seeds"] == pytest.approx(1 / math.sqrt(3))
    # b is at -14 and -16: differences -3.5 and -4.5.
    assert b["log_px_difference"]["mean"] == -4 and b["log_px_difference"]["se"] == pytest.approx(0.5)
    assert b["log_px_difference"]["se_seeds"] == pytest.approx(math.sqrt(1 + 1 / 3))
    assert a["seconds"] == 7.5
    text = str(Comparison(paths))
    assert "-15.00 ± 1.00 ± 0.58" in text and "-4.00 ± 0.50 ± 1.15" in text and "over its seeds" in text
    alone = compared(*paths[2:])["rows"][1]
    assert alone["log_px"]["se_seeds"] is None and alone["log_px_difference"]["se_seeds"] is None


def test_guides_of_a_session_have_their_own_names(elsewhere: Path) -> None:
    """Two of one name are told apart by where they came from, or by their code."""
    mine = write("a", [-9], [-2], guide="class:Laplace", guide_sha256="a" * 64)
    assert " Laplace " in str(Comparison([mine])) and "class:" not in str(Comparison([mine]))
    other = write("b", [-9], [-3], guide="class:Laplace", guide_sha256="b" * 64)
    instance = write("c", [-9], [-4], guide="instance:Laplace", guide_sha256="a" * 64)
    assert Comparison([mine, write("d", [-9], [-3])]).frame["guide"].tolist() == ["class:Laplace", "normal"]
    text = str(Comparison([mine, other]))
    assert "all rows: model vae, guide Laplace" in text and "guide_sha256=aaaaaaaa" in text and "class:" not in text
    assert "class:Laplace" in str(Comparison([mine, instance])) and "instance:Laplace" in str(
        Comparison([mine, instance])
    )


def test_intervals(elsewhere: Path) -> None:
    """Of two rows with two seeds each, a difference between methods: t of 1 degree of freedom over seeds, and of 3 over
    images. Of a row with one seed, a difference between weights. Three rows are three pairs."""
    paths = [
        *(write(f"a{s}", [-9, -9, -9, -9], [-1 - s, -2, -3, -4 - s], **{"training.seed": s}) for s in range(2)),
        *(write(f"b{s}", [-9, -9, -9, -9], [-3, -2, -5 - s, -6], guide="b", **{"training.seed": s}) for s in range(2)),
        write("c", [-9, -9, -9, -9], [-7, -8, -9, -10], guide="c"),
    ]
    a, b, c = compared(*paths)["rows"]
    assert [row["log_px_difference"]["of"] for row in (a, b, c)] == [None, "methods", "weights"]
    # Run means -2.5 and -3 of a, -4 and -4.25 of b; per image -1.5, 0, -2.5 and -1.5 apart.
    t1, t3 = (stats.t.isf(0.05 / 3 / 2, degrees) for degrees in (1, 3))
    seeds, images = 0.5**2 / 4 + 0.25**2 / 4, np.var([-1.5, 0, -2.5, -1.5], ddof=1) / 4
    half = math.sqrt(t1**2 * seeds + t3**2 * images)
    mean = b["log_px_difference"]["mean"]
    assert mean == pytest.approx(-1.375)
    assert (b["log_px_difference"]["low"], b["log_px_difference"]["high"]) == pytest.approx((mean - half, mean + half))
    assert b["elbo_difference"] == {"mean": 0, "se": 0, "se_seeds": 0, "low": 0, "high": 0, "of": "methods"}
    # c is -5.5, -6, -6 and -5.5 from a.
    half = t3 * math.sqrt(np.var([5.5, 6, 6, 5.5], ddof=1) / 4)
    entry = c["log_px_difference"]
    assert (entry["low"], entry["high"]) == pytest.approx((-5.75 - half, -5.75 + half)) and entry["se_seeds"] is None
    text = str(Comparison(paths))
    assert f"-5.75 ± 0.14 [{-5.75 - half:+.2f}, {-5.75 + half:+.2f}]" in text
    one = "a difference between two sets of weights, not between two methods"
    assert "whichever of the 3 rows came out best" in text and f"one seed in this row or in the first: {one}" in text
    (row, _) = csv.DictReader(io.StringIO(Comparison(paths[:4]).to_csv()))
    assert row["log_px_difference.low"] == row["log_px_difference.of"] == ""
    text = str(Comparison(paths[:4]))
    assert "the interval is for two methods: for other seeds, and for other images" in text and one not in text
    assert "may be chance" in text and "came out best" not in text
    text = str(Comparison([paths[0], paths[4]]))
    assert f"one seed: {one}" in text and "two methods: for" not in text
    assert "interval" not in str(Comparison(paths[:1]))


def test_an_option_that_came_later_has_its_default(elsewhere: Path) -> None:
    """Runs of before an option was there are no other method, and a row does not call it none. What a class of one's
    own would say is not known."""
    v = [-2.0, -1.0]
    now = json.loads(json.dumps(asdict(TrainingOptions()))) | {"epochs": 3}
    later = {f"training.{name}": value for name, value in now.items() if name not in ("seed", "epochs")}
    later |= {"prior": None, "fixed_model": False, "init_from": None, "model_options.activation": "relu"}
    annealed = {"evaluation.log_px.estimator": "annealed", "evaluation.log_px.num_temperatures": 9}
    old = write("old", v, v, **annealed)
    new = write("new", v, v, **later, **annealed, **{"evaluation.log_px.start": "prior", "training.seed": 1})
    (row,) = compared(old, new)["rows"]
    assert row["seeds"] == [0, 1]
    changed = {"training.adam_beta1": 0.5, "training.clip_grad_norm": 1.0, "model_options.activation": "tanh"}
    write("changed", v, v, **later | changed, **annealed)
    rows = {row["runs"][0]: row["options"] for row in compared(old, Path("changed"))["rows"]}
    assert rows == {
        "old": {"activation": "relu", "adam_beta1": 0.9, "clip_grad_norm": None},
        "changed": {"activation": "tanh", "adam_beta1": 0.5, "clip_grad_norm": 1.0},
    }
    mine = {"guide": "mine.py:Mine", "guide_options.width": 3}
    paths = [write("mine", v, v, **mine), write("before", v, v, guide="mine.py:Mine")]
    paths.append(write("left-out", v, v, guide="mine.py:Mine", **{"guide_options.width": None, "training.seed": 1}))
    rows = {row["runs"][0]: row["options"] for row in compared(*paths)["rows"]}
    assert rows == {"mine": {"guide.width": 3}, "before": {}}
    text = str(Comparison(paths))
    assert "guide.width=3" in text and "none" not in text


def test_what_makes_a_row(elsewhere: Path) -> None:
    """Anything but the seed does; the checkpoint and the number of samples too. The row says what."""
    v = [-2.0, -1.0]
    paths = [
        write("plain", v, v),
        write("again", v, v, **{"training.seed": 1, "num_samples": 5, "versions": {"torch": "9"}, "prior": None}),
        write("precision", v, v, **{"training.matmul_precision": "high"}),
        write("wide", v, v, **{"model_options.latent_dim": 7}),
        write("particles", v, v, **{"training.num_particles": 50, "training.objective": "iwae"}),
        write("warm", v, v, **{"training.kl_warmup": 4}),
        write("flow", v, v, prior="flow", prior_options={"depth": 2}),
        write("deep", v, v, prior="flow", prior_options={"depth": 3}),
        write("small", v, v, **{"data.train_size": 50}),
        write("best", v, v, **{"evaluation.checkpoint": "best"}),
        write("more", v, v, **{"evaluation.log_px.num_samples": 1000}),
    ]
    result = compared(*paths)
    rows = {row["runs"][0]: row for row in result["rows"]}
    assert len(rows) == 10 and rows["plain"]["seeds"] == [0, 1]
    assert rows["precision"]["options"]["matmul_precision"] == "high"
    assert rows["wide"]["options"]["latent_dim"] == 7 and rows["plain"]["options"]["latent_dim"] == 2
    assert rows["particles"]["objective"] == "iwae-50" and rows["warm"]["objective"] == "elbo kl_warmup=4"
    assert rows["flow"]["prior"] == "flow" and rows["deep"]["options"]["prior.depth"] == 3
    assert "prior.depth" not in rows["plain"]["options"]
    assert rows["small"]["options"]["train_size"] == 50 and rows["plain"]["options"]["train_size"] is None
    assert rows["best"]["options"]["checkpoint"] == "best"
    assert rows["more"]["log_px"]["num_samples"] == 1000
    assert any("different S are not comparable" in note for note in result["notes"])
    assert rows["more"]["iwae"]["k"] == 10  # the largest below every S


def test_a_term_that_does_not_exist_is_blank(elsewhere: Path, call: Call) -> None:
    exact = write("exact", [-3, -5], [-3, -5], model="mixture", **{"evaluation.log_px.estimator": "exact"})
    doubted = {"evaluation.log_px.at_least": True, "evaluation.gap.at_least": True}
    sampled = write("sampled", [-5, -6], [-4, -6], **doubted, **{"training.num_particles": 5})
    status, out, _ = call(compare.command, exact, sampled, "--format", "csv")
    first, second = csv.DictReader(io.StringIO(out))
    assert status == 0
    for key in (
        "gap.mean",
        "khat_median",
        "ess_median",
        "active_units",
        "iwae.mean",
        "log_px_difference.mean",
        "prior",
    ):
        assert first[key] == ""
    assert (first["log_px.estimator"], first["log_px.at_least"], first["runs"]) == ("exact", "False", "exact")
    assert (second["log_px.num_samples"], second["log_px.at_least"], second["objective"]) == ("100", "True", "elbo-5")
    assert float(second["log_px_difference.mean"]) == -1 and float(second["iwae.mean"]) == -5.4

    result = json.loads(call(compare.command, exact, sampled, "--format", "json")[1], parse_constant=pytest.fail)
    assert result["rows"][0]["gap"]["mean"] is None and result["images"]["num_images"] == 2
    text = str(Comparison([exact, sampled]))
    rows = text.splitlines()
    assert "≥ -5.00 ± 1.00" in text and "≥ 0.50" in text and " 0.00 " not in rows[2]
    assert "an exact one is not" in text and "k-hat is too high or unknown" in text
    assert len({line.index("S") for line in rows if " S " in line}) == 1

    single = write("single", [-5], [-4])
    (row,) = json.loads(call(compare.command, single, "--format", "json")[1], parse_constant=pytest.fail)["rows"]
    assert row["log_px"]["se"] is None
    infinite = write(
        "infinite", [-math.inf, -1], [-math.inf, -2], **{"evaluation.elbo.mean": None, "evaluation.log_px.mean": None}
    )
    rows = json.loads(call(compare.command, infinite, exact, "--format", "json")[1], parse_constant=pytest.fail)["rows"]
    assert rows[1]["runs"] == ["infinite"] and rows[1]["log_px"]["mean"] == "-Infinity"


def test_a_training_size_matters_to_the_images_that_it_chooses(elsewhere: Path) -> None:
    paths = [write("all", [-2, -1], [-2, -1], **{"evaluation.split": "validation"})]
    paths += [write("few", [-2, -1], [-2, -1], **{"evaluation.split": "validation", "data.train_size": 5})]
    with pytest.raises(BadInput, match="train_size is None in the first and 5"):
        compared(*paths)
    with pytest.raises(BadInput, match="num_images is 2 in the first and 3"):
        compared(write("two", [-2, -1], [-2, -1]), write("three", [-2, -1, 0], [-2, -1, 0]))


def test_what_was_estimated_otherwise_is_another_row(elsewhere: Path) -> None:
    """Seeds are merged only if log p(x) was estimated with the same settings; each row says whether it is at least
    what it says, and why."""
    annealed = {"evaluation.log_px.estimator": "annealed", "evaluation.log_px.num_temperatures": 100}
    others = (
        write("long", [-4, -3], [-2, -1], **annealed),
        write("short", [-4, -3], [-2, -2], **annealed | {"evaluation.log_px.num_temperatures": 10, "training.seed": 1}),
        write("mixed", [-4, -3], [-3, -2], **{"evaluation.log_px.proposal": {"prior_share": 0.1}, "training.seed": 2}),
        write("again", [-4, -3], [-2, -2.5], **annealed | {"evaluation.log_px.accepted": 0.6, "training.seed": 3}),
        write("plain", [-4, -3], [-3, -3], **{"evaluation.gap.at_least": True, "evaluation.log_px.at_least": False}),
    )
    result = compared(*others)
    assert [row["seeds"] for row in result["rows"]] == [[0, 3], [1], [2], [0]]
    assert [row["options"].get("num_temperatures") for row in result["rows"]] == [100, 10, None, None]
    assert not any(row["log_px"]["at_least"] for row in result["rows"])
    assert result["rows"][3]["gap"]["at_least"]
    text = str(Comparison(others))
    assert "num_temperatures=10" in text and "num_temperatures=none" not in text
    doubted = write("doubted", [-4, -3], [-2, -1], **annealed | {"evaluation.log_px.at_least": True})
    assert any("do not both support the annealed value" in note for note in compared(doubted)["notes"])


def test_figure_of_several(elsewhere: Path) -> None:
    paths = [
        write("a", [-2, -1], [-2, -1], **{"evaluation.log_px.estimator": "exact"}),
        write("b", [-4, -1], [-3, -1], guide="x/mine.py:Mine", **{"evaluation.log_px.at_least": True}),
        write("c", [-4, -1], [-4, 0], guide="x/mine.py:Mine", **{"training.seed": 1}),
    ]
    comparison = Comparison(paths)
    result, names = comparison.to_json(), labels(comparison.rows)
    assert names == ["normal", "x/mine.py:Mine (2 seeds)"]
    axes = comparison.figure().axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the best on top
    lines = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert (-2.5, -2.0) in lines
    assert {">", "o"} <= {line.get_marker() for line in axes.lines}
    # The intervals of the differences, where the first row's log p(x) is.
    low, high = (-1.5 + result["rows"][1]["log_px_difference"][end] for end in ("low", "high"))
    assert (low, high) in [pytest.approx(line) for line in lines] and (-1.5, -1.5) in lines
    assert "between two sets of weights" in axes.figure.legends[0].get_texts()[-2].get_text()


def test_figure_with_long_names_and_wide_intervals(elsewhere: Path) -> None:
    """Twelve rows with two seeds each: intervals far wider than all else run out of the picture, which names of any
    length do not crowd out."""
    paths = [
        write(
            f"{row}-{seed}",
            [-9 - row, -8],
            [-7 - row, -6 + 0.3 * seed + 0.1 * row * seed],
            guide=f"{'folder/' * 30}mine.py:Mine{row}",
            **{"training.seed": seed},
        )
        for row in range(12)
        for seed in range(2)
    ]
    comparison = Comparison(paths)
    assert comparison.to_json()["rows"][1]["log_px_difference"]["high"] > 50
    figure = comparison.figure()
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_window_extent().width > 0.3 * figure.bbox.width and axes.get_xlim()[1] < 20


def test_gaps_where_they_were_measured(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over seeds, of a row whose runs all have them; blank for the others."""
    for seed, approximation in ((0, 1.0), (1, 2.0)):
        path = write(f"run-{seed}", [-10.0, -11.0], [-8.0, -9.0], **{"training.seed": seed})
        parts = {"approximation": {"mean": approximation}, "amortization": {"mean": 0.5}}
        contexts = parts | {"num_images": 100, "at_least": seed == 1}
        of = {"split": "test", "checkpoint": "last"}
        (path / "gaps.json").write_text(json.dumps(of | {"contexts": contexts}))
    write("other", [-10.0, -11.0], [-9.0, -9.5], guide="flow")
    result = compared(Path("run-0"), Path("run-1"), Path("other"))
    first, second = result["rows"]
    assert first["approximation"] == {"mean": 1.5, "num_images": 100.0, "at_least": True}
    assert first["amortization"] == {"mean": 0.5, "num_images": 100.0, "at_least": False}
    assert second["approximation"]["mean"] is None
    text = str(Comparison([Path("run-0"), Path("run-1"), Path("other")]))
    assert "≥ 1.50" in text and "approx." in text and "on the first 100 images" in text
    assert "approx." not in str(Comparison(["other"]))
    monkeypatch.setattr(RunDirectory, "step", lambda run: 4)
    for other in ({"split": "train"}, {"checkpoint": "best"}, {"training_step": 3}):
        (path / "gaps.json").write_text(json.dumps(of | other | {"contexts": contexts}))
        assert "approx." not in str(Comparison(["run-1"]))


def test_of_a_fitted_run(elsewhere: Path, fitted: Path, call: Call) -> None:
    """The numbers are those of its evaluation.json, and a figure replaces another."""
    summary = json.loads((fitted / "evaluation.json").read_text(encoding="utf-8"))
    (row,) = compared(fitted)["rows"]
    for key in ("elbo", "log_px"):
        assert row[key]["mean"] == pytest.approx(summary[key]["mean"]) and row[key]["se"] == pytest.approx(
            summary[key]["se"]
        )
    assert row["iwae"]["mean"] == pytest.approx(summary["iwae"]["10"]["mean"])
    assert row["gap"] == {key: summary["gap"][key] for key in ("mean", "at_least")}
    assert row["epochs"] == 1 and row["seconds"] > 0
    Path("f.png").write_text("old")
    status, out, err = call(compare.command, fitted, "--figure", "f.png")
    assert status == 0 and err == "" and "300 test images of digits" in out
    assert Path("f.png").read_bytes()[:4] == b"\x89PNG" and [path.name for path in elsewhere.iterdir()] == ["f.png"]


# What a comparison gives ---------------------------------------------------------------------------------------


@dataclass
class Opened:
    """A run as a user holds it."""

    directory: Run


def several() -> list[Path]:
    """Two rows, the first of two seeds; the second was annealed, and has another option and no interval over seeds."""
    annealed = {"evaluation.log_px.estimator": "annealed", "evaluation.log_px.num_temperatures": 9}
    return [
        write("a0", [-2, -1, -3], [-1, -1, -2], **{"model_options.latent_dim": 3}),
        write("a1", [-2, -2, -3], [-2, -1, -2], **{"model_options.latent_dim": 3, "training.seed": 1}),
        write("b", [-5, -4, -4], [-5, -2, -4], prior="flow", **annealed),
    ]


def test_runs_are_paths_and_what_has_a_directory(elsewhere: Path) -> None:
    first, second, third = several()
    mixed = Comparison(iter([str(first), second, Opened(RunDirectory.open(third))]))
    assert mixed.runs == (first, second, third)
    assert mixed.to_json() == compared(first, second, third)
    assert "Comparison" in ppl_gen.__all__ and ppl_gen.Comparison is Comparison


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "name at least one run"),
        ([3], "3 is no run"),
        (["a0", None], "None is no run"),
        (["nowhere"], "nowhere: no such run directory"),
    ],
)
def test_what_is_no_run(elsewhere: Path, runs: Any, words: str) -> None:
    several()
    with pytest.raises(BadInput, match=re.escape(words)):
        Comparison(runs)


def test_one_run(elsewhere: Path) -> None:
    comparison = Comparison(["a0"] if several() else [])
    (row,) = comparison.rows
    assert row.log_px_difference.mean is None and row.difference_of is None and "Δ" not in str(comparison)
    assert comparison.frame.loc[0, "log_px"] == pytest.approx(-4 / 3)
    assert comparison.frame[["log_px_se_seeds", "log_px_difference", "prior"]].isna().all(axis=None)
    assert comparison.images == ("digits", "test", 3, "static", "probability")
    assert len(comparison.figure().axes[0].get_yticklabels()) == 1
    assert repr(comparison) == str(comparison)


def test_the_frame_has_the_numbers_of_the_json(elsewhere: Path) -> None:
    comparison = Comparison(several())
    frame, rows = comparison.frame, comparison.to_json()["rows"]
    assert list(frame.index) == [0, 1] and list(frame["guide"]) == ["normal", "normal"]
    expected = {name: [each.get(name) for each in map(flat, rows)] for row in map(flat, rows) for name in row}
    assert len(expected) == len(frame.columns) - 1
    for name, values in expected.items():
        column = frame[name.removesuffix(".mean").replace(".", "_")]
        assert [None if isinstance(value, float) and math.isnan(value) else value for value in column] == values, name
    assert list(frame["num_seeds"]) == [2, 1] and list(frame["options_latent_dim"]) == [3, 2]
    numbers = [
        "elbo",
        "iwae_k",
        "log_px_se",
        "log_px_difference_low",
        "gap",
        "amortization",
        "num_parameters",
        "epochs",
    ]
    assert all(frame[name].dtype.kind in "if" for name in numbers) and frame["log_px_at_least"].dtype == bool
    assert frame.loc[1, "log_px_difference"] == pytest.approx(-11 / 3 + 9 / 6)
    assert (
        list(frame["log_px_difference_of"].isna()) == [True, False] and frame.loc[1, "elbo_difference_of"] == "weights"
    )
    assert frame.loc[1, "log_px_num_temperatures"] == 9 and math.isnan(frame.loc[0, "log_px_num_temperatures"])
    names = list(frame.columns)
    assert names[:4] == ["model", "guide", "prior", "objective"] and names[-1] == "epochs"
    assert names.index("log_px_num_temperatures") < names.index("log_px_difference")


def test_the_csv_has_the_numbers_of_the_json(elsewhere: Path) -> None:
    """Every digit of them."""
    comparison = Comparison(several())
    lines = list(csv.DictReader(io.StringIO(comparison.to_csv())))
    for line, row in zip(lines, comparison.to_json()["rows"], strict=True):
        joined = {key: " ".join(map(str, row[key])) for key in ("seeds", "runs")}
        joined["options"] = " ".join(f"{name}={value}" for name, value in row["options"].items())
        cells = {name: "" if value is None else str(value) for name, value in flat(row | joined).items()}
        assert line == dict.fromkeys(line, "") | cells
    assert not comparison.to_csv().endswith("\n")


def test_a_notebook_shows_table_and_notes(elsewhere: Path) -> None:
    guide = f"<script>{'long' * 20}&.py:Mine"
    write("<script>&", [-4, -3], [-3, -2], guide=guide, **{"training.epochs": 9, "evaluation.data": "<b>"})
    comparison = Comparison(["<script>&", write("plain", [-4, -3], [-4, -2], **{"evaluation.data": "<b>"})])
    page = comparison._repr_html_()
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;&amp; stopped after 3 of 9 epochs" in page
    shown = html.unescape(page)
    cells = [cell for heading, column in layout(comparison.rows).columns.items() for cell in (heading, *column)]
    for text in (*cells, *comparison.notes, "test images of <b>", "all rows: model vae"):
        assert text in shown
    assert page.count("<tr") == 3 and page.count("<li>") == len(comparison.notes)


def test_a_page_says_how_it_is_made_again(elsewhere: Path) -> None:
    comparison = Comparison([write("a run", [-2, -1], [-2, -1])])
    pages = comparison.page(), comparison.page(["python", "-m", "ppl_gen.compare", "here"])
    first, second = (html.unescape(re.sub("<.*?>", "", page)).splitlines() for page in pages)
    assert "python -m ppl_gen.compare 'a run' --report comparison.html" in first
    assert "python -m ppl_gen.compare here" in second


# What identifies a run -----------------------------------------------------------------------------------------


def test_the_keys_of_a_configuration_are_known(fitted: Path) -> None:
    """Each is an option, a hash of code or data, or says where the run was made."""
    recorded = json.loads((fitted / "config.json").read_text(encoding="utf-8"))
    options = {name.partition(".")[0] for name in OPTIONS}
    assert {key for key in recorded if key not in options and not key.endswith("_sha256")} == set(ORIGIN)
    assert {name for name in flat(recorded) if name.startswith(("training.", "data."))} <= OPTIONS.keys()
    columns = {option.metadata.get("column") for option in OPTIONS.values()} - {None}
    assert columns < {column.heading for column in COLUMNS}


def test_where_and_how_fast_a_run_was_made_makes_no_row(elsewhere: Path) -> None:
    v = [-2.0, -1.0]
    made: dict[str, Any] = {"device": "cuda", "capture": True, "max_hours": 2.0, "checkpoint_every": 7, "seed": 1}
    made = {f"training.{name}": value for name, value in made.items()}
    made |= {"num_samples": 5, "data_notice": "read", "versions": {"torch": "9"}, "git_commit": "1", "num_threads": 8}
    (row,) = Comparison([write("a", v, v), write("b", v, v, **made)]).rows
    assert row.seeds == [0, 1] and row.options == {}


def test_an_option_of_a_later_version_makes_a_row(elsewhere: Path) -> None:
    v = [-2.0, -1.0]
    later = {"training.newer": 1, "newest": "x"}
    rows = Comparison([write("a", v, v), write("b", v, v, **later)]).rows
    assert {row.runs[0]: row.options for row in rows} == {"a": {}, "b": {"newer": 1, "newest": "x"}}


# Fitting what is compared --------------------------------------------------------------------------------------


class Laplace(nn.Module):
    """A guide of one's own."""

    def __init__(self, data_dim: int, latent_dim: int):
        super().__init__()
        self.net = nn.Linear(data_dim, 2 * latent_dim)

    def guide(self, x: torch.Tensor) -> None:
        loc, log_scale = self.net(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(loc, log_scale.exp()).to_event(1))


def test_fitting_and_comparing(elsewhere: Path) -> None:
    """Every guide and value from every seed; then nothing is run again, and what was interrupted goes on."""
    x = torch.bernoulli(torch.full((120, 12), 0.3), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"epochs": 1, "num_samples": 10, "hidden_dims": (4,), "data": x, "quiet": True}
    chosen: dict[str, Any] = {"guides": [Laplace, "normal"], "vary": {"latent_dim": [1, 2]}, "seeds": 2}
    found = Comparison.fit("vae", **chosen, **options)
    names = [f"vae-{guide}-latent-dim-{dim}-{s}" for guide in ("laplace", "normal") for dim in (1, 2) for s in (0, 1)]
    assert sorted(path.name for path in Path("runs/vae").iterdir()) == sorted(names)
    assert len(found.frame) == 4 and (found.frame["num_seeds"] == 2).all()
    assert set(found.frame["options_latent_dim"]) == {1, 2}
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    again = Comparison.fit("vae", **chosen, **options)
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    assert again.to_json() == found.to_json()
    (Path("runs/vae") / names[0] / "evaluation.json").unlink()
    again = Comparison.fit("vae", **chosen, **options)
    assert [row["log_px"] for row in again.to_json()["rows"]] == [row["log_px"] for row in found.to_json()["rows"]]
    with pytest.raises(BadInput, match="was made with other options: epochs is 1, not 2"):
        Comparison.fit("vae", **chosen, **options | {"epochs": 2})
    with pytest.raises(BadInput, match="Laplace is an instance: several runs would share its weights"):
        Comparison.fit("vae", guides=[Laplace(12, 2)], **options)
    with pytest.raises(BadInput, match="two runs would be called vae-normal-0"):
        Comparison.fit("vae", guides=["normal", "normal"], **options)


def test_a_single_run_needs_no_list(elsewhere: Path) -> None:
    path = write("a0", [-20, -20], [-10, -10])
    assert Comparison(path).to_json() == Comparison([path]).to_json() == Comparison(str(path)).to_json()
