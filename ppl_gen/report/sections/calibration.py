"""Calibration of the guide, from `calibration.json`."""

from collections.abc import Sequence
from dataclasses import asdict

from ppl_gen.evaluation.guide_calibration import calibration_images, calibration_notes, calibration_rows
from ppl_gen.evaluation.use_options import GuideCalibrationOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.report.sections import Section, Table, again

FILE = "calibration.json"


def section(content: Json, arguments: Sequence[object]) -> Section:
    """The verdict on the guide's samples, without and with importance weights."""
    return Section(
        "Is the guide calibrated?",
        f"{calibration_images(content)}; {content['checkpoint']} weights; {'; '.join(calibration_notes(content))}",
        [Table(rows, name, "share", "") for name, rows in calibration_rows(content)],
        again("this calibration", content, "calibrate", arguments, asdict(GuideCalibrationOptions())),
    )
