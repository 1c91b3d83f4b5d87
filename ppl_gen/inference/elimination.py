"""The sum over the values of some sites of a trace, each enumerated in a dimension of its own (variable elimination).

One site after the other is summed out, each from the product of only those factors that depend on it. Sums are in log
space: factors are added first, and the maximum of their sum is subtracted. Pyro's `TraceEnum_ELBO` subtracts the
maximum of each factor instead. In float32 it then loses a state that explains x but is 90 nats less probable a priori
than another.
"""

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.inference.densities import Site, add, expand_to_plates, plates_of
from ppl_gen.inference.tracing import PyroFunction
from ppl_gen.networks.supports import without_masks

ROUNDING = 1e-3  # nats; the log of a sum of probabilities below this size means that they add up to 1
_NEAR = 0.5  # nats; closer to 0, log p is computed from 1 - p, see `sum_out`
_MOST_DIMENSIONS = 60  # of a tensor, of which torch allows 64

Factors = dict[frozenset[int], list[Tensor]]
"""Log-densities of sites, keyed by the dimensions of the plates around them inside the plate of images."""


class ByValue(NamedTuple):
    """Log-densities [values, samples, images] for each value of the sites that a guide enumerates."""

    trace: poutine.Trace
    """Trace of the guide."""
    sizes: tuple[int, ...]
    """Number of values in each enumerated dimension, from left to right."""
    log_likelihood: Tensor
    """log p(x | y, z_y)."""
    log_prior: Tensor
    """log p(y, z_y)."""
    log_value: Tensor
    """log q(y | x)."""
    log_share: Tensor
    """The same without a mask of y: the shares of the values, which add up to 1. A masked y is drawn from them."""
    log_guide: Tensor
    """log q(z_y | x, y)."""
    penalty: Tensor | None
    """Log-densities of the guide's observed sites and factors."""
    values: dict[str, Tensor]
    """Values of the latent sites, with a dimension of all y on the left."""

    @property
    def log_weight(self) -> Tensor:
        """log p(x, y, z_y) / q(z_y | x, y)."""
        return self.log_likelihood + self.log_prior - self.log_guide + (self.log_share - self.log_value).nan_to_num()


def enumerating(function: PyroFunction, names: Collection[str] | None, first_dim: int | None) -> PyroFunction:
    """Wrap a Pyro function to take all values of some of its latent sites in parallel.

    Each site has a dimension of its own, also inside a `pyro.markov`, where Pyro would use dimensions again.

    :param names: names of the sites; None for all latent sites.
    :param first_dim: rightmost dimension to use; None to go on left of those in use, as in a model after its guide.
    """

    def configure(site: Site) -> dict[str, object]:
        chosen = names is None or site["name"] in names
        return {"enumerate": "parallel" if chosen else None, "_markov_scope": None}

    return poutine.enum(poutine.infer_config(function, configure), first_available_dim=first_dim)


def log_sum(
    sites: Collection[Site],
    names: Collection[str],
    density: Callable[[Site], Tensor],
    kept: Collection[str],
    num_dims: int,
    who: str,
) -> Tensor:
    """log of the sum over all values of some sites of the product of the densities of all sites.

    :param names: the sites to sum over.
    :param density: log-density of a site, before any sum.
    :param kept: names of the plates that stay: those of samples and of images.
    :param num_dims: least number of dimensions of the result.
    :param who: name of the function, for messages.
    :returns: a tensor in which all dimensions have size 1 but those of the plates in `kept` and those that other sites
        are enumerated in.
    """
    factors: Factors = {frozenset(): []}
    dims: dict[frozenset[int], list[int]] = {}
    priors: dict[int, Tensor] = {}  # keyed by the dimension over which each is normalized
    sizes: dict[int, int] = {}  # of the plates that stay
    for site in sites:
        plates = frozenset(frame.dim for frame in plates_of(site) if frame.name not in kept)
        summed = site["name"] in names
        # A masked log-density is 0 in every state, and would count each image once for every state.
        factor = expand_to_plates(site, density(without_masks(site) if summed else site), num_dims)
        staying = {frame.dim: frame.size for frame in plates_of(site) if frame.name in kept}
        factor, sizes = _once(factor, staying), sizes | staying
        if summed:
            dim = site["infer"].get("_enumerate_dim")
            if dim is None or -dim > _MOST_DIMENSIONS:
                reason = "has no finite support" if dim is None else "is one too many: tensors have 64 dimensions"
                raise BadInput(f"{who}: latent site '{site['name']}' {reason}; it cannot be enumerated")
            dims.setdefault(plates, []).append(dim)
            if not torch.is_grad_enabled():
                total = factor.logsumexp(dim, keepdim=True)
                # A mask on part of an event is not removed above. Such a site adds up to more than 1.
                if bool((total.abs() < ROUNDING).all()):
                    factor = priors[dim] = factor - total
        factors.setdefault(plates, []).append(factor)
    result = _eliminate(factors, dims, priors, who)
    shape = [sizes.get(dim, 1) if result.shape[dim] == 1 else -1 for dim in range(-result.dim(), 0)]
    return result.expand(shape)


def _once(factor: Tensor, plates: Collection[int]) -> Tensor:
    """A factor without the repetitions that a distribution which is the same for all images has in their plate. The
    sum over the values of a layer given another is then made once, not for each image.

    :param plates: dimensions of plates that stay.
    """
    for dim in plates:
        if factor.shape[dim] > 1 and factor.stride(dim) == 0:
            factor = factor.narrow(dim, 0, 1)
    return factor


def _eliminate(factors: Factors, dims: dict[frozenset[int], list[int]], priors: dict[int, Tensor], who: str) -> Tensor:
    """log of the sum over all states of the product of all factors, by variable elimination: the sites in the innermost
    plate are summed out first, then the product over that plate is taken.

    :param dims: enumerated dimensions of the sites in each set of plates.
    :param priors: factors that are normalized over an enumerated dimension.
    :raises BadInput: for a factor that depends on a site in a plate which it is not in itself: a sum over the site in
        each element of the plate by itself would be another one.
    """
    for plates in sorted(factors, key=len, reverse=True):  # innermost first
        remaining = factors[plates]
        if any(_depending(remaining, dim) for other in dims if not other <= plates for dim in dims[other]):
            raise BadInput(
                f"{who} cannot be enumerated: a site depends on another one in a plate that is not around both; nest "
                "the plates, or put the values of a plate into one event"
            )
        left = sorted(dims.get(plates, []))  # the last site has the leftmost dimension
        while left:
            # The site with the smallest product of factors first, so that no large one is made before it must be.
            dim = min(left, key=lambda dim: _size(_depending(remaining, dim)))
            left.remove(dim)
            with_it = _depending(remaining, dim)
            without = [f for f in remaining if not any(f is other for other in with_it)]
            remaining = [*without, *([sum_out(with_it, priors.get(dim), dim)] if with_it else [])]
        if not plates:
            return add(remaining)
        parent = max((other for other in factors if other < plates), key=len)
        factors[parent] += [f.sum(sorted(plates - parent), keepdim=True) for f in remaining]
    raise AssertionError("the images' own plate is always among the factors")


def _depending(factors: list[Tensor], dim: int) -> list[Tensor]:
    """The factors that depend on a dimension."""
    return [factor for factor in factors if factor.dim() >= -dim and factor.shape[dim] > 1]


def _size(factors: list[Tensor]) -> int:
    """Numbers in the product of some factors."""
    return math.prod(broadcast_shape(*(factor.shape for factor in factors)))


def sum_out(factors: list[Tensor], prior: Tensor | None, dim: int) -> Tensor:
    """log of the sum over a dimension of the product of some factors.

    :param prior: the factor that is normalized over this dimension, if there is one. With it, and w the product of the
        others, the sum is 1 + sum_z p(z) (w_z - 1). Near 1 that loses no digits.
    """
    total = add(factors).logsumexp(dim, keepdim=True)
    others = [factor for factor in factors if factor is not prior]
    near = total.abs() < _NEAR
    if prior is None or not others or not bool(near.any()):
        return total
    exact = (prior.exp() * add(others).expm1()).sum(dim, keepdim=True).log1p()
    return torch.where(near & exact.isfinite(), exact, total)
