"""Runs as a comparison reads them: the options that identify each, and its evaluation.

Only files are read. No model is built, and neither torch nor xarray is imported.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_gen.core import components
from ppl_gen.core.commands import command, external_class_options, line
from ppl_gen.core.errors import BadInput
from ppl_gen.core.options import flat, options_of
from ppl_gen.evaluation import entries
from ppl_gen.evaluation.table import missing
from ppl_gen.experiment.config import ORIGIN, Config
from ppl_gen.experiment.run_directory import GROUP, Json, RunDirectory
from ppl_gen.inference.options import Annealing

OPTIONS = options_of(Config)
_ESTIMATE = "log_px_"  # entries of `evaluation.json`, and variables of `evaluation.nc`: estimates of log p(x)


class Images(NamedTuple):
    """The images of an evaluation, and the kind of their p(x). A file of log weights does not name its images: `data`,
    `split` and `binarization` are None."""

    data: str | None
    split: str | None
    num_images: int
    binarization: str | None
    observation: str
    """Kind of p(x): probability, density or cross-entropy; `unstated` for a file that does not say it."""
    missing: float = 0.0
    """Share of missing pixels. If it is above 0, p(x) is that of the observed pixels."""
    quantity: str = "log p(x)"
    """The name of what was evaluated, as in `entries.quantity`."""

    def words(self, form: str = "d") -> str:
        """The images in words: `300 test images of digits`.

        :param form: format of their number.
        """
        count = format(self.num_images, form)
        return f"{count} images" if self.data is None else f"{count} {self.split} images of {self.data}"

    @property
    def binarized(self) -> str:
        """The binarization and the missing pixels, to stand after other words; empty for a file of log weights."""
        return ("" if self.binarization is None else f", binarization {self.binarization}") + missing(self.missing)


class Evaluated(NamedTuple):
    """A run and its evaluation, as read from its directory."""

    path: Path
    config: Json
    """Options that identify the run, by dotted name. The settings of its evaluation have names that start with
    `evaluation.`. None is an option without a value."""
    seed: int
    images: Images
    settings: Json
    """Settings of log p(x): `estimator`, and its `num_samples` or options of annealing."""
    summary: Json
    """The content of `evaluation.json`."""
    elbo: np.ndarray
    """ELBO of each image in nats [images]. `log_px` has the same shape."""
    log_px: np.ndarray
    iwae: dict[int, np.ndarray]
    """Bounds L_k in nats [images], by k."""
    estimates: dict[str, np.ndarray]
    """log p(x) of each image in nats [images], by the names of the estimates."""
    labels: np.ndarray | None
    last: Json
    """The last line of `metrics.jsonl`; empty if there is none."""
    gaps: Json
    """The means of `gaps.json`; empty if it is missing, or is of another split or other weights."""
    calibration: Json
    """The content of `calibration.json`; empty if it is missing, or is of other weights."""
    gap: np.ndarray | None = None
    """log p(x) - ELBO of each image in nats [images]; None for a file of log weights, and where the ELBO is
    log p(x)."""
    untrusted: np.ndarray | None = None
    """Images whose gap is at least that [images], bool; None where `gap` is."""
    of_run: bool = True
    """False for a file of log weights, which takes the place of a run."""

    @property
    def images_sha256(self) -> str | None:
        """SHA-256 of the images; None if it is unknown."""
        return self.summary.get("images_sha256")


# A run ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Evaluated:
    """The configuration and the evaluation of a run.

    :raises BadInput: for a directory that is no run, and for an evaluation that is missing, damaged or incomplete.
    """
    run = RunDirectory.open(path)
    summary, content = run.read_evaluation()
    again = f"evaluate it: {line(command('evaluate', path, *external_class_options(run.config)))}"
    if summary is not None and run.stale(summary):
        raise BadInput(f"{path}: was trained after its evaluation; {again}")
    contents: Iterable[bytes] | None = None if content is None else [content]
    if summary is not None and "blocks" in summary:
        contents = run.blocks(summary)
    if summary is None or contents is None:
        raise BadInput(f"{path}: has no {'evaluation.json' if summary is None else 'evaluation.nc'}; {again}")
    try:
        values = _per_image(summary, contents)
    except BadInput:
        raise
    except Exception as error:  # h5py raises errors of many kinds
        raise run.damaged("evaluation.nc", error) from None
    about = {key: summary[key] for key in Images._fields if key in summary or key not in Images._field_defaults}
    images = Images(**about | {"quantity": entries.quantity(summary)})
    settings, seed = _settings(summary["log_px"]), summary["training_seed"]
    chosen = {"evaluation": settings | {"checkpoint": summary["checkpoint"]}}
    config = {name: value for name, value in flat(run.config | chosen).items() if _identifies(name)}
    iwae = dict(zip(values["k"].tolist(), values["iwae"].T, strict=True)) if "iwae" in values else {}
    others = {name.removeprefix(_ESTIMATE): each for name, each in values.items() if name.startswith(_ESTIMATE)}
    labels, more = values.get("label"), (_gaps(run, summary), _calibration(run, summary))
    found = values["elbo"], values["log_px"], iwae, others, labels
    gap, untrusted = values.get("gap"), values.get("untrusted")
    shown = gap, None if untrusted is None else untrusted.astype(bool)
    return Evaluated(path, config, seed, images, settings, summary, *found, run.last, *more, *shown)


def _per_image(summary: Json, contents: Iterable[bytes]) -> dict[str, np.ndarray]:
    """The variables of an `evaluation.nc`, or of its blocks, that a comparison uses."""
    parts: list[dict[str, np.ndarray]] = []
    attributes: Json = {}
    for content in contents:
        part, attributes = _variables(summary, content)
        parts.append(part)
    found = {name: np.concatenate([each[name] for each in parts]) for name in parts[0] if name != "k"}
    found |= {"k": parts[0]["k"]} if "k" in parts[0] else {}
    if len(found["elbo"]) != summary["num_images"]:
        raise ValueError("does not belong to the evaluation.json beside it, which has another num_images")
    entries.check_match(summary, attributes, found)
    return found


def _variables(summary: Json, content: bytes) -> tuple[dict[str, np.ndarray], Json]:
    """The variables of one file that a comparison uses, and its attributes.

    xarray would read every variable with its attributes and dimensions, which takes 30 times as long.
    """
    import h5py

    with h5py.File(io.BytesIO(content)) as file:
        group = file[GROUP]
        if "blocks" in summary and "elbo" in group:
            summary = summary | {"num_images": len(group["elbo"])}
        names = [name for name in ("elbo", "log_px", "iwae", "k", "label", "gap", "untrusted") if name in group]
        estimates = [f"{_ESTIMATE}{entries.primary(summary)}", *(key for key in summary if key.startswith(_ESTIMATE))]
        names += [name for name in estimates if name in group]
        entries.check_variables(summary, {name: group[name] for name in names}, len(content))
        attributes = {name: each.decode() if isinstance(each, bytes) else each for name, each in group.attrs.items()}
        return {name: group[name][()] for name in names}, attributes


def _settings(entry: Json) -> Json:
    """Settings of log p(x), from its entry in `evaluation.json`. For guides of other runs among the proposals, their
    number is kept and their names are not: each seed may have its own."""
    found = {"estimator": entry["estimator"], **entries.settings(entry)}
    if "proposal" in found:
        found["proposal"] = found["proposal"] | {"guides": len(found["proposal"].get("guides", ()))}
    return found


def _identifies(name: str) -> bool:
    """True if runs with different values of an option are different methods.

    :param name: the option's dotted name in `config.json`.
    """
    option = name if name in OPTIONS else name.partition(".")[0].removesuffix("_sha256")
    if option in OPTIONS:
        return bool(OPTIONS[option].metadata.get("identifies", True))
    return option not in ORIGIN


def _gaps(run: RunDirectory, summary: Json) -> Json:
    """The means of `gaps.json`; empty if it is missing, or is of another split or other weights than a summary."""
    split = run.find_json("gaps.json") or {}
    same = all(split.get(key) == summary[key] for key in ("split", "checkpoint")) and not run.stale(split)
    means: Json = split.get("contexts", {}) if same else {}
    return means


def _calibration(run: RunDirectory, summary: Json) -> Json:
    """The content of `calibration.json`; empty if it is missing, or is of other weights than a summary."""
    found = run.find_json("calibration.json") or {}
    return found if found.get("checkpoint") == summary["checkpoint"] and not run.stale(found) else {}


# Several runs --------------------------------------------------------------------------------------------------


def with_defaults(runs: Sequence[Evaluated]) -> list[Evaluated]:
    """The runs with missing options filled in. A run lacks an option that was added after it was made; it gets the
    present default if another run has that option. Options of classes outside the package stay missing, because their
    code is not run."""
    named: dict[tuple[str, str | None], set[str]] = defaultdict(set)
    for run in runs:
        for name in run.config if run.of_run else ():
            named[_owner(run.config, name)].add(name)
    filled = []
    for run in runs:
        if not run.of_run:
            filled.append(run)
            continue
        config = dict(run.config)
        for part, of in {_owner(config, name) for name in config}:
            if lacking := named[part, of] - config.keys():
                defaults = _defaults(part, of)
                config |= {name: defaults[name] for name in lacking & defaults.keys()}
        filled.append(run._replace(config=config))
    return filled


def _owner(config: Json, name: str) -> tuple[str, str | None]:
    """The part of the configuration that an option belongs to, and the class that has the option; None for `Config`
    itself."""
    part = name.partition(".")[0] if "." in name else ""
    key = "evaluation.estimator" if part == "evaluation" else part.removesuffix("_options")
    return part, config.get(key) if part and part not in ("training", "data") else None


def _defaults(part: str, of: str | None) -> Json:
    """The present defaults of a part's options, by dotted name. Those of a model, a guide or a prior are in modules
    that import torch, which is slow."""
    defaults: Json = {}
    if part in ("", "training", "data"):
        defaults = {name: option.default for name, option in OPTIONS.items() if option.default is not MISSING}
    elif part == "evaluation":
        if of == "annealed":
            defaults = {f"evaluation.{name}": option.default for name, option in options_of(Annealing).items()}
    elif of is not None and not components.is_external(of):
        kind: Any = part.removesuffix("_options")
        options = components.options(kind, cls) if (cls := components.known(kind).get(of)) else []
        defaults = {f"{part}.{option.name}": option.default for option in options}
    return json.loads(json.dumps(defaults))  # tuples become lists, as in a file


def check_same_images(runs: Sequence[Evaluated]) -> None:
    """Raise `BadInput` if it is known that not all runs were evaluated on the same images, with the same kind of p(x).
    The images of a file of log weights may be unknown, but not the kind of its p(x)."""
    hashed = [run for run in runs if run.images_sha256 is not None]
    for alike, about in (([run for run in runs if run.of_run], _named), (hashed, _hashed), (runs, _kind)):
        for run in alike[1:]:
            first = alike[0]
            for name, (ours, theirs) in about(first, run).items():
                if ours != theirs:
                    raise BadInput(
                        f"{first.path} and {run.path} cannot be compared: {name.removeprefix('data.')} is {ours} in "
                        f"the first and {theirs} in the second"
                    )


def _named(first: Evaluated, run: Evaluated) -> dict[str, tuple[Any, Any]]:
    """What two runs record of their images, by name."""
    pairs = dict(zip(Images._fields, zip(first.images, run.images, strict=True), strict=True))
    for name in sorted(first.config.keys() | run.config.keys()):
        # The test images do not depend on the number of training images, nor on how many of them have labels.
        of_training = name in ("data.train_size", "data.labelled") and first.images.split == "test"
        if name.startswith("data.") and not of_training:
            pairs[name] = (first.config.get(name), run.config.get(name))
    if first.labels is not None and run.labels is not None and not np.array_equal(first.labels, run.labels):
        pairs["labels"] = ("one set", "another")
    return pairs


def _hashed(first: Evaluated, run: Evaluated) -> dict[str, tuple[Any, Any]]:
    """The images of two runs or files by their SHA-256."""
    hashes = str(first.images_sha256)[:8], str(run.images_sha256)[:8]
    return {"the images' SHA-256": hashes, "num_images": (first.images.num_images, run.images.num_images)}


def _kind(first: Evaluated, run: Evaluated) -> dict[str, tuple[Any, ...]]:
    """The kind of p(x) of two runs or files."""
    kinds = first.images.observation, run.images.observation
    for each, kind, other in ((first, *kinds), (run, *kinds[::-1])):
        if kind == "unstated" != other:
            raise BadInput(
                f"{each.path}: does not say of what kind its p(x) is, and the others are of {other}; save it with "
                "observation='probability', 'density' or 'cross-entropy'"
            )
    # A file of log weights does not know which pixels are missing.
    quantities = (each.images.quantity.replace("x_obs", "x") for each in (first, run))
    found: dict[str, tuple[Any, ...]] = {"observation": kinds, "quantity": tuple(quantities)}
    if None in (first.images_sha256, run.images_sha256):  # else images that miss the same pixels are known to be such
        found["missing"] = first.images.missing, run.images.missing
    return found


def images_of(runs: Sequence[Evaluated]) -> Images:
    """The images of a comparison: those of its first run, because a file of log weights does not name its images."""
    return next((run for run in runs if run.of_run), runs[0]).images


def same_images(first: Evaluated, second: Evaluated) -> bool:
    """True if two runs, which `check_same_images` has passed, are known to be of the same images. Then their values are
    paired image by image."""
    return (first.of_run and second.of_run) or (None not in (first.images_sha256, second.images_sha256))


def group(runs: Sequence[Evaluated]) -> list[list[Evaluated]]:
    """Groups of runs that differ in the seed alone. Raises `BadInput` for two runs with the same configuration and
    seed."""
    groups: dict[str, dict[int, Evaluated]] = {}
    for run in runs:
        chosen = {name: value for name, value in run.config.items() if value is not None}
        seeds = groups.setdefault(json.dumps(chosen, sort_keys=True), {})
        other = seeds.setdefault(run.seed, run)
        if other is not run:
            what, how = ("configuration", "") if run.of_run else ("name", ", or give it a name or a seed of its own")
            raise BadInput(
                f"{other.path} and {run.path}: have the same {what} and seed, {run.seed}; leave one out{how}"
            )
    return [list(seeds.values()) for seeds in groups.values()]
