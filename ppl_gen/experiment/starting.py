"""Start of training from the weights of another run."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_gen.core.components import class_name, is_external
from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import seed_torch
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Given, tuples
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.experiment.state import check, prefixed, tensors_of
from ppl_gen.inference.densities import alike, masked_log_prob, sample_sites
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.signatures import accepting


def start_from(path: str | Path, model: nn.Module, guide: nn.Module) -> str:
    """Copy the last weights of a run into a model and a guide. The model gets all of its weights. The guide gets those
    that have the same name and shape in both guides, so that a model can be given another guide.

    :returns: a sentence that says which weights were copied.
    :raises BadInput: for a directory that is no run, a run without weights, and a run of another model.
    """
    run = RunDirectory.open(Path(path))
    content = run.load_checkpoint()
    if content is None:
        raise BadInput(f"--init-from {path}: has no checkpoint")
    theirs = prefixed(content[0], "last.")
    ours = tensors_of(nn.ModuleDict({"model": model, "guide": guide}))
    fits = {name for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape}
    for name in sorted(theirs.keys() | ours.keys()):
        if name.startswith("model.swapped_prior.") and name not in fits:
            raise BadInput(f"--init-from {path}: its model has another --prior")
        if name.startswith("model.") and name not in fits:
            raise BadInput(
                f"--init-from {path}: its model differs: '{name}' is missing in one of them, or has another shape"
            )
    copied, replaced = ({name: tensors[name] for name in fits} for tensors in (theirs, ours))
    check(copied, replaced, run.checkpoint_path, "last.")
    for name in fits:
        ours[name].copy_(theirs[name])
    guides = sum(name.startswith("guide.") for name in ours)
    taken = sum(name.startswith("guide.") for name in fits)
    return f"starts from {run.path}: its model, and {taken} of the {guides} tensors of the guide"


def steps_of(path: str | Path | None) -> int | None:
    """Number of steps that the run which training starts from has had; None without one."""
    content = None if path is None else RunDirectory.open(Path(path)).load_checkpoint()
    return None if content is None else int(content[1]["step"])


def start(assembled: Assembled) -> str:
    """Copy the weights of the run that training starts from, as `start_from` does, and compare the models.

    :returns: a sentence for the user.
    :raises BadInput: as `start_from` does; and if the model is to stay as it is, but computes something else.
    """
    config = assembled.config
    assert config.init_from is not None
    sentence = start_from(config.init_from, assembled.model, assembled.guide)
    run = RunDirectory.open(Path(config.init_from))
    _warn_of_changes(run, assembled)
    difference = _difference(run, assembled)
    if difference is not None and config.fixed_model:
        raise BadInput(
            f"--init-from {config.init_from}: its model is to stay as it is, but {difference}; give the model of that "
            "run, or train it too (options of the guide begin with --guide.)"
        )
    return sentence if difference is None else f"{sentence}; the model is another function of them: {difference}"


def _warn_of_changes(run: RunDirectory, assembled: Assembled) -> None:
    """Warn on standard error if the code of the model or its prior has changed since the run was made."""
    for kind in ("model", "prior"):
        name, stored = getattr(assembled.config, kind), run.config.get(kind)
        if name is not None and stored is not None and class_name(name) == class_name(stored):
            now = assembled.given.fingerprint(kind, name, stored)
            if now != run.config.get(f"{kind}_sha256"):
                print(f"warning: {name} has changed since {run.path} was fitted", file=sys.stderr)


def _difference(run: RunDirectory, assembled: Assembled) -> str | None:
    """What makes a model another function of its weights than in a run, such as an option that no shape shows: the
    densities of a few images differ. None if nothing does, and where that cannot be told."""
    config, given, name = assembled.config, assembled.given, run.config["model"]
    own = None
    if is_external(name):
        if class_name(name) != class_name(config.model):
            return f"the model is {config.model}, not {name}"
        if isinstance(given.model, nn.Module):  # the options of an instance are not known
            return None
        own, name = given.model, config.model
    guide = copy.deepcopy(given.guide) if isinstance(given.guide, nn.Module) else given.guide
    options: dict[str, Any] = {key: tuples(run.config.get(key)) for key in ("model_options", "prior", "prior_options")}
    images = assembled.first_images(4)
    try:
        there = replace(config, model=name, fixed_model=False, **options)
        other, _ = assemble(there, assembled.data, Given(model=own, guide=guide, prior=given.prior))
        ours, theirs = (tensors_of(nn.ModuleDict({"model": each})) for each in (assembled.model, other))
        for key, tensor in theirs.items():
            tensor.copy_(ours[key])
        ours_here = _densities(assembled.model, images)
    except Exception:  # code of a user's own, which is tried again where it is used
        return None
    try:
        theirs_here = _densities(other, images)
    except Exception:  # these images are none of the run's, such as grey ones
        theirs_here = {}
    same = ours_here.keys() == theirs_here.keys()
    if same and all(alike(density, theirs_here[key]) for key, density in ours_here.items()):
        return None
    changed = [
        f"{key} is {value}, not {options['model_options'][key]}"
        for key, value in config.resolved(given).model_options.items()
        if key in options["model_options"] and tuples(value) != options["model_options"][key]
    ]
    return " and ".join(changed) or "the same weights give other densities of images"


def _densities(model: Any, images: tuple[Any, ...]) -> dict[str, Tensor]:
    """The log-densities of images and of z from the prior, by site; the same z for two models of one prior."""
    with evaluating(model), torch.random.fork_rng([]), torch.no_grad():
        seed_torch(0)
        trace = poutine.trace(accepting(model.model)).get_trace(*images)
        return {site["name"]: masked_log_prob(site) for site in sample_sites(trace)}
