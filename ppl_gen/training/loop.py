"""The training loop.

`SVI` steps a Pyro pair on batches of images. The plate of images is unscaled and the loss is divided by the batch
size, so that the loss is nats per image and no scale enters the log-weights of any objective.

A checkpoint holds everything that the next step depends on: weights, optimizer, step, and the state of the random
number generators. The order of the images in an epoch depends on the seed and the epoch alone. A resumed run thus ends
with the same weights, bit for bit, as one that was never interrupted, on the same machine and number of threads.

Where several processes train, each takes its share of every batch, with noise that depends on the seed, the step and
the process. Their gradients are averaged by images before each step, so that all hold the same weights. The first
measures and saves.
"""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from pyro.infer.util import torch_item
from torch import Tensor

from ppl_gen.core import parallel
from ppl_gen.core.contracts import Finishes, Objective
from ppl_gen.core.errors import BadInput, begun
from ppl_gen.core.gradients import gradients
from ppl_gen.core.interrupts import Interrupted, interrupts
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import random_states, seed_torch, set_random_states
from ppl_gen.data.orders import Order
from ppl_gen.data.splits import labelled_among_others
from ppl_gen.experiment.assembling import arguments
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.experiment.run_directory import Json
from ppl_gen.experiment.state import check, prefixed, restore, snapshot, tensors_of
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.blame import blame
from ppl_gen.inference.direct import minus_elbo
from ppl_gen.inference.elbos import ScaleLatents
from ppl_gen.inference.independence import can_vectorize_samples
from ppl_gen.inference.modes import evaluating, forked_rng, into_training, matmul_precision, untouched
from ppl_gen.inference.objectives.loss import bind, has_kl_term
from ppl_gen.inference.pair import Pair
from ppl_gen.training.averaging import AveragedWeights
from ppl_gen.training.batches import batches, least_images, num_batches, with_labelled
from ppl_gen.training.crowding import Crowding
from ppl_gen.training.diverging import (
    Diverged,
    diverged,
    largest,
    lost,
    not_finite,
    outgrown,
    worse,
)
from ppl_gen.training.extending import record_epochs
from ppl_gen.training.monitor import Monitor, is_finite, show
from ppl_gen.training.optimizer import OneOptimizer
from ppl_gen.training.processes import SharedGradient
from ppl_gen.training.recorded import RecordedGradient, may_be_recorded
from ppl_gen.training.rows import RowsOfTestImages
from ppl_gen.training.same_step import same_step

_IN_TRAINING = "in-training."  # beginning of the names of the weights that steps change, where an average is kept
_NOISE_STREAM = 0x1E3779B97F4A7C15  # the noise must not repeat the draws that initialized the weights

OnEpoch = Callable[[Json], bool | None]
"""Function that is called after each epoch with its line of `metrics.jsonl`. `True` ends training."""


@dataclass
class State:
    """Progress of training: the part of a checkpoint that is no tensor."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    """Sum of the loss over the images of this epoch so far, in nats."""
    seconds: float = 0.0
    first_elbo: float | None = None
    """ELBO of the training images before the first step; None without one."""
    largest: float | None = None
    """Largest size of a weight before the first step."""
    best: Json | None = None
    """The epoch with the best validation ELBO so far, and that ELBO."""
    stopped: int = 0
    """Number of epochs that were planned when `on_epoch` ended training; 0 if it did not. So a run that is to have more
    epochs is not stopped."""
    trained: list[str] = field(default_factory=list)
    """Names of the parameters that are trained, in the order of the optimizer."""

    @classmethod
    def read(cls, content: Json) -> "State":
        return cls(**{each.name: content[each.name] for each in fields(cls) if each.name in content})


@gradients("training")
def train(fitted: Fitted, *, quiet: bool = False, on_epoch: OnEpoch | None = None) -> None:
    """Train a pair to the last epoch, from the run's checkpoint if there is one.

    The first signal of an interrupt finishes the step, writes a checkpoint and raises `KeyboardInterrupt`.

    :param quiet: show no progress on standard error.
    :param on_epoch: called after each epoch, before its checkpoint is written.
    :raises Diverged: if the loss is not finite, or the ELBO is worse than before by an absurd amount.
    :raises BadInput: for a pair or an objective that cannot be trained, or a checkpoint that does not fit.
    """
    keep_freed_memory()
    options = fitted.config.training
    with (
        matmul_precision(options.matmul_precision),
        pyro.get_param_store().scope(),
        forked_rng(fitted.data.train.images),
        interrupts(shared=parallel.world_size() > 1) as interrupted,
        warnings.catch_warnings(),
    ):
        # Pyro warns of a loss that is not finite. Here it ends the run with a sentence.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf|-inf)")
        # pyro.module warns of parameters that are not trained, because of the objective or --refit-guide.
        warnings.filterwarnings("ignore", ".* was not registered in the param store")
        seed_torch((options.seed + _NOISE_STREAM) % 2**63)
        loop = Loop(fitted, interrupted, quiet)
        record_epochs(fitted.directory, options, quiet=quiet)  # now that the checkpoint has been found to fit
        loop.run(on_epoch)
        vars(fitted).pop("pair", None)  # which was read before the first step: it is read again when it is asked for


class Loop:
    """The training of one run. The constructor sets up what `run` uses.

    :param interrupted: flag that ends training after the current step.
    """

    def __init__(self, fitted: Fitted, interrupted: Interrupted, quiet: bool):
        self.fitted, self.interrupted = fitted, interrupted
        self.options, self.directory = fitted.config.training, fitted.directory
        model, guide, data = fitted.model, fitted.guide, fitted.data
        count, self.device = len(data.train), data.train.images.device

        # -- modules, parameters, optimizer ---------------------------------------------------------------------
        self.modules = fitted.trained
        into_training(self.modules, model=model)
        trained = {name: each for name, each in self.modules.named_parameters() if each.requires_grad}
        self.trained, self.parameters, self.names = trained, list(trained.values()), list(trained)
        self.optimizer = OneOptimizer(self.parameters, self.options)
        decay = self.options.ema_decay
        self.average = None if decay is None else AveragedWeights(self.modules, decay)

        # -- loss -----------------------------------------------------------------------------------------------
        self.pixels = data.dim
        self.arguments = arguments(model, guide, data, "train")
        first = torch.arange(min(8, count), device=self.device)
        with evaluating(model, guide):
            self.pair = Pair.read(model, guide, *self.batch(first))
            self.few = self.batch(first)
        self.loss = self.loss_of(self.pair)

        # -- batches --------------------------------------------------------------------------------------------
        self.size, self.least = min(self.options.batch_size, count), 1
        # A batch, or the share of a process, may have one image.
        if self.size == 1 or count % self.size == 1 or parallel.world_size() > 1:
            loss = partial(self.loss, self.pair.model, self.pair.guide)
            with untouched(model, guide):
                self.least = least_images(loss, model, guide, self.size, lambda: self.batch(first))
        self.steps_per_epoch = num_batches(len(self.order(0)), self.size, self.least)
        self.total = self.options.epochs * self.steps_per_epoch

        # -- step -----------------------------------------------------------------------------------------------
        self.shared = None if parallel.world_size() == 1 else SharedGradient(self.current, self.parameters, interrupted)
        self.warmup = ScaleLatents()
        functions = [self.pair.model, self.pair.guide]
        if self.options.kl_warmup:
            functions = [self.warmup(function) for function in functions]
        usual = partial(loss_with_gradient, self.current)
        self.recorded = RecordedGradient(self.current, self.modules, usual) if self.may_be_recorded() else None
        gradient = self.shared or self.recorded or usual
        self.svi = SVI(*functions, self.optimizer, loss=self.current, loss_and_grads=self.finite(gradient))
        self.noise: dict[str, Tensor] = {}
        """States of the random number generators when the last step began to draw noise."""

        # -- progress and resumption ----------------------------------------------------------------------------
        self.state, self.best = State(), dict[str, Tensor]()
        self.resumed = self.restore()
        self.directory.cut_metrics(self.state.step if self.resumed else -1)
        parallel.barrier()  # all processes must have read the files before the first writes
        # The constructor of a user's class may draw weights that the seed does not determine.
        averages = [] if self.average is None else self.average.others.values()
        parallel.broadcast([*tensors_of(self.modules).values(), *averages])
        self.started = time.perf_counter() - self.state.seconds
        self.monitor = Monitor(fitted, self.pair)
        self.test_rows: RowsOfTestImages | None = None
        if fitted.per_image and len(data.test):
            once = self.finite(partial(loss_with_gradient, self.current))
            self.test_rows = RowsOfTestImages(fitted, self.pair, once, self.options.batch_size, self.least)
        steps = self.total + (0 if self.test_rows is None else self.test_rows.num_steps)
        self.progress = Progress(steps, "step", done=self.state.step, quiet=quiet)
        self.crowding = Crowding(torch.get_num_threads())

    def run(self, on_epoch: OnEpoch | None) -> None:
        """Train to the last epoch."""
        with self.progress:
            self.state.trained = self.names
            if not self.resumed:
                with untouched(self.fitted.model, self.fitted.guide):
                    self.measure(None)
                self.save()
            with begun(f"the last checkpoint is kept in {self.directory.path}"):
                self.epochs(on_epoch)
        if self.average is not None:
            self.average.swap()
        # Batch statistics, and what `finish` has fitted, differ between processes until here.
        parallel.broadcast(list(tensors_of(self.modules).values()))

    def epochs(self, on_epoch: OnEpoch | None) -> None:
        """Train for the epochs that are left."""
        state, options = self.state, self.options
        self.verify(self.order(state.epoch))
        while state.epoch < options.epochs and state.stopped != options.epochs:
            # -- the steps of an epoch ----------------------------------------------------------------------
            order = self.order(state.epoch)
            done = state.step - state.epoch * self.steps_per_epoch
            for index in batches(order, self.size, self.least, self.device, done):
                self.step(index)
                stop = self.shared.stop if self.shared else self.interrupted.is_set()
                if stop and state.step % self.steps_per_epoch:
                    self.verify(order)
                    self.save()
                    raise KeyboardInterrupt
            self.verify(order)

            # -- its end: measure, ask, save ----------------------------------------------------------------
            state.epoch += 1
            mean_loss, state.loss_sum = state.loss_sum / len(order), 0.0
            with self.averaged():
                if state.epoch == options.epochs:
                    self.finish()
                line = self.measure(mean_loss)
                stopped = parallel.any_rank(line is not None and on_epoch is not None and on_epoch(line) is True)
                if stopped and state.epoch < options.epochs:
                    state.stopped = options.epochs
                    self.stop_early(line)
            interrupted = parallel.any_rank(self.interrupted.is_set())  # may have come while measuring
            last = state.epoch == options.epochs or state.stopped == options.epochs
            if state.epoch % options.checkpoint_every == 0 or last or interrupted:
                self.save()
            if interrupted or parallel.any_rank(self.interrupted.is_set()):  # or while saving
                raise KeyboardInterrupt

    # One step --------------------------------------------------------------------------------------------------

    def order(self, epoch: int) -> Tensor | Order:
        """The order of the training images in an epoch. Some that have labels may be there several times."""
        data, options = self.fitted.data.train, self.options
        seed = (options.seed * 1_000_003 + epoch) % 2**63
        generator = torch.Generator().manual_seed(seed)
        order = Order(len(data), seed) if data.large else torch.randperm(len(data), generator=generator)
        if options.labelled_share is not None and (labelled := labelled_among_others(data)) is not None:
            order = with_labelled(order[:], labelled, options.labelled_share, self.size, generator)
        return order

    def batch(self, index: Tensor) -> tuple[Any, ...]:
        """Training images at `index`, newly binarized, with the further arguments of the pair."""
        return self.fitted.data.batch(index), *self.arguments(index)

    def step(self, index: Tensor) -> None:
        """One step of SVI on the images at `index`.

        :raises Diverged: when the loss is not finite.
        """
        state, options, started = self.state, self.options, time.perf_counter()
        self.optimizer.set_rate(options.rate(state.step, self.total))
        if options.kl_warmup:
            self.warmup.scale = min(1.0, state.step / (options.kl_warmup * self.steps_per_epoch))
        images = len(index)
        if self.shared:
            # Noise is seeded at each step: the checkpoint holds no generator per process, so their number may change.
            first_seed = options.seed * 1_000_003 + state.step + _NOISE_STREAM
            seed_torch(parallel.rank_seed(first_seed))
            self.shared.whole, index = images, parallel.shard(index, self.least)
        batch = self.batch(index)
        self.noise = random_states(index.is_cuda)
        with pyro.validation_enabled(False):
            value = self.svi.step(*batch)
        state.step += 1
        if self.average is not None:
            self.average.update(state.step)
        state.loss_sum += value * images
        self.progress.advance()
        if warning := self.crowding.after_step(time.perf_counter() - started):
            self.progress.warn(warning)

    def finite(self, gradient: Callable[..., Tensor | float]) -> Callable[..., float]:
        """A function of SVI that writes the gradient to the parameters, and raises before a step is taken with a loss
        that is not finite: the weights are then still those that the loss was computed with."""

        def checked(model: Any, guide: Any, *batch: Tensor) -> float:
            value = torch_item(gradient(model, guide, *batch))
            if not math.isfinite(value):
                raise Diverged(self.explained(model, guide, *batch))
            return value

        return checked

    def explained(self, model: Any, guide: Any, *batch: Tensor) -> str:
        """The message for a loss that is not finite. It names a parameter that is not, or else the first site, which
        the same step with the same noise is computed again for."""
        step, found = self.state.step + 1, not_finite(self.trained, self.optimizer)
        if found is not None:
            return diverged(step, self.directory, found)
        with forked_rng(batch[0]), pyro.validation_enabled(False):
            set_random_states(self.noise)
            if len(batch[0]):
                found = blame(self.pair, lambda pair: self.loss_of(pair)(model, guide, *batch))
        found = parallel.all_gather(found) or "every site of model and guide is finite, so look at the objective"
        return diverged(step, self.directory, found)

    def verify(self, order: Tensor | Order) -> None:
        """Compare the log-densities of the pair's methods with those of its functions, in training mode. If they
        differ, the functions serve from now on. After 0, 1, 2, 4, 8, … epochs, see whether samples can still be drawn
        together."""
        if self.state.epoch & (self.state.epoch - 1) == 0:
            self.verify_samples()
        if self.pair.direct is None:
            return
        by_functions, batch = replace(self.pair, direct=None), self.probe_batch(order[: self.size])
        if self.pair.enumerated:
            ours, theirs = (partial(self.loss_of(each), each.model, each.guide) for each in (self.pair, by_functions))
        else:
            samples = getattr(self.fitted.objective, "num_particles", 1)
            ours, theirs = (partial(minus_elbo, each, samples) for each in (self.pair, by_functions))
        with pyro.validation_enabled(False), matmul_precision():  # products of bfloat16 numbers may differ
            differ = not same_step(ours, theirs, self.modules, batch)
        if parallel.any_rank(differ):
            self.change(by_functions)
            if self.pair.enumerated:
                what = f"model() of {self.pair.model_name} differs from prior() and likelihood(z)"
            else:
                what = f"model() and guide() of {self.pair.model_name} and {self.pair.guide_name} differ from prior(), "
                what += "likelihood(z), encode(x) and posterior(context)"
            self.progress.warn(f"note: in training, {what}; steps use the former")

    def verify_samples(self) -> None:
        """Draw samples one by one from now on, if they change each other."""
        model, guide, (x, *args) = self.fitted.model, self.fitted.guide, self.few
        with untouched(model, guide), evaluating(model, guide), forked_rng(x), matmul_precision():
            mixed = self.pair.vectorized and not can_vectorize_samples(self.pair, Batch(x, tuple(args), {}))
        if parallel.any_rank(mixed):
            self.change(replace(self.pair, vectorized=False, direct=None))
            self.monitor.pair = self.pair
            if self.test_rows is not None:
                self.test_rows.pair = self.pair
            names = f"{self.pair.model_name} and {self.pair.guide_name}"
            self.progress.warn(f"note: samples of {names} change each other when drawn together; they are drawn apart")

    def change(self, pair: Pair) -> None:
        """Use another pair for the loss from now on."""
        self.pair = pair
        if self.recorded is not None:
            self.recorded.stop()
        with forked_rng(self.few[0]):
            self.loss = self.loss_of(pair)

    def loss_of(self, pair: Pair) -> Callable[..., Tensor]:
        """The loss in nats per image, as a function of a model, a guide and a batch."""
        model, guide = self.fitted.model, self.fitted.guide
        with untouched(model, guide), evaluating(model, guide):
            return partial(loss_per_image, objective_for(self.options, self.fitted.objective, pair, *self.few))

    def may_be_recorded(self) -> bool:
        """True for a step that launches the same kernels each time."""
        fitted = self.fitted
        if self.device.type != "cuda" or self.shared or self.pair.enumerated or self.options.kl_warmup:
            return False
        return may_be_recorded(fitted.model, fitted.guide, fitted.objective)

    def current(self, *arguments: Any) -> Tensor:
        """The loss of this moment: `verify` may change it."""
        return self.loss(*arguments)

    def probe_batch(self, rows: Tensor) -> tuple[Any, ...]:
        """A batch that is drawn without changing the noise of the next step."""
        with forked_rng(rows := rows.to(self.device)):
            return self.batch(rows)

    # Once in a while -------------------------------------------------------------------------------------------

    def measure(self, mean_loss: float | None) -> Json | None:
        """Measure the bounds, update the best epoch, and write and show a line. The first process does this for all.

        :param mean_loss: mean loss of the epoch, in nats per image; None before the first epoch.
        :returns: the line of `metrics.jsonl`; None in other processes.
        """
        if parallel.rank() > 0:
            return None
        state = self.state
        line: Json = {
            "epoch": state.epoch,
            "step": state.step,
            "seconds": time.perf_counter() - self.started,
            "learning_rate": self.options.rate(state.step, self.total),
        }
        if mean_loss is not None:
            line["loss"] = mean_loss
        try:
            terms = self.monitor.measure()
        except BadInput as error:  # which names the site
            if state.step == 0:
                raise
            why = not_finite(self.trained, self.optimizer) or error.sentence
            raise Diverged(diverged(state.step, self.directory, why)) from error
        line |= terms
        if not is_finite(terms):
            impossible = any(figures.get("elbo") == -math.inf for figures in terms.values())
            found = None if impossible else self.explained_measure()
            raise Diverged(diverged(state.step, self.directory, found, impossible))
        trained = terms["train"].get("elbo")
        if trained is not None and state.first_elbo is None and state.step == 0:
            state.first_elbo = trained
        if trained is not None and state.first_elbo is not None and lost(trained, state.first_elbo, self.pixels):
            raise Diverged(worse(trained, state.first_elbo, state.epoch, self.directory))
        elbo = terms.get("validation", {}).get("elbo")
        if elbo is not None and (state.best is None or elbo > state.best["elbo"]):
            state.best = {"epoch": state.epoch, "elbo": elbo}
            self.best = {f"best.{name}": tensor.clone() for name, tensor in tensors_of(self.modules).items()}
        self.directory.append_metrics(line)
        if state.epoch in {0, (self.options.epochs + 1) // 2, self.options.epochs}:
            self.monitor.keep_samples(state.epoch)
        show(self.progress, line, self.options.epochs, self.fitted.quantity(*self.fitted.batch))
        return line

    def explained_measure(self) -> str | None:
        """The parameter or the site that makes a measurement not finite; None if none is found."""
        found = not_finite(self.trained, self.optimizer)
        return found or blame(self.pair, self.monitor.measure)

    def finish(self) -> None:
        """Run the last step of the objective, if it has one, and fit the parameters of the test images, if there are
        any."""
        if self.test_rows is not None and parallel.rank() == 0:
            self.test_rows.fit(self.interrupted, self.progress)
        objective, data = self.fitted.objective, self.fitted.data
        if isinstance(objective, Finishes):
            with forked_rng(data.train.images):
                objective.finish(self.fitted.model, data.targets("validation" if len(data.validation) else "train"))

    def stop_early(self, line: Json | None) -> None:
        """Make this epoch the last."""
        self.finish()
        if line is not None:
            self.monitor.keep_samples(self.state.epoch)
            self.directory.cut_metrics(self.state.step - 1)
            self.directory.append_metrics(line | {"stopped": self.state.stopped})

    # Checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint.

        :raises Diverged: for weights that are not finite: the loss was finite, but the step after it was not.
        """
        found = not_finite(self.trained, self.optimizer)
        if found is not None:
            raise Diverged(diverged(self.state.step, self.directory, found))
        size = largest(self.parameters)
        if self.state.step == 0:
            self.state.largest = size
        elif self.state.largest is not None and (
            grown := outgrown(size, self.state.largest, self.state.step, self.directory)
        ):
            raise Diverged(grown)
        self.state.seconds = time.perf_counter() - self.started
        with self.averaged():
            tensors = snapshot(self.modules, self.optimizer.parts) | self.best
            if self.average is not None:
                tensors |= {f"{_IN_TRAINING}{name}": each for name, each in self.average.others.items()}
            self.directory.save_checkpoint(tensors, asdict(self.state))

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the modules have the weights that are measured and saved."""
        return nullcontext() if self.average is None else self.average.in_place()

    def restore(self) -> bool:
        """Restore the run's checkpoint. Returns True if there was one."""
        checkpoint = self.directory.load_checkpoint()
        if checkpoint is None:
            return False
        tensors, content = checkpoint
        self.state = State.read(content)
        if self.state.trained != self.names:  # the optimizer's state goes by their order
            other = sorted({*self.state.trained} ^ {*self.names}) or self.names
            raise BadInput(
                f"{self.directory.path}: it was trained with other parameters, such as {other[0]}; set requires_grad "
                "of your instances as it was then"
            )
        self.best = {name: tensor for name, tensor in tensors.items() if name.startswith("best.")}
        file, stepped = self.directory.checkpoint_path, self.state.step > 0
        in_training = prefixed(tensors, _IN_TRAINING)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_IN_TRAINING)}
        check(in_training, {} if self.average is None else self.average.weights, file, _IN_TRAINING)
        restore(self.modules, self.optimizer.parts, tensors, file, stepped=stepped)
        if self.average is not None:
            for name, weight in self.average.others.items():
                weight.copy_(in_training[name])
            self.average.swap()
        return True


# Parts of it that others use -----------------------------------------------------------------------------------


def objective_for(options: TrainingOptions, objective: Objective, pair: Pair, *batch: Any) -> ELBO:
    """The Pyro ELBO for an objective and a pair, tried on a few images.

    :raises BadInput: if the objective does not support the pair.
    """
    elbo = bind(objective, pair, *batch)
    if options.kl_warmup and not has_kl_term(objective, pair):
        raise BadInput(
            f"--kl-warmup {options.kl_warmup}: scales the KL term, but this objective has none; leave this option out"
        )
    return elbo


def loss_per_image(elbo: Any, model: Any, guide: Any, x: Tensor, *args: Any) -> Tensor:
    """The loss of a batch in nats per image."""
    loss: Tensor = elbo.differentiable_loss(model, guide, x, *args)
    return loss / len(x)


def loss_with_gradient(loss: Callable[..., Tensor], model: Any, guide: Any, *batch: Tensor) -> Tensor:
    """The loss, after its gradient is written to the parameters. Pyro's own `loss_and_grads` searches the trace for
    parameters and is slower. Here they are the parameters of the modules."""
    value = loss(model, guide, *batch)
    value.backward()
    return value
