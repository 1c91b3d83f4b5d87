"""Every picture has one style: at most as wide as a page, with text that is readable at that width."""

from collections.abc import Callable
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import __main__ as speed
from benchmarks import closed_form, exact_training, gap, growth, questions, wall
from benchmarks.timing import Comparison
from ppl_gen.evaluation.distances import Distance, Distances, Level, Sandwich
from ppl_gen.evaluation.reading import Images
from ppl_gen.figures.bounds import gap_histogram
from ppl_gen.figures.calibration import calibration
from ppl_gen.figures.distances import how_far
from ppl_gen.figures.gradient_quality import bias_against_variance
from ppl_gen.figures.guide_calibration import coverage, rank_ecdfs
from ppl_gen.figures.images import reconstructions, samples, through_training
from ppl_gen.figures.imputations import imputations
from ppl_gen.figures.latent import Points, aggregate_posterior, interpolations, latent_space, manifold
from ppl_gen.figures.learning_curves import adversarial_curves, learning_curves, monitored_curves
from ppl_gen.figures.parts import parts, unit_marginals
from ppl_gen.figures.posteriors import MASSES, Posteriors, Regions, posteriors
from ppl_gen.figures.responsibilities import components_by_label, examples
from ppl_gen.figures.sample_quality import class_shares, neighbours
from ppl_gen.figures.spliced import power_against_size, spliced_images
from ppl_gen.figures.style import SMALL, STYLE, WIDTH, spread
from ppl_gen.inference.ranks import POINTS

TEN = np.linspace(0, 1, 250).reshape(10, 5, 5)
ELBO = [{"epoch": e, "train": {"elbo": -9.0 + e, "reconstruction": -7.0, "kl": 1.0}} for e in range(4)]
PLAYERS = ("loss_generator", "loss_discriminator", "d_real", "d_fake", "value")
GAN = [{"epoch": e, "train": dict.fromkeys(PLAYERS, 0.1 * e)} for e in range(4)]
SHARES = {"levels": [0.5, 0.9], "joint": [{"mean": 0.5, "se": 0.1}] * 2, "central": [{"mean": 0.5, "se": 0.1}] * 2}
GUIDE = {
    "num_images": 9,
    "false_alarm_rate": 0.05,
    "before": {"coverage": SHARES, "quantities": [{"p": 0.1}] * 3},
}
RATES = {"10": {"mean": 0.3, "se": 0.1}, "100": {"mean": 0.9, "se": 0.1}}
ERRORS = {"bias_se": 0.01, "variance": 0.1}
MARKS = [
    {"objective": f"straight-through-{row}", "seconds": 0.1 * row, "guide": ERRORS | {"bias": 0.1, "biased": row < 4}}
    for row in range(1, 9)
]
GRADIENTS = {
    "points": [{"at": at, "step": 123_456, "norm": {"guide": 1.0}, "rows": MARKS} for at in ("trained", "initial")]
}
POWER = {"power": RATES, "false_alarms": RATES, "false_alarm_rate": 0.05, "reference": 500}
ESTIMATORS = [
    {"model": m, "estimator": e, "bias": -0.3, "bias_se": 0.1, "rmse": 0.4, "coverage": 0.9}
    for m in ("ppca", "belief-net")
    for e in ("importance sampling, S = 1,000", "annealed")
]
TIMES = {1: 1.0, 10: 10.0, 100: 90.0}
CLIMB = {
    way: {"points": [{"units": m, "seconds": 0.5 * m, "bytes": 1e8 * m} for m in (1, 5, 9)], "stop": ""}
    for way in wall.WAYS
}


def _distances() -> Distances:
    levels = [Level("elbo", "ELBO", -10.0, 0.2), Level("importance", "importance sampling", -9.0, 0.0)]
    bounds = (Sandwich("importance sampling", 50, -9.0, -8.5, 0.5, 0.03, -8.9),)
    found = [Distance("normal", levels, [], 1.0, sandwiches=bounds), Distance("flow", levels, [], 1.0)]
    return Distances(Images("digits", "test", 300, "static", "probability"), found, levels[1])


def _posteriors() -> Posteriors:
    axes = np.tile(np.linspace(-4, 4, 21), (3, 2, 1))
    log_density = -(axes[:, 0, :, None] ** 2 + axes[:, 1, None, :] ** 2) / 2
    regions = Regions(axes, log_density, np.tile(np.log1p(-np.array(MASSES)), (3, 1)))
    return Posteriors(TEN[:3], regions, regions, np.ones((3, 2)))


FIGURES: dict[str, Callable[[], Figure]] = {
    "gap_histogram": lambda: gap_histogram(np.linspace(1, 2, 90), np.arange(90) % 2 == 0),
    "calibration": lambda: calibration(ESTIMATORS),
    "how_far": lambda: how_far(_distances()),
    "rank_ecdfs": lambda: rank_ecdfs(
        ("density", "z[0]", "z[1]"), np.full((9, 3), 0.5), None, POINTS / 2, np.sqrt(POINTS), GUIDE
    ),
    "gradients": lambda: bias_against_variance(GRADIENTS),
    "coverage": lambda: coverage(GUIDE),
    "samples": lambda: samples(TEN, TEN),
    "through_training": lambda: through_training({0: TEN, 10: TEN}),
    "reconstructions": lambda: reconstructions(TEN, TEN, "test"),
    "imputations": lambda: imputations(TEN, np.ones((5, 5), bool), TEN, TEN[None], ["-1,234.5"] * 10),
    "aggregate_posterior": lambda: aggregate_posterior(np.ones((9, 5)), np.zeros((9, 5)), range(5), -4.0, 4.0),
    "interpolations": lambda: interpolations(np.tile(TEN, (5, 1, 1, 1))),
    "latent_space": lambda: latent_space(Points(TEN[:, 0, :2], TEN[:, 0, :2], np.arange(10)), (12, 3), -4.0, 4.0),
    "manifold": lambda: manifold(np.tile(TEN, (10, 1, 1, 1)), (1, 0), -4.0, 4.0),
    "learning_curves": lambda: learning_curves(ELBO),
    "monitored_curves": lambda: monitored_curves(ELBO),
    "adversarial_curves": lambda: adversarial_curves(GAN),
    "parts": lambda: parts(np.tile(TEN, (3, 1, 1)) - 0.5, ["0.50%"] * 30, "weights"),
    "unit_marginals": lambda: unit_marginals(TEN[:5], TEN[:5, 0], TEN[:5, 0], TEN[0, 0]),
    "posteriors": lambda: posteriors({"normal": _posteriors(), "flow": _posteriors()}),
    "components_by_label": lambda: components_by_label(
        np.full((5, 10), 12_345), list("0123456789"), ["12: 5.0%"] * 5, TEN[:5], 9
    ),
    "examples": lambda: examples(TEN[:4], np.tile(TEN[:4], (4, 1, 1, 1)), np.full((4, 4), 0.25), [["12"] * 4] * 4),
    "class_shares": lambda: class_shares(np.full(5, 0.2), np.full(5, 0.2), list("01234"), 100),
    "neighbours": lambda: neighbours(TEN, TEN, [10.5] * 10),
    "spliced_images": lambda: spliced_images(TEN, TEN, (np.full(10, -123.4), np.full(10, -123.4))),
    "power_against_size": lambda: power_against_size(POWER),
    "wall": lambda: wall.draw(CLIMB),
    "growth": lambda: growth.draw(dict.fromkeys(growth.KINDS, TIMES)),
    "speed": lambda: speed.draw([Comparison(f"step {i}", {"plain": 1.0, "ours": 2.0 * i}, "plain") for i in (1, 9)]),
    "gap": lambda: gap.draw(gap.from_table()),
    "exact_training": lambda: exact_training.draw(exact_training.from_table()),
    "prior_sampling": lambda: closed_form.draw_misses({1: {10: (1.0, 0.1, 0.2, 0.0), 100: (0.1, 0.0, 0.0, 0.0)}}),
    "annealing_bounds": lambda: closed_form.draw_bounds(
        {m: {10: (-1.0, 1.0, 0.1, 0.1), 99: (-0.1, 0.0, 0.1, 0.1)} for m in (2, 9)}
    ),
    "two_things": lambda: questions.draw_two_things(np.arange(1, 4), [-3.0, -2.0, -1.5], [-2.0, -1.5, -1.2], [1, 2]),
    "why_reparametrize": lambda: questions.why_reparametrize(500),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_does_not_shrink_it_and_no_text_is_small(name: str) -> None:
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    assert figure.get_figwidth() <= WIDTH == 6.5
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]  # type: ignore[attr-defined]
    assert texts and all(text.get_fontsize() in (SMALL, STYLE["font.size"]) for text in texts)  # type: ignore[attr-defined]
    assert SMALL == 8 and STYLE["font.size"] == 9
    titles = [each for each in (figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)) if each]
    assert all(len(title) <= 70 and title.count("\n") <= (name in ("posteriors", "coverage")) for title in titles)
    box = figure.get_tightbbox()
    assert box.x0 > -0.02 and box.y0 > -0.02
    assert box.x1 < figure.get_figwidth() + 0.02 and box.y1 < figure.get_figheight() + 0.02


def test_names_beside_lines_do_not_overlap() -> None:
    heights = [0.1, 0.2, 0.1, 0.1]
    places = spread([0.5, 0.5, 0.5, 0.9], heights)
    assert places[-1] == pytest.approx(0.9)  # there is room for it
    assert np.mean(places[:3]) == pytest.approx(0.5)
    ends = [(place - height / 2, place + height / 2) for place, height in zip(places, heights, strict=True)]
    assert all(below[1] <= above[0] + 1e-9 for below, above in pairwise(ends))
