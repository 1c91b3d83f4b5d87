"""Caption and alternative text of every picture that a run can have. Each stands in the file of its picture."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ppl_gen.experiment.run_directory import Json


@dataclass(frozen=True)
class Caption:
    """A picture in words."""

    text: str
    """Below the picture."""
    alt: str
    """In the place of the picture, for a reader who does not see it."""

    def told(self, more: str) -> "Caption":
        """The same, with numbers of the picture added to its alternative text."""
        return replace(self, alt=self.alt + more)


def captions(metrics: Sequence[Json] = (), summary: Json | None = None) -> dict[str, Caption]:
    """Captions by the names of the pictures, in the order of a page.

    :param metrics: the lines of the run's `metrics.jsonl`, whose numbers are put into the captions of its curves.
    :param summary: the run's `evaluation.json`, likewise.
    """
    from ppl_gen.figures import (
        adversarial,
        bounds,
        completions,
        images,
        latent,
        learning_curves,
        parts,
        responsibilities,
        sample_quality,
        spliced,
    )

    curves = learning_curves.CAPTIONS
    if metrics:
        measured = metrics[-1]["train"]
        if "elbo" in measured:
            curves = learning_curves.captions(metrics)
        elif "d_real" in measured:
            curves = adversarial.CAPTIONS
    return {
        **curves,
        **(bounds.captions(summary) if summary and "iwae" in summary else bounds.CAPTIONS),
        **images.CAPTIONS,
        **latent.CAPTIONS,
        **parts.CAPTIONS,
        **responsibilities.CAPTIONS,
        **sample_quality.CAPTIONS,
        **spliced.CAPTIONS,
        **completions.CAPTIONS,
    }
