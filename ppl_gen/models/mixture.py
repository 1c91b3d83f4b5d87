"""The mixture of Bernoullis: naive Bayes with a categorical latent."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.distributions import BernoulliVector
from ppl_gen.errors import require


class Mixture(nn.Module):
    """p(z) = Categorical(softmax(b)) and p(x_d = 1 | z = k) = sigmoid(w_kd + c_d): Bishop (2006), section 9.3.3.

    The sum over z is exact: log p(x) = log sum_k exp(log p(z = k) + x . l_k - sum_d softplus(l_kd)), with l = w + c.
    The first product is a matrix product of images and components, the second is one number for each component.

    A component that explains no image better than another gets no gradient and stays empty. So every component starts
    near an image of its own, faintly: w_k is `init_scale` times that image less the mean image, and the log-likelihood
    still that of fair coins. And b is learned at a tenth of the rate of w and c, as 0.1 times a parameter: Adam moves
    every parameter by the learning rate, whatever its gradient, and a b that moves as fast as w starves components in
    the first epoch.

    :param data_dim: pixels of one image.
    :param data_examples: training images [images, data_dim] that components start near; without any, w is noise.
    :param num_components: K.
    :param init_scale: contrast of the images that the components start at.
    """

    default_guide: ClassVar = "enumerated"
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.2, "batch_size": 500, "schedule": "cosine"}

    def __init__(
        self,
        data_dim: int,
        data_examples: Tensor | None = None,
        *,
        num_components: int = 20,
        init_scale: float = 0.3,
    ):
        require(num_components >= 1, "num_components", num_components, "must be at least 1")
        require(init_scale > 0, "init_scale", init_scale, "must be above 0")
        super().__init__()
        if data_examples is None:
            start = torch.randn(num_components, data_dim)
        else:
            rounds = -(-num_components // len(data_examples))
            chosen = torch.cat([torch.randperm(len(data_examples)) for _ in range(rounds)])[:num_components]
            start = data_examples[chosen] - data_examples.mean(0)
            start = start + 0.01 * torch.randn_like(start)  # so that no two are alike
        self.level = nn.Parameter(torch.zeros(num_components))
        self.weight = nn.Parameter(init_scale * start)
        self.bias = nn.Parameter(torch.zeros(data_dim))

    def prior(self) -> dist.Distribution:
        """p(z), a component in 0 … K - 1."""
        return dist.Categorical(logits=0.1 * self.level)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        """p(x | z) for z [...], event [data_dim]."""
        # Indexing, self.weight[z], has a gradient of five times the time.
        return BernoulliVector(F.embedding(z, self.weight) + self.bias)

    def pictures(self) -> dict[str, tuple[str, Tensor, list[str]]]:
        """The mean images p(x_d = 1 | z = k) [K, data_dim], the most probable component first, with p(z = k)."""
        weights, order = self.prior().probs.sort(descending=True)
        means = self.likelihood(order).mean
        return {"components": ("Components p(x = 1 | z = k), with p(z = k)", means, [f"{w:.2%}" for w in weights])}

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images; x [images, data_dim], or n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.likelihood(z), obs=x)
