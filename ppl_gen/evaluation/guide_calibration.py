"""Calibration of a run's guide, on images from the model: is it too narrow, too wide or shifted, and do importance
weights repair it?"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.progress import Progress
from ppl_gen.core.tables import Row, fixed, line
from ppl_gen.evaluation.estimating import observation
from ppl_gen.evaluation.table import Printed, title
from ppl_gen.evaluation.use_options import GuideCalibrationOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.estimate import median_and_least
from ppl_gen.inference.ranks import POINTS, band, holm, p_value
from ppl_gen.inference.simulation import JOINT, SimulatedRanks, enumerated_ranks, simulated_ranks

LEVELS = (0.05, *(round(0.1 * tenth, 1) for tenth in range(1, 10)), 0.95, 0.99)
"""Nominal coverage of intervals and regions."""
SHOWN = 0.9
"""The level of the table."""
_MOST_NAMED = 6
_CERTAIN = 4.0  # standard errors; a departure of this size at any of 50 levels is no chance
_IMAGES = 1000


@dataclass(frozen=True)
class Calibrated(Printed):
    """The verdict on a guide, and the ranks that it comes from."""

    summary: Json
    """The content of `calibration.json`."""
    ranks: SimulatedRanks

    def __str__(self) -> str:
        return calibration_table(self.summary)


def calibrate_guide(fitted: Fitted, options: GuideCalibrationOptions, *, quiet: bool = False) -> Calibrated:
    """Test whether the guide's samples are like exact posterior samples, on images from the model.

    :raises BadInput: for a pair whose model cannot draw images, and for one whose posterior has too many states.
    """
    fitted.require_complete("calibrate")
    fitted.require_amortized("calibrate")
    started, pair = time.perf_counter(), fitted.pair
    x, *labels = fitted.images(options.split)
    count = options.num_images or (min(_IMAGES, len(x)) if labels else _IMAGES)
    if labels:
        require(count <= len(x), "num_images", count, f"the {options.split} split has labels for {len(x)} images")
    if pair.enumerated and labels:
        raise BadInput(f"{pair.model_name}: takes labels and enumerates z; this test does not support both together")
    num_samples = options.num_samples or fitted.config.num_samples
    template = x[:1].expand(count, *x.shape[1:])
    with fitted.estimating(options.seed), Progress(count, "image", quiet=quiet) as progress:
        kind = observation(pair, x[:1], *(each[:1] for each in labels))
        advance = progress.advancing("calibrating", "images from the model")
        if pair.enumerated:
            ranks = enumerated_ranks(pair, fitted.model, template, advance)
        else:
            rows = torch.randperm(len(x)).to(x.device)[:count]  # a file may have its images in the order of classes
            chosen = [each[rows] for each in labels]
            ranks = simulated_ranks(pair, template, *chosen, num_samples=num_samples, progress=advance)
    low, high = band(count, options.false_alarm_rate)
    summary: Json = {
        **fitted.provenance(options),
        "num_images": count,
        "estimator": "exact" if pair.enumerated else "importance",
        **({} if pair.enumerated else {"num_samples": num_samples}),
        **({"grey": True} if kind == "cross-entropy" else {}),
        "false_alarm_rate": options.false_alarm_rate,
        "resolution": float((high - low).max() / 2),
        "before": judge(ranks.names, ranks.before, options.false_alarm_rate),
    }
    if ranks.after is not None and ranks.ess is not None:
        summary["after"] = judge(ranks.names, ranks.after, options.false_alarm_rate)
        summary["ess"] = median_and_least(ranks.ess)
    recorded = replace(options, num_images=count, num_samples=None if pair.enumerated else num_samples)
    summary |= {"options": asdict(recorded), "seconds": time.perf_counter() - started}
    return Calibrated(summary, ranks)


# The verdict ---------------------------------------------------------------------------------------------------


def judge(names: Sequence[str], ranks: Tensor, rate: float) -> Json:
    """The verdict on ranks [images, quantities], and the numbers behind it.

    All quantities are tested together, by Holm's procedure: exact ranks are called anything but `calibrated` with a
    probability of at most `rate`. A unit that departs is `too narrow` or `too wide` by the level at which its intervals
    cover least like their nominal share, or `shifted` if the mean of its ranks is further off, in standard errors, than
    what is missed on both sides. The density is one of the first two. What is both, at different levels, is `not
    calibrated`. The verdict has the word with the most evidence, which is the sum of these errors over all quantities,
    and words with at least a third of that; `not calibrated` for opposite words. A density that is too narrow is no
    evidence beside a shifted unit, which makes it so. The word of the likelihood, `fits the image too little` or `too
    well`, is there if nothing else departs.

    :param names: names of the units, and then `JOINT`.
    """
    columns = ranks.double().cpu().numpy().T
    p_values = [p_value(column) for column in columns]
    departs = holm(p_values, rate)
    evidence: dict[str, float] = {}
    quantities: list[Json] = []
    for name, column, p, departed in zip(names, columns, p_values, departs, strict=True):
        word, strength = _word(name, column) if departed else (None, 0.0)
        explained = name == "density" and word == "too narrow" and "shifted" in evidence
        if word is not None and name != "likelihood" and not explained:
            evidence[word] = evidence.get(word, 0.0) + strength
        quantities.append({"name": name, "p": p, "mean": float(column.mean()), "is": word})
    verdict = _verdict(evidence) or quantities[-1]["is"] or "calibrated"
    units = columns[: -len(JOINT)]
    central = np.abs(2 * units - 1)
    return {
        "verdict": verdict,
        "units_outside": {"count": sum(p <= rate for p in p_values[: len(units)]), "of": len(units)},
        "coverage": {
            "levels": list(LEVELS),
            "central": [_share((central <= level).mean(0)) for level in LEVELS],
            "joint": [_share(columns[len(units)] <= level) for level in LEVELS],
        },
        "quantities": quantities,
    }


def _verdict(evidence: dict[str, float]) -> str:
    """The words with the most evidence, the first one first; empty without any. Opposite ones are `not calibrated`."""
    least = max(evidence.values(), default=0.0) / 3
    words = [word for word in sorted(evidence, key=evidence.__getitem__, reverse=True) if evidence[word] >= least]
    if {"too narrow", "too wide"} <= set(words):
        return "not calibrated"
    return ", ".join([word for word in words if word != "not calibrated"] or words)


def _share(values: np.ndarray) -> dict[str, float]:
    """The mean of values [images] with its standard error over images."""
    return {"mean": float(values.mean()), "se": float(values.std() / np.sqrt(len(values)))}


def _word(name: str, ranks: np.ndarray) -> tuple[str, float]:
    """The word for ranks [images] that are not uniform, and the size of the departure in standard errors."""
    mean = float(ranks.mean() - 0.5) * np.sqrt(12 * len(ranks))
    if name == "likelihood":  # it has a sign, and no intervals around a center
        return f"fits the image too {'little' if mean > 0 else 'well'}", abs(mean)
    level = ranks if name == "density" else np.abs(2 * ranks - 1)
    covered = np.searchsorted(np.sort(level), POINTS, side="right") / len(level)
    excess = (covered - POINTS) / np.sqrt(POINTS * (1 - POINTS) / len(level))
    wide, narrow = float(excess.max()), float(-excess.min())
    most = max(wide, narrow)
    if name != "density" and abs(mean) > max(wide, _narrow_on_both_sides(ranks)):
        return "shifted", abs(mean)
    if min(wide, narrow) > _CERTAIN:  # too wide at some levels, too narrow at others
        return "not calibrated", most
    return ("too narrow" if narrow > wide else "too wide"), most


def _narrow_on_both_sides(ranks: np.ndarray) -> float:
    """How much less than their nominal share the intervals around 1/2 cover, in standard errors, if both sides missed
    as seldom as the side that misses less. A shift alone makes only one side miss."""
    below, above = (
        np.searchsorted(np.sort(side), (1 - POINTS) / 2, side="left") / len(side) for side in (ranks, 1 - ranks)
    )
    return float(((2 * np.minimum(below, above) - (1 - POINTS)) / np.sqrt(POINTS * (1 - POINTS) / len(ranks))).max())


# Its table -----------------------------------------------------------------------------------------------------


def calibration_images(summary: Json) -> str:
    """The images and samples of a `calibration.json`, as text."""
    s = summary
    among = "in the exact p(z | x)" if s["estimator"] == "exact" else f"among {s['num_samples']} samples of the guide"
    return f"{s['num_images']} images from the model; the z of each is ranked {among}"


def calibration_rows(summary: Json) -> list[tuple[str, list[Row]]]:
    """The rows of a `calibration.json` in parts, each with its title."""
    exact = summary["estimator"] == "exact"
    parts = [("exact posterior" if exact else "the guide's samples", summary["before"], "")]
    if "after" in summary:
        ess = summary["ess"]
        note = f"effective sample size: median {fixed(ess['median'], 1)}, least {fixed(ess['min'], 1)}"
        parts.append(("the same samples with importance weights", summary["after"], note))
    return [(name, _rows(summary, part, note)) for name, part, note in parts]


def _rows(summary: Json, part: Json, note: str) -> list[Row]:
    index, outside = part["coverage"]["levels"].index(SHOWN), part["units_outside"]
    joint, central = (part["coverage"][key][index] for key in ("joint", "central"))
    expected = f"{summary['false_alarm_rate']:.0%} expected by chance"
    hint = "" if part["verdict"] != "calibrated" else (
        f"no departure is seen; with {summary['num_images']} images, a departure of coverage below about "
        f"{summary['resolution']:.1%} may be missed"
    )  # fmt: skip
    return [
        Row("verdict", note="; ".join(text for text in (part["verdict"], hint) if text)),
        Row("90 % regions of z hold", f"{joint['mean']:.1%}", f"{joint['se']:.1%}", "highest density, all units"),
        Row("90 % intervals hold", f"{central['mean']:.1%}", f"{central['se']:.1%}", "central, mean over units"),
        Row("units outside the band", note=f"{outside['count']} of {outside['of']}; {expected}"),
        *([Row("depart", note=named)] if (named := _departing(part)) else []),
        *([Row("weights", note=note)] if note else []),
    ]


def _departing(part: Json) -> str:
    """The quantities that depart, by their word, those with the smallest p-values first."""
    words: dict[str, list[str]] = {}
    for each in sorted(part["quantities"], key=lambda each: each["p"]):
        if each["is"] is not None:
            words.setdefault(each["is"], []).append(each["name"])
    more = {word: f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED) for word, names in words.items()}
    return "; ".join(f"{word}: {', '.join(names[:_MOST_NAMED])}{more[word]}" for word, names in words.items())


def calibration_notes(summary: Json) -> list[str]:
    """Sentences below the table."""
    which = "each verdict is" if "after" in summary else "the verdict is"
    notes = [
        f"{which} a false alarm in at most {summary['false_alarm_rate']:.0%} of runs with an exact guide; the images "
        "are the model's own, and real images may differ"
    ]
    if summary.get("grey"):
        notes.append("images from the model are binary, but the guide was fitted to grey images")
    return notes


def calibration_table(summary: Json) -> str:
    """The content of `calibration.json` as text."""
    lines = [f"{title(summary)}: {calibration_images(summary)}"]
    for name, rows in calibration_rows(summary):
        lines += [name, *(line(row, 24, "{:>1}{:>7}{}") for row in rows)]
    return "\n".join(
        [*lines, *(f"  {note}" for note in calibration_notes(summary)), f"  {fixed(summary['seconds'], 0)} s"]
    )
