"""The VampPrior, a mixture of the guide's posteriors."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.core.errors import BadInput, require


class Vamp(nn.Module):
    """p(z) = (1/K) sum_k q(z | u_k), the mean of the guide's q at K learned pseudo-inputs u_k: Tomczak and Welling
    (2018), equation 9. The pseudo-inputs start near training images and stay in [0, 1].

    >>> from ppl_gen.guides.normal import Normal
    >>> from ppl_gen.models.vae import VAE
    >>> guide = Normal((8, 8), 2, "z", VAE((8, 8), latent_dim=2))
    >>> Vamp(torch.rand(30, 64), guide, num_components=10).prior()
    MixtureSameFamily(
      Categorical(logits: torch.Size([10])),
      Independent(Normal(loc: torch.Size([10, 2]), scale: torch.Size([10, 2])), 1))

    :param data_examples: training images [n, data_dim].
    :param guide: a guide with `encode` and `posterior`, whose parameters are the prior's too.
    :param num_components: Number of pseudo-inputs K.
    """

    weights: Tensor

    def __init__(self, data_examples: Tensor, guide: nn.Module, *, num_components: int = 500):
        require(num_components >= 1, "prior.num_components", num_components, "must be at least 1")
        super().__init__()
        if not offers(guide, Amortized):
            raise BadInput(
                f"the prior vamp needs a guide with encode(x) and posterior(context), not a {type(guide).__name__}"
            )
        self.guide = guide
        images = data_examples[torch.arange(num_components) % len(data_examples)]
        self.pseudo_inputs = nn.Parameter(torch.logit(0.05 + 0.9 * images) + 0.1 * torch.randn_like(images))
        self.register_buffer("weights", torch.zeros(num_components), persistent=False)

    def prior(self) -> dist.TorchDistribution:
        """p(z), event [latent_dim]."""
        components = self.guide.posterior(self.guide.encode(self.pseudo_inputs.sigmoid()))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.weights), components)
