"""Calls of Python that reproduce a run, for runs that were made from Python.

A run directory holds no code and no images of a session: classes, instances and tensors stand in a call by their names,
and the user gives them again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppl_gen.core.components import OBJECTS, is_external

_CLASSES = ("model", "guide", "prior", "objective")
_IMAGES = "images"  # the name of images that only a session has
_WIDTH = 80


def of_session(config: Mapping[str, Any]) -> dict[str, str]:
    """The arguments that only a Python session has, as expressions: classes, instances and images::

    >>> of_session({"model": "vae", "guide": "class:Mine", "data": {"data": "array"}})
    {'guide': 'Mine', 'data': 'images'}

    :param config: the content of the run's `config.json`.
    """
    recorded = {kind: str(_class(config, kind)) for kind in _CLASSES}
    found = {kind: _named(name) for kind, name in recorded.items() if _is_object(name)}
    if any(map(_is_object, config.get("estimator", ()))):
        found["estimator"] = _several(config["estimator"])
    return found | ({"data": _IMAGES} if config.get("data", {}).get("data") == "array" else {})


def to_define(config: Mapping[str, Any]) -> list[str]:
    """The expressions of `of_session`, one for each class, instance and function."""
    estimators = [_named(name) for name in config.get("estimator", ()) if _is_object(name)]
    return [text for kind, text in of_session(config).items() if kind != "estimator"] + estimators


def _is_object(recorded: str) -> bool:
    return recorded.partition(":")[0] in OBJECTS


def _named(recorded: str) -> str:
    """A recorded class, instance, function or name as an expression."""
    origin, _, name = recorded.partition(":")
    return name + "(...)" * (origin == "instance") if origin in OBJECTS else _literal(recorded)


def _several(recorded: str | Sequence[str]) -> str:
    """Recorded estimators as an expression."""
    return _named(recorded) if isinstance(recorded, str) else f"[{', '.join(map(_named, recorded))}]"


def fit_call(config: Mapping[str, Any], defaults: Mapping[str, Any], path: Path) -> str:
    """`run = ppl_gen.Run.fit(…)` with the options that differ from their defaults.

    :param config: the content of the run's `config.json`.
    :param defaults: the same with every option at its default. One without a default is written unless it is None.
    :param path: the run directory.
    """
    given = of_session(config)
    arguments = {kind: given.get(kind, _literal(_class(config, kind))) for kind in _CLASSES}
    chosen = {
        kind: text
        for kind, text in arguments.items()
        if kind in given or _class(config, kind) not in (None, _class(defaults, kind))
    }
    chosen.pop("model", None)
    chosen["data"] = given.get("data", _literal(config["data"]["data"]))
    for part in ("model_options", "data", "training"):
        different = changed(config.get(part, {}), defaults.get(part, {}))
        chosen |= {name: _literal(value) for name, value in different.items() if name not in ("data", "objective")}
    for part in ("guide_options", "prior_options", "objective_options", "estimator_options"):
        if different := changed(config.get(part, {}), defaults.get(part, {})):
            chosen[part] = _literal(different)
    single = {key: config[key] for key in ("num_samples", "init_from", "fixed_model", "estimator") if key in config}
    different = changed(single, defaults)
    chosen |= {name: _several(value) if name == "estimator" else _literal(value) for name, value in different.items()}
    return f"run = ppl_gen.Run.fit({_arguments([arguments['model']], chosen | {'out': _literal(str(path))})})"


def open_call(config: Mapping[str, Any], path: Path, *, checkpoint: str = "last") -> str:
    """`run = ppl_gen.Run.open(…)`, with the classes and images that the run directory does not hold."""
    named = {kind: str(_class(config, kind)) for kind in _CLASSES[:3]}
    again = {kind: _literal(name) for kind, name in named.items() if is_external(name)} | of_session(config)
    again |= {} if checkpoint == "last" else {"checkpoint": _literal(checkpoint)}
    return f"run = ppl_gen.Run.open({_arguments([_literal(str(path))], again)})"


def method_call(method: str, options: Mapping[str, Any]) -> str:
    """`run.METHOD(…)` with options::

    >>> method_call("evaluate", {"num_samples": 50, "annealed": {"num_chains": 3}})
    'run.evaluate(num_samples=50, annealed={"num_chains": 3})'
    """
    written = {name: _several(value) if name == "estimator" else _literal(value) for name, value in options.items()}
    return f"run.{method}({_arguments([], written)})"


def arguments_of(words: Sequence[str]) -> dict[str, Any]:
    """Options of a command line, each with one value, as the arguments of a method::

    >>> arguments_of(["--num-samples", "auto", "--settling.most-samples", "65536"])
    {'num_samples': 'auto', 'settling': {'most_samples': 65536}}
    """
    found: dict[str, Any] = {}
    for option, text in zip(words[::2], words[1::2], strict=True):
        *groups, name = option.removeprefix("--").replace("-", "_").split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = int(text) if text.isdigit() else text
    return found


def changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults, and those without a default that are not None. Tuples are equal to
    lists::

    >>> changed({"a": [1], "b": 2, "c": {"d": 3, "e": 4}}, {"a": (1,), "b": 1, "c": {"d": 3, "e": 5}})
    {'b': 2, 'c': {'e': 4}}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            found |= {name: inner} if (inner := changed(value, default)) else {}
        elif _as_list(value) != _as_list(default):
            found[name] = value
    return found


def _class(config: Mapping[str, Any], kind: str) -> Any:
    """The recorded name of the model, the guide, the prior or the objective."""
    return config.get("training", {}).get("objective") if kind == "objective" else config.get(kind)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _literal(value: Any) -> str:
    """A value as Python writes it, text in double quotes."""
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in text and "\\'" not in text else text
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _arguments(first: list[str], named: Mapping[str, str]) -> str:
    """Arguments of a call, one a line if they are long."""
    words = [*first, *(f"{name}={value}" for name, value in named.items())]
    line = ", ".join(words)
    return line if len(line) <= _WIDTH else "\n    " + ",\n    ".join(words) + ",\n"
