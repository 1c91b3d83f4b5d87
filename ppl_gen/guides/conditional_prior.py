"""The prior of a conditional model in place of a guide."""

from typing import Any

import pyro
from torch import Tensor, nn

from ppl_gen.core.contracts import DrawsUnits, missing, offers
from ppl_gen.core.errors import BadInput


class ConditionalPrior(nn.Module):
    """q(z | x) = p(z | x_upper), with the networks of the model: nothing is amortized. L_K is then the logarithm of a
    mean of p(x_lower | z_k), by which Raiko et al. (2015) train such nets.

    >>> import torch
    >>> from ppl_gen.models.structured_belief_net import StructuredBeliefNet
    >>> guide = ConditionalPrior(StructuredBeliefNet((8, 8), latent_dims=(5, 3)))
    >>> pyro.poutine.trace(guide.guide).get_trace(torch.rand(4, 64)).nodes["z2"]["value"].shape
    torch.Size([4, 3])

    :param model: a model with a method `draw_units(x)`.
    """

    def __init__(self, model: nn.Module):
        if not offers(model, DrawsUnits):
            needed, who = missing(model, DrawsUnits), type(model).__name__
            raise BadInput(f"the guide conditional-prior needs a model with {needed}, but {who} has none")
        super().__init__()
        self.model: Any = model

    def guide(self, x: Tensor) -> None:
        """p(z | x_upper) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            self.model.draw_units(x)
