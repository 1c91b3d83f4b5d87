"""The picture of how far the bounds are: the marks are at the numbers, and nothing covers or cuts off a text."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written import write

from ppl_gen.comparison import Comparison
from ppl_gen.evaluation.distances import Distance, Distances, Level, Sandwich
from ppl_gen.evaluation.reading import Images
from ppl_gen.figures import distances
from ppl_gen.figures.distances import caption, how_far

IMAGES = Images("digits", "test", 300, "static", "probability")
KINDS = ("elbo", "iwae", "importance", "annealed", "mixed", "prior", "mine", "quadrature", "exact")


def row(label: str, means: list[float], **more: Any) -> Distance:
    """A row with the first kinds of levels."""
    levels = [Level(name, name, mean, 0.01) for name, mean in zip(KINDS, means, strict=False)]
    return Distance(label, levels, [], means[-1] - means[0], **more)


def found(*rows: Distance) -> Distances:
    return Distances(IMAGES, list(rows), rows[0].best)


def test_marks_and_bars_are_at_the_numbers(elsewhere: Path) -> None:
    runs = [
        write("a", [-5.0, -4.0, -7.5], [-4.0, -3.5, -6.0], **{"evaluation.log_px.at_least": True}),
        write("b", [-6.5, -4.0, -8.5], [-5.0, -3.6, -6.9], guide="x/mine.py:Mine"),
    ]
    comparison = Comparison(runs)
    axes: Any = comparison.figure().axes[0]
    (best, other) = comparison.distances.rows
    marks = {float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1}
    assert marks == {level.mean for each in (best, other) for level in each.levels}
    bars = [line.get_xdata() for line in axes.lines if line.get_marker() == "|" and len(line.get_xdata()) == 2]
    expected = [
        (level.mean - level.half_width, level.mean + level.half_width)
        for each in (best, other)
        for level in each.levels
        if level.half_width and (level.name == "elbo" or level == each.best)
    ]
    assert len(expected) == 3 and np.array(bars) == pytest.approx(np.array(expected))  # the reference has none
    heads = [text.get_text() for text in axes.texts]
    assert {"normal", "x/mine.py:Mine", "gap 1.00"} <= set(heads)
    assert sum(text.startswith("gap ") for text in heads) == 2
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    assert [arrow.xy[0] for arrow in arrows] == [best.levels[-1].mean]  # at least


def test_a_mark_is_named_once_and_each_kind_has_a_shape_of_its_own() -> None:
    means = [float(number) for number in range(-10, -10 + len(KINDS))]
    figure = how_far(found(row("first", means), row("second", [-11.0, -9.5])))
    axes: Any = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert all(texts.count(kind) == 1 for kind in KINDS)
    shapes = [line.get_marker() for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(set(shapes)) == len(KINDS)  # readable without colours


@pytest.mark.parametrize("spread", [0.0, 0.3, 8.0])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_no_text_is_cut_off_or_covered(count: int, spread: float) -> None:
    """Also where all marks are at one place, and where a label is long."""
    means = [-100 + spread * number**0.5 for number in range(len(KINDS))]
    bounds = (Sandwich("importance sampling", 50, -9.0, -8.5, 0.5, 0.03, -8.9),)
    bounds += (bounds[0]._replace(label="annealing", upper=3.345, width=12.345, se=10.123),)
    rows = [row("folder/" * (20 if number == 0 else 2) + "mine", means, sandwiches=bounds) for number in range(count)]
    figure = how_far(found(*rows))
    figure.draw_without_rendering()
    texts = [*figure.texts, *(text for axes in figure.axes for text in (*axes.texts, axes.xaxis.label, axes.title))]
    texts += [label for axes in figure.axes for label in axes.get_xticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    width, height = figure.bbox.size
    assert all(box.x0 >= -1 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert not any(one.shrunk(0.97, 0.9).overlaps(other) for one, other in combinations(boxes, 2))


def test_bounds_from_both_sides_have_a_panel_of_their_own() -> None:
    bounds = (Sandwich("importance sampling", 50, -9.0, -8.5, 0.5, 0.03, -8.9),)
    shown = found(row("first", [-10.0, -9.0, -8.0], sandwiches=bounds), row("second", [-11.0, -9.5]))
    axes: Any = how_far(shown).axes[1]
    assert sorted(axes.lines[0].get_xdata()) == pytest.approx([0.0, 0.5])  # above the lower bound
    assert axes.lines[1].get_xdata()[0] == pytest.approx(0.1)  # the exact mean
    assert [text.get_text() for text in axes.texts] == ["0.50 ± 0.03"]
    assert "which each model draws itself" in caption(shown).text
    assert "between -9.00 and -8.50 by importance sampling" in caption(shown).alt
    assert len(how_far(found(row("first", [-10.0, -9.0]))).axes) == 1


def test_the_caption_says_what_the_bars_are() -> None:
    levels = [Level("elbo", "ELBO", -10.0, 0.25), Level("exact", "exact", -9.0, 0.0)]
    alone = found(Distance("normal", levels, []))
    text = caption(alone).text
    assert "ELBO and estimates of log p(x), means over 300 test images of digits" in text
    assert "difference to its own log p(x) (exact; dashed), paired image by image" in text
    assert "not for other seeds" in text and "± 0.25 nats" in text and "at least" not in text
    assert caption(alone).alt.endswith("normal: ELBO -10.00, exact -9.00")
    several = Distances(IMAGES, [alone.rows[0], row("flow", [-11.0, -10.5, -10.0])], levels[1], several_seeds=True)
    assert "difference to log p(x) of normal" in caption(several).text
    assert "other images and seeds" in caption(several).text
    sampled = [level._replace(half_width=None, at_least=True) for level in levels]
    assert "arrow" not in caption(found(Distance("normal", sampled, []))).text  # the exact value is known
    sampled[1] = sampled[1]._replace(name="importance")
    text = caption(found(Distance("normal", sampled, ["IWAE-10"]))).text
    alone = how_far(found(Distance("grid", levels[1:], [])))
    assert "no gap" in [each.get_text() for each in alone.axes[0].texts]
    assert "No interval is drawn" in text and "An arrow to the right" in text
    assert "normal has no mark for IWAE-10: the mean is not finite." in text


def test_wide_intervals_run_out_of_the_picture() -> None:
    """From few seeds they may be far wider than all else."""
    levels = [Level("elbo", "ELBO", -10.0, 900.0), Level("importance", "importance sampling", -9.0, 0.0)]
    low, high = how_far(found(Distance("normal", levels, []))).axes[0].get_xlim()
    assert -12 < low < -10 and -9 < high < -8


def test_the_axis_is_cut_between_rows_far_apart() -> None:
    """So that gaps of 5 nats are seen beside a row 50 nats below. The scale is the same on both sides."""
    shown = found(row("near", [-100.0, -97.0, -95.0]), row("far", [-158.0, -156.0]))
    axes: Any = how_far(shown).axes[0]
    assert "A grey band cuts the axis" in caption(shown).text

    def place(nats: float) -> float:
        return float(axes.transData.transform((nats, 0))[0])

    per_nat = (place(-95) - place(-100)) / 5
    assert per_nat == pytest.approx((place(-156) - place(-158)) / 2)
    assert place(-100) - place(-156) < 0.3 * (place(-95) - place(-158))
    ticks = list(axes.get_xticks())
    assert any(tick < -150 for tick in ticks) and any(tick > -105 for tick in ticks) and len(set(ticks)) == len(ticks)
    assert not any(-150 < tick < -105 for tick in ticks)
    for together in (found(row("a", [-100.0, -95.0]), row("b", [-104.0, -102.0])), exact(-150.0, -100.0)):
        assert "cuts" not in caption(together).text


def exact(*means: float) -> Distances:
    """Rows of one exact value each: what is to be seen is how far they are apart."""
    return found(*(Distance(str(mean), [Level("exact", "exact", mean, 0.0)], []) for mean in sorted(means)[::-1]))


def test_of_many_rows_the_best_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """More would not fit into a file of pictures."""
    rows = [row(str(number), [-10.0 - number, -9.0 - number]) for number in range(5)]
    assert "rows are drawn" not in caption(found(*rows)).text
    monkeypatch.setattr(distances, "_MOST", 3)
    (axes,) = how_far(found(*rows)).axes
    assert [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"] == ["0", "1", "2"]
    assert (
        caption(found(*rows)).text.endswith("The best 3 of 5 rows are drawn.") and "3:" not in caption(found(*rows)).alt
    )
