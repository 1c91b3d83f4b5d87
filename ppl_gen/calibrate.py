"""`python -m ppl_gen.calibrate [RUN]`: Test the guide of a run, or every estimator of log p(x)."""

import json
from dataclasses import asdict, replace

from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput
from ppl_gen.core.files import write_files
from ppl_gen.core.paths import is_folder
from ppl_gen.evaluation.use_options import CalibrateOptions, GuideCalibrationOptions
from ppl_gen.experiment.arguments import RunCommand, parse_with_estimators

PROGRAM = "python -m ppl_gen.calibrate"
ABOUT = (
    "Compare every estimator of log p(x) with the exact value, on small models with random parameters. With a run as "
    "its first word, it tests the guide of that run instead: python -m ppl_gen.calibrate RUN --help."
)
ABOUT_RUN = (
    "Test the guide of a run on images from its model: is it too narrow, too wide or shifted, and do importance "
    "weights repair it?"
)


def command(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        _calibrate_guide(arguments)
    else:
        _calibrate_estimators(arguments)


def _calibrate_guide(arguments: list[str]) -> None:
    given = cli.parse(RunCommand[GuideCalibrationOptions], arguments, PROGRAM, ABOUT_RUN)
    import ppl_gen

    opening = given.opening()
    run = ppl_gen.Run.open(**opening)
    print(run.calibrate(given.options))
    pictures = "figures/calibration_ranks.png and figures/calibration_coverage.png"
    print(f"written to {run.path / 'calibration.json'}, {pictures}")


def _calibrate_estimators(arguments: list[str]) -> None:
    given, own = parse_with_estimators(CalibrateOptions, arguments, PROGRAM, ABOUT)
    options = replace(given, estimator_options=own)
    from ppl_gen.evaluation.calibration import calibrate, table  # torch, which --help does without

    if options.out is not None and not is_folder(options.out, "--out"):
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"--out {options.out}: cannot be made: {error.strerror}") from None
    rows = calibrate(options)
    print(table(rows, options))
    if options.out is not None:
        from ppl_gen.figures.calibration import calibration

        plain = [asdict(row) for row in rows]
        text = json.dumps({"options": asdict(options) | {"out": str(options.out)}, "rows": plain}, indent=2)
        picture = calibration(plain).png()
        write_files({options.out / "calibration.json": f"{text}\n".encode(), options.out / "calibration.png": picture})
        print(f"written to {options.out / 'calibration.json'} and calibration.png")


if __name__ == "__main__":
    cli.main(command)
