"""Distributions of images with grey levels, such as 8-bit images: probabilities of whole numbers, not densities.

A pixel x has one of L levels, x = k / (L - 1) for k in 0..L-1. `log_prob` maps x back to k exactly, and is log P(k) in
nats. Both distributions are vectors over all pixels of an image. Under a plate, `expand` is a view.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from ppl_gen.core.errors import BadInput
from ppl_gen.networks.distributions import expanded

__all__ = [
    "CategoricalLevels",
    "DiscretizedLogisticMixture",
    "LevelOutput",
    "LevelVector",
    "Levels",
    "level_output",
]

_ROUNDING = 1e-3  # of a level, by which k / (L - 1) in float32 may differ from it
_LOG_SCALES = (-7.0, 7.0)  # of logistic distributions, for pixels in [-1, 1]: the lower limit is that of PixelCNN++


class Levels(constraints.Constraint):
    """Numbers k / (num_levels - 1), for k in 0..num_levels-1.

    >>> Levels(256).check(torch.tensor([0.0, 3 / 255, 0.5]))
    tensor([ True,  True, False])
    """

    is_discrete = True

    def __init__(self, num_levels: int):
        self.num_levels = num_levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """True where a value is one of the levels."""
        level = value * (self.num_levels - 1)
        return (value >= 0) & (value <= 1) & ((level - level.round()).abs() < _ROUNDING)

    def __repr__(self) -> str:
        return f"Levels({self.num_levels})"


class LevelVector(dist.TorchDistribution):
    """Base of distributions of all pixels of an image, whose parameters have the pixels as their last dimension.

    >>> CategoricalLevels(torch.zeros(2, 256, 4)).event_shape  # two images
    torch.Size([4])

    :param parameters: [..., numbers of a position, positions].
    :param num_levels: L, at least 2.
    :param channels: pixels at each position: an event is [channels * positions], channel by channel.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, parameters: Tensor, num_levels: int, channels: int = 1, validate_args: bool | None = None):
        self.parameters, self.num_levels, self.channels = parameters, num_levels, channels
        self.visible: Tensor | None = None
        event_shape = torch.Size([channels * parameters.shape[-1]])
        super().__init__(parameters.shape[:-2], event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(Levels(self.num_levels), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LevelVector":
        return expanded(self, batch_shape)

    def observed(self, pixels: Tensor) -> "LevelVector":
        """The distribution of the pixels where a mask is true, bool [..., pixels], which may differ between images.

        :raises BadInput: for channels that are not independent given z.
        """
        if self.channels > 1:
            raise BadInput(
                "missing pixels must be independent of the others given z: the channels of this likelihood depend on "
                "each other; use --likelihood categorical"
            )
        new = copy.copy(self.expand(broadcast_shape(self.batch_shape, pixels.shape[:-1])))
        new.visible = pixels if self.visible is None else self.visible & pixels
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value) in nats, [...], for value [..., pixels]."""
        if self._validate_args and value.numel():  # torch cannot check what is empty
            self._validate_sample(value)
        levels = (value * (self.num_levels - 1)).round().clamp(0, self.num_levels - 1)
        terms = self._log_terms(levels.nan_to_num(0))
        if self.visible is not None:
            terms = torch.where(self.visible, terms, 0.0)
        # A pixel that is NaN has no level. The difference is NaN there, and 0 elsewhere.
        result = terms.sum(-1) + (value - value).sum(-1)
        return result.expand(broadcast_shape(result.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = (*sample_shape, *self.batch_shape, *self.parameters.shape[-2:])
            levels = self._sample_levels(self.parameters.expand(shape))
            # Divided by a tensor, as the pixels of a data set are: the same level is the same number, on every device.
            return levels / torch.full((), self.num_levels - 1.0, dtype=levels.dtype, device=levels.device)

    def _log_terms(self, levels: Tensor) -> Tensor:
        """log P of levels [..., pixels], as terms [..., positions] whose sum it is."""
        raise NotImplementedError

    def _sample_levels(self, parameters: Tensor) -> Tensor:
        """Levels [..., pixels] for parameters that are expanded."""
        raise NotImplementedError


class CategoricalLevels(LevelVector):
    """Independent pixels with a probability for each level: P(k) = softmax(logits)_k.

    >>> fair = CategoricalLevels(torch.zeros(256, 4))  # an image of 4 pixels
    >>> fair.log_prob(torch.tensor([0.0, 0.2, 0.6, 1.0])) / math.log(2)
    tensor(-32.)

    :param logits: [..., L, pixels].
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        super().__init__(logits, logits.shape[-2], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.num_levels, dtype=self.parameters.dtype, device=self.parameters.device)
        means = torch.einsum("l,...ld->...d", levels / (self.num_levels - 1), self.parameters.softmax(-2))
        return means.expand(self.batch_shape + self.event_shape)

    def _log_terms(self, levels: Tensor) -> Tensor:
        log_p = self.parameters.log_softmax(-2)  # with its gradient, faster than a difference of two terms
        batch = broadcast_shape(log_p.shape[:-2], levels.shape[:-1])
        index = levels.long().expand(*batch, levels.shape[-1]).unsqueeze(-2)
        return log_p.expand(*batch, *log_p.shape[-2:]).gather(-2, index).squeeze(-2)

    def _sample_levels(self, parameters: Tensor) -> Tensor:
        return _choose(parameters).to(parameters.dtype)


class _Components(NamedTuple):
    """Numbers of the K components of a discretized logistic mixture. For each position there are as many."""

    logits: Tensor
    """Log-odds of the components, [..., K, positions]."""
    loc: Tensor
    """Means, [..., channels, K, positions]."""
    log_scale: Tensor
    """Log-scales, [..., channels, K, positions]."""
    coefficients: Tensor
    """Coefficients of pairs of channels, [..., pairs, K, positions]."""

    def of_channel(self, channel: int, before: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and log-scale [..., K, positions] of a channel, given pixels of the channels before it on [-1, 1]."""
        first, mean = channel * (channel - 1) // 2, self.loc[..., channel, :, :]
        for number, value in enumerate(before):
            mean = mean + self.coefficients[..., first + number, :, :] * value
        return mean, self.log_scale[..., channel, :, :]

    def chosen(self) -> "_Components":
        """One component at each position, drawn by the log-odds, as if it were the only one."""
        index = _choose(self.logits)[..., None, None, :]
        others = (part.gather(-2, index.expand(*part.shape[:-2], 1, -1)) for part in self[1:])
        return _Components(torch.zeros_like(self.logits[..., :1, :]), *others)


class DiscretizedLogisticMixture(LevelVector):
    """Mixture of K logistic distributions at each position, rounded to levels: Salimans et al. (2017), equations 1-3.

    With pixels on the scale [-1, 1], of which a level has the width h = 2 / (L - 1), a component has

        P(k) = sigmoid((x + h/2 - m) / s) - sigmoid((x - h/2 - m) / s),    x = h k - 1,

    where the lowest level takes all below it and the highest all above it, so that the sum over levels is 1. The
    channels of a color image share the component. The mean of a channel depends on the channels before it: of green, m
    + a red; of blue, m + b red + c green. As in the authors' code, a, b and c are in (-1, 1).

    The difference of two sigmoids is computed as a product without cancellation: for u > v, sigmoid(u) - sigmoid(v) =
    sigmoid(u) sigmoid(-v) (1 - exp(v - u)).

    >>> grey = DiscretizedLogisticMixture(torch.zeros(3, 1, dtype=torch.float64), num_levels=4)  # one component
    >>> grey.log_prob(torch.tensor([[0.0], [1 / 3], [2 / 3], [1.0]])).exp()
    tensor([0.3392, 0.1608, 0.1608, 0.3392], dtype=torch.float64)
    >>> DiscretizedLogisticMixture(torch.zeros(50, 4), num_levels=256, channels=3).sample().shape  # 5 components
    torch.Size([12])

    :param parameters: [..., K * (1 + 2 C + C (C - 1) / 2), positions] for C channels, component by component in each of
        these groups: log-odds of the components; means of each channel; log-scales of each channel, limited to [-7, 7];
        coefficients of pairs of channels, before a tanh.
    """

    def __init__(self, parameters: Tensor, num_levels: int, channels: int = 1, validate_args: bool | None = None):
        super().__init__(parameters, num_levels, channels, validate_args)
        if parameters.shape[-2] % self.numbers_per_component(channels):
            raise ValueError(f"{parameters.shape[-2]} numbers of a position are not those of whole components")

    @staticmethod
    def numbers_per_component(channels: int) -> int:
        """Numbers of a position for each component: 3 of grey images, 10 of color images."""
        return 1 + 2 * channels + channels * (channels - 1) // 2

    @property
    def mean(self) -> Tensor:
        """E[x], exact for the first channel. For another one it is approximate: it is computed at the mean of the
        channels before it, and was off by up to 0.07 where the scales s are large. Pictures show it."""
        parts = self._split(self.parameters)
        weights, expected, result = parts.logits.softmax(-2), list[Tensor](), list[Tensor]()
        for channel in range(self.channels):
            loc, log_scale = parts.of_channel(channel, expected)
            edges = ((level - 0.5) * 2 / (self.num_levels - 1) - 1 for level in range(1, self.num_levels))
            share = torch.zeros_like(loc)
            for edge in edges:  # E[k] = sum over k >= 1 of P(level >= k)
                share += ((loc - edge) * (-log_scale).exp()).sigmoid()
            share /= self.num_levels - 1
            expected.append(2 * share - 1)
            result.append((weights * share).sum(-2))
        return torch.cat(result, -1).expand(self.batch_shape + self.event_shape)

    def _split(self, parameters: Tensor) -> _Components:
        """The numbers of the components."""
        channels = self.channels
        size = parameters.shape[-2] // self.numbers_per_component(channels)
        counts = (1, channels, channels, channels * (channels - 1) // 2)
        logits, *others = parameters.split([size * count for count in counts], -2)
        loc, log_scale, coefficients = (
            part.unflatten(-2, (count, size)) for part, count in zip(others, counts[1:], strict=True)
        )
        return _Components(logits, loc, log_scale.clamp(*_LOG_SCALES), coefficients.tanh())

    def _log_terms(self, levels: Tensor) -> Tensor:
        parts = self._split(self.parameters)
        half = 1 / (self.num_levels - 1)  # of the width of a level
        levels = levels.unflatten(-1, (self.channels, -1)).unsqueeze(-2)  # [..., channels, 1, positions]
        pixels = 2 * half * levels - 1
        total, before = parts.logits.log_softmax(-2), list[Tensor]()
        for channel in range(self.channels):
            loc, log_scale = parts.of_channel(channel, before)
            x, level = pixels[..., channel, :, :], levels[..., channel, :, :]
            precision = (-log_scale).exp()
            center, radius = (x - loc) * precision, half * precision
            above = F.logsigmoid(center + radius).masked_fill(level == self.num_levels - 1, 0.0)
            below = F.logsigmoid(radius - center).masked_fill(level == 0, 0.0)
            inner = (level > 0) & (level < self.num_levels - 1)
            total = total + above + below + torch.where(inner, (-torch.expm1(-2 * radius)).log(), 0.0)
            before.append(x)
        return total.logsumexp(-2)

    def _sample_levels(self, parameters: Tensor) -> Tensor:
        parts = self._split(parameters).chosen()
        before, drawn = list[Tensor](), list[Tensor]()
        for channel in range(self.channels):
            loc, log_scale = parts.of_channel(channel, before)
            uniform = torch.rand(loc.shape, dtype=loc.dtype, device=loc.device).clamp_(min=2.0**-25)
            pixels = loc + log_scale.exp() * (uniform.log() - torch.log1p(-uniform))
            level = ((pixels + 1) * (self.num_levels - 1) / 2).round().clamp(0, self.num_levels - 1)
            before.append(2 * level / (self.num_levels - 1) - 1)
            drawn.append(level.squeeze(-2))
        return torch.cat(drawn, -1)


def _choose(logits: Tensor) -> Tensor:
    """Draw an index of the next-to-last dimension by its log-odds [..., choices, positions]: [..., positions]. The
    largest sum of log-odds and Gumbel noise is a draw of a categorical distribution."""
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-2)


# From a decoder ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LevelOutput:
    """The output of a decoder as a distribution of levels.

    >>> output = LevelOutput((3, 8, 8), num_levels=256, num_logistics=5)
    >>> output.shape, output.distribution(torch.zeros(2, 50 * 64)).sample().shape
    ((50, 8, 8), torch.Size([2, 192]))
    """

    data_shape: tuple[int, ...]
    """Shape of an image: [height, width], [channels, height, width] or [pixels]."""
    num_levels: int
    num_logistics: int | None = None
    """Components of a discretized logistic mixture; None for a categorical distribution."""

    @property
    def channels(self) -> int:
        """Channels that depend on each other."""
        return self.data_shape[0] if self.num_logistics is not None and len(self.data_shape) == 3 else 1

    @property
    def numbers(self) -> int:
        """Numbers of a position."""
        if self.num_logistics is None:
            return self.num_levels
        return self.num_logistics * DiscretizedLogisticMixture.numbers_per_component(self.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a decoder's output, which a decoder makes as if it were an image of that shape."""
        *before, height, width = (1, *self.data_shape) if len(self.data_shape) == 1 else self.data_shape
        features = self.numbers * math.prod(before) // self.channels
        return (features * width,) if len(self.data_shape) == 1 else (features, height, width)

    def distribution(self, output: Tensor) -> LevelVector:
        """p(x | z) from the output [..., numbers * positions] of a decoder."""
        parameters = output.unflatten(-1, (self.numbers, -1))
        if self.num_logistics is None:
            return CategoricalLevels(parameters)
        return DiscretizedLogisticMixture(parameters, self.num_levels, self.channels)

    def start(self, examples: Tensor | None) -> Tensor:
        """Output that is near the distribution of each pixel, [numbers * positions].

        :param examples: images [images, pixels]. Without them every level of a categorical distribution has the same
            probability, and the components of a mixture are spread over the scale.
        """
        if self.num_logistics is None:
            if examples is None:
                return torch.zeros(math.prod(self.shape))
            levels = (examples * (self.num_levels - 1)).round()
            counts = torch.stack([(levels == level).sum(0) for level in range(self.num_levels)])
            return (counts + 1 / self.num_levels).log().flatten()
        loc, scale = torch.zeros(math.prod(self.data_shape)), torch.ones(math.prod(self.data_shape))
        if examples is not None:
            loc, scale = 2 * examples.mean(0) - 1, (2 * examples.std(0)).clamp(min=1 / self.num_levels)
        size = self.num_logistics
        spread = ((2 * torch.arange(size) + 1) / size - 1)[:, None]
        loc, scale = (part.reshape(self.channels, 1, -1) for part in (loc, scale))
        groups = [loc + spread * scale, (scale / 2).log().expand(-1, size, -1)]
        zeros = torch.zeros(1, size, loc.shape[-1])
        pairs = self.channels * (self.channels - 1) // 2
        return torch.cat([zeros, *groups, zeros.expand(pairs, -1, -1)]).flatten()


def level_output(
    likelihood: str, data_shape: tuple[int, ...], num_levels: int | None, num_logistics: int
) -> LevelOutput | None:
    """The output of a decoder for a likelihood of levels; None for another likelihood.

    :param likelihood: `categorical` or `discretized-logistic-mixture`.
    :param num_levels: number of grey levels of a pixel; None for binary pixels and for real numbers.
    :raises BadInput: if the pixels have no levels.
    """
    if likelihood not in ("categorical", "discretized-logistic-mixture"):
        return None
    if num_levels is None:
        raise BadInput(
            f"--likelihood {likelihood}: needs pixels with levels, such as bytes; use --binarization none, and images "
            "of whole numbers"
        )
    return LevelOutput(data_shape, num_levels, num_logistics if likelihood != "categorical" else None)
