"""`python -m ppl_gen.sample RUN`: Make images from a fitted model."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from ppl_gen.core import cli
from ppl_gen.core.errors import require
from ppl_gen.evaluation.sampling import SampleOptions
from ppl_gen.experiment.assembling import Checkpoint
from ppl_gen.experiment.fitted import Named
from ppl_gen.experiment.run_directory import write_file
from ppl_gen.figures.canvas import pictures
from ppl_gen.run import Run

_SCALE = 3  # of a pixel in a picture


@dataclass(frozen=True)
class OutputOptions:
    """Where the images go, and which weights make them."""

    out: Path | None = None
    """FILE.png, a picture, or FILE.npy, an array [images, height, width]; by default samples.png in the run."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        if self.out is not None:
            require(self.out.suffix in (".png", ".npy"), "out", self.out, "must end in .png or .npy")
            require(self.out.parent.is_dir(), "out", self.out, f"there is no directory {self.out.parent}")


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    images: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    output: Annotated[OutputOptions, tyro.conf.arg(name="")] = field(default_factory=OutputOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def command(arguments: list[str]) -> None:
    given = cli.parse(Command, arguments, "python -m ppl_gen.sample", "Images from a fitted model.")
    output = given.output
    run = Run.open(given.run, **asdict(given.named), checkpoint=output.checkpoint, device=output.device)
    images = pictures(run.sample(given.images).flatten(1), run.data.shape)
    out = output.out or run.path / "samples.png"
    if out.suffix == ".npy":
        write_file(out, lambda path: np.save(path, images))
    else:
        save_picture(images, out)
    print(f"{len(images)} images written to {out}")


def save_picture(images: np.ndarray, out: Path) -> None:
    """Write images [images, height, width] side by side, in a grid that is nearly square."""
    import matplotlib.image

    from ppl_gen.figures.images import mosaic

    columns = int(np.ceil(len(images) ** 0.5))
    picture = np.kron(mosaic(images.clip(0, 1), columns), np.ones((_SCALE, _SCALE)))
    save = matplotlib.image.imsave
    write_file(out, lambda path: save(path, picture, cmap="gray_r", vmin=0, vmax=1, format="png"))


if __name__ == "__main__":
    cli.main(command)
