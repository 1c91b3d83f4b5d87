"""A run as the folders above this one use it: directory, configuration, model, guide, data and pair."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_gen.core.commands import line
from ppl_gen.core.contracts import ChecksPair, NamesQuantity, Objective, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import seed_torch
from ppl_gen.data.loading import load_data
from ppl_gen.data.options import SplitName
from ppl_gen.data.splits import Data
from ppl_gen.experiment.assembling import arguments, assemble, batch, load_checkpoint, read_pair
from ppl_gen.experiment.config import Config, Given, changed_code, config_of, continuing
from ppl_gen.experiment.options import Checkpoint
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.experiment.state import tensors_of, weights_of
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.signatures import asks_for_index, takes_labels

_READ = 8  # number of images that a pair is read on
_AT_ONCE = 10_000  # images that are looked at in one step


@dataclass
class Assembled:
    """Model, guide and data of a configuration, on one device."""

    config: Config
    model: nn.Module
    guide: nn.Module
    data: Data
    given: Given

    @classmethod
    def make(cls, config: Config, data: Data, given: Given) -> "Assembled":
        """Model and guide with the weights that training starts from."""
        return cls(config, *assemble(config, data, given), data, given)

    def first_images(self, count: int) -> tuple[Tensor, ...]:
        """The first training images, with their labels if the pair takes any."""
        rows = torch.arange(min(count, len(self.data.train)), device=self.data.train.images.device)
        return batch(self.model, self.guide, self.data, rows)

    @cached_property
    def batch(self) -> tuple[Tensor, ...]:
        """The first 8 training images, with their labels if the pair takes any."""
        return self.first_images(_READ)

    @cached_property
    def pair(self) -> Pair:
        """The pair of model and guide, read on `batch`."""
        return read_pair(self.model, self.guide, self.batch)

    @cached_property
    def objective(self) -> Objective:
        """The training objective. If it has weights, they are drawn from the seed."""
        training, given = self.config.training, self.given.objective
        with torch.random.fork_rng([]):
            seed_torch(training.seed)
            objective = construct(
                training.objective if given is None else given,
                num_particles=training.num_particles,
                alpha=training.alpha,
                beta=training.beta,
                options=self.config.objective_options,
            )
            if isinstance(objective, nn.Module) and isinstance(objective, ChecksPair):
                objective.check(self.pair, *self.batch)  # makes weights whose number depends on the pair
        if isinstance(objective, nn.Module):
            objective.to(self.data.train.images.device)
        return objective

    @property
    def modules(self) -> nn.ModuleDict:
        """Model and guide."""
        return nn.ModuleDict({"model": self.model, "guide": self.guide})

    @property
    def trained(self) -> nn.ModuleDict:
        """Model and guide, and the objective if it is a module."""
        parts = {"model": self.model, "guide": self.guide, "objective": self.objective}
        return nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, nn.Module)})

    @property
    def incomplete(self) -> bool:
        """True if images have missing pixels, so that log p(x) is that of the observed ones."""
        return self.data.train.missing is not None

    def quantity(self, x: Tensor, *labels: Tensor) -> str:
        """The name of what is evaluated on images: the model's own name; else `log p(x)`. If labels are given, it is
        `log p(x, y)` if the model has more observed sites than the images, such as the labels, else `log p(x | y)`.
        With missing pixels, `x_obs` is the observed ones. If the model observes other values than the images, f(x), it
        is their density or probability."""
        # An attribute of this name that is no text means something else.
        if offers(self.model, NamesQuantity) and isinstance(self.model.quantity, str):
            return self.model.quantity
        given = any(isinstance(each, Tensor) and bool((each >= 0).any()) for each in labels)
        y = "" if not given else " | y" if len(self.pair.observed) == 1 else ", y"
        missing = any(bool(part.isnan().any()) for part in x.split(_AT_ONCE))
        seen = "x_obs" if missing else "x"
        return f"log p({seen if self.pair.observes_x else f'f({seen})'}{y})"

    def require_complete(self, what: str) -> None:
        """Raise `BadInput` for images with missing pixels.

        :param what: subject of the message, which needs complete images.
        """
        if self.incomplete:
            raise BadInput(f"{what}: needs complete images, but the run has missing pixels (--missing)")

    @property
    def takes_labels(self) -> bool:
        """True if the model or the guide takes labels y."""
        return takes_labels(self.model, self.guide)

    @property
    def per_image(self) -> bool:
        """True if the guide or the model has parameters for each image, which it finds by `index`."""
        return asks_for_index(self.model, self.guide)

    def require_amortized(self, what: str) -> None:
        """Raise `BadInput` for a pair with parameters for each image.

        :param what: subject of the message, which needs q(z | x) of other images.
        """
        if self.per_image:
            who = self.pair.guide_name
            raise BadInput(f"{what}: needs q(z | x) of other images, but {who} has parameters for each of its own")

    def images(self, split: SplitName, count: int | None = None, step: int = 1) -> tuple[Any, ...]:
        """The first images of a split, or every `step`-th one, as targets, with the further arguments of the pair
        (`arguments`)."""
        x = self.data.targets(split, slice(0, None if count is None else step * count, step))
        return x, *arguments(self.model, self.guide, self.data, split)(step * torch.arange(len(x), device=x.device))

    @contextmanager
    def estimating(self, seed: int) -> Iterator[None]:
        """Eval mode, matrix products in full float32, and noise from `seed`. All are restored afterwards."""
        with evaluating(self.model, self.guide), matmul_precision(), forked_rng(self.data.train.images):
            seed_torch(seed)
            yield

    def within(self, directory: RunDirectory) -> "Fitted":
        """The same model, guide and data, with a run directory."""
        fitted = Fitted(self.config, self.model, self.guide, self.data, self.given, directory)
        vars(fitted).update(vars(self))  # with the cached values: the pair is not read again
        return fitted


@dataclass
class Fitted(Assembled):
    """Model, guide and data of a run, with its directory."""

    directory: RunDirectory

    @classmethod
    @torch.inference_mode(False)  # else the weights could have no gradients later
    def open(
        cls, path: str | Path, given: Given | None = None, *, checkpoint: Checkpoint = "last", device: str = "auto"
    ) -> "Fitted":
        """A run with the weights of a checkpoint. Warns on standard error if code has changed since the run was made,
        or if training was not finished.

        :param given: classes, instances and images of the user's own, handed over again.
        :param checkpoint: `last`: the weights after the last epoch; `best`: those after the epoch with the best
            validation ELBO.
        :param device: `auto`, `cpu` or `cuda`.
        :raises BadInput: for a directory that is no run, a checkpoint that is damaged or does not match the
            configuration, code or images that are not handed over again, and a missing device.
        """
        given = given or Given()
        check_precision()
        directory = RunDirectory.open(path)
        config = config_of(directory, given)
        where = resolve_device(device)
        for name in changed_code(directory, config, given):
            print(f"warning: {name} has changed since the run was fitted", file=sys.stderr)
        data = load_data(config.data, given.data)
        check_same_images(directory, data)
        fitted = Assembled.make(config, data.to(where), given).within(directory)
        state = load_checkpoint(directory, fitted.model, fitted.guide, checkpoint)
        epochs = config.training.epochs
        # `stopped` is the number of epochs that were planned when a hook ended training, 0 if none has.
        if state["epoch"] < epochs and state.get("stopped") != epochs:
            done = f"after {state['epoch']} of {epochs} epochs"
            print(f"warning: training stopped {done}; continue with {continuing(Path(path), config)}", file=sys.stderr)
        return fitted

    def check_weights(self, checkpoint: Checkpoint) -> None:
        """Raise `BadInput` if the weights in memory are not those of the checkpoint: another fit of the same instance
        has trained them, or the user has changed them."""
        content = self.directory.load_checkpoint()
        if content is None:
            again = line(["--resume", self.directory.path])
            raise BadInput(f"{self.directory.path}: its checkpoint is missing; train it with {again}")
        ours, theirs = tensors_of(self.modules), weights_of(content[0], checkpoint)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name].cpu(), theirs[name]) for name in ours):
            raise BadInput(
                f"{self.directory.path}: the weights of its model and guide have changed since they were saved, "
                "such as by another fit of the same instance; open the run again with an instance of its own"
            )

    @property
    def step(self) -> int | None:
        """Number of training steps of the weights in memory; None if they were never saved."""
        return self.directory.step() if self.directory.loaded is None else self.directory.loaded

    def provenance(self, options: Any) -> Json:
        """The keys of a result that record its model, guide, images, weights and seeds.

        :param options: the options of the evaluation, with `split`, `checkpoint` and `seed`.
        """
        missing = self.data.split(options.split).share_missing
        return {
            "model": self.config.model,
            "guide": self.config.guide,
            **({} if self.config.prior is None else {"prior": self.config.prior}),
            "data": self.data.name,
            "split": options.split,
            "binarization": self.data.binarization,
            **({"missing": missing} if missing else {}),
            "checkpoint": options.checkpoint,
            "seed": options.seed,
            "training_seed": self.config.training.seed,
            "training_step": self.step,
        }


class Loaded(NamedTuple):
    """The four results of `load`, by name."""

    model: nn.Module
    guide: nn.Module
    data: Data
    config: Json


def load(
    run: str | Path,
    guide: Any = None,
    *,
    model: Any = None,
    prior: Any = None,
    data: Any = None,
    checkpoint: Checkpoint = "last",
    device: str = "cpu",
) -> Loaded:
    """Model, guide, data and configuration of a run. Model and guide are in eval mode until `train()` is called:
    without dropout, and with the moments that batch normalization has learned. Parameters are those of `Run.open`.

    :raises BadInput: for a directory that is no run, a damaged checkpoint, or one that does not match its config.
    """
    fitted = Fitted.open(run, Given(model, guide, prior, data=data), checkpoint=checkpoint, device=device)
    return Loaded(fitted.model.eval(), fitted.guide.eval(), fitted.data, fitted.directory.config)


def resolve_device(name: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`. Raises `BadInput` for another one, and for `cuda` on a machine without
    one."""
    if isinstance(name, str) and name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f"--device {name}: choose from auto, cpu, cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        which = " of that number" if device.index else ""
        raise BadInput(f"--device {name}: torch finds no CUDA device{which}; use --device cpu")
    return device


def check_precision() -> None:
    """Raise `BadInput` unless torch makes weights in float32, as images are."""
    if (dtype := torch.get_default_dtype()) is not torch.float32:
        raise BadInput(
            f"torch's default dtype is {dtype}, but runs need float32; call torch.set_default_dtype(torch.float32)"
        )


def check_same_images(directory: RunDirectory, data: Data) -> None:
    """Raise `BadInput` for images that were handed over again and are not those of the run."""
    recorded = directory.config.get("data_sha256")
    if data.sha256 is not None and recorded is not None and data.sha256 != recorded:
        raise BadInput(
            f"--data {data.name}: {directory.path} was fitted to other images: the SHA-256 of its images begins with "
            f"{recorded[:8]}, the SHA-256 of the given images with {data.sha256[:8]}"
        )
