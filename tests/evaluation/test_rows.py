"""Rows of a comparison, against numbers worked out by hand, on runs written by hand."""

import cProfile
import csv
import io
import json
import math
import pstats
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytest import approx
from scipy import stats
from written import RESULTS, compared, write

from ppl_gen.comparison import Comparison
from ppl_gen.evaluation.columns import layout
from ppl_gen.evaluation.reading import read
from ppl_gen.evaluation.rows import rows_of
from ppl_gen.experiment.run_directory import RunDirectory


def test_paired_differences(elsewhere: Path) -> None:
    """Of log p(x) -1, -2, -3, -2: mean -2, sd sqrt(2/3). Of the ELBO -1, 1, 1, -1: mean 0, sd sqrt(4/3)."""
    worse = write("worse", [-11, -20, -30, -41], [-10, -20, -30, -40], guide="other")
    better = write("better", [-10, -21, -31, -40], [-9, -18, -27, -38])
    result = compared(worse, better)
    first, second = result["rows"]
    assert first["runs"] == ["better"] and second["runs"] == ["worse"]
    nothing = dict.fromkeys(("mean", "se", "se_seeds", "low", "high", "paired", "of"))
    assert first["log_px_difference"] == first["elbo_difference"] == nothing
    assert second["log_px_difference"]["mean"] == approx(-2)
    assert second["log_px_difference"]["se"] == approx(math.sqrt(2 / 3) / 2)
    assert second["elbo_difference"]["mean"] == approx(0)
    assert second["elbo_difference"]["se"] == approx(math.sqrt(4 / 3) / 2)
    assert second["log_px_difference"]["se_seeds"] is None
    # Far less than the errors of the two means, which have what is hard for both in them: sd sqrt(500 / 3).
    assert second["log_px"]["mean"] == -25 and second["log_px"]["se"] == approx(math.sqrt(500 / 3) / 2)
    assert second["gap"] == {"mean": approx(0.5), "at_least": False}
    assert first["iwae"] == {
        "k": 10,
        "mean": approx(-25.4),
        "se": approx(math.sqrt(167) / 2),
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


def test_the_work_grows_with_the_number_of_rows(elsewhere: Path) -> None:
    """Not with its square, for options that tell the rows apart. Calls are counted, not seconds."""
    run, calls = read(write("run", [-3, -2], [-2, -1])), []
    for count in (10, 20, 40):
        options = [run.config | {"training.batch_size": n, "guide_options.units": n % 3} for n in range(count)]
        several = [run._replace(config=each, path=Path(f"run{n}")) for n, each in enumerate(options)]
        profile = cProfile.Profile()
        rows = profile.runcall(rows_of, several)
        profile.runcall(layout, rows)
        assert rows[1].options == {"batch_size": 1, "guide.units": 1}
        calls.append(pstats.Stats(profile).total_calls)
    assert calls[2] - calls[1] < 2.2 * (calls[1] - calls[0]), calls


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
    assert a["log_px"]["mean"] == -11 and a["log_px"]["se"] == approx(0.5) and a["log_px"]["se_seeds"] == 1
    assert a["elbo"] == {"mean": -21, "se": 0, "se_seeds": 1}
    assert b["log_px"]["se_seeds"] == approx(1 / math.sqrt(3))
    # b is at -14 and -16: differences -3.5 and -4.5.
    assert b["log_px_difference"]["mean"] == -4 and b["log_px_difference"]["se"] == approx(0.5)
    assert b["log_px_difference"]["se_seeds"] == approx(math.sqrt(1 + 1 / 3))
    assert a["seconds"] == 7.5
    text = str(Comparison(paths))
    assert "-15.00 ± 1.00 ± 0.58" in text and "-4.00 ± 0.50 ± 1.15" in text and "over its seeds" in text
    alone = compared(*paths[2:])["rows"][1]
    assert alone["log_px"]["se_seeds"] is None and alone["log_px_difference"]["se_seeds"] is None


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
    assert mean == approx(-1.375)
    assert (b["log_px_difference"]["low"], b["log_px_difference"]["high"]) == approx((mean - half, mean + half))
    assert b["elbo_difference"] == {
        "mean": 0,
        "se": 0,
        "se_seeds": 0,
        "low": 0,
        "high": 0,
        "paired": True,
        "of": "methods",
    }
    # c is -5.5, -6, -6 and -5.5 from a.
    half = t3 * math.sqrt(np.var([5.5, 6, 6, 5.5], ddof=1) / 4)
    entry = c["log_px_difference"]
    assert (entry["low"], entry["high"]) == approx((-5.75 - half, -5.75 + half)) and entry["se_seeds"] is None
    text = str(Comparison(paths))
    assert f"-5.75 ± 0.14 [{-5.75 - half:+.2f}, {-5.75 + half:+.2f}]" in text
    one = "Δ compares two sets of weights, not two methods"
    assert "whichever of the 3 rows came out best" in text and f"one seed in this row or in the first: {one}" in text
    (row, _) = csv.DictReader(io.StringIO(Comparison(paths[:4]).to_csv()))
    assert row["log_px_difference.low"] == row["log_px_difference.of"] == ""
    text = str(Comparison(paths[:4]))
    assert "the interval compares two methods: it is for other seeds and other images" in text and one not in text
    assert "may be chance" in text and "came out best" not in text
    text = str(Comparison([paths[0], paths[4]]))
    assert f"one seed: {one}" in text and "two methods: for" not in text
    assert "interval" not in str(Comparison(paths[:1]))


def _own(name: str, values: list[float], **entry: Any) -> dict[str, Any]:
    """Changes of a run that has an estimate by an estimator of the user's own."""
    found = {"mean": float(np.mean(values)), "estimator": name, "num_samples": 50, "at_least": False} | entry
    return {f"evaluation.log_px_{name}": found, f"values.log_px_{name}": values}


def test_estimators_of_ones_own(elsewhere: Path) -> None:
    """Each has a column, in the rows that have it, whatever its name. Differences are paired: of 2, 3, 4, 3 the mean is
    3, with sd sqrt(2/3)."""
    best, zeros = _own("gap", [-1, -2, -3, -2], num_samples=70), [0.0] * 4
    other = _own("gap", [-3, -5, -7, -5], at_least=True) | _own("low_mc_se_of", [-9, -8, -9, -8])
    a = write("a", [-9] * 4, zeros, **best)
    b = write("b", [-9] * 4, [-1] * 4, guide="other", **other)
    c = write("c", [-9] * 4, [-2] * 4, guide="third")
    comparison = Comparison([a, b, c])
    first, second, third = comparison.to_json()["rows"]
    assert first["own"] == {
        "gap": {"mean": -2, "se": approx(math.sqrt(2 / 3) / 2), "se_seeds": None, "at_least": False}
    }
    assert third["own"] == {} and list(second["own"]) == ["gap", "low_mc_se_of"]
    assert second["own"]["gap"]["mean"] == -5 and second["own"]["gap"]["at_least"]
    found, of_log_px = second["own"]["gap"]["difference"], second["log_px_difference"]
    assert found.keys() == of_log_px.keys() and (found["mean"], found["paired"], found["of"]) == (-3, True, "weights")
    assert found["se"] == approx(math.sqrt(2 / 3) / 2) and found["high"] - found["mean"] > 3 * found["se"]
    assert "difference" not in second["own"]["low_mc_se_of"]  # the best row has none
    frame = comparison.frame
    assert frame["own_gap"].tolist()[:2] == [-2, -5] and frame["own_gap"].isna().tolist() == [False, False, True]
    assert frame.loc[1, "own_gap_difference"] == -3 and frame.loc[1, "gap"] == 8
    columns = layout(comparison.rows).columns
    assert columns["log p(x) by gap"] == ["-2.00 ± 0.41", "≥ -5.00 ± 0.82", ""]
    assert columns["Δ log p(x) by gap"][1].startswith("-3.00 ± 0.41 [")
    assert columns["log p(x) by low_mc_se_of"] == ["", "-8.50 ± 0.29", ""]
    assert "Δ log p(x) by low_mc_se_of" not in columns and columns["gap"] == ["9.00", "8.00", "7.00"]
    text = str(comparison)
    assert "log p(x) by gap: its number of samples or its options differ between the runs" in text
    assert "by low_mc_se_of: its" not in text and "≥ at least" in text
    assert " by low_mc_se_of</th>" in comparison.page()


def test_seeds_share_an_own_estimator_if_all_have_it(elsewhere: Path) -> None:
    seeds: dict[str, Any] = {"training.seed": 1}
    paths = [
        write("a", [-9, -9], [-1, -1], **_own("mine", [-2, -2])),
        write("b", [-9, -9], [-1, -1], **_own("mine", [-4, -4]), **seeds),
        write("c", [-9, -9], [-3, -3], guide="other", **_own("mine", [-2, -2])),
        write("d", [-9, -9], [-3, -3], guide="other", **seeds),
    ]
    first, second = Comparison(paths).rows
    assert (first.own["mine"].mean, first.own["mine"].se_seeds) == (-3, 1) and second.own == {}


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


def test_gaps_where_they_were_measured(elsewhere: Path) -> None:
    """Means over seeds, of a row whose runs all have them; blank for the others."""
    for seed, approximation in ((0, 1.0), (1, 2.0)):
        path = write(f"run-{seed}", [-10.0, -11.0], [-8.0, -9.0], **{"training.seed": seed})
        parts = {"approximation": {"mean": approximation, "se": 0.1}, "amortization": {"mean": 0.5, "se": 0.1}}
        of = RESULTS["gaps.json"]
        contexts = of["contexts"] | parts | {"num_images": 100, "at_least": seed == 1}
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
    RunDirectory.open(path).save_checkpoint({"weight": torch.zeros(1)}, {"epoch": 1, "step": 4})
    for other in ({"split": "train"}, {"checkpoint": "best"}, {"training_step": 3}):
        (path / "gaps.json").write_text(json.dumps(of | other | {"contexts": contexts}))
        assert "approx." not in str(Comparison(["run-1"]))
