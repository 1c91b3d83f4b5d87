"""Log-densities of any distribution, in a form with less rounding or less work where there is one.

Torch computes log p of a Bernoulli pixel as x l - softplus(l), which loses digits if the pixel is near certain. Torch's
normal distribution makes ten arrays for a log-density, where six do.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent

from ppl_gen.core.errors import BadInput
from ppl_gen.networks.distributions import BernoulliVector, has_probs
from ppl_gen.networks.pixel_sums import differentiated, log_prob_by_pixels

_NORMAL = (torch.distributions.Normal, dist.Normal)
_BERNOULLI = (torch.distributions.Bernoulli, dist.Bernoulli)
_HALF_LOG_2PI = math.log(2 * math.pi) / 2


def log_density(distribution: Any, value: Tensor, *args: Any, wide: bool = False, **kwargs: Any) -> Tensor:
    """`distribution.log_prob(value)`, for a `Bernoulli` without gradients within 1e-6 of its size. Vectors of Bernoulli
    or normal variables take less time.

    >>> pixel = dist.Bernoulli(logits=torch.tensor(15.0))
    >>> log_density(pixel, torch.tensor(1.0))  # -exp(-15)
    tensor(-3.0590e-07)

    :param wide: compute densities of binary values in float64.
    """
    base = distribution
    while type(base) in (Independent, dist.Independent):
        base = base.base_dist
    kind = type(base)
    if kind in _BERNOULLI:
        return _of_bernoulli(distribution, base, value.double() if wide else value)
    if is_normal_vector(distribution) and not base._validate_args:
        u = (value - base.loc) / base.scale
        terms = torch.addcmul(base.scale.log(), u, u, value=0.5)
        return -(terms.sum(-1) + u.shape[-1] * _HALF_LOG_2PI)
    if wide and isinstance(base, BernoulliVector):
        value = value.double()
    try:
        result: Tensor = distribution.log_prob(value, *args, **kwargs)
    except KeyError as error:
        if "intermediates cache" not in str(error):
            raise
        flow = str(error).strip("'\"").partition(" ")[0]  # such as a planar, radial or Sylvester flow
        raise BadInput(
            f"{flow} has no inverse, and so no density for a z that it has not drawn; use a flow with an inverse"
        ) from error
    return result


def is_normal_vector(distribution: Any) -> bool:
    """True for `Normal(…).to_event(1)`.

    >>> is_normal_vector(dist.Normal(torch.zeros(3), 1.0).to_event(1)), is_normal_vector(dist.Normal(0.0, 1.0))
    (True, False)
    """
    return type(distribution) in (Independent, dist.Independent) and (
        type(distribution.base_dist) in _NORMAL and distribution.reinterpreted_batch_ndims == 1
    )


def _of_bernoulli(distribution: Any, base: Any, value: Tensor) -> Tensor:
    """log p(value) of a `Bernoulli` as it is, or as a vector or array of variables.

    Torch computes x l - softplus(l), which loses digits of a pixel that is near certain, and moves probabilities of 0
    and 1 by one rounding."""
    value, of_probs = value.to(torch.promote_types(value.dtype, base._param.dtype)), has_probs(base)
    if of_probs and differentiated(value, base._param):
        result: Tensor = distribution.log_prob(value)
        return result
    if base._validate_args:
        base._validate_sample(value)
    if of_probs:  # 0 and 1 as torch has them: they may be rounded sigmoids of unknown large numbers
        p, least = base.probs.to(value.dtype), torch.finfo(base.probs.dtype).eps
        terms = torch.xlogy(value, torch.where(p == 0, least, p))
        terms = terms + torch.special.xlog1py(1 - value, -torch.where(p == 1, 1 - least, p))
    else:
        logits = base.logits.to(value.dtype)
        if distribution.event_dim == 1 and logits.shape[-value.dim() :] == value.shape:
            return log_prob_by_pixels(value, logits)
        if differentiated(value, logits):
            whole: Tensor = distribution.log_prob(value)
            return whole
        terms = value * logits - logits.relu() - F.softplus(-logits.abs())
    return terms.sum(tuple(range(-distribution.event_dim, 0))) if distribution.event_dim else terms
