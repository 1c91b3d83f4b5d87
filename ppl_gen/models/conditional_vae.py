"""A variational autoencoder of images given their class."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.nets import Activation, mlp


class ConditionalVAE(nn.Module):
    """p(z) = N(0, I) and p(x | z, y) = prod_d Bernoulli(x_d; decoder(z, y)_d) for a label y: Sohn et al. (2015),
    equation 4. The evaluation is of log p(x | y).

    >>> model = ConditionalVAE(64, num_classes=10, latent_dim=2)
    >>> model.model(n=4, y=torch.tensor([7, 7, 7, 7])).shape
    torch.Size([4, 64])

    :param num_classes: number of classes; labels are 0 … num_classes - 1.
    :param data_mean: mean training pixel [data_dim]; the output bias starts at its log-odds.
    :param latent_dim: Number of latent units.
    :param hidden_dims: Units of the encoder's hidden layers. The decoder has the same layers in reverse order.
    :param activation: Nonlinearity between layers.
    """

    default_guide = "conditional"

    def __init__(
        self,
        data_dim: int,
        num_classes: int | None,
        data_mean: Tensor | None = None,
        *,
        latent_dim: int = 20,
        hidden_dims: tuple[int, ...] = (512,),
        activation: Activation = "relu",
    ):
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be at least 1")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        if num_classes is None:
            raise BadInput("the model needs images with labels 0, 1, 2, …; these have none")
        super().__init__()
        self.num_classes, self.hidden_dims, self.activation = num_classes, hidden_dims, activation
        self.decoder = mlp([latent_dim + num_classes, *reversed(hidden_dims), data_dim], activation)
        if data_mean is not None:
            output: Any = self.decoder[-1]
            with torch.no_grad():
                output.bias.copy_(torch.logit(data_mean))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)

    prior_loc: Tensor

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z | y) over a plate of images x [images, data_dim] with labels y [images]. Without x, n images are
        drawn; without y, of all classes in turn."""
        count = n if x is None else len(x)
        y = torch.arange(count, device=self.prior_loc.device) % self.num_classes if y is None else y
        with pyro.plate("data", count):
            z = pyro.sample("z", dist.Normal(self.prior_loc, torch.ones_like(self.prior_loc)).to_event(1))
            label = F.one_hot(y, self.num_classes).to(z.dtype).expand(*z.shape[:-1], -1)
            return pyro.sample("x", BernoulliVector(self.decoder(torch.cat([z, label], -1))), obs=x)
