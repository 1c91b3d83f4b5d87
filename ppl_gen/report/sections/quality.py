"""Scores of samples by a classifier, from `quality.json`."""

from collections.abc import Sequence
from dataclasses import asdict

from ppl_gen.core.commands import command
from ppl_gen.evaluation.quality import QUALITY_UNITS, quality_images, quality_rows
from ppl_gen.evaluation.use_options import QualityOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.report.sections import Section, Table, again

FILE = "quality.json"


def section(content: Json, arguments: Sequence[object]) -> Section:
    """Scores of the model's samples."""
    return Section(
        "How good are the samples?",
        f"Scores by a classifier: {quality_images(content)}; {content['checkpoint']} weights.",
        [Table(quality_rows(content), QUALITY_UNITS, "value", "real images")],
        again("these scores", content, command("quality", *arguments), "quality", asdict(QualityOptions())),
    )
