"""Images from a fitted model: from the prior, from the posterior of an image, or on a grid of z."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, HasPrior, offers
from ppl_gen.core.errors import BadInput, describe, require
from ppl_gen.evaluation.use_options import SampleOptions
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.inference.arguments import rows_at
from ppl_gen.inference.pair import Pair, require_images
from ppl_gen.networks.observed import mean_of


def sample(fitted: Assembled, options: SampleOptions) -> Tensor:
    """Images from the model [images, data_dim].

    :raises BadInput: for a source that the pair does not support.
    """
    pair, data = fitted.pair, fitted.data
    require_images(pair, "sample")
    with fitted.estimating(options.seed):
        likelihood = {"prior": _from_prior, "image": _from_image, "grid": _on_grid}[options.source](fitted, options)
        images: Tensor = likelihood.sample() if options.draws else mean_of(likelihood, f"{pair.model_name}: sample")
        if images.shape[-1] != data.dim:
            shape = tuple(images.shape)
            raise BadInput(f"{pair.model_name}: site '{pair.image}' has the shape {shape}, not images [n, {data.dim}]")
        return images.reshape(-1, data.dim)


def _from_prior(fitted: Assembled, options: SampleOptions) -> Any:
    pair = fitted.pair
    try:
        return poutine.trace(pair.model).get_trace(n=options.num_images).nodes[pair.image]["fn"]
    except Exception as error:  # user code
        call = f"model(x=None, n={options.num_images})"
        raise BadInput(f"{pair.model_name} draws no images: {call}: {describe(error)}") from error


def _from_image(fitted: Assembled, options: SampleOptions) -> Any:
    pair, (images, *args) = fitted.pair, fitted.images(options.split)
    require(options.image < len(images), "image", options.image, f"the {options.split} split has {len(images)} images")
    if pair.enumerated:
        raise BadInput(f"--source image: {pair.guide_name} does not sample z; use --source prior")
    rows = torch.full((options.num_images,), options.image, device=images.device)
    batch = rows_at(rows, images, *args)
    drawn = poutine.trace(pair.guide).get_trace(*batch)
    return poutine.trace(poutine.replay(pair.model, trace=drawn)).get_trace(*batch).nodes[pair.image]["fn"]


def _on_grid(fitted: Assembled, options: SampleOptions) -> Any:
    model: Any = fitted.model
    size = vector_size(model, fitted.pair)
    side = round(options.num_images**0.5)
    if size < 2:
        raise BadInput(
            f"--source grid: {fitted.pair.model_name} needs a continuous z of 2 units, prior() and likelihood(z)"
        )
    require(
        side**2 == options.num_images,
        "num_images",
        options.num_images,
        "must be a square, such as 400",
    )
    inside = len(set(options.units)) == 2 and all(0 <= unit < size for unit in options.units)
    require(inside, "units", options.units, f"must be two different units from 0 to {size - 1}")
    grid = equal_mass_grid(model, options.units, size, side)
    return model.likelihood(grid.flip(0).flatten(0, 1))  # the second unit rises upwards


def vector_size(model: Any, pair: Pair) -> int:
    """Number of units of z, if the model has one latent site that is a continuous and unbounded vector, and methods
    `prior()` and `likelihood(z)`; else 0."""
    shapes = list(pair.event_shapes.values())
    if len(shapes) != 1 or len(shapes[0]) != 1 or not pair.unbounded:
        return 0
    return shapes[0][0] if offers(model, HasDensity) else 0


def equal_mass_grid(model: HasPrior, units: Sequence[int], size: int, side: int) -> Tensor:
    """A grid of z [side, side, size] at equally spaced quantiles of the priors of two units. All other units are 0.
    Along the first axis the second unit varies.

    :param units: the two units' numbers.
    :param size: number of units of z.
    :param side: points along each axis.
    """
    draws = model.prior().sample((10_000,))
    steps = (torch.arange(side, device=draws.device, dtype=draws.dtype) + 0.5) / side
    first, second = (draws[:, unit].quantile(steps) for unit in units)
    grid = torch.zeros(side, side, size, device=draws.device, dtype=draws.dtype)
    grid[..., units[0]], grid[..., units[1]] = first, second.unsqueeze(1)
    return grid
