"""The factorized Bernoulli guide of binary latent vectors."""

from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require, require_choice
from ppl_gen.networks.distributions import BernoulliVector
from ppl_gen.networks.nets import Activation, mlp

Baseline = Literal["none", "constant", "network"]


class Bernoulli(nn.Module):
    """q(z | x) = prod_m Bernoulli(z_m; encoder(x)_m): Mnih and Gregor (2014), section 2.

    A binary z cannot be reparametrized, and the score-function gradient of the encoder is noisy. A baseline predicts
    the learning signal log p(x, z) - log q(z | x) from the image. The gradient has a smaller variance once the baseline
    is subtracted from the signal (section 2.3). Only the objective `elbo` (Pyro's `TraceGraph_ELBO`) uses it: `vimco`
    has a baseline of its own, and `rws` needs none.

    >>> guide = Bernoulli(64, torch.full((64,), 0.5), 3, "z")
    >>> guide.posterior(guide.encode(torch.rand(5, 64))).sample().shape
    torch.Size([5, 3])

    :param data_mean: mean training pixel [data_dim], subtracted from the images.
    :param latent_dim: number of units M.
    :param hidden_dims: Units of the encoder's hidden layers. Without hidden layers the encoder is linear.
    :param activation: Nonlinearity between layers.
    :param baseline: Baseline of the score-function gradient. network: a learned function of the image. constant: one
        learned number. none: no baseline.
    :param baseline_dim: Hidden units of the baseline's network.
    """

    data_mean: Tensor

    def __init__(
        self,
        data_dim: int,
        data_mean: Tensor,
        latent_dim: int,
        latent_name: str,
        *,
        hidden_dims: tuple[int, ...] = (),
        activation: Activation = "tanh",
        baseline: Baseline = "network",
        baseline_dim: int = 100,
    ):
        require(min(hidden_dims, default=1) >= 1, "guide.hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        super().__init__()
        self.latent_name = latent_name
        self.register_buffer("data_mean", data_mean.clone(), persistent=False)
        self.encoder = mlp([data_dim, *hidden_dims, latent_dim], activation)
        self.baseline = learned_baseline(baseline, data_dim, baseline_dim, scale=data_dim)

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, latent_dim] of images [images, data_dim]."""
        return self.encoder(x - self.data_mean)

    def posterior(self, context: Tensor) -> BernoulliVector:
        """q(z | context), event [latent_dim]. The context is the log-odds of each unit."""
        return BernoulliVector(context)

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        infer: dict[str, Any] = {}
        if self.baseline is not None:
            infer["baseline"] = {"nn_baseline": self.baseline, "nn_baseline_input": x - self.data_mean}
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)), infer=infer)


class LearnedBaseline(nn.Module):
    """The predicted learning signal in nats, [images]. The network's output is multiplied by the number of pixels,
    because the signal is of that order: a weight that moves by a learning rate of 1e-3 at a step would take long to
    reach it.

    >>> LearnedBaseline(4, 3, scale=64)(torch.rand(5, 4)).shape
    torch.Size([5])

    :param inputs: numbers of an input.
    :param hidden_dim: hidden units of the network; 0 for one learned number.
    :param scale: number of pixels.
    """

    def __init__(self, inputs: int, hidden_dim: int, scale: float):
        super().__init__()
        self.scale = float(scale)
        self.level = nn.Parameter(torch.tensor(0.0))
        self.network = mlp([inputs, hidden_dim, 1], "tanh") if hidden_dim else None

    def forward(self, x: Tensor) -> Tensor:
        level = self.level if self.network is None else self.level + self.network(x).squeeze(-1)
        return (self.scale * level).expand(x.shape[:-1])


def learned_baseline(kind: Baseline, inputs: int, hidden_dim: int, scale: float) -> LearnedBaseline | None:
    """The baseline that the options of a guide ask for.

    >>> learned_baseline("none", 4, 3, scale=64) is None
    True

    :raises BadInput: for an unknown kind, and for no hidden unit.
    """
    require_choice("guide.baseline", kind, Baseline)
    require(hidden_dim >= 1, "guide.baseline_dim", hidden_dim, "must be at least 1")
    return None if kind == "none" else LearnedBaseline(inputs, hidden_dim if kind == "network" else 0, scale)
