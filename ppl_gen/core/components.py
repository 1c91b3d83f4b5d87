"""Lookup of model, guide, prior, objective and estimator classes by name, and of their options by signature.

A class in `ppl_gen.models`, `ppl_gen.guides`, `ppl_gen.priors` or `ppl_gen.inference.objectives` is known by its name
in kebab-case; any other class is named as `file.py:Class` or `package.module:Class`. There is no list to edit and no
base class to inherit: a public class with a method `model`, `guide` or `prior` is a model, a guide or a prior, and an
objective is a public class with a method `surrogate`, `loss` or `elbo`. Estimators by name are the user's own.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from ppl_gen.core.contracts import Estimator, Guide, HasPrior, Model, missing
from ppl_gen.core.errors import BadInput, as_bad_input, named_files, near_miss, require_number
from ppl_gen.core.paths import is_file

_IN_SWEEP = re.compile(r"([\w-]+)(:\d+|:\d+,.*|,.*)")
"""A name with options as only `sweep` takes them: `vimco:50` or `flow,transform=iaf`. No class begins with a digit."""
Kind = Literal["model", "guide", "prior", "objective", "estimator"]
_CONTRACTS: dict[Kind, type] = {"model": Model, "guide": Guide, "prior": HasPrior, "estimator": Estimator}
_OF_DATA = (
    *("data_shape", "data_dim", "data_mean", "data_examples", "data_levels"),
    *("num_classes", "labelled_share", "num_images"),
)
SUPPLIED = {
    "model": _OF_DATA,
    "guide": (*_OF_DATA, "latent_dim", "latent_name", "model"),
    "prior": (*_OF_DATA, "latent_dim", "guide"),
    "objective": ("num_particles", "alpha", "beta"),
    "estimator": (),
}
"""Arguments that a constructor is given if its signature names them; all its other arguments are options.

- `data_shape`: shape of one image; `data_dim`: its number of pixels
- `data_mean`: mean training pixel [data_dim]; `data_examples`: training images [images, data_dim]
- `data_levels`: number of levels of a pixel, such as 256; None for binary pixels and for real numbers
- `num_classes`: number of classes of the labels; None without labels 0, 1, 2, …
- `labelled_share`: share of the images of a training batch whose label is known
- `num_images`: number of training and test images, which `index` counts in this order
- `model`: the model whose posterior a guide approximates; `latent_dim`: size of its z
- `latent_name`: name of the model's latent site; None if it has several
- `guide`: the guide that a prior is trained with
"""
OBJECTS = ("class", "instance", "function")
"""Prefixes, before the colon, of the name of an object that was passed from Python."""
NEEDED = {
    "model": "'model(self, x, ...)'",
    "guide": "'guide(self, x, ...)'",
    "prior": "'prior(self)'",
    "objective": "'surrogate(self, terms)', 'loss(self, pair, x, *args)', or 'elbo(self, pair, x, *args)' that returns "
    "an ELBO of Pyro",
    "estimator": "'estimate(self, model, guide, x, num_samples)'",
}
"""The method that a class of a kind needs, for messages."""
_PACKAGES = {"objective": "ppl_gen.inference.objectives"}


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
    """True if a reference names code outside the package."""
    return ":" in reference


def fits(kind: Kind, given: Any) -> bool:
    """True if a class or an instance has the method of a kind. An `ELBO` of Pyro is no objective: its `loss` has
    another signature."""
    if kind != "objective":
        return missing(given, _CONTRACTS[kind]) is None
    from pyro.infer.elbo import ELBO

    pyros = issubclass(given, ELBO) if isinstance(given, type) else isinstance(given, ELBO)
    return not pyros and any(callable(getattr(given, name, None)) for name in ("surrogate", "loss", "elbo"))


def known(kind: Kind) -> dict[str, type]:
    """The package's own classes of a kind, by name."""
    package = importlib.import_module(_PACKAGES.get(kind, f"ppl_gen.{kind}s"))
    classes = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            ours = cls.__module__ == module.__name__ and not name.startswith("_") and not inspect.isabstract(cls)
            if ours and fits(kind, cls):
                classes[kebab_case(name)] = cls
    return classes


def names(kind: Kind) -> list[str]:
    """The names in `known`, of models, guides and priors. Each class is in a file of its name: none is imported.

    >>> names("prior")
    ['flow', 'standard-normal', 'vamp']
    """
    package = importlib.import_module(f"ppl_gen.{kind}s")
    return [info.name.replace("_", "-") for info in pkgutil.iter_modules(package.__path__)]


def check_name(kind: Kind, reference: str, known: Iterable[str]) -> None:
    """Raise `BadInput` for a name that is none of the package's own, nor that of a class outside it."""
    if (found := _IN_SWEEP.fullmatch(reference)) and found[1] in known:
        raise BadInput(
            f"{kind} '{reference}': give its options by words of their own, as in --{kind} {found[1]} "
            f"--{kind}.OPTION VALUE{' or --num-particles NUMBER' if kind == 'objective' else ''}"
        )
    if not is_external(reference) and reference not in known:
        raise BadInput(f"unknown {kind} '{reference}'{near_miss(reference, known)} (your own: file.py:Class)")


def name_of(kind: Kind, reference: Any) -> str:
    """The name under which a configuration records a name, a class or an instance.

    `flow` for a class of the package; `package.module:Class` for one that can be imported again, else `class:Class`;
    `instance:Class` for an instance.
    """
    if isinstance(reference, str):
        return reference
    if not isinstance(reference, type):
        return f"instance:{type(reference).__name__}"
    if known(kind).get(kebab_case(reference.__name__)) is reference:
        return kebab_case(reference.__name__)
    module, name = reference.__module__, reference.__qualname__
    importable = module != "__main__" and not module.startswith("_user_") and "." not in name
    found = importlib.util.find_spec(module) if importable and module in sys.modules else None
    if found is not None and getattr(sys.modules[module], name, None) is reference:
        return f"{module}:{name}"
    return f"class:{reference.__name__}"


def find(kind: Kind, reference: str) -> type:
    """Return the class that a name stands for. Raises `BadInput` if there is none."""
    origin, _, object_name = reference.partition(":")
    if origin in OBJECTS:
        raise BadInput(f"{kind} '{reference}': was the {origin} {object_name} of a Python session; pass it again")
    if not is_external(reference) or _IN_SWEEP.fullmatch(reference):
        classes = known(kind)
        check_name(kind, reference, classes)
        if reference in classes:
            return classes[reference]
    where, _, name = reference.rpartition(":")
    module = _import(kind, where)
    cls = getattr(module, name, None)
    if not inspect.isclass(cls):
        classes_there = [n for n, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        raise BadInput(f"{kind} '{reference}': {where} has no class '{name}'{near_miss(name, classes_there)}")
    if not fits(kind, cls):
        raise BadInput(f"{kind} '{reference}': the class needs a method {NEEDED[kind]}")
    return cls


def find_function(what: str, reference: str, *, or_class: bool = False) -> Callable[..., Any]:
    """Return the function that `file.py:function` or `package.module:function` names.

    :param what: the option, for messages.
    :param or_class: True if the name may be that of a class.
    :raises BadInput: if there is none.
    """
    where, _, name = reference.rpartition(":")
    if where in OBJECTS:
        raise BadInput(f"{what} '{reference}': was the {where} {name} of a Python session; pass it again")
    if not where:
        raise BadInput(f"{what} '{reference}': must have the form file.py:{'NAME' if or_class else 'function'}")
    module = _import(what, where)
    found = getattr(module, name, None)
    if not callable(found):
        ours = [each for each in inspect.getmembers(module) if getattr(each[1], "__module__", "") == module.__name__]
        there = [n for n, each in ours if inspect.isfunction(each) or (or_class and inspect.isclass(each))]
        sort = "function or class" if or_class else "function"
        raise BadInput(f"{what} '{reference}': {where} has no {sort} '{name}'{near_miss(name, there)}")
    return found


def estimator_options(references: Iterable[Any]) -> list[Option]:
    """The options of the constructors of several estimators, each once.

    :param references: names as `find_function` takes them, classes, instances and functions.
    """
    found = [
        find_function("--estimator", each, or_class=True) if isinstance(each, str) else each for each in references
    ]
    return list({option.name: option for each in found for option in options("estimator", each)}.values())


def function_name(reference: Any) -> str:
    """The name under which a configuration records a function, or a class or an instance in the place of one:
    `package.module:NAME` if it can be imported again, else `function:NAME`, `class:NAME` or `instance:CLASS`. A name is
    returned as it is."""
    if isinstance(reference, str):
        return reference
    name, module = getattr(reference, "__name__", None), getattr(reference, "__module__", None) or ""
    if name is None:
        return f"instance:{type(reference).__name__}"
    if getattr(sys.modules.get(module), name, None) is reference and not module.startswith(("__main__", "_user_")):
        return f"{module}:{name}"
    return f"{'class' if isinstance(reference, type) else 'function'}:{name}"


def _import(kind: str, where: str) -> ModuleType:
    with as_bad_input(f"{kind} '{where}': cannot be imported"):
        if not where.endswith(".py"):
            module = importlib.import_module(where)
            named_files.add(module.__file__ or "")
            return module
        path = Path(where)
        if not is_file(path):
            raise BadInput(f"{kind} '{where}': no such file")
        content = path.read_bytes()
        name = "_user_" + hashlib.sha256(str(path.resolve()).encode() + b"\0" + content).hexdigest()[:12]
        if name in sys.modules:  # a model and a guide in one file share a module
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # `typing.get_type_hints` looks names up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def class_name(reference: str) -> str:
    """The class in `file.py:Class`, or a name of the package's own."""
    return reference.rpartition(":")[2]


def fingerprint(reference: Any) -> str | None:
    """SHA-256 of the code behind a reference: of the file in `file.py:Class`, or of the methods of a class or an
    instance that was passed from Python. None for `package.module:Class` and for a class of the package."""
    if isinstance(reference, str):
        path = Path(reference.rpartition(":")[0])
        return hashlib.sha256(path.read_bytes()).hexdigest() if in_file(reference) and is_file(path) else None
    cls = reference if isinstance(reference, type) else type(reference)
    own = [base for base in cls.__mro__ if not base.__module__.startswith(("torch.", "pyro.", "builtins", "ppl_gen."))]
    # A run makes a subclass of the class of an instance with `pyro.param` statements; its methods are not the user's.
    code = [text for base in own if "wraps_statements" not in vars(base) for text in _methods(base)]
    return hashlib.sha256("\0".join(code).encode()).hexdigest() if code else None


def in_file(reference: Any) -> bool:
    """True for `file.py:Class`."""
    return isinstance(reference, str) and Path(reference.rpartition(":")[0]).suffix == ".py"


def in_other_form(kind: str, reference: Any) -> Any:
    """The class behind `file.py:Class`, or `file.py:Class` of a class or an instance; None if it is unknown."""
    if in_file(reference):
        return find(cast("Kind", kind), reference) if kind != "objective" else None
    cls = reference if isinstance(reference, type) else type(reference)
    try:
        return f"{inspect.getfile(cls)}:{cls.__name__}"
    except (OSError, TypeError):  # a class typed at a prompt
        return None


def _methods(cls: type) -> list[str]:
    """The source of each method of a class, and its constants. A class that is defined in a notebook has no source, but
    its methods have."""
    sources = []
    for name, member in sorted(vars(cls).items()):
        if isinstance(member, bool | int | float | complex | str | bytes | tuple) and not name.startswith("__"):
            sources.append(f"{name} = {member!r}")
        for function in (member, getattr(member, "__func__", None), getattr(member, "fget", None)):
            if inspect.isfunction(function):
                try:
                    sources.append(inspect.getsource(function))
                except (OSError, TypeError):  # a function typed at a prompt has no source: its bytecode stands in
                    sources.append(f"{name} {function.__code__.co_code.hex()} {function.__code__.co_consts!r}")
    return sources


def _constructors(cls: type) -> list[Any]:
    """The constructor of a class, and the constructors of its bases to which it passes its `**kwargs` on."""
    found = []
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is not None:
            found.append(constructor)
            parameters = inspect.signature(constructor).parameters.values()
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
    modules = [getattr(each, "__module__", "builtins") or "" for each in found]  # code from a string has none
    return [each for each, name in zip(found, modules, strict=True) if not name.startswith(("torch.", "builtins"))]


def _keywords(constructor: Any) -> Any:
    """The `TypedDict` of a constructor that takes `**kwargs: Unpack[TypedDict]`; None for any other constructor."""
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            hint = typing.get_type_hints(constructor).get(name)
            return next(filter(typing.is_typeddict, typing.get_args(hint)), None)
    return None


def _parameters(cls: type) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Parameters of a class's constructor, with their types. Where it takes `**kwargs`, these include keyword arguments
    and supplied arguments of the bases' constructors, and the keys of a `TypedDict` that annotates `**kwargs`."""
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


def takes(cls: Any, name: str) -> bool:
    """True if the constructor of a class has a parameter of this name. For an instance, False."""
    return isinstance(cls, type) and name in _parameters(cls)


def default_of(cls: Any, name: str) -> Any:
    """Default of a parameter of a class's constructor; None if it has none."""
    parameters = _parameters(cls) if isinstance(cls, type) else {}
    default = parameters[name][0].default if name in parameters else None
    return None if default is inspect.Parameter.empty else default


def options(kind: Kind, cls: Any) -> list[Option]:
    """The options in a class's signature: every argument that the package does not supply. Where a constructor takes
    `**kwargs`, the keyword arguments of its bases are options too; where it takes `**kwargs: Unpack[TypedDict]`, so are
    the keys of the `TypedDict`, with default None for a key that may be left out. An instance has no options.

    :raises BadInput: for an argument with no type or no default, which cannot be an option.
    """
    if not isinstance(cls, type):
        return []
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
                f"(only these are supplied by name: {', '.join(SUPPLIED[kind])})"
            )
        found.append(Option(name, hint, parameter.default, helps.get(name, "")))
    return found


def _parameter_help(cls: type) -> dict[str, str]:
    """Text of each `:param` in the docstrings of a class, its bases, their constructors and their `TypedDict`s."""
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


def construct(kind: Kind, cls: Any, supplied: Mapping[str, Any], chosen: Mapping[str, Any]) -> Any:
    """Make an instance of a class from the supplied arguments in its signature and the chosen options. An instance is
    returned as it is.

    :raises BadInput: for an option that the class does not have, or a constructor that fails.
    """
    if not isinstance(cls, type):
        if chosen:
            raise BadInput(
                f"{kind} {type(cls).__name__}: is an instance and takes no options; leave out {', '.join(chosen)}"
            )
        return cls
    names = _parameters(cls)
    if "latent_name" in names and names["latent_name"][1] is str and supplied.get("latent_name", "") is None:
        model = type(supplied.get("model")).__name__
        raise BadInput(f"{cls.__name__} is a {kind} of one latent site, but {model} has several; use another {kind}")
    option_names = [option.name for option in options(kind, cls)]
    for name, value in chosen.items():
        flag = name if kind == "model" else f"{kind}.{name}"
        if name not in option_names:
            raise BadInput(
                f"--{flag.replace('_', '-')}: {cls.__name__} has no such option{near_miss(name, option_names)}"
            )
        if cls.__module__.startswith("ppl_gen."):  # the numbers of other classes are theirs to judge
            require_number(flag, value)
    with as_bad_input(f"{kind} {cls.__name__} cannot be constructed"):
        return cls(**{name: value for name, value in supplied.items() if name in names}, **chosen)
