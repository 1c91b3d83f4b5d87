"""A guide with several modes."""

from typing import Any, Unpack

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder, pixel_dropout

# Standard deviations of a component from its mean to the point where it meets the next component. See `rsample`.
_FARTHEST = 3.5


class Mixture(nn.Module):
    """q(z | x) = sum_k pi(x)_k N(mu_k(x), diag sigma_k(x)^2). A sample is reparametrized given its component
    (`DiagonalMixture`). Objectives draw at least two samples for each image, in order to compare components.

    >>> from ppl_gen.models.vae import VAE
    >>> guide = Mixture((8, 8), 2, "z", VAE((8, 8), latent_dim=2), num_components=3)
    >>> q = guide.posterior(guide.encode(torch.rand(5, 64)))
    >>> q.batch_shape, q.event_shape, q.locs.shape
    (torch.Size([5]), torch.Size([2]), torch.Size([5, 3, 2]))

    :param num_components: Number of components K.
    :param input_dropout: Probability of dropping a pixel at the encoder's input, in training.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        num_components: int = 5,
        input_dropout: float = 0.0,
        **options: Unpack[EncoderOptions],
    ):
        require(num_components >= 1, "guide.num_components", num_components, "must be at least 1")
        super().__init__()
        self.latent_name, self.num_components = latent_name, num_components
        self.dropout = pixel_dropout(input_dropout)
        self.encoder = mirrored_encoder(model, data_shape, num_components * (1 + 2 * latent_dim), **options)

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, K (1 + 2 latent_dim)] of images [images, data_dim]."""
        return self.encoder(self.dropout(x))

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is the K logits of pi, then mu_k and log sigma_k of each
        component."""
        logits, rest = context.split([self.num_components, context.shape[-1] - self.num_components], -1)
        loc, log_scale = rest.unflatten(-1, (self.num_components, -1)).chunk(2, -1)
        return DiagonalMixture(loc, log_scale.exp(), logits)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))


class DiagonalMixture(dist.MixtureOfDiagNormals):
    """Pyro's mixture of diagonal Gaussians with another gradient. The gradient of Pyro's own samples (1.9.2) with
    respect to the weights pi is not the gradient of the expectation.

    `pyro.sample` draws z = mu_k + sigma_k epsilon of a component k. The sample is reparametrized given k. The choice of
    k has no path for a gradient, so its score takes part, which `score_parts` gives to Pyro's objectives and ours:

        d/dphi E[f(z)] = E[f'(z) dz/dphi + f(z) d log pi_k / dphi]

    Both terms are averaged over p(k | z), all components that z may be of, which lowers the variance.

    `rsample` is reparametrized with respect to the weights too. Its gradient moves samples from one component to
    another along a path. Between components that are far apart, the path leads through a region with hardly a sample:
    the gradient is right on average, but over more samples than anybody draws. `rsample` refuses such components.

    >>> mixture = DiagonalMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1), torch.zeros(2))
    >>> mixture.sample((4,)).shape
    torch.Size([4, 1])
    >>> mixture.log_prob(torch.zeros(1)).exp()  # N(0; 1, 1)
    tensor(0.2420)
    """

    def __call__(self, sample_shape: Any = ()) -> Tensor:
        """Samples that are reparametrized given their component, [*sample_shape, *batch_shape, dim]."""
        z = self.sample(torch.Size(sample_shape))
        if not torch.is_grad_enabled():
            return z
        # For every component k, z is mu_k + sigma_k epsilon_k with a fixed epsilon_k. The sum of these expressions with
        # weights p(k | z) has the value z, and its gradient is dz/dphi averaged over p(k | z).
        with torch.no_grad():
            standard = (z.unsqueeze(-2) - self.locs) / self.coord_scale  # [..., k, i]
            share = self._responsibilities(standard)
        path = (share.unsqueeze(-1) * (self.locs + self.coord_scale * standard)).sum(-2)
        return z + path - path.detach()

    def score_parts(self, value: Tensor) -> ScoreParts:
        """log q(z), whose gradient is complete, and E[log pi_k | z], whose gradient is the score of the choice of k."""
        log_prob = self.log_prob(value)
        with torch.no_grad():
            share = self._responsibilities((value.unsqueeze(-2) - self.locs) / self.coord_scale)
        return ScoreParts(log_prob, (share * self.categorical.logits).sum(-1), log_prob)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            index = self.categorical.sample(torch.Size(sample_shape))[..., None, None]
            index = index.expand(*shape[:-1], 1, self.dim)
            locs, scales = (each.expand(*shape[:-1], -1, -1) for each in (self.locs, self.coord_scale))
            loc, scale = (each.gather(-2, index).squeeze(-2) for each in (locs, scales))
            return loc + scale * torch.randn_like(loc)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples [*sample_shape, *batch_shape, dim] with an implicit gradient: Figurnov, Mohamed and Mnih (2018),
        equation 5. Let S_i(z) be the distribution function of z_i given z_1 … z_{i-1}. S(z) is uniform for any
        parameters phi, so that dz/dphi = -(dS/dz)^-1 dS/dphi. dS/dz is triangular. First derivatives only.

        :raises BadInput: if a gradient is asked for and components are far apart.
        """
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        if self.component_logits.requires_grad and self._far_apart():
            raise BadInput(
                f"DiagonalMixture.rsample: components are more than {2 * _FARTHEST:g} standard deviations apart: too "
                "few samples show the gradient of their weights; draw by pyro.sample, and use an objective"
            )
        locs, scales = self.locs, self.coord_scale
        standard = (z.unsqueeze(-2) - locs) / scales  # [..., k, i]
        log_density = -standard.square() / 2 - scales.log()
        # Probability [..., k, i] of component k given z_1 … z_{i-1}: the densities of the units before i.
        weights = (self.component_logits.unsqueeze(-1) + log_density.cumsum(-1) - log_density).softmax(-2)
        # S_i near 1 loses digits. There S_i - 1 takes its place, which has the same derivatives.
        with torch.no_grad():
            below = (weights * torch.special.ndtr(standard)).sum(-2, keepdim=True) <= 0.5
            sign = torch.where(below, 1.0, -1.0).to(standard.dtype)
        cumulative = sign * torch.special.ndtr(sign * standard)
        total = (weights * cumulative).sum(-2)
        # dS_i/dz_i is the density of z_i given z_1 … z_{i-1}. In dS_i/dz_j for j < i, z_j changes the probabilities of
        # the components, by d log N_k / dz_j = -standard / scales.
        with torch.no_grad():
            slopes = (weights * (cumulative - total.unsqueeze(-2))).transpose(-2, -1) @ (-standard / scales)
            diagonal = (weights * log_density.exp()).sum(-2) / (2 * torch.pi) ** 0.5
            jacobian = slopes.tril(-1) + torch.diag_embed(diagonal)
        moved = (total - total.detach()).unsqueeze(-1)
        return z - torch.linalg.solve_triangular(jacobian, moved, upper=False).squeeze(-1)

    def _responsibilities(self, standard: Tensor) -> Tensor:
        """p(k | z) [..., k], from (z - mu_k) / sigma_k [..., k, i]."""
        log_density = (-standard.square() / 2 - self.coord_scale.log()).sum(-1)
        return (self.categorical.logits + log_density).softmax(-1)

    def _far_apart(self) -> bool:
        """True if, along any coordinate, two neighbouring components have hardly a sample between them."""
        with torch.no_grad():
            locs, order = self.locs.sort(dim=-2)
            scales = self.coord_scale.gather(-2, order)
            apart = locs.diff(dim=-2) / (scales[..., 1:, :] + scales[..., :-1, :])
            return bool((apart > _FARTHEST).any())
