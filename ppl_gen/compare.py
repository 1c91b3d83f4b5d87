"""`python -m ppl_gen.compare RUN RUN …`: which run is better, by how many nats, and is that more than chance?

Only the directories are read, no model is built. Runs that differ in the seed alone are one row. Differences are
paired, image by image: all runs saw the same images, and what makes an image hard for all of them cancels. A method is
repeated by its seeds, so an interval for the difference between two methods needs two seeds of each.
"""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from ppl_gen import cli, report
from ppl_gen.errors import BadInput, require, warnings_of
from ppl_gen.inference.differences import difference, variance_over_images, variance_over_seeds
from ppl_gen.runs import RunDirectory, to_json, write_file

PROGRAM = "python -m ppl_gen.compare"
_IMAGES = ("data", "split", "num_images", "binarization", "observation")
_NOT_THE_RUN = {
    # Where it was made. And the samples after training: what counts is how many the evaluation took.
    *("format", "command", "versions", "git_commit", "out", "num_threads", "data_notice", "num_samples"),
    *("training.seed", "training.device", "training.checkpoint_every", "training.max_hours", "training.capture"),
}
_IN_COLUMNS = {
    *("model", "guide", "prior", "data_name", "data.data", "evaluation.estimator", "evaluation.num_samples"),
    *("training.objective", "training.num_particles", "training.kl_warmup", "training.epochs"),
}
_FOUND = {"mean", "se", "mc_se", "bias", "at_least", "accepted", "ess", "fraction_above_threshold"}
"""What of an entry of log p(x) is no setting."""
_LIFTED = {"model", "guide", "prior", "objective", "seeds", "S", "params", "epochs"}
"""Columns that are said once, above the table, where all rows agree."""
_WORDS = {"model", "guide", "prior", "objective", "options"}
"""Columns that are no numbers."""


@dataclass(frozen=True)
class CompareOptions:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")] = ()
    """Run directories, each with its evaluation."""
    format: Literal["text", "markdown", "csv", "json"] = "text"
    """Of the table on standard output."""
    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Draw each row's ELBO and log p(x) into this .png too."""
    report: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write all of it into this .html too, with the figure: one page that needs no other file."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise BadInput(f"name at least one run: {PROGRAM} RUN RUN …")
        for option, suffix in (("figure", ".png"), ("report", ".html")):
            file = getattr(self, option)
            if file is not None:
                require(file.suffix == suffix, option, file, f"must end in {suffix}")
                require(file.parent.is_dir(), option, file, "is in no directory that exists")
                require(not file.is_dir(), option, file, "is a directory")


class Evaluated(NamedTuple):
    """A run and its evaluation, as its directory has them."""

    path: Path
    config: dict[str, Any]
    """What makes the run but for its seed, by dotted name; None is an option that was left out on purpose."""
    summary: dict[str, Any]
    elbo: np.ndarray
    """In nats [images]; so is `log_px`."""
    log_px: np.ndarray
    iwae: dict[int, np.ndarray]
    """The bound L_k [images] of each k."""
    labels: np.ndarray | None
    last: dict[str, Any]
    """The last line of `metrics.jsonl`; empty if there is none."""
    gaps: dict[str, Any]
    """The means of `gaps.json`, which `ppl_gen.evaluate --gaps` writes; empty if there is none of the same split and
    weights."""

    @property
    def seed(self) -> int:
        return self.summary["training_seed"]


# Reading -------------------------------------------------------------------------------------------------------


def read(path: Path) -> Evaluated:
    """A run's configuration and evaluation.

    :raises BadInput: for a directory that is no run, has no evaluation, or one that is damaged or not whole.
    """
    run = RunDirectory.open(path)
    again = f"evaluate it: {' '.join(['python -m ppl_gen.evaluate', str(path), *report.named_again(run.config)])}"
    summary = run.read_json("evaluation.json")
    file = path / "evaluation.nc"
    if summary is not None and run.stale(summary):
        raise BadInput(f"{path}: was trained on since its evaluation; {again}")
    if summary is None or not file.is_file():
        raise BadInput(f"{path}: has no {'evaluation.json' if summary is None else file.name}; {again}")
    try:
        dataset = run.per_image()
        elbo, log_px = dataset["elbo"].values, dataset["log_px"].values
        bounds = dataset.get("iwae", None)
        iwae = {} if bounds is None else {int(k): bounds.sel(k=k).values for k in bounds["k"].values}
        labels = dataset["label"].values if "label" in dataset.coords else None
    except Exception as error:  # h5netcdf, xarray and h5py have no one error for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{file}: damaged ({reason}); {again}") from None
    try:
        where = _strangeness(summary, dict(dataset.attrs), {"elbo": elbo, "log_px": log_px})
        chosen = {"evaluation": _estimator(summary) | {"checkpoint": summary["checkpoint"]}}
        for key in ("model", "guide", "observation", "num_parameters", "training_seed"):
            summary[key]  # that it is there
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path / 'evaluation.json'}: damaged ({error}); {again}") from None
    if where:
        raise BadInput(f"{file}: does not belong to the evaluation.json beside it, which has another {where}; {again}")
    config = flat(run.config | chosen)
    config = {name: value for name, value in config.items() if not {name, name.partition(".")[0]} & _NOT_THE_RUN}
    split = run.read_json("gaps.json") or {}
    same = all(split.get(key) == summary[key] for key in ("split", "checkpoint")) and not run.stale(split)
    gaps = split.get("contexts", {}) if same else {}
    return Evaluated(path, config, summary, elbo, log_px, iwae, labels, (run.metrics() or [{}])[-1], gaps)


def _strangeness(summary: dict[str, Any], attributes: dict[str, Any], values: dict[str, np.ndarray]) -> str:
    """In what the values per image are not those of a summary; empty if they are."""
    importance = summary.get("log_px_importance", summary["log_px"])
    said = {key: summary[key] for key in (*_IMAGES, "seed", "training_seed", "checkpoint")}
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


def _estimator(summary: dict[str, Any]) -> dict[str, Any]:
    """How log p(x) was estimated: `estimator`, and its `num_samples` or options of annealing. Of other runs' guides
    among the proposals, how many there were: each seed may have its own."""
    found = {key: value for key, value in summary["log_px"].items() if key not in _FOUND}
    if "proposal" in found:
        found["proposal"] = found["proposal"] | {"guides": len(found["proposal"].get("guides", ()))}
    return found


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    result: dict[str, Any] = {}
    for name, value in content.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


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
    """The defaults of today of a part's options, by dotted name. Imports torch, which is slow to start."""
    from ppl_gen import components
    from ppl_gen.experiment.config import Config
    from ppl_gen.inference.annealed import Annealing

    found: dict[str, Any] = {}
    if part in ("", "training", "data"):
        found = flat(asdict(Config()))
    elif part == "evaluation":
        found = flat(asdict(Annealing()), "evaluation.") if of == "annealed" else {}
    elif of is not None and not components.is_external(of):
        kind: Any = part.removesuffix("_options")
        options = components.options(kind, cls) if (cls := components.known(kind).get(of)) else []
        found = {f"{part}.{option.name}": option.default for option in options}
    return json.loads(json.dumps(found))  # tuples are lists in a file


def check_same_images(runs: Sequence[Evaluated]) -> None:
    """Raise `BadInput` unless all runs were evaluated on the same images, and as the same kind of thing."""
    first = runs[0]
    for run in runs[1:]:
        pairs = {key: (first.summary[key], run.summary[key]) for key in _IMAGES}
        for name in sorted(first.config.keys() | run.config.keys()):
            # The test images do not depend on how many images there were to train on.
            if name.startswith("data.") and (name != "data.train_size" or first.summary["split"] != "test"):
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


# Numbers -------------------------------------------------------------------------------------------------------


def estimate(values: np.ndarray) -> dict[str, float | None]:
    """Mean, its standard error over images, and that over seeds, of values [seeds, images]. What is not a number, or
    would need a second image or seed, is None."""
    over_images, over_seeds = variance_over_images(values.mean(0)), variance_over_seeds(values)
    return _finite(mean=values.mean(), se=np.sqrt(over_images), se_seeds=np.sqrt(over_seeds))


def _difference(values: np.ndarray, best: np.ndarray, num_rows: int) -> dict[str, Any]:
    """As `estimate`, of a paired difference; with its interval from `low` to `high`, and what it is a difference `of`:
    methods, or, where either row has one seed, weights."""
    found = difference(values, best, num_rows)
    ends = {"low": found.mean - found.half_width, "high": found.mean + found.half_width}
    entry = _finite(mean=found.mean, se=found.se, se_seeds=found.se_seeds, **ends)
    return entry | {"of": "methods" if min(len(values), len(best)) > 1 else "weights"}


def _finite(**values: Any) -> dict[str, float | None]:
    return {key: None if np.isnan(value) else float(value) for key, value in values.items()}


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Everything that the table says: `images`, `rows` with the best mean log p(x) first, and `notes`.

    :raises BadInput: for runs without a whole evaluation, or that are not of the same images.
    """
    runs = with_defaults([read(path) for path in paths])
    check_same_images(runs)
    groups = sorted(group(runs), key=_mean_log_px, reverse=True)
    shared = set.intersection(*([set(run.iwae) for run in runs if run.iwae] or [set()]))
    sampled = [run.summary.get("log_px_importance", run.summary["log_px"]) for run in runs]
    least = min((each.get("num_samples", math.inf) for each in sampled), default=math.inf)
    k = max((k for k in shared if 1 < k < least), default=None)
    with np.errstate(invalid="ignore"):  # log p(x) of an image may be -inf
        rows = [_row(each, groups, k) for each in groups]
    return {
        "images": {key: runs[0].summary[key] for key in _IMAGES},
        "rows": rows,
        "notes": [*_unfinished(runs), *_notes(rows, runs[0].summary["observation"])],
    }


def _unfinished(runs: list[Evaluated]) -> list[str]:
    counts = [(run.path, run.last.get("epoch"), run.config.get("training.epochs")) for run in runs]
    return [
        f"{path} stopped after {done} of {epochs} epochs"
        for path, done, epochs in counts
        if done is not None and epochs is not None and done < epochs
    ]


def _mean_log_px(runs: list[Evaluated]) -> float:
    mean = float(np.mean([run.log_px.mean() for run in runs]))
    return mean if math.isfinite(mean) else -math.inf


def _row(runs: list[Evaluated], groups: list[list[Evaluated]], k: int | None) -> dict[str, Any]:
    """A row of the comparison; a term that some of its runs do not have is None."""
    first, best = runs[0], groups[0]
    summaries, last = [run.summary for run in runs], [run.last for run in runs]
    nothing = dict.fromkeys(("mean", "se", "se_seeds"))
    bound = [run.iwae[k] for run in runs if k is not None and k in run.iwae]
    elbo, log_px = np.stack([run.elbo for run in runs]), np.stack([run.log_px for run in runs])
    differences = dict.fromkeys(
        ("log_px_difference", "elbo_difference"), nothing | dict.fromkeys(("low", "high", "of"))
    )
    if runs is not best:
        differences = {
            "log_px_difference": _difference(log_px, np.stack([run.log_px for run in best]), len(groups)),
            "elbo_difference": _difference(elbo, np.stack([run.elbo for run in best]), len(groups)),
        }
    how = {"num_samples": None} | _estimator(first.summary)
    return {
        "model": first.summary["model"],
        "guide": first.summary["guide"],
        "prior": first.config.get("prior"),
        "objective": _objective(first.config),
        "options": _options(first, [other[0] for other in groups]),
        "seeds": [run.seed for run in runs],
        "runs": [str(run.path) for run in runs],
        "elbo": estimate(elbo),
        "iwae": {"k": k} | (estimate(np.stack(bound)) if len(bound) == len(runs) else nothing),
        "log_px": estimate(log_px) | how | {"at_least": _any(summaries, "log_px")},
        **differences,
        "gap": {"mean": _mean(summaries, "gap", "mean"), "at_least": _any(summaries, "gap")},
        **{name: _gap(runs, name) for name in ("approximation", "amortization")},
        "khat_median": _mean(summaries, "khat", "median"),
        "ess_median": _mean(summaries, "ess", "median"),
        "active_units": _mean(summaries, "active_units"),
        "num_parameters": first.summary["num_parameters"],
        "seconds": _mean(last, "seconds"),
        "epochs": _mean(last, "epoch"),
    }


def _gap(runs: Sequence[Evaluated], name: str) -> dict[str, Any]:
    """One of the two gaps and of how many images, where every run has it."""
    gaps = [run.gaps for run in runs]
    bounded = name == "approximation" and any(each.get("at_least", False) for each in gaps)
    return {"mean": _mean(gaps, name, "mean"), "num_images": _mean(gaps, "num_images"), "at_least": bounded}


def _any(summaries: Sequence[dict[str, Any]], key: str) -> bool:
    """Whether an entry of any summary is at least what it says."""
    # Earlier evaluations said it of the gap alone.
    return any(
        summary.get(key, {}).get("at_least", summary.get("gap", {}).get("at_least", False)) for summary in summaries
    )


def _mean(contents: Sequence[dict[str, Any]], *keys: str) -> float | None:
    """Mean of what stands under nested keys; None unless all have it."""
    found: list[Any] = list(contents)
    for key in keys:
        found = [None if each is None else each.get(key) for each in found]
    return None if None in found else float(np.mean(found))


def _objective(config: dict[str, Any]) -> str:
    """The objective with what differs from the defaults of one particle and no warm-up: `vimco-50`."""
    particles, warmup = config.get("training.num_particles", 1), config.get("training.kl_warmup", 0)
    name = f"{config.get('training.objective', '')}{f'-{particles}' if particles != 1 else ''}"
    return name + (f" kl_warmup={warmup}" if warmup else "")


def _options(run: Evaluated, others: Sequence[Evaluated]) -> dict[str, Any]:
    """The options that tell a row from the others and are in no column: from those with the same model, whose defaults
    are the same; and those of a guide or prior, from rows that have it too. Data and checkpoint, from all."""
    found = {}
    for name in sorted(set().union(*(other.config for other in others)) - _IN_COLUMNS):
        part = next((part for part in ("guide", "prior") if name.startswith(f"{part}_")), "")
        alike = () if name.startswith(("data.", "evaluation.")) else ("model", part) if part else ("model",)
        peers = [o.config for o in others if all(o.config.get(key) == run.config.get(key) for key in alike)]
        if name in run.config and any(peer.get(name) != run.config[name] for peer in peers):
            section, _, short = name.rpartition(".")
            shown = f"{part}.{short}" if part and section else short
            value = run.config[name]
            found[shown] = value[:8] if name.endswith("_sha256") and value is not None else value
    return found


def _notes(rows: list[dict[str, Any]], observation: str) -> list[str]:
    """What a reader must know, a sentence each."""
    notes = ["± standard error over images, with the weights as they are"]
    k = rows[0]["iwae"]["k"]
    if any(len(row["seeds"]) > 1 for row in rows):
        notes.append(
            "a second ± is the standard error of a row's mean over its seeds: how far other seeds would move it; "
            "all numbers of a row are means over its seeds"
        )
    if len(rows) > 1:
        notes += _notes_on_differences(rows)
    doubted = {row["log_px"]["estimator"] for row in rows if row["log_px"]["at_least"]}
    if doubted - {"annealed"}:
        notes.append("≥ at least: k-hat is too high or unknown for some images, or another estimate of them is larger")
    if "annealed" in doubted:
        notes.append("≥ at least: the sandwich and importance sampling do not both vouch for annealing")
    if k is not None:
        notes.append(f"L_{k}: IWAE bound, the largest k that all runs with such bounds share below S")
    if len({row["log_px"]["num_samples"] for row in rows} - {None}) > 1:
        notes.append("importance-sampled log p(x) with different S are not comparable: the more samples, the higher")
    if len({row["log_px"]["estimator"] for row in rows}) > 1:
        notes.append("a sampled log p(x) is biased low, an exact one is not")
    split = {row["approximation"]["num_images"] for row in rows} - {None}
    if split:
        notes.append(
            f"approximation and amortization gap: of the first {' or '.join(f'{n:g}' for n in sorted(split))} images"
        )
    return notes + warnings_of(observation)


def _notes_on_differences(rows: list[dict[str, Any]]) -> list[str]:
    notes = [
        "Δ: the same images, paired: mean of this row minus the first, with the errors of that mean",
        "[low, high]: 95 % interval of that mean; if 0 is in it, the difference may be chance",
    ]
    if len(rows) > 2:
        notes.append(
            f"all intervals of a column hold together with 95 %, whichever of the {len(rows)} rows came out best"
        )
    of = {row["log_px_difference"]["of"] for row in rows[1:]}
    if "methods" in of:
        where = "where this row and the first have several seeds, " if "weights" in of else ""
        notes.append(f"{where}the interval is for two methods: for other seeds, and for other images of this kind")
    if "weights" in of:
        where = " in this row or in the first" if any(len(row["seeds"]) > 1 for row in rows) else ""
        notes.append(
            f"one seed{where}: a difference between two sets of weights, not between two methods; the interval is for "
            "other images of this kind"
        )
    return notes


# Writing -------------------------------------------------------------------------------------------------------


def columns(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Cells by heading, as a person reads them; blank where a term does not exist."""

    def numbers(key: str, form: str) -> list[str]:
        return ["" if row[key] is None else format(row[key], form) for row in rows]

    def estimates(key: str, sign: str = "", errors: bool = True) -> list[str]:
        small = [e for row in rows for e in (row[key].get("se"), row[key].get("se_seeds")) if e]
        digits = 3 if errors and small and min(small) < 0.0095 else 2
        cells = []
        for row in rows:
            entry = row[key]
            parts = [entry["mean"], *([entry["se"], entry["se_seeds"]] if errors else [])]
            shown = [format(v, f"{sign if i == 0 else ''}.{digits}f") for i, v in enumerate(parts) if v is not None]
            cell = ("≥ " if shown and entry.get("at_least") else "") + " ± ".join(shown)
            if entry.get("low") is not None:
                cell += f" [{entry['low']:+.{digits}f}, {entry['high']:+.{digits}f}]"
            cells.append(cell)
        return cells

    return {
        "model": [row["model"] for row in rows],
        "guide": [row["guide"] for row in rows],
        "prior": [row["prior"] or "-" for row in rows],
        "objective": [row["objective"] for row in rows],
        "options": [_written(row["options"]) for row in rows],
        "seeds": [str(len(row["seeds"])) for row in rows],
        "ELBO": estimates("elbo", errors=False),
        f"L_{rows[0]['iwae']['k']}": estimates("iwae", errors=False),
        "log p(x)": estimates("log_px"),
        "S": [str(row["log_px"]["num_samples"] or row["log_px"]["estimator"]) for row in rows],
        "Δ log p(x)": estimates("log_px_difference", "+"),
        "Δ ELBO": estimates("elbo_difference", "+"),
        "gap": estimates("gap", errors=False),
        "approx.": estimates("approximation", errors=False),
        "amort.": estimates("amortization", errors=False),
        "k-hat": numbers("khat_median", ".2f"),
        "ESS": numbers("ess_median", ".1f"),
        "units": numbers("active_units", ".3g"),
        "params": numbers("num_parameters", ",d"),
        "seconds": numbers("seconds", ".0f"),
        "epochs": numbers("epochs", "g"),
    }


def _written(options: dict[str, Any]) -> str:
    def value(of: Any) -> str:
        return "none" if of is None else ",".join(map(str, of)) if isinstance(of, list) else str(of)

    return " ".join(f"{name}={value(of)}" for name, of in options.items())


def layout(rows: list[dict[str, Any]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What all rows have in common, by heading; and the columns that are left, without those that are blank."""
    common, left = {}, {}
    for heading, cells in columns(rows).items():
        if set(cells) <= {"", "-"}:
            continue
        if len(rows) > 1 and heading in _LIFTED and len(set(cells)) == 1:
            common[heading] = cells[0]
        else:
            left[heading] = cells
    return common, left


def labels(rows: list[dict[str, Any]]) -> list[str]:
    """What tells each row from the others, for a figure."""
    _, left = layout(rows)
    telling = [left[heading] for heading in ("model", "guide", "prior", "objective", "options") if heading in left]
    names = [", ".join(cell for cell in cells if cell not in ("", "-")) for cells in zip(*telling, strict=True)]
    names = names or [row["model"] for row in rows]
    return [
        f"{name} ({len(row['seeds'])} seeds)" if len(row["seeds"]) > 1 else name
        for name, row in zip(names, rows, strict=True)
    ]


def table(compared: dict[str, Any], markdown: bool = False) -> str:
    """The comparison as a person reads it."""
    images, rows = compared["images"], compared["rows"]
    common, left = layout(rows)
    lines = [
        f"{images['num_images']} {images['split']} images of {images['data']}, binarization {images['binarization']}; "
        "nats per image, larger is better"
    ]
    if common:
        lines.append("all rows: " + ", ".join(f"{heading} {cell}" for heading, cell in common.items()))
    grid = [[heading, *cells] for heading, cells in left.items()]
    if markdown:
        grid = [[cell.replace("|", "\\|") for cell in cells] for cells in grid]
    widths = [max(map(len, cells)) for cells in grid]
    padded = [
        [cell.ljust(width) if cells[0] in _WORDS else cell.rjust(width) for cell in cells]
        for cells, width in zip(grid, widths, strict=True)
    ]
    by_row = list(zip(*padded, strict=True))
    notes = compared["notes"]
    if not markdown:
        return "\n".join([*lines, *("  ".join(row).rstrip() for row in by_row), *(f"  {note}" for note in notes)])
    rule = [
        ("-" * width) if cells[0] in _WORDS else "-" * (width - 1) + ":"
        for cells, width in zip(grid, widths, strict=True)
    ]
    table_lines = [f"| {' | '.join(row)} |" for row in (by_row[0], rule, *by_row[1:])]
    return "\n".join([*(f"{line}  " for line in lines), "", *table_lines, "", *(f"- {note}" for note in notes)])


def as_csv(compared: dict[str, Any]) -> str:
    """A line for each row, means and errors in columns of their own; blank where a term does not exist."""
    lines = []
    for row in compared["rows"]:
        joined = {"options": _written(row["options"])}
        joined |= {key: " ".join(map(str, row[key])) for key in ("seeds", "runs")}
        lines.append(flat(row | joined))
    out = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))  # of estimators that differ
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue().rstrip("\n")


def _page(compared: dict[str, Any], png: bytes, options: CompareOptions) -> str:
    """The comparison as a page, with its picture."""
    command = [*PROGRAM.split(), *map(str, options.runs), "--report", str(options.report)]
    warnings, rows = warnings_of(compared["images"]["observation"]), compared["rows"]
    return report.comparison(compared, labels(rows), *layout(rows), _WORDS, warnings, png, command)


def command(arguments: list[str]) -> None:
    options = cli.parse(
        CompareOptions,
        arguments,
        PROGRAM,
        "ELBO and log p(x) of several runs in one table, the best first, with paired differences.",
    )
    compared = compare(options.runs)
    if options.figure is not None or options.report is not None:
        from ppl_gen.figures.comparison import bounds_and_log_px

        png = io.BytesIO()
        bounds_and_log_px(compared, labels(compared["rows"])).savefig(png, dpi=120)
        if options.figure is not None:
            write_file(options.figure, lambda path: path.write_bytes(png.getvalue()))
        if options.report is not None:
            write_file(options.report, report.saving(_page(compared, png.getvalue(), options)))
    written = {
        "text": lambda: table(compared),
        "markdown": lambda: table(compared, markdown=True),
        "csv": lambda: as_csv(compared),
        "json": lambda: to_json(compared).rstrip("\n"),
    }
    print(written[options.format]())


if __name__ == "__main__":
    cli.main(command)
