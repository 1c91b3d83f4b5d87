"""Reading of a model and a guide into a `Pair`: finding the plate of images and the sites, and checking that both fit.

`read` lists the steps in order. The functions are run on a few images. Afterwards the state of modules, objects and
Pyro's parameter store is restored.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn

from ppl_gen.core.contracts import Discretizes, offers
from ppl_gen.core.errors import BadInput, describe
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.coverage import compare_supports, sites_that_may_leave_support
from ppl_gen.inference.densities import (
    Site,
    alike,
    masked_log_prob,
    plates_of,
    sample_sites,
    score_function,
    unobserved,
)
from ppl_gen.inference.direct import with_direct
from ppl_gen.inference.enumeration import check_enumerated_guide, check_summed, sum_over_states
from ppl_gen.inference.independence import can_vectorize_samples, check_independence
from ppl_gen.inference.modes import forked_rng, matmul_precision, reading
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.reached import modules_of, parameters_of
from ppl_gen.inference.signatures import ByName, accepting, check_positional, guide_function, model_function, name_of
from ppl_gen.inference.state_memory import can_sum_states, cheap_to_enumerate, count_states, numbers_held
from ppl_gen.inference.tracing import (
    PyroFunction,
    Traces,
    latent_sites,
    replayed,
    rows_of_plate,
    trace_of,
    with_whole_plates,
)
from ppl_gen.networks import supports
from ppl_gen.networks.supports import is_discrete, log_prob_within, support, unbounded

_COUNTS = (2, 3, 5)  # numbers of images; the plate whose size equals each of them is the plate of images


def read(model: Any, guide: Any, batch: Batch) -> Pair:
    """Make a `Pair`, as `Pair.read` describes."""
    functions = _functions_of(model, guide, batch)
    x = batch.x
    if len(x) == 0:
        raise BadInput("x has no images; give at least one")
    with reading(model, guide), forked_rng(x), matmul_precision():
        functions = _with_whole_plates(functions, batch)
        plate, traces = _plate_of_images(functions, batch)
        _check_sites(functions, traces)
        _check_plates(functions, traces, plate)
        _check_shapes(functions, traces)
        _check_dimensions(functions, traces, plate)
        pair = _pair_of(functions, traces, plate, batch)
        pair = check_summed(pair, batch)
        pair = check_independence(pair, batch)
        if pair.enumerated and pair.noisy:
            raise BadInput(
                f"{pair.model_name} draws noise beside z, so that a sum over z is not log p(x); make the noise a "
                "latent site of its own"
            )
        pair = replace(pair, vectorized=can_vectorize_samples(pair, batch))
        pair = check_enumerated_guide(pair, batch)
        return with_direct(compare_supports(pair, batch), model, guide, batch)


# The functions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Functions:
    """The Pyro functions of a model and a guide, with their names and the initial state of the parameter store."""

    model: PyroFunction
    guide: PyroFunction
    model_name: str
    guide_name: str
    guide_module: nn.Module | None
    parameters: Any
    """State of Pyro's parameter store before any function was run."""


def _functions_of(model: Any, guide: Any, batch: Batch) -> _Functions:
    """Find the Pyro functions of a model and a guide, and the module that holds the guide's parameters."""
    functions = model_function(model), guide_function(guide)
    if batch.args:
        check_positional(*functions, 1 + sum(not isinstance(each, ByName) for each in batch.args))
        functions = accepting(functions[0]), accepting(functions[1])
    owner = guide if isinstance(guide, nn.Module) else getattr(guide, "__self__", None)
    return _Functions(
        *functions,
        model_name=name_of(model),
        guide_name=name_of(guide),
        guide_module=owner if isinstance(owner, nn.Module) else None,
        parameters=pyro.get_param_store().get_state(),
    )


def _with_whole_plates(functions: _Functions, batch: Batch) -> _Functions:
    """Wrap the functions whose plate of images has no size, or takes only some of the images."""
    few = take(torch.arange(2, device=batch.x.device) % len(batch.x), *batch)
    whole = []
    for function in (functions.model, functions.guide):
        with suppress(Exception):  # raised again, with more words, when the plate is looked for
            function = with_whole_plates(function, few)
        whole.append(function)
    return replace(functions, model=whole[0], guide=whole[1])


# The plate of images -----------------------------------------------------------------------------------------------


def _plate_of_images(functions: _Functions, batch: Batch) -> tuple[CondIndepStackFrame, Traces]:
    """Find the plate of images: it is around all observed sites, and its size is the number of images in several runs.
    Returns it with the traces of the last run, on 5 images."""
    candidates, subsampled = [], dict[str, tuple[int, int]]()
    for count in _COUNTS:
        rows = torch.arange(count, device=batch.x.device) % len(batch.x)
        traces = _first_traces(functions, take(rows, *batch), batch)
        plates = [frame for trace in traces for site in sample_sites(trace) for frame in plates_of(site)]
        subsampled |= {f.name: (f.size, f.full_size) for f in plates if f.full_size not in (None, -1, f.size)}
        observed = [site for site in sample_sites(traces.model) if site["is_observed"]]
        if not observed:
            raise BadInput(f"{functions.model_name} observes nothing; give its image site obs=x")
        candidates.append(_shared_plates(observed, count))
    names = set.intersection(*(set(found) for found in candidates))
    if len(names) != 1:
        _check_global(functions, observed, len(rows))
        raise BadInput(
            f"{functions.model_name}: its observed sites share no plate over the images; sample them in one vectorized "
            "`with pyro.plate('data', len(x)):`"
        )
    plate = candidates[-1][names.pop()]
    for name, (size, of) in subsampled.items():
        if name != plate.name:
            raise BadInput(
                f"plate '{name}' of {functions.model_name} takes {size} of {of} elements: log p(x) needs all of them; "
                "leave out subsample_size"
            )
    if plate.name in subsampled:
        _check_rows(functions, plate, subsampled[plate.name][1], take(rows, *batch))
    return plate, traces


def _check_rows(functions: _Functions, plate: CondIndepStackFrame, full_size: int, batch: Batch) -> None:
    """Refuse a plate of images that draws its rows at random, if densities depend on which."""
    found = []
    for first in (0, 1):
        rows = (first + torch.arange(plate.size, device=batch.x.device)) % full_size
        seed_torch(0)
        with rows_of_plate(plate.name, rows):
            traces = replayed(functions.guide, functions.model, batch)
        found.append([_densities(trace) for trace in traces])
    for who, *densities in zip((functions.guide_name, functions.model_name), *found, strict=True):
        if not all(map(alike, *densities)):
            raise BadInput(
                f"{who}: for fewer than {full_size} images plate '{plate.name}' draws rows at random, and densities "
                "depend on which: pass what belongs to an image as an argument, or take its row number, index"
            )


def _densities(trace: poutine.Trace) -> list[Tensor]:
    """Log-densities and values of all sites."""
    sites = list(sample_sites(trace))
    return [*(log_prob_within(site, masked_log_prob) for site in sites), *(site["value"] for site in sites)]


def _shared_plates(sites: list[Site], count: int) -> dict[str, CondIndepStackFrame]:
    """The vectorized plates of a size that are around all of some sites."""
    frames = set.intersection(*(set(site["cond_indep_stack"]) for site in sites))
    return {frame.name: frame for frame in frames if frame.vectorized and frame.size == count}


def _check_global(functions: _Functions, observed: list[Site], count: int) -> None:
    """Refuse, with a hint, observed sites outside of all plates, such as global parameters that a handler conditions
    on, beside others that share a plate."""
    outside = [site["name"] for site in observed if not plates_of(site)]
    inside = [site for site in observed if plates_of(site)]
    if outside and inside and _shared_plates(inside, count):
        raise BadInput(
            f"{functions.model_name} observes '{outside[0]}' outside of all plates, so that its density belongs to no "
            f"image; leave it out of log p(x): pyro.poutine.block(model, hide={outside})"
        )


def _first_traces(functions: _Functions, batch: Batch, whole: Batch) -> Traces:
    """Run the pair on a few images. An error in a user's code becomes a `BadInput`.

    :param whole: all images, for a hint in messages.
    """
    who = functions.guide_name  # the function that runs, for the message if it fails
    before = batch.x.clone()
    try:
        guide_trace = trace_of(functions.guide, batch)
        _check_kept(who, batch.x, before)
        who = functions.model_name
        # First without replay: if the model fails on the guide's values, the reason may be a shape that differs.
        _check_shapes(functions, Traces(guide_trace, trace_of(functions.model, batch)))
        _check_kept(who, batch.x, before)
        return replayed(functions.guide, functions.model, batch)
    except BadInput:
        raise
    except Exception as error:
        hint = _hint_of_rows(functions, who, whole)
        raise BadInput(f"{who} fails on {len(batch.x)} images: {describe(error)}{hint}") from error


def _check_kept(who: str, x: Tensor, before: Tensor) -> None:
    """Raise `BadInput` if a function has changed its images in place: the other one would score other images."""
    if not torch.equal(x.nan_to_num(), before.nan_to_num()):
        raise BadInput(f"{who} changes x in place, but model and guide share it: work on a copy, x.clone()")


def _hint_of_rows(functions: _Functions, who: str, whole: Batch) -> str:
    """A hint for a function that runs on all images but fails on a few of them; else an empty string."""
    try:
        with pyro.get_param_store().scope(functions.parameters):
            trace_of(functions.guide if who == functions.guide_name else functions.model, whole)
    except Exception:  # it fails on all images too
        return ""
    return (
        f"; it runs on all {len(whole.x)} images alone, as with a parameter for each of them: compute what belongs to "
        "an image from x, or ask for the images' row numbers, guide(x, index)"
    )


# The sites ---------------------------------------------------------------------------------------------------------


def _proposed(traces: Traces) -> list[str]:
    """Names of the sites that the guide samples, without auxiliary ones that the model does not have."""
    auxiliary = {name for name in traces.guide.nodes if traces.guide.nodes[name].get("infer", {}).get("is_auxiliary")}
    return [name for name in unobserved(traces.guide) if name in traces.model.nodes or name not in auxiliary]


def _left_out(traces: Traces) -> list[str]:
    """Names of the guide's sites that do not belong to q(z | x): observed sites and factors, such as a loss of a
    classifier, and auxiliary sites. z ~ q(z | x, a) has the weight p(x, z) / q(z | x, a) for every auxiliary a."""
    proposed = _proposed(traces)
    return [site["name"] for site in sample_sites(traces.guide) if site["name"] not in proposed]


def _marked(trace: poutine.Trace, names: list[str]) -> list[str]:
    """Those of some sites that are marked for enumeration."""
    return [name for name in names if trace.nodes[name]["infer"].get("enumerate") == "parallel"]


def _is_enumerated(functions: _Functions, traces: Traces) -> bool:
    """True if the guide leaves every latent site to enumeration in the model, or the one there is to a sum over points
    that it gives."""
    latent = latent_sites(traces)
    given = len(latent) == 1 and offers(functions.guide_module, Discretizes)
    return bool(latent) and not _proposed(traces) and (given or _marked(traces.model, latent) == latent)


def _summed(traces: Traces) -> list[str]:
    """Names of the latent sites that a guide leaves to enumeration in the model, while it samples others."""
    proposed = _proposed(traces)
    left = [name for name in _marked(traces.model, latent_sites(traces)) if name not in proposed]
    return [name for name in left if proposed and traces.model.nodes[name]["fn"].has_enumerate_support]


def _enumerated_in_guide(traces: Traces) -> list[str]:
    """Names of the latent sites that a guide enumerates by itself."""
    return _marked(traces.guide, _proposed(traces))


def _check_sites(functions: _Functions, traces: Traces) -> None:
    """Refuse a guide that does not sample exactly the model's latent sites, but for those that are enumerated."""
    latent, proposed, summed = latent_sites(traces), _proposed(traces), _summed(traces)
    for name in [] if _is_enumerated(functions, traces) else latent:
        if name in summed:
            continue
        if not proposed:
            raise BadInput(
                f"{functions.guide_name} does not sample '{name}' of {functions.model_name}, and it is not enumerated: "
                'this needs finite support and infer={"enumerate": "parallel"}'
            )
        if name not in proposed:
            marked, finite = bool(_marked(traces.model, [name])), traces.model.nodes[name]["fn"].has_enumerate_support
            hint = "; it is marked to be enumerated, but has no finite support" if marked else ""
            if finite and not marked:
                hint = '; to sum over its values, mark it with infer={"enumerate": "parallel"} in the model'
            raise BadInput(
                f"{functions.guide_name} does not sample '{name}', a latent site of {functions.model_name}, but "
                f"{', '.join(map(repr, proposed))}{hint}"
            )
    for name in proposed:
        if name in traces.model.nodes and traces.model.nodes[name]["is_observed"]:
            raise BadInput(
                f"{functions.guide_name} samples '{name}', which {functions.model_name} observes; give it obs= in the "
                "guide too, or leave it out"
            )
        if name not in latent:
            raise BadInput(
                f"{functions.guide_name} samples '{name}', which is not a latent site of {functions.model_name}"
            )


def _check_plates(functions: _Functions, traces: Traces, plate: CondIndepStackFrame) -> None:
    """Refuse a latent site, in model or guide, outside the plate of images."""
    latent = latent_sites(traces)
    for trace, who in ((traces.model, functions.model_name), (traces.guide, functions.guide_name)):
        for name in (name for name in latent if name in trace.nodes):
            plates = [frame.name for frame in trace.nodes[name]["cond_indep_stack"]]
            if plate.name not in plates:
                where = f", in '{plates[0]}'" if plates else ""
                raise BadInput(
                    f"{who}: site '{name}' is outside the plate '{plate.name}'{where}; latents must be local to an "
                    "image, and model and guide must use the same name for the plate: with "
                    f"pyro.plate('{plate.name}', len(x))"
                )
    for name in (name for name in latent if all(name in trace.nodes for trace in traces)):
        ours, theirs = ({f.name: f.dim for f in plates_of(trace.nodes[name])} for trace in traces)
        for frame in (frame for frame in ours if ours[frame] != theirs.get(frame, ours[frame])):
            raise BadInput(
                f"site '{name}': the plate '{frame}' has dim {ours[frame]} in {functions.guide_name}, but "
                f"{theirs[frame]} in {functions.model_name}; use the same in both: pyro.plate('{frame}', …, dim=-1)"
            )


# Shapes ------------------------------------------------------------------------------------------------------------


def _check_shapes(functions: _Functions, traces: Traces) -> None:
    """Refuse sites without a density, and sites whose event shape or kind differs between model, guide and value."""
    for site in sample_sites(traces.guide):
        if site["is_observed"]:
            if not traces.model.nodes.get(site["name"], site)["is_observed"]:
                raise BadInput(
                    f"{functions.guide_name} observes '{site['name']}', which {functions.model_name} samples; leave "
                    "out obs="
                )
            continue
        _check_density(site, functions.guide_name)
        if site["name"] in traces.model.nodes:
            _check_same_events(functions, site, traces.model.nodes[site["name"]])
    for site in sample_sites(traces.model):
        kinds = {type(part) for part in supports.parts(site["fn"])}
        # A masked mixture, which the data choose from, may have a point as one of its two parts: zero inflation.
        if not site["is_observed"] or (dist.Delta in kinds and dist.MaskedMixture not in kinds):
            _check_density(site, functions.model_name)
        event = tuple(site["fn"].event_shape)
        seen = tuple(site["value"].shape[-len(event) :])
        if supports.takes_any_length(site["fn"]):
            event, seen = event[1:], seen[1:]
        if site["is_observed"] and event and seen != event:
            raise BadInput(
                f"{functions.model_name}: site '{site['name']}' has event shape {event}, but its observed value has "
                f"shape {tuple(site['value'].shape)}; a constructor may have the arguments data_dim and data_shape"
            )


def _check_same_events(functions: _Functions, q: Site, p: Site) -> None:
    """Refuse a latent site whose event shape, or whose kind (discrete or continuous), differs in model and guide."""
    ours, theirs = (tuple(site["fn"].event_shape) for site in (q, p))
    if ours != theirs:
        raise BadInput(
            f"{functions.guide_name} does not fit {functions.model_name}: site '{q['name']}' has event shape {ours} in "
            f"the guide, but {theirs} in the model"
        )
    both = (q["fn"], p["fn"])
    kinds = ["discrete" if is_discrete(distribution) else "continuous" for distribution in both]
    if kinds[0] != kinds[1] and all(support(distribution) is not None for distribution in both):
        raise BadInput(
            f"{functions.guide_name} does not fit {functions.model_name}: site '{q['name']}' is {kinds[0]} in the "
            f"guide, but {kinds[1]} in the model"
        )


def _check_density(site: Site, who: str) -> None:
    """Refuse a site without a density, such as a Delta, unless it is masked out."""
    if supports.has_no_density(site["fn"]) and not any(not mask.any() for mask in supports.masks(site)):
        kind = [type(part).__name__ for part in supports.parts(site["fn"]) if supports.has_no_density(part)][-1]
        raise BadInput(
            f"{who}: site '{site['name']}' is a {kind}, which has no density: there is no ELBO and no importance "
            "weight; use a distribution with a spread, such as Normal"
        )


def _max_plate_nesting(traces: Traces) -> int:
    """Number of dimensions of plates in both traces."""
    return -min(frame.dim for trace in traces for site in sample_sites(trace) for frame in plates_of(site))


def _check_dimensions(functions: _Functions, traces: Traces, plate: CondIndepStackFrame) -> None:
    """Refuse a site whose log-density has a dimension of size above 1 left of all plates. It arises where a value
    broadcasts against a distribution by mistake, for example to all pairs of images."""
    for trace, who in ((traces.model, functions.model_name), (traces.guide, functions.guide_name)):
        for site in sample_sites(trace):
            try:
                shape = tuple(log_prob_within(site, masked_log_prob).shape)
            except Exception as error:
                fn, value = site["fn"], torch.as_tensor(site["value"])
                if bool(value.isnan().any()):
                    raise BadInput(f"{who}: site '{site['name']}' has the value NaN") from error
                found = tuple(value.shape)
                of = f"{tuple(fn.batch_shape)} and events of {tuple(fn.event_shape)}"
                raise BadInput(
                    f"{who}: site '{site['name']}' has no log-density: {describe(error)}; its value has the shape "
                    f"{found}, its distribution {of}"
                ) from error
            if any(size > 1 for size in shape[: -_max_plate_nesting(traces)]):
                raise BadInput(
                    f"{who}: site '{site['name']}' has log-densities of shape {shape} for {plate.size} images in the "
                    f"plate '{plate.name}': put all that belongs to an image into one event, by .to_event(n), or into "
                    "a plate of its own"
                )


# The pair ----------------------------------------------------------------------------------------------------------


def _pair_of(functions: _Functions, traces: Traces, plate: CondIndepStackFrame, batch: Batch) -> Pair:
    """The pair with the properties that these traces show. Later steps of `read` set the rest."""
    sites = sample_sites(traces.model)
    observed = [site for site in sites if site["is_observed"]]
    summed, in_guide = _summed(traces), _enumerated_in_guide(traces)
    every = {name: traces.model.nodes[name]["fn"] for name in latent_sites(traces)}
    priors = {name: fn for name, fn in every.items() if name not in summed}
    proposals = {name: traces.guide.nodes[name] for name in _proposed(traces)}
    drawn = {name: site for name, site in proposals.items() if name not in in_guide}
    names = tuple(site["name"] for site in observed)
    likelihoods = [site["fn"] for site in observed if not isinstance(site["fn"], dist.Unit)]  # Unit is of pyro.factor
    scales = {s["name"]: s["scale"] for trace in traces for s in sample_sites(trace) if _is_scaled(s)}
    pair = Pair(
        model=functions.model,
        guide=functions.guide,
        guide_module=functions.guide_module,
        read_by_guide=parameters_of(functions.guide),
        modules=tuple(modules_of(functions.model, functions.guide)),
        model_name=functions.model_name,
        guide_name=functions.guide_name,
        plate=plate,
        max_plate_nesting=_max_plate_nesting(traces),
        observed=names,
        image="x" if "x" in names else names[0],
        observes_x=True,
        discrete=bool(likelihoods) and all(map(is_discrete, likelihoods)),
        event_shapes={name: tuple(fn.event_shape) for name, fn in priors.items()},
        penalties=tuple(site["name"] for site in sample_sites(traces.guide) if site["is_observed"]),
        left_out=tuple(_left_out(traces)),
        masked=any(traces.model.nodes[name]["mask"] is not None for name in every),
        unbounded=all(map(unbounded, priors.values())),
        summed=tuple(summed),
        enumerated_in_guide=tuple(in_guide),
        num_states=count_states(every.values()),
        enumerated=_is_enumerated(functions, traces),
        sums_states=can_sum_states(sites),
        pixels_per_state=max(numbers_held(site["fn"], plate.size) for site in observed),
        reparametrized=all(site["fn"].has_rsample for site in drawn.values()),
        scored=tuple(name for name, site in drawn.items() if score_function(site) is not None),
        scales=scales,
        may_leave_support=sites_that_may_leave_support(functions.model, traces, batch),
        guide_may_miss=frozenset(n for n, site in proposals.items() if not supports.covers(site["fn"], priors[n])),
    )
    loose = {site["name"] for site in observed if not supports.is_fixed(site["fn"])}
    # A state of z that was not drawn may have another support. Enumeration visits all states.
    if loose - pair.may_leave_support and cheap_to_enumerate(pair):
        with suppress(BadInput):  # raised again when log p(x) is asked for
            return sum_over_states(pair, batch.x, *batch.args, **batch.kwargs).pair
    return pair


def _is_scaled(site: Site) -> bool:
    """True if a site has a scale other than 1."""
    return isinstance(site["scale"], Tensor) or site["scale"] != 1
