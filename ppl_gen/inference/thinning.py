"""The gradient of a bound through few of its K samples.

The gradient of the importance-weighted bound is a sum over samples with normalized weights w~_k, most of which are
nearly 0. All weights need the model forward. The way back, which costs twice as much, is then taken for m samples.
Sample k is among them with probability pi_k, and counts w~_k / pi_k: the expected gradient is that of all K. Burda et
al. (2016, section 3) propose it for one sample. Here m of them are drawn without replacement, with pi_k proportional to
w~_k as far as pi_k <= 1 allows, by systematic sampling (Madow 1949).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.seeds import MANY_DRAWS, with_draws
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.chunks import pairs_at_a_time
from ppl_gen.inference.densities import alike, masked_log_prob
from ppl_gen.inference.direct import Direct
from ppl_gen.inference.modes import aside, evaluating, forked_rng, into_training
from ppl_gen.inference.pair import Pair, Terms, Values
from ppl_gen.inference.reached import modules_of, outermost
from ppl_gen.inference.tracing import PyroFunction, Traces, conditioned, frozen_guide_traces_at, trace_of

_FLOOR = 0.01
"""Share of the probabilities that is spread evenly: no weight is so small that it cannot be drawn."""


def check_backward(backward: int | None, num_particles: int) -> None:
    """Raise `BadInput` for a number of samples that the gradient cannot go through."""
    rule = f"must be at least 1 and below the number of samples, {num_particles}"
    require(backward is None or 1 <= backward < num_particles, "objective.backward", backward, rule)


def check_thinned(pair: Pair, x: Tensor, *args: Any) -> None:
    """Raise `BadInput` for a pair that cannot be run again at some of several samples.

    :param x: a few images to try it on.
    """
    who = f"{pair.model_name} and {pair.guide_name}"
    if pair.scored:
        raise BadInput(
            f"--objective.backward: the discrete choice of {pair.guide_name} needs all samples; leave it out"
        )
    if not pair.vectorized or pair.partly_enumerated or pair.left_out:
        raise BadInput(f"--objective.backward: {who} cannot be run at some of several samples; leave it out")
    images = Batch(x, args, {})
    with _as_in_a_step(pair, x):
        drawn, terms = weighed(pair, images, 4)
        some = torch.arange(2, device=x.device)[:, None].expand(-1, len(x))
        again = terms_at(pair, images, drawn, some)
    if not alike(terms.log_weight[:2], again.log_weight):
        raise BadInput(
            f"--objective.backward: {who} give other log-densities when they are run a second time, at some of the "
            "samples: they have noise beside z, or statistics of a batch; leave it out"
        )


def check_noise(who: str, pair: Pair, x: Tensor, *args: Any, instead: str) -> None:
    """Raise `BadInput` for a guide whose density of the same z is another one when it is run a second time.

    :param who: the objective that runs it twice, in the message.
    """
    error = BadInput(f"{who}: {pair.guide_name} has noise beside z, such as dropout; use {instead}")
    images = Batch(x, args, {})
    dropout = nn.modules.dropout._DropoutNd

    def run(guide: PyroFunction) -> poutine.Trace:
        with aside(pair.modules):  # running statistics are no noise
            return trace_of(guide, images)

    with _as_in_a_step(pair, x), torch.no_grad():
        if any(isinstance(part, dropout) and part.p > 0 and part.training for part in modules_of(pair.guide)):
            raise error  # which a few images may not show
        drawn = run(pair.guide)
        replayed = partial(run, poutine.replay(pair.guide, trace=drawn))
        try:
            again, draws = with_draws(replayed, x.is_cuda)
            others = [again, *(replayed() for _ in range(MANY_DRAWS * draws))]
            densities = [[masked_log_prob(each.nodes[name]) for name in pair.latent] for each in (drawn, *others)]
        except Exception:  # a flow without inverse, which the first step refuses
            return
        if not all(all(map(alike, densities[0], other)) for other in densities[1:]):
            raise error


@contextmanager
def _as_in_a_step(pair: Pair, x: Tensor) -> Iterator[None]:
    """Context with dropout and statistics of a batch, as in a step of training; a model that is not trained has
    neither. Modes and torch's generators are restored."""
    with forked_rng(x), evaluating(pair.model, pair.guide):
        for function in (pair.model, pair.guide):
            parts = modules_of(function)
            trained = any(parameter.requires_grad for part in parts for parameter in part.parameters(recurse=False))
            if trained or function is pair.guide:
                into_training(*outermost(parts))
        yield


def weighed(pair: Pair, images: Batch, num_samples: int) -> tuple[Values, Terms]:
    """Values of the latent sites from the guide, with a gradient, and their log-densities, without one. Running
    statistics and counts of the pair stay as they are: `terms_at` moves them."""
    with aside(pair.modules):
        return _weighed(pair, images, num_samples)


def _weighed(pair: Pair, images: Batch, num_samples: int) -> tuple[Values, Terms]:
    x = images.x
    if (direct := _direct(pair, images)) is not None:
        z = direct.sampled(x, num_samples)
        with torch.no_grad():
            chunks = z.split(max(1, pairs_at_a_time(None, None, x) // len(x)))  # which fit into the cache
            parts = [direct.terms(x, len(each), at=each) for each in chunks]
            terms = replace(
                parts[0],
                log_likelihood=torch.cat([each.log_likelihood for each in parts]),
                log_prior=torch.cat([each.log_prior for each in parts]),
                log_guide=torch.cat([each.log_guide for each in parts]),
                latents={},
            )
        return {direct.name: z}, terms
    guide, model, batch = pair.for_samples(num_samples, images)
    drawn = trace_of(guide, batch)
    with torch.no_grad():
        traces = Traces(drawn, trace_of(poutine.replay(model, trace=drawn), batch))
        terms = pair.terms_of(traces, (num_samples, len(x)))
    return {name: drawn.nodes[name]["value"] for name in pair.latent}, terms


def terms_at(pair: Pair, images: Batch, values: Values, index: Tensor, frozen_guide: bool = False) -> Terms:
    """Log-densities [m, images] of some samples, each image's own.

    :param values: from `weighed`.
    :param index: numbers of samples [m, images].
    :param frozen_guide: as in `Pair.terms`.
    """
    values = _taken(pair, values, index)
    if (direct := _direct(pair, images)) is not None:
        return direct.terms(images.x, len(index), frozen_guide=frozen_guide, at=values[direct.name])
    guide, model, batch = pair.for_samples(len(index), images)
    shape = (len(index), len(images.x))
    if not frozen_guide:
        return pair.terms_of(conditioned(guide, model, values, batch), shape)
    values = {name: value.clone() for name, value in values.items()}
    traces = frozen_guide_traces_at(guide, model, pair.read_by_guide, values, batch)
    return replace(pair.terms_of(traces, shape), values=values)


def _direct(pair: Pair, images: Batch) -> Direct | None:
    """The methods that stand for the functions of the pair, if they do."""
    return None if images.args else pair.direct


def _taken(pair: Pair, values: Values, index: Tensor) -> Values:
    """The values of some samples, each image's own."""
    found = {}
    for name, value in values.items():
        samples, images = _dims(pair, name, value)
        shape, whole = [1] * value.dim(), [*value.shape]
        shape[samples], shape[images] = index.shape
        whole[samples] = len(index)
        found[name] = value.gather(samples, index.reshape(shape).expand(whole))
    return found


def _dims(pair: Pair, name: str, value: Tensor) -> tuple[int, int]:
    """The dimensions of samples and of images in the value of a site."""
    left = value.dim() - len(pair.event_shapes[name])
    return left + pair.sample_dim, left + pair.plate.dim


def drawn_by(size: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw some samples of each image, with probabilities proportional to their sizes [samples, images], at least 0.
    Returns what `choose` does."""
    share = size / size.sum(0).clamp(min=torch.finfo(size.dtype).tiny)
    return choose(share, count, torch.rand(size.shape[1], device=size.device, dtype=torch.float64))


def choose(share: Tensor, count: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Choose some samples of each image without replacement, with probabilities proportional to their weights.

    >>> index, factor = choose(torch.tensor([[0.7], [0.1], [0.2]]), 2, torch.tensor([0.5]))
    >>> index.flatten().tolist(), [round(each, 2) for each in factor.flatten().tolist()]
    ([0, 2], [1.0, 1.51])

    :param share: normalized weights [samples, images].
    :param count: m.
    :param offset: uniform random numbers in [0, 1), [images].
    :returns: numbers of the chosen samples, and one over the probability that they are chosen, [m, images].
    """
    weight = share.double() + _FLOOR / len(share)
    # The t largest are certain, and the others have probabilities c w with sum m - t. Take the least t with c w <= 1.
    largest = weight.sort(0, descending=True).values
    rest = largest.flip(0).cumsum(0).flip(0)[:count]
    scale = torch.arange(count, 0, -1, device=share.device)[:, None] / rest
    fits = scale * largest[:count] <= 1 + 1e-12
    least = fits.int().argmax(0, keepdim=True)
    probability = (scale.gather(0, least) * weight).clamp(max=1)
    # A sample is chosen if a whole number lies in its part of the line of all probabilities, shifted by the offset.
    ends = (probability.cumsum(0) + offset).floor()
    chosen = ends - torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    index = chosen.topk(count, 0, sorted=False).indices.sort(0).values
    return index, probability.gather(0, index).reciprocal().to(share.dtype)
