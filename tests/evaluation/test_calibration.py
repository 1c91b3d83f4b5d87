"""A small calibration, as a check of the estimators."""

from pathlib import Path
from typing import Any

from ppl_gen.evaluation import calibration
from ppl_gen.evaluation.use_options import CalibrateOptions

OWN = """
import ppl_gen


class Share:
    def __init__(self, *, share: float = 1.0):
        self.share = share

    def estimate(self, model, guide, x, num_samples):
        return ppl_gen.log_weights(model, guide, x, num_samples=round(self.share * num_samples))
"""


def test_errors_are_what_they_say(elsewhere: Path) -> None:
    """40 repetitions on 3 images: what is exact is exact; importance sampling's bias is within 4 of its standard errors
    of the first-order one, -var / (2 S), and its interval covers at a rate in [0.85, 1] (120 estimates); the prior
    alone is far worse on four continuous latents, and low beyond 4 standard errors. An estimator of the user's own,
    of a quarter of the samples, has about four times the variance."""
    Path("mine.py").write_text(OWN, encoding="utf-8")
    own: dict[str, Any] = {"estimator": ("mine.py:Share",), "estimator_options": {"share": 0.25}}
    options = CalibrateOptions(repetitions=40, num_images=3, num_samples=200, num_temperatures=50, **own)
    rows = {(row.model, row.estimator): row for row in calibration.calibrate(options, quiet=True)}
    assert len(rows) == 16
    for (_, estimator), row in rows.items():
        if estimator.startswith("exact"):
            assert row.rmse < 1e-10
            assert row.coverage is None
        else:
            assert row.coverage is not None
            # Of all estimates, of which the means of 40 repetitions vary less.
            assert row.rmse > abs(row.bias) > 0
            assert row.rmse**2 >= (row.bias**2 + 39 * row.bias_se**2) * (1 - 1e-9) > 0
    for model in ("factor analysis", "belief net"):
        row = rows[model, "importance, S = 200"]
        assert abs(row.bias + row.rmse**2 / 2) < 4 * row.bias_se
        assert row.coverage is not None
        assert row.coverage >= 0.85
        share = rows[model, "share"]
        assert abs(share.bias + share.rmse**2 / 2) < 4 * share.bias_se
        assert share.coverage is not None and share.coverage >= 0.85
        assert 0.7 < share.rmse / row.rmse / 2 < 1 / 0.7
    prior = rows["factor analysis", "prior, S = 200"]
    assert prior.rmse > 20 * rows["factor analysis", "importance, S = 200"].rmse
    assert prior.bias < -4 * prior.bias_se < 0
    annealed = rows["factor analysis", "annealed, 16 chains x 50 temperatures"]
    assert annealed.rmse < prior.rmse / 2
