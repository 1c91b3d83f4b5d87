"""A guide with several modes."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_gen.errors import require
from ppl_gen.guides.amortized import Amortized


class Mixture(Amortized):
    """q(z | x) = sum_k pi(x)_k N(mu_k(x), diag sigma_k(x)^2), with reparametrized samples (`DiagonalMixture`).

    :param num_components: K.
    """

    def __init__(self, *supplied: Any, num_components: int = 5, **amortized: Any):
        require(num_components >= 1, "guide.num_components", num_components, "must be at least 1")
        self.num_components = num_components
        super().__init__(*supplied, **amortized)

    def context_dim(self) -> int:
        return self.num_components * (2 * self.latent_dim + 1)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """Of the logits of pi, then mu_k and log sigma_k of every component."""
        logits, rest = context.split([self.num_components, context.shape[-1] - self.num_components], -1)
        loc, log_scale = rest.unflatten(-1, (self.num_components, 2 * self.latent_dim)).chunk(2, -1)
        return DiagonalMixture(loc, log_scale.exp(), logits)


class DiagonalMixture(dist.MixtureOfDiagNormals):
    """Pyro's mixture of diagonal Gaussians, with samples that are differentiated implicitly: Figurnov, Mohamed and Mnih
    (2018), equation 5. With S_i(z) the distribution function of z_i given z_1 … z_{i-1}, uniform and independent for
    every value of the parameters phi, dz/dphi = -(dS/dz)^-1 dS/dphi; dS/dz is triangular. First derivatives only.

    The gradient of Pyro's own samples (1.9.2) is not that of the expectation where weights are concerned.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """[*sample_shape, *batch_shape, dim]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        locs, scales = (each.expand(*shape, -1, -1) for each in (self.locs, self.coord_scale))
        index = self.categorical.sample(torch.Size(sample_shape))[..., None, None].expand(*shape, 1, self.dim)
        with torch.no_grad():
            loc, scale = (each.gather(-2, index).squeeze(-2) for each in (locs, scales))
            z = loc + scale * torch.randn_like(loc)
        if not torch.is_grad_enabled():
            return z
        standard = (z.unsqueeze(-2) - locs) / scales  # [..., k, i]
        log_density = -standard.square() / 2 - scales.log()
        # Of component k given z_1 … z_{i-1}.
        weights = (self.component_logits.unsqueeze(-1) + log_density.cumsum(-1) - log_density).softmax(-2)
        with torch.no_grad():  # S_i or 1 - S_i, whichever is smaller and thus more precise
            below = (weights * torch.special.ndtr(standard)).sum(-2, keepdim=True) <= 0.5
            sign = torch.where(below, 1.0, -1.0).to(standard.dtype)
        cumulative = sign * torch.special.ndtr(sign * standard)
        total = (weights * cumulative).sum(-2)
        with torch.no_grad():
            slopes = (weights * (cumulative - total.unsqueeze(-2))).transpose(-2, -1) @ (-standard / scales)
            diagonal = (weights * log_density.exp()).sum(-2) / (2 * torch.pi) ** 0.5
            jacobian = slopes.tril(-1) + torch.diag_embed(diagonal)
        moved = (total - total.detach()).unsqueeze(-1)
        return z - torch.linalg.solve_triangular(jacobian, moved, upper=False).squeeze(-1)
