"""Shared parts of pictures: the figure class, and images drawn on axes."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from ppl_gen.core.files import make_folder, write_file
from ppl_gen.figures.style import STYLE

if TYPE_CHECKING:
    from torch import Tensor


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows, whatever the backend of pyplot. It is drawn in the style of all pictures, which
    some parts, such as ticks, read only then."""

    def draw(self, renderer: Any) -> None:
        """Draw the figure."""
        with matplotlib.rc_context(STYLE):
            super().draw(renderer)

    def write(self, path: Path) -> None:
        """Write a .png file.

        :raises BadInput: if it cannot be written.
        """
        make_folder(path.parent)
        write_file(path, self.png())

    def png(self) -> bytes:
        """The content of a .png file of 120 dots per inch. The picture is `savefig`'s, which draws everything twice:
        once to find room for the labels, which is found here without, and once for the file."""
        content = io.BytesIO()
        canvas, engine, before = FigureCanvasAgg(self), self.get_layout_engine(), self.dpi
        self.set_dpi(120)
        try:
            if engine is not None:
                with matplotlib.rc_context(STYLE):
                    engine.execute(self)
                self.set_layout_engine("none")
            canvas.print_png(content)
        finally:
            if engine is not None:
                self.set_layout_engine(engine)
            self.set_dpi(before)
        return content.getvalue()

    def rename(self, change: Callable[[str], str]) -> None:
        """Change every text in the figure by a function."""
        for text in self.findobj(Text):
            if (changed := change(text.get_text())) != text.get_text():
                text.set_text(changed)

    def _repr_png_(self) -> bytes:
        return self.png()


def pictures(values: "Tensor", shape: tuple[int, ...]) -> np.ndarray:
    """Images [..., pixels] as [..., height, width]; color images, of shape [3, height, width], as [..., height, width,
    3]. Of another number of channels, the first is taken. An image without a height becomes one row."""
    height, width = shape[-2:] if len(shape) > 1 else (1, *shape)
    channels = values.detach().cpu().reshape(*values.shape[:-1], -1, height, width)
    return (channels.movedim(-3, -1) if is_color(shape) else channels[..., 0, :, :]).numpy()


def is_color(shape: tuple[int, ...]) -> bool:
    """True for the shape [3, height, width] of a color image."""
    return len(shape) == 3 and shape[0] == 3


def show(axes: Any, image: np.ndarray) -> None:
    """Draw an image of values in [0, 1]: grey [height, width], where black is 1; or color [height, width, 3]."""
    axes.imshow(np.clip(image, 0, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    frame(axes)


def frame(axes: Any) -> None:
    """A thin frame in place of the axes of an image: its white pixels end there."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color="0.6", linewidth=0.5)
