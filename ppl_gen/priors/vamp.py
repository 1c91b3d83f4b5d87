"""A prior made of the guide."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.errors import BadInput, require


class Vamp(nn.Module):
    """p(z) = (1/K) sum_k q(z | u_k): the guide at K learned pseudo-inputs, the VampPrior of Tomczak and Welling (2018),
    equation 9. The pseudo-inputs start near training images and stay in [0, 1].

    :param data_examples: training images [n, data_dim].
    :param guide: with `encode` and `posterior`; its parameters are the prior's too.
    :param num_components: K.
    """

    weights: Tensor

    def __init__(self, data_examples: Tensor, guide: nn.Module, *, num_components: int = 500):
        require(num_components >= 1, "prior.num_components", num_components, "must be at least 1")
        super().__init__()
        if not offers(guide, Amortized):
            raise BadInput(
                f"the prior vamp needs encode(x) and posterior(context), which {type(guide).__name__} has not"
            )
        self.guide = guide
        images = data_examples[torch.arange(num_components) % len(data_examples)]
        self.pseudo_inputs = nn.Parameter(torch.logit(0.05 + 0.9 * images) + 0.1 * torch.randn_like(images))
        self.register_buffer("weights", torch.zeros(num_components), persistent=False)

    def prior(self) -> dist.TorchDistribution:
        """p(z), event [latent_dim]."""
        guide: Any = self.guide
        components = guide.posterior(guide.encode(self.pseudo_inputs.sigmoid()))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.weights), components)
