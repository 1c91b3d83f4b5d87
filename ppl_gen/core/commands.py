"""Command lines that reproduce a result, from the options that were recorded with it."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def command(module: str, *arguments: object) -> list[str]:
    """`python -m ppl_gen.MODULE ARGUMENTS`, a list of words::

    >>> command("evaluate", "runs/vae", "--seed", 3)
    ['python', '-m', 'ppl_gen.evaluate', 'runs/vae', '--seed', '3']
    """
    return ["python", "-m", f"ppl_gen.{module}", *map(str, arguments)]


def line(words: Iterable[object]) -> str:
    """Words as a line for a shell. A word with a blank or another character of the shell's is quoted::

    >>> line(["fit", "--resume", "my runs/a"])
    "fit --resume 'my runs/a'"
    """
    return shlex.join(map(str, words))


def words(options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, prefix: str = "") -> list[str]:
    """Options as the words of a command line. An option that is None or equal to its default is left out::

    >>> words({"split": "test", "annealed": {"num_chains": 3}, "gaps": True, "proposals": ["a", "b"], "seed": None})
    ['--split', 'test', '--annealed.num-chains', '3', '--gaps', '--proposals', 'a', 'b']

    :param options: values by name, as a JSON file has them; a group of options is a dictionary of its own. That of
        `estimator_options` is written as `--estimator.NAME`.
    :param defaults: the default of each option, in the same form. An option without a default is always written.
    :param prefix: names of the groups around these options, each followed by a dot.
    """
    written: list[str] = []
    for key, value in options.items():
        name, default = key.replace("_", "-"), defaults.get(key) if isinstance(defaults, Mapping) else None
        arguments = _arguments(value)
        if isinstance(value, Mapping):
            written += words(value, default, f"{prefix}{name.removesuffix('-options')}.")
        elif value is None or arguments == _arguments(default):
            continue
        elif isinstance(value, bool):
            written.append(f"--{prefix}{name}" if value else f"--{prefix}no-{name}")
        else:
            written += [f"--{prefix}{name}", *arguments]
    return written


def _arguments(value: Any) -> list[str]:
    """The words of a value on the command line; none for None."""
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    return [] if value is None else [str(value)]


def is_function(data: str) -> bool:
    """True for a data set that is named as `file.py:function`: code of the user."""
    return data.rpartition(":")[0].endswith(".py")


def external_class_options(config: Mapping[str, Any]) -> list[str]:
    """The options that name a run's classes and its function of images from outside the package, as a reader of the run
    must name them again.

    :param config: the content of the run's `config.json`.
    """
    kinds = [kind for kind in ("model", "guide", "prior") if ":" in str(config.get(kind))]
    data = config.get("data", {}).get("data", "")
    words = [word for kind in kinds for word in (f"--{kind}", config[kind])]
    return [*words, *(["--data", data] if is_function(data) else [])]


def resuming_options(config: Mapping[str, Any]) -> list[str]:
    """The options that name a run's code from outside the package, as `fit --resume` needs them: those of a reader, the
    objective and the estimators.

    :param config: the content of the run's `config.json`.
    """
    objective = str(config.get("training", {}).get("objective"))
    estimators = [name for name in config.get("estimator", ()) if ":" in name]
    words = ["--objective", objective] if ":" in objective else []
    return [*external_class_options(config), *words, *(["--estimator", *estimators] if estimators else [])]


def fit_command(config: Mapping[str, Any]) -> list[str]:
    """The command line that made a run, with the data set that `auto` stood for; empty for a run made from Python.

    :param config: the content of the run's `config.json`.
    """
    program, *arguments = config.get("command") or [""]
    if Path(program).name != "fit.py":
        return []
    data = str(config["data"]["data"])
    if f"--data {data}" not in " ".join(arguments).replace("=", " "):
        arguments += ["--data", data]
    return command("fit", *arguments)


def sweep_command(config: Mapping[str, Any]) -> list[str]:
    """The command line of the sweep that made a run; empty for a run that was made in another way."""
    program, *arguments = config.get("command") or [""]
    return command("sweep", *arguments) if Path(program).name == "sweep.py" else []
