"""`python -m ppl_gen.sample RUN`: Make images from a fitted model."""

import io
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import tyro

import ppl_gen
from ppl_gen.core import cli
from ppl_gen.core.errors import require
from ppl_gen.core.files import write_file
from ppl_gen.core.paths import is_folder
from ppl_gen.evaluation.use_options import SampleOptions
from ppl_gen.experiment.arguments import Named
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import RunDirectory

if TYPE_CHECKING:
    import numpy as np

_SCALE = 3  # of a pixel in a picture


@dataclass(frozen=True)
class OutputOptions:
    """The file of the images, and the weights that make them."""

    out: Path | None = None
    """File to write. FILE.png: a picture. FILE.npy: an array [images, height, width]. By default samples.png in the run
    directory."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        if self.out is not None:
            require(self.out.suffix in (".png", ".npy"), "out", self.out, "must end in .png or .npy")
            require(is_folder(self.out.parent, "--out"), "out", self.out, f"there is no directory {self.out.parent}")
            require(not is_folder(self.out, "--out"), "out", self.out, "is a directory")


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    images: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    output: Annotated[OutputOptions, tyro.conf.arg(name="")] = field(default_factory=OutputOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    given = cli.parse(Command, arguments, "python -m ppl_gen.sample", "Draw images from a fitted model.")
    RunDirectory.open(given.run)  # for its errors: they come at once, before torch is imported
    import numpy as np

    from ppl_gen.figures.canvas import pictures  # matplotlib, which --help does without

    output = given.output
    run = ppl_gen.Run.open(given.run, **asdict(given.named), checkpoint=output.checkpoint, device=output.device)
    out = output.out or run.path / "samples.png"
    with nullcontext() if output.out else run.directory.writing():
        images = pictures(run.sample(given.images).flatten(1), run.data.shape)
        content = io.BytesIO()
        if out.suffix == ".npy":
            np.save(content, images)
        else:
            save_picture(images, content)
        write_file(out, content.getvalue())
    print(f"{len(images)} images written to {out}")


def save_picture(images: "np.ndarray", out: BinaryIO) -> None:
    """Write images [images, height, width], or [images, height, width, 3], to a .png file, in a grid that is nearly
    square."""
    import matplotlib.image
    import numpy as np

    from ppl_gen.figures.images import mosaic

    columns = int(np.ceil(len(images) ** 0.5))
    picture = mosaic(images.clip(0, 1), columns).repeat(_SCALE, 0).repeat(_SCALE, 1)
    matplotlib.image.imsave(out, picture, cmap="gray_r", vmin=0, vmax=1, format="png")


if __name__ == "__main__":
    cli.main(command)
