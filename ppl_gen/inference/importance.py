"""log p(x) by importance sampling from the guide, image by image, with diagnostics.

For z_s ~ q(z | x), s = 1 … S, and log weights log w_s = log p(x, z_s) - log q(z_s | x):

- the ELBO is E[log w], here the mean log weight over all S samples (Kingma and Welling 2014, equation 2);
- the IWAE bound L_k is E[log (1/k) sum_{s<=k} w_s] (Burda et al. 2016, equation 8), here averaged over the
  floor(S/k) disjoint blocks of k samples; ELBO = L_1 <= L_2 <= … <= log p(x);
- log p(x) is estimated by L_S, one block. (1/S) sum w_s is unbiased for p(x), so its logarithm is biased low, by
  var(w) / (2 S p(x)^2) to first order. The delete-1 jackknife estimates this bias (Nowozin 2018, section 4);
- the effective sample size is (sum w)^2 / sum w^2 (Kong 1992);
- k-hat is the shape of a generalized Pareto distribution fitted to the largest weights (Vehtari et al. 2024). Above
  min(1 - 1/log10 S, 0.7) the estimate is unreliable, and log p(x) is at least the reported value. k-hat is computed
  from the weights that were drawn. It does not see a mode that the guide never visits: k-hat may then be small, and the
  estimate too low by any amount (`ppl_gen.inference.proposals.second_opinion` looks for such a mode).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_gen.core.errors import ABOVE_ZERO, HEAVY_TAIL, MISSED, UNOPPOSED, BadInput, describe, require, warnings_of
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Advance
from ppl_gen.core.seeds import seed_torch
from ppl_gen.core.tables import Row
from ppl_gen.inference.agreement import Above, above, bound
from ppl_gen.inference.arguments import Batch, as_arguments, as_images, whole_number
from ppl_gen.inference.blame import blame
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.chunks import IMAGES_PER_BLOCK, images_at_a_time, pairs_at_a_time
from ppl_gen.inference.densities import contradicted
from ppl_gen.inference.direct import encoded
from ppl_gen.inference.discretization import grid_terms
from ppl_gen.inference.estimate import (
    Estimate,
    Variable,
    khat_entry,
    mean_entry,
    mean_mc_se,
    mean_se,
    median_and_least,
    share,
)
from ppl_gen.inference.exact import closed_form, exact_blocks
from ppl_gen.inference.gathering import gather_blocks
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.pareto import khat, lower_tail
from ppl_gen.inference.rounding import check_rounding
from ppl_gen.inference.state_memory import cheap_to_enumerate

if TYPE_CHECKING:
    from ppl_gen.inference.bidirectional import BidirectionalBounds
    from ppl_gen.inference.proposals import SecondOpinion

_TAILS = 2
"""Images of a block whose lower tail is looked at: that of all would take too long."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImportanceEstimate(Estimate):
    """log p(x) by importance sampling from the guide, with the ELBO and the IWAE bounds from the same samples."""

    estimator: str = "importance"
    words: str = "importance sampling"
    num_samples: int
    ess: Tensor
    khat: Tensor
    elbo: Tensor
    """Mean log weight over all S samples."""
    reconstruction: Tensor
    """E[log p(x | z)] under the guide."""
    kl: Tensor
    """E[log q(z | x) - log p(z)]; elbo = reconstruction - kl."""
    elbo_mc_var: Tensor
    """Monte Carlo variance of `elbo`."""
    elbo_tail: Tensor
    """k-hat of the distances of log weights to the largest; NaN but for a few images."""
    kl_analytic: Tensor | None
    """KL(q(z | x) || p(z)) in closed form; None with several latent sites, or if Pyro has no closed form. NaN for
    images whose samples contradict it."""
    iwae: dict[int, Tensor]
    """L_k for k = 1, 10, 100, … up to `num_samples`."""
    iwae_jackknife: dict[int, Tensor]
    """L_k for k = 10, 100, …, corrected by the jackknife of order 1: less biased, but no bounds."""
    latent_mean: dict[str, Tensor]
    """E[z | x] under the guide, the mean of the samples, [images, units]; for each latent site whose values are no
    labels."""
    latent_mc_var: dict[str, Tensor]
    """Monte Carlo variance of `latent_mean`."""
    left_out: tuple[str, ...] = ()
    """Names of the guide's sites that do not belong to q(z | x)."""
    observation: str = "probability"
    """Kind of p(x), as `check_images` returns it: `probability`, `density`, `cross-entropy`, …"""
    second_opinion: "SecondOpinion | None" = None
    """log p(x) from few samples, half of them from the prior; None if it was not computed."""
    unopposed: bool = False
    """True if the guide has no density for a z that it has not drawn: nothing looks for modes that it misses."""
    bidirectional: "BidirectionalBounds | None" = None
    """Bounds from as many samples on images from the model, if they were computed."""

    @property
    def doubts(self) -> Tensor:
        """Also the images on which the second opinion is significantly above; all, if it is so over all together."""
        larger = self._opposed
        return super().doubts if larger is None else super().doubts | larger.images | larger.together

    @property
    def _opposed(self) -> Above | None:
        """Where the second opinion is significantly above; None without one."""
        return None if self.second_opinion is None else above(self, self.second_opinion)

    @property
    def gap(self) -> Tensor:
        """log p(x) - ELBO, which is KL(q(z | x) || p(z | x)) up to the errors of the estimates."""
        return self.log_px - self.elbo

    @property
    def kl_in_closed_form(self) -> Tensor | None:
        """`kl_analytic`, if there is one and no image contradicts it."""
        return None if self.kl_analytic is None or bool(self.kl_analytic.isnan().any()) else self.kl_analytic

    @property
    def heavy_tail(self) -> bool:
        """True if the ELBO may be -infinity, by k-hat beyond its noise: as with a Cauchy guide and a normal prior."""
        known = self.elbo_tail[self.elbo_tail.isfinite()]
        return len(known) > 0 and float(known.median()) > 0.85 + 0.5 / math.sqrt(len(known))

    @property
    def missed_values(self) -> float:
        """Share of images of which the guide misses a value of a discrete unit."""
        return 0.0 if self.doubted is None else share(self.doubted)

    @property
    def above_zero(self) -> bool:
        """True if p(x) is a probability, and the estimate is above 1 beyond chance."""
        return self.observation == "probability" and above(bound(torch.zeros_like(self.log_px)), self).any

    @property
    def active_units(self) -> int | None:
        """Latent units with Var_x(E[z | x]) > 0.01 (Burda et al. 2016, section 5.2), corrected for the noise of the
        mean over samples. None with one sample, from which that noise cannot be estimated."""
        if self.num_samples == 1:
            return None
        active = 0
        for name, mean in self.latent_mean.items():
            if len(mean) > 1:
                active += int((mean.var(0) - self.latent_mc_var[name].mean(0) > 0.01).sum())
        return active

    def lower_bounds(self, name: str) -> dict[str, Estimate]:
        """The ELBO and log p(x). The IWAE bounds are left out, because on every image they are below log p(x) from the
        same samples."""
        return {"elbo": bound(self.elbo, self.elbo_mc_var, self.num_samples), name: self}

    def settings_entry(self) -> dict[str, Any]:
        """The number of samples. Diagnostics are the same for the ELBO and log p(x): `more_entries` has them."""
        return {"num_samples": self.num_samples}

    def more_entries(self, name: str) -> dict[str, Any]:
        """The ELBO with its terms, the bounds, the diagnostics and the second opinion."""
        entries: dict[str, Any] = {
            "elbo": mean_entry(self.elbo, mc_se=mean_mc_se(self.elbo_mc_var)),
            "reconstruction": mean_entry(self.reconstruction),
            "kl": mean_entry(self.kl),
        }
        if (kl := self.kl_in_closed_form) is not None:
            entries["kl_analytic"] = mean_entry(kl)
            entries["elbo_analytic_kl"] = mean_entry(self.reconstruction - kl)
        entries["iwae"] = {str(k): mean_entry(values) for k, values in self.iwae.items()}
        entries["iwae_jackknife"] = {str(k): mean_entry(values) for k, values in self.iwae_jackknife.items()}
        entries |= {"ess": median_and_least(self.ess), "khat": khat_entry(self, self.khat)}
        if self.narrower:
            entries["narrower"] = True
        if self.heavy_tail:
            entries["heavy_tail"] = True
        if self.missed_values:
            entries["missed_values"] = self.missed_values
        if self.left_out:
            entries["left_out"] = list(self.left_out)
        if self.second_opinion is not None:
            entries["second_opinion"] = self.second_opinion.entry_on(self)
        if self.unopposed:
            entries["unopposed"] = True
        if self.bidirectional is not None:
            entries["sandwich_importance"] = self.bidirectional.entry()
        active = self.active_units
        if self.latent_mean and len(self.elbo) > 1 and active is not None:
            entries["active_units"] = active
        return entries

    def variables(self, name: str) -> dict[str, Variable]:
        variables = {
            "elbo": Variable(self.elbo, "ELBO"),
            "reconstruction": Variable(self.reconstruction, "E[log p(x|z)]"),
            "kl": Variable(self.kl, "E[log q(z|x) - log p(z)]"),
            "elbo_mc_se": Variable(self.elbo_mc_var.sqrt(), "Monte Carlo standard error of ELBO"),
        }
        if (kl := self.kl_in_closed_form) is not None:
            variables["kl_analytic"] = Variable(kl, "KL(q(z|x) || p(z))")
        variables |= self.log_px_variables(f"log_px_{name}") | self.diagnostic_variables("")
        if self.largest is not None:
            title = "share of the sum of importance weights in the largest"
            variables["largest_weight"] = Variable(self.largest, title, "1")
        if self.second_opinion is not None:
            variables |= self.second_opinion.variables("second_opinion")
        return variables

    def rows(self) -> list[Row]:
        gap, se = mean_se(self.gap)  # NaN if log p(x) of an image is -inf
        doubted = self.at_least and math.isfinite(gap)
        gaps = [] if math.isnan(gap) else [Row.of("gap", gap, se, at_least=doubted)]
        return [Row.of("ELBO", *mean_se(self.elbo)), *super().rows(), *gaps]

    def notes(self) -> list[str]:
        told = super().notes()
        if self.second_opinion is not None and not self.at_least:
            mass = self.second_opinion.visible_mass
            told.append(
                f"a mode that the guide misses may be unseen: one with less than {mass:.0%} of the prior's mass, and a "
                "larger one that adds little to log p(x)"
            )
        if self._opposed is not None and self._opposed.any:
            told.append("the second opinion is above: the guide misses a part of p(z | x)")
        if self.above_zero:
            told.append(f"importance sampling is too high: {ABOVE_ZERO}")
        told += [note for note, holds in ((UNOPPOSED, self.unopposed), (HEAVY_TAIL, self.heavy_tail)) if holds]
        if self.missed_values:
            told.append(f"on {self.missed_values:.1%} of the images the guide {MISSED}")
        if self.left_out:
            names = ", ".join(f"'{name}'" for name in self.left_out)
            told.append(f"left out of q(z | x), to which they do not belong: {names} of the guide")
        return told + warnings_of(self.observation)


def log_weights(
    model: Any, guide: Any, x: Tensor, *args: Any, num_samples: int, chunk_size: int | None = None, **kwargs: Any
) -> Tensor:
    """Log importance weights log p(x, z) - log q(z | x) for z ~ q(z | x), in nats, [num_samples, images].

    Works on any Pyro pair with a plate of images and latents local to it. If the guide samples nothing and the model
    enumerates up to about a million states, each weight is the exact log p(x).

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param guide: a module with a method `guide(x, ...)`, or a Pyro function.
    :param x: images [N, ...]: a tensor, or an array or list, which is converted to the parameters' dtype.
    :param args: further positional arguments. Tensors with N rows and packed sequences of N go along with the images,
        also those in dictionaries, tuples and lists.
    :param num_samples: samples of z per image.
    :param chunk_size: pairs of image and sample at a time, which limit the memory; by default 2,048, and more on a GPU.
    :raises BadInput: for a pair that has no weights of single images.
    """
    num_samples = whole_number("num_samples", num_samples)
    x = as_images(x, model, guide)
    chunk_size = pairs_at_a_time(model, chunk_size, x)
    args, kwargs = as_arguments(x, args, kwargs, model, guide)
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x, *args, **kwargs)
        check_images(pair, x, *args, **kwargs)
        check_rounding(pair, x, *args, **kwargs)
        images = Batch(x, args, kwargs)
        if _sums_all(pair):
            blocks = _summed_blocks(model, guide, pair, images, num_samples)
        else:
            blocks = weighted_blocks(pair, images, num_samples, chunk_size)
        return torch.cat([torch.cat([terms.log_weight for terms in chunks]) for _, chunks in blocks], 1)


def log_marginal_likelihood(
    model: Any,
    guide: Any,
    x: Tensor,
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int | None = None,
    progress: Advance | None = None,
    ask_again: bool = True,
    from_prior: bool = False,
    **kwargs: Any,
) -> ImportanceEstimate:
    """log p(x) by importance sampling, with the ELBO, the IWAE bounds and diagnostics from the same samples.

    Memory does not grow with the number of samples times images. Arguments are as for `log_weights`.

    :param progress: called with the number of images just done.
    :param ask_again: compute a second opinion, from a twentieth as many samples, half of them from the prior.
    :param from_prior: if the guide samples nothing, draw z from the prior, in place of a sum over all states.
    """
    num_samples = whole_number("num_samples", num_samples)
    x = as_images(x, model, guide)
    chunk_size = pairs_at_a_time(model, chunk_size, x)
    args, kwargs = as_arguments(x, args, kwargs, model, guide)
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x, *args, **kwargs)
        observation = check_images(pair, x, *args, **kwargs)
        check_rounding(pair, x, *args, **kwargs)
        images = Batch(x, args, kwargs)

        def blocks(first: int) -> Iterator[tuple[int, dict[str, Any]]]:
            if _sums_all(pair) and not from_prior:
                weighted = _summed_blocks(model, guide, pair, images, num_samples, first)
            else:
                weighted = weighted_blocks(pair, images, num_samples, chunk_size, first, analytic_kl=True)
            return ((count, _summarize(chunks)) for count, chunks in weighted)

        about: dict[str, Any] = {"observation": observation, "narrower": bool(pair.narrower), "left_out": pair.left_out}
        estimate = ImportanceEstimate(num_samples=num_samples, **about, **gather_blocks(blocks, len(x), progress))
        if pair.exceeds_prior:
            estimate = _without_bounds(estimate)
        if ask_again:
            from ppl_gen.inference.proposals import asked_again  # it imports this module

            estimate = asked_again(estimate, pair, model, guide, x, *args, chunk_size=chunk_size, **kwargs)
        return estimate


def _without_bounds(estimate: ImportanceEstimate) -> ImportanceEstimate:
    """Correct the bounds of a guide with mass where the prior has none. Its ELBO is -inf; and so is E[L_k], because all
    k samples may fall there, even if none of those drawn did."""
    infinite, whole = torch.full_like(estimate.elbo, math.inf), estimate.num_samples
    return replace(
        estimate,
        elbo=-infinite,
        kl=infinite,
        elbo_mc_var=torch.full_like(infinite, math.nan),
        iwae={k: bound if k == whole else -infinite for k, bound in estimate.iwae.items()},
        iwae_jackknife={k: bound if k == whole else -infinite for k, bound in estimate.iwae_jackknife.items()},
    )


def elbo_terms(
    model: Any, guide: Any, pair: Pair, x: Tensor, *args: Any, seed: int, batch_size: int = 1000
) -> dict[str, float]:
    """Mean over images of the ELBO and its two terms, in nats, from one sample per image: cheap enough for every epoch.
    If the model is enumerated, the ELBO alone, which is log p(x). If the guide gives points of z, the numbers of
    `grid_terms`.

    Noise is drawn from `seed`, and torch's generators are restored. Matrix products are in full float32 for any
    precision of training.
    """
    totals = {"reconstruction": 0.0, "kl": 0.0}
    with evaluating(model, guide), matmul_precision(), forked_rng(x):
        if pair.discretized and not closed_form(model, *args):
            return grid_terms(pair, x, *args)
        if pair.enumerated:
            return {"elbo": float(torch.cat(list(exact_blocks(model, guide, pair, x, *args))).mean())}
        seed_torch(seed)
        for _, batch in Batch(x, args, {}).blocks(batch_size):
            terms = pair.terms(batch.x, *batch.args)
            totals["reconstruction"] += float(terms.log_likelihood.double().sum())
            totals["kl"] += float((terms.log_guide - terms.log_prior).double().sum())
    means = {name: total / len(x) for name, total in totals.items()}
    return {"elbo": means["reconstruction"] - means["kl"], **means}


def _sums_all(pair: Pair) -> bool:
    """True if the guide samples nothing, and a sum over all states takes its place. With more states z is from the
    prior."""
    return pair.enumerated and cheap_to_enumerate(pair)


def _summed_blocks(
    model: Any, guide: Any, pair: Pair, images: Batch, num_samples: int, first: int = 0
) -> Iterator[tuple[int, list[Terms]]]:
    """`weighted_blocks` for a guide that samples nothing: every weight of an image is p(x), a sum over all states. The
    sums of all images are computed again, and the blocks before image number `first` are left out."""
    start = 0
    for block in exact_blocks(model, guide, pair, images.x, *images.args, **images.kwargs):
        for log_px in block.split(IMAGES_PER_BLOCK):
            start += len(log_px)
            if start <= first:
                continue
            likelihood = log_px.expand(num_samples, -1)
            zero = torch.zeros_like(likelihood)
            yield len(log_px), [Terms(likelihood, zero, zero, None, {}, frozenset())]


def weighted_blocks(
    pair: Pair, images: Batch, num_samples: int, chunk_size: int, first: int = 0, analytic_kl: bool = False
) -> Iterator[tuple[int, list[Terms]]]:
    """Iterate over blocks of a few images, from image number `first` on: the number of images, and chunks of their
    samples."""
    keep_freed_memory()
    for start, (x, args, kwargs) in images.blocks(images_at_a_time(chunk_size, num_samples, images.x), first):
        step, options = max(1, chunk_size // len(x)), dict[str, Any](analytic_kl=analytic_kl, **kwargs)
        which = f"images {start} to {start + len(x) - 1}"
        try:
            at = pair if args or kwargs or step >= num_samples else encoded(pair, x)
            chunks = [
                at.terms(x, *args, num_samples=min(step, num_samples - drawn), **options)
                for drawn in range(0, num_samples, step)
            ]
        except BadInput as error:
            raise BadInput(f"{error.sentence} ({which})") from error
        except Exception as error:  # in the code of a user
            raise BadInput(f"{pair.model_name} and {pair.guide_name} fail on {which}: {describe(error)}") from error
        for terms in chunks:
            if not (terms.log_weight < math.inf).all() or (terms.log_guide == -math.inf).any():
                options["num_samples"] = len(terms.log_weight)
                _raise_for_nan(pair, terms, start, lambda pair: pair.terms(x, *args, **options))  # noqa: B023
        yield len(x), chunks


def _raise_for_nan(pair: Pair, terms: Terms, first: int, again: Callable[[Pair], Any]) -> None:
    """Raise `BadInput` for log weights that are NaN or infinite, or that have q(z | x) = 0.

    :param first: number of the first image.
    :param again: draws such terms of a pair once more, to find the site.
    """
    impossible = terms.log_guide == -math.inf
    if impossible.any():
        image = first + int(impossible.any(0).nonzero()[0])
        raise BadInput(f"{pair.guide_name} draws z with q(z | x) = 0 for image {image}: such a sample has no weight")
    infinite = (terms.log_weight == math.inf).any(0)
    if infinite.any():
        image = int(infinite.nonzero()[0])
        which = [name for name, values in pair.log_densities(terms).items() if (values[:, image] == math.inf).any()]
        raise BadInput(
            f"{(which or ['the log weight'])[0]} is infinite for image {first + image}: a density has no bound at a "
            "value of the image or of z, such as a pixel of 0"
        )
    image = int(terms.log_weight.isnan().any(0).nonzero()[0])
    which = [name for name, values in pair.log_densities(terms).items() if values[:, image].isnan().any()]
    which = which or ["inf - inf: the log weight"]
    with forked_rng(terms.log_weight):
        site = blame(pair, again) or "look for a scale of 0 or an overflow there"
    raise BadInput(f"{which[0]} is NaN for image {first + image}; {site}")


def log_mean_weight_with_errors(log_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log (1/S) sum_s w_s of log weights [S, images], its Monte Carlo variance by the delta method, its bias by the
    delete-1 jackknife, and the effective sample size: each [images]. Variance and bias of a single weight are NaN, and
    those of weights that are all 0, whose effective sample size is 0."""
    count = len(log_w)
    total = log_w.logsumexp(0)
    share = (log_w - total).exp()  # normalized weights
    ess = 1 / share.square().sum(0)
    if count == 1:
        variance = bias = torch.full_like(total, math.nan)
    else:
        # var(w) / (S mean(w)^2), which rounding may make negative where all weights are equal
        variance = ((1 / ess - 1 / count) * count / (count - 1)).clamp(min=0)
        # log p-hat without sample i, minus log p-hat, is log((1 - share_i) S / (S - 1))
        left_out = _log_rest(log_w, total, share) + math.log(count / (count - 1))
        bias = (count - 1) * left_out.mean(0)
    return total - math.log(count), variance, bias, ess.nan_to_num(nan=0.0)


def _log_rest(log_w: Tensor, total: Tensor, share: Tensor) -> Tensor:
    """log(1 - share) of normalized weights [S, …], at least two; -700 if all others are 0, so that means over images
    stay finite. `total` is the log of the sum of the weights."""
    rest = torch.log1p(-share.clamp(max=0.5))
    largest, at = share.max(0)
    if bool((dominated := largest > 0.5).any()):  # 1 - share may have no correct digit: the others are added without it
        at = at[dominated].unsqueeze(0)
        others = log_w[:, dominated].scatter(0, at, -math.inf).logsumexp(0, keepdim=True) - total[dominated]
        rest[:, dominated] = rest[:, dominated].scatter(0, at, others.clamp(min=-700))
    return rest


def block_bounds(log_weights: Tensor, k: int) -> Tensor:
    """The IWAE bound L_k [images], averaged over the floor(S/k) disjoint blocks of log weights [S, images]."""
    blocks = log_weights[: len(log_weights) // k * k].reshape(-1, k, log_weights.shape[1])
    return (blocks.logsumexp(1) - math.log(k)).mean(0)


def jackknife_bounds(log_weights: Tensor, k: int, order: int = 1) -> Tensor:
    """The jackknife-corrected L_k [images] of log weights [S, images], averaged over the floor(S/k) disjoint blocks:
    sum_j c(k, order, j) mean_A L_A, where A are the subsets of k - j of a block's samples, and c Sharot's coefficients
    (Nowozin 2018, equations 18 and 19). Its bias decreases as k^-(order + 1), that of L_k as 1/k. It is no bound, and
    above order 1 it is expensive, because it visits every subset.

    :param order: 0, L_k itself, 1 or 2.
    :raises BadInput: for another order, or k <= order.
    """
    require(order in (0, 1, 2), "order", order, "0, 1 or 2")
    require(order < k <= len(log_weights), "k", k, f"above the order and at most the {len(log_weights)} samples")
    blocks = log_weights[: len(log_weights) // k * k].reshape(-1, k, log_weights.shape[1]).double()
    result = torch.zeros(log_weights.shape[1], dtype=torch.float64, device=log_weights.device)
    samples = blocks.transpose(0, 1)  # [k, blocks, images]

    def without_one(log_w: Tensor) -> Tensor:
        total = log_w.logsumexp(0)
        return total + _log_rest(log_w, total, log_w.softmax(0))

    for left_out in range(order + 1):
        if left_out == 0:
            sums = samples.logsumexp(0, keepdim=True)
        elif left_out == 1:
            sums = without_one(samples)
        else:  # every pair twice
            sums = torch.cat([without_one(samples[torch.arange(k) != one]) for one in range(k)])
        rest = sums - math.log(k - left_out)
        sharot = (-1) ** left_out * (k - left_out) ** order
        result += sharot * rest.mean((0, 1)) / (math.factorial(order - left_out) * math.factorial(left_out))
    return result


def powers_of_ten(num_samples: int) -> list[int]:
    """1, 10, 100, … up to `num_samples`."""
    return [10**power for power in range(len(str(num_samples)))]


def weight_statistics(log_w: Tensor) -> dict[str, Tensor]:
    """The tensors of an `Estimate` from log weights [S, images] in float64."""
    log_px, variance, bias, ess = log_mean_weight_with_errors(log_w)
    return {
        "log_px": log_px,
        "log_px_mc_var": variance,
        "log_px_bias": bias,
        "ess": ess,
        "khat": khat(log_w),
        "largest": log_w.softmax(0).max(0).values,
    }


def _summarize(chunks: list[Terms]) -> dict[str, Any]:
    """The tensors of an `ImportanceEstimate` from chunks of samples of one block of images."""
    undefined = torch.full((chunks[0].log_prior.shape[1],), math.nan, dtype=torch.float64)
    triples = [(terms.log_likelihood, terms.log_prior, terms.log_guide) for terms in chunks]
    likelihood, prior, guide = (torch.cat(parts).double().cpu() for parts in zip(*triples, strict=True))
    evidence = likelihood + prior - guide
    given = [terms.weight for terms in chunks if terms.weight is not None]
    log_w = torch.cat(given).double().cpu() if given else evidence
    count = len(log_w)
    result: dict[str, Any] = {
        "elbo": evidence.mean(0),
        "reconstruction": likelihood.mean(0),
        "kl": (guide - prior).mean(0),
        "elbo_mc_var": evidence.var(0) / count if count > 1 else undefined,
        "elbo_tail": lower_tail(evidence, _TAILS),
        "kl_analytic": None,
        "iwae": {k: block_bounds(log_w, k) for k in powers_of_ten(count)},
        "iwae_jackknife": {k: jackknife_bounds(log_w, k) for k in powers_of_ten(count)[1:]},
        **weight_statistics(log_w),
        "latent_mean": {},
        "latent_mc_var": {},
    }
    if chunks[0].kl is not None:
        kl = torch.cat([terms.kl for terms in chunks if terms.kl is not None]).double().mean(0).cpu()
        wrong = contradicted(kl, guide - prior) if count >= 100 else torch.zeros_like(kl, dtype=torch.bool)
        result["kl_analytic"] = kl.masked_fill(wrong, math.nan)
    for name in chunks[0].latents.keys() - chunks[0].labels:
        values = [terms.latents[name].double() for terms in chunks]
        mean = torch.stack([value.sum(0) for value in values]).sum(0) / count
        squares = torch.stack([(value - mean).square().sum(0) for value in values]).sum(0)
        result["latent_mean"][name] = mean.cpu()
        result["latent_mc_var"][name] = squares.cpu() / (count * (count - 1) if count > 1 else math.nan)
    return result
