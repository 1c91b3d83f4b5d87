"""log p(x) by importance sampling from other distributions than the guide alone, image by image.

All of them share one estimate. Of S samples, n_h come from the h-th proposal q_h, and

    log w_s = log p(x, z_s) - log sum_h (n_h / S) q_h(z_s | x)

whichever z_s came from: the balance heuristic (Veach and Guibas 1995, section 3.3). (1/S) sum w_s is unbiased for p(x).

- *Several guides* of one model: where one has no mass another may have.
- *The prior among them*, a defensive mixture (Hesterberg 1995; Owen and Zhou 2000): no weight is above p(x | z)
  S / n_prior, so that the variance is finite where the likelihood is bounded, whatever the guide.
- *The prior alone*, log (1/S) sum p(x | z_s): what amortized guides spare one.
- *A second opinion* on the guide's own estimate, which cannot see where the guide never goes: few samples, half of them
  from the prior.
- *A temperature* above 1 spreads a guide: z becomes c + temperature (z - c), with c the mean of samples that are used
  for nothing else.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.inference.agreement import above
from ppl_gen.inference.callables import (
    Batch,
    as_arguments,
    as_images,
    evaluating,
    model_function,
    take,
    whole_number,
)
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.estimate import Estimate, Variable, mean_entry, share
from ppl_gen.inference.importance import CHUNK_SIZE, Advance, gathered, log_mean_exp, reduced
from ppl_gen.inference.pair import Pair

_IMAGES_PER_BLOCK = 16
_CENTER_SAMPLES = 100
Values = dict[str, Tensor]


def proposal_log_px(
    model: Any,
    guides: Sequence[Any],
    x: Tensor,
    *args: Any,
    num_samples: int = 1000,
    prior_share: float = 0.0,
    temperature: float = 1.0,
    chunk_size: int = CHUNK_SIZE,
    progress: Advance | None = None,
    **kwargs: Any,
) -> Estimate:
    """log p(x) by importance sampling from a mixture of guides and the prior; from the prior alone, if no guide is
    given.

    The errors are those of independent samples from the mixture; fixed numbers from each proposal make the true ones no
    larger.

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param guides: of the same latent sites; they share what `prior_share` leaves in equal parts. May be empty if that
        is nothing.
    :param x: images [N, ...].
    :param args: further positional arguments; tensors with N rows go along with the images.
    :param prior_share: of the samples, rounded to a whole number of them.
    :param temperature: of the guides, for latents that are continuous and unbounded.
    :raises BadInput: for guides that do not fit, or that there are no samples for.
    """
    used = guides if prior_share < 1 else []
    x = as_images(x, model, *used)
    args, kwargs = as_arguments(len(x), args, kwargs)
    num_samples = whole_number("num_samples", num_samples)
    counts, from_prior = _counts(len(used), num_samples, prior_share)
    keep_freed_memory()
    with evaluating(model, *used):
        pairs = _pairs(model, used, temperature, x, *args, **kwargs)
        for pair in pairs:
            check_images(pair, x, *args, **kwargs)
        blocks = torch.arange(len(x), device=x.device).split(max(1, min(_IMAGES_PER_BLOCK, chunk_size)))
        mixtures = (
            (len(rows), _Mixture(pairs, counts or [0], from_prior, temperature, take(rows, x, args, kwargs)))
            for rows in blocks
        )
        parts = ((count, reduced(mixture.log_weights(chunk_size))) for count, mixture in mixtures)
        whole = gathered(parts, len(x), progress)
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
    own estimate: it counts where it is above that beyond chance (`ppl_gen.inference.agreement.above`)."""

    estimator: str = "second_opinion"
    words: str = "few samples, half of them from the prior"
    num_samples: int
    from_prior: Tensor
    """Share of the sum of weights that belongs to the samples from the prior."""

    @property
    def error_is_reliable(self) -> bool:
        """True if there are samples enough for a test at a small rate: the weights of a mixture are bounded, and their
        mean and their error are both off where few samples are alike by chance."""
        return self.num_samples >= 100

    @property
    def blind(self) -> Tensor:
        """Images for which the prior's samples carry less than 1 % of the weights: they do not reach the mode that the
        guide is in, and would not have reached another one of its size; bool [images]."""
        return ~(self.from_prior >= 0.01)

    @property
    def visible_mass(self) -> float:
        """Share of the prior's mass that a mode must have to hold one of the samples with 95 % probability. Half of
        them are from the prior."""
        return 1 - 0.05 ** (1 / max(1, self.num_samples // 2))

    def entry_on(self, other: Estimate) -> dict[str, Any]:
        """Its entry in `evaluation.json`: what it says of another estimate."""
        found = above(other, self)
        by = (self.log_px - other.log_px)[found.images]
        return mean_entry(
            self.log_px,
            mc_se=self.mc_se,
            num_samples=self.num_samples,
            at_least=found.any,
            fraction_beyond_errors=share(found.images),
            **({"nats_beyond_errors": float(by.mean())} if len(by) else {}),
            together_beyond_errors=found.together,
            fraction_blind=share(self.blind),
            visible_mass=self.visible_mass,
        )

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        blind = self.blind.to(torch.int8)
        return {"blind": Variable(blind, "the second opinion could not have seen another mode", "1")}


def second_opinion_samples(num_samples: int) -> int:
    """Samples of a second opinion on `num_samples` importance samples: a twentieth, and at least 20."""
    return max(num_samples // 20, 20)


def second_opinion(
    model: Any,
    guide: Any,
    x: Tensor,
    *args: Any,
    num_samples: int,
    seed: int = 0,
    chunk_size: int = CHUNK_SIZE,
    **kwargs: Any,
) -> SecondOpinion | None:
    """log p(x) of each image from few samples, half from the guide and half from the prior. It sees a mode that the
    guide misses where the prior puts some of these samples into it. In many dimensions the prior does not, and then it
    says nothing: those images are `blind`.

    Draws its own noise from `seed`, and leaves the generators as they were. Arguments as for
    `ppl_gen.log_marginal_likelihood`.

    :return: None where the guide samples nothing, since the samples come from the prior in any case, and where it has
        no density for a z that it has not drawn.
    """
    require(num_samples >= 2, "num_samples", num_samples, "must be at least 2")
    keep_freed_memory()
    with evaluating(model, guide), torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        pair = Pair.read(model, guide, x, *args, **kwargs)
        if pair.enumerated or not _scores_others(pair, take(torch.arange(1, device=x.device), x, args, kwargs)):
            return None
        counts, from_prior = _counts(1, num_samples, 0.5)

        def block(rows: Tensor) -> dict[str, Tensor]:
            mixture = _Mixture([pair], counts, from_prior, 1.0, take(rows, x, args, kwargs))
            # z of the prior may lie where the likelihood is not defined: such a sample has no weight.
            log_w = mixture.log_weights(chunk_size).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            log_px, variance, bias, _ = log_mean_exp(log_w)
            of_prior = log_w.softmax(0)[-from_prior:].sum(0)
            return {"log_px": log_px, "log_px_mc_var": variance, "log_px_bias": bias, "from_prior": of_prior}

        blocks = torch.arange(len(x), device=x.device).split(max(1, chunk_size // from_prior))
        parts = ((len(rows), block(rows)) for rows in blocks)
        return SecondOpinion(num_samples=num_samples, **gathered(parts, len(x)))


def _scores_others(pair: Pair, batch: Batch) -> bool:
    """Whether a guide has a density for a z that it has not drawn; Pyro's planar flows have none."""
    x, args, kwargs = batch
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            values, *_ = pair.draw(x, *args, num_samples=2, prior=True, **kwargs)
            pair.log_guide(values, x, *args, num_samples=2, **kwargs)
    except Exception:  # whatever a flow raises that has no inverse
        return False
    return True


def _from_prior(model: Any) -> tuple[Any, Callable[..., Any]]:
    """The model, and as its guide the latent sites of the model itself."""
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
    """Raise what `proposal_log_px` would, for a few images x, before other work is done."""
    guides = guides if prior_share < 1 else []
    _counts(len(guides), num_samples, prior_share)
    with evaluating(model, *guides):
        _pairs(model, guides, temperature, x, *args)


def _counts(num_guides: int, num_samples: int, prior_share: float) -> tuple[list[int], int]:
    """Samples of each guide, and of the prior."""
    require(num_samples >= 1, "num_samples", num_samples, "must be at least 1")
    require(0 <= prior_share <= 1, "prior_share", prior_share, "must be from 0 to 1")
    from_prior = round(prior_share * num_samples)
    counts = [(num_samples - from_prior + i) // num_guides for i in range(num_guides)]
    if min(counts, default=1) < 1 or (prior_share > 0 and from_prior < 1) or from_prior + sum(counts) < num_samples:
        raise BadInput(f"--num-samples {num_samples}: too few for every proposal to have one")
    return counts, from_prior


def _pairs(model: Any, guides: Sequence[Any], temperature: float, x: Tensor, *args: Any, **kwargs: Any) -> list[Pair]:
    """The model with each guide, or, if there is none, with its own prior."""
    require(0 < temperature < math.inf, "temperature", temperature, "must be a number above 0")
    pairs = [Pair.read(model, guide, x, *args, **kwargs) for guide in guides]
    if not pairs:
        return [Pair.read(*_from_prior(model), x, *args, **kwargs)]
    for pair in pairs:
        if pair.enumerated:
            raise BadInput(f"{pair.guide_name} samples no z, and cannot be a proposal; use --estimator prior")
    if not all(pair.vectorized for pair in pairs) or len({pair.max_plate_nesting for pair in pairs}) > 1:
        pairs = [replace(pair, vectorized=False) for pair in pairs]  # so that one can score another's values
    for pair in pairs if temperature != 1 else ():
        if not pair.vectorized:
            raise BadInput(f"--temperature {temperature}: takes a pair that can be run under a plate of samples")
        if pair.masked:
            raise BadInput(f"--temperature {temperature}: takes latent sites without a mask")
        if not pair.unbounded:
            raise BadInput(f"--temperature {temperature}: takes latent sites that are continuous and unbounded")
    return pairs


class _Mixture:
    """The proposals for a few images."""

    def __init__(
        self,
        pairs: list[Pair],
        counts: list[int],
        from_prior: int,
        temperature: float,
        batch: Batch,
    ):
        self.pairs, self.counts, self.from_prior, self.temperature = pairs, counts, from_prior, temperature
        self.x, self.args, self.kwargs = batch
        self.centers = [self._center(pair) for pair in pairs] if temperature != 1 else None

    def log_weights(self, chunk_size: int) -> Tensor:
        """[samples, images] in float64 on the CPU, one proposal after the other."""
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
                    move=functools.partial(self._move, index, self.temperature) if self.centers else None,
                    **self.kwargs,
                )
                shares = [(log_prior, self.from_prior)] if self.from_prior else []
                shares += [(self._log_guide(i, values, size), n) for i, n in enumerate(self.counts) if n]
                proposed = torch.stack([density.double() + math.log(n / total) for density, n in shares]).logsumexp(0)
                chunks.append((likelihood.double() + log_prior.double() - proposed).cpu())
        return torch.cat(chunks)

    def _log_guide(self, index: int, values: Values, size: int) -> Tensor:
        spread = 0.0
        if self.centers:
            values = self._move(index, 1 / self.temperature, values)
            numbers = sum(value.numel() for value in values.values()) / (size * len(self.x))
            spread = numbers * math.log(self.temperature)
        density = self.pairs[index].log_guide(values, self.x, *self.args, num_samples=size, **self.kwargs)
        return density - spread

    def _move(self, index: int, factor: float, values: Values) -> Values:
        assert self.centers is not None
        center = self.centers[index]
        return {name: center[name] + factor * (value - center[name]) for name, value in values.items()}

    def _center(self, pair: Pair) -> Values:
        values, *_ = pair.draw(self.x, *self.args, num_samples=_CENTER_SAMPLES, **self.kwargs)
        return {name: value.mean(0, keepdim=True) for name, value in values.items()}
