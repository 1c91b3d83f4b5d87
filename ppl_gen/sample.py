"""`python -m ppl_gen.sample RUN`: images from a fitted model, as a picture or as numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from pyro import poutine
from torch import Tensor

from ppl_gen import cli
from ppl_gen.data import Data, SplitName
from ppl_gen.errors import BadInput, describe, require
from ppl_gen.inference.pair import Pair
from ppl_gen.loading import Checkpoint, Named, estimating, open_fitted, read_pair
from ppl_gen.runs import write_file
from ppl_gen.training import takes_labels

_SCALE = 3  # of a pixel in a picture


@dataclass(frozen=True)
class SampleOptions:
    """Which images, and where they go."""

    source: Literal["prior", "image", "grid"] = "prior"
    """prior: z ~ p(z). image: z ~ q(z | x) of one image. grid: z over two units in steps of equal prior mass, the
    others 0."""
    num_images: int = 25
    """How many; of a grid, a square number. Its first row is the top one."""
    draws: bool = False
    """Draw x ~ p(x | z) in place of its mean."""
    image: int = 0
    """With --source image: the number of x in its split."""
    split: SplitName = "test"
    """With --source image: the split of x."""
    units: tuple[int, int] = (0, 1)
    """With --source grid: the two units of z."""
    out: Path | None = None
    """FILE.png, a picture, or FILE.npy, an array [images, height, width]; by default samples.png in the run."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    seed: int = 0
    """Of the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        require(self.num_images >= 1, "num_images", self.num_images, "must be at least 1")
        require(self.image >= 0, "image", self.image, "must be at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")
        if self.out is not None:
            require(self.out.suffix in (".png", ".npy"), "out", self.out, "must end in .png or .npy")
            require(self.out.parent.is_dir(), "out", self.out, f"there is no directory {self.out.parent}")


@dataclass(frozen=True)
class Command:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[SampleOptions, tyro.conf.arg(name="")] = field(default_factory=SampleOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def sample(model: Any, guide: Any, data: Data, pair: Pair, options: SampleOptions) -> Tensor:
    """Images [images, data_dim].

    :raises BadInput: for a source that the pair does not have.
    """
    with estimating(model, guide, data, options.seed):
        likelihood = {"prior": _from_prior, "image": _from_image, "grid": _on_grid}[options.source](
            model, guide, data, pair, options
        )
        images = likelihood.sample() if options.draws else likelihood.mean
        if images.shape[-1] != data.dim:
            shape = tuple(images.shape)
            raise BadInput(f"{pair.model_name}: site '{pair.image}' has the shape {shape}, not images [n, {data.dim}]")
        return images.reshape(-1, data.dim)


def _from_prior(model: Any, guide: Any, data: Data, pair: Pair, options: SampleOptions) -> Any:
    try:
        trace = poutine.trace(pair.model).get_trace(n=options.num_images)
        return trace.nodes[pair.image]["fn"]
    except Exception as error:  # somebody else's code
        call = f"model(x=None, n={options.num_images})"
        raise BadInput(f"{pair.model_name} draws no images: {call}: {describe(error)}") from error


def _from_image(model: Any, guide: Any, data: Data, pair: Pair, options: SampleOptions) -> Any:
    images = data.targets(options.split)
    require(options.image < len(images), "image", options.image, f"the {options.split} split has {len(images)}")
    if pair.enumerated:
        raise BadInput(f"--source image: {pair.guide_name} samples no z; use prior")
    rows = torch.full((options.num_images,), options.image, device=images.device)
    labels = data.split(options.split).labels
    args = (labels[rows],) if labels is not None and takes_labels(model, guide) else ()
    drawn = poutine.trace(pair.guide).get_trace(images[rows], *args)
    trace = poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(images[rows], *args)
    return trace.nodes[pair.image]["fn"]


def _on_grid(model: Any, guide: Any, data: Data, pair: Pair, options: SampleOptions) -> Any:
    from ppl_gen.figures.latent import equal_mass_grid, has_plane

    size = has_plane(model, pair)
    side = round(options.num_images**0.5)
    if size < 2:
        raise BadInput(
            f"--source grid: {pair.model_name} has no plane of a continuous z with prior() and likelihood(z)"
        )
    require(side**2 == options.num_images, "num_images", options.num_images, "of a grid must be a square, such as 400")
    inside = len(set(options.units)) == 2 and all(0 <= unit < size for unit in options.units)
    require(inside, "units", options.units, f"two different units of the {size}")
    grid = equal_mass_grid(model, options.units, size, side)
    return model.likelihood(grid.flip(0).flatten(0, 1))  # the second unit rises upwards


def command(arguments: list[str]) -> None:
    given = cli.parse(Command, arguments, "python -m ppl_gen.sample", "Images from a fitted model.")
    options = given.options
    run, _, model, guide, data = open_fitted(
        given.run, given.named, checkpoint=options.checkpoint, device=options.device
    )
    pair, _ = read_pair(model, guide, data)
    images = sample(model, guide, data, pair, options)
    out = options.out or run.path / "samples.png"
    from ppl_gen.figures.canvas import pictures

    values = pictures(images, data.shape)
    if out.suffix == ".npy":
        write_file(out, lambda path: np.save(path, values))
    else:
        import matplotlib.image

        from ppl_gen.figures.images import mosaic

        columns = int(np.ceil(len(values) ** 0.5))
        picture = np.kron(mosaic(values.clip(0, 1), columns), np.ones((_SCALE, _SCALE)))
        write_file(
            out, lambda path: matplotlib.image.imsave(path, picture, cmap="gray_r", vmin=0, vmax=1, format="png")
        )
    print(f"{len(values)} images written to {out}")


if __name__ == "__main__":
    cli.main(command)
