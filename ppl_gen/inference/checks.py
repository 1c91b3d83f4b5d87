"""All images under Pyro's checks, which are off where weights are computed; and the kind of p(x) that they have."""

import warnings
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput, describe
from ppl_gen.inference import supports
from ppl_gen.inference.callables import Batch, name_of, take
from ppl_gen.inference.densities import Site
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.supports import inside, support
from ppl_gen.inference.tracing import Traces, trace_of

_TOGETHER = 500  # images that are checked together
_KINDS = ("unchecked", "cross-entropy", "density", "probability")
"""Kinds of p(x). The first one that any image shows counts."""


def check_images(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> str:
    """Run a pair on all images with Pyro's checks on.

    :returns: the kind of p(x): `probability`; `density`; `cross-entropy` of grey values under a Bernoulli; or
        `unchecked`, where values are outside the likelihood's support, whose `validate_args=False` allows them.
    :raises BadInput: for an argument that a distribution does not admit, and for an image that is impossible
        whatever z is.
    """
    found = {"density" if not pair.discrete else "probability"}
    with torch.random.fork_rng([x.device] if x.is_cuda else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is told here as an error
        for rows in torch.arange(len(x), device=x.device).split(_TOGETHER):
            first, batch = int(rows[0]), take(rows, x, args, kwargs)
            traces, lax = _checked_traces(pair, first, batch)
            _check_masks(pair, traces)
            kinds = (_kind_of(pair, traces.model.nodes[name], name in lax, first, batch) for name in pair.observed)
            found |= {kind for kind in kinds if kind is not None}
    return next(kind for kind in _KINDS if kind in found)


def _checked_traces(pair: Pair, first: int, batch: Batch) -> tuple[Traces, set[str]]:
    """Both traces with Pyro's checks on, and the observed sites whose distribution does not check its values.

    :param first: number of the first image.
    """
    who = pair.guide_name
    try:
        with pyro.validation_enabled(True):
            guide_trace = trace_of(pair.guide, batch)
            who = pair.model_name
            # What a z of weight zero would make of the likelihood is none of the model's faults.
            anywhere = bool(pair.bounded.intersection(pair.latent))
            model = pair.model if anywhere else poutine.replay(pair.model, trace=guide_trace)
            model_trace = trace_of(model, batch)
            lax = {name for name in pair.observed if supports.unchecked(model_trace.nodes[name]["fn"])}
    except Exception as error:
        missing = batch.x.reshape(len(batch.x), -1).isnan().any(1)
        if missing.any():
            raise BadInput(f"image {first + int(missing.nonzero()[0])} has pixels that are not numbers") from error
        raise BadInput(f"{who}: {describe(error)}; Pyro's checks, which are on here, say what it must be") from error
    return Traces(guide_trace, model_trace), lax


def _check_masks(pair: Pair, traces: Traces) -> None:
    """Refuse a site with one mask in the model and another in the guide."""
    for name in (name for name in pair.latent if name in traces.guide.nodes):
        ours, theirs = (
            [mask for mask in supports.masks(trace.nodes[name], of_events=True) if not mask.all()]
            for trace in (traces.model, traces.guide)
        )
        if len(ours) != len(theirs) or not all(map(_equal, ours, theirs)):
            raise BadInput(
                f"site '{name}' is masked in one way in {pair.model_name} and in another in {pair.guide_name}: "
                "give both the same mask"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one == other).all())


def _kind_of(pair: Pair, site: Site, lax: bool, first: int, batch: Batch) -> str | None:
    """The kind of p(x) that an observed site shows by values outside of its support; None if it has no such values.

    :param lax: True if the site's distribution does not check its values.
    """
    strictly = None if site["name"] in pair.bounded else inside(site)
    if strictly is None or strictly.all():
        return None
    admitted = inside(site, grey=True)
    assert admitted is not None
    if admitted.all():
        return "cross-entropy"
    if lax:
        return "unchecked"
    outside = pair.per_image(site, (~admitted).to(batch.x.dtype if batch.x.is_floating_point() else torch.float32))
    image = int(outside.flatten().nonzero()[0])
    values = site["value"].detach()
    raise BadInput(
        f"{pair.model_name}: image {first + image} is impossible whatever z is: values of site '{site['name']}' "
        f"lie in [{float(values.min()):g}, {float(values.max()):g}], and {name_of(site['fn'])} has the "
        f"support {support(site['fn'])}; rescale x, or use another likelihood"
    )
