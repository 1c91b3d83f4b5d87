"""The guide that improves the encoder's output for each image."""

from typing import ClassVar, Unpack

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.gradients import gradients
from ppl_gen.networks.nets import EncoderOptions, mirrored_encoder, pixel_dropout
from ppl_gen.networks.observed import is_missing, observed_log_prob


class SemiAmortized(nn.Module):
    """q(z | x) = N(mu, diag sigma^2), where mu and log sigma are the encoder's output after a few steps of gradient
    ascent on the image's own ELBO: Kim et al. (2018), algorithm 1. Training differentiates through the steps.

    A step follows the natural gradient: the gradient by mu times sigma^2, and the gradient by log sigma halved. The
    noise in the ELBO of the steps is the same for every image and in every call, so that the context is a function of
    the image. The steps run through the decoder, so that its parameters are the guide's, too: where model and guide
    have different objectives, as in `rws` and `piwae`, they follow both.

    >>> from ppl_gen.models.vae import VAE
    >>> guide = SemiAmortized((8, 8), 2, "z", VAE((8, 8), latent_dim=2), num_steps=2)
    >>> guide.posterior(guide.encode(torch.rand(5, 64).round()))
    Independent(Normal(loc: torch.Size([5, 2]), scale: torch.Size([5, 2])), 1)

    :param model: the model whose posterior q approximates, with `prior()` and `likelihood(z)`.
    :param num_steps: Number of gradient steps for each image.
    :param step_size: Length of a step. If sigma is right and log p(x, z) is quadratic in z, a step of 1 finds the best
        mu.
    :param num_noise: Number of noise vectors. The ELBO of a step is the mean over them.
    :param input_dropout: Probability of dropping a pixel at the encoder's input, in training.
    """

    takes_missing: ClassVar = True
    noise: Tensor

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str,
        model: nn.Module,
        *,
        num_steps: int = 3,
        step_size: float = 0.3,
        num_noise: int = 4,
        input_dropout: float = 0.0,
        **options: Unpack[EncoderOptions],
    ):
        require(num_steps >= 0, "guide.num_steps", num_steps, "must be at least 0")
        require(step_size > 0, "guide.step_size", step_size, "must be above 0")
        require(num_noise >= 2, "guide.num_noise", num_noise, "must be at least 2")
        super().__init__()
        self.latent_name, self.num_steps, self.step_size = latent_name, num_steps, step_size
        self.dropout = pixel_dropout(input_dropout)
        self.encoder = mirrored_encoder(model, data_shape, 2 * latent_dim, **options)
        if not offers(model, HasDensity):
            raise BadInput(f"SemiAmortized needs a model with prior() and likelihood(z), not a {type(model).__name__}")
        self.model = model
        # Noise vectors come in pairs of opposite sign, which lowers the variance of the ELBO.
        half = torch.randn((num_noise + 1) // 2, 1, latent_dim)
        self.register_buffer("noise", torch.cat([half, -half])[:num_noise])

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, 2 latent_dim] of images [images, data_dim]. A pixel that is missing (NaN) is 0 for the
        encoder, and does not count in the ELBO."""
        context = self.encoder(self.dropout(torch.where(is_missing(x), 0.0, x)))
        learning = context.requires_grad
        with gradients("SemiAmortized"):  # evaluation needs the gradient of a step too
            if not learning:  # no graph from one step to the next
                context = context.detach().requires_grad_()
            for _ in range(self.num_steps):
                elbo = self._elbo(context, x)
                (gradient,) = torch.autograd.grad(elbo.sum(), context, create_graph=learning)
                by_loc, by_log_scale = gradient.chunk(2, -1)
                variance = (2 * context.chunk(2, -1)[1]).exp()
                context = context + self.step_size * torch.cat([variance * by_loc, by_log_scale / 2], -1)
                if not learning:
                    context = context.detach().requires_grad_()
        return context if learning else context.detach()

    def _elbo(self, context: Tensor, x: Tensor) -> Tensor:
        """ELBO [images] up to a constant, averaged over the noise, with the entropy of q in closed form."""
        loc, log_scale = context.chunk(2, -1)
        z = loc + log_scale.exp() * self.noise
        log_joint = observed_log_prob(self.model.likelihood(z), x) + self.model.prior().log_prob(z)
        return log_joint.mean(0) + log_scale.sum(-1)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
