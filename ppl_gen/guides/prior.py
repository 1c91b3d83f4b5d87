"""No guide at all, for a model that has none."""

from typing import Any

import pyro
from torch import Tensor, nn


class Prior(nn.Module):
    """q(z | x) = p(z). Its bound says how little of z an image leaves open; importance sampling from it is prior
    sampling.

    :param latent_name: name of the model's latent site.
    :param model: with a method `prior()`.
    """

    def __init__(self, latent_name: str, model: nn.Module):
        super().__init__()
        self.latent_name = latent_name
        self.model: Any = model

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.model.prior())
