"""The mixture of Bernoullis: naive Bayes with a categorical latent."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.distributions import BernoulliVector
from ppl_gen.errors import require


class Mixture(nn.Module):
    """p(z) = Categorical(softmax(b)) and p(x_d = 1 | z = k) = sigmoid(w_kd + c_d): Bishop (2006), section 9.3.3.

    The sum over z is exact: log p(x) = log sum_k exp(log p(z = k) + x . l_k - sum_d softplus(l_kd)), with l = w + c. The
    first product is a matrix product of images and components, the second is one number for each component.

    Every pixel starts at probability 1/2, with noise of standard deviation `init_scale` in the log-odds that makes the
    components differ.

    :param data_dim: pixels of one image.
    :param num_components: K.
    :param init_scale: standard deviation of w before training.
    """

    default_guide: ClassVar = "enumerated"
    training_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, data_dim: int, *, num_components: int = 20, init_scale: float = 0.1):
        require(num_components >= 1, "num_components", num_components, "must be at least 1")
        require(init_scale >= 0, "init_scale", init_scale, "must be at least 0")
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.weight = nn.Parameter(init_scale * torch.randn(num_components, data_dim))
        self.bias = nn.Parameter(torch.zeros(data_dim))

    def prior(self) -> dist.Distribution:
        """p(z), a component in 0 … K - 1."""
        return dist.Categorical(logits=self.logits)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        """p(x | z) for z [...], event [data_dim]."""
        return BernoulliVector(self.weight[z] + self.bias)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images; x [images, data_dim], or n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior(), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.likelihood(z), obs=x)
