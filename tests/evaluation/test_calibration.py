"""A small calibration, as a check of the estimators."""

from ppl_gen.evaluation import calibration
from ppl_gen.evaluation.use_options import CalibrateOptions


def test_errors_are_what_they_say() -> None:
    """40 repetitions on 3 images: what is exact is exact; importance sampling's bias is within 4 of its standard errors
    of the first-order one, -var / (2 S), and its interval covers at a rate in [0.85, 1] (120 estimates); the prior
    alone is far worse on four continuous latents, and low beyond 4 standard errors."""
    options = CalibrateOptions(repetitions=40, num_images=3, num_samples=200, num_temperatures=50)
    rows = {(row.model, row.estimator): row for row in calibration.calibrate(options, quiet=True)}
    assert len(rows) == 14
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
    prior = rows["factor analysis", "prior, S = 200"]
    assert prior.rmse > 20 * rows["factor analysis", "importance, S = 200"].rmse
    assert prior.bias < -4 * prior.bias_se < 0
    annealed = rows["factor analysis", "annealed, 16 chains x 50 temperatures"]
    assert annealed.rmse < prior.rmse / 2
