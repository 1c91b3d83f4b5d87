"""Normalizing flows as guides."""

from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import AffineTransform

from ppl_gen.errors import require
from ppl_gen.flows import Autoregressive, Flowing, PlanarTransform
from ppl_gen.guides.amortized import Amortized

Kind = Literal["iaf", "spline", "spline-coupling", "planar"]


class Flow(Amortized):
    """q(z | x) is the distribution of z = mu(x) + sigma(x) f(e; h(x)), e ~ N(0, I), for an invertible f: Rezende and
    Mohamed (2015), with mu, sigma and the context h made by the encoder. Sampling takes one pass through f. The density
    of z that was not just sampled needs the inverse of f: as many passes as latent units for `iaf` and `spline`, two
    for `spline-coupling`, a bisection for `planar`.

    :param transform: iaf: inverse autoregressive, affine (Kingma et al. 2016); spline: autoregressive, monotonic
        rational-quadratic splines (Durkan et al. 2019); spline-coupling: the same, one half of z given the other;
        planar: e + u tanh(w e + b), with u, w and b made by the encoder (Rezende and Mohamed 2015, section 4.1).
    :param num_transforms: how many are composed; the order of the units is reversed between them.
    :param transform_dims: units of each hidden layer of the networks in a transform.
    :param num_features: size of h; planar has none.
    :param num_bins: of a spline, which covers [-5, 5].
    """

    def __init__(
        self,
        *supplied: Any,
        transform: Kind = "iaf",
        num_transforms: int = 3,
        transform_dims: tuple[int, ...] = (128, 128),
        num_features: int = 64,
        num_bins: int = 8,
        **amortized: Any,
    ):
        require(transform in get_args(Kind), "guide.transform", transform, f"choose from {get_args(Kind)}")
        require(num_transforms >= 1, "guide.num_transforms", num_transforms, "must be at least 1")
        require(min(transform_dims, default=1) >= 1, "guide.transform_dims", transform_dims, "at least 1 unit each")
        require(num_features >= 1, "guide.num_features", num_features, "must be at least 1")
        require(num_bins >= 2, "guide.num_bins", num_bins, "must be at least 2")
        self.transform, self.num_transforms, self.num_features = transform, num_transforms, num_features
        super().__init__(*supplied, **amortized)
        self.transforms = nn.ModuleList(
            Autoregressive(
                self.latent_dim,
                num_features,
                reverse=bool(index % 2),
                passes=2 if transform == "spline-coupling" else self.latent_dim,
                num_bins=None if transform == "iaf" else num_bins,
                hidden_dims=transform_dims,
            )
            for index in range(0 if transform == "planar" else num_transforms)
        )

    def context_dim(self) -> int:
        planar = self.num_transforms * (2 * self.latent_dim + 1)
        return 2 * self.latent_dim + (planar if self.transform == "planar" else self.num_features)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of mu, log sigma, and h or the parameters of the planar transforms."""
        loc, log_scale, rest = context.split(
            [self.latent_dim, self.latent_dim, context.shape[-1] - 2 * self.latent_dim], -1
        )
        parts: list[Transform]
        if self.transforms:
            parts = [transform(rest) for transform in self.transforms]
        else:
            parts = [PlanarTransform(each) for each in rest.chunk(self.num_transforms, -1)]
        parts.append(AffineTransform(loc, log_scale.exp(), event_dim=1, cache_size=1))
        base = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        return Flowing(base, parts)
