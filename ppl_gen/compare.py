"""`python -m ppl_gen.compare RUN RUN …`: Put runs side by side, with paired differences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ppl_gen.core import cli
from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.files import write_file
from ppl_gen.core.paths import is_folder, is_weight_file

PROGRAM = "python -m ppl_gen.compare"


@dataclass(frozen=True)
class CompareOptions:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")] = ()
    """Run directories, each with its evaluation; or .npz files of log weights from elsewhere."""
    format: Literal["text", "markdown", "csv", "json"] = "text"
    """Format of the table on standard output."""
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A .png file for a picture of how far each row's bound is from log p(x): the best 200 rows."""
    posteriors: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A .png file for the exact p(z | x) of six test images with each guide's q(z | x) over it, from runs whose z has
    two continuous units: the best 20 of them."""
    report: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """An .html file for the table, the notes and the pictures, in one page that needs no other file."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise BadInput(f"name at least one run: {PROGRAM} RUN RUN …")
        files = (
            ("figure", self.figure, ".png"),
            ("posteriors", self.posteriors, ".png"),
            ("report", self.report, ".html"),
        )
        for option, file, suffix in files:
            if file is not None:
                require(file.suffix == suffix, option, file, f"must end in {suffix}")
                require(is_folder(file.parent, f"--{option}"), option, file, "is in a directory that does not exist")
                require(not is_folder(file, f"--{option}"), option, file, "is a directory")


def command(arguments: list[str]) -> None:
    options = cli.parse(
        CompareOptions,
        arguments,
        PROGRAM,
        "ELBO and log p(x) of several runs in one table, the best first, with paired differences.",
    )
    from ppl_gen.experiment.run_directory import check_there, to_json

    for path in options.runs:
        if not is_weight_file(path):
            check_there(path)
    from ppl_gen.comparison import Comparison  # NumPy and h5py, which --help and a missing run do without
    from ppl_gen.report.page import encoded

    comparison = Comparison(options.runs)
    posteriors = None if options.posteriors is None else comparison.posteriors()
    if options.figure is not None:
        write_file(options.figure, comparison.png)
    if options.posteriors is not None and posteriors is not None:
        write_file(options.posteriors, posteriors.png())
    if options.report is not None:
        words = [*PROGRAM.split(), *map(str, options.runs), "--report", str(options.report)]
        write_file(options.report, encoded(comparison.page(words)))
    written = {
        "text": lambda: str(comparison),
        "markdown": comparison.to_markdown,
        "csv": comparison.to_csv,
        "json": lambda: to_json(comparison.to_json()).rstrip("\n"),
    }
    print(written[options.format]())


if __name__ == "__main__":
    cli.main(command)
