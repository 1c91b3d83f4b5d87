"""The prior in place of a guide."""

from typing import Any

import pyro
from torch import Tensor, nn


class Prior(nn.Module):
    """q(z | x) = p(z), for a model without a guide. Importance sampling from it is prior sampling. Its ELBO is
    E[log p(x | z)] under the prior.

    >>> import torch
    >>> from ppl_gen.models.vae import VAE
    >>> guide = Prior("z", VAE((8, 8), latent_dim=2))
    >>> pyro.poutine.trace(guide.guide).get_trace(torch.rand(3, 64)).nodes["z"]["value"].shape
    torch.Size([3, 2])

    :param model: a model with a method `prior()`.
    """

    def __init__(self, latent_name: str, model: nn.Module):
        super().__init__()
        self.latent_name = latent_name
        self.model: Any = model

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.model.prior())
