"""The supports of guide and prior: where one has mass and the other has none, and which supports depend on z.

A value of z outside the prior's support has weight zero. Where the guide leaves out a part of that support, importance
sampling finds a part of p(x) only.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.inference import supports
from ppl_gen.inference.callables import Batch, take
from ppl_gen.inference.densities import sample_sites
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.supports import inside
from ppl_gen.inference.tracing import PyroFunction, Traces, replayed, trace_of

_DRAWS = 100  # of z for each of three images


def _repeated(batch: Batch) -> Batch:
    """Three images, many times each: for what shows in a few of many draws of z."""
    return take((torch.arange(3, device=batch.x.device) % len(batch.x)).repeat(_DRAWS), *batch)


def bounded_sites(model: PyroFunction, traces: Traces, batch: Batch) -> frozenset[str]:
    """Sites of the model whose value may be outside their support: latent ones that the guide may draw there, and
    observed ones whose support is another for another z."""
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
    """The pair with `exceeds_prior` and `narrower`, which compare the guide's support with the prior's.

    :raises BadInput: for a guide that never draws z where the prior has mass.
    """
    if pair.enumerated:
        return pair
    many = _repeated(batch)
    traces = replayed(pair.guide, pair.model, many)
    sites = {name: (traces.guide.nodes[name], traces.model.nodes[name]) for name in pair.latent}
    for name, (_, p) in sites.items():
        admitted = inside(p) if name in pair.bounded else None
        if admitted is not None and not admitted.any():
            raise BadInput(
                f"{pair.guide_name} never draws '{name}' inside the support of its prior in {pair.model_name}, so "
                "that no sample has a weight; give the guide a distribution of that support"
            )
    exceeds = any(supports.certainly_narrower(p["fn"], q["fn"]) for q, p in sites.values())
    narrower = {name: supports.certainly_narrower(q["fn"], p["fn"]) for name, (q, p) in sites.items()}
    if None in narrower.values():  # values of the prior have to tell
        prior = trace_of(pair.model, many)
        for name in [name for name, told in narrower.items() if told is None]:
            with suppress(Exception):  # of a shape that the guide's does not have
                admitted = inside({**sites[name][0], "value": prior.nodes[name]["value"]})
                narrower[name] = admitted is not None and not bool(admitted.all())
    return replace(pair, exceeds_prior=exceeds, narrower=tuple(name for name in pair.latent if narrower[name]))


def leaves_support(pair: Pair, x: Tensor, *args: Any, num_samples: int = 100, **kwargs: Any) -> str | None:
    """The name of a latent site that the guide draws where its prior has no mass; None if there is none."""
    suspects = pair.bounded.intersection(pair.latent)
    if pair.exceeds_prior or not suspects:
        return min(suspects, default=None)
    model_trace: poutine.Trace = replayed(*pair.for_samples(num_samples, Batch(x, args, kwargs))).model
    for name in suspects:
        found = inside(model_trace.nodes[name])
        if found is not None and not found.all():
            return name
    return None
