"""The figure of a comparison."""

from pathlib import Path

import pytest
from written import write

from ppl_gen.comparison import Comparison
from ppl_gen.evaluation.columns import labels


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
