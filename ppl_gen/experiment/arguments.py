"""The command line of `fit`: from its words to a configuration. The options that name a run's own classes again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from ppl_gen.core import cli, components
from ppl_gen.core.commands import external_class_options
from ppl_gen.core.components import Kind
from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import import_torch
from ppl_gen.experiment.config import KINDS, Config, Given, particles_of, starting_config
from ppl_gen.experiment.run_directory import RunDirectory

PROGRAM = "python -m ppl_gen.fit"


@dataclass(frozen=True)
class Named:
    """The user's own classes and images of a run. A run directory never runs code, so a command has to be told them
    again."""

    model: str | None = None
    """file.py:Class of the model, if the run was fitted with your own."""
    guide: str | None = None
    """file.py:Class of the guide, if the run was fitted with your own."""
    prior: str | None = None
    """file.py:Class of the prior, if the run was fitted with your own."""
    data: str | None = None
    """file.py:function of the images, if the run was fitted to images of your own function."""

    def restricted(self, run: RunDirectory) -> "Named":
        """The same options, without the kinds for which a run uses a class of the package. A command that takes several
        runs has one set of these options for all of them."""
        again = external_class_options(run.config)
        return Named(**{kind: name for kind, name in asdict(self).items() if f"--{kind}" in again})


Options = TypeVar("Options")


@dataclass(frozen=True)
class RunCommand(Generic[Options]):
    """The command line of a command that takes one run. Its options have `checkpoint` and `device`."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    options: Annotated[Options, tyro.conf.arg(name="", help="")]
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)

    def opening(self) -> dict[str, Any]:
        """The arguments of `Run.open`.

        :raises BadInput: for a directory that is no run, before torch is imported.
        """
        RunDirectory.open(self.run)
        options: Any = self.options
        return {"path": self.run, **asdict(self.named), "checkpoint": options.checkpoint, "device": options.device}


@dataclass(frozen=True)
class RunOptions:
    """The start of training, the evaluation after it, and the run directory."""

    init_from: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Start training from the last weights of this run, with its model, prior and data, and those weights of its guide
    that fit. Name your own classes again."""
    refit_guide: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Train this guide alone, named as for --guide. The model of --init-from does not change."""
    num_samples: int = 1000
    """Importance samples of z per image for log p(x) after training."""
    out: Path | None = None
    """The run directory. By default runs/<model>-<guide>-<data>-<number>."""
    estimator: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="{auto,exact,quadrature,importance,annealed,prior} FILE.py:NAME …")
    ] = ()
    """Estimator of log p(x) after training, and estimators of your own that are reported beside it, as for evaluate.
    Options of their constructors are --estimator.NAME. By default the model's own choice."""
    dry_run: bool = False
    """Only check model, guide and data, on 8 images."""


def options_class(name: str, options: Sequence[components.Option]) -> type:
    """A dataclass of the options in the signatures of classes."""
    made = make_dataclass(
        f"{name}Options",
        [
            (
                option.name,
                Annotated[
                    option.type,
                    tyro.conf.arg(help=option.help, **cli.shown_as(option.type, option.default)),
                ],
                field(default=option.default),
            )
            for option in options
        ],
        frozen=True,
    )
    made.__doc__ = ""  # dataclasses writes the signature, and from Python 3.13 on, tyro would print it as help
    return made


def command_class(base: Config, objective: str | None = None, estimators: Sequence[str] = ()) -> type:
    """A dataclass of the options of `fit`: the own options of a model, a guide, a prior, an objective and estimators,
    and the options that every fit has.

    :param base: the configuration whose values are the defaults.
    :param objective: the objective that the command line names, if it names one.
    :param estimators: the user's own estimators that the command line names.
    """
    flat = {
        "model_options": _own_options("model", base.model, base.model_options),
        "data": base.data,
        "training": base.training,
        "run": RunOptions(base.init_from),
    }
    _check_names(base.model, flat)
    parts: list[Any] = [
        (part, Annotated[type(default), tyro.conf.arg(name="", help="")], field(default=default))
        for part, default in flat.items()
    ]
    about: dict[Kind, str] = {"guide": "Family of q(z | x)", "prior": "p(z) in place of the model's own"}
    for kind, text in about.items():
        help = f"{text}: {', '.join(components.known(kind))}, or file.py:Class"
        kind_of_name: Any = str if kind == "guide" else str | None
        default_name = getattr(base, kind)
        shown = tyro.conf.arg(help=help, **cli.shown_as(kind_of_name, default_name))
        parts.append((kind, Annotated[kind_of_name, shown], field(default=default_name)))
    objective = base.training.objective if objective is None else objective or None  # training refuses an empty name
    for kind, name in (("guide", base.guide), ("prior", base.prior), ("objective", objective)):
        default = _own_options(kind, name, getattr(base, f"{kind}_options"))
        parts.append(
            (f"{kind}_options", Annotated[type(default), tyro.conf.arg(name=kind, help="")], field(default=default))
        )
    parts.append(("estimator_options", *_estimator_options(estimators)))
    return make_dataclass("FitCommand", parts, frozen=True)


def _estimator_options(names: Sequence[str]) -> tuple[Any, Any]:
    """The type and the default of a field that has the options of estimators, `--estimator.NAME`."""
    own = options_class("Estimator", components.estimator_options(names))
    return Annotated[own, tyro.conf.arg(name="estimator", help="")], field(default=own())


def _own_options(kind: Any, name: str | None, chosen: Mapping[str, Any]) -> Any:
    """The options in the signature of a class, as an instance of a dataclass."""
    cls = type("None", (), {}) if name is None else components.find(kind, name)
    return options_class(cls.__name__, components.options(kind, cls))(**chosen)


def _check_names(model: str, parts: Mapping[str, Any]) -> None:
    """Raise `BadInput` if an option of a model has the name of an option that every fit has."""
    taken = {"guide", "prior"} | {option.name for part in ("data", "training", "run") for option in fields(parts[part])}
    for option in fields(parts["model_options"]):
        if option.name in taken:
            raise BadInput(f"model {model}: every fit has an option '{option.name}' too; rename the model's option")


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """The last value of `--flag value` or `--flag=value`."""
    found = None
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") == flag:
            if equals:
                found = value
            elif index + 1 < len(arguments):
                found = arguments[index + 1]
    return found


def parse_with_estimators(
    command: Any, arguments: list[str], program: str, description: str
) -> tuple[Any, dict[str, Any]]:
    """As `cli.parse`, for a command with an option `--estimator`. Returns the options of the constructors of the user's
    own estimators, too: `--estimator.NAME`."""
    parts: list[Any] = [
        ("given", Annotated[command, tyro.conf.arg(name="", help="")]),
        ("own", *_estimator_options(_own_estimators(arguments))),
    ]
    parsed: Any = cli.parse(make_dataclass("Command", parts, frozen=True), arguments, program, description)
    return parsed.given, vars(parsed.own)


def _own_estimators(arguments: list[str]) -> list[str]:
    """The user's own estimators on a command line: the words after `--estimator`, up to the next option."""
    found: list[str] = []
    within = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            within = name == "--estimator"
            found = [value] if within and equals else [] if within else found
        elif within:
            found.append(argument)
    return [name for name in found if components.is_external(name)]


def parse(arguments: list[str]) -> tuple[Config, RunOptions]:
    """The configuration and the other options of a command line `[MODEL] [options]`.

    :raises BadInput: for a command line that cannot be read, and for an unknown model, guide or prior.
    """
    named = [arguments[0]] if arguments and not arguments[0].startswith("-") else []
    base = _defaults(named[0] if named else None, arguments)
    models = ", ".join(components.names("model"))
    description = (
        f"Train {base.model}, compare its ELBO with importance-sampled log p(x), draw pictures. Models: {models}, or "
        f"file.py:Class. To continue an interrupted run: {PROGRAM} --resume RUN."
    )
    rest = arguments[len(named) :]
    options = command_class(base, _value_of("--objective", rest), _own_estimators(rest))
    chosen: Any = cli.parse(options, rest, f"{PROGRAM} {base.model if named else 'MODEL'}", description)
    kinds = (*KINDS, "objective")
    own: dict[str, Any] = {f"{kind}_options": vars(getattr(chosen, f"{kind}_options")) for kind in kinds}
    own |= {"estimator": chosen.run.estimator, "estimator_options": vars(chosen.estimator_options)}
    config = replace(
        base,
        **own,
        data=chosen.data,
        training=chosen.training,
        num_samples=chosen.run.num_samples,
        init_from=chosen.run.init_from,
        fixed_model=chosen.run.refit_guide is not None,
    )
    return config, chosen.run


def _defaults(model: str | None, arguments: list[str]) -> Config:
    """The configuration that the options of a command line change: its classes are those that the command line names,
    or those of the run that training starts from."""
    flags = ("init-from", "refit-guide", "guide", "prior", "objective")
    chosen = {flag: _value_of(f"--{flag}", arguments) for flag in flags}
    refit = chosen["refit-guide"]
    if refit is not None and chosen["guide"] is not None:
        raise BadInput("--refit-guide: this option names the guide; leave out --guide")
    if model is None and chosen["init-from"] is None:
        if not {"-h", "--help"} & set(arguments):
            models = ", ".join(components.names("model"))
            raise BadInput(f"name a model first: {PROGRAM} MODEL [options]; MODEL is {models} or file.py:Class")
        model = "vae"
    given = Given(model, chosen["guide"] if refit is None else refit, chosen["prior"])
    for kind, name in given.names().items():
        if name is not None:
            components.check_name(kind, name, components.names(kind))
    import_torch()  # the modules of the classes, whose signatures have options, import it
    if chosen["objective"]:
        components.check_name("objective", chosen["objective"], components.known("objective"))
    config = starting_config(given, chosen["init-from"], refit_guide=refit is not None)
    if chosen["objective"] is not None and components.is_external(chosen["objective"]):  # its class may have options
        objective, particles = chosen["objective"], particles_of(chosen["objective"])
        return replace(config, training=replace(config.training, objective=objective, num_particles=particles))
    return config
