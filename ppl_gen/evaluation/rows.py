"""Rows of a comparison: groups of runs that differ in the seed alone, and the difference of each to the best."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ppl_gen.evaluation import entries
from ppl_gen.evaluation.reading import OPTIONS, Evaluated, group, same_images
from ppl_gen.evaluation.table import ESTIMATES
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.differences import difference, variance_over_images, variance_over_seeds

_IN_COLUMNS = {name for name, option in OPTIONS.items() if option.metadata.get("column")}
_IN_COLUMNS |= {f"evaluation.{name}" for name in ("estimator", "num_samples", "tolerance")}  # column S


@dataclass(frozen=True)
class RowMean:
    """A mean over images and seeds in nats, with its errors. A value that does not exist is None."""

    mean: float | None = None
    se: float | None = None
    """Standard error over images, for fixed weights."""
    se_seeds: float | None = None
    """Standard error over seeds; None for one seed."""
    low: float | None = None
    """Lower end of the 95 % interval of a difference; `high` is the upper end."""
    high: float | None = None
    at_least: bool = False
    paired: bool | None = None
    """True for a difference between rows of the same images, False if that is not known; None if it is no
    difference."""

    def to_json(self, *more: str) -> Json:
        """The mean with its errors, and with further fields by name."""
        return {name: getattr(self, name) for name in ("mean", "se", "se_seeds", *more)}


@dataclass(frozen=True)
class Row:
    """Runs of one method, which differ in the seed alone; or files of log weights of one name."""

    model: str
    """The model, or the name of a file of log weights. Such a row has no guide, no objective and no parameters."""
    guide: str | None
    prior: str | None
    objective: str
    """The objective, with its particles and warm-up if they are not the defaults: `vimco-50`."""
    options: Json
    """The options that distinguish this row from others of the same model, and that have no column."""
    seeds: list[int]
    runs: list[str]
    """Run directories, or files of log weights, in the order of the seeds."""
    elbo: RowMean
    k: int | None
    """Samples of the IWAE bound `iwae`."""
    iwae: RowMean
    log_px: RowMean
    settings: Json
    """Settings of log p(x): `estimator`, `num_samples`, and options of annealing."""
    bits_per_dim: RowMean
    """log p(x) in bits per dimension, of which fewer are better; no mean if an image is no vector of levels."""
    log_px_difference: RowMean
    """log p(x) of this row minus that of the best, paired by image if both are of the same images. The best row has no
    mean here."""
    elbo_difference: RowMean
    difference_of: str | None
    """Subject of the differences: `methods`, or `weights` if this row or the best has one seed."""
    own: dict[str, RowMean]
    """log p(x) by estimators of the user's own, by name: those that all runs of the row have."""
    own_difference: dict[str, RowMean]
    """The differences of these to the best row; those that the best row has, too."""
    gap: RowMean
    approximation: RowMean
    amortization: RowMean
    width_importance: float | None
    """Mean distance of the two bounds by importance sampling on images from the model; `width_annealed`: by
    annealing."""
    width_annealed: float | None
    gap_images: float | None
    """Number of images of `approximation` and `amortization`."""
    khat_median: float | None
    ess_median: float | None
    active_units: float | None
    calibration: str | None
    """Verdicts on the guide's samples, before and after weighting: `too narrow → calibrated`; those of several seeds
    are joined by `or`."""
    num_parameters: int | None
    seconds: float | None
    epochs: float | None

    def to_json(self) -> Json:
        """The row as `compare --format json` prints it."""
        of, images = {"of": self.difference_of}, {"num_images": self.gap_images}
        own: Json = {name: mean.to_json("at_least") for name, mean in self.own.items()}
        for name, mean in self.own_difference.items():
            own[name]["difference"] = mean.to_json("low", "high", "paired") | of
        return {
            "model": self.model,
            "guide": self.guide,
            "prior": self.prior,
            "objective": self.objective,
            "options": self.options,
            "seeds": self.seeds,
            "runs": self.runs,
            "elbo": self.elbo.to_json(),
            "iwae": {"k": self.k} | self.iwae.to_json(),
            "log_px": self.log_px.to_json() | self.settings | {"at_least": self.log_px.at_least},
            "bits_per_dim": self.bits_per_dim.to_json(),
            "log_px_difference": self.log_px_difference.to_json("low", "high", "paired") | of,
            "elbo_difference": self.elbo_difference.to_json("low", "high", "paired") | of,
            "own": own,
            "gap": {"mean": self.gap.mean, "at_least": self.gap.at_least},
            "approximation": {"mean": self.approximation.mean} | images | {"at_least": self.approximation.at_least},
            "amortization": {"mean": self.amortization.mean} | images | {"at_least": self.amortization.at_least},
            "width_importance": self.width_importance,
            "width_annealed": self.width_annealed,
            "khat_median": self.khat_median,
            "ess_median": self.ess_median,
            "active_units": self.active_units,
            "calibration": self.calibration,
            "num_parameters": self.num_parameters,
            "seconds": self.seconds,
            "epochs": self.epochs,
        }


# From runs -----------------------------------------------------------------------------------------------------


def rows_of(runs: Sequence[Evaluated]) -> list[Row]:
    """The rows of runs that are evaluated on the same images, the best mean log p(x) first.

    :raises BadInput: for two runs with the same configuration and seed.
    """
    groups, k = groups_of(runs), _largest_k(runs)
    options = _options([each[0] for each in groups])
    with np.errstate(invalid="ignore"):  # log p(x) of an image may be -inf
        return [_row(*each, groups, k) for each in zip(groups, options, strict=True)]


def groups_of(runs: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """The runs of each row, the best mean log p(x) first.

    :raises BadInput: for two runs with the same configuration and seed.
    """
    return sorted(group(runs), key=_mean_log_px, reverse=True)


def _mean_log_px(runs: Sequence[Evaluated]) -> float:
    mean = float(np.mean([run.log_px.mean() for run in runs]))
    return mean if math.isfinite(mean) else -math.inf


def _largest_k(runs: Sequence[Evaluated]) -> int | None:
    """The largest k below S that all runs with IWAE bounds have. At k = S the bound is the sampled log p(x) itself."""
    shared = set.intersection(*([set(run.iwae) for run in runs if run.iwae] or [set()]))
    sampled = [run.summary.get("log_px_importance") or run.summary["log_px"] for run in runs]
    least = min((each.get("num_samples", math.inf) for each in sampled), default=math.inf)
    return max((k for k in shared if 1 < k < least), default=None)


def _row(runs: list[Evaluated], options: Json, groups: list[list[Evaluated]], k: int | None) -> Row:
    """The row of a group. A term that some of its runs lack is None."""
    first, best = runs[0], groups[0]
    summaries, last, gaps = [run.summary for run in runs], [run.last for run in runs], [run.gaps for run in runs]
    elbo, log_px = _values(runs)
    bounds = [run.iwae[k] for run in runs if k is not None and k in run.iwae]
    elbo_difference = log_px_difference = RowMean()
    own, own_difference = own_values(runs), dict[str, RowMean]()
    difference_of = None
    if runs is not best:
        pairs = zip((elbo, log_px), _values(best), strict=True)
        paired = same_images(first, best[0])
        elbo_difference, log_px_difference = (_difference(*pair, len(groups), paired) for pair in pairs)
        shared = {name: others for name, others in own_values(best).items() if name in own}
        own_difference = {name: _difference(own[name], shared[name], len(groups), paired) for name in shared}
        difference_of = "methods" if min(len(runs), len(best)) > 1 else "weights"
    return Row(
        model=first.summary["model"],
        guide=first.summary["guide"],
        prior=first.config.get("prior"),
        objective=_objective(first.config),
        options=options,
        seeds=[run.seed for run in runs],
        runs=[str(run.path) for run in runs],
        elbo=mean_of(elbo),
        k=k,
        iwae=mean_of(np.stack(bounds)) if len(bounds) == len(runs) else RowMean(),
        log_px=mean_of(log_px, at_least=_at_least(summaries, "log_px")),
        settings={"num_samples": None} | first.settings,
        bits_per_dim=_in_bits(mean_of(log_px, at_least=_at_least(summaries, "log_px")), summaries),
        log_px_difference=log_px_difference,
        elbo_difference=elbo_difference,
        difference_of=difference_of,
        own={name: mean_of(values, _at_least(summaries, f"log_px_{name}")) for name, values in own.items()},
        own_difference=own_difference,
        gap=RowMean(mean_under(summaries, "gap", "mean"), at_least=_at_least(summaries, "gap")),
        approximation=RowMean(
            mean_under(gaps, "approximation", "mean"), at_least=any(g.get("at_least", False) for g in gaps)
        ),
        amortization=RowMean(mean_under(gaps, "amortization", "mean")),
        width_importance=mean_under(summaries, "sandwich_importance", "width", "mean"),
        width_annealed=mean_under(summaries, "sandwich", "width", "mean"),
        gap_images=mean_under(gaps, "num_images"),
        khat_median=mean_under(summaries, "khat", "median"),
        ess_median=mean_under(summaries, "ess", "median"),
        active_units=mean_under(summaries, "active_units"),
        calibration=_calibration(runs),
        num_parameters=first.summary["num_parameters"],
        seconds=mean_under(last, "seconds"),
        epochs=mean_under(last, "epoch"),
    )


def _in_bits(log_px: RowMean, summaries: Sequence[Json]) -> RowMean:
    """log p(x) in bits per dimension; without a mean, if a summary has none."""
    if not all("bits_per_dim" in summary for summary in summaries):
        return RowMean()
    dim = summaries[0]["bits_per_dim"]["dim"]
    mean, se, se_seeds = (entries.bits_per_dim(each, dim) for each in (log_px.mean, log_px.se, log_px.se_seeds))
    se, se_seeds = (None if each is None else abs(each) for each in (se, se_seeds))
    return RowMean(mean, se, se_seeds, at_least=log_px.at_least)


def _calibration(runs: Sequence[Evaluated]) -> str | None:
    """The verdicts of the runs' `calibration.json`; None if a run has none."""
    found = [run.calibration for run in runs]
    return " or ".join(dict.fromkeys(map(entries.verdicts, found))) if all(found) else None


def _values(runs: Sequence[Evaluated]) -> tuple[np.ndarray, np.ndarray]:
    """ELBO and log p(x) of runs, each [seeds, images]."""
    return np.stack([run.elbo for run in runs]), np.stack([run.log_px for run in runs])


def own_values(runs: Sequence[Evaluated]) -> dict[str, np.ndarray]:
    """log p(x) [seeds, images] by each estimator of the user's own, by name, that all of the runs have."""
    shared = [name for name in runs[0].estimates if all(name in run.estimates for run in runs)]
    return {name: np.stack([run.estimates[name] for run in runs]) for name in shared if name not in ESTIMATES}


def mean_of(values: np.ndarray, at_least: bool = False) -> RowMean:
    """The mean of values [seeds, images], with its standard errors over images and over seeds.

    >>> mean_of(np.array([[-10.0, -10.0], [-11.0, -13.0]]))
    RowMean(mean=-11.0, se=0.5, se_seeds=1.0, low=None, high=None, at_least=False, paired=None)
    """
    over_images, over_seeds = variance_over_images(values.mean(0)), variance_over_seeds(values)
    return RowMean(_float(values.mean()), _float(np.sqrt(over_images)), _float(np.sqrt(over_seeds)), at_least=at_least)


def _difference(values: np.ndarray, best: np.ndarray, num_rows: int, paired: bool) -> RowMean:
    """The mean of values [seeds, images] minus those of the best row, with errors and interval."""
    found = difference(values, best, num_rows, paired)
    low, high = found.mean - found.half_width, found.mean + found.half_width
    errors = _float(found.se), _float(found.se_seeds), _float(low), _float(high)
    return RowMean(_float(found.mean), *errors, paired=paired)


def _float(value: np.ndarray) -> float | None:
    """A number; None for NaN, which an error has with a single image or seed."""
    return None if np.isnan(value) else float(value)


def _at_least(summaries: Sequence[Json], key: str) -> bool:
    """True if the entry of any summary is only a lower bound."""
    return any(summary.get(key, {}).get("at_least", False) for summary in summaries)


def mean_under(contents: Sequence[Json], *keys: str) -> float | None:
    """Mean of the values under nested keys; None if any is missing."""
    found: list[Any] = list(contents)
    for key in keys:
        found = [None if each is None else each.get(key) for each in found]
    return None if None in found else float(np.mean(found))


def _objective(config: Json) -> str:
    """The objective, with its particles and warm-up if they are not the defaults: `vimco-50`."""
    particles, warmup = config.get("training.num_particles", 1), config.get("training.kl_warmup", 0)
    name = f"{config.get('training.objective', '')}{f'-{particles}' if particles != 1 else ''}"
    return name + (f" kl_warmup={warmup}" if warmup else "")


def _options(runs: Sequence[Evaluated]) -> list[Json]:
    """The options that distinguish each row from the others, and that have no column. An option is compared with rows
    of the same model, since models have defaults of their own; an option of a guide or prior with rows of the same
    guide or prior; data and checkpoint with all rows. Runs and files of log weights have no options in common.

    :param runs: the first run of each row.
    """
    found: list[Json] = [{} for _ in runs]
    for name in sorted({name for run in runs for name in run.config} - _IN_COLUMNS):
        part = next((part for part in ("guide", "prior") if name.startswith(f"{part}_")), "")
        alike = () if name.startswith(("data.", "evaluation.")) else ("model", part) if part else ("model",)
        peers = [(run.of_run, *(run.config.get(key) for key in alike)) for run in runs]
        values: dict[Any, list[Any]] = defaultdict(list)
        for run, key in zip(runs, peers, strict=True):
            values[key].append(run.config.get(name))
        telling = {key for key, (first, *others) in values.items() if any(other != first for other in others)}
        section, _, short = name.rpartition(".")
        shown = f"{part}.{short}" if part and section else short
        for run, key, options in zip(runs, peers, found, strict=True):
            if key in telling and name in run.config:
                value = run.config[name]
                options[shown] = value[:8] if name.endswith("_sha256") and value is not None else value
    return found
