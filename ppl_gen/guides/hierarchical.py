"""The guide of the hierarchical VAE."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_gen.core.contracts import LayeredModel, missing, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.networks.nets import mlp


class Hierarchical(nn.Module):
    """q(z_1 | x) q(z_2 | z_1) …, each a diagonal Gaussian whose network has two hidden layers: Burda et al. (2016),
    section 5. Sizes and activation are the model's.

    >>> import torch
    >>> from ppl_gen.models.hierarchical_vae import HierarchicalVAE
    >>> guide = Hierarchical(64, HierarchicalVAE(64, latent_dims=(5, 2), hidden_dims=(20, 10)))
    >>> trace = pyro.poutine.trace(guide.guide).get_trace(torch.rand(3, 64))
    >>> trace.nodes["z1"]["value"].shape, trace.nodes["z2"]["value"].shape
    (torch.Size([3, 5]), torch.Size([3, 2]))

    :param model: a `HierarchicalVAE`, or any model with its `latent_dims`, `hidden_dims` and `activation`.
    """

    def __init__(self, data_dim: int, model: nn.Module):
        super().__init__()
        if not offers(model, LayeredModel):
            needed = missing(model, LayeredModel)
            raise BadInput(f"the guide hierarchical needs a model with {needed}, but {type(model).__name__} has none")
        sizes = (data_dim, *model.latent_dims)
        self.layers = nn.ModuleList(
            mlp([lower, hidden, hidden, 2 * upper], model.activation)
            for lower, upper, hidden in zip(sizes, model.latent_dims, model.hidden_dims, strict=False)
        )

    def guide(self, x: Tensor) -> None:
        """q(z_1, …, z_L | x) over a plate of images [images, data_dim]."""
        value = x
        with pyro.plate("data", len(x)):
            for number, layer in enumerate(self.layers, 1):
                loc, log_scale = layer(value).chunk(2, -1)
                value = pyro.sample(f"z{number}", dist.Normal(loc, log_scale.exp()).to_event(1))
