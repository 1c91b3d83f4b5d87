"""Sites of a trace: values, log-densities in nats, and terms of a gradient."""

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape, is_identically_zero, scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_gen.networks.log_density import log_density
from ppl_gen.networks.supports import Site, own_log_prob, parts

_HALF = (torch.float16, torch.bfloat16)
RELATIVE, ABSOLUTE = 2e-5, 5e-4
"""Rounding of log-densities in float32, relative and in nats."""


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """Sample statements of a trace, without the subsample sites of plates and without values that are functions of
    others: those of `pyro.deterministic`, and sites that `poutine.reparam` has replaced."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site) and not _is_deterministic(site)
    ]


def _is_deterministic(site: Site) -> bool:
    if site["infer"].get("_deterministic"):
        return True
    points = [part.v for part in parts(site["fn"]) if isinstance(part, dist.Delta)] if site["is_observed"] else []
    return any(point.data_ptr() == site["value"].data_ptr() for point in points)


def unobserved(trace: poutine.Trace) -> list[str]:
    """Names of the sites of a trace that are not observed."""
    return [site["name"] for site in sample_sites(trace) if not site["is_observed"]]


def plates_of(site: Site) -> list[CondIndepStackFrame]:
    """Vectorized plates around a site. A sequential plate (a loop) has no dimension and is left out."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def masked_log_prob(site: Site, wide: bool = False) -> Tensor:
    """The log-density of a site with its mask and without its scale, before any sum.

    :param wide: compute densities of binary values in float64.
    """
    if "masked_log_prob" in site:  # computed before, see `tracing.frozen_guide_traces`
        return site["masked_log_prob"]
    value = site["value"]
    if value.dtype in _HALF:  # else the sum over pixels would be in half precision
        value = value.float()
    log_prob = own_log_prob(site["fn"], value)
    if log_prob is None:
        log_prob = log_density(site["fn"], value, *site["args"], wide=wide, **site["kwargs"])
    return scale_and_mask(log_prob.float() if log_prob.dtype in _HALF else log_prob, mask=site["mask"])


def expand_to_plates(site: Site, log_prob: Tensor, num_dims: int) -> Tensor:
    """Expand the log-density of a site to the full size of its plates. A density that does not vary in a plate has size
    1 there, or no such dimension. Expanded, it counts once for each element of the plate.

    :param num_dims: least number of dimensions of the result.
    """
    sizes = [1] * num_dims
    for frame in plates_of(site):
        sizes[frame.dim] = frame.size
    return log_prob.expand(broadcast_shape(log_prob.shape, tuple(sizes)))


def add(terms: list[Tensor]) -> Tensor:
    """The sum of tensors in their order; `sum` alone would start with the number 0."""
    return sum(terms[1:], terms[0])


def alike(one: Tensor, other: Tensor) -> bool:
    """True if log-densities are equal up to the rounding of float32, which a pair may have in float64 too."""
    return torch.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


def sum_to(site: Site, log_prob: Tensor, *kept: int) -> Tensor:
    """Sum the log-density of a site over all its plates except those in the dimensions `kept`.

    :param kept: negative dimensions; the leftmost is left of all plates.
    """
    log_prob = expand_to_plates(site, log_prob, -min(kept))
    others = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    return log_prob.sum(others) if others else log_prob


def samples_first(site: Site, sample_dim: int) -> Tensor:
    """The value of a site, padded on the left with dimensions of size 1 up to `sample_dim`."""
    value: Tensor = site["value"]
    padding = site["fn"].event_dim - sample_dim - value.dim()
    return value.reshape([1] * padding + list(value.shape))


def units_of(site: Site, shape: tuple[int, int], sample_dim: int, image_dim: int) -> Tensor:
    """The value of a site as [samples, images, units].

    :param shape: numbers of samples and images.
    :param sample_dim: dimension of the samples, counted from the right without the event.
    :param image_dim: dimension of the plate of images, counted in the same way.
    """
    value = samples_first(site, sample_dim)
    value = value.movedim(value.dim() - site["fn"].event_dim + image_dim, 1)
    value = value.reshape(*shape, *value.shape[2:])
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)


def kl_divergence(q: Site, p: Site) -> Tensor:
    """KL(q || p) of the distributions at two sites, with the mask of q, before any sum.

    :raises NotImplementedError: if Pyro has no closed form.
    """
    return scale_and_mask(torch.distributions.kl_divergence(q["fn"], p["fn"]), mask=q["mask"])


def score_function(site: Site) -> Tensor | None:
    """The log-probability whose gradient is the score of a discrete choice, in a distribution whose samples are
    otherwise reparametrized, such as a mixture. It comes from Pyro's `score_parts`, with the mask of the site and
    without its scale. None for all other distributions."""
    fn = site["fn"]
    if not fn.has_rsample or type(fn).score_parts is dist.Distribution.score_parts:
        return None
    score = fn.score_parts(site["value"].detach()).score_function
    return None if is_identically_zero(score) else scale_and_mask(score, mask=site["mask"])


def leave_one_out_mean(values: Tensor) -> Tensor:
    """The mean of the other samples' values, for each of values [samples, ...]."""
    return (values.sum(0) - values) / (len(values) - 1)


def minus_leave_one_out_mean(values: Tensor) -> Tensor:
    """Values [samples, ...] minus the mean of the other samples' values, detached: the learning signal of a score
    function. The baseline does not depend on the sample itself, so that it lowers the variance and adds no bias (Mnih
    and Rezende 2016, section 2.5)."""
    values = values.detach()
    return values - leave_one_out_mean(values)


def contradicted(kl: Tensor, sampled: Tensor) -> Tensor:
    """True for each image whose KL divergence in closed form [images] is not the mean of log q(z | x) - log p(z) over
    samples [S, images]. Some forms of torch are wrong: that of ContinuousBernoulli and Uniform is infinite. From 100
    samples on, a false alarm has a rate below 1e-9 for an image whose terms have light tails."""
    mean, error = sampled.mean(0), sampled.std(0) / len(sampled) ** 0.5
    allowed = (8 * error + 1e-3 * (1 + kl.abs())).nan_to_num(posinf=0.0)
    return sampled.isfinite().all(0) & ~((kl - mean).abs() <= allowed)
