"""Run directories written by hand, whose numbers can be worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from ppl_gen.comparison import Comparison
from ppl_gen.experiment.run_directory import to_json

_MEAN = {"mean": 1.0, "se": 0.1, "mc_se": 0.1}
_ABOUT: dict[str, Any] = {
    "model": "vae",
    "guide": "normal",
    "data": "digits",
    "split": "test",
    "binarization": "dynamic",
}
_ABOUT |= {"options": {"seed": 0}, "checkpoint": "last", "seed": 0, "training_seed": 0}
_PARTS: dict[str, Any] = dict.fromkeys(("log_px", "elbo", "best_elbo", "approximation", "amortization"), _MEAN)
_PARTS |= {"num_images": 3, "estimator": "importance", "at_least": True, "fraction_settled": 0.5}
_PARTS |= {"fraction_missed": 0.1, "fraction_blind": 0.2}
_VERDICT = {
    "verdict": "too narrow",
    "units_outside": {"count": 1, "of": 2},
    "coverage": {"levels": [0.5, 0.9], "central": [_MEAN, _MEAN], "joint": [_MEAN, _MEAN]},
    "quantities": [{"name": "z[0]", "p": 0.4, "mean": 0.5, "is": None}, {"name": "z[1]", "p": 0.0, "is": "shifted"}],
}
_CLASSES = {"labels": [0, 1], "share": [0.5, 0.5], "of_the_data": [0.5, 0.5], "covered": 2, "of": 2, "divergence": 0.1}
_SCORES = dict.fromkeys(("frechet", "kernel", "precision", "recall"), _MEAN) | {"classes": _CLASSES}
RESULTS: dict[str, dict[str, Any]] = {
    "gaps.json": _ABOUT | {"observation": "probability", "num_samples": 10, "seconds": 1.0, "contexts": _PARTS},
    "calibration.json": {
        **_ABOUT,
        "num_images": 20,
        "estimator": "importance",
        "num_samples": 20,
        "false_alarm_rate": 0.05,
        "resolution": 0.3,
        "before": _VERDICT,
        "after": _VERDICT,
        "ess": {"median": 9.0, "min": 1.0},
        "seconds": 1,
    },
    "quality.json": {
        **_ABOUT,
        "num_images": 20,
        "images": "draws",
        "classifier": {"steps": 2, "accuracy": 0.5},
        "seconds": 1.0,
        "nearest": {"samples": 3.0, "test": 3.0},
        "real_images": _SCORES,
        **_SCORES,
    },
}
"""Results that take long to compute, as their commands write them."""


WIDE = {"above": 1.0, "num_images": 0, "fraction_at_most": 0.04, "confidence": 0.95}
"""The images whose two bounds are far apart."""


def write(name: str, elbo: list[float], log_px: list[float], **changes: Any) -> Path:
    """A run directory with these values per image. `changes` go by dotted name into config.json, those that start
    with `evaluation.` into evaluation.json, those that start with `nc.` into the attributes of evaluation.nc, and those
    that start with `values.` into its variables."""
    path = Path(name)
    path.mkdir(parents=True)
    config: dict[str, Any] = {
        "format": 1,
        "model": "vae",
        "model_options": {"latent_dim": 2},
        "guide": "normal",
        "guide_options": {},
        "data": {"data": "digits", "binarization": "static", "train_size": None},
        "data_name": "digits",
        "training": {"epochs": 3, "objective": "elbo", "num_particles": 1, "seed": 0, "matmul_precision": "highest"},
        "num_samples": 100,
        "command": [name],
    }
    bounds = {k: np.array(elbo) + math.log10(k) * 0.1 for k in (1, 10, 100)}
    summary: dict[str, Any] = {
        "model": "vae",
        "guide": "normal",
        "data": "digits",
        "split": "test",
        "num_images": len(elbo),
        "binarization": "static",
        "observation": "probability",
        "seed": 0,
        "training_seed": 0,
        "checkpoint": "last",
        "elbo": {"mean": float(np.mean(elbo)), "se": 0.5},
        "reconstruction": {"mean": float(np.mean(elbo)) + 1, "se": 0.5},
        "kl": {"mean": 1.0, "se": 0.5},
        "log_px": {
            "mean": float(np.mean(log_px)),
            "se": 0.5,
            "mc_se": 0.1,
            "bias": -0.1,
            "estimator": "importance",
            "at_least": False,
        },
        "gap": {
            "mean": float(np.mean(log_px)) - float(np.mean(elbo)),
            "se": 0.5,
            "at_least": False,
            "of": "importance",
        },
        "ess": {"median": 12.5, "min": 1.0},
        "khat": {
            "median": 0.5,
            "threshold": 0.7,
            "fraction_above_threshold": 0.0,
            "fraction_unknown": 0.0,
            "fraction_fine": 1.0,
        },
        "active_units": 2,
        "num_parameters": 1234,
        "seconds": 2.0,
        "options": {},
    }
    summary["log_px"]["num_samples"] = 100
    attributes: dict[str, Any] = {}
    estimates = {key.partition(".")[2]: values for key, values in changes.items() if key.startswith("values.")}
    for key, value in changes.items():
        part, _, rest = key.partition(".")
        if part == "values":
            continue
        where, names = (
            (summary, rest) if part == "evaluation" else (attributes, rest) if part == "nc" else (config, key)
        )
        *folders, last = names.split(".")
        for folder in folders:
            where = where.setdefault(folder, {})
        where[last] = value
    summary |= {key: config[key] for key in ("model", "guide")} | {"training_seed": config["training"]["seed"]}
    exact = summary["log_px"]["estimator"] == "exact" and "log_px_importance" not in summary
    if not exact:
        summary["iwae"] = {str(k): {"mean": float(values.mean()), "se": 0.5} for k, values in bounds.items()}
        summary["iwae_jackknife"] = {k: entry for k, entry in summary["iwae"].items() if k != "1"}
    if exact:
        for key in ("gap", "ess", "khat", "active_units"):
            del summary[key]
        del summary["log_px"]["num_samples"]
    for key, entry in summary.items():
        if key.startswith("sandwich"):
            summary[key] = {"wide": WIDE} | entry
        if key.startswith("log_px"):
            summary[key] = {"se": 0.5, "mc_se": 0.1, "bias": -0.1, "at_least": False} | entry
            if "proposal" in entry:
                summary[key]["proposal"] = {"guides": ["own"], "temperature": 1.0, "prior_share": 0.0} | entry[
                    "proposal"
                ]
    plain = {key: value for key, value in summary.items() if isinstance(value, str | int)}
    plain |= {key: summary["log_px"][key] for key in ("estimator", "num_samples") if key in summary["log_px"]}
    variables: dict[str, Any] = {"elbo": ("image", np.array(elbo, float)), "log_px": ("image", np.array(log_px, float))}
    variables |= {name: ("image", np.array(values, float)) for name, values in estimates.items()}
    if not exact:
        variables["iwae"] = (("image", "k"), np.stack(list(bounds.values()), 1))
        with np.errstate(invalid="ignore"):  # log p(x) of an image may be -inf
            variables["gap"] = ("image", np.subtract(log_px, elbo, dtype=float))
        variables["untrusted"] = ("image", np.zeros(len(elbo), np.int8))
    coordinates: dict[str, Any] = {} if exact else {"k": list(bounds)}
    coordinates["label"] = ("image", changes.get("labels", list(range(len(elbo)))))
    dataset = xarray.Dataset(variables, coordinates, plain | attributes)
    dataset.to_netcdf(path / "evaluation.nc", group="evaluation", engine="h5netcdf")
    (path / "config.json").write_text(json.dumps(config))
    (path / "evaluation.json").write_text(to_json(summary))
    of_all = {"learning_rate": 1e-3, "train": {"elbo": -30.0}}
    lines = [{"epoch": 0, "step": 0, "seconds": 0.1} | of_all, {"epoch": 3, "step": 3, "seconds": 7.5} | of_all]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def compared(*paths: Path) -> dict[str, Any]:
    """A comparison of runs, as JSON has it."""
    return Comparison(paths).to_json()
