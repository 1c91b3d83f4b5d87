"""The options of a run as its page shows them: the chosen ones first, the others folded away."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ppl_gen.core import components
from ppl_gen.core.calls import changed, of_session
from ppl_gen.core.commands import line
from ppl_gen.core.components import is_external
from ppl_gen.core.errors import BadInput
from ppl_gen.experiment.config import KINDS, ORIGIN, Config, Given, starting_config
from ppl_gen.experiment.run_directory import Json

_PARTS = (*(f"{kind}_options" for kind in (*KINDS, "objective", "estimator")), "data", "training")
_PLAIN = ("model_options", "data", "training")
"""Parts whose options have no prefix on the command line either."""
_RUN = ("num_samples", "estimator", "init_from", "fixed_model")


@dataclass(frozen=True)
class Options:
    """Every option of a run as text."""

    chosen: list[tuple[str, str, str]]
    """Name, value and default of the options that differ from their defaults. Model, guide and data come first."""
    at_default: dict[str, dict[str, str]]
    """The values of the other options by name, in groups."""
    origin: dict[str, dict[str, str]]
    """What else `config.json` records: versions, hashes, the command."""

    @property
    def count(self) -> int:
        """The number of options at their defaults."""
        return sum(map(len, self.at_default.values()))


def options(config: Json) -> Options:
    """The options in a `config.json`."""
    defaults = default_config(config)
    own = of_session(config)
    chosen: list[tuple[str, str, str]] = []
    for name in ("model", "guide", "prior", "data"):
        value = config["data"]["data"] if name == "data" else config.get(name)
        usual = defaults.get("guide") if name == "guide" else None
        if value is not None:
            chosen.append((name, f"{own[name]}, of a Python session" if name in own else written(value), usual or ""))
    at_default: dict[str, dict[str, str]] = {}
    for part, values in [*((part, config.get(part, {})) for part in _PARTS), ("run", _part(config, _RUN))]:
        known = defaults if part == "run" else defaults.get(part, {})
        different = changed(values, known)
        prefix = "" if part in (*_PLAIN, "run") else part.removesuffix("options").replace("_", ".")
        for name, value in values.items():
            if (part, name) == ("data", "data"):
                continue
            if name in different:
                chosen.append(
                    (prefix + name, written(value), written(known[name]) if name in known else "not recorded")
                )
            else:
                at_default.setdefault(part.replace("_", " "), {})[name] = written(value)
    hashes = {key: value for key, value in config.items() if key.endswith("_sha256") and value}
    recorded = _part(config, tuple(key for key in ORIGIN if key != "versions")) | hashes
    origin = {
        "record": {key: _exactly(value) for key, value in recorded.items()},
        "versions": {name: str(value) for name, value in config.get("versions", {}).items()},
    }
    return Options(chosen, at_default, {name: part for name, part in origin.items() if part})


def default_config(config: Json) -> Json:
    """The `config.json` of a run with the same classes and each option at its default. Classes of the user's own are
    not loaded, so that their options have no defaults here. Nor have options of a run that started from another
    one, which took them from there."""
    names = {kind: config.get(kind) for kind in KINDS}
    known = {kind: name for kind, name in names.items() if name and not is_external(name)}
    try:
        usual = asdict(starting_config(Given(model=known["model"])) if "model" in known else Config())
    except BadInput:  # a class of another version of the package
        usual = asdict(Config())
    for kind in KINDS:
        usual[f"{kind}_options"] = _class_defaults(kind, known.get(kind))
    if config.get("init_from"):
        usual |= {f"{kind}_options": {} for kind in KINDS} | {"data": {}, "guide": None}
        usual["training"].pop("objective")  # its default depends on whether the model is trained
    if "model" not in known:
        usual["guide"] = None
    return usual | {"model": None, "prior": None}


def _class_defaults(kind: components.Kind, name: str | None) -> Json:
    """The default of each option of a class of the package."""
    try:
        found = [] if name is None else components.options(kind, components.find(kind, name))
        return {each.name: each.default for each in found}
    except BadInput:
        return {}


def _part(config: Json, keys: tuple[str, ...]) -> Json:
    return {key: config[key] for key in keys if key in config}


def written(value: Any) -> str:
    """The value of an option as text: `400, 200`, `none`, `10,000`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e4 else f"{value:,.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {written(each)}" for name, each in value.items()) or "none"
    return "none" if value in (None, "") else str(value)


def _exactly(value: Any) -> str:
    """A recorded value as it is, a command as a shell takes it."""
    if isinstance(value, list | tuple):
        return line(value)
    return "none" if value in (None, "") else str(value)
