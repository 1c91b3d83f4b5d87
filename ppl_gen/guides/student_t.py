"""A guide with heavier tails than a Gaussian."""

from typing import Unpack

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder, pixel_dropout


class StudentT(nn.Module):
    """q(z | x) = prod_m t(z_m; df, mu(x)_m, sigma(x)_m), a Student t distribution for each unit. If the guide's tails
    are lighter than the posterior's, single importance weights dominate all others. Tails of a Student t distribution
    are heavier than a Gaussian's.

    >>> import torch
    >>> from ppl_gen.models.vae import VAE
    >>> guide = StudentT((8, 8), 2, "z", VAE((8, 8), latent_dim=2), df=3.0)
    >>> guide.posterior(guide.encode(torch.rand(5, 64)))
    Independent(StudentT(df: torch.Size([5, 2]), loc: torch.Size([5, 2]), scale: torch.Size([5, 2])), 1)

    :param df: Degrees of freedom. The smaller they are, the heavier the tails. The variance is
        finite above 2: up to there, the ELBO under a normal prior is -infinity.
    :param input_dropout: Probability of dropping a pixel at the encoder's input, in training.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        df: float = 5.0,
        input_dropout: float = 0.0,
        **options: Unpack[EncoderOptions],
    ):
        require(df > 0, "guide.df", df, "must be above 0")
        super().__init__()
        self.latent_name, self.df = latent_name, df
        self.dropout = pixel_dropout(input_dropout)
        self.encoder = mirrored_encoder(model, data_shape, 2 * latent_dim, **options)

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, 2 latent_dim] of images [images, data_dim]."""
        return self.encoder(self.dropout(x))

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.StudentT(self.df, loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
