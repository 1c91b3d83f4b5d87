"""The sigmoid belief net with one layer of binary units."""

from typing import Any, ClassVar

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.distributions import BernoulliVector, LinearBernoulliVector


class BeliefNet(nn.Module):
    """p(z_m = 1) = sigmoid(b_m) and p(x_d = 1 | z) = sigmoid(z . w_d + c_d): Neal (1992), with one layer.

    Given an image, the M units depend on each other, so that log p(x) is a sum over 2^M states. All units are one
    latent site, whose support is the 2^M binary vectors. Up to M = 20 or so the site is enumerated, at a cost of
    O(2^M (D + N)) for N images of D pixels (`LinearBernoulliVector` derives it). Beyond that, a guide such as
    `bernoulli` samples it.

    >>> net = BeliefNet(64, latent_dim=3)
    >>> net.prior().enumerate_support().shape
    torch.Size([8, 3])
    >>> net.model(n=2).shape
    torch.Size([2, 64])

    :param data_mean: mean training pixel [data_dim]; c starts at its log-odds.
    :param latent_dim: Number of binary units M.
    :param init_scale: Standard deviation of the weights W before training.
    :param init_output_bias: Start the output bias c at the log-odds of the mean training pixel. Otherwise start it at
        0: every pixel then has a probability near 1/2.
    """

    default_guide: ClassVar = "enumerated"
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.01, "schedule": "cosine"}

    def __init__(
        self,
        data_dim: int,
        data_mean: Tensor | None = None,
        *,
        latent_dim: int = 8,
        init_scale: float = 0.01,
        init_output_bias: bool = True,
    ):
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be at least 1")
        require(init_scale >= 0, "init_scale", init_scale, "must be at least 0")
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(latent_dim))
        self.weight = nn.Parameter(init_scale * torch.randn(latent_dim, data_dim))
        start = torch.zeros(data_dim) if data_mean is None or not init_output_bias else torch.logit(data_mean)
        self.bias = nn.Parameter(start.clone())

    def prior(self) -> BernoulliVector:
        """p(z), event [latent_dim]."""
        return BernoulliVector(self.logits)

    def likelihood(self, z: Tensor) -> BernoulliVector:
        """p(x | z) for z [..., latent_dim], event [data_dim]."""
        return LinearBernoulliVector(z, self.weight, self.bias)

    def pictures(self) -> dict[str, tuple[str, Tensor, list[str]]]:
        """Title, weights w_m [M, data_dim] and p(z_m = 1) of the units."""
        captions = [f"{p:.2f}" for p in self.prior().mean]
        return {"weights": ("What each unit adds to the pixels' log-odds, with p(z = 1)", self.weight, captions)}

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.likelihood(z), obs=x)
