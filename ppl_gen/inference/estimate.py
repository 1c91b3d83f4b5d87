"""log p(x) of images by one estimator, with its errors and what says how far to trust it.

Every estimator returns an `Estimate`, or a subclass where it has more to hold. An evaluation asks the estimate for all
that it writes and says about it, so that an estimate of your own is written, judged and printed like those of the
package.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_gen.core.errors import NARROWER
from ppl_gen.core.tables import Row, html, sentence

_EQUAL = 1e-9  # relative variance of weights that are equal but for rounding
_LARGEST = 0.01  # share of the weights' sum that one of them may hold where k-hat is unknown: a hundredth of a nat


class Variable(NamedTuple):
    """A variable of `evaluation.nc`."""

    values: Tensor
    """[images]."""
    title: str
    units: str = "nats"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Estimate:
    """log p(x) of images by one estimator, in nats, float64 on the CPU; every tensor is [images].

    >>> zero = torch.zeros(4, dtype=torch.float64)
    >>> values = torch.tensor([-1.0, -2.0, -1.0, -2.0], dtype=torch.float64)
    >>> print(Estimate(estimator="mine", log_px=values, log_px_mc_var=zero, log_px_bias=zero, num_samples=10))
    4 images, nats per image ± standard error over images
    log p(x)  at least -1.50 ± 0.29 by mine, S = 10
    """

    estimator: str
    """Name of the estimator: `exact`, `importance`, `prior`, `annealed`, or the name of your own."""
    log_px: Tensor
    log_px_mc_var: Tensor
    """Monte Carlo variance of `log_px`, by the delta method; not a number where it is unknown, 0 of an exact value."""
    log_px_bias: Tensor
    """Estimated bias of `log_px`, by the jackknife: negative; 0 of an exact value."""
    num_samples: int | None = None
    """Samples, or chains, per image; None of an exact value."""
    ess: Tensor | None = None
    """Effective sample size."""
    khat: Tensor | None = None
    """PSIS k-hat. Not a number where all weights of an image are equal, or fewer than 25, or those of the tail take few
    values: then there is no tail to fit. None of an estimator that has no k-hat, which by itself shows nothing of how
    low it may be: others must vouch for it."""
    largest: Tensor | None = None
    """Share of the sum of weights that the largest weight holds. Where the weights have no mean, it stays large however
    many samples there are; with a tail of shape k it is about S^(k - 1)."""
    narrower: bool = False
    """True where the proposal leaves out a part of the prior's support, where more of p(x, z) may be."""
    words: str = ""
    """Name of the estimator in a sentence: "log p(x) by annealed importance sampling"."""
    usable_for_gap: bool = True
    """True if the gap of a guide may be taken of it. Samples of the prior alone are often far too low."""
    doubted: Tensor | None = None
    """Images on which other estimates were found to be above it; bool [images]."""
    verdict: bool | None = None
    """True if log p(x) is likely above the mean, by an evaluation that has held it against other estimates."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that it was made with beside `num_samples`, for the record, as JSON can hold them."""

    # Over the images -----------------------------------------------------------------------------------------------

    @property
    def mean(self) -> float:
        """Mean over images."""
        return float(self.log_px.mean())

    @property
    def se(self) -> float:
        """Standard error of the mean over images; not a number for one image."""
        return mean_se(self.log_px)[1]

    @property
    def mean_se(self) -> tuple[float, float]:
        """Mean over images and its standard error."""
        return mean_se(self.log_px)

    @property
    def mc_se(self) -> float:
        """Monte Carlo standard error of the mean."""
        return mean_mc_se(self.log_px_mc_var)

    @property
    def bias(self) -> float:
        """Estimated bias of the mean."""
        return float(self.log_px_bias.mean())

    @property
    def sampled(self) -> bool:
        """True if it has errors: it is not exact."""
        return self.estimator != "exact"

    # How far to trust it -------------------------------------------------------------------------------------------

    @property
    def khat_threshold(self) -> float:
        """k-hat above which an image's log p(x) is not to be trusted (Vehtari et al. 2024, section 3.2.4)."""
        count = self.num_samples or 0
        return min(1 - 1 / math.log10(count), 0.7) if count > 1 else 0.0

    @property
    def khat_too_high(self) -> Tensor:
        """Images whose k-hat is known and above the threshold; bool [images]."""
        return self._none if self.khat is None else (self.khat > self.khat_threshold) & ~self._equal

    @property
    def khat_unknown(self) -> Tensor:
        """Images without a k-hat, whose weights differ and whose largest weight holds more than 1 % of their sum;
        bool [images]. Below that, an image without a k-hat is fine: no draw counts for much."""
        if self.khat is None:
            return self._none
        settled = self._equal if self.largest is None else self._equal | (self.largest <= _LARGEST)
        return self.khat.isnan() & ~settled

    @property
    def untrusted(self) -> Tensor:
        """Images whose k-hat is too high or unknown, all where the proposal is narrower, and those that are `doubted`;
        bool [images]."""
        doubted = self._none if self.doubted is None else self.doubted
        return self.khat_too_high | self.khat_unknown | self.narrower | doubted

    @property
    def at_least(self) -> bool:
        """True if log p(x) is likely above it: the `verdict` of an evaluation, if there is one. Else k-hat says so
        for an image, or there is no k-hat, and nothing vouches for the estimate."""
        if self.verdict is not None or not self.sampled:
            return bool(self.verdict)
        return self.khat is None or bool(self.log_px_mc_var.isnan().any() or self.untrusted.any())

    @property
    def error_is_reliable(self) -> bool:
        """True if its Monte Carlo error suffices for a test at a small rate."""
        return True

    @property
    def corroborated(self) -> bool:
        """True if, without a k-hat, something else says that it is near log p(x)."""
        return False

    @property
    def _none(self) -> Tensor:
        return torch.zeros(len(self.log_px), dtype=torch.bool)

    @property
    def _equal(self) -> Tensor:
        """Images whose weights are all equal, as those of the exact posterior are. One weight equals nothing."""
        if self.ess is None or self.num_samples is None:
            return self._none
        return (self.ess >= self.num_samples * (1 - _EQUAL)) & (self.num_samples > 1)

    # What an evaluation takes of it ----------------------------------------------------------------------------------

    def lower_bounds(self, name: str) -> "dict[str, Estimate]":
        """Everything that it shows of log p(x) from below, by name.

        :param name: its own among the estimates of an evaluation.
        """
        return {name: self}

    def entry(self, at_least: bool) -> dict[str, Any]:
        """Its entry of log p(x) in `evaluation.json`.

        :param at_least: the verdict on it.
        """
        errors = {"mc_se": self.mc_se, "bias": self.bias} if self.sampled else {}
        return mean_entry(self.log_px, **errors, at_least=at_least, estimator=self.estimator, **self.settings_entry())

    def settings_entry(self) -> dict[str, Any]:
        """Its settings and diagnostics in that entry."""
        found = dict(self.settings)
        if self.num_samples is not None:
            found["num_samples"] = self.num_samples
        if self.ess is not None:
            found["ess"] = median_and_least(self.ess)
        if self.khat is not None:
            found["fraction_above_threshold"] = share(self.khat_too_high)
        return found

    def more_entries(self, name: str) -> dict[str, Any]:
        """Further entries that it has in `evaluation.json`, by key."""
        return {} if self.khat is None else {f"khat_{name}": khat_entry(self, self.khat)}

    def variables(self, name: str) -> dict[str, Variable]:
        """Its variables in `evaluation.nc`, by name."""
        return self.log_px_variables(f"log_px_{name}") | self.diagnostic_variables(f"_{name}")

    def log_px_variables(self, prefix: str) -> dict[str, Variable]:
        """log p(x) with its errors, under names that begin so."""
        if not self.sampled:
            return {prefix: Variable(self.log_px, "log p(x), exact")}
        of = f"of log p(x) by {self.in_words}"
        return {
            prefix: Variable(self.log_px, f"log p(x) by {self.in_words}"),
            f"{prefix}_mc_se": Variable(self.log_px_mc_var.sqrt(), f"Monte Carlo standard error {of}"),
            f"{prefix}_bias": Variable(self.log_px_bias, f"jackknife estimate of the bias {of}"),
        }

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        """Effective sample size and k-hat, where there are any, under names that end so."""
        found = {}
        if self.ess is not None:
            found[f"ess{suffix}"] = Variable(self.ess, f"effective sample size of {self.in_words}", "samples")
        if self.khat is not None:
            found[f"khat{suffix}"] = Variable(self.khat, f"Pareto k-hat of {self.in_words}", "1")
        return found

    # For a reader ----------------------------------------------------------------------------------------------------

    @property
    def in_words(self) -> str:
        return self.words or self.estimator

    def rows(self) -> list[Row]:
        """The figures as rows of a table."""
        how = f"by {self.in_words}" if self.sampled else "exact"
        samples = "" if self.num_samples is None else f", S = {self.num_samples}"
        return [Row.of("log p(x)", *self.mean_se, how + samples, self.at_least)]

    def notes(self) -> list[str]:
        """Sentences that a reader must know beside the figures."""
        return [NARROWER] if self.narrower else []

    def __str__(self) -> str:
        return "\n".join([self._caption, *map(sentence, self.rows()), *self.notes()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html(self._caption, self.rows(), self.notes())

    @property
    def _caption(self) -> str:
        return f"{len(self.log_px)} images, nats per image ± standard error over images"


def exact(log_px: Tensor) -> Estimate:
    """An exact log p(x) [images] as an `Estimate`."""
    zero = torch.zeros_like(log_px)
    return Estimate(estimator="exact", log_px=log_px, log_px_mc_var=zero, log_px_bias=zero)


def mean_se(values: Tensor) -> tuple[float, float]:
    """Mean over images and its standard error; the error of a single image is not a number."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_mc_se(variance: Tensor) -> float:
    """Monte Carlo standard error of a mean over images, from the variance of each."""
    return float(variance.sum().sqrt() / len(variance))


def mean_entry(values: Tensor, **more: Any) -> dict[str, Any]:
    """A mean over images with its standard error, as JSON has it."""
    mean, se = mean_se(values)
    return {"mean": mean, "se": se, **more}


def khat_entry(estimate: Estimate, khat: Tensor) -> dict[str, Any]:
    """k-hat over the images, as JSON has it. Images are of three kinds: too high, unknown, and fine."""
    known = khat[khat.isfinite()]
    return {
        **({"median": float(known.median())} if len(known) else {}),
        "fraction_above_0.7": share(khat > 0.7),
        "threshold": estimate.khat_threshold,
        "fraction_above_threshold": share(estimate.khat_too_high),
        "fraction_unknown": share(estimate.khat_unknown),
        "fraction_fine": share(~estimate.untrusted),
    }


def median_and_least(ess: Tensor) -> dict[str, float]:
    """Effective sample sizes [images], as JSON has them."""
    return {"median": float(ess.median()), "min": float(ess.min())}


def share(chosen: Tensor) -> float:
    """Share of the images that are chosen, bool [images]."""
    return float(chosen.double().mean())
