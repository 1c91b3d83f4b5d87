"""Checks before the first step: model, guide and data against each other, and the cost of training."""

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.transforms import BatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook

from ppl_gen.core import components, parallel
from ppl_gen.core.contracts import Amortized, HasDensity, HasPrior, Monitors, defaults_of, offers
from ppl_gen.core.errors import BadInput, as_bad_input, describe, require_numbers, users_frame
from ppl_gen.core.gradients import gradients
from ppl_gen.core.memory import free_memory, is_out_of_memory
from ppl_gen.core.seeds import seed_torch
from ppl_gen.data.loading import load_data
from ppl_gen.data.splits import REDRAWN, Data, labelled_among_others
from ppl_gen.experiment import starting
from ppl_gen.experiment.assembling import num_classes, read_pair, release
from ppl_gen.experiment.config import Config, Given
from ppl_gen.experiment.fitted import Assembled, check_precision, resolve_device
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.bidirectional import check_claim
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.coverage import leaves_support
from ppl_gen.inference.discretization import discretized, few_nodes
from ppl_gen.inference.enumeration import TraceEnum
from ppl_gen.inference.exact import check_against_samples, check_probability, closed_form, exact_blocks
from ppl_gen.inference.integrand import check_without_noise
from ppl_gen.inference.modes import evaluating, forked_rng, unchanged, untouched
from ppl_gen.inference.objectives.loss import name_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.reached import modules_of
from ppl_gen.inference.rounding import check_rounding
from ppl_gen.inference.state_memory import memory_needed, require_memory, shown_count
from ppl_gen.inference.tracing import trace_of
from ppl_gen.networks.observed import observed_log_prob
from ppl_gen.training.batches import least_images
from ppl_gen.training.loop import objective_for
from ppl_gen.training.own_objectives import is_a_mean, loss_of, state_kept

_COMPLETE = ("adversarial", "wake-sleep")  # objectives that draw images from the model
_AVERAGE = "__baseline_avg_downstream_cost_"  # beginning of Pyro's parameters for moving averages, before a site's name
_SAMPLES = 100  # of z, to hold a closed form against
_TIMED_STATES = 2**13
_MORE_TIMED_STATES = 2**16  # for sums over states that do not multiply with images: a short step would measure overhead


@dataclass(frozen=True)
class Prepared:
    """Model, guide and data that passed the checks, with the findings."""

    assembled: Assembled
    cost: str | None
    """Cost of enumeration, in a sentence; None without enumeration."""
    missing: list[str]
    """Names of parameters without a gradient."""

    def __str__(self) -> str:
        data, pair = self.assembled.data, self.assembled.pair
        lines = [text for text in (data.notice, self.cost) if text]
        count = len(self.assembled.batch[0])
        lines += [f"{count} images of {data.name}, {data.shape}, binarization {data.binarization}{data.incomplete}"]
        lines.append(f"plate of images '{pair.plate.name}'; observed {', '.join(pair.observed)}")
        lines += [f"latent '{name}', event shape {shape}" for name, shape in pair.event_shapes.items()]
        lines.append("samples of z are drawn " + ("in one call" if pair.vectorized else "by repeating the batch"))
        counted = sum(1 for _ in self.assembled.trained.parameters())
        lines.append(f"{counted - len(self.missing)} of {counted} parameters have a gradient")
        lines += [f"  no gradient: {name}" for name in self.missing]
        return "\n".join(lines)


@gradients("training")
def prepare(config: Config, given: Given | None = None, *, quiet: bool = True, start: bool = True) -> Prepared:
    """Build model, guide and data, and check them against each other.

    :param given: classes, instances and images of the user's own.
    :param quiet: print nothing.
    :param start: load the weights that training starts from, and refuse training that would take too long.
    :raises BadInput: if the pair cannot be fitted.
    """
    require_numbers(config, num_samples=1)
    check_precision()
    given = given or Given()
    try:
        return _prepare(config, given, quiet, start)
    except BaseException as error:
        release(given.model)
        if isinstance(error, BadInput | KeyboardInterrupt) or is_out_of_memory(error) or users_frame(error) is None:
            raise
        raise BadInput(f"before the first step: {describe(error)}") from error


def _prepare(config: Config, given: Given, quiet: bool, start: bool) -> Prepared:
    def say(text: str | None) -> None:
        if text and not quiet:
            print(text, flush=True)

    def warn(text: str) -> None:
        if not quiet:
            print(f"warning: {text}", file=sys.stderr)

    data = _data(config, given)
    say(f"*** {data.notice} ***" if data.notice else None)
    assembled = Assembled.make(config, data, given)
    if not any(parameter.requires_grad for parameter in assembled.trained.parameters()):
        raise BadInput("neither the model nor the guide has a parameter to train; give one of them an nn.Parameter")
    if start and config.fixed_model and config.init_from is None:
        raise BadInput("--refit-guide: needs the run of the model; name it with --init-from")
    if start and config.init_from is not None:
        say(starting.start(assembled))
    with untouched(assembled.model, assembled.guide):
        return _checked(assembled, start, say, warn)


def _checked(
    assembled: Assembled, start: bool, say: Callable[[str | None], None], warn: Callable[[str], None]
) -> Prepared:
    """Check a pair before its first step."""
    config, data = assembled.config, assembled.data
    check_binarization(assembled)
    check_missing(assembled)
    check_labelled_share(assembled)
    check_support(assembled)
    check_transforms(assembled)
    check_contract(assembled)
    check_closed_form(assembled)
    cost = None
    if assembled.pair.discretized:
        cost = grid_cost(assembled) if start else None
    elif assembled.pair.enumerated:
        size = min(config.training.batch_size, len(data.train))
        require_memory(assembled.pair, size, gradients=True, device=data.train.images.device)
        cost = enumeration_cost(assembled) if start else None
    say(cost)
    for told in (untrained_classes(assembled), too_coarse(assembled)):
        if told:
            warn(told)
    check_least_images(assembled)
    check_patience(assembled)
    with state_kept(assembled) as changed:
        missing = without_gradient(assembled)
        mean = is_a_mean(assembled)
    if changed:
        warn(
            f"{', '.join(changed)} changes in training, but a checkpoint keeps parameters and persistent buffers "
            "alone: a run that is resumed, or opened again, gets other numbers; make it a buffer of an nn.Module"
        )
    if mean:
        warn(
            f"objective {name_of(assembled.objective)}: its loss is the same for twice as many images; return the sum "
            "over the images, or its numbers are none per image"
        )
    expected = _of_baselines(assembled) if missing else set()
    if unreached := [name for name in missing if name not in expected]:
        warn(f"no gradient reaches {', '.join(unreached)}")
    if assembled.per_image and data.binarization in REDRAWN:
        warn(
            f"--binarization {data.binarization}: draws training images anew at every step, but "
            f"{assembled.pair.guide_name} has one q for each; --binarization static keeps them"
        )
    return Prepared(assembled, cost, missing)


def _data(config: Config, given: Given) -> Data:
    """The images on the device, the same in all processes."""
    device = resolve_device(config.training.device)
    with parallel.local_first():
        data = load_data(config.data, given.data)
    if parallel.broadcast_object(data.name) != data.name:
        raise BadInput(
            f"--data {config.data.data}: is {data.name} in this process, but another data set in the first process"
        )
    return data.to(device)


# Do model, guide and data fit one another? ---------------------------------------------------------------------


def check_patience(assembled: Assembled) -> None:
    """Raise `BadInput` for early stopping without a bound on validation images."""
    patience = assembled.config.training.patience
    bounded = len(assembled.data.validation) and not (isinstance(assembled.objective, Monitors) or assembled.per_image)
    if patience is not None and not bounded:
        raise BadInput(
            f"--patience {patience}: needs a validation split and an ELBO, but this run has none; leave this option out"
        )


def check_binarization(assembled: Assembled) -> None:
    """Raise `BadInput` if a density of grey pixels meets binary ones, or a probability of binary pixels meets noisy
    ones."""
    pair, binarization = assembled.pair, assembled.data.binarization
    if not pair.discrete and binarization not in ("none", "dequantized"):
        raise BadInput(
            f"--binarization {binarization}: {pair.model_name} has a density of grey pixels, not a probability of "
            "binary pixels; use dequantized or none"
        )
    if pair.discrete and binarization == "dequantized":
        raise BadInput(
            f"--binarization dequantized: {pair.model_name} has no density of grey pixels; use another --binarization"
        )


def check_labelled_share(assembled: Assembled) -> None:
    """Raise `BadInput` for a share of labelled images that batches cannot have. Without hidden labels the share that a
    model has by default is left out."""
    share, training = assembled.config.training.labelled_share, assembled.config.training
    if share is None:
        return
    hidden = assembled.takes_labels and labelled_among_others(assembled.data.train) is not None
    if not hidden and share != defaults_of(assembled.model).training_defaults.get("labelled_share"):
        raise BadInput(
            f"--labelled-share {share}: needs a model or a guide that takes labels, of which some are hidden; add "
            "--labelled N"
        )
    if hidden and training.batch_size == 1:
        raise BadInput(f"--labelled-share {share}: a batch needs at least 2 images; use a larger --batch-size")


def untrained_classes(assembled: Assembled) -> str:
    """A sentence on the classes of the model or the guide that no training image has; empty if there are none."""
    takers = [each for each in (assembled.model, assembled.guide) if components.takes(type(each), "num_classes")]
    count, labels = num_classes(assembled.data), assembled.data.train.labels
    if not takers or count is None or labels is None:
        return ""
    absent = sorted(set(range(count)) - set(labels.unique().tolist()))
    shown = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
    which = f"the label {shown}" if len(absent) == 1 else f"the labels {shown}"
    return f"no training image has {which}: {len(absent)} of {count} classes are not trained" if absent else ""


def too_coarse(assembled: Assembled) -> str:
    """What rounding to float32 does to the first images, if an evaluation would refuse it; else empty."""
    try:
        with evaluating(assembled.model, assembled.guide):
            check_rounding(assembled.pair, *assembled.batch)
    except BadInput as error:
        return f"{error.sentence}; an evaluation refuses that"
    return ""


def check_missing(assembled: Assembled) -> None:
    """Raise `BadInput` for an objective that compares incomplete images with complete ones that the model draws."""
    name = assembled.config.training.objective
    if assembled.incomplete and name in _COMPLETE:
        raise BadInput(
            f"--objective {name}: learns from whole images of the model, but images have missing pixels (--missing); "
            "use an objective of weights, such as iwae"
        )


def check_support(assembled: Assembled) -> None:
    """Raise `BadInput` if the guide draws z where the prior has no mass: the ELBO is -inf there."""
    pair, x = assembled.pair, assembled.batch[0]
    with evaluating(assembled.model, assembled.guide), forked_rng(x):
        seed_torch(0)
        site = leaves_support(pair, *assembled.batch)
    if site is not None:
        raise BadInput(
            f"{pair.guide_name} draws '{site}' outside the support of its prior in {pair.model_name}: the ELBO is -inf "
            "there; give the guide a distribution of the same support, such as LogNormal for positive numbers"
        )


def check_transforms(assembled: Assembled) -> None:
    """Raise `BadInput` for a flow with Pyro's transform of batch normalization. In training, its density has the scale
    of the batch, and its samples that of the running mean: the objective is no bound."""
    for part, who in ((assembled.model, assembled.pair.model_name), (assembled.guide, assembled.pair.guide_name)):
        if any(isinstance(each, BatchNorm) for each in modules_of(part)):
            raise BadInput(
                f"{who}: in training, Pyro's transform BatchNorm has another density than its samples; leave it out"
            )


def check_contract(assembled: Assembled) -> None:
    """Raise `BadInput` if `prior()` and `likelihood(z)` disagree with `model`, or `posterior(encode(x))` with `guide`.
    The package uses either, depending on the task."""
    pair, batch = assembled.pair, assembled.batch
    model: Any = assembled.model
    guide: Any = assembled.guide
    if len(pair.latent) != 1 or len(batch) > 1:
        return
    x, name = batch[0], pair.latent[0]
    if not offers(model, HasPrior) and not offers(guide, Amortized):
        return
    checks: list[tuple[Tensor, Tensor, str, str, Any]] = []
    with evaluating(model, guide), forked_rng(x):
        terms = pair.terms(x)
        z = terms.latents[name][0]
        if z.numel() != len(x) * math.prod(pair.event_shapes[name]):
            raise BadInput(
                f"site '{name}' is in a plate within '{pair.plate.name}', but prior(), likelihood(z) and posterior(c) "
                "describe one event per image: use .to_event(1) instead of that plate, or leave these methods out"
            )
        z = z.reshape(len(x), *pair.event_shapes[name])
        if offers(model, HasPrior):
            ours, theirs, what = model.prior().log_prob(z), terms.log_prior, "prior()"
            if offers(model, HasDensity):
                check_without_noise(model, z, x[0])
                ours, theirs = ours + observed_log_prob(model.likelihood(z), x), theirs + terms.log_likelihood
                what = "prior() and likelihood(z)"
            checks.append((ours, theirs, what, "model", model))
        if offers(guide, Amortized):
            ours = guide.posterior(guide.encode(x)).log_prob(z)
            checks.append((ours, terms.log_guide, "posterior(encode(x))", "guide", guide))
    for ours, theirs, what, kind, owner in checks:
        if ours.shape != theirs[0].shape or not torch.allclose(ours, theirs[0], rtol=1e-4, atol=1e-3, equal_nan=True):
            raise BadInput(
                f"{kind} {type(owner).__name__}: {what} and {kind}() disagree on the log-density of 8 images"
            )


def check_closed_form(assembled: Assembled) -> None:
    """Raise `BadInput` for a `log_px(x)` of the model that cannot be its log p(x), before training takes hours."""
    x, *labels = assembled.batch
    if closed_form(assembled.model, *labels):
        with evaluating(assembled.model, assembled.guide), forked_rng(x):
            log_px = torch.cat(list(exact_blocks(assembled.model, assembled.guide, assembled.pair, x, *labels)))
            check_probability(assembled.model, log_px, check_images(assembled.pair, x, *labels))
            if not assembled.pair.enumerated:
                terms = assembled.pair.terms(x, *labels, num_samples=_SAMPLES)
                sampled = terms.log_weight.double().logsumexp(0).cpu() - math.log(_SAMPLES)
                check_against_samples(assembled.model, log_px, sampled)
            check_claim(assembled.model, assembled.guide, assembled.pair, x, *labels)


def check_least_images(assembled: Assembled) -> None:
    """Raise `BadInput` if batches have one image, and the pair needs more."""
    training = assembled.config.training
    if (size := min(training.batch_size, len(assembled.data.train))) == 1:
        # Called for its error alone.
        least_images(loss_of(assembled), assembled.model, assembled.guide, size, lambda: assembled.batch)


# What does enumeration cost? -----------------------------------------------------------------------------------


def enumeration_cost(assembled: Assembled) -> str:
    """The cost of a step with enumeration, in a sentence.

    The time is measured on a step. If there are many states, it is measured on the same model with fewer latent units,
    and scaled up.

    :raises BadInput: if training would take more than `max_hours`.
    """
    pair, data, config = assembled.pair, assembled.data, assembled.config
    assert pair.num_states is not None
    size = min(config.training.batch_size, len(data.train))
    smaller, ratio = assembled, 1.0
    units = max(math.prod(shape) for shape in pair.event_shapes.values())
    spare = math.ceil(math.log2(pair.num_states / (_MORE_TIMED_STATES if pair.sums_states else _TIMED_STATES)))
    options = dict(config.model_options)
    model_class = type(assembled.model)
    if spare > 0 and "latent_dim" in [o.name for o in components.options("model", model_class)] and units > spare:
        config = replace(config, model_options=options | {"latent_dim": units - spare})
        smaller = replace(assembled, model=Assembled.make(config, data, assembled.given).model)
    batch = smaller.first_images(size)
    timed = read_pair(smaller.model, smaller.guide, batch)
    assert timed.num_states is not None
    ratio = pair.num_states / timed.num_states
    seconds = ratio * _seconds_of_a_step(smaller, timed, batch)
    needed = memory_needed(pair, size, gradients=True)
    less = "use fewer latent units, or a guide that samples, such as bernoulli"
    return _cost(assembled, f"{shown_count(pair)} latent states", seconds, needed, less)


def grid_cost(assembled: Assembled) -> str:
    """The cost of a step that sums over the guide's points, in a sentence: measured with a part of them, and scaled up.

    :raises BadInput: if a step does not fit into free memory, or training would take more than `max_hours`.
    """
    pair, training = assembled.pair, assembled.config.training
    batch = assembled.first_images(training.batch_size)
    with evaluating(assembled.model, assembled.guide):
        nodes, count = few_nodes(pair)
    few, ratio = discretized(pair, nodes), count / len(nodes[1])
    needed = ratio * _bytes_of_a_step(assembled, few, batch)
    less = "use fewer points (--guide.points), smaller batches, or a guide that samples, such as normal"
    if needed > (free := free_memory(batch[0].device)):
        raise BadInput(
            f"{pair.guide_name} has {count:,} points: a sum over all of them for {len(batch[0])} images takes about "
            f"{needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free; {less}"
        )
    return _cost(assembled, f"{count:,} points of z", ratio * _seconds_of_a_step(assembled, few, batch), needed, less)


def _cost(assembled: Assembled, what: str, seconds: float, needed: float, less: str) -> str:
    """A sentence about the time and the memory of a step.

    :param what: number of states or points that a step sums.
    :param seconds: time of a step.
    :param needed: bytes of a step.
    :param less: what to do if it is too much.
    :raises BadInput: if training would take more than `max_hours`.
    """
    training, count = assembled.config.training, len(assembled.data.train)
    size = min(training.batch_size, count)
    hours = seconds * training.epochs * math.ceil(count / size) / 3600
    duration = f"{hours:.1f} h" if hours > 1 else f"{hours * 60:.1f} min"
    cost = (
        f"a step sums {what} for {size} images: about {seconds:.2g} s and {needed / 1e9:.2g} GB; "
        f"{training.epochs} epochs of steps take about {duration}"
    )
    if hours > training.max_hours:
        raise BadInput(f"{cost}, more than --max-hours {training.max_hours:g}; {less}")
    return cost


def _bytes_of_a_step(assembled: Assembled, pair: Pair, batch: tuple[Tensor, ...]) -> int:
    """Bytes of the arrays that a sum over states keeps for its gradient, and of as many again that it works with."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with pyro.get_param_store().scope(), unchanged(assembled.trained), pyro.validation_enabled(False):
        elbo = TraceEnum(pair, *batch)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            elbo.differentiable_loss(pair.model, pair.guide, *batch)
    return 2 * sum(kept.values())


def _seconds_of_a_step(assembled: Assembled, pair: Pair, batch: tuple[Tensor, ...]) -> float:
    parameters = [parameter for parameter in assembled.model.parameters() if parameter.requires_grad]
    seconds = math.inf
    with pyro.get_param_store().scope(), forked_rng(batch[0]):
        elbo: Any
        if assembled.pair.discretized:
            elbo = TraceEnum(pair, *batch)
        else:
            elbo = objective_for(assembled.config.training, assembled.objective, pair, *batch)
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            with pyro.validation_enabled(False):
                loss = elbo.differentiable_loss(pair.model, pair.guide, *batch)
            _require_gradient(assembled, loss)
            torch.autograd.grad(loss, parameters, allow_unused=True)
            float(loss.detach())
            seconds = min(seconds, time.perf_counter() - start)
    return seconds


# Does a gradient reach every parameter? ------------------------------------------------------------------------


def without_gradient(assembled: Assembled) -> list[str]:
    """Names of the trainable parameters that get no gradient from the objective.

    :raises BadInput: for a parameter outside of model, guide and objective, which would be neither trained nor saved,
        and for an objective that is not finite.
    """
    pair, batch, modules = assembled.pair, assembled.batch, assembled.trained
    owned = {id(parameter) for parameter in modules.parameters()}
    with pyro.get_param_store().scope(), unchanged(modules):  # restores batch statistics and generators, too
        seed_torch(0)
        compute = partial(loss_of(assembled), *batch)
        called: list[nn.Module] = []
        with poutine.trace(param_only=True) as trace, pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf|-inf)")  # raised below
            warnings.filterwarnings("ignore", ".* was not registered in the param store")  # intended
            with (
                register_module_forward_pre_hook(lambda module, _: called.append(module)),
                as_bad_input(f"{pair.model_name} and {pair.guide_name} fail in training mode"),
            ):
                loss = compute()
        for name, site in trace.trace.nodes.items():
            trained = site["type"] == "param" and site["value"].requires_grad
            if name.startswith(_AVERAGE):
                raise BadInput(
                    f"{pair.guide_name}: use_decaying_avg_baseline of '{name.removeprefix(_AVERAGE)}' keeps an average "
                    "that no checkpoint has; use nn_baseline, or --objective rloo or nvil without a baseline"
                )
            if trained and id(site["value"].unconstrained()) not in owned:
                raise BadInput(
                    f"pyro.param('{name}') was created after the pair was built: make it an nn.Parameter of "
                    "the model or the guide"
                )
        if not loss.isfinite():
            densities = pair.log_densities(pair.terms(*batch))
            which = [name for name, values in densities.items() if not values.isfinite().all()]
            raise BadInput(
                f"the objective is {float(loss.detach())} on {len(batch[0])} images before training"
                + (f"; so is {' and '.join(which)}" if which else "")
            )
        _require_gradient(assembled, loss)
        named = [(name, parameter) for name, parameter in modules.named_parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as above
            _check_owned(loss, called, compute, modules)
    return [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]


def _of_baselines(assembled: Assembled) -> set[str]:
    """Names of the parameters of the guide's baselines, which serve Pyro's score function alone."""
    (x, *args), pair = assembled.batch, assembled.pair
    with evaluating(pair.model, pair.guide), forked_rng(x):
        sites = trace_of(pair.guide, Batch(x, tuple(args), {})).nodes.values()
    found = [site["infer"].get("baseline", {}).get("nn_baseline") for site in sites if site["type"] == "sample"]
    own = {id(each) for module in found if isinstance(module, nn.Module) for each in module.parameters()}
    return {name for name, parameter in assembled.trained.named_parameters() if id(parameter) in own}


def _require_gradient(assembled: Assembled, loss: Tensor) -> None:
    """Raise `BadInput` for a loss without a gradient, as an objective has that detaches its surrogate."""
    if not loss.requires_grad:
        name = name_of(assembled.objective)
        raise BadInput(f"objective {name}: its loss has no gradient; do not detach it, and do not use torch.no_grad()")


def _check_owned(loss: Tensor, called: list[nn.Module], compute: Callable[[], Tensor], modules: nn.Module) -> None:
    """Raise `BadInput` if a loss depends on weights, dropout or batch normalization outside of the modules.

    :param called: modules that computed the loss.
    :param compute: computes the loss again. A leaf of one computation alone is no weight: a guide may improve contexts
        by gradient steps.
    """
    owned = {id(each) for each in (*modules.parameters(), *modules.modules())}
    others = [module for module in called if id(module) not in owned]
    outside = [f"a {type(module).__name__}" for module in others if isinstance(module, _NormBase | _DropoutNd)]
    leaves = [leaf for leaf in _leaves(loss) if id(leaf) not in owned]
    if leaves:
        with unchanged(modules):
            kept = {id(leaf) for leaf in _leaves(compute())}
        for leaf in leaves:
            owners = [part for part in others if any(leaf is each for each in part.parameters(recurse=False))]
            of = f" of a {type(owners[0]).__name__}" if owners else ""
            outside += [f"weights {tuple(leaf.shape)}{of}"] if id(leaf) in kept else []
    if outside:
        raise BadInput(
            f"the loss depends on {outside[0]} outside the model and the guide: it is not trained, saved or put "
            "into eval mode with them; make it a part of one of them in its constructor: self.net = …"
        )


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that `backward` of a loss would give a gradient to."""
    queue, seen, leaves = [loss.grad_fn], set(), []
    while queue:
        node = queue.pop()
        if node is not None and node not in seen:
            seen.add(node)
            queue += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):
                leaves.append(node.variable)
    return leaves
