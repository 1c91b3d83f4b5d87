"""The diagonal Gaussian guide given a label."""

from typing import Unpack

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder


class Conditional(nn.Module):
    """q(z | x, y) = N(mu(x, y), diag sigma(x, y)^2), for the model `conditional-vae`: Sohn et al. (2015), section 4.1.

    >>> from ppl_gen.models.conditional_vae import ConditionalVAE
    >>> guide = Conditional(64, 2, "z", 10, ConditionalVAE(64, 10, latent_dim=2))
    >>> guide.posterior(torch.rand(5, 64), torch.arange(5))
    Independent(Normal(loc: torch.Size([5, 2]), scale: torch.Size([5, 2])), 1)

    :param num_classes: number of classes; labels are 0 … num_classes - 1.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        latent_name: str,
        num_classes: int | None,
        model: nn.Module,
        **options: Unpack[EncoderOptions],
    ):
        if num_classes is None:
            raise BadInput("the guide conditional needs images with labels 0, 1, 2, …; these have none")
        super().__init__()
        self.latent_name, self.num_classes = latent_name, num_classes
        self.encoder = mirrored_encoder(model, (data_dim + num_classes,), 2 * latent_dim, **options)

    def posterior(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """q(z | x, y), event [latent_dim]."""
        label = F.one_hot(y, self.num_classes).to(x.dtype)
        loc, log_scale = self.encoder(torch.cat([x, label], -1)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z | x, y) over a plate of images [images, data_dim] with labels [images]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(x, y))
