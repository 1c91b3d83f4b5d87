"""What is in the pictures of the latent space."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D

from ppl_gen.figures.images import mosaic
from ppl_gen.figures.latent import Points, aggregate_posterior, interpolations, latent_space, manifold


def _picture(figure: Figure) -> np.ndarray:
    return np.asarray(figure.axes[0].images[0].get_array())


def test_manifold_rises_to_the_right_and_upwards() -> None:
    images = np.arange(6).reshape(2, 3, 1, 1) / 10.0
    figure = manifold(images, (1, 0), -3.0, 4.0)
    np.testing.assert_allclose(_picture(figure), [[0.3, 0.4, 0.5], [0.0, 0.1, 0.2]])
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[1]", "z[0]")
    assert axes.get_xlim() == axes.get_ylim() == (-3.0, 4.0)


def test_interpolations_go_from_left_to_right() -> None:
    images = np.arange(6).reshape(2, 3, 1, 1) / 10.0
    np.testing.assert_allclose(_picture(interpolations(images))[1::3, 1::3], images[..., 0, 0])


def test_mosaic_fills_up_with_white() -> None:
    np.testing.assert_allclose(mosaic(np.ones((3, 1, 1)), 2, border=0), [[1, 1], [1, 0]])


def test_points_and_ellipses() -> None:
    means, scales = np.zeros((5, 2)), np.full((5, 2), 0.5)
    labels = np.array([0, 1, 0, 1, 2])
    assert len(latent_space(Points(means, scales, None), (0, 1), -3.0, 4.0).axes[0].lines) == 1
    figure = latent_space(Points(means, scales, labels), (3, 1), -3.0, 4.0)
    (left,) = figure.axes
    assert [line.get_label() for line in left.lines] == ["0", "1", "2"]
    assert (left.get_xlabel(), left.get_ylabel()) == ("z[3]", "z[1]")
    assert left.get_xlim() == left.get_ylim() == (-3.0, 4.0)
    figure.draw_without_rendering()
    ellipses: Any = left.collections[0]
    assert ellipses.get_offsets().tolist() == means.tolist() and len(ellipses.get_transforms()) == 5
    scale = left.transData.transform((1, 1)) - left.transData.transform((0, 0))
    for transform in ellipses.get_transforms():
        drawn = Affine2D(transform) + ellipses.get_transform()
        ends = ellipses.get_paths()[0].transformed(drawn).get_extents().get_points() / scale
        np.testing.assert_allclose(ends, [[-0.5, -0.5], [0.5, 0.5]])  # one standard deviation to either side


def test_a_panel_for_each_unit() -> None:
    figure = aggregate_posterior(np.random.default_rng(0).normal(size=(50, 7)), np.zeros((50, 7)), range(7), -3.0, 4.0)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == [f"z[{unit}]" for unit in range(7)]
    assert {axes.get_xlim() for axes in figure.axes if axes.get_title()} == {(-3.0, 4.0)}


@pytest.mark.filterwarnings("error")
def test_few_images_that_lie_in_no_bin() -> None:
    """Both of two may lie outside of the axes, which leave out the extremes."""
    figure = aggregate_posterior(np.array([[-9.0], [9.0]]), np.array([[0.0], [1.0]]), range(1), -3.0, 3.0)
    ours, theirs = (patch.get_data().values for patch in figure.axes[0].patches)
    assert (ours == 0).all() and np.isfinite(theirs).all() and theirs.sum() > 0
