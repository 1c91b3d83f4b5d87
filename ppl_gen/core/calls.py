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
    found = {}
    for kind in _CLASSES:
        origin, _, name = str(_class(config, kind)).partition(":")
        if origin in OBJECTS:
            found[kind] = f"{name}(...)" if origin == "instance" else name
    return found | ({"data": _IMAGES} if config.get("data", {}).get("data") == "array" else {})


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
    for part in ("guide_options", "prior_options", "objective_options"):
        if different := changed(config.get(part, {}), defaults.get(part, {})):
            chosen[part] = _literal(different)
    single = {key: config[key] for key in ("num_samples", "init_from", "fixed_model") if key in config}
    chosen |= {name: _literal(value) for name, value in changed(single, defaults).items()}
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
    return f"run.{method}({_arguments([], {name: _literal(value) for name, value in options.items()})})"


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
