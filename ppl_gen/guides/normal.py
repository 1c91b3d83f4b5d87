"""The diagonal Gaussian guide."""

from typing import Unpack

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder, pixel_dropout


class Normal(nn.Module):
    """q(z | x) = N(mu(x), diag sigma(x)^2). One network maps the image to mu and log sigma: Kingma and Welling (2014),
    equation 9.

    >>> import torch
    >>> from ppl_gen.models.vae import VAE
    >>> guide = Normal((8, 8), 2, "z", VAE((8, 8), latent_dim=2))
    >>> guide.posterior(guide.encode(torch.rand(5, 64)))
    Independent(Normal(loc: torch.Size([5, 2]), scale: torch.Size([5, 2])), 1)

    :param input_dropout: Probability of dropping a pixel at the encoder's input, in training.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        input_dropout: float = 0.0,
        **options: Unpack[EncoderOptions],
    ):
        super().__init__()
        self.latent_name = latent_name
        self.dropout = pixel_dropout(input_dropout)
        self.encoder = mirrored_encoder(model, data_shape, 2 * latent_dim, **options)

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, 2 latent_dim] of images [images, data_dim]."""
        return self.encoder(self.dropout(x))

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
