"""The Gaussian guide with correlations between units."""

from typing import Unpack

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder, pixel_dropout

_START = 0.01  # factor on the initial weights of entries off the diagonal


class MultivariateNormal(nn.Module):
    """q(z | x) = N(mu(x), L(x) L(x)^T). L is lower triangular with a positive diagonal, so that L L^T can be any
    covariance: Kingma and Welling (2019), section 2.5.1. With a rank, the covariance is F(x) F(x)^T + diag sigma(x)^2,
    where F has `rank` columns. The number of entries of F grows with the size of z, and that of L with its square: Ong,
    Nott and Smith (2018).

    >>> from ppl_gen.models.vae import VAE
    >>> guide = MultivariateNormal((8, 8), 3, "z", VAE((8, 8), latent_dim=3))
    >>> context = guide.encode(torch.rand(5, 64))
    >>> context.shape, guide.posterior(context).covariance_matrix.shape
    (torch.Size([5, 9]), torch.Size([5, 3, 3]))

    :param rank: Rank of the low-rank part F F^T of the covariance. 0: a full covariance L L^T.
    :param input_dropout: Probability of dropping a pixel at the encoder's input, in training.
    """

    below: Tensor

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        rank: int = 0,
        input_dropout: float = 0.0,
        **options: Unpack[EncoderOptions],
    ):
        require(rank >= 0, "guide.rank", rank, "must be at least 0")
        super().__init__()
        self.latent_dim, self.latent_name, self.rank = latent_dim, latent_name, rank
        self.dropout = pixel_dropout(input_dropout)
        covariances = latent_dim * rank if rank else latent_dim * (latent_dim - 1) // 2
        self.encoder = mirrored_encoder(model, data_shape, 2 * latent_dim + covariances, **options)
        below = torch.tril_indices(latent_dim, latent_dim, -1)
        self.register_buffer("below", below[0] * latent_dim + below[1], persistent=False)
        # Entries off the diagonal start near 0. They are many, and would add more noise to z than the diagonal does.
        last = [module for module in self.encoder.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter[2 * latent_dim :] *= _START

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, 2 latent_dim + covariances] of images [images, data_dim]."""
        return self.encoder(self.dropout(x))

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is mu, log sigma, and the entries of F, or of L below its
        diagonal, which is sigma. The entries of row m are in units of sigma_m."""
        loc, log_scale, rest = context.split(
            [self.latent_dim, self.latent_dim, context.shape[-1] - 2 * self.latent_dim], -1
        )
        scale = log_scale.exp()
        if self.rank:
            factor = rest.unflatten(-1, (self.latent_dim, self.rank)) * scale.unsqueeze(-1)
            return dist.LowRankMultivariateNormal(loc, factor, scale.square())
        square = torch.zeros(*rest.shape[:-1], self.latent_dim**2, dtype=rest.dtype, device=rest.device)
        square = square.index_copy(-1, self.below, rest).unflatten(-1, (self.latent_dim, self.latent_dim))
        unit = torch.eye(self.latent_dim, dtype=rest.dtype, device=rest.device)
        return dist.MultivariateNormal(loc, scale_tril=(square + unit) * scale.unsqueeze(-1))

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
