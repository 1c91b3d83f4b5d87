"""A sigmoid belief net of the lower half of an image given the upper half."""

import math
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.networks.distributions import BernoulliVector, ObservedBernoulliVector
from ppl_gen.networks.nets import Activation, mlp

_NEAR = 1e-7
"""Probability of the other value of a pixel that is given, where images are drawn."""


class StructuredBeliefNet(nn.Module):
    """p(x_lower | x_upper) by layers of binary units between the halves of an image: p(z_1 | x_upper),
    p(z_2 | z_1), …, p(x_lower | z_L), each a product of Bernoulli distributions whose log-odds are a network of the
    layer before. It is the task of structured prediction of Raiko et al. (2015) and Gu et al. (2016).

    The latent sites are "z1", next to the upper half, "z2", …. The upper half has the first half of the rows, rounded
    down. Images that are drawn have the upper halves of training images. The guide `conditional-prior` draws from
    p(z | x_upper) and shares the networks.

    >>> net = StructuredBeliefNet((8, 8), latent_dims=(5, 3))
    >>> x = torch.rand(4, 64).round()
    >>> trace = pyro.poutine.trace(net.model).get_trace(x)
    >>> trace.nodes["z2"]["value"].shape, trace.nodes["x"]["fn"].log_prob(x).shape
    (torch.Size([4, 3]), torch.Size([4]))

    :param data_shape: (height, width) or (channels, height, width); of a vector, the halves.
    :param data_mean: mean training pixel [data_dim]. It is subtracted from the upper half, and the output bias starts
        at the log-odds of the lower half.
    :param data_examples: training images [images, data_dim], whose upper halves drawn images have. Without them, the
        upper halves are 0.
    :param latent_dims: Number of units of each layer: z_1, z_2, ….
    :param hidden_dims: Units of the hidden layers of each network, in the direction of the draws. By default the
        networks are linear.
    :param activation: Nonlinearity of the hidden layers.
    """

    default_guide = "conditional-prior"
    quantity = "log p(x_lower | x_upper)"
    categories = 2
    upper: Tensor
    upper_mean: Tensor
    examples: Tensor
    order: Tensor
    is_lower: Tensor

    def __init__(
        self,
        data_shape: tuple[int, ...],
        data_mean: Tensor | None = None,
        data_examples: Tensor | None = None,
        *,
        latent_dims: tuple[int, ...] = (200, 200),
        hidden_dims: tuple[int, ...] = (),
        activation: Activation = "tanh",
    ):
        require(len(latent_dims) > 0 and min(latent_dims) >= 1, "latent_dims", latent_dims, "at least 1 unit per layer")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        super().__init__()
        self.latent_dims, self.between_dims, self.activation = latent_dims, hidden_dims, activation
        pixels = torch.arange(math.prod(data_shape)).reshape(data_shape)
        rows = pixels.movedim(-2, 0) if len(data_shape) > 1 else pixels
        if len(rows) < 2:
            raise BadInput(
                f"structured-belief-net: images of the shape {list(data_shape)} have no upper and lower half"
            )
        upper, lower = (half.flatten().sort().values for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]))
        mean = torch.full((pixels.numel(),), 0.5) if data_mean is None else data_mean
        examples = torch.zeros(1, pixels.numel()) if data_examples is None else data_examples
        order = torch.cat([upper, lower]).argsort()
        buffers = {"upper": upper, "order": order, "is_lower": order >= len(upper)}
        buffers |= {"upper_mean": mean[upper], "examples": examples[:, upper]}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        sizes = [len(upper), *latent_dims, len(lower)]
        self.layers = nn.ModuleList(mlp([above, *hidden_dims, below], activation) for above, below in pairwise(sizes))
        output: Any = self.layers[-1]
        with torch.no_grad():
            output[-1].bias.copy_(torch.logit(mean[lower]))

    def draw_units(self, x: Tensor, infer: dict[str, Any] | None = None) -> Tensor:
        """Sample statements of all layers within a plate of images x [images, data_dim]. Returns z_L [..., units].

        :param infer: options of the statements for Pyro.
        """
        return self._drawn(x[:, self.upper] - self.upper_mean, infer)

    def _drawn(self, z: Tensor, infer: dict[str, Any] | None) -> Tensor:
        for number, net in enumerate(self.layers[:-1], start=1):
            z = pyro.sample(f"z{number}", BernoulliVector(net(z)), infer=infer)
        return z

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x_lower, z_1, …, z_L | x_upper) over a plate of images x [images, data_dim]. Without x, n images are
        drawn."""
        given = self.examples[torch.arange(n) % len(self.examples)] if x is None else x[:, self.upper]
        with pyro.plate("data", len(given)):
            z = self._drawn(given - self.upper_mean, {"enumerate": "parallel"})
            logits = self.layers[-1](z)
            top = given.logit(_NEAR)
            if broadcast_shape(top.shape[:-1], logits.shape[:-1]) != logits.shape[:-1]:
                top = top.new_zeros(top.shape[-1])  # enumerated: logits of states and images would be a large array
            whole = torch.cat([top.expand(*logits.shape[:-1], -1), logits], -1)[..., self.order]
            return pyro.sample("x", ObservedBernoulliVector(whole, self.is_lower), obs=x)
