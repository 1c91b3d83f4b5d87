"""The one training loop.

`SVI` steps a Pyro pair on batches of images. The plate of images is unscaled and the loss is divided by the batch
size, so that the loss is nats per image and no scale enters the log-weights of any objective.

A checkpoint holds everything that the next step depends on: weights, optimizer, step, and the state of the random
number generators. The order of the images in an epoch depends on the seed and the epoch alone. A resumed run thus ends
with the same weights, bit for bit, as one that was never interrupted, on the same machine and number of threads.

Of several processes each takes its share of every batch, with noise that depends on the seed, the step and the
process. Their gradients are averaged by images before each step, so that all hold the same weights; the first measures
and saves.
"""

import inspect
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ppl_gen import parallel
from ppl_gen.batches import batches, least_images
from ppl_gen.capture import Captured
from ppl_gen.data import Data
from ppl_gen.errors import BadInput, Failed
from ppl_gen.experiment.options import TrainingOptions
from ppl_gen.inference.annealed import fit_scale
from ppl_gen.inference.callables import evaluating, function_of, matmul_precision
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.inference.objectives import Adversarial, ScaleLatents, objective, recordable, scaled
from ppl_gen.inference.traces import Pair
from ppl_gen.memory import keep_freed_memory
from ppl_gen.progress import Progress
from ppl_gen.runs import Run
from ppl_gen.state import restore, snapshot, tensors_of

_MONITOR_IMAGES = 10_000  # of the training split, to be measured as the validation split is
SAMPLES = "samples.npz"
"""What a run keeps of its samples through training: arrays `epoch_<number>` [samples, data_dim]."""
_SAMPLES_KEPT = 10
_SCALE_IMAGES = 50  # to choose the noise of a density on
_MONITOR_SEED = 11  # the same noise at every epoch, so that curves and the best epoch are comparable

_NOISE_STREAM = 0x1E3779B97F4A7C15  # so that the noise does not repeat the draws that made the weights


def objective_for(options: TrainingOptions, pair: Pair, *batch: Tensor) -> ELBO:
    """The Pyro ELBO that training options mean for a pair, tried on a few images.

    :raises BadInput: if the pair cannot have it.
    """
    elbo = objective(
        options.objective,
        pair,
        *batch,
        num_particles=options.num_particles,
        alpha=options.alpha,
        beta=options.beta,
    )
    if options.kl_warmup and not isinstance(elbo, Trace_ELBO | TraceMeanField_ELBO | TraceGraph_ELBO):
        raise BadInput(f"--kl-warmup {options.kl_warmup}: scales the KL term, which this objective does not have")
    if options.capture:
        if parallel.size() > 1:
            raise BadInput(f"--capture: takes one process, not {parallel.size()}")
        return recordable(elbo, pair)
    return elbo


class Diverged(Failed):
    """The loss is not finite. The last checkpoint is kept."""


def resolve_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` names here. Raises `BadInput` for cuda where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no CUDA device; use --device cpu")
    return torch.device(name)


class _OneOptimizer(PyroOptim):
    """One fused optimizer over all parameters, behind Pyro's interface, which would make one per parameter; two where
    matrices have their own.

    SVI hands over the parameters that it saw as a set; the order of a set of tensors varies between processes, so the
    optimizer is built once from the modules' named parameters.
    """

    def __init__(self, parameters: list[nn.Parameter], options: TrainingOptions):
        self.parameters = parameters
        self.clip_grad_norm = options.clip_grad_norm
        self.parts: dict[str, torch.optim.Optimizer] = {}
        matrix = [options.optimizer == "muon" and p.dim() == 2 for p in parameters]
        if matrices := [p for p, yes in zip(parameters, matrix, strict=True) if yes]:
            # Steps as long as Adam's, so that one learning rate serves both (Liu et al. 2025, equation 4).
            self.parts["muon"] = torch.optim.Muon(
                matrices, lr=options.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
        if others := [p for p, yes in zip(parameters, matrix, strict=True) if not yes]:
            self.parts["adam"] = torch.optim.Adam(
                others, lr=options.learning_rate, betas=(options.adam_beta1, 0.999), fused=True
            )

    def set_rate(self, rate: float) -> None:
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_grad_norm)
        for part in self.parts.values():
            part.step()
        for parameter in self.parameters:
            parameter.grad = None


def train(
    model: nn.Module, guide: nn.Module, data: Data, options: TrainingOptions, run: Run, quiet: bool = False
) -> None:
    """Train a pair from the run's checkpoint, or from the start if there is none, to the last epoch.

    The first signal of an interrupt finishes the step, writes a checkpoint and raises `KeyboardInterrupt`.

    :param data: on the device of the modules.
    :param quiet: no progress on standard error.
    :raises Diverged: when the loss is not finite.
    :raises BadInput: for a pair or an objective that cannot be trained, or a checkpoint that does not fit.
    """
    keep_freed_memory()
    device = data.train.images.device
    devices = [device] if device.type == "cuda" else []
    with (
        matmul_precision(options.matmul_precision),
        pyro.get_param_store().scope(),
        torch.random.fork_rng(devices),
        interrupts() as interrupted,
        warnings.catch_warnings(),
    ):
        # Of a loss that is not finite Pyro warns; here it ends the run with a sentence.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf|-inf)")
        # Of parameters that an objective or --refit-guide keeps as they are, pyro.module warns too.
        warnings.filterwarnings("ignore", ".* was not registered in the param store")
        torch.manual_seed((options.seed + _NOISE_STREAM) % 2**63)
        _train(model, guide, data, options, run, interrupted, quiet)


def _train(
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    options: TrainingOptions,
    run: Run,
    interrupted: threading.Event,
    quiet: bool,
) -> None:
    count = len(data.train)
    size = min(options.batch_size, count)

    modules = nn.ModuleDict({"model": model, "guide": guide}).train()
    # One that stays as it is has no dropout.
    model.train(any(parameter.requires_grad for parameter in model.parameters()))
    parameters = [parameter for _, parameter in modules.named_parameters() if parameter.requires_grad]
    if not parameters:
        raise BadInput("neither model nor guide has a parameter to train")
    optimizer = _OneOptimizer(parameters, options)
    labels = data.train.labels if takes_labels(model, guide) else None
    first = torch.arange(min(8, count), device=data.train.images.device)
    args = () if labels is None else (labels[first],)
    with evaluating(model, guide):
        pair = Pair(model, guide, data.batch(first), *args)
        elbo = objective_for(options, pair, data.batch(first), *args)
    adversarial = isinstance(elbo, Adversarial)
    warmup = ScaleLatents()
    loss, loss_and_grads = _losses(elbo)
    least = 1
    if size == 1 or count % size == 1 or parallel.size() > 1:  # a batch of one image is to come, or a share
        least = least_images(
            partial(loss, pair.model, pair.guide), model, guide, size, lambda: (data.batch(first), *args)
        )
    steps_per_epoch = len(batches(torch.arange(count), size, least))
    total = options.epochs * steps_per_epoch
    captured: Captured | None = None
    together = None if parallel.size() == 1 else _Together(loss, parameters, interrupted)
    functions = [scaled(f, warmup) if options.kl_warmup else f for f in (pair.model, pair.guide)]
    svi = SVI(*functions, optimizer, loss=loss, loss_and_grads=together or loss_and_grads)

    state: dict[str, Any] = {"epoch": 0, "step": 0, "loss_sum": 0.0, "seconds": 0.0, "best": None}
    best: dict[str, Tensor] = {}
    checkpoint = run.load_checkpoint()
    if checkpoint is not None:
        tensors, state = checkpoint
        best = {name: tensor for name, tensor in tensors.items() if name.startswith("best.")}
        restore(modules, optimizer.parts, tensors, run)
    run.cut_metrics(state["step"] if checkpoint is not None else -1)
    parallel.wait()  # until all have read what is about to be written
    parallel.made_equal(list(tensors_of(modules).values()))  # whatever a class draws its first weights from
    started = time.perf_counter() - state["seconds"]

    def save() -> None:
        if not all(parameter.isfinite().all() for parameter in parameters):
            raise Diverged(_diverged(state["step"], run))  # the loss was finite, the step after it was not
        state["seconds"] = time.perf_counter() - started
        run.save_checkpoint(snapshot(modules, optimizer.parts) | best, state)

    monitored = {"train": _targets(data, "train", _MONITOR_IMAGES, labels is not None)}
    if len(data.validation):
        monitored["validation"] = _targets(data, "validation", len(data.validation), labels is not None)

    def terms(arguments: tuple[Tensor, ...]) -> dict[str, float]:
        if adversarial:
            return _adversarial_terms(model, *arguments)
        return elbo_terms(model, guide, pair, *arguments, seed=_MONITOR_SEED)

    def tried(rows: Tensor) -> tuple[Tensor, ...]:
        """A batch, without a change to the noise of the next."""
        with torch.random.fork_rng([rows.device] if rows.is_cuda else []):
            return (data.batch(rows), *(() if labels is None else (labels[rows],)))

    def verify(rows: Tensor) -> None:
        if captured is not None:
            with pyro.validation_enabled(False):
                captured.check(*tried(rows))

    shown = {0, (options.epochs + 1) // 2, options.epochs}

    def measure(mean_loss: float | None) -> None:
        nonlocal best
        if parallel.rank() > 0:
            return
        line: dict[str, Any] = {
            "epoch": state["epoch"],
            "step": state["step"],
            "seconds": time.perf_counter() - started,
            "learning_rate": options.rate(state["step"], total),
        }
        if mean_loss is not None:
            line["loss"] = mean_loss
        for name, arguments in monitored.items():
            line[name] = terms(arguments)
            if not all(math.isfinite(value) for value in line[name].values()):
                raise Diverged(_diverged(state["step"], run, impossible=line[name].get("elbo") == -math.inf))
        if "elbo" in line.get("validation", {}) and (
            state["best"] is None or line["validation"]["elbo"] > state["best"]["elbo"]
        ):
            state["best"] = {"epoch": state["epoch"], "elbo": line["validation"]["elbo"]}
            best = {f"best.{name}": tensor.clone() for name, tensor in tensors_of(modules).items()}
        run.append_metrics(line)
        if state["epoch"] in shown:
            _keep_samples(run, model, pair, state["epoch"])
        _show(progress, line, options.epochs)

    with Progress(total, "step", done=state["step"], quiet=quiet) as progress:
        if checkpoint is None:
            measure(None)
            save()
        while state["epoch"] < options.epochs:
            order = _order(count, options.seed, state["epoch"]).to(first.device)
            if options.capture and captured is None:
                rows = order[:size], order[-size:].flip(0)  # flipped: another batch, even if there is but one
                with pyro.validation_enabled(False):
                    captured = Captured(partial(loss, pair.model, pair.guide), modules, *map(tried, rows))
                svi.loss_and_grads = captured
            for index in batches(order, size, least)[state["step"] - state["epoch"] * steps_per_epoch :]:
                optimizer.set_rate(options.rate(state["step"], total))
                if options.kl_warmup:
                    warmup.scale = min(1.0, state["step"] / (options.kl_warmup * steps_per_epoch))
                args = () if labels is None else (labels[index],)
                if together:
                    # Any number of processes may go on from here: their streams are not in the checkpoint.
                    first_seed = options.seed * 1_000_003 + state["step"] + _NOISE_STREAM
                    torch.manual_seed(parallel.seed(first_seed))
                    together.whole, index = len(index), parallel.share(index, least)
                    args = () if labels is None else (labels[index],)
                with pyro.validation_enabled(False):
                    value = svi.step(data.batch(index), *args)
                stop = together.stop if together else interrupted.is_set()
                state["step"] += 1
                if not math.isfinite(value):
                    raise Diverged(_diverged(state["step"], run))
                state["loss_sum"] += value * (together.whole if together else len(index))
                progress.advance()
                if stop and state["step"] % steps_per_epoch:
                    verify(order[:size])
                    save()
                    raise KeyboardInterrupt
            verify(order[:size])
            state["epoch"] += 1
            mean_loss, state["loss_sum"] = state["loss_sum"] / count, 0.0
            if adversarial and state["epoch"] == options.epochs:
                _choose_scale(model, data)
            measure(mean_loss)
            stop = parallel.any_of(interrupted.is_set())  # measuring takes a while
            if state["epoch"] % options.checkpoint_every == 0 or state["epoch"] == options.epochs or stop:
                save()
            if stop:
                raise KeyboardInterrupt
    # Statistics of batches, and what was chosen after the last step, are each process's own.
    parallel.made_equal(list(tensors_of(modules).values()))


def _keep_samples(run: Run, model: Any, pair: Pair, epoch: int) -> None:
    """Means of p(x | z) for the same few z ~ p(z) at every epoch, for the pictures; a model need not draw images."""
    device = next(model.parameters()).device
    with evaluating(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_MONITOR_SEED)
        with suppress(Exception):  # somebody else's code, which is told when pictures are drawn
            site = poutine.trace(pair.model).get_trace(n=_SAMPLES_KEPT).nodes[pair.image]
            run.add_array(SAMPLES, f"epoch_{epoch}", site["fn"].mean.cpu().numpy())


def _adversarial_terms(model: Any, x: Tensor) -> dict[str, float]:
    """What the model says of its two losses, with its own noise."""
    with evaluating(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(_MONITOR_SEED)
        result: dict[str, float] = model.monitor(x)
    return result


def _choose_scale(model: Any, data: Data) -> None:
    """The noise of a density that was not trained, on validation images."""
    split = "validation" if len(data.validation) else "train"
    with torch.random.fork_rng([data.train.images.device] if data.train.images.is_cuda else []):
        fit_scale(model, data.targets(split)[:_SCALE_IMAGES])


def _losses(elbo: Any) -> tuple[Any, Any]:
    """Loss, and loss with its gradient, in nats per image. Pyro's own `loss_and_grads` looks for parameters in the
    trace and is slower; these are the modules' own."""

    def loss(model: Any, guide: Any, x: Tensor, *args: Any) -> Tensor:
        return elbo.differentiable_loss(model, guide, x, *args) / len(x)

    def loss_and_grads(model: Any, guide: Any, x: Tensor, *args: Any) -> Tensor:
        value = loss(model, guide, x, *args)
        value.backward()
        return value

    return loss, loss_and_grads


class _Together:
    """Loss with its gradient where several processes each have some images of a batch: the sums over processes, as
    one of them would have for all images. An interrupt that one was sent reaches all with it, after the same step."""

    def __init__(self, loss: Any, parameters: list[nn.Parameter], interrupted: threading.Event):
        self.loss, self.parameters, self.interrupted = loss, parameters, interrupted
        self.whole = 0
        """Images of the batch of all processes."""
        self.stop = False

    def __call__(self, model: Any, guide: Any, x: Tensor, *args: Any) -> float:
        told = self.parameters[0].new_zeros(2)
        if len(x):
            value = self.loss(model, guide, x, *args) * (len(x) / self.whole)
            value.backward()
            told[0] = value.detach()
        told[1] = float(self.interrupted.is_set())
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        parallel.summed(*(parameter.grad for parameter in self.parameters if parameter.grad is not None), told)
        value, stop = told.tolist()
        self.stop = stop > 0
        return value


def takes_labels(model: Any, guide: Any) -> bool:
    """Whether the signature of either function has `y`."""
    functions = (function_of(model, "model"), function_of(guide, "guide"))
    return any("y" in inspect.signature(function).parameters for function in functions)


def _targets(data: Data, name: str, count: int, with_labels: bool) -> tuple[Tensor, ...]:
    x, labels = data.targets(name, slice(count)), data.split(name).labels
    return (x, labels[:count]) if with_labels and labels is not None else (x,)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator)


def _diverged(step: int, run: Run, impossible: bool = False) -> str:
    kept = f"the last good checkpoint is kept in {run.path}. "
    if impossible:
        return (
            f"the ELBO is -inf after step {step}: the guide draws z where p(x, z) = 0; {kept}"
            "Give the guide a distribution of the prior's support"
        )
    return f"the loss is not finite at step {step}; {kept}A lower --learning-rate or --clip-grad-norm may help"


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def set_event(number: int, frame: FrameType | None) -> None:
        event.set()
        if parallel.size() == 1:  # torchrun passes on what a terminal has sent to all already
            for each, handler in before.items():
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, set_event)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(progress: Progress, line: dict[str, Any], epochs: int) -> None:
    splits = [name for name in ("train", "validation") if name in line]
    if "elbo" in line["train"]:
        what = "ELBO" if "kl" in line["train"] else "log p(x)"  # without a KL term it is exact
        figures = "  ".join(f"{name} {what} {line[name]['elbo']:.2f}" for name in splits)
    else:
        told = "V {value:.3f}, D(x) {d_real:.3f}, D(G(z)) {d_fake:.3f}"
        figures = "  ".join(f"{name} {told.format(**line[name])}" for name in splits)
    progress.note(f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}", figures)
