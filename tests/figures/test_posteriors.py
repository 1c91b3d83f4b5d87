"""Panels of posteriors."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from ppl_gen.figures.posteriors import MASSES, Posteriors, Regions, caption, posteriors

AXIS = np.linspace(-4, 4, 41)


def gaussians(centers: np.ndarray, scale: float = 1.0) -> Regions:
    """Round Gaussians [images, 2], whose regions are discs."""
    axes = centers[:, :, None] + scale * AXIS
    square = ((axes - centers[:, :, None]) / scale) ** 2
    log_density = -(square[:, 0, :, None] + square[:, 1, None, :]) / 2 - math.log(2 * math.pi * scale**2)
    levels = log_density.max((1, 2))[:, None] + np.log1p(-np.array(MASSES))
    return Regions(axes, log_density, levels)


def some(count: int = 6, *, scale: float = 0.5, guide: bool = True) -> Posteriors:
    centers = np.stack([np.arange(count), -np.arange(count)], 1) / 2
    kl = np.tile([1.25, math.inf], (count, 1))
    images = np.linspace(0, 1, 16 * count).reshape(count, 4, 4)
    return Posteriors(images, gaussians(centers), gaussians(centers + np.array([0.5, 0]), scale) if guide else None, kl)


def test_regions_are_where_the_mass_is() -> None:
    """p in the middle of its panel, q beside it; a region of mass m of a round Gaussian is a disc with the radius
    sqrt(-2 log(1 - m))."""
    figure = posteriors({"": some()})
    figure.draw_without_rendering()
    radii = np.sqrt(-2 * np.log1p(-np.array(MASSES)))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["KL(q‖p) 1.25\nKL(p‖q) ∞"] * 6
    for index, axes in enumerate(panels):
        filled, lines = axes.collections
        for drawn, scale, shift in ((filled, 1.0, 0.0), (lines, 0.5, 0.5)):
            center = np.array([index / 2 + shift, -index / 2])
            for path, radius in zip(drawn.get_paths(), radii[::-1], strict=True):  # the largest first
                far = np.linalg.norm(path.vertices - center, axis=1).max()
                assert far == pytest.approx(scale * radius, rel=0.03)
        low, high = np.array([axes.get_xlim(), axes.get_ylim()]).T
        assert (low < [index / 2 - 3, -index / 2 - 3]).all() and (high > [index / 2 + 3, -index / 2 + 3]).all()


def test_a_row_of_panels_for_each_guide() -> None:
    figure = posteriors({"normal": some(), "none": some(guide=False), "wide": some(scale=2.0)})
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["normal\nz[1]", "none\nz[1]", "wide\nz[1]"] * 2
    panels = [axes for axes in figure.axes if len(axes.collections)]
    assert len(panels) == 18 and [len(axes.collections) for axes in panels[3:6]] == [1, 1, 1]
    assert panels[0].get_xlim() == panels[3].get_xlim() == panels[6].get_xlim()


@pytest.mark.parametrize("names", [("",), ("normal", "flow"), ("folder/" * 30 + "mine.py:Mine, option 3", "x")])
def test_nothing_is_cut_off_or_covered(names: tuple[str, ...]) -> None:
    figure = posteriors({name: some() for name in names})
    figure.draw_without_rendering()
    texts: list[Any] = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    texts += [*figure.legends, figure._suptitle]  # type: ignore[attr-defined]
    boxes = [text.get_window_extent() for text in texts if not hasattr(text, "get_text") or text.get_text()]
    boxes += [axes.get_window_extent() for axes in figure.axes if axes.collections]
    width, height = figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert not any(one.shrunk(0.98, 0.98).overlaps(other) for one, other in combinations(boxes, 2))


def test_the_greys_are_greys_and_the_lines_differ_without_color() -> None:
    figure = posteriors({"": some(1)})
    filled, lines = figure.axes[0].collections
    greys = filled.get_facecolor()
    assert (greys[:, :1] == greys[:, :3]).all() and (np.diff(greys[:, 0]) < 0).all()
    assert len({str(style) for style in lines.get_linestyle()}) == 3
    red, green, blue, _ = to_rgba(lines.get_edgecolor()[0])
    assert 0.3 * red + 0.6 * green + 0.1 * blue < greys[:, 0].min() - 0.15


def test_captions_have_the_numbers() -> None:
    found = {"normal": some(2), "none": some(2, guide=False)}
    assert caption(found).alt.endswith("KL(p || q): normal, 1.25 and ∞; 1.25 and ∞")
    assert "first 2 images" in caption(found).text and "gap" in caption(found).text
    assert "q" not in caption({"": some(guide=False)}).alt


def test_arrays_and_back() -> None:
    for found in (some(), some(guide=False)):
        back = Posteriors.of(found.arrays())
        for name, values in found.arrays().items():
            np.testing.assert_array_equal(back.arrays()[name], values)
        assert (back.guide is None) == (found.guide is None)
