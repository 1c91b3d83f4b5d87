"""Data for the explorer of a page, which shows E[x | z] for any z: the decoder in 8 bits, and the range of z.

`explorer.js` evaluates it. Decoders of more than `LIMIT` characters are left out.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.experiment.run_directory import Json
from ppl_gen.figures.canvas import is_color
from ppl_gen.networks.nets import ACTIVATIONS

LIMIT = 800_000
"""Largest number of characters that a decoder may have, in base64."""
_POINTS, _NUMBERS, _DRAWS, _RANGE = 1000, 100_000, 200, 2000


def _continuous_bernoulli(logits: Tensor, _: float) -> Tensor:
    """Mean of a continuous Bernoulli (Loaiza-Ganem and Cunningham 2019, equation 8). Near logits of 0, where two large
    terms would cancel, it is computed by a series."""
    near = logits.abs() < 1e-3
    other = torch.where(near, 1.0, logits)
    return torch.where(near, 0.5 + logits / 12, -1 / torch.expm1(-other) - 1 / other)


_ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, _: x,
    "relu": lambda x, _: F.relu(x),
    "tanh": lambda x, _: x.tanh(),
    "softplus": lambda x, _: F.softplus(x),
    "sigmoid": lambda x, _: x.sigmoid(),
    "elu": lambda x, slope: F.elu(x, slope),
    "gelu": lambda x, _: F.gelu(x),
    "silu": lambda x, _: F.silu(x),
    "leaky-relu": lambda x, slope: F.leaky_relu(x, slope),
    "continuous-bernoulli": _continuous_bernoulli,
}
_NAMES = {module: name for name, module in ACTIVATIONS.items()}
# Functions that turn a decoder's output into E[x | z], with the tolerance of the comparison with the model's own mean.
# torch's mean of a continuous Bernoulli is off by up to 0.0034 in float32, near p = 1/2.
_LINKS = {"identity": 1e-4, "sigmoid": 1e-4, "continuous-bernoulli": 4e-3}


@dataclass(frozen=True)
class Layer:
    """activation(weight @ input + bias), in float64.

    :param weight: weight [outputs, inputs].
    :param bias: bias [outputs].
    :param slope: slope of the activation below 0, if it has one.
    """

    weight: Tensor
    bias: Tensor
    activation: str = "identity"
    slope: float = 0.0


def mean_image(layers: Sequence[Layer], z: Tensor) -> Tensor:
    """E[x | z] in float64, [n, pixels], for z [n, size]."""
    values = z.double().cpu()
    for layer in layers:
        values = _ACTIVATIONS[layer.activation](F.linear(values, layer.weight, layer.bias), layer.slope)
    return values


def find_decoder(model: Any, z: Tensor) -> list[Layer] | None:
    """Layers that compute a model's E[x | z]: those of one of its `nn.Sequential` modules, or a single layer for a
    model that is affine in z. None if there are none. Candidates are accepted if they agree with `likelihood(z).mean`
    at z [n, size]."""
    exact = model.likelihood(z).mean.double().cpu()
    chains = [_chain(module) for module in model.modules() if isinstance(module, nn.Sequential)]
    for layers in (*chains, [_affine(model, z)]):
        if not layers or (layers[0].weight.shape[1], len(layers[-1].bias)) != (z.shape[1], exact.shape[1]):
            continue
        last = layers[-1]
        for link in _LINKS if last.activation == "identity" else (last.activation,):
            linked = [*layers[:-1], replace(last, activation=link)]
            if float((mean_image(linked, z) - exact).abs().max()) < _LINKS.get(link, 1e-4):
                return linked
    return None


def _chain(modules: nn.Sequential) -> list[Layer] | None:
    """Linear layers, each merged with the batch normalization (in eval mode) and the activation that follow it. None if
    there is a module of another kind."""
    layers: list[Layer] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            weight = module.weight.double().cpu()
            layers.append(Layer(weight, torch.zeros(len(weight)).double() + _values(module.bias, 0.0)))
        elif isinstance(module, nn.Dropout | nn.Identity):
            continue
        elif not layers or layers[-1].activation != "identity":
            return None
        elif isinstance(module, nn.BatchNorm1d) and module.running_var is not None:
            scale = _values(module.weight, 1.0) / (_values(module.running_var, 1.0) + module.eps).sqrt()
            weight, bias = layers[-1].weight * scale[:, None], (layers[-1].bias - _values(module.running_mean, 0.0))
            layers[-1] = Layer(weight, bias * scale + _values(module.bias, 0.0))
        elif type(module) in _NAMES:
            slope = float(getattr(module, "negative_slope", getattr(module, "alpha", 0.0)))
            layers[-1] = replace(layers[-1], activation=_NAMES[type(module)], slope=slope)
        else:
            return None
    return layers


def _values(parameter: Tensor | None, default: float) -> Tensor:
    return torch.tensor(default).double() if parameter is None else parameter.double().cpu()


def _affine(model: Any, z: Tensor) -> Layer:
    """The layer of a model that is affine in z, read off at 0 and at the unit vectors."""
    corners = torch.cat([torch.zeros_like(z[:1]), torch.eye(z.shape[1]).to(z)])
    bias, *rows = model.likelihood(corners).mean.double().cpu()
    return Layer((torch.stack(rows) - bias).T, bias)


# In a page -----------------------------------------------------------------------------------------------------


def explorer(
    model: Any, shape: tuple[int, ...], order: Sequence[int], means: Tensor | None, labels: Tensor | None
) -> Json | None:
    """The content of `explorer.json`; None for a decoder of another kind, and for one that is too large.

    :param model: a model with `prior()` and `likelihood(z)`, in eval mode.
    :param shape: shape of an image. Three channels are shown in color; of another number, the first is shown.
    :param order: all units of z, in the order in which they are shown.
    :param means: posterior means of test images [n, size]; None if there is no posterior.
    :param labels: labels of these images [n]; None if they have none.
    """
    prior = model.prior().sample((_RANGE,))
    layers = find_decoder(model, prior[:64])
    if layers is None:
        return None
    height, width = shape[-2:] if len(shape) > 1 else (1, *shape)
    shown = slice(height * width * (3 if is_color(shape) else 1))
    layers[-1] = replace(layers[-1], weight=layers[-1].weight[shown], bias=layers[-1].bias[shown])
    written = [_written(layer) for layer in layers]
    if sum(len(each[key]) for each in written for key in ("codes", "scales", "bias")) > LIMIT:
        return None
    most = min(_POINTS, _NUMBERS // len(order))
    clouds = {"draws": _packed(prior[:_DRAWS].T)} | ({} if means is None else {"means": _packed(means[:most].T)})
    z = torch.cat([_unpacked(cloud).T for cloud in clouds.values()])
    reach = torch.cat([z, prior.double().cpu(), torch.zeros_like(z[:1])])
    exact, rounded = (mean_image(each, z).clamp(0, 1) for each in (layers, read_layers(written)))
    difference = 255 * (rounded - exact).abs()
    return {
        "height": height,
        "width": width,
        "order": list(order),
        "low": [math.floor(10 * low) / 10 for low in reach.amin(0).tolist()],
        "high": [math.ceil(10 * high) / 10 for high in reach.amax(0).tolist()],
        "layers": written,
        **clouds,
        "labels": None if means is None or labels is None else labels[:most].tolist(),
        "rounding": {"images": len(z), "largest": float(difference.max()), "mean": float(difference.mean())},
    }


def read_layers(written: Sequence[Json]) -> list[Layer]:
    """The layers of an `explorer.json`, with the rounding of 8 bits."""
    return [
        Layer(_unpacked(each), _floats(each["bias"]).double(), each["activation"], each["slope"]) for each in written
    ]


def _written(layer: Layer) -> Json:
    bias = _base64(layer.bias.float())
    return {**_packed(layer.weight), "bias": bias, "activation": layer.activation, "slope": layer.slope}


def _packed(rows: Tensor) -> dict[str, str]:
    """A matrix in 8 bits: codes of -127 to 127, and a scale for each row."""
    rows = rows.double().cpu()
    scales = (rows.abs().amax(1) / 127).float()
    codes = (rows / scales.double().clamp(min=1e-30).unsqueeze(1)).round().clamp(-127, 127)
    return {"codes": _base64(codes.to(torch.int8)), "scales": _base64(scales)}


def _unpacked(packed: Json) -> Tensor:
    scales = _floats(packed["scales"]).double()
    codes = torch.from_numpy(np.frombuffer(b64decode(packed["codes"]), np.int8).copy())
    return codes.double().reshape(len(scales), -1) * scales.unsqueeze(1)


def _floats(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(b64decode(text), "<f4").astype(np.float32))


def _base64(values: Tensor) -> str:
    array = values.contiguous().numpy()
    return b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
