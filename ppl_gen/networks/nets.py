"""Encoders and decoders. Each maps [..., inputs] to [..., outputs] for any batch shape on the left."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require, require_choice

Activation = Literal["relu", "tanh", "softplus", "sigmoid", "elu", "gelu", "silu", "leaky-relu"]
Network = Literal["mlp", "conv"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky-relu": nn.LeakyReLU,
}


def activation(name: str) -> nn.Module:
    """The activation of that name.

    >>> activation("leaky-relu")
    LeakyReLU(negative_slope=0.01)

    :raises BadInput: for an unknown name.
    """
    require_choice("activation", name, Activation)
    return ACTIVATIONS[name]()


@cache
def _products_of_bfloat16() -> bool:
    """True if this processor multiplies bfloat16 numbers faster than float32 numbers by instructions of AVX-512, which
    torch does not use for float32 matrices. It does use those of AMX."""
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(has.get("avx512_bf16") and not has.get("amx_bf16"))


class Linear(nn.Linear):
    """`nn.Linear` that multiplies in bfloat16 on more processors than torch does, where
    `torch.set_float32_matmul_precision("medium")` allows it. Inputs and weights are rounded to bfloat16. The sums of
    their products are made in float32 and rounded to bfloat16, and so are the gradients. The bias is not rounded.

    >>> Linear(3, 2)(torch.ones(4, 3)).shape
    torch.Size([4, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        if (
            torch.get_float32_matmul_precision() != "medium"
            or x.dtype != torch.float32
            or x.device.type != "cpu"
            or not _products_of_bfloat16()
        ):
            return super().forward(x)
        product = (x.bfloat16() @ self.weight.bfloat16().T).float()
        return product if self.bias is None else product.add_(self.bias)


def draw_weights(net: nn.Module, scale: float) -> None:
    """Draw the weights of every layer from N(0, scale^2), and set its bias to 0.

    :param scale: standard deviation, at least 0.
    """
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.normal_(0.0, scale)
                if layer.bias is not None:
                    layer.bias.zero_()


def mlp(sizes: Sequence[int], activation_name: str) -> nn.Sequential:
    """Linear layers of the given sizes, input and output included, with the activation between them.

    >>> mlp([4, 3, 2], "tanh")
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Tanh()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [Linear(inputs, outputs), activation(activation_name)]
    return nn.Sequential(*layers[:-1])


class ConvEncoder(nn.Module):
    """Convolutions with stride 2 over an image of any size, then linear layers: [..., data_dim] to [..., outputs].

    >>> encoder = ConvEncoder((9, 7), channels=[4, 8], hidden_dims=[20], outputs=3, activation_name="relu")
    >>> encoder.sizes  # of the image and after each convolution: (channels, height, width)
    [(1, 9, 7), (4, 5, 4), (8, 3, 2)]
    >>> encoder(torch.rand(5, 63)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        channels: Sequence[int],
        hidden_dims: Sequence[int],
        outputs: int,
        activation_name: str,
    ):
        super().__init__()
        self.sizes = _pyramid(data_shape, channels)
        layers: list[nn.Module] = []
        for (inputs, *_), (features, *_) in pairwise(self.sizes):
            layers += [nn.Conv2d(inputs, features, 3, stride=2, padding=1), activation(activation_name)]
        self.convolutions = nn.Sequential(*layers)
        self.head = mlp([math.prod(self.sizes[-1]), *hidden_dims, outputs], activation_name)

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolutions(x.reshape(-1, *self.sizes[0]))
        return self.head(features.flatten(1)).reshape(*x.shape[:-1], -1)


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`: [..., inputs] to [..., data_dim], with a bias for each pixel.

    >>> decoder = ConvDecoder((9, 7), channels=[4, 8], hidden_dims=[20], inputs=3, activation_name="relu")
    >>> decoder.sizes
    [(8, 3, 2), (4, 5, 4), (1, 9, 7)]
    >>> decoder(torch.rand(5, 3)).shape
    torch.Size([5, 63])
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        channels: Sequence[int],
        hidden_dims: Sequence[int],
        inputs: int,
        activation_name: str,
    ):
        super().__init__()
        self.sizes = _pyramid(data_shape, channels)[::-1]
        self.head = mlp([inputs, *hidden_dims, math.prod(self.sizes[0])], activation_name)
        layers: list[nn.Module] = []
        for (features, *small), (outputs, *large) in pairwise(self.sizes):
            # A transposed convolution with stride 2 makes 2n - 1 pixels of n. The output padding adds the last row or
            # column where the size is even.
            height, width = (big - (2 * little - 1) for little, big in zip(small, large, strict=True))
            layers += [
                activation(activation_name),
                nn.ConvTranspose2d(features, outputs, 3, stride=2, padding=1, output_padding=(height, width)),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(math.prod(self.sizes[-1])))

    def forward(self, z: Tensor) -> Tensor:
        features = self.head(z).reshape(-1, *self.sizes[0])
        return self.convolutions(features).reshape(*z.shape[:-1], -1) + self.bias


def _pyramid(data_shape: tuple[int, ...], channels: Sequence[int]) -> list[tuple[int, ...]]:
    """(channels, height, width) of the image, and after each convolution with stride 2."""
    require(len(data_shape) in (2, 3), "network", "conv", f"images must be [height, width], these are {data_shape}")
    require(len(channels) > 0 and min(channels) > 0, "channels", channels, "one number of at least 1 per convolution")
    sizes = [tuple(data_shape) if len(data_shape) == 3 else (1, *data_shape)]
    for features in channels:
        sizes.append((features, *((side + 1) // 2 for side in sizes[-1][1:])))
    return sizes


def encoder(
    data_shape: tuple[int, ...],
    outputs: int,
    *,
    hidden_dims: Sequence[int],
    activation_name: str,
    network: str,
    channels: Sequence[int],
) -> nn.Module:
    """A network from images [..., data_dim] to [..., outputs]."""
    require_choice("network", network, Network)
    if network == "conv":
        return ConvEncoder(data_shape, channels, hidden_dims, outputs, activation_name)
    return mlp([math.prod(data_shape), *hidden_dims, outputs], activation_name)


class EncoderOptions(TypedDict, total=False):
    """Options of an encoder. An option that is left out, or None, is taken from the model, so that encoder and decoder
    mirror each other.

    :param hidden_dims: Units of the encoder's hidden layers. By default the model's.
    :param activation: Nonlinearity between layers. By default the model's.
    :param network: Network of the encoder. mlp: linear layers. conv: stride-2 convolutions before the linear layers. By
        default the model's.
    :param channels: Features of each convolution, for a conv network. By default the model's.
    """

    hidden_dims: tuple[int, ...] | None
    activation: Activation | None
    network: Network | None
    channels: tuple[int, ...] | None


def mirrored_encoder(
    model: nn.Module, data_shape: tuple[int, ...], outputs: int, **options: Unpack[EncoderOptions]
) -> nn.Module:
    """The encoder of a guide for this model, from images [..., data_dim] to [..., outputs].

    >>> from ppl_gen.models.vae import VAE
    >>> model = VAE((2, 2), latent_dim=1, hidden_dims=(3,), activation="tanh")
    >>> mirrored_encoder(model, (2, 2), 2, hidden_dims=(5, 3))
    Sequential(
      (0): Linear(in_features=4, out_features=5, bias=True)
      (1): Tanh()
      (2): Linear(in_features=5, out_features=3, bias=True)
      (3): Tanh()
      (4): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    hidden_dims = options.get("hidden_dims")
    if hidden_dims is None:
        hidden_dims = getattr(model, "hidden_dims", (512,))
    require(min(hidden_dims, default=1) >= 1, "guide.hidden_dims", hidden_dims, "every layer needs at least 1 unit")
    return encoder(
        data_shape,
        outputs,
        hidden_dims=hidden_dims,
        activation_name=options.get("activation") or str(getattr(model, "activation", "relu")),
        network=options.get("network") or str(getattr(model, "network", "mlp")),
        channels=options.get("channels") or tuple(getattr(model, "channels", (32, 64))),
    )


def pixel_dropout(probability: float) -> nn.Dropout:
    """Dropout of pixels at an encoder's input, in training."""
    require(0 <= probability < 1, "guide.input_dropout", probability, "must be in [0, 1)")
    return nn.Dropout(probability)


def decoder(
    data_shape: tuple[int, ...],
    inputs: int,
    *,
    hidden_dims: Sequence[int],
    activation_name: str,
    network: str,
    channels: Sequence[int],
) -> tuple[nn.Module, nn.Module, nn.Parameter]:
    """A network from [..., inputs] to [..., data_dim], the mirror image of `encoder`. Also its output layer, and the
    bias [data_dim] of that."""
    require_choice("network", network, Network)
    if network == "conv":
        conv = ConvDecoder(data_shape, channels, hidden_dims[::-1], inputs, activation_name)
        return conv, conv.convolutions[-1], conv.bias
    body = mlp([inputs, *hidden_dims[::-1], math.prod(data_shape)], activation_name)
    last = body[-1]
    assert isinstance(last, nn.Linear)
    return body, last, last.bias
