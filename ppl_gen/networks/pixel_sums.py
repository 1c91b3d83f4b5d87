"""log p(x) of independent binary pixels, with one logarithm for eight pixels.

For log-odds l,

    log p(x) = -sum_d log(1 + exp(s_d l_d)) = -log prod_d (1 + exp(s_d l_d)),    where s = 1 - 2 x.

Products of eight factors are made before the logarithm, which takes longer than the multiplications. A product
overflows where eight pixels have a log-probability below -88 nats, or -700 in float64.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_GROUP = 8  # pixels for each logarithm
_BLOCK = 2**18  # factors at a time without gradients
_SUMMED = (torch.float32, torch.float64)
_NEAR = 0.01  # nats for each pixel, below which the rounding of 1 + exp(…) could count


def traced() -> bool:
    """True while torch.compile or a transform of torch.func runs, or a CUDA graph is recorded, and no branch may depend
    on a tensor's values."""
    return _recording.is_set() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


_recording = Event()


@contextmanager
def recording() -> Iterator[None]:
    """Make `traced` true, while a step is recorded that is to be repeated with other numbers.

    >>> with recording():
    ...     traced()
    True
    """
    _recording.set()
    try:
        yield
    finally:
        _recording.clear()


def untracked(*parts: Tensor) -> bool:
    """True for tensors of torch's own types outside of transforms. Others, such as those by which Pyro's
    `TraceGraph_ELBO` finds what depends on what, are lost in an `autograd.Function`."""
    return not traced() and all(type(part) in (Tensor, torch.nn.Parameter) for part in parts)


def differentiated(*parts: Tensor) -> bool:
    """True if any of the tensors requires a gradient, and gradients are on."""
    return torch.is_grad_enabled() and any(part.requires_grad for part in parts)


def log_prob_by_pixels(value: Tensor, logits: Tensor) -> Tensor:
    """log p(value) of Bernoulli pixels in nats, [...].

    Without gradients no terms cancel. With gradients, and for values other than 0 and 1, the result may be the
    difference x . l - sum_d softplus(l_d).

    >>> log_prob_by_pixels(torch.ones(2), torch.zeros(3, 2))
    tensor([-1.3863, -1.3863, -1.3863])

    :param value: [..., pixels], which broadcasts to the shape of the logits.
    :param logits: [..., pixels], of the same dtype.
    """
    with_gradient = differentiated(value, logits)
    on_cpu = logits.device.type == "cpu"
    # Torch's own is the fastest for few images, and on a GPU, which waits for memory and for a look at the result.
    if with_gradient and (value.shape == logits.shape or not on_cpu):
        return -F.binary_cross_entropy_with_logits(logits, value.expand_as(logits), reduction="none").sum(-1)
    products = on_cpu and logits.dtype in _SUMMED and untracked(value, logits)
    result = log_prob_of_binary(value, logits) if products and not (with_gradient and value.requires_grad) else None
    if result is not None and with_gradient:
        if math.isfinite(result.sum().item()):
            return result
    elif result is not None:
        # Products that overflow, and values so near 0 that the rounding of factors may count.
        apart = result.isinf() | ~(result < -_NEAR * logits.shape[-1])
        if apart.any():
            result[apart] = _one_sign(value.expand_as(logits)[apart], logits[apart])
        return result
    if with_gradient:
        # Above the threshold torch takes softplus(l) as l. Above 40 that is exact in float64 too.
        return (value * logits - F.softplus(logits, threshold=40)).sum(-1)
    return _one_sign(value, logits)


def _one_sign(value: Tensor, logits: Tensor) -> Tensor:
    """log p(value) as a sum of terms of one sign."""
    # In place, x l is subtracted without another large array.
    less = torch.addcmul if traced() else Tensor.addcmul_
    return (less(logits.relu(), value, logits, value=-1) + F.softplus(logits.abs().neg_())).sum(-1).neg()


def log_of_product(factors: Tensor) -> Tensor:
    """sum_d log(factors_d) [...] of factors [..., pixels], which are at least 1; inf where a product overflows.

    >>> log_of_product(torch.full((2, 19), 2.0)) / torch.tensor(2.0).log()
    tensor([19., 19.])
    """
    groups, rest = divmod(factors.shape[-1], _GROUP)
    if rest == 0:
        return factors.unflatten(-1, (_GROUP, groups)).prod(-2).log_().sum(-1)
    last = factors[..., -rest:].prod(-1).log_()
    return log_of_product(factors[..., :-rest]).add_(last) if groups else last


def softplus_sum(logits: Tensor) -> Tensor | None:
    """sum_d softplus(l_d) [...] of logits [..., pixels], from one logarithm for eight pixels; None where a product
    overflows, or products are no faster.

    >>> softplus_sum(torch.zeros(3, 2))
    tensor([1.3863, 1.3863, 1.3863])
    >>> softplus_sum(torch.full((3, 8), 20.0)) is None
    True
    """
    if logits.device.type != "cpu" or logits.dtype not in _SUMMED or not untracked(logits):
        return None
    result: Tensor = -_LogProb.apply(logits, None)
    return result if math.isfinite(result.detach().sum().item()) else None


class _LogProb(torch.autograd.Function):
    """-log prod_d (1 + exp(s_d l_d)) [...], with the gradient s (1 / (1 + exp(s l)) - 1). Without signs, s is 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, signs: Tensor | None) -> Tensor:
        factors = (logits.exp() if signs is None else (logits * signs).exp_()).add_(1)
        ctx.save_for_backward(logits, signs, factors)
        return log_of_product(factors).neg_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, signs, factors = ctx.saved_tensors
        s = 1 if signs is None else signs
        # To be differentiated again, it must depend on the logits: factors are numbers alone.
        slope = -s * (logits * s).sigmoid() if torch.is_grad_enabled() else (s / factors).sub_(s)
        return slope.mul(gradients[0].unsqueeze(-1)), None


def log_prob_of_binary(value: Tensor, logits: Tensor) -> Tensor | None:
    """log p(value) in nats, [...], differentiable with respect to the logits any number of times; -inf where a product
    overflows. None for values other than 0 and 1.

    With signs s = 1 - 2 x it is -log prod_d (1 + exp(s_d l_d)), where no terms cancel. Its error is at most 6e-8 nats
    for each pixel in float32, and about 1e-7 of its size if pixels are not near certain.

    >>> log_prob_of_binary(torch.tensor([0.0, 1.0]), torch.zeros(3, 2))
    tensor([-1.3863, -1.3863, -1.3863])

    :param value: [..., pixels], which broadcasts to the shape of the logits.
    :param logits: [..., pixels].
    """
    if not torch.equal(value * value, value):
        return None
    signs = torch.rsub(value, 1, alpha=2)
    if torch.is_grad_enabled() and logits.requires_grad:
        result: Tensor = _LogProb.apply(logits, signs)
        return result
    return _in_blocks(logits, signs).neg_()


def _in_blocks(logits: Tensor, signs: Tensor) -> Tensor:
    """log prod_d (1 + exp(s_d l_d)) [...], without gradients. The factors of a few rows at a time stay in the cache."""
    if logits.numel() <= _BLOCK or signs.dim() >= logits.dim():
        return log_of_product((logits * signs).exp_().add_(1))
    rows = max(1, _BLOCK * len(logits) // logits.numel())
    factors, result = torch.empty_like(logits[:rows]), logits.new_empty(logits.shape[:-1])
    for block, out in zip(logits.split(rows), result.split(rows), strict=True):
        out.copy_(log_of_product(torch.mul(block, signs, out=factors[: len(block)]).exp_().add_(1)))
    return result
