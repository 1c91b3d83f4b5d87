"""The sigmoid belief net with several layers of discrete units."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.distributions import BernoulliVector, LinearBernoulliVector
from ppl_gen.networks.nets import Activation, mlp


class HierarchicalBeliefNet(nn.Module):
    """p(z_L) = prod_m Bernoulli(b_m), p(z_l | z_{l+1}) = prod_m Bernoulli(net_l(z_{l+1})_m) and
    p(x | z_1) = prod_d Bernoulli(net_0(z_1)_d): Neal (1992), with layers as in Mnih and Gregor (2014). The latent sites
    are "z1", next to the image, "z2", …

    The networks are linear without hidden layers. With `hidden_dims` of 200 and 200 they are the nonlinear ones of
    Tucker et al. (2017). With more than two categories each unit is a one-hot vector (Jang et al. 2017), and a layer of
    M units has the values [M, categories].

    Layers of binary units are enumerated if the guide samples nothing: together they may have 20 units or so.

    >>> net = HierarchicalBeliefNet(64, latent_dims=(5, 3))
    >>> net.model(n=4).shape
    torch.Size([4, 64])
    >>> pyro.poutine.trace(HierarchicalBeliefNet(64, categories=10).model).get_trace(n=4).nodes["z1"]["value"].shape
    torch.Size([4, 200, 10])

    :param data_mean: mean training pixel [data_dim]; the output bias starts at its log-odds.
    :param latent_dims: Number of units of each layer: z_1, z_2, ….
    :param hidden_dims: Units of the hidden layers of each network, from the lower layer of units to the upper one. By
        default the networks are linear.
    :param activation: Nonlinearity of the hidden layers.
    :param categories: Number of values of a unit. 2 makes binary units.
    """

    default_guide = "hierarchical-bernoulli"

    def __init__(
        self,
        data_dim: int,
        data_mean: Tensor | None = None,
        *,
        latent_dims: tuple[int, ...] = (200,),
        hidden_dims: tuple[int, ...] = (),
        activation: Activation = "tanh",
        categories: int = 2,
    ):
        require(len(latent_dims) > 0 and min(latent_dims) >= 1, "latent_dims", latent_dims, "at least 1 unit per layer")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        require(categories >= 2, "categories", categories, "must be at least 2")
        super().__init__()
        self.latent_dims, self.between_dims = latent_dims, hidden_dims
        self.activation, self.categories = activation, categories
        sizes = [data_dim, *layer_sizes(latent_dims, categories)]
        self.layers = nn.ModuleList(
            mlp([upper, *reversed(hidden_dims), lower], activation) for lower, upper in pairwise(sizes)
        )
        self.top = nn.Parameter(torch.zeros(sizes[-1]))
        if data_mean is not None:
            output: Any = self.layers[0]
            with torch.no_grad():
                output[-1].bias.copy_(torch.logit(data_mean))

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z_1, …, z_L) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample(f"z{len(self.layers)}", units(self.top, self.categories), infer={"enumerate": "parallel"})
            for number in range(len(self.layers) - 1, 0, -1):
                given = self._given(number, z)
                z = pyro.sample(f"z{number}", given, infer={"enumerate": "parallel"})
            return pyro.sample("x", self._given(0, z), obs=x)

    def _given(self, number: int, z: Tensor) -> dist.TorchDistribution:
        """The distribution of a layer given the units z [..., units] or [..., units, categories] above it; of the image
        for layer 0."""
        net: Any = self.layers[number]
        if self.categories == 2 and len(net) == 1:
            return LinearBernoulliVector(z, net[0].weight.T, net[0].bias)
        logits = net(z if self.categories == 2 else z.flatten(-2))
        return BernoulliVector(logits) if number == 0 else units(logits, self.categories)


def layer_sizes(latent_dims: Sequence[int], categories: int) -> list[int]:
    """Numbers in the values of each layer: one for a binary unit, else one for each category.

    >>> layer_sizes((200, 20), 2), layer_sizes((200, 20), 10)
    ([200, 20], [2000, 200])
    """
    return [count * (1 if categories == 2 else categories) for count in latent_dims]


def units(logits: Tensor, categories: int) -> dist.TorchDistribution:
    """The distribution of a layer of units with 2 or more values.

    >>> units(torch.zeros(5, 6), 3).event_shape
    torch.Size([2, 3])

    :param logits: log-odds [..., units] of binary units, or logits [..., units x categories].
    """
    if categories == 2:
        return BernoulliVector(logits)
    return dist.OneHotCategorical(logits=logits.unflatten(-1, (-1, categories))).to_event(1)
