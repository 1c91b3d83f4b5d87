"""A guide without amortization: a diagonal Gaussian of its own for each image."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require


class PerImage(nn.Module):
    """q(z_i) = N(mu_i, diag sigma_i^2) with parameters mu_i, sigma_i for each image i, and no encoder: the local
    variational parameters of Hoffman et al. (2013, section 2.2), fitted by gradient steps. It is the best that any
    amortized diagonal Gaussian can reach (Cremer et al. 2018, equation 4), for the images that it was fitted to.

    A step of training changes the parameters of its batch alone, once an epoch. So it needs many epochs. The parameters
    of the test images are fitted after training, with the model fixed.

    >>> guide = PerImage(100, 2, "z")
    >>> guide.posterior(torch.tensor([3, 99]))
    Independent(Normal(loc: torch.Size([2, 2]), scale: torch.Size([2, 2])), 1)

    :param step: Learning rate of the guide, as a multiple of the model's.
    """

    def __init__(self, num_images: int, latent_dim: int, latent_name: str, *, step: float = 30.0):
        require(step > 0, "guide.step", step, "must be above 0")
        super().__init__()
        self.latent_name, self.step = latent_name, step
        # An Adam step has the size of the learning rate, so a factor after it multiplies the rate.
        self.rows = nn.Parameter(torch.zeros(num_images, 2 * latent_dim))

    def posterior(self, index: Tensor) -> dist.TorchDistribution:
        """q(z) of the images with row numbers `index`, event [latent_dim]."""
        loc, log_scale = (self.step * self.rows[index]).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor, index: Tensor) -> None:
        """q(z) over a plate of images [images, data_dim] with row numbers [images]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(index))
