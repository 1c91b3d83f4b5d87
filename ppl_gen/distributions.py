"""Distributions of binary vectors that are cheap to evaluate, under a plate and under enumeration.

Both are `dist.Bernoulli(logits=...).to_event(1)` with less to do. Pyro broadcasts a distribution's parameters to the
plate and to the enumerated states, and `Bernoulli.log_prob` then visits every state, image and pixel. Here `expand`
leaves the parameters as they are, and `log_prob` sums over pixels before it broadcasts.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

# Up to here a float32 matrix product of logits and pixels is as exact as the sum over pixels needs to be; beyond, terms
# that cancel are kept apart.
_LARGE_LOGIT = 50.0
_CHUNK_BYTES = (
    2**21
)  # of the logits of states that are in work at once: smaller ones wait for threads more than for memory
_FOLDS = 2  # beyond, what is left of the logarithms costs no more than the products
_MAX_UNITS = 30


class BernoulliVector(dist.TorchDistribution):
    """Independent Bernoulli pixels as one vector: `dist.Bernoulli(logits=logits).to_event(1)`.

    log p(x) = sum_d [x_d l_d - softplus(l_d)] = x . l - sum_d softplus(l_d). Where images and logits have the same
    batch shape, the terms are added pixel by pixel. Where they broadcast against each other, as K enumerated components
    do against N images, the first term is a matrix product and the second one number per row of logits: no array of
    components x images x pixels is made.

    `expand` is a view, so that a plate costs nothing. Values in (0, 1) are accepted unless validation is on, since
    course notes use grey values as targets; what results is a cross-entropy and no log-probability.

    :param logits: log-odds, [..., pixels].
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True
    sums_pixels_first = True
    """That `log_prob` makes no array of states x images x pixels."""

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self._logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def logits(self) -> Tensor:
        """Log-odds, [..., pixels]; without the batch dimensions that `expand` added."""
        return self._logits

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BernoulliVector":
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        torch.broadcast_shapes(self.batch_shape, batch_shape)  # an error for what cannot be
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch_shape
        return new

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid().expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    @property
    def num_states(self) -> int:
        """2^pixels, the number of vectors that `enumerate_support` lists."""
        return 2 ** self.event_shape[0]

    def select(self, pixels: Tensor) -> "BernoulliVector":
        """The distribution of some pixels: an index or a mask, [pixels]."""
        return BernoulliVector(self.logits[..., pixels], validate_args=False).expand(self.batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            mean = self.logits.sigmoid()
            # A quarter of the time of torch.bernoulli.
            uniform = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=mean.dtype, device=mean.device)
            return torch.lt(uniform, mean, out=uniform)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All binary vectors, [2^pixels, ..., pixels]; bit m of the index of a state is its pixel m.

        :raises NotImplementedError: for more than 30 pixels.
        """
        pixels = self.event_shape[0]
        if pixels > _MAX_UNITS:
            raise NotImplementedError(f"2^{pixels} states cannot be enumerated")
        states = binary_states(pixels, self._like().dtype, self._like().device)
        states = states.reshape(-1, *(1 for _ in self.batch_shape), pixels)
        return states.expand(-1, *self.batch_shape, -1) if expand else states

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats, [...], for value [..., pixels]."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        # Above the threshold softplus(l) is taken as l: beyond 40 that is exact in float64 too.
        softplus = F.softplus(logits, threshold=40)
        if torch.broadcast_shapes(value.shape, logits.shape) == logits.shape:
            result = softplus.addcmul_(value, logits, value=-1).sum(-1).neg()  # without another large array
        elif logits.detach().abs().amax() < _LARGE_LOGIT:
            result = _contract(value, logits) - softplus.sum(-1)
        else:  # x l - softplus(l) = -[x relu(-l) + (1 - x) relu(l) + log(1 + exp(-|l|))]: nothing large cancels
            small = F.softplus(-logits.abs(), threshold=40).sum(-1)
            result = -(_contract(value, F.relu(-logits)) + _contract(1 - value, F.relu(logits)) + small)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def _like(self) -> Tensor:
        """A tensor of this distribution's dtype and device."""
        return self._logits


class LinearBernoulliVector(BernoulliVector):
    """`BernoulliVector(z @ weight + bias)`, for which the sum over all 2^M binary z costs O(2^M (D + N)).

    With logits l(z) = z W + c, for N images of D pixels,

        log p(x | z) = x . l(z) - sum_d softplus(l_d(z))
                     = z . (W x) + c . x - s(z),    s(z) = sum_d softplus(l_d(z)).

    W x is one matrix product of N D M operations, made once for all states. What is left for each state is s(z), which
    knows nothing of the images: D operations for each of 2^M states; and the product of z with W x, which knows nothing
    of the pixels: N for each state (times M as a matrix product, which is not what it takes the time for). Together
    O(N D M + 2^M (D + N)), where summing over pixels for every state and image is O(2^M N D), and O(2^M N D M) if the
    logits are made anew for each.

    The logits of 2^M states are never held: they are l(z) = l(low bits of z) + l(high bits of z), made for one block of
    low bits at a time, as odds, and made again in the backward pass, in `softplus_over_states`.

    This path is taken where z is `enumerate_support()` of M binary units, which is verified; any other z goes the way
    of `BernoulliVector`.

    :param z: [..., M].
    :param weight: [M, pixels].
    :param bias: [pixels].
    """

    arg_constraints: ClassVar = {}

    def __init__(self, z: Tensor, weight: Tensor, bias: Tensor, validate_args: bool | None = None):
        if weight.dim() != 2 or bias.shape != weight.shape[1:] or z.shape[-1:] != weight.shape[:1]:
            shapes = ", ".join(str(tuple(part.shape)) for part in (z, weight, bias))
            raise ValueError(f"z [..., M], weight [M, pixels] and bias [pixels] expected, not {shapes}")
        self.z, self.weight, self.bias = z, weight, bias
        dist.TorchDistribution.__init__(self, z.shape[:-1], bias.shape, validate_args=validate_args)
        if self._validate_args and not all(part.isfinite().all() for part in (z, weight, bias)):
            raise ValueError("LinearBernoulliVector: z, weight and bias must be finite")

    @property
    def logits(self) -> Tensor:
        return self.z @ self.weight + self.bias

    def select(self, pixels: Tensor) -> "LinearBernoulliVector":
        part = LinearBernoulliVector(self.z, self.weight[:, pixels], self.bias[pixels], validate_args=False)
        return part.expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats, [...], for value [..., pixels]."""
        if not self._is_support(value):
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        states = self.z.reshape(self.z.shape[0], -1)
        batch = value.shape[:-1]
        pixels = value.reshape(-1, value.shape[-1])
        products = pixels @ torch.cat([self.weight, self.bias.unsqueeze(0)]).T
        result = _Scores.apply(states, products.T, softplus_over_states(self.weight, self.bias))
        ones = (1,) * (self.z.dim() - 2 - len(batch))
        result = result.reshape(self.z.shape[0], *ones, *batch)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def _is_support(self, value: Tensor) -> bool:
        """Whether z is `enumerate_support()`, in a dimension to the left of all of the value's."""
        units = self.z.shape[-1]
        return (
            units <= _MAX_UNITS
            and not self.z.requires_grad
            and self.z.shape[:1] == (2**units,)
            and self.z.numel() == 2**units * units
            and value.dim() < self.z.dim()
            and torch.equal(self.z.reshape(-1, units), binary_states(units, self.z.dtype, self.z.device))
        )

    def _like(self) -> Tensor:
        return self.bias


class _Scores(torch.autograd.Function):
    """z . v + v_0 - s(z) [states, images] for all states z [states, M] at once, from v and v_0 [M + 1, images] and s
    [states]: a few rows at a time, so that the array passes through memory once in either direction."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, products: Tensor, offset: Tensor) -> Tensor:
        ctx.save_for_backward(states, products)
        result = products.new_empty(len(states), products.shape[-1])
        for out, rows, each in zip(*_blocks(result, states, offset), strict=True):
            torch.addmm(products[-1], rows, products[:-1], out=out).sub_(each.unsqueeze(-1))
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        states, products = ctx.saved_tensors
        (grad,) = gradients
        of_products, of_offset = torch.zeros_like(products), grad.new_empty(len(states))
        for each, rows, out in zip(*_blocks(grad, states, of_offset), strict=True):
            of_products[:-1].addmm_(rows.T, each)
            of_products[-1] += each.sum(0)
            torch.sum(each, -1, out=out)
        return None, of_products, of_offset.neg_()


def _blocks(array: Tensor, *others: Tensor) -> Iterator[Iterator[Tensor]]:
    """All of them in as many rows at a time as the first has in a block of `_CHUNK_BYTES`, or on a GPU in one."""
    size = len(array) if array.is_cuda else max(1, _CHUNK_BYTES // (4 * max(1, array.shape[-1])))
    return (iter(each.split(size)) for each in (array, *others))


def _contract(value: Tensor, logits: Tensor) -> Tensor:
    """Sum over pixels of the product, as a matrix product where batch dimensions broadcast against each other."""
    return torch.einsum("...d,...d->...", value, logits)


def binary_states(units: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
    """All binary vectors [2^units, units]; bit m of the index of a state is its unit m."""
    states = torch.zeros(2**units, units, dtype=dtype, device=device)
    for unit in range(units):
        known, following = states[: 2**unit], states[2**unit : 2 ** (unit + 1)]
        following.copy_(known)[:, unit] = 1
    return states


def softplus_over_states(weight: Tensor, bias: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """sum_d softplus((z @ weight + bias)_d) for all binary z, [2^M] in the order of `binary_states`. Differentiable.

    Holds the logits of a few states at a time, in both directions.

    :param weight: [M, pixels].
    :param bias: [pixels].
    :param chunk_bytes: size of the logits in work at once.
    """
    if chunk_bytes is None:
        chunk_bytes = _CHUNK_BYTES if not weight.is_cuda else 2**27
    rows = max(1, chunk_bytes // (bias.numel() * bias.element_size()))
    result: Tensor = _SoftplusOverStates.apply(weight, bias, min(len(weight), int(math.log2(rows))))
    return result


class _SoftplusOverStates(torch.autograd.Function):
    """The logits of state (high, low) are those of its low bits plus the part of its high bits, so its odds exp(l) are
    a product. sum_d log(1 + exp(l_d)) is the logarithm of a product as well: of as many pixels as cannot overflow."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, low_bits: int) -> Tensor:
        ctx.save_for_backward(weight, bias)
        ctx.low_bits = low_bits
        low, high, folds = _parts(weight, bias, low_bits)
        result = bias.new_empty(len(high), len(low))
        terms = torch.empty_like(low)
        for out, part in zip(result, high, strict=True):
            if folds is None:
                torch.sum(F.softplus(low + part, threshold=40), -1, out=out)
                continue
            factors = torch.mul(low, part, out=terms).add_(1)
            for _ in range(folds):
                left, right = factors.chunk(2, -1)
                factors = left.mul_(right)
            torch.sum(factors.log_(), -1, out=out)
        return result.reshape(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, bias = ctx.saved_tensors
        low, high, folds = _parts(weight, bias, ctx.low_bits)
        grad = gradients[0].reshape(len(high), len(low))
        # d softplus(l) = sigmoid(l) dl, added up for each low part over the high ones, and the other way round.
        grad_low, grad_high = torch.zeros_like(low), torch.empty_like(high)
        slope, more = torch.empty_like(low), torch.empty_like(low)
        for each, part, out in zip(grad, high, grad_high, strict=True):
            if folds is None:
                torch.add(low, part, out=slope).sigmoid_()
            else:
                torch.mul(low, part, out=slope).div_(torch.add(slope, 1, out=more))
            torch.mv(slope.T, each, out=out)
            grad_low.addcmul_(slope, each.unsqueeze(-1))
        states_low, states_high = (
            binary_states(bits, weight.dtype, weight.device) for bits in (ctx.low_bits, len(weight) - ctx.low_bits)
        )
        grad_weight = torch.cat([states_low.T @ grad_low, states_high.T @ grad_high])
        return grad_weight, grad_low.sum(0), None


def _parts(weight: Tensor, bias: Tensor, low_bits: int) -> tuple[Tensor, Tensor, int | None]:
    """The odds of all low states with the bias, and of all high states; and how often the pixels can be multiplied by
    halves without overflow. Where odds themselves could, the logits instead, and None."""
    low, high = (
        binary_states(len(part), weight.dtype, weight.device) @ part for part in (weight[:low_bits], weight[low_bits:])
    )
    low = low + bias
    largest = math.log(torch.finfo(low.dtype).max) - 2
    if not max(low.abs().amax(), high.abs().amax()) < largest:
        return low, high, None
    bound = F.softplus(bias + weight.relu().sum(0))  # over all states
    folds = 0
    while (
        folds < _FOLDS
        and len(bound) % 2 == 0
        and (bound := bound[: len(bound) // 2] + bound[len(bound) // 2 :]).max() < largest
    ):
        folds += 1
    return low.exp_(), high.exp_(), folds


@dist.kl.register_kl(BernoulliVector, BernoulliVector)
def _kl(q: BernoulliVector, p: BernoulliVector) -> Tensor:
    """KL(q || p) in nats, closed form."""
    difference = (
        q.mean * (q.logits - p.logits) - F.softplus(q.logits, threshold=40) + F.softplus(p.logits, threshold=40)
    )
    return difference.sum(-1)
