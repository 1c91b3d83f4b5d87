"""log p(x) by importance sampling with as many samples for each image as its error takes.

A pilot doubles the number of samples S of an image until two proposals settle its log p(x):

- the guide q(z | x);
- a defensive mixture (Hesterberg 1995): a tenth of the samples from the prior, at least 100 of them but at most half,
  and the others from the guide spread by a temperature above 1. Its weights are bounded by 10 p(x | z), and it reaches
  what a narrow guide misses.

An image is settled by the mixture if k-hat is fine, 2.5 Monte Carlo errors and the estimated bias are within the
tolerance, and the guide is not above it beyond their errors. It is settled by the guide if that holds, and if the
mixture, known to a few tolerances, agrees with it. The proposal with the smaller error is taken.

The samples that decide when to stop do not enter the estimate: a pilot stops earlier where large weights happen to be
missing, so that its own value is low (optional stopping). The estimate has S new samples. They decide about nothing
but the label of the image: it stays settled if they pass the same tests, if they agree with the pilot, and if the guide
draws each likely value of a discrete unit (`missed_values`).

Images that are not settled are annealed, where the model can be annealed and this costs no more than the importance
samples of all images did. Annealing settles an image if its error is within the tolerance and importance sampling is
not above it. All other images are left: their log p(x) is at least the value.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.progress import Advance
from ppl_gen.inference.agreement import above
from ppl_gen.inference.annealed import annealed_log_px
from ppl_gen.inference.annealed import check as check_annealing
from ppl_gen.inference.arguments import Batch, as_arguments, as_images, take
from ppl_gen.inference.estimate import Estimate, Variable, khat_entry, median, share
from ppl_gen.inference.gathering import seconds_reused
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.neighbours import missed_values
from ppl_gen.inference.options import FEWEST, Annealing, Settling
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import proposal_log_px, scores_others
from ppl_gen.inference.rounding import check_rounding

_PRIOR_SHARE, _MOST_PRIOR_SHARE = 0.1, 0.5
_PRIOR_SAMPLES = 100  # samples from the prior, as far as the larger share allows
_SPREAD_COST = 2.0  # factor by which the temperature multiplies the variance, if the guide is the exact posterior
_ERRORS = 2.5  # Monte Carlo errors within the tolerance: 98.8 % of a normal distribution
_LENIENT = 1.5  # tolerances to which the estimate must be known: its estimated error varies, too
_LOOSE = 3.0  # tolerances to which the other proposal is known, if it confirms the guide
_APART = 3.0  # Monte Carlo errors by which two estimates may differ
_ROUNDING = 1e-3  # nats; a smaller difference may be rounding in float32
_HOPELESS = 4.0  # the pilot ends where the error calls for more than this multiple of the most samples
_JUDGED_FROM = 256  # samples from which the error is good enough to end the pilot so
LEFT, SETTLED, ANNEALED = 0, 1, 2
"""How log p(x) of an image ended, in `SettledEstimate.outcome`."""
_CHAINS = Annealing(num_temperatures=200, leapfrog_steps=5)
_PASSES = 3  # passes through the decoder that a gradient costs


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SettledEstimate(Estimate):
    """log p(x) by importance sampling with a number of samples for each image, and by annealing where that did not
    settle it. `num_samples` is the least that an image may have; `ess` and `khat` are of the importance samples."""

    estimator: str = "settled"
    words: str = "importance sampling until it settles"
    num_samples: int = FEWEST
    ess: Tensor
    khat: Tensor
    settling: Settling
    samples: Tensor
    """S, the number of samples of the estimate; int64 [images]."""
    drawn: Tensor
    """Number of importance samples that the image took, with those of the pilot; int64 [images]."""
    outcome: Tensor
    """LEFT, SETTLED or ANNEALED; int64 [images]."""
    seconds: float

    @property
    def khat_too_high(self) -> Tensor:
        """Images that are left; bool [images]. k-hat of a settled one is below the threshold for its own S."""
        return self.outcome == LEFT

    @property
    def khat_unknown(self) -> Tensor:
        return self._none

    def settings_entry(self) -> dict[str, Any]:
        ended = {"left": LEFT, "settled": SETTLED, "annealed": ANNEALED}
        samples = {"median": int(median(self.samples)), "largest": int(self.samples.max())}
        result = {
            **{f"fraction_{name}": share(self.outcome == code) for name, code in ended.items()},
            "num_left": int((self.outcome == LEFT).sum()),
            "samples": samples | {"total": int(self.drawn.sum())},
            "seconds": self.seconds,
        }
        return {**asdict(self.settling), "settled": result}

    def more_entries(self, name: str) -> dict[str, Any]:
        entry = khat_entry(self, self.khat)
        return {f"khat_{name}": {key: entry[key] for key in ("median", "fraction_above_0.7") if key in entry}}

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        return super().diagnostic_variables(suffix) | {
            f"num_samples{suffix}": Variable(self.samples, "importance samples of log p(x)", "samples"),
            f"num_drawn{suffix}": Variable(self.drawn, "importance samples with those of the pilot", "samples"),
            f"outcome{suffix}": Variable(self.outcome, "0: left, at least; 1: settled; 2: settled by annealing", "1"),
        }


def settled_log_px(
    model: Any,
    guide: Any,
    x: Tensor,
    *args: Any,
    settling: Settling | None = None,
    anneal: bool = True,
    progress: Advance | None = None,
    **kwargs: Any,
) -> SettledEstimate:
    """log p(x) to a stated tolerance, by importance sampling with as many samples for each image as that takes.

    >>> from ppl_gen.guides.prior import Prior
    >>> from ppl_gen.models.factor_analysis import FactorAnalysis
    >>> model = FactorAnalysis(16, latent_dim=2).double()
    >>> x = torch.randn(3, 16, dtype=torch.float64)
    >>> found = settled_log_px(model, Prior("z", model), x)
    >>> (found.log_px - model.log_px(x)).abs().max() < 0.2
    tensor(True)

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param guide: a module with a method `guide(x, ...)`, or a Pyro function, with a density for any z.
    :param x: images [N, ...].
    :param args: further positional arguments; tensors with N rows go along with the images.
    :param anneal: anneal the images that do not settle, if that costs no more than the samples of all images.
    :param progress: called with the number of images just done, twice for each: after the pilot and after the estimate.
    :raises BadInput: for a guide without a density for a z that it has not drawn.
    """
    started = time.perf_counter() + seconds_reused()
    settling = settling or Settling()
    x = as_images(x, model, guide)
    args, kwargs = as_arguments(x, args, kwargs, model, guide)
    images = Batch(x, args, kwargs)
    temperature = check(model, guide, images)

    def sample(rows: Tensor, num_samples: int, by_guide: bool, progress: Advance | None = None) -> Estimate:
        """log p(x) of some images by one of the two proposals."""
        prior_share = min(max(_PRIOR_SHARE, _PRIOR_SAMPLES / num_samples), _MOST_PRIOR_SHARE)
        proposal = (0.0, 1.0) if by_guide else (prior_share, temperature)
        how: dict[str, Any] = dict(zip(("prior_share", "temperature"), proposal, strict=True))
        batch = take(rows.to(x.device), *images)
        how |= {"num_samples": num_samples, "progress": progress, **batch.kwargs}
        return proposal_log_px(model, [guide], batch.x, *batch.args, **how)

    found = _estimate(sample, _run_pilot(sample, len(x), settling, progress), settling, progress)
    if not kwargs:
        found = _without_missed(model, guide, images, found)
    if anneal and not args and not kwargs:
        found = _annealed(model, x, found)
    return replace(found, seconds=time.perf_counter() + seconds_reused() - started)


def check(model: Any, guide: Any, images: Batch) -> float:
    """The temperature of the defensive mixture: 1 for a z that cannot be spread.

    A normal posterior of d units that the guide meets exactly has weights of variance (t^2 / sqrt(2 t^2 - 1))^d - 1
    under a temperature t. That is the same for every d.

    :raises BadInput: for a pair without a second proposal.
    """
    x, args, kwargs = few = take(torch.arange(min(8, len(images.x)), device=images.x.device), *images)
    with evaluating(model, guide), forked_rng(x):
        pair = Pair.read(model, guide, x, *args, **kwargs)
        if pair.enumerated or not scores_others(pair, few):
            why = "samples no z" if pair.enumerated else "has no density for a z that it did not draw"
            raise BadInput(f"--num-samples auto: {pair.guide_name} {why}, so it has no second proposal; give a number")
        check_rounding(pair, x, *args, **kwargs)
        if not pair.vectorized or pair.masked or not pair.unbounded:
            return 1.0
        values, *_ = pair.draw(x, *args, num_samples=1, **kwargs)
    of_one = _SPREAD_COST ** (len(x) / sum(value.numel() for value in values.values()))
    return math.sqrt(of_one * (of_one + math.sqrt(of_one**2 - 1)))


# Importance sampling -------------------------------------------------------------------------------------------------

Sampler = Callable[..., Estimate]
"""log p(x) of some images by one proposal, from `(rows, num_samples, by_guide)`."""


@dataclass(frozen=True, eq=False)
class _Pilot:
    """The decisions of a pilot, and its own values; each [images]."""

    samples: Tensor
    by_guide: Tensor
    """Images whose estimate is from the guide; bool. The others are from the mixture."""
    settled: Tensor
    drawn: Tensor
    log_px: Tensor
    """log p(x) by the chosen proposal, with its variance and bias: only compared with the estimate."""
    variance: Tensor
    bias: Tensor


def _run_pilot(sample: Sampler, count: int, settling: Settling, progress: Advance | None) -> _Pilot:
    """Double the number of samples of each image until log p(x) is settled, or cannot be within the most samples."""
    zero = torch.zeros(count, dtype=torch.float64)
    pilot = _Pilot(zero.long(), zero.bool(), zero.bool(), zero.long(), zero.clone(), zero.clone(), zero.clone())
    active = torch.arange(count)
    for step in settling.steps:
        if not len(active):
            break
        guided, mixed = (sample(active, step, by_guide) for by_guide in (True, False))
        pilot.drawn[active] += 2 * step
        by_guide, by_mixture = _settles(guided, mixed, settling.tolerance)
        now = by_guide | by_mixture
        # An image that is not settled takes the value with the smaller error; the larger one where they differ beyond
        # their errors, because both are low in expectation.
        better = guided.log_px_mc_var <= mixed.log_px_mc_var
        larger = guided.log_px > mixed.log_px
        take_guide = torch.where(now, by_guide, torch.where(_agree(guided, mixed), better, larger))
        both = by_guide & by_mixture
        take_guide = torch.where(both, guided.log_px_mc_var <= mixed.log_px_mc_var, take_guide)
        pilot.by_guide[active], pilot.settled[active] = take_guide, now
        pilot.samples[active] = torch.where(now, step, settling.steps[-1])
        for name, of in (("log_px", "log_px"), ("variance", "log_px_mc_var"), ("bias", "log_px_bias")):
            getattr(pilot, name)[active] = torch.where(take_guide, getattr(guided, of), getattr(mixed, of))
        least = torch.minimum(_error(guided), _error(mixed)) / settling.tolerance
        hopeless = (step * least.square() > _HOPELESS * settling.most_samples) & (step >= _JUDGED_FROM)
        ends = now | hopeless | (step == settling.steps[-1])
        if progress is not None:
            progress(int(ends.sum()))
        active = active[~ends]
    return pilot


def _error(estimate: Estimate) -> Tensor:
    """2.5 Monte Carlo errors and the estimated bias, in nats [images]."""
    return _ERRORS * estimate.log_px_mc_var.sqrt() + estimate.log_px_bias.abs()


def _settles(guided: Estimate, mixed: Estimate, tolerance: float) -> tuple[Tensor, Tensor]:
    """Images that are settled by the guide, and by the mixture; bool [images]."""
    agree = _agree(guided, mixed)
    known = (_error(mixed) <= _LOOSE * tolerance) & ~mixed.untrusted
    by_guide = (_error(guided) <= tolerance) & ~guided.untrusted & known & agree
    by_mixture = (_error(mixed) <= tolerance) & ~mixed.untrusted & (agree | (guided.log_px < mixed.log_px))
    return by_guide, by_mixture


def _agree(one: Estimate, other: Estimate) -> Tensor:
    """Images whose two estimates differ by no more than their errors explain; bool [images]."""
    biases = one.log_px_bias.abs() + other.log_px_bias.abs()
    return (one.log_px - other.log_px).abs() <= _allowed(one.log_px_mc_var + other.log_px_mc_var, biases)


def _allowed(variance: Tensor, bias: Tensor) -> Tensor:
    """The largest difference of two estimates that their errors explain, in nats."""
    return _APART * variance.sqrt() + bias + _ROUNDING


def _estimate(sample: Sampler, pilot: _Pilot, settling: Settling, progress: Advance | None) -> SettledEstimate:
    """log p(x) from new samples, as many as the pilot found, by the proposal that it chose."""
    count, drawn = len(pilot.samples), pilot.drawn + pilot.samples
    whole: dict[str, Any] = {name: torch.full((count,), math.nan, dtype=torch.float64) for name in _TENSORS}
    settled = pilot.settled.clone()
    for number in pilot.samples.unique().tolist():
        for by_guide in (True, False):
            rows = ((pilot.samples == number) & (pilot.by_guide == by_guide)).nonzero().flatten()
            if not len(rows):
                continue
            found = sample(rows, number, by_guide, progress)
            for name, values in whole.items():
                values[rows] = getattr(found, name)
            difference = found.log_px - pilot.log_px[rows]
            bias = found.log_px_bias.abs() + pilot.bias[rows].abs()
            agrees = difference.abs() <= _allowed(found.log_px_mc_var + pilot.variance[rows], bias)
            settled[rows] &= agrees & (_error(found) <= _LENIENT * settling.tolerance) & ~found.untrusted
    outcome = torch.where(settled, SETTLED, LEFT)
    return SettledEstimate(settling=settling, samples=pilot.samples, drawn=drawn, outcome=outcome, seconds=0.0, **whole)


def _without_missed(model: Any, guide: Any, images: Batch, found: SettledEstimate) -> SettledEstimate:
    """The estimate with those images left of which the guide hardly ever draws a value of a discrete unit."""
    outcome = found.outcome.clone()
    for number in found.samples[outcome == SETTLED].unique().tolist():
        rows = ((found.samples == number) & (outcome == SETTLED)).nonzero().flatten()
        few = take(rows.to(images.x.device), *images)
        missed = missed_values(model, guide, few.x, *few.args, num_samples=number)
        if missed is None:
            break
        outcome[rows[missed]] = LEFT
    return replace(found, outcome=outcome)


# Annealing -----------------------------------------------------------------------------------------------------------


def _annealed(model: Any, x: Tensor, found: SettledEstimate) -> SettledEstimate:
    """The estimate with the images that are left annealed, if the model supports it and it is cheap enough."""
    rows = (found.outcome == LEFT).nonzero().flatten()
    cost = _PASSES * _CHAINS.work * _CHAINS.num_chains * _CHAINS.leapfrog_steps
    if not len(rows) or len(rows) * cost > int(found.drawn.sum()) or not can_anneal(model):
        return found
    with evaluating(model):
        chains = annealed_log_px(model, x[rows.to(x.device)], annealing=_CHAINS)
    variance, bias = found.log_px_mc_var[rows], found.log_px_bias[rows]
    allowed = _allowed(chains.log_px_mc_var + variance, chains.log_px_bias.abs() + bias.abs())
    settles = (_error(chains) <= found.settling.tolerance) & (found.log_px[rows] - chains.log_px <= allowed)
    samples = Estimate(estimator="importance", **{name: getattr(found, name)[rows] for name in _ERRORS_OF})
    taken = settles | above(samples, chains).images
    outcome, whole = found.outcome.clone(), {name: getattr(found, name).clone() for name in _ERRORS_OF}
    outcome[rows[settles]] = ANNEALED
    for name, values in whole.items():
        values[rows[taken]] = getattr(chains, name)[taken]
    return replace(found, outcome=outcome, **whole)


def can_anneal(model: Any) -> bool:
    """True if chains can be annealed for the model."""
    with suppress(BadInput), evaluating(model):
        check_annealing(model, None, _CHAINS)
        return True
    return False


_ERRORS_OF = ("log_px", "log_px_mc_var", "log_px_bias")
_TENSORS = (*_ERRORS_OF, "ess", "khat", "largest")
