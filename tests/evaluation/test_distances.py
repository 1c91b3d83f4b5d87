"""How far the bounds are from log p(x): the levels of each row, and their intervals."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t
from written import write

from ppl_gen.comparison import Comparison
from ppl_gen.evaluation.distances import Distances, Level


def level(found: Distances, row: int, name: str) -> Level:
    return next(each for each in found.rows[row].levels if name in (each.name, each.label))


def half_width(difference: np.ndarray, num_rows: int) -> float:
    """Of the 95 % interval of the mean of paired differences, for any of all pairs of rows."""
    count, pairs = len(difference), max(1, num_rows * (num_rows - 1) // 2)
    return float(t.ppf(1 - 0.025 / pairs, count - 1) * difference.std(ddof=1) / np.sqrt(count))


def test_levels_and_paired_intervals_of_several_rows(elsewhere: Path) -> None:
    """Against values by hand: every interval is of the difference to log p(x) of the best row, image by image."""
    best = {"elbo": [-5.0, -4.0, -7.5, -6.0], "log_px": [-4.0, -3.5, -6.0, -5.0]}
    other = {"elbo": [-6.5, -4.0, -8.5, -7.0], "log_px": [-5.0, -3.6, -6.9, -6.0]}
    write("a", **best, **{"evaluation.log_px.at_least": True})
    write("b", **other, prior="flow")
    comparison = Comparison(["b", "a"])
    found = comparison.distances
    assert len(found.rows) == 2
    assert [each.label for each in found.rows[0].levels] == ["ELBO", "IWAE-10", "importance sampling, S = 100"]
    reference = np.array(best["log_px"])
    assert found.reference == level(found, 0, "importance") and found.reference.half_width == 0
    for number, values in enumerate((best, other)):
        for name, key, more in (("elbo", "elbo", 0.0), ("IWAE-10", "elbo", 0.1), ("importance", "log_px", 0.0)):
            each, of = level(found, number, name), np.array(values[key]) + more
            assert each.mean == pytest.approx(of.mean())
            assert each.half_width == pytest.approx(half_width(of - reference, 2), abs=1e-12)
    # The interval of log p(x) is that of the table.
    row = comparison.to_json()["rows"][1]["log_px_difference"]
    assert level(found, 1, "importance").half_width == pytest.approx((row["high"] - row["low"]) / 2)
    assert level(found, 0, "importance").at_least and not level(found, 1, "importance").at_least
    assert found.rows[0].gap == pytest.approx(1.0) and not found.several_seeds


def test_one_run_is_held_against_its_own_exact_value(elsewhere: Path) -> None:
    """Not against a larger estimate by importance sampling."""
    exact, sampled, annealed = [-4.0, -3.0, -5.5], [-3.5, -3.0, -5.0], [-4.2, -3.3, -5.6]
    write(
        "a",
        [-6.0, -4.0, -6.5],
        exact,
        **{"evaluation.log_px.estimator": "quadrature"},
        **{
            "evaluation.log_px_importance": {
                "mean": float(np.mean(sampled)),
                "estimator": "importance",
                "num_samples": 100,
            }
        },
        **{"evaluation.log_px_annealed": {"mean": float(np.mean(annealed)), "estimator": "annealed", "at_least": True}},
        **{"values.log_px_importance": sampled, "values.log_px_annealed": annealed},
    )
    found = Comparison("a").distances
    assert [each.name for each in found.rows[0].levels] == [
        "elbo",
        "iwae",
        "importance",
        "annealed",
        "quadrature",
    ]
    assert (
        found.reference is not None and found.reference.known and found.reference.mean == pytest.approx(np.mean(exact))
    )
    for name, values in (("importance", sampled), ("annealed", annealed)):
        expected = half_width(np.array(values) - np.array(exact), 1)
        assert level(found, 0, name).half_width == pytest.approx(expected)
    assert level(found, 0, "annealed").at_least and not level(found, 0, "quadrature").at_least


def test_seeds_are_a_part_of_the_interval(elsewhere: Path) -> None:
    """Within the best row seeds are paired, as images are: the reference has no interval. Otherwise the interval is
    that of the table."""
    rows = {"a": ([-4.0, -3.0], [-4.4, -3.2]), "b": ([-6.0, -4.0], [-6.1, -4.5])}
    for name, seeds in rows.items():
        for seed, log_px in enumerate(seeds):
            prior = {"prior": "flow"} if name == "b" else {}
            write(f"{name}{seed}", [value - 1 for value in log_px], log_px, **prior, **{"training.seed": seed})
    comparison = Comparison([f"{name}{seed}" for name in rows for seed in range(2)])
    found = comparison.distances
    assert found.several_seeds and level(found, 0, "importance").half_width == 0
    assert level(found, 0, "elbo").half_width == pytest.approx(0, abs=1e-12)  # one nat below on every image
    row = comparison.to_json()["rows"][1]["log_px_difference"]
    assert level(found, 1, "importance").half_width == pytest.approx((row["high"] - row["low"]) / 2)


def test_a_finite_model_has_one_level(elsewhere: Path) -> None:
    """Beside a run that is sampled: the ELBO is the exact log p(x)."""
    write("mixture", [-2.0, -1.0], [-2.0, -1.0], **{"evaluation.log_px.estimator": "exact", "model": "mixture"})
    write("vae", [-4.0, -3.0], [-3.0, -2.0])
    found = Comparison(["vae", "mixture"]).distances
    assert [[each.name for each in row.levels] for row in found.rows] == [["exact"], ["elbo", "iwae", "importance"]]
    assert found.rows[0].gap is None and found.reference is not None and found.reference.name == "exact"


def test_what_is_not_there_has_no_mark_or_no_interval(elsewhere: Path) -> None:
    """An infinite mean is left out. An estimate whose values were not recorded has no interval, as from versions that
    wrote means alone."""
    earlier = {"mean": -3.5, "estimator": "annealed", "num_chains": 4, "num_temperatures": 9, "start": "prior"}
    write("a", [-6.0, -4.0], [-4.0, -3.0], **{"evaluation.log_px_annealed": earlier, "evaluation.elbo.mean": None})
    # JSON has None for an infinity: the reader of the ELBO's values does not compare it.
    (row,) = Comparison("a").distances.rows
    assert row.left_out == ["ELBO"] and [each.name for each in row.levels] == ["iwae", "importance", "annealed"]
    assert row.levels[-1].half_width is None and row.levels[-2].half_width is not None


def test_bounds_from_both_sides(elsewhere: Path) -> None:
    bounds = {
        "num_images": 50,
        "num_samples": 20,
        "lower": {"mean": -9.0, "se": 0.4},
        "upper": {"mean": -8.5, "se": 0.4},
        "width": {"mean": 0.5, "se": 0.03},
        "exact": {"mean": -8.9, "se": 0.4},
    }
    for seed in range(2):
        more = {"evaluation.sandwich_importance": bounds} | ({} if seed else {"evaluation.sandwich": bounds})
        write(f"a{seed}", [-6.0, -4.0], [-4.0, -3.0], **more, **{"training.seed": seed})
    (row,) = Comparison(["a0", "a1"]).distances.rows
    (found,) = row.sandwiches  # both seeds have to have it
    assert found[:5] == ("importance sampling", 50, -9.0, -8.5, 0.5) and found.exact == -8.9
    assert found.se == pytest.approx(0.03 / np.sqrt(2))
