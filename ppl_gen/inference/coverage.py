"""Comparison of the supports of guide and prior, and a search for supports that depend on z.

A value of z outside the prior's support has weight zero. If the guide's support leaves out a part of the prior's,
importance sampling estimates only a part of p(x).
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput, as_bad_input
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import sample_sites
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.tracing import PyroFunction, Traces, replayed, trace_of
from ppl_gen.networks import supports
from ppl_gen.networks.supports import inside

_DRAWS = 100  # draws of z for each of three images
_IMAGES = 1000  # whose supports are compared by their ends


def _repeated(batch: Batch) -> Batch:
    """Three images, `_DRAWS` times each: many draws of z show a rare value."""
    return take((torch.arange(3, device=batch.x.device) % len(batch.x)).repeat(_DRAWS), *batch)


def sites_that_may_leave_support(model: PyroFunction, traces: Traces, batch: Batch) -> frozenset[str]:
    """Names of the model's sites whose value may be outside their support: latent sites that the guide may draw there,
    and observed sites whose support depends on z."""
    sites = {site["name"]: site for site in sample_sites(traces.model)}
    guide = traces.guide.nodes
    proposed = [name for name, site in sites.items() if not site["is_observed"] and name in guide]
    latent = [name for name in proposed if not supports.covers(sites[name]["fn"], guide[name]["fn"])]
    observed = [n for n, site in sites.items() if site["is_observed"] and not supports.is_fixed(site["fn"])]
    if observed:
        many = trace_of(model, _repeated(batch))
        observed = [name for name in observed if not supports.is_fixed(many.nodes[name]["fn"], constant=True)]
    return frozenset([*latent, *observed])


def compare_supports(pair: Pair, batch: Batch) -> Pair:
    """Compare the guide's support with the prior's. Returns the pair with `exceeds_prior` and `narrower` set.

    :raises BadInput: for a guide that never draws z where the prior has mass.
    """
    if pair.enumerated:
        return pair
    many = _repeated(batch)
    with as_bad_input(
        f"{pair.guide_name} and {pair.model_name} fail on {len(many.x)} images, copies of those given (a parameter "
        "with a row for each image takes its rows by the argument `index`)"
    ):
        traces = replayed(pair.guide, pair.model, many)
    sites = {name: (traces.guide.nodes[name], traces.model.nodes[name]) for name in pair.latent}
    for name, (_, p) in sites.items():
        admitted = inside(p) if name in pair.may_leave_support else None
        if admitted is not None and not admitted.any():
            raise BadInput(
                f"{pair.guide_name} never draws '{name}' inside the support of its prior in {pair.model_name}: no "
                "sample has a weight; give the guide a distribution of that support"
            )
    exceeds = any(supports.certainly_narrower(p["fn"], q["fn"], everywhere=True) for q, p in sites.values())
    narrower = {name: _narrower(name, traces) for name in sites}
    # Supports that may be others for other images are compared for more of them.
    differ = [name for name, known in narrower.items() if not known and supports.may_differ(sites[name][0]["fn"])]
    if differ and len(batch.x) > 3:
        some = take(torch.linspace(0, len(batch.x) - 1, min(len(batch.x), _IMAGES)).long().to(batch.x.device), *batch)
        others = replayed(pair.guide, pair.model, some)
        for name in differ:
            narrower[name] = _narrower(name, others) or narrower[name]
    if None in narrower.values():  # undecided by the constraints alone: draw from the prior and look
        prior = trace_of(pair.model, many)
        for name in [name for name, known in narrower.items() if known is None]:
            with suppress(Exception):  # the guide's distribution cannot check a value of this shape
                admitted = inside({**sites[name][0], "value": prior.nodes[name]["value"]})
                narrower[name] = admitted is not None and not bool(admitted.all())
    return replace(pair, exceeds_prior=exceeds, narrower=tuple(name for name in pair.latent if narrower[name]))


def _narrower(name: str, traces: Traces) -> bool | None:
    """True if a guide certainly leaves out values of a site that its prior has, False if it certainly does not; None if
    only draws can tell."""
    q, p = (trace.nodes[name]["fn"] for trace in traces)
    narrower = supports.certainly_narrower(q, p)
    # A factor of the model may exclude values, such as those of a label that is known.
    free = not any(isinstance(site["fn"], dist.Unit) for site in sample_sites(traces.model))
    return True if narrower is not True and free and supports.never(q, p) else narrower


def leaves_support(pair: Pair, x: Tensor, *args: Any, num_samples: int = 100, **kwargs: Any) -> str | None:
    """Name of a latent site that the guide draws outside the support of its prior; None if there is none.

    :param num_samples: draws of z per image; a rarer violation is not seen.
    """
    suspects = pair.may_leave_support.intersection(pair.latent)
    if pair.exceeds_prior or not suspects:
        return min(suspects, default=None)
    model_trace: poutine.Trace = replayed(*pair.for_samples(num_samples, Batch(x, args, kwargs))).model
    for name in suspects:
        found = inside(model_trace.nodes[name])
        if found is not None and not found.all():
            return name
    return None
