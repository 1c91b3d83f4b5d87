"""No guide: training sums over a grid of z."""

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import identity_transform

from ppl_gen.core.contracts import HasPrior, offers
from ppl_gen.core.errors import BadInput, require
from ppl_gen.networks.supports import from_unbounded, is_discrete

_MOST_UNITS = 3
_MOST_POINTS = 2**24
_SAMPLES = 1000  # of a prior whose moments have no formula


class Grid(nn.Module):
    """No q(z | x): for a continuous z of 1 to 3 units, training maximizes log sum_g w_g p(z_g) p(x | z_g) over the
    points z_g of a grid, where w_g is the volume of a cell. This guide samples nothing.

    It is a relative of generative topographic mapping (Bishop, Svensen and Williams 1998, equation 6), whose points
    have fixed places and equal masses. In training, all points are shifted at each step by the same random part of a
    cell, so that the sum is p(x) in expectation, up to the prior's mass outside of the grid. By Jensen's inequality the
    mean of its logarithm is below log p(x), by more if p(z | x) is narrow beside a cell. In eval mode each point is in
    the middle of its cell.

    The grid covers the prior's mean plus and minus `width` standard deviations. For N(0, I) and the default, 6e-7 of
    each unit's mass is outside. For a bounded z, such as one that is positive, these are unbounded coordinates of it.

    >>> from ppl_gen.models.vae import VAE
    >>> guide = Grid(2, "z", VAE((8, 8), latent_dim=2), points=20).eval()
    >>> z, log_mass = guide.nodes()
    >>> z.shape, z[0], log_mass.exp().sum()
    (torch.Size([400, 2]), tensor([-4.7500, -4.7500]), tensor(1.0000))

    :param latent_name: name of the model's latent site; None if there are several.
    :param model: a model with a method `prior()`.
    :param points: Number of grid points for each latent unit.
    :param width: Half the width of the grid, in standard deviations of the prior.
    """

    def __init__(
        self, latent_dim: int, latent_name: str | None, model: nn.Module, *, points: int = 40, width: float = 5.0
    ):
        require(points >= 2, "guide.points", points, "must be at least 2")
        require(0 < width < math.inf, "guide.width", width, "must be a number above 0")
        super().__init__()
        name = type(model).__name__
        if latent_name is None or not offers(model, HasPrior):
            raise BadInput(f"the guide grid needs a model with one latent site and a method prior(), not {name}")
        prior = model.prior()
        if is_discrete(prior) or len(prior.event_shape) > 1:
            raise BadInput(f"the guide grid needs a z that is a continuous vector; the z of {name} is not")
        if latent_dim > _MOST_UNITS:
            raise BadInput(
                f"the guide grid needs 1 to {_MOST_UNITS} latent units, but {name} has {latent_dim}: a grid in more "
                "dimensions has too many points; use a guide that samples, such as normal"
            )
        most = round(_MOST_POINTS ** (1 / latent_dim))
        require(points <= most, "guide.points", points, f"must be at most {most} for {latent_dim} latent units")
        self.model: Any = model
        self.points, self.width = points, width

    def guide(self, x: Tensor) -> None:
        """Leave z to the sum over the grid."""

    def nodes(self, finer: int = 1) -> tuple[Tensor, Tensor]:
        """Points z [points^units, units] and log p(z) + log w [points^units].

        :param finer: factor by which the points of each unit are more than in training.
        """
        prior = self.model.prior()
        with torch.no_grad():
            to_values = from_unbounded(prior)
            mean, deviation = (each.reshape(-1) for each in _moments(prior, to_values))
            count = self.points * finer
            step = 2 * self.width * deviation / count
            within = torch.rand_like(mean) if self.training else torch.full_like(mean, 0.5)
            cells = torch.arange(count, dtype=mean.dtype, device=mean.device)
            axes = mean - self.width * deviation + (cells.unsqueeze(-1) + within) * step  # [points, units]
            u = torch.cartesian_prod(*axes.unbind(-1)).reshape(-1, *to_values.inverse_shape(prior.event_shape))
            z = to_values(u)
            log_volume = step.log().sum() + to_values.log_abs_det_jacobian(u, z).reshape(len(z), -1).sum(1)
        return z, prior.log_prob(z) + log_volume


def _moments(prior: Any, to_values: Transform) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each unbounded coordinate of z: by the distribution's own formulas, or from
    samples."""
    if to_values == identity_transform:
        with suppress(NotImplementedError):
            return prior.mean, prior.stddev
    u = to_values.inv(prior.sample((_SAMPLES,)))
    return u.mean(0), u.std(0)
