"""`python -m ppl_gen.calibrate`: Compare every estimator of log p(x) with the exact value."""

import json
from dataclasses import asdict

from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.use_options import CalibrateOptions
from ppl_gen.experiment.run_directory import write_file

ABOUT = "Compare every estimator of log p(x) with the exact value, on small models with random parameters."


def command(arguments: list[str]) -> None:
    options = cli.parse(CalibrateOptions, arguments, "python -m ppl_gen.calibrate", ABOUT)
    from ppl_gen.evaluation.calibration import calibrate, table  # torch, which --help does without

    if options.out is not None:
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
        figure = calibration(plain)
        write_file(options.out / "calibration.json", lambda path: path.write_text(text + "\n"))
        write_file(options.out / "calibration.png", figure.write)
        print(f"written to {options.out / 'calibration.json'} and calibration.png")


if __name__ == "__main__":
    cli.main(command)
