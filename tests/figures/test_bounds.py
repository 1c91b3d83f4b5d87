"""Pictures of bounds and gaps."""

import numpy as np

from ppl_gen.figures.bounds import gap_histogram


def test_an_infinite_gap_is_drawn() -> None:
    gap = np.array([1.0, 2.0, np.inf])
    assert "1 infinite" in gap_histogram(gap, np.array([False, True, True])).axes[0].get_title()
    figure = gap_histogram(np.array([1.0, 2.0]), np.zeros(2, bool), at_least=True)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["gap is at least this"]
    assert "3 infinite" in gap_histogram(np.full(3, np.inf), np.ones(3, bool)).axes[0].get_title()


def test_the_name_of_the_mean_is_above_all_bars() -> None:
    """Also above a bar of settled images alone, beside others that are not settled."""
    gap = np.concatenate([np.full(25, 1.0), np.linspace(0, 2, 40)])
    axes = gap_histogram(gap, gap > 1.5).axes[0]
    tallest = max(bar.get_y() + bar.get_height() for bar in axes.patches)  # type: ignore[attr-defined]
    assert tallest > 25 and axes.get_ylim() == (0, 1.22 * tallest)
    assert "mean 0.00" in [text.get_text() for text in gap_histogram(np.full(9, -1e-9), gap[:9] > 1).axes[0].texts]
