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
_MAX_UNITS = 30
# Sums over states:
_GROUP = 4  # pixels; with more, the multiplications take longer than the logarithms that they save
_FOLDS = 2  # beyond, what is left of the logarithms costs no more than the products
_MOST_LOW = 9  # of either half's units; with more, adding up their gradient takes longer than the block that it is of
_CHUNK_BYTES = 2**21  # in work at once: smaller pieces wait for threads more than for memory
_LOW_UNITS = 7  # of the sum's matrix product; more of them save nothing that still counts
_LARGEST_SPREAD = 640.0  # of exponents, so that exponentials in float64 do not underflow


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
        one_size = torch.broadcast_shapes(value.shape, logits.shape) == logits.shape
        many = one_size and value.numel() < logits.numel() and not torch.is_grad_enabled()
        # Above the threshold softplus(l) is taken as l: beyond 40 that is exact in float64 too.
        if many and bool((value == value.square()).all()):
            # x l - softplus(l) = -softplus((1 - 2 x) l) for x of 0 and 1: half of the time, and nothing cancels.
            result = F.softplus(logits * (1 - 2 * value), threshold=40).sum(-1).neg()
        elif one_size:  # without another large array
            result = F.softplus(logits, threshold=40).addcmul_(value, logits, value=-1).sum(-1).neg()
        elif max(abs(limit) for limit in logits.detach().aminmax()) < _LARGE_LOGIT:
            result = _contract(value, logits) - F.softplus(logits, threshold=40).sum(-1)
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

    The logits of 2^M states are never made: they are l(z) = l(low bits of z) + l(high bits of z), and s(z) comes from
    matrix products of either half's odds, `softplus_over_states`. The same split spares the array of states and images
    where only its sum over states is asked for, `log_marginal`.

    These paths are taken where z is `enumerate_support()` of M binary units, which is verified; any other z goes the
    way of `BernoulliVector`.

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
        evidence, offset = self._evidence(value)
        result = torch.addmm(offset, states, evidence)
        result -= softplus_over_states(self.weight, self.bias).unsqueeze(-1)  # without another large array
        ones = (1,) * (self.z.dim() - 2 - len(batch))
        result = result.reshape(self.z.shape[0], *ones, *batch)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def sums_over(self, prior: Any, z: Tensor) -> bool:
        """Whether `log_marginal` can sum z out, its p(z) a `BernoulliVector` that is the same for all images. Classes
        of one's own may have another `log_prob`."""
        plain = type(self) is LinearBernoulliVector and type(prior) is BernoulliVector
        return plain and self.z is z and prior.logits.dim() == 1 and self.z.shape[-1:] == prior.event_shape

    def log_marginal(self, value: Tensor, prior: BernoulliVector) -> Tensor | None:
        """log sum_z p(z) p(value | z) over all states, in nats, [images], for value [images, pixels]. None where z is
        not `enumerate_support()`.

        With states of low and high units, -s(z) = t(high, low) and z . (W x + b) = u(low, x) + v(high, x), b the logits
        of p(z), the sum over the low ones is a matrix product, sum_low exp(t) exp(u): there are exponentials of states,
        and of parts of states and images, but not of states and images. In float64, where as many low units as are
        taken cannot underflow.

        :param prior: p(z), the same for all images.
        """
        if self._validate_args:
            self._validate_sample(value)
        if not self._is_support(value):
            return None
        evidence, offset = (part.double() for part in self._evidence(value))
        logits = prior.logits.double()
        scores = -softplus_over_states(self.weight, self.bias).double()
        t, evidence = _centred(scores, evidence + logits.unsqueeze(-1))
        most_t = t.detach().amax(-1, keepdim=True)
        share = (t - most_t).exp()
        # A few images at a time, where there are few low units.
        blocks = evidence.split(max(1, _CHUNK_BYTES // len(t)), 1)
        log_total = torch.cat([_over_states(share, most_t, block) for block in blocks], -1)
        return (log_total + offset - F.softplus(logits, threshold=40).sum()).to(value.dtype)

    def _evidence(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """W x [M, images] and c . x [images]."""
        pixels = value.reshape(-1, value.shape[-1])
        products = (pixels @ torch.cat([self.weight, self.bias.unsqueeze(0)]).T).T
        return products[:-1], products[-1]

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


def _centred(scores: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [2^M] as [high, low] states of as many low units as can be summed in float64, and evidence [M, images],
    with what is linear in the low units taken from the one and given to the other: the sum over states of
    exp(score + z . evidence) is the same.

    The term of a row's largest score has at least e^-spread of the product of either factor's largest, spread that of
    the low units' evidence; the term of the largest evidence at least e^-range, range that of the row's scores."""
    for units in range(min(_LOW_UNITS, len(evidence)), 0, -1):
        states = binary_states(units, scores.dtype, scores.device)
        t = scores.reshape(-1, 2**units)
        slopes = t.detach() @ (2 * states - 1) / 2 ** (units - 1)  # mean difference that a unit makes
        middle = (slopes.amax(0) + slopes.amin(0)) / 2
        t, low = t - states @ middle, evidence[:units] + middle.unsqueeze(-1)
        largest, least = t.detach().aminmax(dim=1)[::-1]
        span = (largest - least).amax()
        if low.numel():
            span = torch.minimum(span, low.detach().abs().sum(0).amax())
        if span < _LARGEST_SPREAD:
            return t, torch.cat([low, evidence[units:]])
    return scores.unsqueeze(-1), evidence


def _over_states(share: Tensor, most: Tensor, evidence: Tensor) -> Tensor:
    """log sum_z exp(log share + most + z . evidence) [images], of share [high, low] and most [high, 1]."""
    units = int(math.log2(share.shape[1]))
    u, v = (binary_states(len(part), part.dtype, part.device) @ part for part in (evidence[:units], evidence[units:]))
    largest = u.detach().amax(0)
    total = share @ (u - largest).exp()
    return (total.log() + most + v).logsumexp(0) + largest


def _contract(value: Tensor, logits: Tensor) -> Tensor:
    """Sum over pixels of the product, as a matrix product where batch dimensions broadcast against each other."""
    return torch.einsum("...d,...d->...", value, logits)


def binary_states(units: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
    """All binary vectors [2^units, units]; bit m of the index of a state is its unit m."""
    states = torch.zeros(2**units, units, dtype=dtype, device=device)
    few = min(units, 12)  # so that all their bits can be made at once
    index, bits = (torch.arange(count, dtype=torch.int32, device=device) for count in (2**few, few))
    states[: 2**few, :few] = (index.unsqueeze(-1) >> bits) & 1
    for unit in range(few, units):
        known, following = states[: 2**unit], states[2**unit : 2 ** (unit + 1)]
        following.copy_(known)[:, unit] = 1
    return states


def softplus_over_states(weight: Tensor, bias: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """sum_d softplus((z @ weight + bias)_d) for all binary z, [2^M] in the order of `binary_states`.

    Holds 4 numbers for each pixel and state of half the units (of nine, and of the rest, beyond 18), and one for each
    of a few states and groups of pixels at a time, in both directions. Differentiable once.

    :param weight: [M, pixels].
    :param bias: [pixels].
    :param chunk_bytes: size of the numbers in work at once.
    """
    if chunk_bytes is None:
        chunk_bytes = _CHUNK_BYTES if not weight.is_cuda else 2**27
    result: Tensor = _SoftplusOverStates.apply(weight, bias, chunk_bytes // bias.element_size())
    return result


class _SoftplusOverStates(torch.autograd.Function):
    """The logits of state (high, low) are those of its low bits plus those of its high bits, so its odds exp(l) are a
    product a b, and for a group of pixels

        prod_d (1 + a_d b_d) = sum_S (prod_{d in S} a_d) (prod_{d in S} b_d)    over the subsets S of the group,

    which for all states is a matrix product: 2^|group| multiplications instead of |group| exponentials, and the
    logarithm of one number for each state and group."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, size: int) -> Tensor:
        cut = min(_MOST_LOW, (len(weight) + 1) // 2)
        states = [binary_states(len(part), weight.dtype, weight.device) for part in (weight[:cut], weight[cut:])]
        low, high = torch.addmm(bias.unsqueeze(-1), weight[:cut].T, states[0].T), weight[cut:].T @ states[1].T
        result = bias.new_zeros(len(states[1]), len(states[0]))
        ctx.folds, ctx.size, ctx.pixels = _folds(low, high), size, len(bias)
        if ctx.folds is None:
            for out, part in zip(result, high.T, strict=True):
                torch.sum(F.softplus(low + part.unsqueeze(-1), threshold=40), 0, out=out)
        else:
            low, high = _subsets(low), _subsets(high).mT
            for groups, rows in _blocks(len(low), result, size):
                factors = torch.bmm(high[groups, rows], low[groups])
                for _ in range(ctx.folds):
                    if len(factors) % 2 == 0:
                        left, right = factors.chunk(2)
                        factors = left.mul_(right)
                result[rows] += factors.log_().sum(0)
        ctx.save_for_backward(*states, low, high)
        return result.flatten()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # torch's own refusal is not heard where there is another path to the input
            raise NotImplementedError("a sum over all states of a belief net has no second derivative here")
        states_low, states_high, low, high = ctx.saved_tensors
        grad = gradients[0].reshape(len(states_high), len(states_low))
        grad_low, grad_high = torch.zeros_like(low), torch.zeros_like(high)
        if ctx.folds is None:
            # d softplus(l) = sigmoid(l) dl, added up for each low part over the high ones, and the other way round.
            for each, part, out in zip(grad, high.T, grad_high.T, strict=True):
                slope = (low + part.unsqueeze(-1)).sigmoid_()
                out.copy_(slope @ each)
                grad_low.addcmul_(slope, each)
        else:
            for groups, rows in _blocks(len(low), grad, ctx.size):
                left, right = high[groups, rows], low[groups]
                slope = torch.bmm(left, right)
                torch.div(grad[rows], slope, out=slope)
                grad_high[groups, rows] += torch.bmm(slope, right.mT)
                grad_low[groups] += torch.bmm(left.mT, slope)
            parts = grad_low.mul_(low), grad_high.mul_(high).mT
            grad_low, grad_high = (_of_members(part)[: ctx.pixels] for part in parts)
        return torch.cat([grad_low @ states_low, grad_high @ states_high], 1).T, grad_low.sum(1), None


def _grouped(array: Tensor, value: float) -> Tensor:
    """[members, groups, ...] of [pixels, ...], filled up with a value. Pixels of a group are far from each other."""
    groups = -(-len(array) // _GROUP)
    missing = array.new_full((groups * _GROUP - len(array), *array.shape[1:]), value)
    return torch.cat([array, missing]).unflatten(0, (_GROUP, groups))


def _subsets(logits: Tensor) -> Tensor:
    """exp of the sum of the logits [pixels, states] of each subset of each group, [groups, subsets, states]; bit m of
    the index of a subset is its member m."""
    odds = _grouped(logits, -math.inf).exp_().unsqueeze(2)
    result = odds.new_ones(odds.shape[1], 2**_GROUP, logits.shape[1])
    for member, each in enumerate(odds):
        torch.mul(result[:, : 2**member], each, out=result[:, 2**member : 2 ** (member + 1)])
    return result


def _of_members(array: Tensor) -> Tensor:
    """The sum over the subsets that a pixel is in, [pixels, states] of [groups, subsets, states]."""
    members = binary_states(_GROUP, array.dtype, array.device).T @ array
    return members.transpose(0, 1).flatten(0, 1)


def _folds(low: Tensor, high: Tensor) -> int | None:
    """How often the product of a group, over all states, can be multiplied by another's without overflow; None if the
    product itself could, or that of a subset of low odds be lost that high ones make up for."""
    limits = torch.finfo(low.dtype)
    largest, least = math.log(limits.max) - 2, -math.log(limits.eps)
    tops = [part.amax(1) for part in (low, high)]
    parts = [_grouped(top.relu(), 0.0).sum(0).max() for top in tops]
    whole = _grouped(F.softplus(tops[0] + tops[1]), 0.0).sum(0).max()
    part, product = torch.stack([torch.maximum(*parts), whole]).tolist()
    if not (part < largest - least and product < largest):
        return None
    return next(folds for folds in range(_FOLDS, -1, -1) if product * 2**folds < largest)


def _blocks(groups: int, states: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of groups and of rows of states, with about as many numbers as `size` in all; of groups so many that they
    can be folded."""
    rows, columns = states.shape
    least = 2**_FOLDS
    high = min(rows, max(1, size // (columns * least)))
    deep = max(1, size // (high * columns * least)) * least
    for group in range(0, groups, deep):
        for row in range(0, rows, high):
            yield slice(group, group + deep), slice(row, row + high)


@dist.kl.register_kl(BernoulliVector, BernoulliVector)
def _kl(q: BernoulliVector, p: BernoulliVector) -> Tensor:
    """KL(q || p) in nats, closed form."""
    difference = (
        q.mean * (q.logits - p.logits) - F.softplus(q.logits, threshold=40) + F.softplus(p.logits, threshold=40)
    )
    return difference.sum(-1)
