"""The VampPrior, a mixture of the guide's posteriors."""

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.core.errors import BadInput, require


class MixtureOfNormals(dist.TorchDistribution):
    """(1/K) sum_k N(z; mu_k, diag sigma_k^2), event [latent_dim].

    `MixtureSameFamily` holds [samples, K, latent_dim] numbers to compute this density. Here the square
    (z - mu)^2 / sigma^2 is multiplied out, which leaves matrix products and [samples, K] numbers. Its terms nearly
    cancel where sigma is small, so they are computed in float64.

    >>> MixtureOfNormals(torch.zeros(3, 2), torch.ones(3, 2)).log_prob(torch.zeros(2))
    tensor(-1.8379)

    :param loc: means mu [K, latent_dim].
    :param scale: standard deviations sigma [K, latent_dim].
    """

    arg_constraints: ClassVar = {"loc": constraints.independent(constraints.real, 2), "scale": constraints.positive}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None):
        self.loc, self.scale = loc, scale
        super().__init__((), loc.shape[-1:], validate_args)

    @property
    def mean(self) -> Tensor:
        """[latent_dim]"""
        return self.loc.mean(0)

    @property
    def variance(self) -> Tensor:
        """[latent_dim]"""
        return self.scale.square().mean(0) + self.loc.var(0, correction=0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """[*sample_shape, latent_dim]"""
        with torch.no_grad():
            chosen = torch.randint(len(self.loc), tuple(sample_shape), device=self.loc.device)
            return torch.normal(self.loc[chosen], self.scale[chosen])

    def log_prob(self, value: Tensor) -> Tensor:
        """log density of z [..., latent_dim]: [...]"""
        if self._validate_args:
            self._validate_sample(value)
        z, loc, precision = value.double(), self.loc.double(), self.scale.double() ** -2
        constant = (loc.square() * precision - precision.log()).sum(-1) + loc.shape[-1] * math.log(2 * math.pi)
        squares = z.square() @ precision.T - 2 * z @ (loc * precision).T + constant
        return (torch.logsumexp(-squares / 2, -1) - math.log(len(loc))).to(value.dtype)


class Vamp(nn.Module):
    """p(z) = (1/K) sum_k q(z | u_k), the mean of the guide's q at K learned pseudo-inputs u_k: Tomczak and Welling
    (2018), equation 9. The pseudo-inputs start near training images and stay in [0, 1].

    >>> from ppl_gen.guides.normal import Normal
    >>> from ppl_gen.models.vae import VAE
    >>> guide = Normal((8, 8), 2, "z", VAE((8, 8), latent_dim=2))
    >>> Vamp(torch.rand(30, 64), guide, num_components=10).prior()
    MixtureOfNormals(loc: torch.Size([10, 2]), scale: torch.Size([10, 2]))

    The density of z is a sum over K components. If q is a diagonal normal, the sum is a few matrix products. If q is a
    flow, each component takes as many passes as the inverse of the flow: choose a small K then.

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
        of_vectors = isinstance(components, dist.Independent) and len(components.event_shape) == 1
        if of_vectors and type(components.base_dist) is dist.Normal:  # a subclass may have another density
            return MixtureOfNormals(components.base_dist.loc, components.base_dist.scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.weights), components)
