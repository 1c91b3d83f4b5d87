"""Likelihoods of images with missing pixels. A missing pixel is NaN in x, and every image may miss others.

For pixels that are independent given z, p(x | z) = p(x_obs | z) p(x_mis | z). Missing pixels are therefore marginalized
by leaving them out of the sum over pixels, and log p(x_obs) = log integral p(z) p(x_obs | z) dz (Mattei and Frellsen
2019).
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent

from ppl_gen.core.contracts import ObservesPixels, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.networks.supports import parts


def is_missing(x: Tensor) -> Tensor:
    """True where a pixel is missing, bool, in the shape of x."""
    return x.isnan()


def any_missing(x: Tensor) -> bool:
    """True if a pixel of any image is missing."""
    return bool(is_missing(x).any())


def observed_part(likelihood: Any, observed: Tensor) -> Any:
    """p(x_obs | z) as a distribution with the event shape of p(x | z). Values at missing pixels do not count.

    >>> seen = observed_part(dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.tensor([True, False, False]))
    >>> seen.log_prob(torch.tensor([0.0, 5.0, 5.0]))
    tensor(-0.9189)

    :param observed: true for observed pixels, bool, in the shape of the images.
    :raises BadInput: if the pixels are not known to be independent given z.
    """
    if offers(likelihood, ObservesPixels):
        return likelihood.observed(observed)
    if isinstance(likelihood, dist.MaskedDistribution):
        return observed_part(likelihood.base_dist, observed).mask(likelihood._mask)
    if isinstance(likelihood, Independent):
        return observed_part(likelihood.base_dist, observed).to_event(likelihood.reinterpreted_batch_ndims)
    if not likelihood.event_shape:
        return likelihood.mask(observed)
    raise BadInput(
        f"missing pixels must be independent of the others given z: a {type(likelihood).__name__} of images needs "
        "to_event(1) or a method observed(pixels)"
    )


def filled(likelihood: Any, x: Tensor, observed: Tensor) -> Tensor:
    """Images with a number in place of NaN where the likelihood is finite: its gradient is multiplied by 0, which would
    leave NaN as it is. 0 is a value of every count, 1/2 is inside every interval of grey values."""
    try:
        discrete = bool(likelihood.support.is_discrete)
    except (NotImplementedError, AttributeError):
        discrete = False
    return torch.where(observed, x, 0.0 if discrete else 0.5)


def observed_log_prob(likelihood: Any, x: Tensor) -> Tensor:
    """log p(x | z) in nats; of images with missing pixels, log p(x_obs | z).

    :raises BadInput: for missing pixels that are not known to be independent of the others given z.
    """
    if not any_missing(x):
        result: Tensor = likelihood.log_prob(x)
        return result
    missing = is_missing(x)
    part: Tensor = observed_part(likelihood, ~missing).log_prob(filled(likelihood, x, ~missing))
    return part


def mean_of(likelihood: Any, what: str) -> Tensor:
    """E[x | z] of a likelihood.

    :param what: what needs it, in the message.
    :raises BadInput: for a distribution whose mean Pyro does not know.
    """
    try:
        mean: Tensor = likelihood.mean
    except NotImplementedError as error:
        wrappers = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)
        kind = next(type(part).__name__ for part in parts(likelihood) if not isinstance(part, wrappers))
        raise BadInput(
            f"{what} needs the mean of p(x | z), which {kind} does not know; give it a property mean"
        ) from error
    return mean
