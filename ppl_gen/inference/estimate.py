"""log p(x) of images by one estimator, with its errors and diagnostics.

Every estimator returns an `Estimate`, or a subclass with further results. An evaluation writes and prints only what the
estimate itself provides. Therefore an estimate of your own is written, tested and printed like those of the package.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import NARROWER
from ppl_gen.core.tables import Row, html, sentence

_EQUAL = 1e-6  # relative variance of weights that are equal up to rounding, of log weights up to 10,000 in float32
_LARGEST = 0.01  # share of the weights' sum in the largest one, up to which an unknown k-hat is accepted: 0.01 nats
_FEW = 10  # effective samples, below which a low k-hat is not accepted: a tail of so few large weights has no shape


class Variable(NamedTuple):
    """A variable of `evaluation.nc`."""

    values: Tensor
    """[images]."""
    title: str
    units: str = "nats"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Estimate:
    """log p(x) of images by one estimator, in nats. Every tensor is float64 [images] on the CPU.

    >>> zero = torch.zeros(4, dtype=torch.float64)
    >>> values = torch.tensor([-1.0, -2.0, -1.0, -2.0], dtype=torch.float64)
    >>> print(Estimate(estimator="mine", log_px=values, log_px_mc_var=zero, log_px_bias=zero, num_samples=10))
    4 images, nats per image ± standard error over images
    log p(x)  at least -1.50 ± 0.29 by mine, S = 10
    """

    estimator: str
    """Name of the estimator: `exact`, `quadrature`, `importance`, `prior`, `annealed`, or a name of your own."""
    log_px: Tensor
    log_px_mc_var: Tensor
    """Monte Carlo variance of `log_px`, by the delta method; NaN if it is unknown, 0 for an exact value."""
    log_px_bias: Tensor
    """Estimated bias of `log_px`, by the jackknife: negative; 0 for an exact value."""
    num_samples: int | None = None
    """Samples, or chains, per image; None for an exact value."""
    ess: Tensor | None = None
    """Effective sample size."""
    khat: Tensor | None = None
    """PSIS k-hat. NaN if there is no tail to fit: all weights of an image are equal, or there are fewer than 25, or the
    weights in the tail take few values. None for an estimator without k-hat; such an estimate does not show how low it
    may be, and must be corroborated by others."""
    largest: Tensor | None = None
    """Share of the largest weight in the sum of weights. With a tail of shape k it is about S^(k - 1). If the weights
    have no finite mean (k >= 1), it stays large for any number of samples S."""
    narrower: bool = False
    """True if the proposal leaves out a part of the prior's support. That part of p(x) is missing from the estimate."""
    words: str = ""
    """Name of the estimator in a sentence: "log p(x) by annealed importance sampling"."""
    usable_for_gap: bool = True
    """True if the gap between a guide's ELBO and log p(x) may be computed from it. Importance sampling from the prior
    alone is often far too low for that."""
    doubted: Tensor | None = None
    """Images on which another estimate is significantly above this one, or whose guide misses a value of a discrete
    unit; bool [images]."""
    verdict: bool | None = None
    """Result of an evaluation that compared it with other estimates: True if log p(x) is likely above its mean. None
    without such a comparison."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the estimator besides `num_samples`, as JSON values."""

    # Over the images -----------------------------------------------------------------------------------------------

    @property
    def mean(self) -> float:
        """Mean over images."""
        return float(self.log_px.mean())

    @property
    def se(self) -> float:
        """Standard error of the mean over images; NaN for one image."""
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
        """True if the estimate has a Monte Carlo error; False if it is exact or by quadrature."""
        return self.estimator not in ("exact", "quadrature")

    # Diagnostics ---------------------------------------------------------------------------------------------------

    @property
    def khat_threshold(self) -> float:
        """Largest k-hat for which an image's log p(x) is reliable (Vehtari et al. 2024, section 3.2.4)."""
        count = self.num_samples or 0
        return min(1 - 1 / math.log10(count), 0.7) if count > 1 else 0.0

    @property
    def khat_too_high(self) -> Tensor:
        """Images whose k-hat is known and above the threshold; bool [images]."""
        return self._none if self.khat is None else (self.khat > self.khat_threshold) & ~self._equal

    @property
    def khat_unknown(self) -> Tensor:
        """Images whose k-hat tells nothing; bool [images]. It is NaN, the weights differ, and the largest one is more
        than 1 % of their sum: with a smaller one no sample matters much, and a k-hat is not needed. Or it is low, and
        there are fewer than ten effective samples."""
        if self.khat is None:
            return self._none
        settled = self._equal if self.largest is None else self._equal | (self.largest <= _LARGEST)
        few = self._none if self.ess is None else (self.ess < _FEW) & (self.khat <= self.khat_threshold) & ~self._equal
        return (self.khat.isnan() & ~settled) | few

    @property
    def untrusted(self) -> Tensor:
        """Images whose log p(x) is unreliable; bool [images]: k-hat is too high or unknown, or there are other
        `doubts`; or all images, if the proposal is `narrower`."""
        return self.khat_too_high | self.khat_unknown | self.narrower | self.doubts

    @property
    def doubts(self) -> Tensor:
        """Images for which something else than k-hat says that log p(x) is above the estimate; bool [images]."""
        return self._none if self.doubted is None else self.doubted

    @property
    def at_least(self) -> bool:
        """True if log p(x) is likely above the estimate, so that a report must say "at least". It is the `verdict` of
        an evaluation if there is one. Otherwise it is True without k-hat, or if any image is `untrusted`."""
        if self.verdict is not None or not self.sampled:
            return bool(self.verdict)
        return self.khat is None or bool(self.log_px_mc_var.isnan().any() or self.untrusted.any())

    @property
    def error_is_reliable(self) -> bool:
        """True if the Monte Carlo error is accurate enough for a test with a small rate of false alarms."""
        return True

    @property
    def corroborated(self) -> bool:
        """True if a diagnostic other than k-hat shows that the estimate is near log p(x)."""
        return False

    @property
    def _none(self) -> Tensor:
        """False for every image."""
        return torch.zeros(len(self.log_px), dtype=torch.bool)

    @property
    def _equal(self) -> Tensor:
        """Images whose weights are all equal, as for the exact posterior; none with a single sample; bool [images]."""
        if self.ess is None or self.num_samples is None:
            return self._none
        return (self.ess >= self.num_samples * (1 - _EQUAL)) & (self.num_samples > 1)

    # For an evaluation -----------------------------------------------------------------------------------------------

    def lower_bounds(self, name: str) -> "dict[str, Estimate]":
        """All lower bounds of log p(x) that it provides, by name.

        :param name: name of this estimate in the evaluation.
        """
        return {name: self}

    def entry(self, at_least: bool) -> dict[str, Any]:
        """The entry of log p(x) in `evaluation.json`.

        :param at_least: True if log p(x) is likely above the estimate.
        """
        errors = {"mc_se": self.mc_se, "bias": self.bias} if self.sampled else {}
        return mean_entry(self.log_px, **errors, at_least=at_least, estimator=self.estimator, **self.settings_entry())

    def settings_entry(self) -> dict[str, Any]:
        """Settings and diagnostics in that entry."""
        entry = dict(self.settings)
        if self.num_samples is not None:
            entry["num_samples"] = self.num_samples
        if self.ess is not None:
            entry["ess"] = median_and_least(self.ess)
        if self.khat is not None:
            entry["fraction_above_threshold"] = share(self.khat_too_high)
        return entry

    def more_entries(self, name: str) -> dict[str, Any]:
        """Further entries in `evaluation.json`, by key."""
        return {} if self.khat is None else {f"khat_{name}": khat_entry(self, self.khat)}

    def variables(self, name: str) -> dict[str, Variable]:
        """Variables in `evaluation.nc`, by name."""
        return self.log_px_variables(f"log_px_{name}") | self.diagnostic_variables(f"_{name}")

    def log_px_variables(self, prefix: str) -> dict[str, Variable]:
        """log p(x) with its errors, as variables whose names begin with `prefix`."""
        if not self.sampled:
            how = ", exact" if self.estimator == "exact" else f" by {self.in_words}"
            return {prefix: Variable(self.log_px, f"log p(x){how}")}
        of = f"of log p(x) by {self.in_words}"
        return {
            prefix: Variable(self.log_px, f"log p(x) by {self.in_words}"),
            f"{prefix}_mc_se": Variable(self.log_px_mc_var.sqrt(), f"Monte Carlo standard error {of}"),
            f"{prefix}_bias": Variable(self.log_px_bias, f"jackknife estimate of the bias {of}"),
        }

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        """Effective sample size and k-hat, if they exist, as variables whose names end in `suffix`."""
        found = {}
        if self.ess is not None:
            found[f"ess{suffix}"] = Variable(self.ess, f"effective sample size of {self.in_words}", "samples")
        if self.khat is not None:
            found[f"khat{suffix}"] = Variable(self.khat, f"Pareto k-hat of {self.in_words}", "1")
        if bool((doubts := self.doubts).any()):
            title = f"log p(x) is above that by {self.in_words}, whatever k-hat says"
            found[f"doubted{suffix}"] = Variable(doubts.to(torch.int8), title, "1")
        return found

    # For display -----------------------------------------------------------------------------------------------------

    @property
    def in_words(self) -> str:
        """Name of the estimator in a sentence."""
        return self.words or self.estimator

    def rows(self) -> list[Row]:
        """Rows of the table of results."""
        how = "exact" if self.estimator == "exact" else f"by {self.in_words}"
        samples = "" if self.num_samples is None else f", S = {self.num_samples}"
        return [Row.of("log p(x)", *self.mean_se, how + samples, self.at_least)]

    def notes(self) -> list[str]:
        """Warnings to show beside the results, one sentence each."""
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
    """Mean over images and its standard error, which is NaN for a single image."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_mc_se(variance: Tensor) -> float:
    """Monte Carlo standard error of a mean over images, from the variance of each."""
    return float(variance.sum().sqrt() / len(variance))


def mean_entry(values: Tensor, **more: Any) -> dict[str, Any]:
    """A mean over images with its standard error, as an entry of JSON."""
    mean, se = mean_se(values)
    return {"mean": mean, "se": se, **more}


def khat_entry(estimate: Estimate, khat: Tensor) -> dict[str, Any]:
    """k-hat over the images, as an entry of JSON. Images have a k-hat that is too high, unknown, or fine."""
    known = khat[khat.isfinite()]
    return {
        **({"median": median(known)} if len(known) else {}),
        "fraction_above_0.7": share(khat > 0.7),
        "threshold": estimate.khat_threshold,
        "fraction_above_threshold": share(estimate.khat_too_high),
        "fraction_unknown": share(estimate.khat_unknown),
        "fraction_fine": share(~(estimate.khat_too_high | estimate.khat_unknown)),
    }


def median_and_least(ess: Tensor) -> dict[str, float]:
    """Median and minimum of effective sample sizes [images], as an entry of JSON."""
    return {"median": median(ess), "min": float(ess.min())}


def median(values: Tensor) -> float:
    """The median, which is the mean of the two middle values of an even number."""
    return float(np.median(values.numpy()))


def share(chosen: Tensor) -> float:
    """Share of True in `chosen`, bool [images]."""
    return float(chosen.double().mean())
