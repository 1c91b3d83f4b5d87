"""Shared parts of pictures: the figure class, and images drawn on axes."""

import io
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows, whatever the backend of pyplot."""

    def png(self) -> bytes:
        """The content of a .png file."""
        content = io.BytesIO()
        self.savefig(content, dpi=120, format="png")
        return content.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def pictures(values: "Tensor", shape: tuple[int, ...]) -> np.ndarray:
    """The first channel of images [..., pixels], as [..., height, width]. An image without a height becomes one row."""
    height, width = shape[-2:] if len(shape) > 1 else (1, *shape)
    return values.detach().cpu().reshape(*values.shape[:-1], -1, height, width)[..., 0, :, :].numpy()


def show(axes: Any, image: np.ndarray) -> None:
    """Draw an image of values in [0, 1]; black is 1."""
    axes.imshow(np.clip(image, 0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
