"""Distributions of binary vectors that are cheap to evaluate, under a plate and under enumeration.

Both are `dist.Bernoulli(logits=...).to_event(1)` with less to do. Pyro broadcasts a distribution's parameters to the
plate and to the enumerated states, and `Bernoulli.log_prob` then visits every state, image and pixel. Here `expand`
leaves the parameters as they are, and `log_prob` sums over pixels before it broadcasts.

log p(x) of an x that is near certain is a small number, which the difference x l - softplus(l) loses: at l = 12 and
x = 1 all but three digits in float32. Where no gradient is asked for, log p(x) is a sum of terms of one sign instead,

    -[relu(l) - x l + log(1 + exp(-|l|))],    where relu(l) - x l is exact for x of 0 and 1,

and its error is some 1e-7 of its size in float32. Where a gradient is, the difference stays, which is faster: its error
is some 1e-7 of sum_d |l_d|.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, constraints

# Up to here a float32 matrix product of logits and pixels is as exact as a training step needs it; beyond, terms that
# cancel are kept apart.
_LARGE_LOGIT = 50.0
_MAX_UNITS = 30
# Sums over states:
_GROUP = 4  # pixels; with more, the multiplications take longer than the logarithms that they save
_FOLDS = 2  # beyond, what is left of the logarithms costs no more than the products
_MOST_LOW = 9  # of either half's units; with more, adding up their gradient takes longer than the block that it is of
_CHUNK_BYTES = 2**21  # in work at once: smaller pieces wait for threads more than for memory
_LOW_UNITS = 7  # of the sum's matrix product; more of them save nothing that still counts
_LARGEST_SPREAD = 640.0  # of exponents, so that exponentials in float64 do not underflow
# Near certainty, what is left of log p is smaller than the rounding of what it is the difference of, even in float64:
_NEAR = 0.01  # nats; below, log p(x | z) is summed over pixels
_NEAR_MARGINAL = 0.5  # nats; below, log p(x) is log(1 - sum_z p(z) [1 - p(x | z)])
_NEAR_NUMBERS = 2**22  # of states and images at once


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
        checked = validate_args if logits.numel() else False  # torch cannot check what is empty
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=checked)

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
        self._check(value)
        logits = self.logits
        if value.dtype != logits.dtype:  # such as bool
            dtype = torch.promote_types(value.dtype, logits.dtype)
            value, logits = value.to(dtype), logits.to(dtype)
        differentiated = _differentiated(value, logits)
        if torch.broadcast_shapes(value.shape, logits.shape) == logits.shape:  # without another large array
            less = torch.addcmul if _traced() else Tensor.addcmul_
            # Above the threshold softplus(l) is taken as l: beyond 40 that is exact in float64 too.
            if differentiated:
                terms = less(F.softplus(logits, threshold=40), value, logits, value=-1)
            else:
                terms = less(logits.relu(), value, logits, value=-1) + F.softplus(logits.abs().neg_())
            result = terms.sum(-1).neg()
        elif differentiated and _moderate(logits):
            result = _contract(value, logits) - F.softplus(logits, threshold=40).sum(-1)
        else:  # x l - softplus(l) = -[x relu(-l) + (1 - x) relu(l) + log(1 + exp(-|l|))]: nothing cancels
            small = F.softplus(-logits.abs(), threshold=40).sum(-1)
            result = -(_contract(value, F.relu(-logits)) + _contract(1 - value, F.relu(logits)) + small)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def entropy(self) -> Tensor:
        """-E[log p] in nats, [...]."""
        positive, negative = self.logits, -self.logits
        terms = positive.sigmoid() * F.softplus(negative) + negative.sigmoid() * F.softplus(positive, threshold=40)
        return terms.sum(-1).expand(self.batch_shape)

    def _check(self, value: Tensor) -> None:
        if self._validate_args and value.numel():  # torch cannot check what is empty
            self._validate_sample(value)

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
        if self._validate_args and not _traced() and not all(part.isfinite().all() for part in (z, weight, bias)):
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
        self._check(value)
        batch = value.shape[:-1]
        if _differentiated(value, self.weight, self.bias):
            evidence, offset = self._evidence(value)
            result = torch.addmm(offset, self.z.reshape(self.z.shape[0], -1), evidence)
            result -= softplus_over_states(self.weight, self.bias).unsqueeze(-1)  # without another large array
        else:
            result = self._in_float64(value).to(torch.promote_types(value.dtype, self.bias.dtype))
        ones = (1,) * (self.z.dim() - 2 - len(batch))
        result = result.reshape(self.z.shape[0], *ones, *batch)
        return result.expand(torch.broadcast_shapes(result.shape, self.batch_shape))

    def _in_float64(self, value: Tensor, softplus: Tensor | None = None) -> Tensor:
        """log p(value | z) [states, images] for all states and value [..., pixels]: of the difference in float64, and
        where that is near 0, of the pixels one by one.

        :param softplus: `softplus_over_states` in float64, if it is known.
        """
        x, weight, bias = (part.double() for part in (value.reshape(-1, value.shape[-1]), self.weight, self.bias))
        states = self.z.reshape(self.z.shape[0], -1).double()
        result = torch.addmm(x @ bias, states, weight @ x.T)
        result -= (softplus_over_states(weight, bias) if softplus is None else softplus).unsqueeze(-1)
        near = result > -_NEAR
        images = near.any(0).nonzero().squeeze(-1)
        for rows in near.any(1).nonzero().squeeze(-1).split(max(1, _NEAR_NUMBERS // weight.shape[1])):
            pixels = BernoulliVector((states[rows] @ weight + bias).unsqueeze(1), validate_args=False)
            result[rows.unsqueeze(1), images] = pixels.log_prob(x[images])
        return result

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

        Where no gradient is asked for, all of it is in float64, and log p(x) near 0 is
        log(1 - sum_z p(z) [1 - p(x | z)]), whose terms are of one sign: the error is below 1e-6 of any log p(x).

        :param prior: p(z), the same for all images.
        """
        self._check(value)
        if not self._is_support(value):
            return None
        if not _differentiated(value, self.weight, self.bias, prior.logits):
            wide = LinearBernoulliVector(self.z, self.weight.double(), self.bias.double(), validate_args=False)
            return wide._log_marginal(value.double(), prior.logits.double(), exact=True)
        return self._log_marginal(value, prior.logits.double()).to(self.bias.dtype)

    def _log_marginal(self, value: Tensor, logits: Tensor, exact: bool = False) -> Tensor:
        evidence, offset = (part.double() for part in self._evidence(value))
        softplus = softplus_over_states(self.weight, self.bias).double()
        t, evidence = _centred(-softplus, evidence + logits.unsqueeze(-1))
        most_t = t.detach().amax(-1, keepdim=True)
        share = (t - most_t).exp()
        # A few images at a time, where there are few low units.
        blocks = evidence.split(max(1, _CHUNK_BYTES // len(t)), 1)
        log_total = torch.cat([_over_states(share, most_t, block) for block in blocks], -1)
        result = log_total + offset - F.softplus(logits, threshold=40).sum()
        if exact:
            log_prior = BernoulliVector(logits, validate_args=False).log_prob(self.z.reshape(len(self.z), -1).double())
            near = (result > -_NEAR_MARGINAL).nonzero().squeeze(-1)
            for images in near.split(max(1, _NEAR_NUMBERS // len(self.z))):
                result[images] = torch.log1p(log_prior.exp() @ self._in_float64(value[images], softplus).expm1())
        return result

    def _evidence(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """W x [M, images] and c . x [images]."""
        pixels = value.reshape(-1, value.shape[-1]).to(torch.promote_types(value.dtype, self.bias.dtype))
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
            and not _traced()
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


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """p(x) = C(l) exp(x l) / (1 + exp(l)) of x in [0, 1], with C(l) = l / tanh(l / 2): Loaiza-Ganem and Cunningham
    (2019), equations 6 and 7, in log-odds l.

    Torch's own goes by the probability sigmoid(l): rounded, it is 1 from l = 17 on in float32, where C(l) stops to grow
    (a nat is missing for each pixel at l = 50) and the mean is too large; and 1 - 2 sigmoid(l) loses digits near l = 0.
    """

    def _cont_bern_log_norm(self) -> Tensor:
        series, near, y = _near_zero(self.logits / 2, 0.02)
        squared = series.square()
        small = squared / 3 * (1 - squared * (7 / 30) * (1 - squared * (124 / 441) * (1 - squared * (381 / 1240))))
        return math.log(2) + torch.where(near, small, (y / y.tanh()).log())

    def _mean(self, logits: Tensor) -> Tensor:
        series, near, logits = _near_zero(logits, 0.1)
        squared = series.square()
        small = 0.5 + series / 12 * (1 - squared / 60 * (1 - squared / 42 * (1 - squared / 40)))
        return torch.where(near, small, -1 / torch.expm1(-logits) - 1 / logits)

    @property
    def mean(self) -> Tensor:
        return self._mean(self.logits)

    @property
    def variance(self) -> Tensor:
        series, near, logits = _near_zero(self.logits.abs(), 0.3)
        squared = series.square()
        small = 1 / 12 - squared / 240 + squared**2 / 6048 - squared**3 / 172_800
        small = small + squared**4 / 5_322_240 - squared**5 * (691 / 118_879_488_000)
        return torch.where(near, small, logits**-2 + 1 / (torch.expm1(-logits) * torch.expm1(logits)))

    def entropy(self) -> Tensor:
        """-E[log p] in nats."""
        size = self.logits.abs()
        return size * self._mean(-size) + F.softplus(-size) - self._cont_bern_log_norm()

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        likely = value * self.logits - self.logits.relu() - F.softplus(-self.logits.abs())
        return likely + self._cont_bern_log_norm()

    # Both by the half whose log-odds are negative, which has no large exponentials.

    def cdf(self, value: Tensor) -> Tensor:
        """P(x < value)."""
        above, size = self.logits > 0, self.logits.abs().clamp(min=1e-20)
        value = value.clamp(0, 1)
        share = torch.expm1(-size * torch.where(above, 1 - value, value)) / torch.expm1(-size)
        return torch.where(above, 1 - share, share)

    def icdf(self, value: Tensor) -> Tensor:
        """x with P(x' < x) = value."""
        above, size = self.logits > 0, self.logits.abs().clamp(min=1e-20)
        x = torch.log1p(torch.where(above, 1 - value, value) * torch.expm1(-size)).div(-size).clamp(0, 1)
        return torch.where(above, 1 - x, x)


def _near_zero(array: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a series around 0 is of, where it is to be used, and what else is of: neither has a gradient that is NaN."""
    near = array.abs() < limit
    return torch.where(near, array, 0.0), near, torch.where(near, 1.0, array)


def log_density(distribution: Any, value: Tensor, *args: Any, wide: bool = False, **kwargs: Any) -> Tensor:
    """`distribution.log_prob(value)`; of a `Bernoulli`, where no gradient is asked for, to 1e-6 of its size.

    Torch subtracts log sigmoid(l) from l, which loses a pixel that is near certain, and keeps probabilities away from 0
    and 1 by one rounding.

    :param wide: in float64, if it is of binary values.
    """
    base = distribution
    while type(base) in (Independent, dist.Independent):
        base = base.base_dist
    stock = type(base) in (torch.distributions.Bernoulli, dist.Bernoulli)
    if stock:
        value = value.to(torch.promote_types(value.dtype, base._param.dtype))
    if wide and (stock or isinstance(base, BernoulliVector)):
        value = value.double()
    if not stock or _differentiated(value, base._param):
        result: Tensor = distribution.log_prob(value, *args, **kwargs)
        return result
    if base._validate_args:
        base._validate_sample(value)
    if _has_probs(base):  # of 0 and 1 torch's; what the sigmoid of a large number was is not known
        p, least = base.probs.to(value.dtype), torch.finfo(base.probs.dtype).eps
        terms = torch.xlogy(value, torch.where(p == 0, least, p))
        terms = terms + torch.special.xlog1py(1 - value, -torch.where(p == 1, 1 - least, p))
    else:
        logits = base.logits.to(value.dtype)
        terms = value * logits - logits.relu() - F.softplus(-logits.abs())
    return terms.sum(tuple(range(-distribution.event_dim, 0))) if distribution.event_dim else terms


def _has_probs(bernoulli: Any) -> bool:
    """Whether it was made of probabilities; torch keeps log-odds beside them once they are asked for."""
    return bernoulli._param is not bernoulli.__dict__.get("logits")


def _traced() -> bool:
    """Whether torch.compile or a transform of torch.func runs, where nothing may depend on a value."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _differentiated(*parts: Tensor) -> bool:
    """Whether a gradient of any of them is asked for."""
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def _moderate(logits: Tensor) -> bool:
    """Whether all log-odds are known to be below `_LARGE_LOGIT`."""
    if _traced() or logits.numel() == 0:
        return False
    return bool(max(abs(limit) for limit in logits.detach().aminmax()) < _LARGE_LOGIT)


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


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) in nats, closed form, of vectors of log-odds [..., pixels], which may be infinite."""
    result = torch.zeros_like(q[..., 0] + p[..., 0])
    for sign in (1, -1):
        chance, less = (sign * q).sigmoid(), F.softplus(-sign * p, threshold=40) - F.softplus(-sign * q, threshold=40)
        result = result + torch.where(chance == 0, 0.0, chance * less).sum(-1)
    return result


@dist.kl.register_kl(BernoulliVector, BernoulliVector)
def _kl_of_vectors(q: BernoulliVector, p: BernoulliVector) -> Tensor:
    result = _kl(q.logits, p.logits)
    return result.expand(torch.broadcast_shapes(result.shape, q.batch_shape, p.batch_shape))


def _as_vector(other: Independent) -> BernoulliVector:
    """`dist.Bernoulli(…).to_event(1)` as a vector."""
    base: Any = other.base_dist
    if not isinstance(base, torch.distributions.Bernoulli) or other.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"a BernoulliVector has no KL divergence to {other}")
    return BernoulliVector(base.probs.logit() if _has_probs(base) else base.logits, validate_args=False)


@dist.kl.register_kl(BernoulliVector, Independent)
def _kl_to_independent(q: BernoulliVector, p: Independent) -> Tensor:
    return _kl_of_vectors(q, _as_vector(p))


@dist.kl.register_kl(Independent, BernoulliVector)
def _kl_from_independent(q: Independent, p: BernoulliVector) -> Tensor:
    return _kl_of_vectors(_as_vector(q), p)
