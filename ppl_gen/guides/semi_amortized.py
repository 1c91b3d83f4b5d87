"""A guide that goes on from where the encoder ends."""

from typing import Any, Unpack

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.errors import BadInput, require
from ppl_gen.nets import EncoderOptions, mirrored_encoder, pixel_dropout


class SemiAmortized(nn.Module):
    """The diagonal Gaussian guide, its context improved by a few steps of gradient ascent on each image's own ELBO: Kim
    et al. (2018), whose steps, too, are differentiated in training. A step is along the natural gradient: that of mu
    times sigma^2, that of log sigma halved. The noise of the steps is the same for every image and at every call, so
    that the context is a function of the image.

    :param num_steps: gradient steps for each image.
    :param step_size: length of a step; 1 would solve a quadratic log p(x, z) in mu.
    :param num_noise: noise vectors that the ELBO of the steps is averaged over.
    :param input_dropout: probability of dropping a pixel at the encoder's input, in training.
    """

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
        if not (hasattr(model, "prior") and hasattr(model, "likelihood")):
            raise BadInput(f"SemiAmortized needs prior() and likelihood(z), which {type(model).__name__} has not")
        self.model: Any = model
        half = torch.randn((num_noise + 1) // 2, 1, latent_dim)
        self.register_buffer("noise", torch.cat([half, -half])[:num_noise])

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, 2 latent_dim] of images [images, data_dim]."""
        context = self.encoder(self.dropout(x))
        learning = context.requires_grad
        with torch.enable_grad():
            if not learning:
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
        """[images], with the guide's entropy in closed form."""
        loc, log_scale = context.chunk(2, -1)
        z = loc + log_scale.exp() * self.noise
        log_joint = self.model.likelihood(z).log_prob(x) + self.model.prior().log_prob(z)
        return log_joint.mean(0) + log_scale.sum(-1)

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]. The context is mu beside log sigma."""
        loc, log_scale = context.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
