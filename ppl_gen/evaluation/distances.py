"""How far the bounds of each run are from log p(x): every bound and estimate of an evaluation, from the ELBO to the
exact value, with its interval against the best row. Reading it needs no torch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ppl_gen.evaluation import entries
from ppl_gen.evaluation.reading import Evaluated, Images, images_of, same_images
from ppl_gen.evaluation.rows import groups_of, mean_under
from ppl_gen.evaluation.table import ESTIMATES, shown
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.differences import difference


class Level(NamedTuple):
    """A bound or an estimate of log p(x), as a mean over images and seeds in nats."""

    name: str
    """`elbo`, `iwae`, or the name of an estimate: `importance`, `annealed`, `exact`, …."""
    label: str
    mean: float
    half_width: float | None
    """Half-width of the 95 % interval of the difference to `Distances.reference`, paired by image if both rows are of
    the same images. It is 0 for the reference itself. None if the values of single images are not recorded, or if there
    is one image."""
    at_least: bool = False
    """True if log p(x) is likely larger, as `evaluation.json` has it."""

    @property
    def known(self) -> bool:
        """True for a value of log p(x) without Monte Carlo error."""
        return self.name in entries.KNOWN


class Sandwich(NamedTuple):
    """Bounds of log p(x) from both sides on images from the model, in nats."""

    label: str
    """Estimator of the bounds."""
    num_images: int
    lower: float
    upper: float
    width: float
    se: float | None
    """Standard error of `width`."""
    exact: float | None


class Distance(NamedTuple):
    """A row of the picture."""

    label: str
    levels: list[Level]
    """Finite levels: ELBO, IWAE bounds by k, estimates."""
    left_out: list[str]
    """Labels of levels that are infinite or NaN."""
    gap: float | None = None
    """Mean of log p(x) - ELBO; None for a run without a guide's samples, such as one whose z is
    enumerated."""
    gap_at_least: bool = False
    sandwiches: tuple[Sandwich, ...] = ()
    paired: bool = True
    """False if the row is not known to be of the same images as the first one."""

    @property
    def best(self) -> Level | None:
        """The known log p(x), or the largest of the estimates."""
        estimates = [level for level in self.levels if level.name not in ("elbo", "iwae")]
        known = [level for level in estimates if level.known]
        return known[0] if known else max(estimates, key=lambda level: level.mean, default=None)


class Distances(NamedTuple):
    """The rows of the picture, the best first."""

    images: Images
    rows: list[Distance]
    reference: Level | None = None
    """The best log p(x) of the first row. The intervals of all rows are of the difference to it."""
    several_seeds: bool = False
    """True if the intervals cover other seeds, too: if every row has at least two."""


# From runs -----------------------------------------------------------------------------------------------------


def distances(runs: Sequence[Evaluated], labels: Sequence[str] | None = None) -> Distances:
    """The rows of runs that are evaluated on the same images. Runs that differ in the seed alone share a row.

    :param labels: labels of the rows in the order of `rows_of`; by default the model and the guide.
    """
    groups = groups_of(runs)
    labels = labels or [
        f"{shown(group[0].summary['model'])}, guide {shown(group[0].summary['guide'])}" for group in groups
    ]
    rows = [_row(group, label) for group, label in zip(groups, labels, strict=True)]
    reference = rows[0].best
    if reference is None:
        return Distances(images_of(runs), rows)
    others = _values(groups[0], reference)
    with_intervals = []
    for group, row in zip(groups, rows, strict=True):
        same_row, paired = group is groups[0], group is groups[0] or same_images(group[0], groups[0][0])
        levels = [
            level._replace(half_width=_half_width(_values(group, level), others, same_row, len(groups), paired))
            for level in row.levels
        ]
        with_intervals.append(row._replace(levels=levels, paired=paired))
    several = all(len(group) > 1 for group in groups)
    return Distances(images_of(runs), with_intervals, with_intervals[0].best, several)


def _row(group: Sequence[Evaluated], label: str) -> Distance:
    """The row of runs that differ in the seed alone, without intervals."""
    levels = _levels([run.summary for run in group])
    summaries = [run.summary for run in group]
    return Distance(
        label,
        [level for level in levels if np.isfinite(level.mean)],
        [level.label for level in levels if not np.isfinite(level.mean)],
        mean_under(summaries, "gap", "mean"),
        any(summary.get("gap", {}).get("at_least", False) for summary in summaries),
        tuple(_sandwiches(summaries)),
    )


def _levels(summaries: Sequence[Json]) -> list[Level]:
    """The levels that all summaries have. If every z is enumerated, the ELBO is the exact log p(x), and is no level of
    its own."""
    shared = [name for name in _estimates(summaries[0]) if all(name in _estimates(each) for each in summaries)]
    of = {name: [entries.entry_of(summary, name) or {} for summary in summaries] for name in shared}
    levels = []
    if all("gap" in summary for summary in summaries):
        levels.append(Level("elbo", "ELBO", _mean([summary["elbo"] for summary in summaries]), None))
        least = min((entry.get("num_samples") or np.inf for entry in of.get("importance", [])), default=np.inf)
        ks = set.intersection(*(set(map(int, summary.get("iwae", {}))) for summary in summaries))
        for k in sorted(k for k in ks if 1 < k < least):
            bounds = [summary["iwae"][str(k)] for summary in summaries]
            levels.append(Level("iwae", f"IWAE-{k}", _mean(bounds), None))
    for name, found in sorted(of.items(), key=lambda item: item[0] in entries.KNOWN):
        counts = {entry["num_samples"] for entry in found if name == "importance" and entry.get("num_samples")}
        count = f", S = {counts.pop():,}" if len(counts) == 1 else ""
        at_least = any(entry["at_least"] for entry in found) and name not in entries.KNOWN
        levels.append(Level(name, ESTIMATES.get(name, name) + count, _mean(found), None, at_least))
    return levels


def _estimates(summary: Json) -> list[str]:
    """Names of the estimates of log p(x)."""
    others = [key.removeprefix("log_px_") for key in summary if key.startswith("log_px_")]
    return [entries.primary(summary), *others]


def _mean(found: Sequence[Json]) -> float:
    """Mean of entries; NaN if a mean is missing. JSON has no infinity or NaN, and None for both."""
    means = [np.nan if entry.get("mean") is None else entry["mean"] for entry in found]
    return float(np.mean(means))


def _values(group: Sequence[Evaluated], level: Level) -> np.ndarray | None:
    """Values of a level [seeds, images]; None if they are not recorded."""

    def of(run: Evaluated) -> np.ndarray | None:
        if level.name == "elbo":
            return run.elbo
        if level.name == "iwae":
            return run.iwae.get(int(level.label.removeprefix("IWAE-")))
        return run.log_px if level.name == entries.primary(run.summary) else run.estimates.get(level.name)

    found = [values for run in group if (values := of(run)) is not None]
    return np.stack(found) if len(found) == len(group) else None


def _half_width(
    values: np.ndarray | None, others: np.ndarray | None, same_row: bool, num_rows: int, paired: bool
) -> float | None:
    """Half-width of the interval of values [seeds, images] minus others. Within a row the seeds are paired, too."""
    if values is None or others is None:
        return None
    if same_row:
        values, others = values - others, np.zeros_like(others)
    with np.errstate(invalid="ignore"):  # log p(x) of an image may be -inf
        half_width = float(difference(values, others, num_rows, paired).half_width)
    return half_width if np.isfinite(half_width) else None


def _sandwiches(summaries: Sequence[Json]) -> list[Sandwich]:
    """The bounds from both sides that all summaries have."""
    found = []
    for key, label in (("sandwich_importance", "importance sampling"), ("sandwich", "annealing")):
        lower, upper, width, exact, images = (
            mean_under(summaries, key, *names)
            for names in (("lower", "mean"), ("upper", "mean"), ("width", "mean"), ("exact", "mean"), ("num_images",))
        )
        if lower is None or upper is None or width is None or not np.isfinite([lower, upper, width]).all():
            continue
        errors = [summary[key]["width"].get("se") for summary in summaries]
        se = None if None in errors else float(np.sqrt(np.square(errors).sum()) / len(errors))
        found.append(Sandwich(label, int(images or 0), lower, upper, width, se, exact))
    return found
