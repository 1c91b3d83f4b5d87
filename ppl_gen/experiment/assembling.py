"""Build a model and a guide from a configuration, and load their weights."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_gen.core.commands import line
from ppl_gen.core.components import construct, takes
from ppl_gen.core.contracts import ClosedForm, HasPrior, HasTopPrior, offers
from ppl_gen.core.errors import BadInput, describe
from ppl_gen.core.seeds import seed_torch
from ppl_gen.data.options import SplitName
from ppl_gen.data.splits import Data, labelled_among_others
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.experiment.state import load_weights, weights_of
from ppl_gen.inference.arguments import map_leaves
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.densities import sample_sites
from ppl_gen.inference.modes import evaluating, untouched
from ppl_gen.inference.observed import observe, restore
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.signatures import ByName, asks_for_index, takes_labels
from ppl_gen.inference.statements import SWAPPED, adopt

_FROZEN, _OWN = "_frozen_by_run", "_own_before_run"
"""Attributes of a model that hold what `release` restores."""


def assemble(config: Config, data: Data, given: Given | None = None) -> tuple[nn.Module, nn.Module]:
    """Model and guide on the data's device, with the weights that training starts from.

    :param given: classes and instances of the user's own. An instance keeps its weights.
    :raises BadInput: for classes, options or shapes that do not fit one another.
    """
    given = given or Given()
    release(given.model)
    restore(given.guide)
    device = data.train.images.device
    supplied: dict[str, Any] = {
        "data_shape": data.shape,
        "data_dim": data.dim,
        "data_mean": data.mean().cpu(),
        "data_examples": data.examples(config.training.seed).cpu(),
        "data_levels": data.levels,
        "num_classes": num_classes(data),
        "labelled_share": _labelled_share(data, config.training.labelled_share),
        "num_images": len(data.train) + len(data.test),
    }
    with torch.random.fork_rng([]):
        seed_torch(config.training.seed)
        model = construct("model", given.find("model", config.model), supplied, config.model_options)
        name, shape = _latent_site(model, data)
        supplied |= {"model": model, "latent_name": name, "latent_dim": shape[0] if shape else 1}
        guide = construct("guide", given.find("guide", config.guide), supplied, config.guide_options)
        if config.prior is not None:
            _swap_prior(model, config, given, supplied | {"guide": guide})
    for part, kind in ((model, "model"), (guide, "guide")):
        if not isinstance(part, nn.Module):
            raise BadInput(f"{kind} {type(part).__name__} must be a torch.nn.Module")
    with torch.random.fork_rng([]):
        seed_torch(config.training.seed)
        rows = torch.arange(3, device=device) % len(data.train)
        x, *others = map_leaves(torch.Tensor.cpu, batch(model, guide, data, rows))
        adopt(model, guide, x.nan_to_num(0), *others)
    if data.train.missing is not None:
        observe(model, guide)
    if config.fixed_model:
        vars(model)[_FROZEN] = [name for name, each in model.named_parameters() if each.requires_grad]
        model.requires_grad_(False)
    return model.to(device), guide.to(device)


def num_classes(data: Data) -> int | None:
    """Number of classes of all images, 1 + the largest label; None without labels, and with labels that are no whole
    numbers."""
    given = [split.labels for split in (data.train, data.validation, data.test) if len(split)]
    if any(labels is None or labels.is_floating_point() or int(labels.min()) < 0 for labels in given):
        return None
    return 1 + max(int(labels.max()) for labels in given if labels is not None)


def _labelled_share(data: Data, repeated: float | None) -> float:
    """Share of the images of a training batch whose label a model and a guide are given.

    :param repeated: share of each batch that is filled with labelled images.
    """
    labels = data.train.given_labels
    share = 0.0 if labels is None else float((labels >= 0).double().mean())
    return share + (repeated or 0.0) * (1 - share) if labelled_among_others(data.train) is not None else share


def release(model: Any) -> None:
    """Undo what a run does to an instance besides training its weights, so that the next run finds it as its user made
    it: a prior in the place of its own, and weights that are not trained."""
    if not isinstance(model, nn.Module):
        return
    restore(model)
    thaw(model)
    own = vars(model).pop(_OWN, None)
    if own is not None:
        del model.swapped_prior
        for name in (*SWAPPED, "log_px"):
            vars(model).pop(name, None)
        vars(model).update(own)


def thaw(model: nn.Module) -> None:
    """Let the weights of a model that a run has kept fixed be trained again."""
    frozen = vars(model).pop(_FROZEN, [])
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_()


def batch(model: nn.Module, guide: nn.Module, data: Data, rows: Tensor) -> tuple[Any, ...]:
    """Training images, with the further arguments of the pair."""
    return data.targets("train", rows), *arguments(model, guide, data, "train")(rows)


def arguments(model: nn.Module, guide: nn.Module, data: Data, split: SplitName) -> Callable[[Tensor], tuple[Any, ...]]:
    """A function that returns the arguments after x for the images of a split at some rows: their labels, if there are
    any and the pair takes them, and their row numbers among training and test images, if it asks for `index`.

    :raises BadInput: for row numbers of validation images.
    """
    labels = data.split(split).given_labels if takes_labels(model, guide) else None
    by_index, first = asks_for_index(model, guide), len(data.train) if split == "test" else 0
    if by_index and split == "validation":
        who = type(guide).__name__
        raise BadInput(f"--split validation: {who} has parameters for each training and test image, but none for these")

    def of_rows(rows: Tensor) -> tuple[Any, ...]:
        args: tuple[Any, ...] = () if labels is None else (labels[rows],)
        return (*args, ByName(index=rows + first)) if by_index else args

    return of_rows


def read_pair(model: nn.Module, guide: nn.Module, images: tuple[Any, ...]) -> Pair:
    """The pair of a model and a guide, read on images and their further arguments."""
    with untouched(model, guide), evaluating(model, guide):
        pair = Pair.read(model, guide, *images)
        check_images(pair, *images)
        return pair


def _swap_prior(model: Any, config: Config, given: Given, supplied: Mapping[str, Any]) -> None:
    """Replace the model's `prior()`, or its `top_prior()`, by another prior, which is trained and saved with the
    model."""
    assert config.prior is not None
    cls = given.find("prior", config.prior)
    closed = offers(model, ClosedForm)
    if offers(model, HasPrior) and supplied["latent_name"] is not None:
        method = "prior"
    elif offers(model, HasTopPrior):
        method = "top_prior"
    else:
        raise BadInput(
            f"--prior {config.prior}: {type(model).__name__} has no prior() of one latent site, and no top_prior() of "
            "several layers; leave this option out"
        )
    if config.fixed_model and takes(cls, "guide"):
        raise BadInput(f"--prior {config.prior}: is made from the guide, so the guide can't be refitted")
    before = getattr(model, method)()
    if method == "top_prior":
        supplied = {**supplied, "latent_dim": before.event_shape[0] if before.event_shape else 1}
    prior = construct("prior", cls, supplied, config.prior_options)
    if not isinstance(prior, nn.Module):
        raise BadInput(f"prior {type(prior).__name__} must be a torch.nn.Module")
    vars(model)[_OWN] = {name: vars(model)[name] for name in (*SWAPPED, "log_px") if name in vars(model)}
    model.add_module("swapped_prior", prior)
    setattr(model, method, prior.prior)
    if closed:
        model.log_px = None  # the closed form is of the model's own prior
    try:
        with evaluating(model):
            after = getattr(model, method)()
            kinds = [_kind(each) for each in (after, before)]
    except RecursionError as error:
        raise BadInput(
            f"--prior {config.prior}: is made from the guide {config.guide}, which needs the prior; choose another "
            "guide"
        ) from error
    except Exception as error:  # user code
        raise BadInput(f"--prior {config.prior}: prior() fails: {describe(error)}") from error
    if kinds[0] != kinds[1]:
        raise BadInput(f"--prior {config.prior}: is {kinds[0]}, but the latent of {type(model).__name__} is {kinds[1]}")


def _kind(distribution: Any) -> str:
    kind = "discrete" if distribution.support.is_discrete else "continuous"
    return f"{kind} with event shape {tuple(distribution.event_shape)}"


def _latent_site(model: Any, data: Data) -> tuple[str | None, tuple[int, ...]]:
    """Name and event shape of the model's one latent site; no name if there are several. Sites to be enumerated do not
    count beside others."""
    try:
        with untouched(model), evaluating(model), torch.random.fork_rng([]):
            sites = sample_sites(poutine.trace(model.model).get_trace())
    except Exception as error:  # user code
        name, why = type(model).__name__, describe(error)
        raise BadInput(f"model {name}: model(self, x=None, *, n=1) cannot be called without images: {why}") from error
    latents = [site for site in sites if not site["is_observed"] and site["name"] != "x"]
    if len(latents) > 1:  # some may be labels: the model draws those that it is not given
        images = [data.complete("train", slice(2)).cpu()]
        if data.train.given_labels is not None and takes_labels(model, model):
            images.append(data.train.given_labels[:2].cpu())
        # What fails is raised again when the pair is read.
        with untouched(model), evaluating(model), torch.random.fork_rng([]), suppress(Exception):
            seen = sample_sites(poutine.trace(model.model).get_trace(*images))
            observed = {site["name"] for site in seen if site["is_observed"]}
            latents = [site for site in latents if site["name"] not in observed]
    sampled = [site for site in latents if site["infer"].get("enumerate") != "parallel"]
    latents = sampled or latents
    if len(latents) != 1:
        return None, ()
    return latents[0]["name"], tuple(latents[0]["fn"].event_shape)


# Weights -------------------------------------------------------------------------------------------------------


def load_checkpoint(run: RunDirectory, model: nn.Module, guide: nn.Module, checkpoint: Checkpoint) -> Json:
    """Load the weights of a run into a model and a guide. Returns the progress of its training: `epoch`, `step`."""
    content = run.load_checkpoint()
    if content is None:
        raise BadInput(f"{run.path}: has no checkpoint; train it with {line(['--resume', run.path])}")
    tensors = weights_of(content[0], checkpoint)
    if not tensors:
        raise BadInput(
            f"--checkpoint {checkpoint}: {run.path} has none: training had no validation split or no ELBO; use last"
        )
    load_weights(nn.ModuleDict({"model": model, "guide": guide}), tensors, run.checkpoint_path, f"{checkpoint}.")
    run.loaded = content[1]["step"]
    return content[1]
