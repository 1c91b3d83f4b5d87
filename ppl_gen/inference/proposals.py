"""log p(x) by importance sampling from several proposals, image by image.

Of S samples, n_h come from the h-th proposal q_h. The weight of a sample is

    log w_s = log p(x, z_s) - log sum_h (n_h / S) q_h(z_s | x),

whichever proposal z_s came from: the balance heuristic (Veach and Guibas 1995, section 3.3). (1/S) sum w_s is unbiased
for p(x). Proposals are

- *several guides* of one model: one may have mass where another has none;
- *guides and the prior*, a defensive mixture (Hesterberg 1995; Owen and Zhou 2000): no weight is above
  p(x | z) S / n_prior, so that the variance is finite for any guide if the likelihood is bounded;
- *the prior alone*, log (1/S) sum p(x | z_s): the estimate without a guide;
- *the guide and the prior, with few samples*: a second opinion on the guide's own estimate, which cannot see where the
  guide never goes.

A temperature above 1 widens a guide: z becomes c + temperature (z - c), where c is the mean of separate samples.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Advance
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.agreement import above
from ppl_gen.inference.arguments import Batch, as_arguments, as_images, take, whole_number
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.chunks import images_at_a_time, pairs_at_a_time
from ppl_gen.inference.estimate import Estimate, Variable, mean_entry, share
from ppl_gen.inference.gathering import gather_blocks
from ppl_gen.inference.importance import ImportanceEstimate, log_mean_weight_with_errors, weight_statistics
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.neighbours import missed_values
from ppl_gen.inference.pair import Pair, Values
from ppl_gen.inference.signatures import model_function
from ppl_gen.inference.tracing import PyroFunction

_CENTER_SAMPLES = 100  # samples for the mean c of a guide that is widened


def proposal_log_px(
    model: Any,
    guides: Sequence[Any],
    x: Tensor,
    *args: Any,
    num_samples: int = 1000,
    prior_share: float = 0.0,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    progress: Advance | None = None,
    **kwargs: Any,
) -> Estimate:
    """log p(x) by importance sampling from a mixture of guides and the prior; from the prior alone, if no guide is
    given.

    The errors are computed as for independent samples from the mixture. With fixed numbers of samples from each
    proposal the true errors are no larger.

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param guides: guides with the same latent sites. They share the samples that are not from the prior in equal parts.
        May be empty if all samples are from the prior.
    :param x: images [N, ...].
    :param args: further positional arguments; tensors with N rows go along with the images.
    :param prior_share: share of the samples from the prior, rounded to a whole number of samples.
    :param temperature: temperature of the guides, for latents that are continuous and unbounded.
    :param chunk_size: pairs of image and sample at a time; limits the memory.
    :param progress: called with the number of images just done.
    :raises BadInput: for guides that do not fit the model, and for fewer samples than proposals.
    """
    used = guides if prior_share < 1 else []
    x = as_images(x, model, *used)
    args, kwargs = as_arguments(x, args, kwargs, model, *used)
    num_samples, pairs_per_chunk = whole_number("num_samples", num_samples), pairs_at_a_time(model, chunk_size, x)
    counts, from_prior = _counts(len(used), num_samples, prior_share)
    keep_freed_memory()
    with evaluating(model, *used):
        pairs = _pairs(model, used, temperature, x, *args, **kwargs)
        for pair in pairs:
            check_images(pair, x, *args, **kwargs)

        def blocks(first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
            for _, batch in Batch(x, args, kwargs).blocks(images_at_a_time(pairs_per_chunk, num_samples, x), first):
                mixture = _Mixture(pairs, counts or [0], from_prior, temperature, batch)
                yield len(mixture.x), weight_statistics(mixture.log_weights(pairs_per_chunk))

        whole = gather_blocks(blocks, len(x), progress)
    if not guides:
        words = "importance sampling from the prior"
        return Estimate(estimator="prior", num_samples=num_samples, words=words, usable_for_gap=False, **whole)
    words, names = "importance sampling from several proposals", [pair.guide_name for pair in pairs] if used else []
    proposal = {"prior_share": prior_share, "temperature": temperature, "guides": names}
    return Estimate(
        estimator="importance", num_samples=num_samples, words=words, settings={"proposal": proposal}, **whole
    )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SecondOpinion(Estimate):
    """log p(x) from few samples, half of them from the prior. It is low in expectation, and often far below the guide's
    own estimate. It matters only if it is significantly above that (`ppl_gen.inference.agreement.above`)."""

    estimator: str = "second_opinion"
    words: str = "few samples, half of them from the prior"
    num_samples: int
    from_prior: Tensor
    """Share of the samples from the prior in the sum of weights."""

    @property
    def error_is_reliable(self) -> bool:
        """True with at least 100 samples. The weights of a mixture are bounded: if a few samples are similar by chance,
        both their mean and its estimated error are wrong."""
        return self.num_samples >= 100

    @property
    def blind(self) -> Tensor:
        """Images for which the samples from the prior have less than 1 % of the weights; bool [images]. These samples
        did not reach the mode of the guide, and would not have reached another mode of the same size either."""
        return ~(self.from_prior >= 0.01)

    @property
    def visible_mass(self) -> float:
        """Share of the prior's mass that a mode must have to contain a sample with 95 % probability. Half of the
        samples are from the prior."""
        return 1 - 0.05 ** (1 / max(1, self.num_samples // 2))

    def entry_on(self, other: Estimate) -> dict[str, Any]:
        """The entry in `evaluation.json`: the comparison with another estimate."""
        larger = above(other, self)
        by = (self.log_px - other.log_px)[larger.images]
        return mean_entry(
            self.log_px,
            mc_se=self.mc_se,
            num_samples=self.num_samples,
            at_least=larger.any,
            fraction_beyond_errors=share(larger.images),
            **({"nats_beyond_errors": float(by.mean())} if len(by) else {}),
            together_beyond_errors=larger.together,
            fraction_blind=share(self.blind),
            visible_mass=self.visible_mass,
        )

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        blind = self.blind.to(torch.int8)
        return {"blind": Variable(blind, "the second opinion could not have seen another mode", "1")}


def second_opinion_samples(num_samples: int) -> int:
    """Number of samples of a second opinion on `num_samples` importance samples: a twentieth, at least 20."""
    return max(num_samples // 20, 20)


def asked_again(
    estimate: ImportanceEstimate,
    pair: Pair,
    model: Any,
    guide: Any,
    x: Tensor,
    *args: Any,
    seed: int = 0,
    chunk_size: int | None = None,
    **kwargs: Any,
) -> ImportanceEstimate:
    """An estimate with a second opinion, and with those images `doubted` of which the guide misses a value of a
    discrete unit. Other arguments are as for `second_opinion`."""
    few = second_opinion_samples(estimate.num_samples)
    how: dict[str, Any] = {"seed": seed, "pair": pair}
    opinion = second_opinion(model, guide, x, *args, num_samples=few, chunk_size=chunk_size, **how, **kwargs)
    missed = None if kwargs else missed_values(model, guide, x, *args, num_samples=estimate.num_samples, **how)
    unopposed = opinion is None and not pair.enumerated
    return replace(estimate, second_opinion=opinion, unopposed=unopposed, doubted=missed)


def second_opinion(
    model: Any,
    guide: Any,
    x: Tensor,
    *args: Any,
    num_samples: int,
    seed: int = 0,
    chunk_size: int | None = None,
    pair: Pair | None = None,
    **kwargs: Any,
) -> SecondOpinion | None:
    """log p(x) of each image from few samples, half from the guide and half from the prior. It finds a mode that the
    guide misses, if some of the prior's samples fall into that mode. In many dimensions hardly any do. Images for which
    nothing can be concluded are `blind`.

    Noise is drawn from `seed`, and torch's generators are restored. Arguments are as for
    `ppl_gen.log_marginal_likelihood`.

    :param pair: the pair of model and guide, if it was read before.
    :return: the estimate; None if the guide samples nothing, because all samples come from the prior then; and None if
        it has no density for a z that it has not drawn.
    """
    require(num_samples >= 2, "num_samples", num_samples, "must be at least 2")
    keep_freed_memory()
    with evaluating(model, guide), forked_rng(x):
        seed_torch(seed)
        pair = Pair.read(model, guide, x, *args, **kwargs) if pair is None else pair
        if pair.enumerated or not scores_others(pair, take(torch.arange(1, device=x.device), x, args, kwargs)):
            return None
        counts, from_prior = _counts(1, num_samples, 0.5)
        pairs_per_chunk = pairs_at_a_time(model, chunk_size, x)

        def block(batch: Batch) -> dict[str, Tensor]:
            mixture = _Mixture([pair], counts, from_prior, 1.0, batch)
            # The likelihood may be undefined at a z from the prior. Such a sample has weight 0.
            log_w = mixture.log_weights(pairs_per_chunk).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            log_px, variance, bias, _ = log_mean_weight_with_errors(log_w)
            of_prior = log_w.softmax(0)[-from_prior:].sum(0)
            return {"log_px": log_px, "log_px_mc_var": variance, "log_px_bias": bias, "from_prior": of_prior}

        def blocks(first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
            for _, batch in Batch(x, args, kwargs).blocks(max(1, pairs_per_chunk // from_prior), first):
                yield len(batch.x), block(batch)

        return SecondOpinion(num_samples=num_samples, **gather_blocks(blocks, len(x)))


def scores_others(pair: Pair, batch: Batch) -> bool:
    """True if a guide has a density for a z that it has not drawn. Pyro's planar flows, for example, have none."""
    x, args, kwargs = batch
    try:
        with forked_rng(x):
            values, *_ = pair.draw(x, *args, num_samples=2, prior=True, **kwargs)
            pair.log_guide(values, x, *args, num_samples=2, **kwargs)
    except Exception:  # a flow without inverse
        return False
    return True


def _with_prior(model: Any) -> tuple[Any, PyroFunction]:
    """A pair of the model and its prior: a guide that samples the model's own latent sites."""
    function = model_function(model)

    @functools.wraps(function)
    def prior(*args: Any, **kwargs: Any) -> None:
        poutine.block(function, hide_fn=lambda site: site.get("is_observed", False))(*args, **kwargs)

    return model, prior


def check(
    model: Any,
    guides: Sequence[Any],
    x: Tensor,
    *args: Any,
    num_samples: int,
    prior_share: float = 0.0,
    temperature: float = 1.0,
) -> None:
    """Raise the `BadInput` that `proposal_log_px` would raise, by a run on a few images x."""
    guides = guides if prior_share < 1 else []
    _counts(len(guides), num_samples, prior_share)
    with evaluating(model, *guides):
        _pairs(model, guides, temperature, x, *args)


def _counts(num_guides: int, num_samples: int, prior_share: float) -> tuple[list[int], int]:
    """Numbers of samples from each guide and from the prior."""
    require(num_samples >= 1, "num_samples", num_samples, "must be at least 1")
    require(0 <= prior_share <= 1, "prior_share", prior_share, "must be from 0 to 1")
    from_prior = round(prior_share * num_samples)
    counts = [(num_samples - from_prior + i) // num_guides for i in range(num_guides)]
    if min(counts, default=1) < 1 or (prior_share > 0 and from_prior < 1) or from_prior + sum(counts) < num_samples:
        raise BadInput(f"--num-samples {num_samples}: too few: each proposal needs at least one")
    return counts, from_prior


def _pairs(model: Any, guides: Sequence[Any], temperature: float, x: Tensor, *args: Any, **kwargs: Any) -> list[Pair]:
    """The pairs of the model with each guide; with its own prior if there is no guide."""
    require(0 < temperature < math.inf, "temperature", temperature, "must be a number above 0")
    pairs = [Pair.read(model, guide, x, *args, **kwargs) for guide in guides]
    if not pairs:
        return [Pair.read(*_with_prior(model), x, *args, **kwargs)]
    for pair in pairs:
        if pair.enumerated:
            raise BadInput(f"{pair.guide_name} samples no z, so it cannot be a proposal; use --estimator prior")
    if not all(pair.vectorized for pair in pairs) or len({pair.max_plate_nesting for pair in pairs}) > 1:
        pairs = [
            replace(pair, vectorized=False) for pair in pairs
        ]  # each guide must score the values of the others, in one shape
    for pair in pairs if temperature != 1 else ():
        if not pair.vectorized:
            raise BadInput(f"--temperature {temperature}: needs a pair that can be run under a plate of samples")
        if pair.masked:
            raise BadInput(f"--temperature {temperature}: needs latent sites without a mask")
        if not pair.unbounded:
            raise BadInput(f"--temperature {temperature}: needs latent sites that are continuous and unbounded")
    return pairs


class _Mixture:
    """The mixture of proposals for a block of images."""

    def __init__(self, pairs: list[Pair], counts: list[int], from_prior: int, temperature: float, batch: Batch):
        self.pairs, self.counts, self.from_prior, self.temperature = pairs, counts, from_prior, temperature
        self.x, self.args, self.kwargs = batch
        self.centers = [self._center(pair) for pair in pairs] if temperature != 1 else None

    def log_weights(self, chunk_size: int) -> Tensor:
        """Log weights [samples, images], float64 on the CPU: the samples of the guides in order, then those of the
        prior."""
        total = self.from_prior + sum(self.counts)
        step = max(1, chunk_size // len(self.x))
        chunks = []
        for index, count in enumerate([*self.counts, self.from_prior]):
            prior = index == len(self.counts)
            for start in range(0, count, step):
                size = min(step, count - start)
                values, likelihood, log_prior = self.pairs[0 if prior else index].draw(
                    self.x,
                    *self.args,
                    num_samples=size,
                    prior=prior,
                    transform=functools.partial(self._rescale, index, self.temperature) if self.centers else None,
                    **self.kwargs,
                )
                shares = [(log_prior, self.from_prior)] if self.from_prior else []
                shares += [(self._log_guide(i, values, size), n) for i, n in enumerate(self.counts) if n]
                # The balance heuristic: the density of the whole mixture, whichever proposal the sample is from.
                proposed = torch.stack([density.double() + math.log(n / total) for density, n in shares]).logsumexp(0)
                chunks.append((likelihood.double() + log_prior.double() - proposed).cpu())
        return torch.cat(chunks)

    def _log_guide(self, index: int, values: Values, size: int) -> Tensor:
        """log q(z | x) [samples, images] of a guide at its temperature."""
        log_scale = 0.0
        if self.centers:
            # Change of variables: the density at z is q at the original point, divided by temperature^units.
            values = self._rescale(index, 1 / self.temperature, values)
            units = sum(value.numel() for value in values.values()) / (size * len(self.x))
            log_scale = units * math.log(self.temperature)
        density = self.pairs[index].log_guide(values, self.x, *self.args, num_samples=size, **self.kwargs)
        return density - log_scale

    def _rescale(self, index: int, factor: float, values: Values) -> Values:
        """Scale the distance of values from the center of a guide."""
        assert self.centers is not None
        center = self.centers[index]
        return {name: center[name] + factor * (value - center[name]) for name, value in values.items()}

    def _center(self, pair: Pair) -> Values:
        """Mean of separate samples of a guide."""
        values, *_ = pair.draw(self.x, *self.args, num_samples=_CENTER_SAMPLES, **self.kwargs)
        return {name: value.mean(0, keepdim=True) for name, value in values.items()}
