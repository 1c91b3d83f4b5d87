"""Validation of all images under Pyro's checks, which are off while weights are computed; and the kind of p(x)."""

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppl_gen.core.errors import BadInput, describe
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import Site, alike, masked_log_prob, sample_sites
from ppl_gen.inference.independence import check_halves
from ppl_gen.inference.modes import forked_rng
from ppl_gen.inference.observed import observes_pixels
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.reached import modules_of
from ppl_gen.inference.signatures import name_of
from ppl_gen.inference.tracing import Traces, latent_sites, trace_of
from ppl_gen.networks import supports
from ppl_gen.networks.levels import Levels
from ppl_gen.networks.supports import inside, support

_IMAGES_PER_BLOCK = 500
_KINDS = ("unchecked", "unnormalized", "cross-entropy", "density", "probability")
"""Kinds of p(x), in order of precedence: the first one that any image has is the kind of all."""


def check_images(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> str:
    """Run a pair on all images with Pyro's checks on.

    :returns: kind of p(x): `probability`; `density`; `cross-entropy`, of grey values under a Bernoulli; `unchecked`, of
        values outside the support of a likelihood that allows them by `validate_args=False`; or `unnormalized`, of a
        model with a factor.
    :raises BadInput: for an invalid parameter of a distribution, and for an image that is impossible for every z.
    """
    seen = {"density" if not pair.discrete else "probability"}
    with forked_rng(x), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the errors below say the same
        for first, batch in Batch(x, args, kwargs).blocks(_IMAGES_PER_BLOCK):
            traces, unchecked = _checked_traces(pair, first, batch)
            _check_same_sites(pair, first, traces)
            _check_masks(pair, traces, batch)
            check_halves(pair, first, batch, traces)
            sites = [traces.model.nodes[name] for name in pair.observed]
            kinds = [_kind_of(pair, site, site["name"] in unchecked, first, batch) for site in sites]
            if any(_is_weight(site) for site in sites):
                kinds.append("unnormalized")
            seen |= {kind for kind in kinds if kind is not None}
    return next(kind for kind in _KINDS if kind in seen)


def _is_weight(site: Site) -> bool:
    """True for a factor of other values than 0 and -inf, which say what is possible."""
    if not any(isinstance(part, dist.Unit) for part in supports.parts(site["fn"])):
        return False
    found = masked_log_prob(site)
    return bool(((found != 0) & (found != -math.inf)).any())


def num_levels(pair: Pair, x: Tensor, *args: Any) -> int | None:
    """Number of levels of a pixel, if the likelihood is of levels, such as those of 8-bit images; else None."""
    with forked_rng(x):
        site = trace_of(pair.model, take(torch.arange(1, device=x.device), x, args)).nodes[pair.image]
    constraint = support(site["fn"])
    base = constraint.base_constraint if isinstance(constraint, constraints.independent) else constraint
    return base.num_levels if isinstance(base, Levels) else None


def _checked_traces(pair: Pair, first: int, batch: Batch) -> tuple[Traces, set[str]]:
    """Run the pair with Pyro's checks on. Returns its traces, and the names of the observed sites whose distribution
    does not check its values.

    :param first: number of the first image, for messages.
    """
    who = pair.guide_name  # the function that runs, for the message if it fails
    try:
        with pyro.validation_enabled(True):
            guide_trace = trace_of(pair.guide, batch)
            who = pair.model_name
            # If the guide may draw z outside the prior's support, the likelihood may be undefined there. That is no
            # fault of the model: it is then run on its own draws.
            anywhere = bool(pair.may_leave_support.intersection(pair.latent))
            model = pair.model if anywhere else poutine.replay(pair.model, trace=guide_trace)
            model_trace = trace_of(model, batch)
            unchecked = {name for name in pair.observed if supports.unchecked(model_trace.nodes[name]["fn"])}
    except BadInput:  # of `ppl_gen.inference.observed`, about missing pixels
        raise
    except Exception as error:
        missing = batch.x.reshape(len(batch.x), -1).isnan().any(1)
        if missing.any():
            _checked_traces(pair, first, batch._replace(x=batch.x.nan_to_num(0)))  # raises an error that is not of NaN
            if any(map(observes_pixels, modules_of(pair.model, pair.guide))):
                raise BadInput(
                    f"{who} computes with missing pixels, which are NaN: with --missing, p(z) and p(x | z) must not "
                    "depend on pixels; leave --missing out, or choose another model"
                ) from error
            raise BadInput(
                f"image {first + int(missing.nonzero()[0])} has pixels that are NaN; replace them"
            ) from error
        raise BadInput(f"{who}: {describe(error)}; Pyro's checks, which are on here, found this") from error
    return Traces(guide_trace, model_trace), unchecked


def _check_same_sites(pair: Pair, first: int, traces: Traces) -> None:
    """Refuse a pair whose sites depend on the batch, such as steps up to the end of the longest sequence of a batch:
    those that the first few images do not have would be left out.

    :param first: number of the first image, for messages.
    """
    drawn = () if pair.enumerated else pair.latent
    expected = ({*pair.latent, *pair.summed, *pair.observed}, {*drawn, *pair.left_out})
    observed = {site["name"] for site in sample_sites(traces.model) if site["is_observed"]}
    found = ({*latent_sites(traces), *observed}, {site["name"] for site in sample_sites(traces.guide)})
    for who, names, known in zip((pair.model_name, pair.guide_name), found, expected, strict=True):
        if names != known:
            raise BadInput(
                f"{who} has other sites for a batch from image {first} on than for the first few images, such as "
                f"'{min(names ^ known)}': sites must be the same for every batch; loop over all "
                "steps of x, and mask those that a sequence lacks"
            )


def _check_masks(pair: Pair, traces: Traces, batch: Batch) -> None:
    """Refuse a site whose masks differ between the model and the guide, and one whose masked values the model uses:
    neither p(z) nor q(z | x) counts them, so that the weights would depend on how the guide draws them."""
    values, changed, own = dict[str, Tensor](), list[str](), None
    for name in (name for name in pair.latent if name in traces.guide.nodes):
        ours, theirs = (supports.unmasked(trace.nodes[name]) for trace in (traces.model, traces.guide))
        if bool((ours != theirs).any()):
            both = f"{pair.model_name} and {pair.guide_name}"
            raise BadInput(f"site '{name}' has different masks in {both}: give both the same mask")
        value = values[name] = traces.guide.nodes[name]["value"]
        if not bool(ours.all()):
            own = trace_of(pair.model, batch) if own is None else own
            values[name], changed = torch.where(ours, value, own.nodes[name]["value"]), [*changed, name]
    if not changed:
        return
    terms = []
    for at in ({name: traces.guide.nodes[name]["value"] for name in values}, values):
        seed_torch(0)  # the same noise beside z
        joint = trace_of(poutine.condition(pair.joint, at), batch)
        terms.append(pair.terms_of(Traces(traces.guide, joint), (1, len(batch.x))))
    before, after = terms
    if not (alike(before.log_likelihood, after.log_likelihood) and alike(before.log_prior, after.log_prior)):
        raise BadInput(
            f"{pair.model_name} uses values of '{changed[0]}' that its mask leaves out: neither p(z) nor q(z | x) "
            f"counts them, so that the weights depend on how {pair.guide_name} draws them; leave out the mask, or let "
            "the model put a constant in their place"
        )


def _kind_of(pair: Pair, site: Site, unchecked: bool, first: int, batch: Batch) -> str | None:
    """The kind of p(x) of an observed site with values outside its support; None if all values are inside.

    :param unchecked: True if the site's distribution does not check its values.
    """
    strictly = None if site["name"] in pair.may_leave_support else inside(site)
    if strictly is None or strictly.all():
        return None
    admitted = inside(site, grey=True)
    assert admitted is not None
    if admitted.all():
        return "cross-entropy"
    if unchecked:
        return "unchecked"
    dtype = batch.x.dtype if batch.x.is_floating_point() else torch.float32
    values, size = site["value"].detach(), site["fn"].event_dim
    nan = values.isnan().flatten(-size).any(-1) if size else values.isnan()
    if bool(nan.any()):
        image = int(pair.per_image(site, nan.to(dtype)).flatten().nonzero()[0])
        raise BadInput(f"{pair.model_name}: site '{site['name']}' has the value NaN at image {first + image}")
    image = int(pair.per_image(site, (~admitted).to(dtype)).flatten().nonzero()[0])
    raise BadInput(
        f"{pair.model_name}: image {first + image} is impossible for every z: values of site '{site['name']}' "
        f"lie in [{float(values.min()):g}, {float(values.max()):g}], but {name_of(site['fn'])} has the "
        f"support {support(site['fn'])}; rescale x, or use another likelihood"
    )
