"""A guide that goes on from where the encoder ends."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from ppl_gen.errors import BadInput, require
from ppl_gen.guides.normal import Normal


class SemiAmortized(Normal):
    """The diagonal Gaussian guide, its context improved by a few steps of gradient ascent on each image's own ELBO: Kim
    et al. (2018), whose steps, too, are differentiated in training. A step is along the natural gradient: that of mu
    times sigma^2, that of log sigma halved. The noise of the steps is the same for every image and at every call, so
    that the context is a function of the image.

    :param num_steps: gradient steps for each image.
    :param step_size: length of a step; 1 would solve a quadratic log p(x, z) in mu.
    :param num_noise: noise vectors that the ELBO of the steps is averaged over.
    """

    noise: Tensor

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str | None,
        model: nn.Module,
        *,
        num_steps: int = 3,
        step_size: float = 0.3,
        num_noise: int = 4,
        **amortized: Any,
    ):
        require(num_steps >= 0, "guide.num_steps", num_steps, "must be at least 0")
        require(step_size > 0, "guide.step_size", step_size, "must be above 0")
        require(num_noise >= 2, "guide.num_noise", num_noise, "must be at least 2")
        super().__init__(data_shape, latent_dim, latent_name, model, **amortized)
        if not (hasattr(model, "prior") and hasattr(model, "likelihood")):
            raise BadInput(f"SemiAmortized needs prior() and likelihood(z), which {type(model).__name__} has not")
        self.model = model
        self.num_steps, self.step_size = num_steps, step_size
        half = torch.randn((num_noise + 1) // 2, 1, latent_dim)
        self.register_buffer("noise", torch.cat([half, -half])[:num_noise])

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, 2 latent_dim]: mu beside log sigma."""
        context = super().encode(x)
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
        model = cast(Any, self.model)
        z = loc + log_scale.exp() * self.noise
        log_joint = model.likelihood(z).log_prob(x) + model.prior().log_prob(z)
        return log_joint.mean(0) + log_scale.sum(-1)
