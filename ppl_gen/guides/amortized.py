"""What the amortized guides of one continuous latent have in common."""

from abc import ABC, abstractmethod

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_gen.errors import BadInput, require
from ppl_gen.nets import Activation, Network, encoder


class Amortized(nn.Module, ABC):
    """q(z | x) = posterior(encode(x)): one network from an image to a context, and a distribution made of the context.
    A family is `context_dim` and `posterior`; if it has options, a constructor that passes the others on.

    Options left at None are the model's own, so that encoder and decoder mirror each other.

    :param data_shape: shape of one image.
    :param latent_dim: size of z.
    :param latent_name: name of the model's latent site.
    :param model: the model whose posterior this approximates.
    :param hidden_dims: units of each hidden layer of the encoder.
    :param activation: nonlinearity between layers.
    :param network: mlp, or conv: stride-2 convolutions before the hidden layers.
    :param channels: features of each convolution, for the conv network.
    :param input_dropout: probability of dropping a pixel at the encoder's input, in training.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        latent_dim: int,
        latent_name: str | None,
        model: nn.Module,
        *,
        hidden_dims: tuple[int, ...] | None = None,
        activation: Activation | None = None,
        network: Network | None = None,
        channels: tuple[int, ...] | None = None,
        input_dropout: float = 0.0,
    ):
        require(0 <= input_dropout < 1, "guide.input_dropout", input_dropout, "must be in [0, 1)")
        if latent_name is None:
            name, other = type(self).__name__, type(model).__name__
            raise BadInput(f"{name} is a guide of one latent site, {other} has several")
        super().__init__()
        self.latent_dim, self.latent_name = latent_dim, latent_name
        hidden_dims = getattr(model, "hidden_dims", (512,)) if hidden_dims is None else hidden_dims
        require(min(hidden_dims, default=1) >= 1, "guide.hidden_dims", hidden_dims, "every layer needs at least 1 unit")
        self.dropout = nn.Dropout(input_dropout)
        self.encoder = encoder(
            data_shape,
            self.context_dim(),
            hidden_dims=hidden_dims,
            activation_name=activation or str(getattr(model, "activation", "relu")),
            network=network or str(getattr(model, "network", "mlp")),
            channels=channels or tuple(getattr(model, "channels", (32, 64))),
        )

    @abstractmethod
    def context_dim(self) -> int:
        """Outputs of the encoder."""

    def encode(self, x: Tensor) -> Tensor:
        """Context [images, context_dim] of images [images, data_dim]."""
        return self.encoder(self.dropout(x))

    @abstractmethod
    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        """q(z | context), event [latent_dim]."""

    def guide(self, x: Tensor) -> None:
        """q(z | x) over a plate of images [images, data_dim]."""
        with pyro.plate("data", len(x)):
            pyro.sample(self.latent_name, self.posterior(self.encode(x)))
