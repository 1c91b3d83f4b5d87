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
