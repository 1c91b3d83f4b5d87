"""What the pictures say of themselves: titles, legends and labels are true, whole, and hide nothing."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ppl_gen.figures.bounds import gap_histogram
from ppl_gen.figures.images import through_training
from ppl_gen.figures.latent import Points, latent_space
from ppl_gen.figures.learning_curves import adversarial_curves, learning_curves


def boxes(figure: Figure) -> list[Any]:
    """Where titles, labels of axes and the frames of the panels are, in pixels, once the figure is laid out."""
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    texts += [figure._suptitle] if figure._suptitle else []  # type: ignore[attr-defined]
    shown = [text.get_window_extent() for text in texts if text.get_text()]
    return shown + [axes.get_window_extent() for axes in figure.axes]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_no_text_of_the_latent_space_is_cut_off_or_covered(scale: float, labelled: bool) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 300) if labelled else None
    points = Points(scale * rng.normal(size=(300, 2)), scale * np.ones((300, 2)), labels)
    figure = latent_space(points, (19, 7), -4 * scale, 4 * scale)
    found, (width, height) = boxes(figure), figure.bbox.size
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in found)
    assert not any(one.shrunk(0.98, 0.98).overlaps(other) for one, other in combinations(found, 2))


def test_what_is_the_same_through_training_is_the_noise() -> None:
    title = through_training({0: np.zeros((2, 3, 3)), 4: np.zeros((2, 3, 3))}).get_suptitle()
    assert "same noise" in title and "same z" not in title


def test_learning_curves_say_what_they_were_before_training() -> None:
    terms = {"elbo": -8.0, "reconstruction": -7.0, "kl": 1.0}
    for train, others, title in (
        (terms, {}, "ELBO of the train split before training: −8.0"),
        (terms, {"validation": terms | {"elbo": -9.0}}, "ELBO of the validation split before training: −9.0"),
        ({"elbo": -5.0}, {}, "log p(x) of the train split before training: −5.0"),
    ):
        lines = [{"epoch": epoch, "train": train, **others} for epoch in range(3)]
        assert title in learning_curves(lines).get_suptitle()


def test_names_of_adversarial_curves_hide_no_curve() -> None:
    """They are beside the panels, and do not overlap even where both curves of a panel end at one place."""
    keys = ("loss_generator", "loss_discriminator", "d_real", "d_fake", "value")
    lines = [{"epoch": epoch, "train": dict.fromkeys(keys, 0.1 * epoch)} for epoch in range(9)]
    figure = adversarial_curves(lines)
    figure.draw_without_rendering()
    named = []
    for axes in figure.axes:
        names: Any = [text for text in axes.texts if text.get_text()]
        extents = [Text.get_window_extent(text) for text in names]
        assert all(each.x0 > axes.get_window_extent().x1 for each in extents)
        assert not any(one.shrunk(1, 0.9).overlaps(other) for one, other in combinations(extents, 2))
        named += [text.get_text() for text in names]
    assert named == ["generator", "discriminator", "images, D(x)", "samples, D(G(z))", "optimum, −log 4", "V"]


def test_the_gap_is_only_hatched_where_k_hat_is_known_to_matter() -> None:
    """Exact and annealed values have no k-hat: the histogram says nothing of it."""
    gap = np.linspace(1, 2, 30)
    for untrusted, number in ((np.zeros(30, bool), 0), (gap > 1.5, 2)):
        legends = gap_histogram(gap, untrusted).legends
        words = " ".join(text.get_text() for legend in legends for text in legend.get_texts())
        assert words.count("settled") == number and "trusted" not in words
