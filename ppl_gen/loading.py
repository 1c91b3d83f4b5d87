"""From a configuration, or the directory of a run, to a model, a guide and data."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_gen import components
from ppl_gen.components import class_name, construct, find, is_external
from ppl_gen.data import Data, DataOptions, fingerprint, load_data
from ppl_gen.errors import BadInput, describe
from ppl_gen.experiment.config import Config
from ppl_gen.inference.callables import evaluating, matmul_precision
from ppl_gen.inference.statements import adopt
from ppl_gen.inference.traces import Pair, sample_sites
from ppl_gen.runs import Run
from ppl_gen.state import load_weights, prefixed, tensors_of
from ppl_gen.training import TrainingOptions, resolve_device, takes_labels

Checkpoint = Literal["last", "best"]


@dataclass(frozen=True)
class Named:
    """Classes of a run that are not the package's own. They must be named again whenever it is read: code is never run
    because a run directory points to it."""

    model: str | None = None
    """file.py:Class of the model, again, if the run was fitted with your own."""
    guide: str | None = None
    """file.py:Class of the guide, again, if the run was fitted with your own."""
    prior: str | None = None
    """file.py:Class of the prior, again, if the run was fitted with your own."""


class Loaded(NamedTuple):
    """What `load` returns."""

    model: nn.Module
    guide: nn.Module
    data: Data
    config: dict[str, Any]


def assemble(config: Config, data: Data) -> tuple[nn.Module, nn.Module]:
    """Model and guide with the weights that training starts from, on the data's device.

    :raises BadInput: for classes, options or shapes that do not fit one another.
    """
    model_class, guide_class = find("model", config.model), find("guide", config.guide)
    device = data.train.images.device
    supplied: dict[str, Any] = {
        "data_shape": data.shape,
        "data_dim": data.dim,
        "data_mean": data.mean().cpu(),
        "data_examples": data.examples(config.training.seed).cpu(),
    }
    with torch.random.fork_rng([]):
        torch.manual_seed(config.training.seed)
        model = construct("model", model_class, supplied, config.model_options)
        name, shape = _latent_site(model, data)
        supplied |= {"model": model, "latent_name": name, "latent_dim": shape[0] if shape else 1}
        guide = construct("guide", guide_class, supplied, config.guide_options)
        if config.prior is not None:
            _swap_prior(model, config, supplied | {"guide": guide})
    for part, kind in ((model, "model"), (guide, "guide")):
        if not isinstance(part, nn.Module):
            raise BadInput(f"{kind} {type(part).__name__} must be a torch.nn.Module")
    with torch.random.fork_rng([]):
        torch.manual_seed(config.training.seed)
        rows = torch.arange(3, device=device) % len(data.train)
        adopt(model, guide, *(each.cpu() for each in _batch(model, guide, data, rows)))
    if config.fixed_model:
        model.requires_grad_(False)
    return model.to(device), guide.to(device)


def _swap_prior(model: Any, config: Config, supplied: Mapping[str, Any]) -> None:
    """Let another prior answer for the model's `prior()`, and be trained and saved with it."""
    assert config.prior is not None
    cls = find("prior", config.prior)
    if not hasattr(model, "prior") or supplied["latent_name"] is None:
        raise BadInput(f"--prior {config.prior}: {type(model).__name__} has no prior() of one latent site to swap")
    if config.fixed_model and components.takes(cls, "guide"):
        raise BadInput(f"--prior {config.prior}: is made of the guide, which can't be refitted without it")
    prior = construct("prior", cls, supplied, config.prior_options)
    if not isinstance(prior, nn.Module):
        raise BadInput(f"prior {type(prior).__name__} must be a torch.nn.Module")
    before = model.prior()
    model.add_module("swapped_prior", prior)
    model.prior = prior.prior
    if hasattr(model, "log_px"):
        model.log_px = None  # the closed form was that of the model's own prior
    try:
        with evaluating(model):
            after = model.prior()
            kinds = [_kind(each) for each in (after, before)]
    except Exception as error:  # somebody else's code, or a prior and a guide that are made of each other
        raise BadInput(f"--prior {config.prior}: prior() fails: {describe(error)}") from error
    if kinds[0] != kinds[1]:
        raise BadInput(f"--prior {config.prior}: is {kinds[0]}, and the latent of {type(model).__name__} {kinds[1]}")


def _kind(distribution: Any) -> str:
    kind = "discrete" if distribution.support.is_discrete else "continuous"
    return f"{kind} with event shape {tuple(distribution.event_shape)}"


def _latent_site(model: Any, data: Data) -> tuple[str | None, tuple[int, ...]]:
    """Name and event shape of the model's one latent site; no name if there are several."""

    try:
        with evaluating(model), torch.random.fork_rng([]):
            sites = sample_sites(poutine.trace(model.model).get_trace())
    except Exception as error:  # somebody else's code
        name, told = type(model).__name__, describe(error)
        raise BadInput(f"model {name}: model(self, x=None, *, n=1) cannot be called without images: {told}") from error
    latents = [site for site in sites if not site["is_observed"] and site["name"] != "x"]
    if len(latents) > 1:  # or labels, which are drawn where there are none
        batch = [data.targets("train", slice(2)).cpu()]
        if data.train.labels is not None and takes_labels(model, model):
            batch.append(data.train.labels[:2].cpu())
        with evaluating(model), torch.random.fork_rng([]), suppress(Exception):  # told when the pair is read
            seen = sample_sites(poutine.trace(model.model).get_trace(*batch))
            observed = {site["name"] for site in seen if site["is_observed"]}
            latents = [site for site in latents if site["name"] not in observed]
    if len(latents) != 1:
        return None, ()
    return latents[0]["name"], tuple(latents[0]["fn"].event_shape)


def _batch(model: nn.Module, guide: nn.Module, data: Data, rows: Tensor) -> tuple[Tensor, ...]:
    """Training images, with their labels if the pair takes any."""
    labels = data.train.labels if takes_labels(model, guide) else None
    return data.targets("train", rows), *(() if labels is None else (labels[rows],))


def read_pair(model: nn.Module, guide: nn.Module, data: Data, count: int = 8) -> tuple[Pair, tuple[Any, ...]]:
    """The pair as read on the first few training images, and these images with their labels."""
    index = torch.arange(min(count, len(data.train)), device=data.train.images.device)
    batch = _batch(model, guide, data, index)
    with evaluating(model, guide):
        pair = Pair(model, guide, *batch)
        pair.check(*batch)
        return pair, batch


def load(
    run: str | Path,
    guide: str | None = None,
    *,
    model: str | None = None,
    prior: str | None = None,
    checkpoint: Checkpoint = "last",
    device: str = "cpu",
) -> Loaded:
    """Model, guide, data and configuration of a run; model and guide as for evaluation, without dropout and with the
    moments that batch normalization has learned, until `train()` is called.

    :param guide: the `file.py:Class` of a run that was fitted with a guide of your own. It must be named again: code
        is never run because a run directory points to it.
    :param model: likewise for a model of your own.
    :param prior: likewise for a prior.
    :param checkpoint: the last weights, or those of the epoch with the best validation ELBO.
    :raises BadInput: for a directory that is no run, a damaged checkpoint, or one that does not match its config.
    """
    opened = Run.open(Path(run))
    config = config_of(opened, Named(model, guide, prior))
    data = load_data(config.data).to(device)
    pair = assemble(config, data)
    load_checkpoint(opened, *pair, checkpoint)
    return Loaded(pair[0].eval(), pair[1].eval(), data, opened.config)


def open_fitted(
    path: Path, named: Named, *, checkpoint: Checkpoint = "last", device: str = "auto"
) -> tuple[Run, Config, nn.Module, nn.Module, Data]:
    """A run as a command works on it, with its configuration, model, guide and data on the device.

    Warns on standard error of external files that have changed since.

    :param checkpoint: as for `load`.
    :param device: auto, cpu or cuda.
    :raises BadInput: as `load` does, and for a device that is not there.
    """
    run = Run.open(path)
    config = config_of(run, named)
    where = resolve_device(device)
    for file in changed_files(run, config):
        print(f"warning: {file} has changed since the run was fitted", file=sys.stderr)
    data = load_data(config.data).to(where)
    pair = assemble(config, data)
    state = load_checkpoint(run, *pair, checkpoint)
    if state["epoch"] < config.training.epochs:
        done = f"after {state['epoch']} of {config.training.epochs} epochs"
        print(f"warning: training stopped {done}; continue with fit --resume {path}", file=sys.stderr)
    return run, config, *pair, data


def restricted(run: Run, named: Named) -> Named:
    """Those of the classes that a run was fitted with a class of one's own in the place of: for commands that take
    several runs."""
    return Named(**{kind: name for kind, name in asdict(named).items() if is_external(str(run.config.get(kind)))})


@contextmanager
def estimating(model: nn.Module, guide: nn.Module, data: Data, seed: int) -> Iterator[None]:
    """`evaluating`, with products in full float32 and noise from `seed`; all restored after."""
    images = data.train.images
    with evaluating(model, guide), matmul_precision(), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        yield


def load_checkpoint(run: Run, model: nn.Module, guide: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """Put the weights of a run into a model and a guide. Returns how far its training is: `epoch`, `step`."""
    content = run.load_checkpoint()
    if content is None:
        raise BadInput(f"{run.path}: has no checkpoint; train it with --resume {run.path}")
    tensors = prefixed(content[0], f"{checkpoint}.")
    if not tensors:
        raise BadInput(
            f"--checkpoint {checkpoint}: {run.path} has none, since it had no validation split or no ELBO in training"
        )
    load_weights(nn.ModuleDict({"model": model, "guide": guide}), tensors, run)
    run.loaded = content[1]["step"]
    return content[1]


def start_from(path: str | Path, model: nn.Module, guide: nn.Module) -> str:
    """Copy the last weights of a run into a model and a guide about to be trained: all of the model's, and of the
    guide's those that have the name and the shape of one here, so that a model can be given another guide.

    :returns: what was taken, in a sentence.
    :raises BadInput: for a directory that is no run, has no weights, or whose model is another.
    """
    run = Run.open(Path(path))
    content = run.load_checkpoint()
    if content is None:
        raise BadInput(f"--init-from {path}: has no checkpoint")
    theirs = prefixed(content[0], "last.")
    own = tensors_of(nn.ModuleDict({"model": model, "guide": guide}))
    fits = {name for name, tensor in own.items() if name in theirs and theirs[name].shape == tensor.shape}
    for name in sorted(theirs.keys() | own.keys()):
        if name.startswith("model.swapped_prior.") and name not in fits:
            raise BadInput(f"--init-from {path}: has another --prior, which is part of its model")
        if name.startswith("model.") and name not in fits:
            raise BadInput(f"--init-from {path}: its model is another: '{name}' is not in both, of one shape")
    for name in fits:
        own[name].copy_(theirs[name])
    guides = sum(name.startswith("guide.") for name in own)
    taken = sum(name.startswith("guide.") for name in fits)
    return f"starts from {run.path}: its model, and {taken} of the {guides} tensors of the guide"


def config_of(run: Run, named: Named, *, swap: bool = False) -> Config:
    """The configuration of a run.

    :param swap: let a class that is named take the place of another, with its default options.
    :raises BadInput: where code outside the package is not named again by the user, or another class is named.
    """
    content = run.config
    try:
        classes: dict[str, str | None] = {}
        options = {kind: _tuples(content.get(f"{kind}_options", {})) for kind in ("model", "guide", "prior")}
        for kind, given in asdict(named).items():
            recorded = classes[kind] = content.get("prior") if kind == "prior" else content[kind]
            if given is None:
                if recorded is not None and is_external(recorded):
                    how = f"--{kind} {recorded}"
                    raise BadInput(f"{run.path}: was fitted with the {kind} {recorded}; name it again: {how}")
            else:
                classes[kind] = given
                if recorded is None or class_name(given) != class_name(recorded):
                    if not swap:
                        raise BadInput(f"--{kind} {given}: {run.path} was fitted with {recorded or 'none'}")
                    options[kind] = {}
        assert classes["model"] is not None and classes["guide"] is not None
        return Config(
            model=classes["model"],
            model_options=options["model"],
            guide=classes["guide"],
            guide_options=options["guide"],
            prior=classes["prior"],
            prior_options=options["prior"],
            data=DataOptions(**content["data"]),
            training=TrainingOptions(**content["training"]),
            num_samples=content["num_samples"],
            init_from=content.get("init_from"),
            fixed_model=content.get("fixed_model", False),
        )
    except BadInput:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{run.path / 'config.json'}: damaged: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def heading(run: Run, config: Config, data: Data, options: Any) -> dict[str, Any]:
    """What every summary begins with: of which pair it is, and of which images.

    :param options: with `split`, `checkpoint` and `seed`.
    """
    return {
        "model": config.model,
        "guide": config.guide,
        **({} if config.prior is None else {"prior": config.prior}),
        "data": data.name,
        "split": options.split,
        "binarization": data.binarization,
        "checkpoint": options.checkpoint,
        "seed": options.seed,
        "training_seed": config.training.seed,
        "training_step": run.step() if run.loaded is None else run.loaded,
    }


def changed_files(run: Run, config: Config) -> list[str]:
    """External files that are not what they were when the run was made."""
    found = {kind: (name, components.fingerprint(name)) for kind, name in externals(config).items()}
    if run.config.get("data_sha256") is not None:
        found["data"] = config.data.data, fingerprint(config.data.data)
    return [name for kind, (name, now) in found.items() if now != run.config.get(f"{kind}_sha256")]


def externals(config: Config) -> dict[str, str]:
    """Those of model, guide and prior that are not the package's own, by kind."""
    classes = {"model": config.model, "guide": config.guide, "prior": config.prior}
    return {kind: name for kind, name in classes.items() if name is not None and is_external(name)}


def _tuples(value: Any) -> Any:
    """JSON's lists are the signatures' tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
