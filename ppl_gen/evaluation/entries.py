"""The entries of an `evaluation.json`, as this version and earlier ones wrote them. Reading them needs no torch."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import Json

SHARED = ("data", "split", "num_images", "binarization", "observation", "seed", "training_seed", "checkpoint")
"""Keys that an `evaluation.json` and the attributes of the `evaluation.nc` beside it have in common."""
KNOWN = frozenset({"exact", "quadrature"})
"""Estimators of log p(x) without Monte Carlo error."""
_FIGURES = {
    *("mean", "se", "mc_se", "bias", "at_least", "accepted", "ess", "fraction_above_threshold"),
    *("largest_change", "points_per_image", "settled"),
}
"""Keys of an entry of log p(x) that are results, not settings, of its estimator."""


def primary(summary: Json) -> str:
    """Name of the estimate that `log_px` is."""
    entry = summary["log_px"]
    return "mixed" if entry["estimator"] == "importance" and "proposal" in entry else entry["estimator"]


def entry_of(summary: Json, name: str) -> Json | None:
    """The entry of an estimate of log p(x) by its name; None if it is missing."""
    return summary["log_px"] if name == primary(summary) else summary.get(f"log_px_{name}")


def at_least(summary: Json, entry: Json) -> bool:
    """True if the value of an entry is only a lower bound of log p(x). Earlier versions recorded it for the gap
    alone."""
    return bool(entry.get("at_least", summary.get("gap", {}).get("at_least", False)))


def settings(entry: Json) -> Json:
    """Settings that an estimate was made with, such as its `num_samples`, from its entry."""
    return {key: value for key, value in entry.items() if key not in _FIGURES | {"estimator"}}


def check_match(
    summary: Json, attributes: Mapping[str, Any], values: Mapping[str, np.ndarray], file: Path, again: str
) -> None:
    """Raise `BadInput` if values per image do not belong to a summary.

    :param attributes: attributes of the `evaluation.nc`.
    :param values: variables `elbo` and `log_px`, each [images].
    :param file: the `evaluation.nc`.
    :param again: what to do about it.
    """
    recorded = {key: summary.get(key) for key in SHARED} | {"estimator": summary["log_px"]["estimator"]}
    if (importance := entry_of(summary, "importance")) is not None:
        recorded["num_samples"] = importance.get("num_samples")
    different = [key for key, value in recorded.items() if key in attributes and attributes[key] != value]
    for name, each in values.items():
        mean = summary[name]["mean"]
        if each.shape != (summary["num_images"],):
            different.append("num_images")
        elif mean is not None and not math.isclose(float(each.mean()), mean, rel_tol=1e-6, abs_tol=1e-6):
            different.append(f"mean {name}")
    if different:
        raise BadInput(
            f"{file}: does not belong to the evaluation.json beside it, which has another {different[0]}; {again}"
        )


def verdicts(calibration: Json) -> str:
    """The verdicts of a `calibration.json`, before and after weighting: `too narrow → calibrated`."""
    return " → ".join(calibration[key]["verdict"] for key in ("before", "after") if key in calibration)
