"""Bounds of log p(x) from both sides, on images that are drawn from the model.

An estimate of log p(x) that is low in expectation does not show how low it is. If an image x was drawn from the model,
the z* that it was drawn with is an exact sample of p(z | x), and an estimate that is high in expectation can be made of
it (Grosse, Ghahramani and Adams 2015). `ppl_gen.inference.annealed` does so with chains. Here it is done with
importance weights w(z) = p(x, z) / q(z | x), of z_1 … z_k ~ q(z | x):

    lower = log (1/k) [w(z_1) + w(z_2) + … + w(z_k)]
    upper = log (1/k) [w(z*) + w(z_2) + … + w(z_k)]

E[lower] = L_k is the IWAE bound, at most log p(x). E[upper] is at least log p(x): let q_k be the distribution of k
values from q; and p_k that of k values of which one, at a random place, is from p(z | x), and the others are from q.
The mean weight is p(x) p_k / q_k (Domke and Sheldon 2018, theorem 1). So E[upper] - log p(x) is KL(p_k || q_k), and
the expectation of p(x) / exp(upper) under p_k is at most 1. No gradient of z is needed: z may be discrete, and in any
number of sites.

The two bounds share z_2 … z_k. Most of their noise is therefore common and cancels in their distance.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput, as_bad_input
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Advance
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.arguments import Batch, as_arguments, as_images, rows_at, whole_number
from ppl_gen.inference.chunks import pairs_at_a_time
from ppl_gen.inference.estimate import mean_entry, mean_mc_se
from ppl_gen.inference.exact import check_against_bounds, closed_form, exact_blocks
from ppl_gen.inference.gathering import gather_blocks
from ppl_gen.inference.importance import log_mean_weight_with_errors, weighted_blocks
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.pair import Pair, Terms, Values

_IMAGES_PER_DRAW = 500
_CLAIM_IMAGES, _CLAIM_SAMPLES = 100, 30  # to check a closed form with


@dataclass(frozen=True)
class BidirectionalBounds:
    """A lower and an upper estimate of log p(x) for images from the model, in nats, float64 on the CPU, [images].

    In expectation lower <= log p(x) <= upper. For each image P(lower > log p(x) + b) <= exp(-b), and
    P(upper < log p(x) - b) <= exp(-b)."""

    settings: Mapping[str, Any]
    """Settings to record beside the bounds, as JSON values: `num_samples` of importance sampling. Empty for annealing,
    whose estimate records them."""
    x: Tensor
    """The images, [images, data_dim], drawn from the model."""
    lower: Tensor
    upper: Tensor
    lower_mc_var: Tensor
    """Monte Carlo variance of `lower`; NaN if it is unknown. For `upper` it is unknown, because all samples or chains
    of an image share one z."""
    z: Tensor | None = None
    """The z that the images were drawn with, [images, ...]; None if it was not kept."""
    exact: Tensor | None = None
    """Exact log p(x) of the images; None if it is not known."""

    @property
    def width(self) -> Tensor:
        """upper - lower."""
        return self.upper - self.lower

    def entry(self) -> dict[str, Any]:
        """The entry in `evaluation.json`."""
        entry = {
            "num_images": len(self.x),
            **self.settings,
            "lower": mean_entry(self.lower, mc_se=mean_mc_se(self.lower_mc_var)),
            "upper": mean_entry(self.upper),
            "width": mean_entry(self.width),
            "wide": self.wide(),
        }
        if self.exact is not None:
            entry["exact"] = mean_entry(self.exact)
            entry["exact_minus_lower"] = mean_entry(self.exact - self.lower)
            entry["upper_minus_exact"] = mean_entry(self.upper - self.exact)
        return entry

    def wide(self) -> dict[str, Any]:
        """Number of images with bounds more than a nat apart; and the upper 95 % confidence limit of the share of such
        images (Clopper and Pearson 1934), which is about 3/n if there is none among n."""
        from scipy.stats import beta

        count, wide = len(self.x), int((~(self.width <= 1)).sum())
        most = 1.0 if wide == count else float(beta.ppf(0.95, wide + 1, count - wide))
        return {"above": 1.0, "num_images": wide, "fraction_at_most": most, "confidence": 0.95}


def importance_bounds(
    model: Any,
    guide: Any,
    x: Tensor,
    *args: Any,
    num_samples: int = 1000,
    drawn: tuple[Tensor, Values] | None = None,
    chunk_size: int | None = None,
    progress: Advance | None = None,
    **kwargs: Any,
) -> BidirectionalBounds:
    """Bounds of log p(x) by importance sampling from the guide, on images drawn from the model: as many as there are in
    x, with the labels of these. The images do not depend on `num_samples`.

    >>> from ppl_gen.inference.exact import exact_log_px
    >>> from ppl_gen.guides.bernoulli import Bernoulli
    >>> from ppl_gen.models.belief_net import BeliefNet
    >>> _ = torch.manual_seed(0)
    >>> model, guide = BeliefNet(9, latent_dim=3, init_scale=2.0), Bernoulli(9, torch.full((9,), 0.5), 3, "z")
    >>> bounds = importance_bounds(model, guide, torch.zeros(300, 9), num_samples=5)
    >>> bool(bounds.lower.mean() < exact_log_px(model, bounds.x).mean() < bounds.upper.mean())
    True

    :param model: a module with a method `model(x, ...)`, or a Pyro function. It draws n images for `x=None, n=n`.
    :param guide: a module with a method `guide(x, ...)`, or a Pyro function. It needs a density for a z that it has not
        drawn. If it leaves z to enumeration, z is drawn from the prior.
    :param x: images [N, ...]. Only their number and shape are used.
    :param args: further positional arguments; tensors with N rows go along with the images.
    :param num_samples: k, samples of z per image.
    :param drawn: N images from the model, with the values of the latent sites that they were drawn with. By default
        they are drawn here.
    :param chunk_size: pairs of image and sample at a time; limits the memory.
    :param progress: called with the number of images just done.
    :raises BadInput: for a model that cannot draw images, and for a guide without such a density.
    """
    num_samples = whole_number("num_samples", num_samples)
    x = as_images(x, model, guide)
    chunk_size = pairs_at_a_time(model, chunk_size, x)
    args, kwargs = as_arguments(x, args, kwargs, model, guide)
    keep_freed_memory()
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x, *args, **kwargs)
        if drawn is None:
            images, ends = _drawn(pair, Batch(x, args, kwargs))
        else:
            images, ends = drawn[0], _log_weights(pair, *drawn, args, kwargs)

        def blocks(first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
            weighted = weighted_blocks(pair, Batch(images, args, kwargs), num_samples, chunk_size, first)
            return _bounds(weighted, ends[first:])

        whole = gather_blocks(blocks, len(images), progress)
        return BidirectionalBounds({"num_samples": num_samples}, images, **whole)


def why_no_bounds(pair: Pair, x: Tensor, *args: Any) -> str | None:
    """The reason why a pair has no `importance_bounds`; None if it has. Torch's generators are restored.

    :param x: a few images, with their labels in `args`.
    """
    try:
        with evaluating(pair.model, pair.guide), forked_rng(x):
            _drawn(pair, Batch(x, args, {}))
    except BadInput as error:
        return error.sentence
    return None


def cycled(count: int, x: Tensor, *args: Any) -> tuple[Any, ...]:
    """The first `count` rows of images and their further arguments, from the beginning again where there are fewer."""
    return rows_at(torch.arange(count, device=x.device) % len(x), x, *args)


def check_claim(model: Any, guide: Any, pair: Pair, x: Tensor, *args: Any) -> None:
    """Raise `BadInput` if the model's closed form `log_px(x)` is too high for images that the model draws. Nothing is
    checked without a closed form, and for a pair without bounds. Torch's generators are restored.

    :param x: images, with their labels in `args`.
    """
    if not closed_form(model, *args) or why_no_bounds(pair, *cycled(1, x, *args)) is not None:
        return
    with evaluating(model, guide), matmul_precision(), forked_rng(x):
        seed_torch(0)
        x, *labels = cycled(_CLAIM_IMAGES, x, *args)
        bounds = importance_bounds(model, guide, x, *labels, num_samples=_CLAIM_SAMPLES)
        log_px = torch.cat(list(exact_blocks(model, guide, pair, bounds.x, *labels)))
    check_against_bounds(model, log_px, bounds.upper)


def _drawn(pair: Pair, batch: Batch) -> tuple[Tensor, Tensor]:
    """Images drawn from the model, as many as there are in a batch, with the log weights of the z that they were drawn
    with, float64 on the CPU [images]."""
    images, weights = [], []
    for first, (x, args, kwargs) in batch.blocks(_IMAGES_PER_DRAW):
        drawn = pair.draw_images(x, *args, **kwargs)
        images.append(drawn[0])
        weights.append(_log_weights(pair, *drawn, args, kwargs, first))
    return torch.cat(images), torch.cat(weights)


def _log_weights(
    pair: Pair, x: Tensor, values: Values, args: tuple[Any, ...], kwargs: Mapping[str, Any], first: int = 0
) -> Tensor:
    """The log weights of the z that images were drawn with, float64 on the CPU [images]. A weight is inf where
    q(z | x) = 0.

    :param first: number of the first image, for messages.
    :raises BadInput: for a weight that is not a number, or 0.
    """
    with as_bad_input(f"{pair.guide_name} has no density for a z that it did not draw itself"):
        log_w = pair.terms_at(values, x, *args, **kwargs).log_weight.flatten().double().cpu()
    wrong = log_w.isnan() | (log_w == -math.inf)
    if wrong.any():
        raise BadInput(
            f"{pair.model_name} draws image {first + int(wrong.nonzero()[0])} with a z at which log p(x, z) - "
            f"log q(z | x) is {float(log_w[wrong][0]):g}: make model(x=None) and model(x) one distribution"
        )
    return log_w


def _bounds(blocks: Iterator[tuple[int, list[Terms]]], ends: Tensor) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The bounds of each block of images.

    :param blocks: number of images, and terms of z_1 … z_k.
    :param ends: log w(z*) of all images.
    """
    first = 0
    for count, chunks in blocks:
        log_w = torch.cat([terms.log_weight for terms in chunks]).double().cpu()
        end = ends[first : first + count].unsqueeze(0)
        lower, variance, *_ = log_mean_weight_with_errors(log_w)
        upper = torch.cat([end, log_w[1:]]).logsumexp(0) - math.log(len(log_w))
        yield count, {"lower": lower, "upper": upper, "lower_mc_var": variance}
        first += count
