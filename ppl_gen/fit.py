"""`python -m ppl_gen.fit MODEL`: train, evaluate, draw."""

import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyro
import torch
import tyro
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_gen import cli, components, parallel
from ppl_gen.batches import least_images
from ppl_gen.capture import Captured
from ppl_gen.data import Data, DataOptions, load_data
from ppl_gen.errors import BadInput, require
from ppl_gen.evaluate import EvaluationOptions, evaluate, table
from ppl_gen.inference.annealed import Annealing
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.enumeration import memory_needed, require_memory
from ppl_gen.inference.traces import Pair, amortized
from ppl_gen.loading import Config, Named, assemble, changed_files, config_of, externals, read_pair, start_from
from ppl_gen.report import write_report
from ppl_gen.runs import Run, check_new
from ppl_gen.state import unchanged
from ppl_gen.training import TrainingOptions, objective_for, resolve_device, train

PROGRAM = "python -m ppl_gen.fit"


def fit(config: Config, out: str | Path | None = None, *, quiet: bool = False) -> Run:
    """Train a model and a guide, evaluate them and draw the pictures.

    :param out: the run directory; by default `runs/<model>-<guide>-<data>-<number>`.
    :param quiet: print nothing.
    :raises BadInput: before anything is written, if the configuration cannot work.
    """
    out = None if out is None else Path(out)
    parallel.join()
    quiet = quiet or parallel.rank() > 0
    check_new(out)  # by all, before the data are loaded, where they meet
    prepared = _prepare(config, quiet)
    data = prepared.data
    kind = re.sub(r"[^\w.-]", "-", Path(data.name).name)  # a file may be in another folder
    stem = "-".join([_short(config.model), _short(config.guide), kind])
    content = config.to_json(data)
    path = parallel.of_the_first(Run.create(out, stem, content).path if parallel.rank() == 0 else None)
    assert path is not None
    run = Run(path, content, writes=parallel.rank() == 0)
    _finish(run, config, prepared, quiet)
    return run


def resume(path: str | Path, named: Named | None = None, *, quiet: bool = False) -> Run:
    """Continue an interrupted run to the numbers it would have had; a finished one is drawn again.

    :param named: classes of your own, named again.
    """
    parallel.join()
    quiet = quiet or parallel.rank() > 0
    run = Run.open(Path(path))
    run.writes = parallel.rank() == 0
    config = config_of(run, named or Named())
    for file in changed_files(run, config):
        print(f"warning: {file} has changed since the run was started", file=sys.stderr)
    lines = run.metrics()
    if lines and lines[-1]["epoch"] >= config.training.epochs and not quiet:
        print("training was finished before; its evaluation:", file=sys.stderr)
    # The run that it started from may be gone by now.
    _finish(run, config, _prepare(config, quiet, start=not run.checkpoint_path.exists()), quiet)
    return run


def dry_run(config: Config) -> str:
    """Check a pair on 8 images: data, sites, shapes, densities, and a gradient for every parameter.

    :returns: a report.
    :raises BadInput: if the pair cannot be fitted.
    """
    data, model, guide, pair, batch, cost, missing = _prepare(config, True)
    lines = [text for text in (data.notice, cost) if text]
    lines += [f"{len(batch[0])} images of {data.name}, {data.shape}, binarization {data.binarization}"]
    lines.append(f"plate of images '{pair.plate.name}'; observed {', '.join(pair.observed)}")
    lines += [f"latent '{name}', event shape {shape}" for name, shape in pair.event_shapes.items()]
    lines.append("samples of z are drawn " + ("in one call" if pair.vectorized else "by repeating the batch"))
    counted = sum(1 for _ in nn.ModuleDict({"model": model, "guide": guide}).parameters())
    lines.append(f"{counted - len(missing)} of {counted} parameters have a gradient")
    lines += [f"  no gradient: {name}" for name in missing]
    return "\n".join(lines)


# Steps of a fit ------------------------------------------------------------------------------------------------


class _Prepared(NamedTuple):
    data: Data
    model: nn.Module
    guide: nn.Module
    pair: Pair
    batch: tuple[Tensor, ...]
    cost: str | None
    """Of enumeration, in a sentence."""
    missing: list[str]
    """Parameters without a gradient."""


def _prepare(config: Config, quiet: bool, *, start: bool = True) -> _Prepared:
    """Data, model and guide, checked against each other.

    :param start: put the weights into them that training starts from, and refuse what would take too long.
    """
    require(config.num_samples >= 1, "num_samples", config.num_samples, "must be at least 1")
    device = resolve_device(config.training.device)
    with parallel.one_first():
        data = load_data(config.data)
    if parallel.of_the_first(data.name) != data.name:
        raise BadInput(f"--data {config.data.data}: is {data.name} here, and another for the first process")
    if data.notice and not quiet:
        print(f"*** {data.notice} ***", flush=True)
    data = data.to(device)
    model, guide = assemble(config, data)
    if not any(parameter.requires_grad for part in (model, guide) for parameter in part.parameters()):
        raise BadInput("neither model nor guide has a parameter to train")
    if start and config.fixed_model and config.init_from is None:
        raise BadInput("--refit-guide: takes the model of a run, which --init-from names")
    if start and config.init_from is not None:
        taken = start_from(config.init_from, model, guide)
        if not quiet:
            print(taken, flush=True)
    pair, batch = read_pair(model, guide, data)
    _check_binarization(pair, data)
    _check_support(model, guide, pair, batch)
    _check_contract(model, guide, pair, batch)
    cost = None
    if pair.enumerated:
        require_memory(pair, min(config.training.batch_size, len(data.train)), gradients=True, device=device)
        cost = _enumeration_cost(config, data, model, guide, pair) if start else None
    if cost is not None and not quiet:
        print(cost, flush=True)
    if (size := min(config.training.batch_size, len(data.train))) == 1:
        loss = partial(objective_for(config.training, pair, *batch).differentiable_loss, pair.model, pair.guide)
        least_images(loss, model, guide, size, lambda: batch)
    missing = _without_gradient(config, model, guide, pair, batch)
    if config.training.capture:
        _try_capture(config, model, guide, pair, batch)
    if missing and not quiet:
        print(f"warning: no gradient reaches {', '.join(missing)}", file=sys.stderr)
    return _Prepared(data, model, guide, pair, batch, cost, missing)


def _finish(run: Run, config: Config, prepared: _Prepared, quiet: bool) -> None:
    """Whatever of training, evaluation and pictures the run does not have yet."""
    from ppl_gen.figures.run import draw_evaluation, draw_training

    data, model, guide, pair, batch, *_ = prepared
    if not quiet:
        splits = f"{len(data.train)} / {len(data.validation)} / {len(data.test)} images"
        print(f"run: {run.path}\ndata: {data.name}, train / validation / test {splits}", flush=True)
    try:
        train(model, guide, data, config.training, run, quiet)
        summary = run.read_json("evaluation.json")
        if summary is None or run.stale(summary):
            options = _evaluation_options(config, model, len(data.test))
            summary = evaluate(run, config, model, guide, data, options, quiet)
        if not run.writes:
            return
        draw_training(run, model, guide, data, pair, batch)
        draw_evaluation(run)
        write_report(run)
    except KeyboardInterrupt:
        again = "".join(f" --{kind} {name}" for kind, name in externals(config).items())
        raise KeyboardInterrupt(f"continue with: {PROGRAM} --resume {run.path}{again}") from None
    if not quiet:
        print(f"\n{table(summary)}\n\npictures in {run.path / 'figures'}, all of it in {run.path / 'report.html'}")


def _evaluation_options(config: Config, model: nn.Module, num_images: int) -> EvaluationOptions:
    """How a fit is evaluated: as its class's own `evaluation_defaults` say, unless it was given another guide.

    :param num_images: test images that there are.
    """
    own = config.guide == default_guide(config.model)
    chosen = dict(getattr(type(model), "evaluation_defaults", {})) if own else {}
    if "num_images" in chosen:
        chosen["num_images"] = min(chosen["num_images"], num_images)
    annealing = Annealing(**chosen.pop("annealed", {}))
    return EvaluationOptions(device=config.training.device, annealed=annealing, **chosen)


def _check_binarization(pair: Pair, data: Data) -> None:
    if not pair.discrete and data.binarization not in ("none", "dequantized"):
        raise BadInput(
            f"--binarization {data.binarization}: {pair.model_name} has a density of grey pixels, not a probability of "
            "binary ones; use dequantized, or none"
        )
    if pair.discrete and data.binarization == "dequantized":
        raise BadInput(f"--binarization dequantized: {pair.model_name} has no density of grey pixels; use another")


def _check_support(model: Any, guide: Any, pair: Pair, batch: tuple[Tensor, ...]) -> None:
    """Refuse a guide that draws z where the prior has no mass: its ELBO is -inf."""
    x = batch[0]
    with evaluating(model, guide), torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(0)
        site = pair.leaves_support(*batch)
    if site is not None:
        raise BadInput(
            f"{pair.guide_name} draws '{site}' outside of the support of its prior in {pair.model_name}, where the "
            "ELBO is -inf; give the guide a distribution of the same support, such as LogNormal for positive numbers"
        )


def _check_contract(model: Any, guide: Any, pair: Pair, batch: tuple[Tensor, ...]) -> None:
    """`prior()` and `likelihood(z)` say what `model` does, and `posterior(encode(x))` what `guide` does, or the fit is
    refused: other parts of the package use the one where these use the other."""
    if len(pair.latent) != 1 or len(batch) > 1:
        return
    x, name = batch[0], pair.latent[0]
    if not hasattr(model, "prior") and not amortized(guide):
        return
    with evaluating(model, guide), torch.random.fork_rng([x.device] if x.is_cuda else []):
        terms = pair.terms(x)
        z = terms.latents[name][0]
        if z.numel() != len(x) * math.prod(pair.event_shapes[name]):
            raise BadInput(
                f"site '{name}' is in a plate within '{pair.plate.name}', and prior(), likelihood(z) and posterior(c) "
                "are of one event per image: use .to_event(1) in place of that plate, or leave them out"
            )
        z = z.reshape(len(x), *pair.event_shapes[name])
        checks = []
        if hasattr(model, "prior"):
            ours, theirs, what = model.prior().log_prob(z), terms.log_prior, "prior()"
            if hasattr(model, "likelihood"):
                ours, theirs = ours + model.likelihood(z).log_prob(x), theirs + terms.log_likelihood
                what = "prior() and likelihood(z)"
            checks.append((ours, theirs, what, "model", model))
        if amortized(guide):
            checks.append(
                (
                    guide.posterior(guide.encode(x)).log_prob(z),
                    terms.log_guide,
                    "posterior(encode(x))",
                    "guide",
                    guide,
                )
            )
    for ours, theirs, what, kind, owner in checks:
        if ours.shape != theirs[0].shape or not torch.allclose(ours, theirs[0], rtol=1e-4, atol=1e-3, equal_nan=True):
            raise BadInput(
                f"{kind} {type(owner).__name__}: {what} and {kind}() disagree on the log-density of 8 images"
            )


_TIMED_STATES = 2**13
_MORE_TIMED_STATES = 2**16  # where images do not multiply them, and what does not grow with them would count as well


def _enumeration_cost(config: Config, data: Data, model: nn.Module, guide: nn.Module, pair: Pair) -> str:
    """What a step costs, in a sentence. Measured on a step; for many states, on one of the same model with fewer latent
    units.

    :raises BadInput: for more time than `max_hours`.
    """
    assert pair.num_states is not None
    training = config.training
    size = min(training.batch_size, len(data.train))
    device = data.train.images.device
    timed, ratio = model, 1.0
    units = max(math.prod(shape) for shape in pair.event_shapes.values())
    spare = math.ceil(math.log2(pair.num_states / (_MORE_TIMED_STATES if pair.width < 1 else _TIMED_STATES)))
    options = dict(config.model_options)
    if spare > 0 and "latent_dim" in [o.name for o in components.options("model", type(model))] and units > spare:
        timed, _ = assemble(replace(config, model_options=options | {"latent_dim": units - spare}), data)
    smaller, batch = read_pair(timed, guide, data, size)
    with pyro.get_param_store().scope(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        assert smaller.num_states is not None
        ratio = pair.num_states / smaller.num_states
        elbo = objective_for(training, smaller, *batch)
        parameters = [parameter for parameter in timed.parameters() if parameter.requires_grad]
        seconds = math.inf
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            with pyro.validation_enabled(False):
                loss = elbo.differentiable_loss(smaller.model, smaller.guide, *batch)
            torch.autograd.grad(loss, parameters, allow_unused=True)
            float(loss.detach())
            seconds = min(seconds, (time.perf_counter() - start) * ratio)
    hours = seconds * training.epochs * math.ceil(len(data.train) / size) / 3600
    needed = memory_needed(pair, size, gradients=True)
    duration = f"{hours:.1f} h" if hours > 1 else f"{hours * 60:.1f} min"
    cost = (
        f"a step sums {pair.num_states:,} latent states for {size} images: about {seconds:.2g} s and "
        f"{needed / 1e9:.2g} GB; the steps of {training.epochs} epochs about {duration}"
    )
    if hours > training.max_hours:
        raise BadInput(
            f"{cost}, more than --max-hours {training.max_hours:g}; use fewer latent units, or a guide that samples, "
            "such as bernoulli"
        )
    return cost


def _without_gradient(
    config: Config, model: nn.Module, guide: nn.Module, pair: Pair, batch: tuple[Tensor, ...]
) -> list[str]:
    """Names of the trainable parameters that one step of the objective would leave where they are.

    Raises `BadInput` for parameters that are not a module's: they would be neither trained nor saved.
    """
    from pyro import poutine

    modules = nn.ModuleDict({"model": model, "guide": guide})
    own = {id(parameter) for parameter in modules.parameters()}
    with pyro.get_param_store().scope(), torch.random.fork_rng([batch[0].device] if batch[0].is_cuda else []):
        elbo = objective_for(config.training, pair, *batch)
        with (
            poutine.trace(param_only=True) as trace,
            pyro.validation_enabled(False),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf|-inf)")  # told below
            warnings.filterwarnings("ignore", ".* was not registered in the param store")  # by design, for a moment
            compute = partial(elbo.differentiable_loss, pair.model, pair.guide, *batch)
            called: list[nn.Module] = []
            with register_module_forward_pre_hook(lambda module, _: called.append(module)):
                loss = compute()
        for name, site in trace.trace.nodes.items():
            trained = site["type"] == "param" and site["value"].requires_grad
            if trained and id(site["value"].unconstrained()) not in own:
                raise BadInput(
                    f"pyro.param('{name}') was not there when the pair was put together: make it an nn.Parameter of "
                    "model or guide"
                )
        if not loss.isfinite():
            densities = pair.log_densities(pair.terms(*batch))
            which = [name for name, values in densities.items() if not values.isfinite().all()]
            raise BadInput(
                f"the objective is {float(loss.detach())} on {len(batch[0])} images before training"
                + (f"; so is, or is infinite, {' and '.join(which)}" if which else "")
            )
        named = [(name, parameter) for name, parameter in modules.named_parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            _check_owned(loss, called, compute, modules)
    return [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]


def _check_owned(loss: Tensor, called: list[nn.Module], compute: Callable[[], Tensor], modules: nn.Module) -> None:
    """Raise `BadInput` where a loss depends on weights, or on a layer with a mode, that are not of the modules.

    :param called: the modules that computed the loss.
    :param compute: computes it again. Leaves of one loss alone, such as contexts that a guide improves, are no weights.
    """
    own = {id(each) for each in (*modules.parameters(), *modules.modules())}
    others = [module for module in called if id(module) not in own]
    found = [f"a {type(module).__name__}" for module in others if isinstance(module, _NormBase | _DropoutNd)]
    leaves = [leaf for leaf in _leaves(loss) if id(leaf) not in own]
    if leaves:
        with unchanged(modules):
            kept = {id(leaf) for leaf in _leaves(compute())}
        for leaf in leaves:
            owners = [part for part in others if any(leaf is each for each in part.parameters(recurse=False))]
            of = f" of a {type(owners[0]).__name__}" if owners else ""
            found += [f"weights {tuple(leaf.shape)}{of}"] if id(leaf) in kept else []
    if found:
        raise BadInput(
            f"the loss depends on {found[0]} outside of model and guide, which would not be trained, saved or put into "
            "eval mode with them: make it part of one of them in its constructor, self.net = …"
        )


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that `backward` of a loss would give a gradient."""
    queue, seen, leaves = [loss.grad_fn], set(), []
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):
                leaves.append(node.variable)
    return leaves


def _try_capture(config: Config, model: nn.Module, guide: nn.Module, pair: Pair, batch: tuple[Tensor, ...]) -> None:
    """Raise `BadInput` for a pair whose step cannot be recorded."""
    loss = partial(objective_for(config.training, pair, *batch).differentiable_loss, pair.model, pair.guide)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        Captured(loss, nn.ModuleDict({"model": model, "guide": guide}), batch, tuple(part.flip(0) for part in batch))


def _short(reference: str) -> str:
    return components.kebab_case(components.class_name(reference))


# The command line ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunOptions:
    """Where training starts from, what comes after it, and where it goes."""

    init_from: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Start from the last weights of this run: its model, prior and data, and what fits of its guide. They need not be
    named again, but for classes of your own."""
    refit_guide: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Train this guide alone, as --guide names one, against the model of --init-from, which stays as it is."""
    num_samples: int = 1000
    """Importance samples of z per image for log p(x) after training."""
    out: Path | None = None
    """The run directory itself; by default runs/<model>-<guide>-<data>-<number>."""
    dry_run: bool = False
    """Only check model, guide and data on 8 images."""


@dataclass(frozen=True)
class ResumeCommand:
    resume: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


def options_class(kind: components.Kind, cls: type) -> type:
    """A dataclass of the options in the signature of a model or guide class."""
    return make_dataclass(
        f"{cls.__name__}Options",
        [
            (
                option.name,
                Annotated[option.type, tyro.conf.arg(help=option.help)],
                field(default=option.default),
            )
            for option in components.options(kind, cls)
        ],
        frozen=True,
    )


def default_guide(model: str) -> str:
    """The guide of a model where none is named: the class's own `default_guide`, or `normal`."""
    return str(getattr(components.find("model", model), "default_guide", "normal"))


def training_defaults(model: str) -> dict[str, Any]:
    """Defaults of `TrainingOptions` for a model: the class's own `training_defaults`."""
    return dict(getattr(components.find("model", model), "training_defaults", {}))


def data_defaults(model: str) -> dict[str, Any]:
    """Defaults of `DataOptions` for a model: the class's own `data_defaults`."""
    return dict(getattr(components.find("model", model), "data_defaults", {}))


def command_class(base: Config) -> type:
    """The options of `fit` for a model, a guide and a prior: their own, and those that all share. The defaults are
    those of `base`."""
    options = {"model": base.model_options, "guide": base.guide_options, "prior": base.prior_options}
    names: dict[components.Kind, str | None] = {"model": base.model, "guide": base.guide, "prior": base.prior}
    classes: dict[str, type] = {"data": DataOptions, "training": TrainingOptions, "run": RunOptions}
    defaults: dict[str, Any] = {"data": base.data, "training": base.training, "run": RunOptions(base.init_from)}
    for kind, name in names.items():
        cls = type("NoPrior", (), {}) if name is None else components.find(kind, name)
        classes[f"{kind}_options"] = options_class(kind, cls)
        defaults[f"{kind}_options"] = classes[f"{kind}_options"](**options[kind])
    taken: dict[str, str] = dict.fromkeys(("guide", "prior"), "run")
    for part in ("data", "training", "run", "model_options"):
        for option in fields(classes[part]):
            if option.name in taken:
                raise BadInput(f"model {base.model}: its option '{option.name}' is already one of every fit; rename it")
            taken[option.name] = part
    about: dict[components.Kind, str] = {"guide": "Family of q(z | x)", "prior": "p(z) in place of the model's own"}
    parts: list[Any] = [
        (part, Annotated[classes[part], tyro.conf.arg(name="")], field(default=defaults[part]))
        for part in ("model_options", "data", "training", "run")
    ]
    for kind, text in about.items():
        help = f"{text}: {', '.join(components.known(kind))}, or file.py:Class"
        kind_of_name: Any = str if kind == "guide" else str | None
        options_of = classes[f"{kind}_options"]
        parts += [
            (kind, Annotated[kind_of_name, tyro.conf.arg(help=help)], field(default=names[kind])),
            (
                f"{kind}_options",
                Annotated[options_of, tyro.conf.arg(name=kind)],
                field(default=defaults[f"{kind}_options"]),
            ),
        ]
    return make_dataclass("FitCommand", parts, frozen=True)


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


def _asdict(options: Any) -> Mapping[str, Any]:
    return {option.name: getattr(options, option.name) for option in fields(options)}


def parse(arguments: list[str]) -> tuple[Config, RunOptions]:
    """The configuration that a command line `[MODEL] [options]` means, and where its run goes.

    :raises BadInput: for a command line that cannot be read, and for a model, guide or prior that is not there.
    """
    named = [arguments[0]] if arguments and not arguments[0].startswith("-") else []
    base = _defaults(named[0] if named else None, arguments)
    models = ", ".join(components.known("model"))
    description = (
        f"Train {base.model}, compare its ELBO with importance-sampled log p(x), draw pictures. Models: {models}, or "
        f"file.py:Class. To continue an interrupted run: {PROGRAM} --resume RUN."
    )
    rest = arguments[len(named) :]
    chosen: Any = cli.parse(command_class(base), rest, f"{PROGRAM} {base.model if named else 'MODEL'}", description)
    config = replace(
        base,
        model_options=_asdict(chosen.model_options),
        guide_options=_asdict(chosen.guide_options),
        prior_options=_asdict(chosen.prior_options),
        data=chosen.data,
        training=chosen.training,
        num_samples=chosen.run.num_samples,
        init_from=chosen.run.init_from,
        fixed_model=chosen.run.refit_guide is not None,
    )
    return config, chosen.run


def _defaults(model: str | None, arguments: list[str]) -> Config:
    """The configuration of which options are chosen: classes as the command line names them, or as the run does that it
    starts from; options as they have them."""
    given = {flag: _value_of(f"--{flag}", arguments) for flag in ("init-from", "refit-guide", "guide", "prior")}
    if given["refit-guide"] is not None and given["guide"] is not None:
        raise BadInput("--refit-guide: names the guide; leave --guide out")
    guide, prior = given["refit-guide"] or given["guide"], given["prior"]
    if given["init-from"] is not None:
        there = config_of(Run.open(Path(given["init-from"])), Named(model, guide, prior), swap=True)
        defaults = training_defaults(there.model)
        if given["refit-guide"] is not None:
            defaults.pop("objective", None)  # it was the model's, which stays as it is
        training = TrainingOptions(**defaults)
        return replace(there, training=training, init_from=given["init-from"])
    if model is None and not {"-h", "--help"} & set(arguments):
        models = ", ".join(components.known("model"))
        raise BadInput(f"name a model first: {PROGRAM} MODEL [options]; MODEL is {models} or file.py:Class")
    model = model or "vae"
    training = TrainingOptions(**training_defaults(model))
    data = DataOptions(**data_defaults(model))
    return Config(model=model, guide=guide or default_guide(model), prior=prior, data=data, training=training)


def command(arguments: list[str]) -> None:
    if any(argument.partition("=")[0] == "--resume" for argument in arguments):
        rest = ["--model", *arguments] if not arguments[0].startswith("-") else arguments
        about = "Continue an interrupted run with its own options; to train longer, start another with --init-from."
        given = cli.parse(ResumeCommand, rest, f"{PROGRAM} --resume RUN", about)
        resume(given.resume, given.named)
    else:
        config, options = parse(arguments)
        if options.dry_run:
            print(dry_run(config))
        else:
            fit(config, options.out)
    parallel.leave()


if __name__ == "__main__":
    cli.main(command, together=True)
