"""Training steps as the training loop makes them, on noise in the shape of images."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from benchmarks.timing import medians
from ppl_gen.core.components import find
from ppl_gen.core.contracts import defaults_of
from ppl_gen.core.interrupts import Interrupted
from ppl_gen.data.splits import Data, Split
from ppl_gen.experiment.assembling import assemble
from ppl_gen.experiment.config import Config
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives import construct
from ppl_gen.inference.pair import Pair
from ppl_gen.run import Run
from ppl_gen.training.loop import Loop, loss_per_image, loss_with_gradient, objective_for
from ppl_gen.training.optimizer import OneOptimizer
from ppl_gen.training.recorded import RecordedGradient


def noise(num_images: int, shape: tuple[int, int] = (28, 28)) -> Data:
    """As many images of independent pixels, each split of them."""
    split = Split(torch.bernoulli(torch.full((num_images, shape[0] * shape[1]), 0.2)))
    return Data("noise", shape, "threshold", split, split, split)


def training_step(model: nn.Module, guide: nn.Module, x: Tensor, options: TrainingOptions) -> Callable[[], object]:
    """A step of SVI on the same images; to be called within `pyro.get_param_store().scope()`."""
    shared = {"num_particles": options.num_particles, "alpha": options.alpha, "beta": options.beta}
    objective = construct(options.objective, **shared)  # type: ignore[arg-type]
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x[:8])
    loss = partial(loss_per_image, objective_for(options, objective, pair, x[:8]))
    modules = nn.ModuleDict({"model": model, "guide": guide})
    loss_and_grads: Callable[..., Any] = partial(loss_with_gradient, loss)
    if x.is_cuda and not pair.enumerated:
        loss_and_grads = RecordedGradient(loss, modules, loss_and_grads)
    optimizer = OneOptimizer([p for p in modules.parameters() if p.requires_grad], options)
    svi = SVI(pair.model, pair.guide, optimizer, loss=loss, loss_and_grads=loss_and_grads)
    return lambda: svi.step(x)


def step_of(
    model: str, num_images: int, shape: tuple[int, int] = (28, 28), guide: str | None = None, **model_options: Any
) -> Callable[[], object]:
    """The same of a model by its name, with its default guide and options unless told otherwise."""
    data = noise(num_images, shape)
    defaults = defaults_of(find("model", model))
    options = TrainingOptions(**defaults.training_defaults)
    guide = guide or defaults.default_guide
    config = Config(model=model, model_options=model_options, guide=guide, training=options)
    return training_step(*assemble(config, data), data.train.images[:], options)


def milliseconds_of(runs: Sequence[Path], rounds: int = 30) -> list[float]:
    """Processor time of a training step of each run, on one core, with the run's weights, options and first images.

    The runs are left as they are. Their steps are taken in turn, and each number is a median.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, pyro.get_param_store().scope():
            steps: dict[str, Callable[[], object]] = {}
            for number, run in enumerate(runs):
                copied = shutil.copytree(run, Path(folder, str(number)))
                loop = Loop(Run.open(copied).fitted, Interrupted(), quiet=True)
                loop.state.step = 0  # at the learning rate of the first step
                steps[str(number)] = partial(loop.step, torch.arange(loop.size))
            found = medians(steps, rounds=rounds, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    return [1000 * seconds for seconds in found.values()]
