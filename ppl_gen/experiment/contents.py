"""What the JSON files of a run hold, as types; and reading them.

Content is checked once, when it is read: its readers get content of its type, and check nothing. Keys without a type
here may hold anything. Importing this imports no torch, so that commands that only read runs start fast.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, TypedDict, get_type_hints

from ppl_gen.core.convert import convert, convert_all
from ppl_gen.core.errors import BadInput
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.options import TrainingOptions

_DEEPEST = 50
"""Levels of content in content. The files of a run have about six; a class of the user's may have options of more."""
_INFINITE = ("Infinity", "-Infinity")
"""Strings that stand for infinite numbers, which JSON does not have. `float` reads them."""

Number = float | None
"""A number; None where it was NaN."""

# config.json and metrics.jsonl ---------------------------------------------------------------------------------


class Config(TypedDict):
    """`config.json`. Ranges of the options are checked where a configuration is made of it."""

    format: int
    model: str
    model_options: NotRequired[Mapping[str, Any]]
    model_sha256: NotRequired[str | None]
    guide: str
    guide_options: NotRequired[Mapping[str, Any]]
    guide_sha256: NotRequired[str | None]
    prior: NotRequired[str | None]
    prior_options: NotRequired[Mapping[str, Any]]
    prior_sha256: NotRequired[str | None]
    data: Mapping[str, Any]
    data_name: str
    data_notice: NotRequired[str]
    data_sha256: NotRequired[str | None]
    missing_sha256: NotRequired[str | None]
    training: Mapping[str, Any]
    num_samples: int
    init_from: NotRequired[str | None]
    init_from_steps: NotRequired[int | None]
    fixed_model: NotRequired[bool]
    objective_options: NotRequired[Mapping[str, Any]]
    objective_sha256: NotRequired[str | None]
    estimator: NotRequired[list[str]]
    estimator_options: NotRequired[Mapping[str, Any]]
    estimator_sha256: NotRequired[list[str | None]]
    versions: NotRequired[Mapping[str, str]]
    command: NotRequired[list[str]]


class Metrics(TypedDict):
    """A line of `metrics.jsonl`."""

    epoch: int
    step: int
    seconds: float
    learning_rate: float
    loss: NotRequired[float]
    stopped: NotRequired[int]
    train: Mapping[str, float | bool]
    validation: NotRequired[Mapping[str, float | bool]]


class Best(TypedDict):
    """The epoch with the best validation ELBO."""

    epoch: int
    elbo: float


class Progress(TypedDict):
    """The part of a checkpoint that is no tensor."""

    epoch: int
    step: int
    loss_sum: NotRequired[float]
    seconds: NotRequired[float]
    best: NotRequired[Best | None]
    stopped: NotRequired[int]
    trained: NotRequired[list[str]]
    first_elbo: NotRequired[float | None]
    largest: NotRequired[float | None]


def _check_progress(content: Mapping[str, Any]) -> None:
    for name in ("epoch", "step"):
        _require(content[name] >= 0, f"{name} {content[name]}: must be at least 0")


# evaluation.json -----------------------------------------------------------------------------------------------


class Mean(TypedDict):
    """A mean over images."""

    mean: Number
    se: Number
    mc_se: NotRequired[Number]
    bias: NotRequired[Number]


class Least(TypedDict):
    """Effective sample sizes."""

    median: Number
    min: Number


class LogPx(Mean):
    """log p(x) by an estimator."""

    estimator: str
    at_least: bool
    num_samples: NotRequired[int | None]
    ess: NotRequired[Least]
    elbo: NotRequired[Number]


class _Guides(TypedDict):
    guides: list[str]
    temperature: float
    prior_share: float


class _Sampled(TypedDict):
    mc_se: Number
    bias: Number
    proposal: NotRequired[_Guides]


class _Importance(_Sampled):
    num_samples: int


class _Annealed(_Sampled):
    num_chains: int
    num_temperatures: int
    start: str


class _Samples(TypedDict):
    median: int
    largest: int
    total: int


class _Outcome(TypedDict):
    fraction_settled: float
    fraction_annealed: float
    fraction_left: float
    samples: _Samples
    seconds: float


class _Settled(_Sampled):
    settled: _Outcome
    tolerance: float


class _Quadrature(TypedDict):
    points_per_image: int
    largest_change: Number


class _Gap(TypedDict):
    mean: Number
    se: Number
    at_least: bool
    of: str
    fraction_of_others: NotRequired[float]


class _Wide(TypedDict):
    above: float
    num_images: int
    fraction_at_most: float
    confidence: float


class _Sandwich(TypedDict):
    num_images: int
    lower: Mean
    upper: Mean
    width: Mean
    exact: NotRequired[Mean]
    wide: _Wide


class _ImportanceSandwich(_Sandwich):
    num_samples: int


class _Apart(Mean):
    fraction_beyond_errors: float


class _SecondOpinion(_Apart):
    num_samples: int
    together_beyond_errors: bool
    nats_beyond_errors: NotRequired[Number]
    visible_mass: float
    fraction_blind: float


class _Khat(TypedDict):
    median: NotRequired[Number]
    threshold: float
    fraction_above_threshold: float
    fraction_unknown: float
    fraction_fine: float


class _Components(TypedDict):
    in_use: int
    of: int


class Result(TypedDict):
    """What every result of a run records."""

    model: str
    guide: str
    prior: NotRequired[str | None]
    data: str
    split: str
    binarization: str
    missing: NotRequired[float]
    checkpoint: str
    training_step: NotRequired[int | None]
    seconds: float
    options: Mapping[str, Any]


class _BitsPerDim(TypedDict):
    dim: int
    elbo: Mean
    log_px: Mean


class Evaluation(Result):
    """`evaluation.json`. Further estimates of log p(x) have keys that begin with `log_px_`."""

    num_images: int
    blocks: NotRequired[list[str]]
    observation: str
    quantity: NotRequired[str]
    left_out: NotRequired[list[str]]
    seed: int
    training_seed: int
    images_sha256: NotRequired[str]
    num_parameters: int
    elbo: Mean
    log_px: LogPx
    bits_per_dim: NotRequired[_BitsPerDim]
    kl_analytic: NotRequired[Mean]
    second_opinion: NotRequired[_SecondOpinion]
    sandwich: NotRequired[_Sandwich]
    sandwich_importance: NotRequired[_ImportanceSandwich]
    disagreement: NotRequired[_Apart]
    below: NotRequired[Mapping[str, list[str]]]
    too_high: NotRequired[list[str]]
    khat: NotRequired[_Khat]
    active_units: NotRequired[int]
    narrower: NotRequired[bool]
    unopposed: NotRequired[bool]
    heavy_tail: NotRequired[bool]
    missed_values: NotRequired[float]
    components: NotRequired[_Components]
    proposal: NotRequired[str]
    no_quadrature: NotRequired[str]
    next_options: NotRequired[str]


class _Guided(TypedDict):
    """What an evaluation has where the guide's samples are evaluated."""

    reconstruction: Mean
    kl: Mean
    iwae: Mapping[str, Mean]
    iwae_jackknife: Mapping[str, Mean]
    gap: _Gap
    ess: Least


_NEXT = re.compile(r"--estimator (quadrature|annealed)|--num-samples auto( --settling\.most-samples \d+)?")


def _check_evaluation(content: Mapping[str, Any]) -> None:
    """Check what depends on the estimators."""
    for key, entry in content.items():
        if key.startswith("log_px"):
            convert(key, convert(key, entry, LogPx), _kind(entry))
    alone = content["log_px"]["estimator"] == "importance" and "proposal" not in content["log_px"]
    if alone or not {"log_px_importance", "gap", "iwae"}.isdisjoint(content):
        convert("", content, _Guided)
        bounds = content["iwae"]
        _require(all(re.fullmatch(r"[1-9]\d{0,8}", k) for k in bounds), "iwae: a key is no number of samples")
        corrected = content["iwae_jackknife"]
        _require(bounds.keys() - {"1"} <= corrected.keys(), "iwae_jackknife: a bound is missing")
    # They are printed as a part of a command.
    _require(_NEXT.fullmatch(content.get("next_options", "--num-samples auto")), "next_options: no such options")


def _kind(entry: Mapping[str, Any]) -> Any:
    """The type of an estimate of log p(x)."""
    for key, kind in (("num_chains", _Annealed), ("settled", _Settled), ("points_per_image", _Quadrature)):
        if key in entry:
            return kind
    if entry["estimator"] in ("exact", "quadrature"):
        return LogPx
    return _Importance if "proposal" in entry or entry["estimator"] in ("importance", "prior") else _Sampled


# Further results -----------------------------------------------------------------------------------------------


class _GapParts(TypedDict):
    num_images: int
    log_px: Mean
    elbo: Mean
    best_elbo: Mean
    approximation: Mean
    amortization: Mean
    estimator: NotRequired[str]
    at_least: bool
    fraction_settled: float
    fraction_missed: NotRequired[float]
    fraction_blind: NotRequired[float]


class Gaps(Result):
    """`gaps.json`."""

    observation: NotRequired[str]
    num_samples: int
    contexts: _GapParts
    contexts_of_these: NotRequired[_GapParts]
    copies: NotRequired[_GapParts]


class _Share(TypedDict):
    mean: float
    se: float


class _Outside(TypedDict):
    count: int
    of: int


class _Coverage(TypedDict):
    levels: list[float]
    central: list[_Share]
    joint: list[_Share]


_Quantity = TypedDict("_Quantity", {"name": str, "p": float, "is": str | None})


class _Verdict(TypedDict):
    verdict: str
    units_outside: _Outside
    coverage: _Coverage
    quantities: list[_Quantity]


class Calibration(Result):
    """`calibration.json`."""

    observation: NotRequired[str]
    num_images: int
    estimator: str
    num_samples: NotRequired[int | None]
    false_alarm_rate: float
    resolution: float
    before: _Verdict
    after: NotRequired[_Verdict]
    ess: NotRequired[Least]
    grey: NotRequired[bool]


def _check_calibration(content: Mapping[str, Any]) -> None:
    """Check what depends on the weights and the levels."""
    _require(content["estimator"] == "exact" or content.get("num_samples") is not None, "num_samples: is missing")
    _require("after" not in content or "ess" in content, "ess: is missing")
    for part in (content[key] for key in ("before", "after") if key in content):
        levels, *shares = (part["coverage"][key] for key in ("levels", "central", "joint"))
        _require(0.9 in levels and all(len(each) == len(levels) for each in shares), "coverage: a level is missing")


class _Nearest(TypedDict):
    samples: float
    test: float


class _Classes(TypedDict):
    share: list[float]
    covered: int
    of: int
    divergence: float


class _Classifier(TypedDict):
    accuracy: float


class _Scores(TypedDict):
    frechet: Mean
    kernel: Mean
    precision: Mean
    recall: Mean


class Quality(Result, _Scores):
    """`quality.json`."""

    observation: NotRequired[str]
    num_images: int
    images: Literal["draws", "means"]
    classes: _Classes
    nearest: _Nearest
    classifier: _Classifier
    real_images: _Scores


class _Matrix(TypedDict):
    codes: str
    scales: str


class _Layer(_Matrix):
    bias: str
    activation: str
    slope: float


class _Rounding(TypedDict):
    images: int
    largest: float
    mean: float


class Explorer(TypedDict):
    """`explorer.json`."""

    height: int
    width: int
    order: list[int]
    low: list[float]
    high: list[float]
    layers: list[_Layer]
    draws: _Matrix
    means: NotRequired[_Matrix]
    labels: list[float] | None
    rounding: _Rounding


def _check_explorer(content: Mapping[str, Any]) -> None:
    """Check that the lists have an entry for each unit."""
    units = len(content["order"])
    _require(sorted(content["order"]) == list(range(units)) != [], "order: does not list the units")
    _require(len(content["low"]) == len(content["high"]) == units, "low: has no entry for each unit")


def _check_config(content: Mapping[str, Any]) -> None:
    """Check the types of options that have one. A later version may have more of them."""
    for part, cls in (("data", DataOptions), ("training", TrainingOptions)):
        convert_all(content[part], get_type_hints(cls), f"{part}.")
    _require("data" in content["data"] and "binarization" in content["data"], "data: an option is missing")
    _require("objective" in content["training"], "training: the objective is missing")


# Reading -------------------------------------------------------------------------------------------------------

_TYPES: dict[str, tuple[Any, Callable[[Mapping[str, Any]], None] | None]] = {
    "config.json": (Config, _check_config),
    "metrics.jsonl": (Metrics, None),
    "checkpoint.safetensors": (Progress, _check_progress),
    "evaluation.json": (Evaluation, _check_evaluation),
    "gaps.json": (Gaps, None),
    "calibration.json": (Calibration, _check_calibration),
    "quality.json": (Quality, None),
    "explorer.json": (Explorer, _check_explorer),
}
"""The type of the content of each file, and a function that checks what no type can say."""


def read(text: str | bytes, file: str) -> dict[str, Any]:
    """The content of a JSON file, or of a line of one, which is of the file's type.

    :param file: name of the file, such as `evaluation.json`. Of a file without a type, any JSON object is returned.
    :raises ValueError: for any other content. The message has one line, and names the key.
    """
    try:
        content = _python_content(json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite))
    except RecursionError:
        raise ValueError("content is nested too deep") from None
    _require(isinstance(content, dict), "not an object")
    check(content, file)
    found: dict[str, Any] = content
    return found


def check(content: Mapping[str, Any], file: str) -> None:
    """Raise `ValueError` for content that is not of the file's type."""
    hint, check_more = _TYPES.get(file, (Mapping[str, Any], None))
    try:
        convert("", content, hint)
        if check_more is not None:
            check_more(content)
    except BadInput as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None  # it may quote text of several lines


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _whole(text: str) -> int:
    """An integer of 64 bits: NumPy and HDF5 have no longer ones."""
    _require(len(text) <= 20 and -(2**63) <= int(text) < 2**63, f"{text[:20]}… has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    _require(math.isfinite(value), f"{text[:20]} is no finite number")
    return value


def _python_content(content: Any, depth: int = 0) -> Any:
    """JSON as Python has it: the strings that stand for infinite numbers become these. null stays None."""
    _require(depth <= _DEEPEST, "content is nested too deep")
    if isinstance(content, dict):
        return {key: _python_content(value, depth + 1) for key, value in content.items()}
    if isinstance(content, list):
        return [_python_content(value, depth + 1) for value in content]
    if isinstance(content, str):
        _require("\0" not in content, "text has a null character")
        return float(content) if content in _INFINITE else content
    return content
