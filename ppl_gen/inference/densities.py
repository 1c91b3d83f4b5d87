"""The sites of a trace: their values and log-densities in nats, and the parts of a gradient that come of them."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_gen.inference.supports import own_log_prob
from ppl_gen.networks.distributions import log_density

_HALF = (torch.float16, torch.bfloat16)

Site = dict[str, Any]
"""A sample statement, as Pyro's traces hold it."""


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """Sample statements, without the book-keeping of plates and `pyro.deterministic`."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    ]


def plates_of(site: Site) -> list[CondIndepStackFrame]:
    """The plates around a site that are dimensions. A loop over a plate is none."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def masked_log_prob(site: Site, wide: bool = False) -> Tensor:
    """The log-density of a site with its mask and without its scale, before any sum.

    :param wide: in float64, if it is of binary values.
    """
    if "masked_log_prob" in site:
        return site["masked_log_prob"]
    value = site["value"]
    if value.dtype in _HALF:  # its pixels would be added up in half precision
        value = value.float()
    log_prob = own_log_prob(site["fn"], value)
    if log_prob is None:
        log_prob = log_density(site["fn"], value, *site["args"], wide=wide, **site["kwargs"])
    return scale_and_mask(log_prob.float() if log_prob.dtype in _HALF else log_prob, mask=site["mask"])


def sum_to(site: Site, log_prob: Tensor, *kept: int) -> Tensor:
    """The log-density of a site, summed over all of its plates but those in the dimensions `kept`, each element of a
    plate counted.

    :param kept: negative; the leftmost is left of all plates.
    """
    shape = [1] * -min(kept)
    for frame in plates_of(site):
        shape[frame.dim] = frame.size
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(shape)))
    others = [dim for dim in range(-log_prob.dim(), 0) if dim not in kept]
    return log_prob.sum(others) if others else log_prob


def samples_first(site: Site, sample_dim: int) -> Tensor:
    """The value of a site, with dimensions of size 1 on the left up to that of the samples."""
    value: Tensor = site["value"]
    padding = site["fn"].event_dim - sample_dim - value.dim()
    return value.reshape([1] * padding + list(value.shape))


def units_of(site: Site, shape: tuple[int, int], sample_dim: int, image_dim: int) -> Tensor:
    """The value of a site as [samples, images, units].

    :param shape: numbers of samples and images.
    :param image_dim: dimension of the plate of images.
    """
    value = samples_first(site, sample_dim)
    value = value.movedim(value.dim() - site["fn"].event_dim + image_dim, 1)
    value = value.reshape(*shape, *value.shape[2:])
    return value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)


def kl_divergence(q: Site, p: Site) -> Tensor:
    """KL(q || p) of the distributions at two sites, with the mask of the first, before any sum.

    :raises NotImplementedError: where Pyro has no closed form.
    """
    return scale_and_mask(torch.distributions.kl_divergence(q["fn"], p["fn"]), mask=q["mask"])


def score_function(site: Site) -> Tensor | None:
    """The log-probability whose gradient is the score of a distribution that is reparametrized but for a choice, by
    Pyro's `score_parts`; with the mask of the site, without its scale. None for all other distributions."""
    fn = site["fn"]
    if not fn.has_rsample or type(fn).score_parts is dist.Distribution.score_parts:
        return None
    score = fn.score_parts(site["value"].detach()).score_function
    return None if is_identically_zero(score) else scale_and_mask(score, mask=site["mask"])


def leave_one_out_mean(values: Tensor) -> Tensor:
    """For each of values [samples, ...] the mean of the other samples' values."""
    return (values.sum(0) - values) / (len(values) - 1)


def minus_leave_one_out_mean(values: Tensor) -> Tensor:
    """Values [samples, ...] less the mean of the other samples' values, without a gradient: a baseline. A score times
    it has less noise, and the same mean."""
    values = values.detach()
    return values - leave_one_out_mean(values)
