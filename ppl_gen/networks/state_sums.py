"""Sums over all 2^M states z of M binary units, for which log p(x) of a sigmoid belief net is exact.

`softplus_over_states` gives sum_d softplus((z W + c)_d) for every z. `log_sum_over_states` gives
log sum_z exp(score(z) + z . e) for the vector e of every image. `LinearBernoulliVector` derives log p(x) from the two.

Both split the units into low and high ones, so that a state is a pair (low, high) and z . w = low . w_low + high .
w_high. The exponential of such a sum is a product of a factor for the low state and a factor for the high state. A sum
of such products over subsets of pixels, or over low states, is a matrix product. It takes the place of an exponential
for every state and pixel, or for every state and image.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Sizes, by measurement:
_GROUP = 4  # pixels in a group; with more, the multiplications take longer than the logarithms that they save
_FOLDS = 2  # with more, the logarithms that remain cost no more than the products
_MOST_LOW = 9  # low units of a softplus; with more, adding up their gradient takes longer than making the block
_CHUNK_BYTES = 2**21  # of numbers in work at once: smaller pieces wait for threads more than for memory
_LOW_UNITS = 7  # low units of a sum over states; with more, the exponentials that are saved no longer count
_LARGEST_SPREAD = 640.0  # of exponents: exp(-708) is the smallest normal number in float64


def binary_states(units: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Tensor:
    """All binary vectors [2^units, units]. Bit m of the index of a state is its unit m.

    >>> binary_states(2)
    tensor([[0., 0.],
            [1., 0.],
            [0., 1.],
            [1., 1.]])
    """
    states = torch.zeros(2**units, units, dtype=dtype, device=device)
    few = min(units, 12)  # the bits of a few units are made at once, and those of further units by copying
    index, bits = (torch.arange(count, dtype=torch.int32, device=device) for count in (2**few, few))
    states[: 2**few, :few] = (index.unsqueeze(-1) >> bits) & 1
    for unit in range(few, units):
        known, following = states[: 2**unit], states[2**unit : 2 ** (unit + 1)]
        following.copy_(known)[:, unit] = 1
    return states


def softplus_over_states(weight: Tensor, bias: Tensor, chunk_bytes: int | None = None) -> Tensor:
    """sum_d softplus((z @ weight + bias)_d) for all binary z, [2^M] in the order of `binary_states`.

    Memory, forward and backward: 4 numbers for each pixel and each state of one half of the units (above M = 18, of
    9 units and of all others), and `chunk_bytes` for numbers of states and groups of pixels. It has first derivatives
    alone.

    >>> softplus_over_states(torch.zeros(3, 5), torch.zeros(5)) / math.log(2)
    tensor([5., 5., 5., 5., 5., 5., 5., 5.])

    :param weight: [M, pixels].
    :param bias: [pixels].
    :param chunk_bytes: size of the numbers in work at once.
    """
    if chunk_bytes is None:
        chunk_bytes = _CHUNK_BYTES if not weight.is_cuda else 2**27
    result: Tensor = _SoftplusOverStates.apply(weight, bias, chunk_bytes // bias.element_size())
    return result


class _SoftplusOverStates(torch.autograd.Function):
    """The logits of a state are those of its low units plus those of its high units. Its odds exp(l_d) are therefore
    products a_d b_d. For a group of pixels,

        sum_d softplus(l_d) = log prod_d (1 + a_d b_d),
        prod_d (1 + a_d b_d) = sum_S (prod_{d in S} a_d) (prod_{d in S} b_d)    over the subsets S of the group.

    For all states together the second line is a matrix product. It takes 2^|group| multiplications instead of |group|
    exponentials for each state, and one logarithm for each state and group."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, size: int) -> Tensor:
        cut = min(_MOST_LOW, (len(weight) + 1) // 2)
        states = [binary_states(len(part), weight.dtype, weight.device) for part in (weight[:cut], weight[cut:])]
        # Logits [pixels, low states], which include the bias, and [pixels, high states].
        low, high = torch.addmm(bias.unsqueeze(-1), weight[:cut].T, states[0].T), weight[cut:].T @ states[1].T
        result = bias.new_zeros(len(states[1]), len(states[0]))
        ctx.folds, ctx.size, ctx.pixels = _folds(low, high), size, len(bias)
        if ctx.folds is None:  # odds may overflow: logits are added, and every softplus is computed
            for out, part in zip(result, high.T, strict=True):
                torch.sum(F.softplus(low + part.unsqueeze(-1), threshold=40), 0, out=out)
        else:
            low, high = _subsets(low), _subsets(high).mT
            for groups, rows in _blocks(len(low), result, size):
                factors = torch.bmm(high[groups, rows], low[groups])  # prod_d (1 + a_d b_d) [groups, high, low]
                for _ in range(ctx.folds):  # the logarithm of a product of two groups: half as many logarithms
                    if len(factors) % 2 == 0:
                        left, right = factors.chunk(2)
                        factors = left.mul_(right)
                result[rows] += factors.log_().sum(0)
        ctx.save_for_backward(*states, low, high)
        return result.flatten()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # torch does not refuse by itself if another path leads to the input
            raise NotImplementedError("a sum over all states of a belief net has no second derivative here")
        states_low, states_high, low, high = ctx.saved_tensors
        grad = gradients[0].reshape(len(states_high), len(states_low))
        # Gradients of the logits [pixels, low states] and [pixels, high states].
        grad_low, grad_high = torch.zeros_like(low), torch.zeros_like(high)
        if ctx.folds is None:
            # d softplus(l) = sigmoid(l) dl, summed for each low state over the high states, and the other way round.
            for each, part, out in zip(grad, high.T, grad_high.T, strict=True):
                slope = (low + part.unsqueeze(-1)).sigmoid_()
                out.copy_(slope @ each)
                grad_low.addcmul_(slope, each)
        else:
            # The result is log(L R) of a matrix product L R, so that dL = (grad / L R) R^T and dR = L^T (grad / L R).
            for groups, rows in _blocks(len(low), grad, ctx.size):
                left, right = high[groups, rows], low[groups]
                slope = torch.bmm(left, right)
                torch.div(grad[rows], slope, out=slope)
                grad_high[groups, rows] += torch.bmm(slope, right.mT)
                grad_low[groups] += torch.bmm(left.mT, slope)
            # Entries of L and R are exponentials: their gradients times the entries are those of the exponents, and an
            # exponent is the sum of the logits of the subset.
            parts = grad_low.mul_(low), grad_high.mul_(high).mT
            grad_low, grad_high = (_of_members(part)[: ctx.pixels] for part in parts)
        return torch.cat([grad_low @ states_low, grad_high @ states_high], 1).T, grad_low.sum(1), None


def _grouped(array: Tensor, value: float) -> Tensor:
    """[members, groups, ...] of [pixels, ...], filled up with `value`. Pixels of a group are far from each other."""
    groups = -(-len(array) // _GROUP)
    missing = array.new_full((groups * _GROUP - len(array), *array.shape[1:]), value)
    return torch.cat([array, missing]).unflatten(0, (_GROUP, groups))


def _subsets(logits: Tensor) -> Tensor:
    """exp of the sum of the logits [pixels, states] in each subset of each group, [groups, subsets, states]. Bit m of
    the index of a subset is its member m."""
    odds = _grouped(logits, -math.inf).exp_().unsqueeze(2)
    result = odds.new_ones(odds.shape[1], 2**_GROUP, logits.shape[1])
    for member, each in enumerate(odds):  # subsets with this member are the subsets before, times its odds
        torch.mul(result[:, : 2**member], each, out=result[:, 2**member : 2 ** (member + 1)])
    return result


def _of_members(array: Tensor) -> Tensor:
    """The sum over the subsets that contain a pixel, [pixels, states] of [groups, subsets, states]."""
    members = binary_states(_GROUP, array.dtype, array.device).T @ array
    return members.transpose(0, 1).flatten(0, 1)


def _folds(low: Tensor, high: Tensor) -> int | None:
    """The number of times that products of groups can be multiplied by each other without overflow in any state. None
    if the product of a single group could overflow, or if it could lose a subset.

    A subset counts in a product if a_S b_S is above eps. With b_S below eps times the largest number, its a_S is then
    above one over the largest number, and does not underflow."""
    limits = torch.finfo(low.dtype)
    largest, least = math.log(limits.max) - 2, -math.log(limits.eps)
    tops = [part.amax(1) for part in (low, high)]  # the largest logit of each pixel
    parts = [_grouped(top.relu(), 0.0).sum(0).max() for top in tops]  # the largest log a_S and log b_S
    whole = _grouped(F.softplus(tops[0] + tops[1]), 0.0).sum(0).max()  # the largest log of a group's product
    part, product = torch.stack([torch.maximum(*parts), whole]).tolist()
    if not (part < largest - least and product < largest):
        return None
    return next(folds for folds in range(_FOLDS, -1, -1) if product * 2**folds < largest)


def _blocks(groups: int, states: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of groups, and of rows of states [rows, columns], with about `size` numbers in each block. The number of
    groups in a block can be halved `_FOLDS` times."""
    rows, columns = states.shape
    least = 2**_FOLDS
    high = min(rows, max(1, size // (columns * least)))
    deep = max(1, size // (high * columns * least)) * least
    for group in range(0, groups, deep):
        for row in range(0, rows, high):
            yield slice(group, group + deep), slice(row, row + high)


def log_sum_over_states(scores: Tensor, evidence: Tensor) -> Tensor:
    """log sum_z exp(scores_z + z . evidence) for each image, [images], in float64.

    With the states as pairs, scores_z = t(high, low) and z . evidence = u(low, image) + v(high, image). Then

        sum_z exp(…) = sum_high exp(v) sum_low exp(t) exp(u),

    where the sum over low states is a matrix product. Exponentials are made for every state, and for every image and
    part of a state, but not for every state and image.

    >>> log_sum_over_states(torch.zeros(8).double(), torch.zeros(3, 2).double()) / math.log(2)
    tensor([3., 3.], dtype=torch.float64)

    :param scores: [2^M] in the order of `binary_states`, float64.
    :param evidence: [M, images], float64.
    """
    t, evidence = _centred(scores, evidence)
    most_t = t.detach().amax(-1, keepdim=True)
    scaled = (t - most_t).exp()
    # Fewer images at a time where few low units leave many high states.
    blocks = evidence.split(max(1, _CHUNK_BYTES // len(t)), 1)
    return torch.cat([_over_states(scaled, most_t, block) for block in blocks], -1)


def _centred(scores: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """t [high, low] of the scores, with as many low units as float64 can sum, and the evidence [M, images]. A term that
    is linear in the low units is taken from t and added to the evidence, which leaves the sums the same and makes the
    range of t small.

    exp(t) is divided by the largest of its row, and exp(u) by the largest of its image. Some term of the sum over low
    states is then at least exp(-span), where span is the smaller of two ranges: the range of t in the row (take the
    term with the largest u), and the range of u (take the term with the largest t). It must not underflow."""
    for units in range(min(_LOW_UNITS, len(evidence)), 0, -1):
        states = binary_states(units, scores.dtype, scores.device)
        t = scores.reshape(-1, 2**units)
        slopes = t.detach() @ (2 * states - 1) / 2 ** (units - 1)  # mean difference that a unit makes in each row
        middle = (slopes.amax(0) + slopes.amin(0)) / 2
        t, low = t - states @ middle, evidence[:units] + middle.unsqueeze(-1)
        largest, least = t.detach().aminmax(dim=1)[::-1]
        span = (largest - least).amax()
        if low.numel():
            span = torch.minimum(span, low.detach().abs().sum(0).amax())
        if span < _LARGEST_SPREAD:
            return t, torch.cat([low, evidence[units:]])
    return scores.unsqueeze(-1), evidence  # no low units: nothing is summed as a matrix product


def _over_states(scaled: Tensor, most: Tensor, evidence: Tensor) -> Tensor:
    """log sum_z exp(log scaled + most + z . evidence) [images], of scaled [high, low] and most [high, 1]."""
    units = int(math.log2(scaled.shape[1]))
    u, v = (binary_states(len(part), part.dtype, part.device) @ part for part in (evidence[:units], evidence[units:]))
    largest = u.detach().amax(0)
    total = scaled @ (u - largest).exp()
    return (total.log() + most + v).logsumexp(0) + largest
