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
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.elbo import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ppl_gen import parallel
from ppl_gen.batches import batches, least_images
from ppl_gen.capture import Captured
from ppl_gen.core.contracts import Finishes, Monitors, Objective
from ppl_gen.data import Data
from ppl_gen.errors import BadInput, Failed, require, require_choices
from ppl_gen.inference.callables import evaluating, function_of, matmul_precision
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.inference.objectives import ScaleLatents, bind, construct, has_kl_term, recordable, scaled
from ppl_gen.inference.objectives import check as check_objective
from ppl_gen.inference.traces import Pair
from ppl_gen.memory import keep_freed_memory
from ppl_gen.progress import Progress
from ppl_gen.runs import Run
from ppl_gen.state import restore, snapshot, tensors_of

_MONITOR_IMAGES = 10_000  # of the training split, to be measured as the validation split is
SAMPLES = "samples.npz"
"""What a run keeps of its samples through training: arrays `epoch_<number>` [samples, data_dim]."""
_SAMPLES_KEPT = 10
_MONITOR_SEED = 11  # the same noise at every epoch, so that curves and the best epoch are comparable

_ADVERSARIAL = {"value": "V", "d_real": "D(x)", "d_fake": "D(G(z))"}  # terms of a GAN, as they are printed
_NOISE_STREAM = 0x1E3779B97F4A7C15  # so that the noise does not repeat the draws that made the weights


@dataclass(frozen=True)
class TrainingOptions:
    """How to train."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 1e-3
    """Of Adam, and of Muon in Adam's units; the peak of a schedule."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """cosine: falls to 0; one-cycle: rises for 30 % of the steps, then falls to 0, both as a cosine."""
    optimizer: Literal["adam", "muon"] = "adam"
    """muon: steps along the matrix nearest to a weight matrix's momentum that is orthogonal, and Adam for what is no
    matrix (Jordan et al. 2024; `torch.optim.Muon`). Fewer epochs in larger batches, at more time a step."""
    adam_beta1: float = 0.9
    """Of Adam: the decay of its mean gradient."""
    clip_grad_norm: float | None = None
    """Scale gradients whose norm is larger down to this."""
    objective: str = "elbo"
    """elbo, elbo-analytic-kl, stl, beta, iwae, dreg, renyi; vimco, rws, wake-sleep for guides of discrete z, or any;
    adversarial; or file.py:Class."""
    num_particles: int = 1
    """Samples of z per image in each step: K of iwae, dreg, renyi, vimco, rws, wake-sleep; the others average over
    them."""
    alpha: float | None = None
    """Order of the objective renyi; 0.5 by default."""
    beta: float | None = None
    """Weight of the KL term in the objective beta; 4 by default."""
    kl_warmup: int = 0
    """Epochs over which the weight of the KL term rises from 0 to 1; 0: none."""
    seed: int = 0
    """Of weights, order of images and noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of float32 matrix products in training: highest is float32; high and medium allow TF32 and bfloat16, where
    the hardware has them (on CPUs, medium alone: bfloat16). Evaluation always uses highest."""
    capture: bool = False
    """Record the operations of a step once, and run them without Pyro and autograd: the same numbers but for rounding,
    in less time where layers are small. For pairs that do the same at every step; each epoch ends with a check."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    max_hours: float = 24.0
    """Refuse training by enumeration that is estimated to take longer."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("epochs", "batch_size", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check_objective(self.objective, self.num_particles, self.alpha, self.beta)
        require(0 <= self.adam_beta1 < 1, "adam_beta1", self.adam_beta1, "must be at least 0 and below 1")
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "must be above 0")
        require(self.kl_warmup >= 0, "kl_warmup", self.kl_warmup, "must be at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")
        if self.clip_grad_norm is not None:
            require(self.clip_grad_norm > 0, "clip_grad_norm", self.clip_grad_norm, "must be above 0")
        if self.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
            raise BadInput(f"--optimizer muon: torch {torch.__version__} has none; it came with torch 2.9")
        if self.capture and self.kl_warmup:
            raise BadInput(
                f"--capture: the loss must be the same at every step, and --kl-warmup {self.kl_warmup} is not"
            )
        require(0 < self.max_hours < math.inf, "max_hours", self.max_hours, "must be above 0, and finite")

    def new_objective(self) -> Objective:
        """The objective that these options mean.

        :raises BadInput: for an option that it does not have.
        """
        return construct(self.objective, num_particles=self.num_particles, alpha=self.alpha, beta=self.beta)

    def objective_for(self, pair: Pair, *batch: Tensor, objective: Objective | None = None) -> ELBO:
        """The Pyro ELBO that these options mean for a pair, tried on a few images.

        :param objective: made by `new_objective`; by default, a new one.
        :raises BadInput: if the pair cannot have it.
        """
        objective = self.new_objective() if objective is None else objective
        elbo = bind(objective, pair, *batch)
        if self.kl_warmup and not has_kl_term(objective, pair):
            raise BadInput(f"--kl-warmup {self.kl_warmup}: scales the KL term, which this objective does not have")
        if self.capture:
            if parallel.size() > 1:
                raise BadInput(f"--capture: takes one process, not {parallel.size()}")
            recorded = recordable(objective, pair)
            return elbo if recorded is objective else bind(recorded, pair, *batch)
        return elbo

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step `step` of `total`."""
        done = step / total
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "one-cycle":
            rising = done < 0.3
            phase = done / 0.3 - 1 if rising else (done - 0.3) / 0.7
            low = 0.04 if rising else 0.0
            return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * phase)) / 2)
        return self.learning_rate


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
        objective = options.new_objective()
        elbo = options.objective_for(pair, data.batch(first), *args, objective=objective)
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
        if isinstance(objective, Monitors):
            return _monitored(objective, pair, model, guide, *arguments)
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
            if isinstance(objective, Finishes) and state["epoch"] == options.epochs:
                _finish(objective, model, data)
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


def _monitored(objective: Monitors, pair: Pair, model: Any, guide: Any, x: Tensor, *args: Tensor) -> dict[str, float]:
    """The numbers that an objective measures, with noise of its own."""
    with evaluating(model, guide), torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.manual_seed(_MONITOR_SEED)
        return objective.monitor(pair, x, *args)


def _finish(objective: Finishes, model: Any, data: Data) -> None:
    """The work of an objective after the last step, on validation images."""
    split = "validation" if len(data.validation) else "train"
    with torch.random.fork_rng([data.train.images.device] if data.train.images.is_cuda else []):
        objective.finish(model, data.targets(split))


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
        shown = _ADVERSARIAL if _ADVERSARIAL.keys() <= line["train"].keys() else {key: key for key in line["train"]}
        told = {split: ", ".join(f"{name} {line[split][key]:.3f}" for key, name in shown.items()) for split in splits}
        figures = "  ".join(f"{split} {text}" for split, text in told.items())
    progress.note(f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}", figures)
