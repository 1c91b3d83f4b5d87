"""The configuration of a run, and the objects that a user hands over when a run is made or opened.

Importing it imports no torch, so that commands that only read runs start fast.
"""

import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import ppl_gen
from ppl_gen.core import components
from ppl_gen.core.commands import command, is_function, line, words
from ppl_gen.core.components import Kind, class_name, find, is_external, kebab_case
from ppl_gen.core.contracts import defaults_of
from ppl_gen.core.convert import convert, convert_all
from ppl_gen.core.errors import BadInput, near_miss
from ppl_gen.core.options import flat, option
from ppl_gen.data.options import DataOptions
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import Json, RunDirectory

if TYPE_CHECKING:
    from ppl_gen.data.splits import Data

ORIGIN = (
    "format",
    "command",
    "versions",
    "git_commit",
    "num_threads",
    "data_name",
    "data_notice",
    "init_from_steps",
)
"""Keys of `config.json` that record where and how the run was made. They are no options and do not identify the run."""
KINDS: tuple[Kind, ...] = ("model", "guide", "prior")


@dataclass(frozen=True)
class Config:
    """Every option that determines a run.

    Model, guide and prior are names: a name of the package's own, `file.py:Class`, `package.module:Class`, or
    `class:Name` and `instance:Name` for an object that was handed over in Python, which `Given` holds.
    """

    model: str = option("vae", column="model")
    model_options: Mapping[str, Any] = field(default_factory=dict)
    guide: str = option("normal", column="guide")
    guide_options: Mapping[str, Any] = field(default_factory=dict)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    num_samples: int = option(1000, identifies=False)
    """Importance samples per image for log p(x) after training."""
    init_from: str | None = None
    """Directory of the run whose last weights training starts from."""
    fixed_model: bool = False
    """Train the guide alone, and keep the model as it is."""
    prior: str | None = option(None, column="prior")
    """Prior that replaces the model's own; None for the model's own."""
    prior_options: Mapping[str, Any] = field(default_factory=dict)
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of an objective's class, in addition to those in `training`."""
    estimator: tuple[str, ...] = option((), identifies=False)
    """Estimators of log p(x) of the evaluation after training, as `--estimator` of `evaluate` takes them. Without a
    name of the package, that is the model's own choice."""
    estimator_options: Mapping[str, Any] = field(default_factory=dict, metadata={"identifies": False})
    """Options of the constructors of the user's own estimators."""

    def to_json(self, data: "Data", given: "Given | None" = None) -> Json:
        """The content of `config.json`: every option with its default filled in, and the origin of the run."""
        from ppl_gen.data import masks
        from ppl_gen.data.loading import fingerprint
        from ppl_gen.experiment.starting import steps_of

        given = given or Given()
        resolved, classes = self.resolved(given), dict[str, Any]()
        for kind in KINDS:
            name = getattr(self, kind)
            classes |= {
                kind: name,
                f"{kind}_options": getattr(resolved, f"{kind}_options"),
                f"{kind}_sha256": given.fingerprint(kind, name),
            }
        return {
            **classes,
            # The data set that `auto` has chosen, so that the run keeps it whatever is on disk later.
            "data": asdict(self.data) | {"data": data.name if self.data.data == "auto" else self.data.data},
            "data_name": data.name,
            "data_sha256": data.sha256 or fingerprint(self.data.data),
            "data_notice": data.notice,
            "missing_sha256": masks.fingerprint(self.data.missing),
            "training": asdict(self.training),
            "num_samples": self.num_samples,
            "init_from": self.init_from,
            "init_from_steps": steps_of(self.init_from),
            "fixed_model": self.fixed_model,
            "objective_options": resolved.objective_options,
            "objective_sha256": given.fingerprint("objective", self.training.objective),
            "estimator": list(self.estimator),
            "estimator_options": resolved.estimator_options,
            "estimator_sha256": list(map(components.fingerprint, given.estimators(self))),
            **environment(),
            "command": sys.argv,
        }

    def stem(self, data_name: str) -> str:
        """Name of a run directory without its number: `vae-normal-mnist`."""
        parts = [kebab_case(class_name(name)) for name in (self.model, self.guide)]
        return "-".join([*parts, re.sub(r"[^\w.-]", "-", Path(data_name).name)])  # a file is named without its folder

    def resolved(self, given: "Given") -> "Config":
        """The same configuration with every option of its classes, at the default where none was chosen."""
        resolved: dict[str, Any] = {}
        names: dict[Kind, str | None] = {kind: getattr(self, kind) for kind in KINDS}
        for kind, name in (names | {"objective": self.training.objective}).items():
            chosen = getattr(self, f"{kind}_options")
            every = components.options(kind, given.find(kind, name))
            resolved[f"{kind}_options"] = {each.name: chosen.get(each.name, each.default) for each in every}
        of_estimators = components.estimator_options(given.estimators(self))
        resolved["estimator_options"] = {
            each.name: self.estimator_options.get(each.name, each.default) for each in of_estimators
        }
        return replace(self, **resolved)

    @property
    def own_estimators(self) -> tuple[str, ...]:
        """Names of the user's own estimators."""
        return tuple(filter(is_external, self.estimator))

    def externals(self) -> dict[str, Any]:
        """Names of the user's own code, by option: model, guide, prior, objective, the function that returns the
        images, and a tuple of estimators."""
        named: dict[str, str | None] = {kind: getattr(self, kind) for kind in KINDS}
        named["objective"] = self.training.objective
        external = {kind: name for kind, name in named.items() if name is not None and is_external(name)}
        external |= {"data": self.data.data} if is_function(self.data.data) else {}
        return external | ({"estimator": self.own_estimators} if self.own_estimators else {})


@dataclass(frozen=True)
class Given:
    """Objects that a user hands over, because no run directory holds them: classes of their own, instances, and images.

    A run directory never runs code. The user hands these over again whenever the run is opened.
    """

    model: Any = None
    """A name, `file.py:Class`, a class, or an instance. The guide, the prior and the objective take the same."""
    guide: Any = None
    prior: Any = None
    objective: Any = None
    data: Any = None
    """Images, as `Run.fit` takes them."""
    estimator: Any = None
    """Estimators of the evaluation after training: a name, a class, an instance or a function, or several."""

    def __post_init__(self) -> None:
        several = isinstance(self.estimator, list | tuple)
        listed = self.estimator if several else () if self.estimator is None else (self.estimator,)
        object.__setattr__(self, "estimator", tuple(listed))

    def names(self) -> dict[Kind, str | None]:
        """The names of model, guide and prior in a configuration."""
        given = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: None if each is None else components.name_of(kind, each) for kind, each in given.items()}

    def find(self, kind: Kind, name: str | None) -> Any:
        """The class or the instance that a name in a configuration stands for; None for None.

        :raises BadInput: for a name that is unknown, and an object that was not handed over again, or does not fit.
        """
        own = getattr(self, kind)
        if name is None or own is None or isinstance(own, str):
            return None if name is None else find(kind, name)
        if not components.fits(kind, own):
            needed = components.NEEDED[kind]
            raise BadInput(f"{kind}={own!r}: needs a method {needed}; give a class, or an instance of one")
        return own

    def estimators(self, config: Config) -> tuple[Any, ...]:
        """The user's own estimators of a configuration: as they were handed over, else by name."""
        own = tuple(each for each in self.estimator if not isinstance(each, str) or is_external(each))
        return own or config.own_estimators

    def fingerprint(self, kind: str, name: str | None, stored: str | None = None) -> str | None:
        """SHA-256 of the code of a class outside the package; None if it is unknown.

        :param stored: name in a run's configuration. Of `file.py:Class` the whole file counts, of other names the
            methods of the class; the same class may be handed over in the other form.
        """
        own = getattr(self, kind)
        reference = name if own is None or isinstance(own, str) else own
        if stored is not None and components.in_file(stored) != components.in_file(reference):
            reference = components.in_other_form(kind, reference)
        return None if reference is None else components.fingerprint(reference)


def environment() -> Json:
    """The keys of `config.json` for what may change the last bits of numbers: versions, threads, and the git commit."""
    import importlib.metadata

    import torch

    version = importlib.metadata.version
    return {
        "versions": {name: version(name) for name in ("torch", "pyro-ppl", "numpy")}
        | {"ppl_gen": ppl_gen.__version__, "python": platform.python_version()},
        "num_threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the git checkout that the package runs from; None if there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return run.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# From what a user asks for -------------------------------------------------------------------------------------


def training_defaults(model: Any) -> dict[str, Any]:
    """Defaults of `TrainingOptions` for a model, given as a name, a class or an instance."""
    return dict(defaults_of(find("model", model) if isinstance(model, str) else model).training_defaults)


def starting_config(given: Given, init_from: str | None = None, *, refit_guide: bool = False) -> Config:
    """The configuration before any option is changed. Classes and options are those of the run that training starts
    from, if there is one. Otherwise the classes are those that were handed over, with options at their defaults.

    :param refit_guide: train the guide alone, and keep the model of that run.
    :raises BadInput: if no model is given, and for an unknown class.
    """
    if init_from is not None:
        there = config_of(RunDirectory.open(Path(init_from)), given, swap=True)
        of_training = training_defaults(given.find("model", there.model))
        if refit_guide:
            of_training.pop("objective", None)  # the default objective trains the model, which stays as it is here
        training = TrainingOptions(**of_training)
        fresh: dict[str, Any] = {"objective_options": {}, "estimator": (), "estimator_options": {}}
        return replace(there, **fresh, training=training, init_from=init_from, fixed_model=refit_guide)
    if refit_guide:
        raise BadInput("--refit-guide: needs the run of the model; name it with --init-from")
    if given.model is None:
        raise BadInput(f"name a model: {', '.join(components.known('model'))}, or file.py:Class")
    names = given.names()
    defaults = defaults_of(given.find("model", names["model"]))
    return Config(
        model=str(names["model"]),
        guide=defaults.default_guide if names["guide"] is None else names["guide"],
        prior=names["prior"],
        data=DataOptions(**defaults.data_defaults),
        training=TrainingOptions(**defaults.training_defaults),
    )


def _types(kind: Kind, found: Any) -> dict[str, Any]:
    """The types of the options of a class, by name; an instance has none."""
    return {each.name: each.type for each in components.options(kind, found)}


def configure(given: Given, init_from: Any = None, estimator: Any = None, **options: Any) -> tuple[Config, Given]:
    """The configuration for arguments of `Run.fit`, and the objects among them that a configuration cannot hold.

    :param init_from: a run or its directory.
    :param estimator: as in `Given`.
    :raises BadInput: for an unknown option.
    """
    from ppl_gen.data import arrays
    from ppl_gen.data.splits import Data

    start = getattr(init_from, "path", init_from)
    fixed = bool(options.get("fixed_model", False))
    config = starting_config(given, None if start is None else str(start), refit_guide=fixed)
    if given.objective is not None:
        options["objective"] = components.name_of("objective", given.objective)
        options.setdefault("num_particles", particles_of(given.objective))
    if isinstance(given.data, Data):
        options.setdefault("binarization", given.data.binarization)
        if given.data.train.missing is not None:
            options.setdefault("missing", "nan")
    if not isinstance(options.get("missing"), str | Real | None):
        if given.data is None or isinstance(given.data, str | Path | Data):
            raise BadInput("missing: an array needs data=x, images as an array; save it for a named data set")
        given, options["missing"] = replace(given, data=arrays.masked(given.data, options["missing"])), "nan"
    if estimator is not None:
        given = replace(given, estimator=estimator)
        options["estimator"] = tuple(map(components.function_name, given.estimator))
    if given.data is not None:
        options["data"] = str(given.data) if isinstance(given.data, str | Path) else arrays.NAME
    named = isinstance(given.data, str | Path) and not is_function(str(given.data))
    return with_options(config, given, options), replace(given, data=None) if named else given


def particles_of(objective: Any) -> int:
    """Default number of particles: that of an objective of the user's own, if its constructor has one, else 1."""
    if not is_external(components.name_of("objective", objective)):
        return 1
    found = find("objective", objective) if isinstance(objective, str) else objective
    default = components.default_of(found, "num_particles")
    return default if isinstance(default, int) else 1


def with_options(config: Config, given: Given, options: Mapping[str, Any]) -> Config:
    """A configuration with some options changed. Options go by name to training, data, the other fields of `Config`, or
    the model's own options.

    :raises BadInput: for an unknown option.
    """
    names = {part: get_type_hints(part) for part in (TrainingOptions, DataOptions, Config)}
    del names[Config]["training"]  # its options are given one by one
    chosen: dict[Any, dict[str, Any]] = {part: {} for part in names}
    model = given.find("model", config.model)
    of_model = _types("model", model)
    for name, value in options.items():
        part = next((part for part, known in names.items() if name in known), None)
        if part is not None:
            chosen[part][name] = convert(name, value, names[part][name])
        elif name in of_model:
            model_options = chosen[Config].setdefault("model_options", {**config.model_options})
            model_options[name] = convert(name, value, of_model[name])
        else:
            if name == "refit_guide":
                raise BadInput("refit_guide: in Python, give guide=…, init_from=… and fixed_model=True")
            for kind in ("guide", "prior"):
                if name in _types(kind, given.find(kind, getattr(config, kind))):
                    raise BadInput(f"{name}: is an option of the {kind}; give {kind}_options={{'{name}': …}}")
            known = sorted(set().union(*names.values(), of_model) - {*KINDS, "model_options"})
            raise BadInput(f"{name}: unknown option of fit{near_miss(name, known)}")
    classes: dict[Kind, str | None] = {"guide": config.guide, "prior": config.prior}
    classes["objective"] = chosen[TrainingOptions].get("objective", config.training.objective)
    for kind, reference in classes.items():
        if options.get(f"{kind}_options"):
            types = _types(kind, given.find(kind, reference))
            chosen[Config][f"{kind}_options"] = convert_all(options[f"{kind}_options"], types, f"{kind}.")
    if options.get("estimator_options"):
        own = given.estimators(replace(config, estimator=chosen[Config].get("estimator", ())))
        types = {each.name: each.type for each in components.estimator_options(own)}
        chosen[Config]["estimator_options"] = convert_all(options["estimator_options"], types, "estimator.")
    return replace(
        config,
        data=replace(config.data, **chosen[DataOptions]),
        training=replace(config.training, **chosen[TrainingOptions]),
        **chosen[Config],
    )


# Of a run that is there ----------------------------------------------------------------------------------------


def config_of(run: RunDirectory, given: Given | None, *, swap: bool = False) -> Config:
    """The configuration of a run.

    :param given: classes of the user's own, named or handed over again; None to read the recorded names only.
    :param swap: let a class that is handed over replace another one, with its default options.
    :raises BadInput: if a class outside the package was not handed over again, or another class was.
    """
    content = run.config
    try:
        classes: dict[str, Any] = {}
        if given is not None and given.data is None and is_function(images := content["data"]["data"]):
            raise BadInput(
                f"{run.path}: was fitted to the images of {images}; name it again: {line(['--data', images])}"
            )
        for kind, name in (given or Given()).names().items():
            classes |= _class_of(run, kind, name, swap, required=given is not None)
        names = {each.name for each in fields(Config)} - {*classes, "data", "training"}
        return Config(
            **classes,
            **_options(run),
            **{name: tuples(content[name]) for name in names if name in content or name == "num_samples"},
        )
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise BadInput(f"{run.path / 'config.json'}: damaged: {reason}") from None


def _options(run: RunDirectory) -> dict[str, Any]:
    """The options of data and training of a run. Their values are in range."""
    try:
        return {
            "data": DataOptions(**run.config["data"]),
            "training": TrainingOptions(**run.config["training"]),
        }
    except BadInput as error:
        raise BadInput(f"{run.path / 'config.json'}: damaged: {error}") from None


def resumed(run: RunDirectory, config: Config, given: Given) -> Config:
    """The configuration of a run that goes on. Its objective and its estimators are needed again.

    :raises BadInput: if one of the user's own was not handed over again, or another one was.
    """
    own, again = config.own_estimators, replace(config, estimator=tuple(map(components.function_name, given.estimator)))
    if own and not again.own_estimators:
        raise BadInput(f"{run.path}: was fitted with the estimator {' '.join(own)}; {_hint('estimator', *own)}")
    if [*map(class_name, own)] != [*map(class_name, again.own_estimators)]:
        raise BadInput(
            f"--estimator {' '.join(again.own_estimators)}: {run.path} was fitted with {' '.join(own) or 'none'}; "
            f"{'give it here' if own else 'leave it out'}, and give others to evaluate"
        )
    of_package = [each for each in config.estimator if each not in own]
    config = replace(config, estimator=(*of_package, *again.own_estimators))
    recorded, objective = config.training.objective, given.objective
    if objective is None:
        if is_external(recorded):
            raise BadInput(f"{run.path}: was trained with the objective {recorded}; {_hint('objective', recorded)}")
        return config
    name = components.name_of("objective", objective)
    if class_name(name) != class_name(recorded):
        raise BadInput(f"--objective {name}: {run.path} was trained with {recorded}; give that objective")
    return replace(config, training=replace(config.training, objective=name))


def _class_of(run: RunDirectory, kind: Kind, name: str | None, swap: bool, required: bool) -> dict[str, Any]:
    """The name and the options of a run's model, guide or prior.

    :param name: the name that the user has given for it; None if none was given.
    """
    recorded = run.config.get(kind) if kind == "prior" else run.config[kind]
    options = tuples(run.config.get(f"{kind}_options", {}))
    if name is None:
        if required and recorded is not None and is_external(recorded):
            raise BadInput(f"{run.path}: was fitted with the {kind} {recorded}; {_hint(kind, recorded)}")
        name = recorded
    elif recorded is None or class_name(name) != class_name(recorded):
        if not swap:
            raise BadInput(f"--{kind} {name}: {run.path} was fitted with {recorded or 'none'}")
        options = {}
    return {kind: name, f"{kind}_options": options}


def _hint(kind: Kind, *recorded: str) -> str:
    """Instructions to hand over a class or an instance again."""
    for origin, _, name in (each.partition(":") for each in recorded):
        if origin in components.OBJECTS:
            return f"it was {origin} {name} of a Python session: Run.open(…, {kind}={name}), or --{kind} FILE.py:{name}"
    return f"name it again: {line([f'--{kind}', *recorded])}"


def continuing(path: Path, config: Config) -> str:
    """The command that continues a run; for a run of objects that only a Python session has, the call."""
    from ppl_gen.data import arrays

    named = config.externals()
    origins = {kind: {each.partition(":")[0] for each in _all(name)} for kind, name in named.items()}
    of_session = {kind: "…" for kind, found in origins.items() if found & set(components.OBJECTS)}
    if config.data.data == arrays.NAME:
        of_session["data"] = "…"
    if of_session:
        again = {kind: repr(name) for kind, name in named.items()} | of_session
        return f"Run.open({', '.join([repr(str(path)), *map('='.join, again.items())])}).resume()"
    return line(command("fit", "--resume", path, *words(named)))


def check_same(run: RunDirectory, config: Config, given: Given) -> None:
    """Raise `BadInput` if an existing run was made with another configuration or other code."""
    there = config_of(run, given)
    if config.data.data == "auto":  # the run records the data set that was chosen
        config = replace(config, data=replace(config.data, data=there.data.data))
    # An option that a class did not have when the run was made was at its default.
    ours, theirs = flat(asdict(config.resolved(given))), flat(asdict(there.resolved(given))) | flat(asdict(there))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            option = name.rpartition(".")[2]
            raise BadInput(
                f"{run.path} was made with other options: {option} is {theirs.get(name)}, not {ours.get(name)}; name "
                "another --out, or delete it"
            )
    if changed := changed_code(run, config, given):
        raise BadInput(
            f"{run.path}: {changed[0]} has changed since the run was started; choose another --out, or delete the run"
        )


def changed_code(run: RunDirectory, config: Config, given: Given | None = None) -> list[str]:
    """Names of the classes and of the data file whose content has changed since the run was made."""
    from ppl_gen.data import arrays, masks
    from ppl_gen.data.loading import fingerprint

    given = given or Given()
    named = config.externals()
    named.pop("data", None)  # its images are checked, not its code
    if given.objective is None:  # only training needs it
        named.pop("objective", None)
    own = named.pop("estimator", ())
    stored = {**run.config, "objective": run.config["training"]["objective"]}
    fingerprints: dict[str, tuple[str, Any]] = {
        kind: (name, given.fingerprint(kind, name, stored.get(kind))) for kind, name in named.items()
    }
    if own and given.estimator:  # only training needs them
        fingerprints["estimator"] = " ".join(own), list(map(components.fingerprint, given.estimators(config)))
    by_name = config.data.data != arrays.NAME and not is_function(config.data.data)
    if run.config.get("data_sha256") is not None and given.data is None and by_name:
        fingerprints["data"] = config.data.data, fingerprint(config.data.data)
    if run.config.get("missing_sha256") is not None:
        fingerprints["missing"] = str(config.data.missing), masks.fingerprint(config.data.missing)
    return [name for kind, (name, now) in fingerprints.items() if now != run.config.get(f"{kind}_sha256")]


def _all(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Names, of which a single one stands alone."""
    return (names,) if isinstance(names, str) else names


def tuples(value: Any) -> Any:
    """A value from JSON with tuples for lists, as signatures have them."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
