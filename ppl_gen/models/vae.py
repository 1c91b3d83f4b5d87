"""The variational autoencoder."""

import math
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require, require_choice
from ppl_gen.networks.distributions import BernoulliVector, ContinuousBernoulli
from ppl_gen.networks.levels import level_output
from ppl_gen.networks.nets import Activation, Network, decoder

Likelihood = Literal["bernoulli", "continuous-bernoulli", "normal", "categorical", "discretized-logistic-mixture"]


class VAE(nn.Module):
    """p(z) = N(0, I) and p(x | z) = prod_d Bernoulli(x_d; decoder(z)_d): Kingma and Welling (2014), appendix C.

    >>> model = VAE((8, 8), latent_dim=2, hidden_dims=(50,))
    >>> model.decoder
    Sequential(
      (0): Linear(in_features=2, out_features=50, bias=True)
      (1): ReLU()
      (2): Linear(in_features=50, out_features=64, bias=True)
    )
    >>> model.model(n=3).shape
    torch.Size([3, 64])

    :param data_mean: mean training pixel [data_dim]; the output bias starts at its log-odds.
    :param data_examples: training images [images, data_dim]; the output bias of a likelihood of grey levels starts at
        their frequencies, or at their means and standard deviations.
    :param data_levels: number of grey levels of a pixel; None for binary pixels and for real numbers.
    :param latent_dim: Number of latent units.
    :param hidden_dims: Units of the encoder's hidden layers. The decoder has the same layers in reverse order.
    :param activation: Nonlinearity between layers.
    :param network: Networks of encoder and decoder. mlp: linear layers. conv: stride-2 convolutions between the image
        and the linear layers.
    :param channels: Features of each convolution, for --network conv.
    :param likelihood: Distribution of a pixel given z. bernoulli: for binary pixels. Densities of grey pixels, which
        need --binarization none or dequantized: continuous-bernoulli, of Loaiza-Ganem and Cunningham (2019); normal,
        with one learned standard deviation for all pixels. Probabilities of the levels of 8-bit pixels, which need
        --binarization none: categorical, a probability for each level; discretized-logistic-mixture, of Salimans et
        al. (2017), in which the channels of a color image depend on each other.
    :param num_logistics: Number of logistic distributions in the mixture, for --likelihood
        discretized-logistic-mixture.
    :param init_output_bias: Start the output bias at the log-odds of the mean training pixel (for normal: at the mean
        training pixel; for likelihoods of levels: at the training pixels' distribution). Otherwise the whole output
        layer starts at 0: every pixel has probability 1/2.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        data_mean: Tensor | None = None,
        data_examples: Tensor | None = None,
        data_levels: int | None = None,
        *,
        latent_dim: int = 20,
        hidden_dims: tuple[int, ...] = (512,),
        activation: Activation = "relu",
        network: Network = "mlp",
        channels: tuple[int, ...] = (32, 64),
        likelihood: Likelihood = "bernoulli",
        num_logistics: int = 5,
        init_output_bias: bool = True,
    ):
        require(latent_dim >= 1, "latent_dim", latent_dim, "must be at least 1")
        require(min(hidden_dims, default=1) >= 1, "hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        require(num_logistics >= 1, "num_logistics", num_logistics, "must be at least 1")
        require_choice("likelihood", likelihood, Likelihood)
        super().__init__()
        self.hidden_dims, self.activation = hidden_dims, activation
        self.network, self.channels, self.family = network, channels, likelihood
        self.levels = level_output(likelihood, data_shape, data_levels, num_logistics)
        self.decoder, output_layer, bias = decoder(
            data_shape if self.levels is None else self.levels.shape,
            latent_dim,
            hidden_dims=hidden_dims,
            activation_name=activation,
            network=network,
            channels=channels,
        )
        with torch.no_grad():
            if not init_output_bias:
                for parameter in output_layer.parameters():
                    parameter.zero_()
            elif data_mean is not None and self.levels is None:
                bias.copy_(data_mean if likelihood == "normal" else torch.logit(data_mean))
            if self.levels is not None:
                bias.copy_(self.levels.start(data_examples if init_output_bias else None))
        if likelihood == "normal":
            self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_dim), persistent=False)

    @property
    def numbers_per_pixel(self) -> int:
        """Numbers of the decoder's output for each pixel."""
        return 1 if self.levels is None else math.prod(self.levels.shape) // math.prod(self.levels.data_shape)

    def prior(self) -> dist.Distribution:
        """p(z), event [latent_dim]."""
        return dist.Normal(self.prior_loc, self.prior_scale).to_event(1)

    def likelihood(self, z: Tensor) -> dist.Distribution:
        """p(x | z) for z [..., latent_dim], event [data_dim]."""
        output = self.decoder(z)
        if self.levels is not None:
            return self.levels.distribution(output)
        if self.family == "normal":
            return dist.Normal(output, self.log_scale.exp()).to_event(1)
        if self.family == "continuous-bernoulli":
            return ContinuousBernoulli(logits=output).to_event(1)
        return BernoulliVector(output)

    def model(self, x: Tensor | None = None, *, n: int = 1) -> Tensor:
        """p(x, z) over a plate of images x [images, data_dim]. Without x, n images are drawn."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)
