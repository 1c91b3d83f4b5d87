"""Planes of a continuous latent space: which models have one, and a grid of z in it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.inference.pair import Pair


def vector_size(model: Any, pair: Pair) -> int:
    """The number of units of a model's one latent site, if that is a continuous and unbounded vector, and the model has
    `prior()` and `likelihood(z)`; else 0."""
    shapes = list(pair.event_shapes.values())
    if len(shapes) != 1 or len(shapes[0]) != 1 or not pair.unbounded:
        return 0
    return shapes[0][0] if offers(model, HasDensity) else 0


def equal_mass_grid(model: Any, units: Sequence[int], size: int, side: int) -> Tensor:
    """z [side, side, size] at quantiles of two units' priors, the second one's first; the other units are 0.

    :param units: numbers of the two.
    :param size: units of z.
    """
    draws = model.prior().sample((10_000,))
    steps = (torch.arange(side, device=draws.device, dtype=draws.dtype) + 0.5) / side
    first, second = (draws[:, unit].quantile(steps) for unit in units)
    grid = torch.zeros(side, side, size, device=draws.device, dtype=draws.dtype)
    grid[..., units[0]], grid[..., units[1]] = first, second.unsqueeze(1)
    return grid
