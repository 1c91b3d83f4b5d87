"""Finding model and guide classes by name, and their options by signature.

A class in `ppl_gen.models`, `ppl_gen.guides` or `ppl_gen.priors` is known by its name in kebab-case; any other is named
as `file.py:Class` or `package.module:Class`. There is no list to edit and no base class to inherit: a public class with
a method `model` (or `guide`, or `prior`) is one.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ppl_gen.errors import BadInput, describe, near_miss

Kind = Literal["model", "guide", "prior"]
_OF_DATA = ("data_shape", "data_dim", "data_mean", "data_examples")
SUPPLIED = {
    "model": _OF_DATA,
    "guide": (*_OF_DATA, "latent_dim", "latent_name", "model"),
    "prior": (*_OF_DATA, "latent_dim", "guide"),
}
"""What a constructor is given if it asks for it by name; all its other arguments are options."""


@dataclass(frozen=True)
class Option:
    """A keyword argument of a constructor, as an option of the command line."""

    name: str
    type: Any
    default: Any
    help: str


def kebab_case(name: str) -> str:
    """`BeliefNet` to `belief-net`, `VAE` to `vae`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def is_external(reference: str) -> bool:
    """Whether a reference names code outside the package."""
    return ":" in reference


def known(kind: Kind) -> dict[str, type]:
    """The package's own classes of a kind, by name."""
    package = importlib.import_module(f"ppl_gen.{kind}s")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            ours = cls.__module__ == module.__name__ and not name.startswith("_") and not inspect.isabstract(cls)
            if ours and callable(getattr(cls, kind, None)):
                found[kebab_case(name)] = cls
    return found


def find(kind: Kind, reference: str) -> type:
    """The class that a reference on the command line names. Raises `BadInput` where there is none."""
    if not is_external(reference):
        classes = known(kind)
        if reference not in classes:
            hint = near_miss(reference, classes)
            raise BadInput(f"unknown {kind} '{reference}'{hint} (your own: file.py:Class)")
        return classes[reference]
    where, _, name = reference.rpartition(":")
    module = _import(kind, where)
    cls = getattr(module, name, None)
    if not inspect.isclass(cls):
        classes_there = [n for n, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        raise BadInput(f"{kind} '{reference}': {where} has no class '{name}'{near_miss(name, classes_there)}")
    if not callable(getattr(cls, kind, None)):
        raise BadInput(f"{kind} '{reference}': the class has no method '{kind}(self, x, ...)'")
    return cls


def _import(kind: Kind, where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where)
        if not path.is_file():
            raise BadInput(f"{kind} '{where}': no such file")
        content = path.read_bytes()
        name = "_user_" + hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()[:12]
        if name in sys.modules:  # a model and a guide of one file are of one module
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # type annotations are looked up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{kind} '{where}': cannot be imported: {describe(error)}") from error


def class_name(reference: str) -> str:
    """The class in `file.py:Class`, or a name of the package's own."""
    return reference.rpartition(":")[2]


def fingerprint(reference: str) -> str | None:
    """SHA-256 of the file that an external reference names; None for a module or a class of the package."""
    path = Path(reference.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" and path.is_file() else None


def _constructors(cls: type) -> list[Any]:
    """The constructor of a class, and those that it passes its `**kwargs` on to, by way of its bases."""
    found = []
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is not None:
            found.append(constructor)
            parameters = inspect.signature(constructor).parameters.values()
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    return [each for each in found if not getattr(each, "__module__", "builtins").startswith(("torch.", "builtins"))]


def _keywords(constructor: Any) -> Any:
    """The `TypedDict` of a constructor that takes `**kwargs: Unpack[TypedDict]`, else None."""
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            hint = typing.get_type_hints(constructor).get(name)
            return next(filter(typing.is_typeddict, typing.get_args(hint)), None)
    return None


def _parameters(cls: type) -> dict[str, tuple[inspect.Parameter, Any]]:
    """What a class is constructed with: parameters and their types. Where the constructor takes `**kwargs`, the bases'
    keyword arguments and what they are given by name, and the keys of a `TypedDict` that annotates it."""
    found: dict[str, tuple[inspect.Parameter, Any]] = {}
    for depth, constructor in enumerate(_constructors(cls)):
        hints = typing.get_type_hints(constructor)
        for name, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            passed_on = parameter.kind is parameter.KEYWORD_ONLY or any(name in names for names in SUPPLIED.values())
            if name not in found and (depth == 0 or passed_on):
                found[name] = (parameter, hints.get(name))
        if (keywords := _keywords(constructor)) is not None:
            for name, hint in typing.get_type_hints(keywords).items():
                default = None if name in keywords.__optional_keys__ else inspect.Parameter.empty
                found.setdefault(name, (inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default), hint))
    return found


def takes(cls: type, name: str) -> bool:
    """Whether a constructor asks for something by this name."""
    return name in _parameters(cls)


def options(kind: Kind, cls: type) -> list[Option]:
    """The options in a class's signature: every argument that the package does not supply. Where a constructor takes
    `**kwargs`, the keyword arguments of its bases are options too; where it takes `**kwargs: Unpack[TypedDict]`, so are
    the keys of the `TypedDict`, with None for one that is left out.

    :raises BadInput: for an argument with no type or no default, which cannot be one.
    """
    try:
        parameters = _parameters(cls)
    except NameError as error:
        raise BadInput(f"{kind} {cls.__name__}: a type in its signature is not defined: {error}") from None
    helps = _parameter_help(cls)
    found = []
    for name, (parameter, hint) in parameters.items():
        if name in SUPPLIED[kind]:
            continue
        if hint is None or parameter.default is parameter.empty:
            raise BadInput(
                f"{kind} {cls.__name__}: its argument '{name}' needs a type and a default to be an option "
                f"(supplied by name are {', '.join(SUPPLIED[kind])})"
            )
        found.append(Option(name, hint, parameter.default, helps.get(name, "")))
    return found


def _parameter_help(cls: type) -> dict[str, str]:
    import docstring_parser

    bases = [base for base in reversed(cls.__mro__) if not base.__module__.startswith(("torch.", "builtins", "abc"))]
    documented = [_keywords(constructor) for constructor in _constructors(cls)]
    documented += [part for base in bases for part in (base, vars(base).get("__init__"))]
    return {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for part in documented
        if part is not None
        for parameter in docstring_parser.parse(inspect.cleandoc(part.__doc__ or "")).params
    }


def construct(kind: Kind, cls: type, supplied: Mapping[str, Any], chosen: Mapping[str, Any]) -> Any:
    """An instance, given what it asks for by name and the options that were chosen.

    :raises BadInput: for an option that the class does not have, or a constructor that fails.
    """
    names = _parameters(cls)
    if "latent_name" in names and names["latent_name"][1] is str and supplied.get("latent_name", "") is None:
        model = type(supplied.get("model")).__name__
        raise BadInput(f"{cls.__name__} is a {kind} of one latent site, and {model} has several")
    option_names = [option.name for option in options(kind, cls)]
    for name in chosen:
        if name not in option_names:
            flag = f"--{name}" if kind == "model" else f"--{kind}.{name}"
            raise BadInput(
                f"{flag.replace('_', '-')}: {cls.__name__} has no such option{near_miss(name, option_names)}"
            )
    try:
        return cls(**{name: value for name, value in supplied.items() if name in names}, **chosen)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{kind} {cls.__name__} cannot be constructed: {describe(error)}") from error
