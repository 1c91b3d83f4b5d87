"""Calibration of the guide, from `calibration.json`."""

from collections.abc import Sequence
from dataclasses import asdict

from ppl_gen.core.commands import command
from ppl_gen.evaluation.guide_calibration import calibration_images, calibration_notes, calibration_rows
from ppl_gen.evaluation.use_options import GuideCalibrationOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.report.sections import Section, Table, again

FILE = "calibration.json"


def section(content: Json, arguments: Sequence[object]) -> Section:
    """The verdict on the guide's samples, without and with importance weights."""
    defaults = asdict(GuideCalibrationOptions())
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in calibration_notes(content))
    return Section(
        "Is the guide calibrated?",
        f"Tested on {calibration_images(content)}, with the {content['checkpoint']} weights.{notes}",
        [Table(rows, name[0].upper() + name[1:], "share", "note") for name, rows in calibration_rows(content)],
        again("this calibration", content, command("calibrate", *arguments), "calibrate", defaults),
    )
