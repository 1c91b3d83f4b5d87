"""The entries of an `evaluation.json`, as this version and earlier ones wrote them. Reading them needs no torch."""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.run_directory import Json, RunDirectory

SHARED = ("data", "split", "num_images", "binarization", "observation", "seed", "training_seed", "checkpoint")
"""Keys that an `evaluation.json` and the attributes of the `evaluation.nc` beside it have in common."""
KNOWN = frozenset({"exact", "quadrature"})
"""Estimators of log p(x) without Monte Carlo error."""
_FIGURES = {
    *("mean", "se", "mc_se", "bias", "at_least", "accepted", "ess", "fraction_above_threshold"),
    *("largest_change", "points_per_image", "settled"),
}
"""Keys of an entry of log p(x) that are results, not settings, of its estimator."""
_NATS = ("elbo", "log_px", "iwae", "gap", "ess", "khat")
"""Beginnings of the names of variables that are no whole numbers."""


def quantity(summary: Mapping[str, Any]) -> str:
    """The name of what was evaluated: `log p(x)`; `log p(x | y)` or `log p(x, y)` if labels are given; with `x_obs` for
    x, the observed pixels, if pixels are missing."""
    found: str = summary.get("quantity", "log p(x)")
    return found.replace("p(x_obs", "p(x").replace("p(x", "p(x_obs") if summary.get("missing") else found


def quantity_of(run: RunDirectory) -> str:
    """The name of what a run evaluates: that of its evaluation, if it has one."""
    with suppress(BadInput):  # a damaged one is told where it is read
        if (summary := run.read_json("evaluation.json")) is not None:
            return quantity(summary)
    return quantity({"missing": run.config["data"].get("missing")})


def primary(summary: Json) -> str:
    """Name of the estimate that `log_px` is."""
    entry = summary["log_px"]
    return "mixed" if entry["estimator"] == "importance" and "proposal" in entry else entry["estimator"]


def entry_of(summary: Json, name: str) -> Json | None:
    """The entry of an estimate of log p(x) by its name; None if it is missing."""
    return summary["log_px"] if name == primary(summary) else summary.get(f"log_px_{name}")


def bits_per_dim(nats: float | None, dim: int) -> float | None:
    """-nats / (dim log 2), in which smaller is better: the unit of papers on 8-bit images. None, which stands for an
    unknown number, stays None.

    >>> bits_per_dim(-2 * math.log(256), dim=2)
    8.0

    :param nats: log-probability of an image, or a bound on it.
    :param dim: number of pixels, times the number of channels.
    """
    return None if nats is None else -nats / (dim * math.log(2))


def in_bits(entry: Json, dim: int) -> Json:
    """The mean and the standard error of an entry in bits per dimension."""
    se = bits_per_dim(entry["se"], dim)
    return {"mean": bits_per_dim(entry["mean"], dim), "se": None if se is None else abs(se)}


def settings(entry: Json) -> Json:
    """Settings that an estimate was made with, such as its `num_samples`, from its entry."""
    return {key: value for key, value in entry.items() if key not in _FIGURES | {"estimator"}}


def check_variables(summary: Json, variables: Mapping[str, Any], size: int) -> None:
    """Raise `ValueError` for variables of an `evaluation.nc` that are no numbers, one for each image.

    :param variables: variables as they are on disk, each with a shape and a dtype. They are not read.
    :param size: bytes of the file. They are not compressed, so a larger array is not there.
    """
    guided = "iwae" in summary
    for name in ("elbo", "log_px", *(("iwae", "k", "gap", "untrusted") if guided else ())):
        if name not in variables:
            raise ValueError(f"{name} is missing")
    bounds = tuple(variables["k"].shape) if "k" in variables else ()
    shapes = {"k": bounds[:1], "iwae": (summary["num_images"], *bounds[:1])}
    for name, each in variables.items():
        kinds = "f" if name.startswith(_NATS) else "iu" if name == "k" else "biuf"
        if each.dtype.kind not in kinds or not each.dtype.isnative:
            raise ValueError(f"{name} holds no numbers of its kind")
        if tuple(each.shape) != shapes.get(name, (summary["num_images"],)):
            raise ValueError("does not belong to the evaluation.json beside it, which has another num_images")
        if math.prod(each.shape) * each.dtype.itemsize > size:
            raise ValueError(f"{name} is larger than the file")


def check_match(summary: Json, attributes: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Raise `ValueError` if values per image do not belong to a summary.

    :param attributes: attributes of the `evaluation.nc`.
    :param values: variables `elbo` and `log_px`, each [images], and `k` if there are IWAE bounds.
    """
    recorded = {key: summary.get(key) for key in SHARED} | {"estimator": summary["log_px"]["estimator"]}
    if (importance := entry_of(summary, "importance")) is not None:
        recorded["num_samples"] = importance.get("num_samples")
    there = {key: np.ravel(value).tolist() for key, value in attributes.items() if key in recorded}
    different = [key for key, value in there.items() if value != [recorded[key]]]
    for name in ("elbo", "log_px"):
        mean = summary[name]["mean"]
        if mean is not None and not math.isclose(float(values[name].mean()), mean, rel_tol=1e-6, abs_tol=1e-6):
            different.append(f"mean {name}")
    if sorted(map(int, summary.get("iwae", {}))) != sorted(values["k"].tolist() if "iwae" in summary else []):
        different.append("list of IWAE bounds")
    if different:
        raise ValueError(f"does not belong to the evaluation.json beside it, which has another {different[0]}")


def verdicts(calibration: Json) -> str:
    """The verdicts of a `calibration.json`, before and after weighting: `too narrow → calibrated`."""
    return " → ".join(calibration[key]["verdict"] for key in ("before", "after") if key in calibration)
