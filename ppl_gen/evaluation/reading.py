"""Runs as a comparison reads them: what identifies each, and what its evaluation found.

Only files are read, no model is built, and neither torch nor xarray is imported.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_gen.core import components
from ppl_gen.core.commands import external_class_options
from ppl_gen.core.errors import BadInput
from ppl_gen.core.options import flat, options_of
from ppl_gen.experiment.config import ORIGIN, Config
from ppl_gen.experiment.run_directory import GROUP, RunDirectory

OPTIONS = options_of(Config)
_STATISTICS = {"mean", "se", "mc_se", "bias", "at_least", "accepted", "ess", "fraction_above_threshold"}
"""Keys of an estimate of log p(x) in `evaluation.json` that are no settings of its estimator."""


class Images(NamedTuple):
    """The images of an evaluation, and what p(x) is of them."""

    data: str
    split: str
    num_images: int
    binarization: str
    observation: str
    """probability, density or cross-entropy."""


class Evaluated(NamedTuple):
    """A run and its evaluation, as its directory has them."""

    path: Path
    config: dict[str, Any]
    """Options that identify the run, by dotted name, with the settings of its evaluation under `evaluation.`. None is
    an option that was left out on purpose."""
    seed: int
    images: Images
    settings: dict[str, Any]
    """How log p(x) was estimated: `estimator`, and its `num_samples` or options of annealing."""
    summary: dict[str, Any]
    """The content of `evaluation.json`."""
    elbo: np.ndarray
    """In nats [images]; so is `log_px`."""
    log_px: np.ndarray
    iwae: dict[int, np.ndarray]
    """The bound L_k [images] of each k."""
    labels: np.ndarray | None
    last: dict[str, Any]
    """The last line of `metrics.jsonl`; empty if there is none."""
    gaps: dict[str, Any]
    """The means of `gaps.json`; empty if there is none of the same split and weights."""


# A run ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Evaluated:
    """The configuration and the evaluation of a run.

    :raises BadInput: for a directory that is no run, has no evaluation, or one that is damaged or not whole.
    """
    run = RunDirectory.open(path)
    again = f"evaluate it: {' '.join(['python -m ppl_gen.evaluate', str(path), *external_class_options(run.config)])}"
    summary, file = run.read_json("evaluation.json"), path / "evaluation.nc"
    if summary is not None and run.stale(summary):
        raise BadInput(f"{path}: was trained on since its evaluation; {again}")
    if summary is None or not file.is_file():
        raise BadInput(f"{path}: has no {'evaluation.json' if summary is None else file.name}; {again}")
    try:
        values, attributes = _per_image(file)
        iwae = dict(zip(values["k"].tolist(), values["iwae"].T, strict=True)) if "iwae" in values else {}
        elbo, log_px = values["elbo"], values["log_px"]
    except Exception as error:  # h5py has no one error for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{file}: damaged ({reason}); {again}") from None
    try:
        images = Images(*(summary[key] for key in Images._fields))
        other = _mismatch(summary, attributes, {"elbo": elbo, "log_px": log_px})
        settings, seed = _settings(summary["log_px"]), summary["training_seed"]
        chosen = {"evaluation": settings | {"checkpoint": summary["checkpoint"]}}
        for key in ("model", "guide", "num_parameters"):
            summary[key]  # that it is there
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path / 'evaluation.json'}: damaged ({error}); {again}") from None
    if other:
        raise BadInput(f"{file}: does not belong to the evaluation.json beside it, which has another {other}; {again}")
    config = {name: value for name, value in flat(run.config | chosen).items() if _identifies(name)}
    last, gaps = (run.metrics() or [{}])[-1], _gaps(run, summary)
    labels = values.get("label")
    return Evaluated(path, config, seed, images, settings, summary, elbo, log_px, iwae, labels, last, gaps)


def _per_image(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The variables of `evaluation.nc` that are compared, those that there are; and its attributes.

    xarray reads every variable with its attributes and dimensions, which takes 30 times as long.
    """
    import h5py

    with h5py.File(file) as content:
        group = content[GROUP]
        names = [name for name in ("elbo", "log_px", "iwae", "k", "label") if name in group]
        attributes = {name: np.ravel(value)[0] for name, value in group.attrs.items()}  # numbers are arrays of one
        return {name: group[name][()] for name in names}, attributes


def _mismatch(summary: dict[str, Any], attributes: dict[str, Any], values: dict[str, np.ndarray]) -> str:
    """The first property in which values per image are not those of a summary; empty if they belong to it."""
    importance = summary.get("log_px_importance", summary["log_px"])
    said = {key: summary[key] for key in (*Images._fields, "seed", "training_seed", "checkpoint")}
    said |= {"estimator": summary["log_px"]["estimator"], "num_samples": importance.get("num_samples")}
    for key, value in said.items():
        if attributes.get(key) != value:
            return key
    for name, each in values.items():
        if each.shape != (summary["num_images"],):
            return "num_images"
        mean = summary[name]["mean"]
        if mean is not None and not math.isclose(float(each.mean()), mean, rel_tol=1e-6, abs_tol=1e-6):
            return f"mean {name}"
    return ""


def _settings(entry: dict[str, Any]) -> dict[str, Any]:
    """How log p(x) was estimated, from its entry in `evaluation.json`. Guides of other runs among the proposals are
    counted, not named: each seed may have its own."""
    found = {key: value for key, value in entry.items() if key not in _STATISTICS}
    if "proposal" in found:
        found["proposal"] = found["proposal"] | {"guides": len(found["proposal"].get("guides", ()))}
    return found


def _identifies(name: str) -> bool:
    """Whether runs are of different methods where they differ in an entry of `config.json`, named with dots."""
    if name in OPTIONS:
        return bool(OPTIONS[name].metadata.get("identifies", True))
    return name.partition(".")[0] not in ORIGIN


def _gaps(run: RunDirectory, summary: dict[str, Any]) -> dict[str, Any]:
    """The means of `gaps.json`; empty if there is none of the split and the weights of a summary."""
    split = run.read_json("gaps.json") or {}
    same = all(split.get(key) == summary[key] for key in ("split", "checkpoint")) and not run.stale(split)
    means: dict[str, Any] = split.get("contexts", {}) if same else {}
    return means


# Several runs --------------------------------------------------------------------------------------------------


def with_defaults(runs: Sequence[Evaluated]) -> list[Evaluated]:
    """The runs, with the default of today for every option that another run has and their own record lacks: it came
    later. Options of classes outside the package stay absent, since their code is not run."""
    named: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for run in runs:
        for name in run.config:
            named[_owner(run.config, name)].add(name)
    filled = []
    for run in runs:
        config = dict(run.config)
        for part, of in {_owner(config, name) for name in config}:
            if lacking := named[part, of] - config.keys():
                defaults = _defaults(part, of)
                config |= {name: defaults[name] for name in lacking & defaults.keys()}
        filled.append(run._replace(config=config))
    return filled


def _owner(config: dict[str, Any], name: str) -> tuple[str, str | None]:
    """The part of a configuration that an option is in, and the class that has the option, where it is not `Config`."""
    part = name.partition(".")[0] if "." in name else ""
    key = "evaluation.estimator" if part == "evaluation" else part.removesuffix("_options")
    return part, config.get(key) if part and part not in ("training", "data") else None


def _defaults(part: str, of: str | None) -> dict[str, Any]:
    """The defaults of today of a part's options, by dotted name. Those of a model, a guide, a prior or annealing are in
    modules that import torch, which is slow to start."""
    found: dict[str, Any] = {}
    if part in ("", "training", "data"):
        found = {name: option.default for name, option in OPTIONS.items() if option.default is not MISSING}
    elif part == "evaluation":
        if of == "annealed":
            from ppl_gen.inference.annealed import Annealing

            found = {f"evaluation.{name}": option.default for name, option in options_of(Annealing).items()}
    elif of is not None and not components.is_external(of):
        kind: Any = part.removesuffix("_options")
        options = components.options(kind, cls) if (cls := components.known(kind).get(of)) else []
        found = {f"{part}.{option.name}": option.default for option in options}
    return json.loads(json.dumps(found))  # tuples are lists in a file


def check_same_images(runs: Sequence[Evaluated]) -> None:
    """Raise `BadInput` unless all runs were evaluated on the same images, and as the same kind of thing."""
    first = runs[0]
    for run in runs[1:]:
        pairs = dict(zip(Images._fields, zip(first.images, run.images, strict=True), strict=True))
        for name in sorted(first.config.keys() | run.config.keys()):
            # The test images do not depend on how many images there were to train on.
            if name.startswith("data.") and (name != "data.train_size" or first.images.split != "test"):
                pairs[name] = (first.config.get(name), run.config.get(name))
        if first.labels is not None and run.labels is not None and not np.array_equal(first.labels, run.labels):
            pairs["labels"] = ("one", "other labels")
        if "images_sha256" in first.summary and "images_sha256" in run.summary:  # evaluations of old have none
            pairs["the images' SHA-256"] = (first.summary["images_sha256"][:8], run.summary["images_sha256"][:8])
        for name, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise BadInput(
                    f"{first.path} and {run.path} cannot be compared: {name.removeprefix('data.')} is {ours} in the "
                    f"one and {theirs} in the other"
                )


def group(runs: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Runs that differ in the seed alone, together. Raises `BadInput` where not even that differs."""
    groups: dict[str, dict[int, Evaluated]] = {}
    for run in runs:
        chosen = {name: value for name, value in run.config.items() if value is not None}
        seeds = groups.setdefault(json.dumps(chosen, sort_keys=True), {})
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            raise BadInput(
                f"{other.path} and {run.path}: have one configuration and one seed, {run.seed}; leave one out"
            )
    return [list(seeds.values()) for seeds in groups.values()]
