"""The mixture of Bernoullis: naive Bayes with a categorical latent."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.distributions import BernoulliVector


class Mixture(nn.Module):
    """p(z) = Categorical(softmax(b)) and p(x_d = 1 | z = k) = sigmoid(w_kd + c_d): Bishop (2006), section 9.3.3.

    The sum over z is exact: log p(x) = log sum_k exp(log p(z = k) + x . l_k - sum_d softplus(l_kd)), with l = w + c.
    The term x . l_k is a matrix product of images and components. The last term is one number for each component.

    A component that explains no image better than the others gets no gradient and stays empty. Therefore each component
    starts near a different image: w_k is `init_scale` times the difference of that image from the mean image. The
    probabilities still start near 1/2.

    b learns at a tenth of the rate of w and c, because it is 0.1 times a parameter. Adam moves every parameter by about
    the learning rate, for any size of its gradient. If b moved as fast as w, components would lose their weight in the
    first epoch.

    >>> model = Mixture(64, num_components=3)
    >>> model.prior()
    Categorical(logits: torch.Size([3]))
    >>> model.likelihood(torch.tensor([0, 2])).log_prob(torch.zeros(2, 64)).shape
    torch.Size([2])

    :param data_examples: training images [images, data_dim] that the components start near; without them, w is noise.
    :param num_components: Number of components K.
    :param init_scale: Contrast of the training images that the components start near.
    """

    default_guide: ClassVar = "enumerated"
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.2, "batch_size": 500, "schedule": "cosine"}

    def __init__(
        self, data_dim: int, data_examples: Tensor | None = None, *, num_components: int = 20, init_scale: float = 0.3
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
        # The gradient of self.weight[z] takes five times as long.
        return BernoulliVector(F.embedding(z, self.weight) + self.bias)

    def pictures(self) -> dict[str, tuple[str, Tensor, list[str]]]:
        """Title, mean images p(x_d = 1 | z = k) [K, data_dim] and p(z = k), the most probable component first."""
        weights, order = self.prior().probs.sort(descending=True)
        means = self.likelihood(order).mean
        return {"components": ("Components p(x = 1 | z = k), with p(z = k)", means, [f"{w:.2%}" for w in weights])}

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.likelihood(z), obs=x)
