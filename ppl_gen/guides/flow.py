"""Normalizing flows as guides."""

from typing import Literal, Unpack

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import AffineTransform

from ppl_gen.core.errors import require, require_choice
from ppl_gen.networks.flows import Autoregressive, FlowDistribution, PlanarTransform
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder, pixel_dropout

Kind = Literal["iaf", "spline", "spline-coupling", "planar"]


class Flow(nn.Module):
    """q(z | x) is the distribution of z = mu(x) + sigma(x) f(e; h(x)) for e ~ N(0, I) and an invertible f: Rezende and
    Mohamed (2015), equation 6. The encoder computes mu, sigma and the features h.

    A sample and its density take one pass through f. The density of any other z needs the inverse of f: at most as
    many passes as there are latent units for `iaf` and `spline`, two for `spline-coupling`, a bisection for `planar`.

    >>> from ppl_gen.models.vae import VAE
    >>> guide = Flow((8, 8), 2, "z", VAE((8, 8), latent_dim=2), transform="spline", num_transforms=2)
    >>> q = guide.posterior(guide.encode(torch.rand(5, 64)))
    >>> z = q.rsample()
    >>> z.shape, q.log_prob(z).shape
    (torch.Size([5, 2]), torch.Size([5]))

    :param transform: Kind of the flow. iaf: inverse autoregressive, affine (Kingma et al. 2016). spline:
        autoregressive, with monotonic rational-quadratic splines (Durkan et al. 2019). spline-coupling: the same
        splines, for one half of z given the other half. planar: e + u tanh(w e + b), with u, w and b from the encoder
        (Rezende and Mohamed 2015, section 4.1).
    :param num_transforms: Number of transforms. The order of the latent units is reversed between them.
    :param transform_dims: Units of the hidden layers of each transform's network.
    :param num_features: Number of features h of the image that the encoder gives to the transforms. planar has none.
    :param num_bins: Number of bins of a spline. A spline covers [-5, 5].
    :param input_dropout: Probability of dropping a pixel at the encoder's input, in training.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        transform: Kind = "iaf",
        num_transforms: int = 3,
        transform_dims: tuple[int, ...] = (128, 128),
        num_features: int = 64,
        num_bins: int = 8,
        input_dropout: float = 0.0,
        **options: Unpack[EncoderOptions],
    ):
        require_choice("guide.transform", transform, Kind)
        require(num_transforms >= 1, "guide.num_transforms", num_transforms, "must be at least 1")
        require(min(transform_dims, default=1) >= 1, "guide.transform_dims", transform_dims, "at least 1 unit each")
        require(num_features >= 1, "guide.num_features", num_features, "must be at least 1")
        require(num_bins >= 2, "guide.num_bins", num_bins, "must be at least 2")
        super().__init__()
        self.latent_dim, self.latent_name, self.num_transforms = latent_dim, latent_name, num_transforms
        self.dropout = pixel_dropout(input_dropout)
        rest = num_transforms * (2 * latent_dim + 1) if transform == "planar" else num_features
        self.encoder = mirrored_encoder(model, data_shape, 2 * latent_dim + rest, **options)
        self.transforms = nn.ModuleList(
            Autoregressive(
                latent_dim,
                num_features,
                reverse=bool(index % 2),
                passes=2 if transform == "spline-coupling" else latent_dim,
                num_bins=None if transform == "iaf" else num_bins,
                hidden_dims=transform_dims,
            )
            for index in range(0 if transform == "planar" else num_transforms)
        )

    def encode(self, x: Tensor) -> Tensor:
        """Context of images [images, data_dim]: [images, 2 latent_dim + num_features], or for planar transforms
        [images, 2 latent_dim + num_transforms (2 latent_dim + 1)]."""
        return self.encoder(self.dropout(x))

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is mu, log sigma, and h or planar transforms' b, u, w."""
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
        return FlowDistribution(base, parts)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
