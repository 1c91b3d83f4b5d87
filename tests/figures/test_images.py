"""Grids of grey images and of color images."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from ppl_gen.figures.canvas import Figure, pictures
from ppl_gen.figures.images import mosaic, reconstructions
from ppl_gen.figures.parts import parts
from ppl_gen.figures.responsibilities import components_by_label


def _drawn(figure: Figure) -> np.ndarray:
    """The pixels of a figure, [rows, columns, 3]."""
    return np.asarray(Image.open(BytesIO(figure.png())).convert("RGB"))


@pytest.mark.parametrize("channels", [1, 3])
def test_mosaic(channels: int) -> None:
    """Five images in rows of two, each where it belongs, with white around it and in the empty place."""
    rng = np.random.default_rng(0)
    images = rng.random((5, 4, 3, channels) if channels > 1 else (5, 4, 3))
    white = 1.0 if channels > 1 else 0.0
    found = mosaic(images, 2)
    assert found.shape[:2] == (3 * 6, 2 * 5)
    for index, image in enumerate(images):
        top, left = 6 * (index // 2), 5 * (index % 2)
        np.testing.assert_array_equal(found[top + 1 : top + 5, left + 1 : left + 4], image)
        assert (found[top, left : left + 5] == white).all() and (found[top : top + 6, left] == white).all()
    assert (found[12:, 5:] == white).all()


def test_pictures_of_channels() -> None:
    """Three channels are a color image; of two or four, the first is drawn."""
    values = torch.rand(2, 5, 48)
    assert np.array_equal(pictures(values[..., :16], (4, 4)), values[..., :16].reshape(2, 5, 4, 4))
    color = pictures(values, (3, 4, 4))
    assert color.shape == (2, 5, 4, 4, 3)
    assert np.array_equal(color[..., 1], values[..., 16:32].reshape(2, 5, 4, 4))
    assert np.array_equal(pictures(values, (12, 2, 2)), values[..., :4].reshape(2, 5, 2, 2))
    assert np.array_equal(pictures(values[..., :6], (6,)), values[..., :6].reshape(2, 5, 1, 6))


def test_figures_show_the_colors() -> None:
    """An orange image is orange in each figure."""
    orange = np.array([1.0, 0.5, 0.0])
    images = np.broadcast_to(orange, (4, 6, 6, 3))
    counts = np.array([[3, 1], [0, 2], [1, 1], [2, 0]])
    figures = {
        "reconstructions": reconstructions(images, images, "test"),
        "parts": parts(images, ["a", "b", "c", "d"], "parts"),
        "components": components_by_label(counts, ["0", "1"], list("abcd"), images, 4),
    }
    for name, figure in figures.items():
        pixels = _drawn(figure)
        near = (np.abs(pixels - 255 * orange) < 3).all(-1)
        assert near.mean() > 0.01, name
        assert not (np.abs(pixels - 255 * (1 - orange)) < 3).all(-1).any(), name  # not the negative
