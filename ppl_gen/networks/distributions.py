"""Distributions of binary vectors that are fast under a plate and under enumeration, and a continuous Bernoulli that is
exact for any log-odds.

`BernoulliVector` and `LinearBernoulliVector` are `dist.Bernoulli(logits=...).to_event(1)` with less to compute. Pyro
broadcasts a distribution's parameters to the plate and to the enumerated states, and `Bernoulli.log_prob` then visits
every state, image and pixel. Here `expand` leaves the parameters as they are, and `log_prob` sums over pixels before it
broadcasts.

If x is near certain, log p(x) is a small number, and the difference x l - softplus(l) loses digits: at l = 12 and x = 1
all but three in float32. Without gradients, log p(x) is therefore computed as a sum of terms of one sign,

    -[relu(l) - x l + log(1 + exp(-|l|))],    where relu(l) - x l is exact for x of 0 and 1,

with an error of about 1e-7 of its size in float32. With gradients it is computed as the difference, which is faster.
The error is then about 1e-7 of sum_d |l_d|.
"""

import math
from typing import Any, ClassVar, TypeVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Independent, constraints

from ppl_gen.core.errors import BadInput
from ppl_gen.networks.pixel_sums import differentiated, log_prob_by_pixels, softplus_sum, traced
from ppl_gen.networks.state_sums import binary_states, log_sum_over_states, softplus_over_states

# Up to this size of logits, a float32 matrix product of logits and pixels is exact enough for a training step. Above
# it, terms that cancel are summed apart.
_LARGE_LOGIT = 50.0
_MANY_LOGITS = 2**15  # from which one logarithm for eight pixels saves time
_MAX_UNITS = 30  # of a vector that is enumerated
_MOST_LOGITS = 2**27  # of all states of z, where they must be in memory
# If -log p is small, it is smaller than the rounding of the terms whose difference it is, even in float64. Below these
# limits, in nats, it is computed in another way:
_NEAR = 0.01  # log p(x | z) is summed over pixels
_NEAR_MARGINAL = 0.5  # log p(x) is log(1 - sum_z p(z) [1 - p(x | z)])
_NEAR_NUMBERS = 2**22  # pairs of state and image, or of state and pixel, in one piece of these


Distribution = TypeVar("Distribution", bound=dist.TorchDistribution)


def expanded(distribution: Distribution, batch_shape: Any) -> Distribution:
    """A distribution with another batch shape, whose parameters stay as they are: a plate then costs nothing.

    >>> expanded(BernoulliVector(torch.zeros(3)), (2,)).sample().shape
    torch.Size([2, 3])

    :raises RuntimeError: for a shape that the batch does not broadcast to.
    """
    batch_shape = torch.Size(batch_shape)
    if batch_shape == distribution.batch_shape:
        return distribution
    torch.empty(()).expand(distribution.batch_shape).expand(batch_shape)
    kind: Any = type(distribution)
    new: Distribution = kind.__new__(kind)
    new.__dict__.update(distribution.__dict__)
    new._batch_shape = batch_shape
    return new


class BernoulliVector(dist.TorchDistribution):
    """Independent Bernoulli pixels as one vector: `dist.Bernoulli(logits=logits).to_event(1)`.

    log p(x) = sum_d [x_d l_d - softplus(l_d)] = x . l - sum_d softplus(l_d). If images and logits have the same batch
    shape, the terms are added pixel by pixel. If they broadcast against each other, as K enumerated components do
    against N images, the first term is a matrix product, and the second is one number for each row of logits. No array
    of components x images x pixels is made.

    `expand` is a view, so that a plate costs nothing. Values in (0, 1) are accepted unless validation is on, because
    course notes use grey values as targets. The result is then a cross-entropy, and no log-probability.

    >>> components = BernoulliVector(torch.zeros(3, 1, 4))  # 3 components of 4 pixels
    >>> components.log_prob(torch.ones(2, 4)).shape  # against 2 images
    torch.Size([3, 2])
    >>> components.log_prob(torch.ones(2, 4))[0] / math.log(2)
    tensor([-4., -4.])

    :param logits: log-odds, [..., pixels].
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True
    sums_pixels_first = True
    """True: `log_prob` makes no array of states x images x pixels (`SumsPixelsFirst`)."""

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self._logits = logits
        checked = validate_args if logits.numel() else False  # torch cannot check what is empty
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=checked)

    @property
    def logits(self) -> Tensor:
        """Log-odds, [..., pixels], without the batch dimensions that `expand` added."""
        return self._logits

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BernoulliVector":
        return expanded(self, batch_shape)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid().expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    @property
    def num_states(self) -> int:
        """Number of vectors that `enumerate_support` lists: 2^pixels."""
        return 2 ** self.event_shape[0]

    def select(self, pixels: Tensor) -> "BernoulliVector":
        """The distribution of some of the pixels, which are given by their numbers or a mask."""
        return BernoulliVector(self.logits[..., pixels], validate_args=False).expand(self.batch_shape)

    def observed(self, pixels: Tensor) -> "ObservedBernoulliVector":
        """The distribution of the pixels where a mask is true, bool [..., pixels], which may differ between images."""
        return ObservedBernoulliVector(self.logits, pixels).expand(broadcast_shape(self.batch_shape, pixels.shape[:-1]))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            mean = self.logits.sigmoid()
            # This takes a quarter of the time of torch.bernoulli.
            uniform = torch.rand(self._extended_shape(torch.Size(sample_shape)), dtype=mean.dtype, device=mean.device)
            return torch.lt(uniform, mean, out=uniform)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All binary vectors, [2^pixels, ..., pixels]. Bit m of the index of a state is its pixel m.

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
        if broadcast_shape(value.shape, logits.shape) == logits.shape:
            result = log_prob_by_pixels(value, logits)
        elif not differentiated(value, logits):  # -[x relu(-l) + (1 - x) relu(l) + log(1 + exp(-|l|))]
            small = F.softplus(-logits.abs(), threshold=40).sum(-1)
            result = -(_contract(value, F.relu(-logits)) + _contract(1 - value, F.relu(logits)) + small)
        elif (total := _softplus_sum(logits)) is not None:
            one_row = (
                logits.dim() > 2 == value.dim() and logits.shape[-2] == 1
            )  # states for all images: faster than einsum
            result = (logits.squeeze(-2) @ value.T if one_row else _contract(value, logits)) - total
        else:
            off, on = _surprisals(logits)
            result = -(_contract(value, on) + _contract(1 - value, off))
        if result.shape == self.batch_shape:
            return result
        return result.expand(broadcast_shape(result.shape, self.batch_shape))

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


class ObservedBernoulliVector(BernoulliVector):
    """`BernoulliVector` of the observed pixels alone, which may be others in each image: log p(x_obs) =
    sum_d m_d [x_d l_d - softplus(l_d)], with m_d = 1 for an observed pixel and 0 for a missing one.

    If images and logits broadcast against each other, both terms are matrix products. The values of missing pixels do
    not matter, unless they are NaN.

    >>> components = BernoulliVector(torch.zeros(3, 1, 4))  # 3 components of 4 pixels
    >>> seen = components.observed(torch.tensor([[True, True, False, False], [True, False, False, False]]))
    >>> seen.log_prob(torch.ones(2, 4))[0] / math.log(2)
    tensor([-2., -1.])

    :param logits: log-odds, [..., pixels].
    :param mask: true for observed pixels, bool [..., pixels].
    """

    arg_constraints: ClassVar = {}

    def __init__(self, logits: Tensor, mask: Tensor):
        super().__init__(logits, validate_args=False)
        self.mask_of_pixels = mask

    def select(self, pixels: Tensor) -> "ObservedBernoulliVector":
        part = ObservedBernoulliVector(self.logits[..., pixels], self.mask_of_pixels[..., pixels])
        return part.expand(self.batch_shape)

    def observed(self, pixels: Tensor) -> "ObservedBernoulliVector":
        return super().observed(pixels & self.mask_of_pixels)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p of the observed pixels of value [..., pixels], in nats, [...]."""
        logits = self.logits.to(torch.promote_types(value.dtype, self.logits.dtype))
        mask = self.mask_of_pixels.to(logits.dtype)
        seen = value.to(logits.dtype) * mask
        with_gradient = differentiated(value, logits)
        if broadcast_shape(seen.shape, logits.shape) == logits.shape:  # pixel by pixel
            if with_gradient:
                terms = F.softplus(logits, threshold=40) * mask - seen * logits
            else:
                terms = (logits.relu() - seen * logits + F.softplus(-logits.abs())) * mask
            result = terms.sum(-1).neg()
        elif with_gradient and _moderate(logits):
            result = _contract(seen, logits) - _contract(mask, F.softplus(logits, threshold=40))
        elif with_gradient:
            off, on = _surprisals(logits)
            result = -(_contract(seen, on) + _contract(mask - seen, off))
        else:  # as in BernoulliVector, where no terms cancel
            small = F.softplus(-logits.abs(), threshold=40)
            off = _contract(mask - seen, F.relu(logits))
            result = -(_contract(seen, F.relu(-logits)) + off + _contract(mask, small))
        return result.expand(broadcast_shape(result.shape, self.batch_shape))

    def entropy(self) -> Tensor:
        raise NotImplementedError("of the observed pixels alone")


class LinearBernoulliVector(BernoulliVector):
    """`BernoulliVector(z @ weight + bias)`, for which the sum over all 2^M binary z costs O(2^M (D + N)).

    With logits l(z) = z W + c, for N images of D pixels,

        log p(x | z) = x . l(z) - sum_d softplus(l_d(z))
                     = z . (W x) + c . x - s(z),    s(z) = sum_d softplus(l_d(z)).

    W x is one matrix product of N D M operations for all states. s(z) does not depend on the images: it takes D
    operations for each of the 2^M states. z . (W x) does not involve the pixels: it takes N operations for each state
    (times M, but a matrix product is fast). Together this is O(N D M + 2^M (D + N)). Summing over pixels for every
    state and image is O(2^M N D), and O(2^M N D M) if the logits are computed for every image.

    The logits of the 2^M states are never computed. They are sums l(low bits of z) + l(high bits of z), and
    `softplus_over_states` gives s(z) by matrix products of the odds of both parts. `log_marginal`, the sum over states,
    splits them in the same way, and makes no array of states and images.

    This holds if z is `enumerate_support()` of M binary units, which is verified. For any other z it computes what
    `BernoulliVector` does.

    >>> states = BernoulliVector(torch.zeros(3)).enumerate_support().unsqueeze(1)
    >>> images = LinearBernoulliVector(states, torch.ones(3, 4), torch.zeros(4))
    >>> x = torch.ones(2, 4)
    >>> images.log_prob(x).shape
    torch.Size([8, 2])
    >>> images.log_prob(x).logsumexp(0) - math.log(8)  # log p(x), with p(z) = 1/8
    tensor([-0.8129, -0.8129])
    >>> images.log_marginal(x, prior=BernoulliVector(torch.zeros(3))).float()
    tensor([-0.8129, -0.8129])

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
        if self._validate_args and not traced() and not all(part.isfinite().all() for part in (z, weight, bias)):
            raise ValueError("LinearBernoulliVector: z, weight and bias must be finite")

    @property
    def logits(self) -> Tensor:
        return F.linear(self.z, self.weight.T, self.bias)

    def select(self, pixels: Tensor) -> "LinearBernoulliVector":
        part = LinearBernoulliVector(self.z, self.weight[:, pixels], self.bias[pixels], validate_args=False)
        return part.expand(self.batch_shape)

    def observed(self, pixels: Tensor) -> ObservedBernoulliVector:
        """As for `BernoulliVector`, which needs the logits of every z.

        :raises BadInput: if these are too many.
        """
        if (count := math.prod(self.z.shape[:-1]) * len(self.bias)) > _MOST_LOGITS:
            raise BadInput(
                f"missing pixels need the logits of every state and pixel, {count:.2g} numbers: use fewer latent "
                "units, or a guide that samples, such as bernoulli"
            )
        return super().observed(pixels)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats, [...], for value [..., pixels]."""
        if not self._is_support(value):
            return super().log_prob(value)
        self._check(value)
        batch = value.shape[:-1]
        if differentiated(value, self.weight, self.bias):
            evidence, offset = self._evidence(value)
            result = torch.addmm(offset, self.z.reshape(self.z.shape[0], -1), evidence)
            result -= softplus_over_states(self.weight, self.bias).unsqueeze(-1)  # in place: the array is large
        else:
            result = self._in_float64(value).to(torch.promote_types(value.dtype, self.bias.dtype))
        ones = (1,) * (self.z.dim() - 2 - len(batch))
        result = result.reshape(self.z.shape[0], *ones, *batch)
        return result.expand(broadcast_shape(result.shape, self.batch_shape))

    def _in_float64(self, value: Tensor, softplus: Tensor | None = None) -> Tensor:
        """log p(value | z) [states, images] for all states and value [..., pixels]: the difference in float64, and
        where it is near 0, the sum over pixels.

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
        """True if `log_marginal` can sum over z: p(z) is a `BernoulliVector` that is the same for all images."""
        # Not for subclasses, which may have another log_prob.
        plain = type(self) is LinearBernoulliVector and type(prior) is BernoulliVector
        return plain and self.z is z and prior.logits.dim() == 1 and self.z.shape[-1:] == prior.event_shape

    def log_marginal(self, value: Tensor, prior: BernoulliVector) -> Tensor | None:
        """log sum_z p(z) p(value | z) over all states, in nats, [images], for value [images, pixels]. None if z is not
        `enumerate_support()`. With b the logits of p(z),

            log p(x) = log sum_z exp(z . (W x + b) - s(z)) + c . x - sum_m softplus(b_m),

        where `log_sum_over_states` takes the sum without an array of states and images.

        Without gradients everything is in float64, and log p(x) near 0 is computed as
        log(1 - sum_z p(z) [1 - p(x | z)]), whose terms have one sign. The error is below 1e-6 of any log p(x).

        :param prior: p(z), the same for all images.
        """
        self._check(value)
        if not self._is_support(value):
            return None
        if not differentiated(value, self.weight, self.bias, prior.logits):
            wide = LinearBernoulliVector(self.z, self.weight.double(), self.bias.double(), validate_args=False)
            return wide._log_marginal(value.double(), prior.logits.double(), exact=True)
        return self._log_marginal(value, prior.logits.double()).to(self.bias.dtype)

    def _log_marginal(self, value: Tensor, logits: Tensor, exact: bool = False) -> Tensor:
        evidence, offset = (part.double() for part in self._evidence(value))
        softplus = softplus_over_states(self.weight, self.bias).double()
        log_total = log_sum_over_states(-softplus, evidence + logits.unsqueeze(-1))
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
        """True if z is `enumerate_support()`, in a dimension on the left of all dimensions of the value."""
        units = self.z.shape[-1]
        return (
            units <= _MAX_UNITS
            and not self.z.requires_grad
            and self.z.shape[:1] == (2**units,)
            and self.z.numel() == 2**units * units
            and value.dim() < self.z.dim()
            and not traced()
            and torch.equal(self.z.reshape(-1, units), binary_states(units, self.z.dtype, self.z.device))
        )

    def _like(self) -> Tensor:
        return self.bias


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """p(x) = C(l) exp(x l) / (1 + exp(l)) for x in [0, 1], with C(l) = l / tanh(l / 2): Loaiza-Ganem and Cunningham
    (2019), equations 6 and 7, in log-odds l.

    Torch's class computes from the probability sigmoid(l). In float32 it rounds to 1 from l = 17 on: C(l) then stops
    growing, which is a nat too little for each pixel at l = 50, and the mean is too large. Near l = 0, 1 - 2 sigmoid(l)
    loses digits. Here everything is computed from l, near 0 by its Taylor series.

    >>> grey = ContinuousBernoulli(logits=torch.tensor([-50.0, 0.0, 50.0]))
    >>> grey.mean
    tensor([0.0200, 0.5000, 0.9800])
    >>> grey.log_prob(torch.tensor(0.5))
    tensor([-21.0880,   0.0000, -21.0880])
    """

    def _cont_bern_log_norm(self) -> Tensor:
        series, near, y = _near_zero(self.logits / 2, 0.02)
        squared = series.square()
        small = squared / 3 * (1 - squared * (7 / 30) * (1 - squared * (124 / 441) * (1 - squared * (381 / 1240))))
        return math.log(2) + torch.where(near, small, (y / y.tanh()).log())

    def _mean(self, logits: Tensor) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l, whose series is 1/2 + l/12 - l^3/720 + …"""
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
        off, on = _surprisals(self.logits)
        return self._cont_bern_log_norm() - (value * on + (1 - value) * off)

    # Both functions are computed for negative log-odds, which have no large exponentials: x -> 1 - x changes the sign.

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
    """The argument of a series around 0, the mask of entries where the series holds, and the argument of the formula
    for all others. In each argument the entries of the other are replaced, so that no gradient is NaN."""
    near = array.abs() < limit
    return torch.where(near, array, 0.0), near, torch.where(near, 1.0, array)


def _surprisals(logits: Tensor) -> tuple[Tensor, Tensor]:
    """-log p(0) and -log p(1) of each pixel. In their sum, weighted by 1 - x and x, no terms cancel; and the derivative
    at l = 0 is right, where those of relu(l) and |l| are taken as 0."""
    return F.softplus(logits, threshold=40), F.softplus(-logits, threshold=40)


def _moderate(logits: Tensor) -> bool:
    """True if all log-odds are known to be below `_LARGE_LOGIT` in size."""
    if traced() or logits.numel() == 0:
        return False
    return logits.detach().abs().amax().item() < _LARGE_LOGIT


def _softplus_sum(logits: Tensor) -> Tensor | None:
    """sum_d softplus(l_d) [...], for a difference of matrix product and sum that is exact enough for a training step;
    None for log-odds so large that it is not."""
    total = softplus_sum(logits) if logits.numel() >= _MANY_LOGITS else None
    return F.softplus(logits, threshold=40).sum(-1) if total is None and _moderate(logits) else total


def _contract(value: Tensor, logits: Tensor) -> Tensor:
    """Sum over pixels of value x logits, as a matrix product if batch dimensions broadcast against each other."""
    if broadcast_shape(value.shape, logits.shape) in (value.shape, logits.shape):
        return (value * logits).sum(-1)  # einsum would make a product of a matrix and a vector for each image
    return torch.einsum("...d,...d->...", value, logits)


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """KL(q || p) in nats, in closed form, for log-odds [..., pixels], which may be infinite."""
    result = torch.zeros_like(q[..., 0] + p[..., 0])
    for sign in (1, -1):
        chance, less = (sign * q).sigmoid(), F.softplus(-sign * p, threshold=40) - F.softplus(-sign * q, threshold=40)
        result = result + torch.where(chance == 0, 0.0, chance * less).sum(-1)
    return result


@dist.kl.register_kl(BernoulliVector, BernoulliVector)
def _kl_of_vectors(q: BernoulliVector, p: BernoulliVector) -> Tensor:
    result = _kl(q.logits, p.logits)
    return result.expand(broadcast_shape(result.shape, q.batch_shape, p.batch_shape))


def has_probs(bernoulli: Any) -> bool:
    """True if a Bernoulli was constructed from probabilities. Torch stores its log-odds too once they are read."""
    return bernoulli._param is not bernoulli.__dict__.get("logits")


def _as_vector(other: Independent) -> BernoulliVector:
    """`dist.Bernoulli(…).to_event(1)` as a vector."""
    base: Any = other.base_dist
    if not isinstance(base, torch.distributions.Bernoulli) or other.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"a BernoulliVector has no KL divergence to {other}")
    return BernoulliVector(base.probs.logit() if has_probs(base) else base.logits, validate_args=False)


@dist.kl.register_kl(BernoulliVector, Independent)
def _kl_to_independent(q: BernoulliVector, p: Independent) -> Tensor:
    return _kl_of_vectors(q, _as_vector(p))


@dist.kl.register_kl(Independent, BernoulliVector)
def _kl_from_independent(q: Independent, p: BernoulliVector) -> Tensor:
    return _kl_of_vectors(_as_vector(q), p)
