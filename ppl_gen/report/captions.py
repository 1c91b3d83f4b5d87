"""Captions of every picture that a run can have."""

from collections.abc import Sequence

from ppl_gen.evaluation.distances import Distances
from ppl_gen.evaluation.explaining import names
from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures import (
    bounds,
    distances,
    gradient_quality,
    guide_calibration,
    images,
    imputations,
    latent,
    learning_curves,
    parts,
    posteriors,
    responsibilities,
    sample_quality,
    spliced,
)
from ppl_gen.figures.captions import Caption


def captions(
    metrics: Sequence[Json] = (),
    summary: Json | None = None,
    found: Distances | None = None,
    explained: Json | None = None,
) -> dict[str, Caption]:
    """Captions by the names of the pictures, in the order of a page.

    :param metrics: lines of the run's `metrics.jsonl`. Their numbers are put into the caption of the learning curves.
    :param summary: the run's `evaluation.json`. Its numbers are put into the captions of its pictures.
    :param found: the bounds and estimates of the run, for the caption of their picture.
    :param explained: the run's `responsibilities.json`, for the names in its captions.
    """
    return {
        **(distances.captions(found) if found else distances.CAPTIONS),
        **(bounds.captions(summary) if summary and "iwae" in summary else bounds.CAPTIONS),
        **(learning_curves.captions(metrics) if metrics else learning_curves.CAPTIONS),
        **images.CAPTIONS,
        **latent.CAPTIONS,
        **posteriors.CAPTIONS,
        **parts.CAPTIONS,
        **guide_calibration.CAPTIONS,
        **gradient_quality.CAPTIONS,
        **responsibilities.captions(*names(explained or {})),
        **sample_quality.CAPTIONS,
        **spliced.CAPTIONS,
        **imputations.CAPTIONS,
    }
