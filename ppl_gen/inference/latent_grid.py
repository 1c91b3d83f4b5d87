"""Grids of z in a plane of a continuous latent space, for pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, HasPrior, offers
from ppl_gen.inference.pair import Pair


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
