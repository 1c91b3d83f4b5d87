"""A search for log weights that rounding has spoiled.

The log-density of a large count, or of a narrow distribution far from 0, is a small difference of large numbers. Its
error is then no Monte Carlo error, and nothing else shows it. A few weights are computed again in float64.

Values of a bounded support, such as 0 < z < 1, are rounded to the last number before its end. Those of a relaxed
Bernoulli distribution at temperature 0.1 are so in a third of all draws. The density there stands for the probability
of a whole tail, and their ratio is another one under the guide than under the prior.
"""

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import units_of
from ppl_gen.inference.double import as_double, in_double
from ppl_gen.inference.enumeration import sum_over_states
from ppl_gen.inference.modes import forked_rng
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.tracing import trace_of
from ppl_gen.networks.supports import is_discrete

_IMAGES, _STATES, _DRAWS = 8, 4096, 200
_TIES = 3  # draws of 200 that are equal, and the largest or smallest of all: a continuous value has none
LARGEST_ERROR = 0.1
"""Error of a log weight in nats, above which images are refused."""
LARGEST_SHARE = 0.05
"""Share of the weights, of values that are rounded to the end of their support, above which images are refused."""


def check_rounding(pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Compute a log weight of each of a few images in float32 and in float64; log p(x), if it is a sum over at most
    4,096 states. Torch's generators are restored.

    :raises BadInput: if they differ by more than 0.1 nats, or if more than 5 % of the weights are of values that are
        rounded to the end of their support.
    """
    if (pair.enumerated_in_guide and not pair.enumerated) or (pair.num_states or 1) > _STATES:  # which takes long
        return
    rows = torch.linspace(0, len(x) - 1, min(len(x), _IMAGES), device=x.device).long()
    error = torch.zeros(0)
    with suppress(Exception), warnings.catch_warnings(), forked_rng(x), torch.no_grad():
        warnings.simplefilter("ignore")  # and errors are of a user's code that is of float32 alone
        error = _errors(pair, take(rows, x, args, kwargs))
    if len(error) and float(error.max()) > LARGEST_ERROR:
        image = int(rows[int(error.argmax())])
        raise BadInput(
            f"rounding to float32 changes {'log p(x)' if pair.enumerated else 'a log weight'} of image {image} by "
            f"{float(error.max()):.2g} nats: its numbers are too large, or a scale is too small; compute in float64 "
            "(`x.double()` in model and guide), or scale the images"
        )
    share = 0.0
    if not (pair.unbounded or pair.enumerated):
        with suppress(Exception), forked_rng(x), torch.no_grad():
            share = _share_at_ends(pair, take(rows, x, args, kwargs))
    if share > LARGEST_SHARE:
        finer = "" if x.dtype is torch.float64 else "compute in float64, or "
        raise BadInput(
            f"{share:.0%} of the weights are of z that rounding has put to an end of its support, where a density says "
            f"nothing of the values beyond: {finer}let z be real, and bound it in the model, such as by "
            "torch.sigmoid(z)"
        )


def _errors(pair: Pair, batch: Batch) -> Tensor:
    """Errors of log weights, or of log p(x), [images]; 0 where one is infinite. Empty if float64 leads to float32, or
    if there is noise beside z."""
    x, args, kwargs = batch
    if pair.enumerated:
        total = sum_over_states(pair, x, *args, **kwargs)
        rounded = total(total.pair.model, x, *args, **kwargs)
        with in_double(pair.model, pair.guide):
            exact = total(total.pair.model, as_double(x), *as_double(args), **as_double(kwargs))
        return _difference(rounded, exact)
    if pair.noisy:
        return torch.zeros(0)
    seed_torch(0)
    terms = pair.terms(x, *args, **kwargs)
    values = {name: each[0].reshape(len(x), *pair.event_shapes[name]) for name, each in terms.latents.items()}
    with in_double(pair.model, pair.guide):
        exact = pair.terms_at(as_double(values), as_double(x), *as_double(args), **as_double(kwargs)).log_weight[0]
    return _difference(terms.log_weight[0], exact)


def _share_at_ends(pair: Pair, batch: Batch) -> float:
    """The larger share of the weights, by draws from the guide and from the prior, of values at the end of a support,
    mean over the images."""
    seed_torch(0)
    x, args, kwargs = batch
    draws = [pair.draw(x, *args, num_samples=_DRAWS, prior=prior, **kwargs) for prior in (False, True)]
    by_guide, by_prior = (log_likelihood for _, log_likelihood, _ in draws)
    by_guide = by_guide + draws[0][2] - pair.log_guide(draws[0][0], x, *args, num_samples=_DRAWS, **kwargs)
    trace = trace_of(pair.joint, batch)
    at_end = torch.zeros(2 * _DRAWS, len(x), dtype=torch.bool, device=x.device)
    for name in (name for name in pair.latent if not is_discrete(trace.nodes[name]["fn"])):
        sites = [trace.nodes[name] | {"value": values[name]} for values, _, _ in draws]
        units = torch.cat([units_of(site, (_DRAWS, len(x)), pair.sample_dim, pair.plate.dim) for site in sites])
        ends = [units == extreme for extreme in (units.amax(0), units.amin(0))]
        constant = ends[0].all(0)  # such as the zeros of a triangular matrix
        at_end |= torch.stack([end & (end.sum(0) >= _TIES) & ~constant for end in ends]).any(0).any(-1)
    shares = [
        (log_w.softmax(0) * end).sum(0).mean()
        for log_w, end in zip((by_guide, by_prior), at_end.split(_DRAWS), strict=True)
    ]
    return float(max(shares))


def _difference(rounded: Tensor, exact: Tensor) -> Tensor:
    difference = (rounded - exact).abs().nan_to_num(nan=0.0, posinf=0.0)
    return difference if exact.dtype is torch.float64 else torch.zeros(0)
