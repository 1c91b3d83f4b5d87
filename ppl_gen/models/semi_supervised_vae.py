"""A variational autoencoder of images and classes, of which few are known."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.nets import Activation, draw_weights, mlp


class SemiSupervisedVAE(nn.Module):
    """p(y) uniform, p(z) = N(0, I) and p(x | y, z) = prod_d Bernoulli(x_d; decoder(y, z)_d): the generative
    semi-supervised model M2 of Kingma et al. (2014), equation 2.

    An image with an unknown label, -1, has the density p(x), a sum over y. An image with a label y has p(x, y):
    a factor rules the other classes out.

    >>> model = SemiSupervisedVAE(64, num_classes=10, latent_dim=2)
    >>> model.model(n=4).shape
    torch.Size([4, 64])

    :param num_classes: number of classes; labels are 0 … num_classes - 1.
    :param data_mean: mean training pixel [data_dim]; the output bias starts at its log-odds.
    :param latent_dim: Number of units of z.
    :param hidden_dims: Units of the encoder's hidden layers. The decoder has the same layers in reverse order.
    :param activation: Nonlinearity between layers.
    :param init_scale: Standard deviation of the weights before training. With small weights y is learned before z
        explains the images: Kingma et al. start from 0.001.
    """

    default_guide = "semi-supervised"
    training_defaults: ClassVar[dict[str, Any]] = {"labelled_share": 0.2}

    def __init__(
        self,
        data_dim: int,
        num_classes: int | None,
        data_mean: Tensor | None = None,
        *,
        latent_dim: int = 50,
        hidden_dims: tuple[int, ...] = (500,),
        activation: Activation = "relu",
        init_scale: float = 0.01,
    ):
        require(init_scale >= 0, "init_scale", init_scale, "must be at least 0")
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be at least 1")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        if num_classes is None:
            raise BadInput("the model needs images with labels 0, 1, 2, …; these have none")
        super().__init__()
        self.num_classes, self.hidden_dims, self.activation = num_classes, hidden_dims, activation
        self.decoder = mlp([num_classes + latent_dim, *reversed(hidden_dims), data_dim], activation)
        draw_weights(self.decoder, init_scale)
        if data_mean is not None:
            output: Any = self.decoder[-1]
            with torch.no_grad():
                output.bias.copy_(torch.logit(data_mean))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)

    prior_loc: Tensor

    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, y, z) over a plate of images x [images, data_dim] with labels y [images]. Without x, n images are
        drawn."""
        zero = self.prior_loc
        with pyro.plate("data", n if x is None else len(x)):
            uniform = dist.Categorical(logits=zero.new_zeros(self.num_classes))
            label = pyro.sample("y", uniform, infer={"enumerate": "parallel"})
            if y is not None:
                pyro.factor("label", zero.new_zeros(()).masked_fill((y >= 0) & (label != y), -torch.inf))
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            shape = broadcast_shape(label.shape, z.shape[:-1])
            code = F.one_hot(label.long(), self.num_classes).to(z.dtype)
            inputs = torch.cat([code.expand(*shape, -1), z.expand(*shape, -1)], -1)
            return pyro.sample("x", BernoulliVector(self.decoder(inputs)), obs=x)
