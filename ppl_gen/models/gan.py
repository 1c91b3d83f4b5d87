"""Generative adversarial networks as latent-variable models."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.core.errors import require, require_choice
from ppl_gen.networks.nets import Network, decoder, encoder

Loss = Literal["non-saturating", "minimax", "wasserstein"]
_SLOPE = 0.2  # of the leaky ReLU


class GAN(nn.Module):
    """p(z) = N(0, I) and p(x | z) = N(G(z), sigma^2 I), with a generator G that is trained against a discriminator D
    (Goodfellow et al. 2014, equation 1). D maximizes V = E[log D(x)] + E[log(1 - D(G(z)))], and G minimizes its loss.
    V is -log 4 if D cannot tell generated images from real ones. sigma is not trained: it is chosen on validation
    images afterwards. With it a generator has a likelihood, as in Wu et al. (2017).

    >>> model = GAN((8, 8), latent_dim=2, hidden_dims=(10,))
    >>> x = model.model(n=5)
    >>> generator_loss, discriminator_loss = model.adversarial_losses(x)
    >>> x.shape, generator_loss.shape, discriminator_loss.shape
    (torch.Size([5, 64]), torch.Size([]), torch.Size([]))

    :param latent_dim: Number of latent units.
    :param hidden_dims: Units of the generator's hidden layers. The discriminator has the same layers in reverse order.
    :param network: Networks of generator and discriminator. mlp: linear layers, with batch normalization in the
        generator. conv: stride-2 convolutions.
    :param channels: Features of each convolution, for --network conv.
    :param loss: Loss of the generator G. non-saturating: -E[log D(G(z))]. minimax: E[log(1 - D(G(z)))]. wasserstein:
        -E[D(G(z))], where D is a critic with gradients of norm near 1 (Gulrajani et al. 2017, equation 3).
    :param gradient_penalty: Weight of the penalty that keeps the critic's gradients near norm 1, for --loss
        wasserstein.
    """

    default_guide: ClassVar = "prior"
    training_defaults: ClassVar[dict[str, Any]] = {
        "objective": "adversarial",
        "learning_rate": 2e-4,
        "adam_beta1": 0.5,
        "epochs": 50,
    }
    data_defaults: ClassVar[dict[str, Any]] = {"binarization": "dequantized"}
    evaluation_defaults: ClassVar[dict[str, Any]] = {
        "estimator": "annealed",
        "num_images": 50,
        "sandwich": 20,
        "annealed": {"num_temperatures": 100},
    }

    def __init__(
        self,
        data_shape: tuple[int, ...],
        *,
        latent_dim: int = 100,
        hidden_dims: tuple[int, ...] = (256, 512),
        network: Network = "mlp",
        channels: tuple[int, ...] = (32, 64),
        loss: Loss = "non-saturating",
        gradient_penalty: float = 10.0,
    ):
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be at least 1")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        require_choice("loss", loss, Loss)
        require(gradient_penalty >= 0, "gradient_penalty", gradient_penalty, "must be at least 0")
        super().__init__()
        self.loss, self.gradient_penalty = loss, gradient_penalty
        if network == "conv":
            shared: dict[str, Any] = {"activation_name": "leaky-relu", "network": network, "channels": channels}
            self.generator, *_ = decoder(data_shape, latent_dim, hidden_dims=hidden_dims[::-1], **shared)
            self.discriminator = encoder(data_shape, 1, hidden_dims=hidden_dims[::-1], **shared)
        else:
            sizes = [latent_dim, *hidden_dims, math.prod(data_shape)]
            self.generator = _layers(sizes, normalized=True)
            self.discriminator = _layers([*sizes[:0:-1], 1], normalized=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.2)))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_dim), persistent=False)

    prior_loc: Tensor
    prior_scale: Tensor

    def prior(self) -> dist.TorchDistribution:
        """p(z), event [latent_dim]."""
        return dist.Normal(self.prior_loc, self.prior_scale).to_event(1)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z [..., latent_dim], event [data_dim]."""
        return dist.Normal(self.generator(z).sigmoid(), self.log_scale.exp()).to_event(1)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def adversarial_losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of the generator and the discriminator, scalars, on images x [images, data_dim] and as many samples.
        Each depends on the parameters of its own network alone: one step on their sum is one step of both."""
        made = self.generator(self.prior().sample((len(x),))).sigmoid()
        # The generator's loss passes through D's output, but D's parameters are held fixed in it.
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        judged = torch.func.functional_call(self.discriminator, fixed, (made,))
        return self._generator_loss(judged), self._discriminator_loss(x, made.detach())

    def _generator_loss(self, judged: Tensor) -> Tensor:
        if self.loss == "wasserstein":
            return -judged.mean()
        return F.softplus(-judged).mean() if self.loss == "non-saturating" else -F.softplus(judged).mean()

    def _discriminator_loss(self, x: Tensor, made: Tensor) -> Tensor:
        real, fake = self.discriminator(x), self.discriminator(made)
        if self.loss != "wasserstein":
            return F.softplus(-real).mean() + F.softplus(fake).mean()
        # The penalty is on images between real and generated ones: Gulrajani et al. (2017), section 4.
        share = torch.rand_like(x[:, :1])
        between = (share * x + (1 - share) * made).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        return fake.mean() - real.mean() + self.gradient_penalty * (slope.norm(dim=1) - 1).square().mean()

    def monitor(self, x: Tensor) -> dict[str, float]:
        """Both losses, the means of D, and V, on images x [images, data_dim] and as many samples. For wasserstein, D is
        a score and V is E[D(x)] - E[D(G(z))]."""
        made = self.generator(self.prior().sample((len(x),))).sigmoid()
        real, fake = self.discriminator(x), self.discriminator(made)
        if self.loss == "wasserstein":
            value = real.mean() - fake.mean()
        else:
            value = -F.softplus(-real).mean() - F.softplus(fake).mean()
            real, fake = real.sigmoid(), fake.sigmoid()
        return {
            "loss_generator": float(self._generator_loss(self.discriminator(made))),
            "loss_discriminator": float(self._discriminator_loss(x, made)),
            "d_real": float(real.mean()),
            "d_fake": float(fake.mean()),
            "value": float(value),
        }

    def pictures(self) -> dict[str, tuple[str, Tensor, list[str]]]:
        """Title, images G(z) [9, data_dim] for z on the line from one z to another, and the share of the line. Of 500
        samples, the ends are two of the 10 that D takes most for real: of these, the two whose images are furthest
        apart."""
        z = torch.randn(500, len(self.prior_loc), generator=torch.Generator().manual_seed(0)).to(self.prior_loc)
        images = self.generator(z).sigmoid()
        best = self.discriminator(images).squeeze(-1).topk(10).indices
        first, second = divmod(int(torch.cdist(images[best], images[best]).argmax()), len(best))
        share = torch.linspace(0, 1, 9, device=z.device)
        between = torch.lerp(z[best[first]], z[best[second]], share.unsqueeze(1))
        made = self.generator(between).sigmoid()
        return {"interpolation": ("G(z) in equal steps of z", made, [f"{each:.2f}" for each in share.tolist()])}


def _layers(sizes: Sequence[int], *, normalized: bool) -> nn.Sequential:
    """Linear layers with leaky ReLU between them, and batch normalization if `normalized`."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), *([_BatchNorm(outputs)] if normalized else []), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers[: -2 if normalized else -1])


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalization of features [..., features] over all leading dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, -2)).reshape(input.shape)
