"""log p(x) of a model whose latent sites all have finite support, exactly, image by image.

Every latent site is enumerated in parallel, each in a dimension of its own; what remains is

    log p(x) = log sum_z exp(log p(z) + log p(x | z)),

with the sum left to an observed distribution that can take it over all states at once (`LinearBernoulliVector`), or
over one site after the other, each over the product of those factors alone that depend on it (variable
elimination), in log space with the factors added before the maximum is taken. Pyro's `TraceEnum_ELBO` shifts each
factor by its own maximum, and loses the sum in float32 where the state that explains x is 90 nats less probable a
priori than another; `TraceEnum` here is that class with the sum replaced.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ppl_gen.errors import BadInput
from ppl_gen.inference.callables import as_arguments, as_images
from ppl_gen.inference.supports import masks, within_support
from ppl_gen.inference.traces import Pair, evaluating, masked_log_prob, sample_sites, states_summed, take, vectorized
from ppl_gen.memory import free_memory, keep_freed_memory

_MOST_STATES = 2**20  # x width: for an image, unless asked for
_STATES_IMAGES = 2**26  # states x images x width that are held at once
_NEAR = 0.5  # nats from certainty, where log p is a sum of differences from 1


def log_marginal(pair: Pair, model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """log p(x) in nats, [images], differentiable.

    Where no gradient is asked for, factors are added up in float64, and a sum over states near 0 is
    log(1 - sum_z p(z) [1 - p(x | z)]): near certainty nothing is lost but the rounding of the distributions' own
    log-densities, which for binary pixels is below 1e-6 of their size.

    Masks are applied, scales are not. Plates inside that of the images are allowed, nested in each other.

    :param pair: read from the model; says which plate holds the images.
    :param model: Pyro function, as the pair's or under further handlers.
    :raises BadInput: for a latent site without finite support, and for `pyro.markov`.
    """
    outermost = -1 - pair.max_plate_nesting
    enumerated = poutine.enum(config_enumerate(model, "parallel"), first_available_dim=outermost)
    trace = poutine.trace(enumerated).get_trace(x, *args, **kwargs)
    sites = list(sample_sites(trace))
    if states_summed(sites):
        latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
        summed: Tensor | None = observed["fn"].log_marginal(observed["value"], latent["fn"])
        if summed is not None:
            return summed.expand(observed["cond_indep_stack"][0].size)
    factors: dict[frozenset[int], list[Tensor]] = {frozenset(): []}
    dims: dict[frozenset[int], list[int]] = {}
    priors: dict[int, Tensor] = {}  # by the dimension that each adds up to one over
    for site in sites:
        plates = frozenset(frame.dim for frame in vectorized(site) if frame.name != pair.plate.name)
        log_prob = masked_log_prob(site, wide=not torch.is_grad_enabled())
        if site["name"] in pair.bounded:
            log_prob = within_support(site, log_prob)
        if not torch.is_grad_enabled():
            log_prob = log_prob.double()
        sizes = [1] * -outermost + [1]
        for frame in vectorized(site):
            sizes[frame.dim] = frame.size
        factor = log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(sizes)))
        if not site["is_observed"]:
            dim = site["infer"].get("_enumerate_dim")
            if dim is None or any(dim in others for others in dims.values()):
                reason = "has no finite support" if dim is None else "is in a pyro.markov, which is not supported here"
                raise BadInput(f"{pair.model_name}: latent site '{site['name']}' {reason}; it cannot be enumerated")
            dims.setdefault(plates, []).append(dim)
            for mask in masks(site):  # what is masked out has no state to sum over
                factor = torch.where(mask, factor, -math.log(factor.shape[dim]))
            if not torch.is_grad_enabled():
                total = factor.logsumexp(dim, keepdim=True)
                if bool((total.abs() < 1e-3).all()):  # 0 but for rounding; of a masked site it is not
                    factor = priors[dim] = factor - total
        factors.setdefault(plates, []).append(factor)
    for plates in sorted(factors, key=len, reverse=True):  # innermost first
        remaining = factors[plates]
        for dim in sorted(dims.get(plates, [])):  # the last site first
            with_it = [f for f in remaining if f.dim() >= -dim and f.shape[dim] > 1]
            without = [f for f in remaining if not any(f is other for other in with_it)]
            remaining = [*without, *([_sum_out(with_it, priors.get(dim), dim)] if with_it else [])]
        if plates:
            parent = max((other for other in factors if other < plates), key=len)
            factors[parent] += [f.sum(sorted(plates - parent), keepdim=True) for f in remaining]
        else:
            result = _add(remaining).movedim(pair.plate.dim, -1)
            if result.numel() != result.shape[-1]:
                raise BadInput(f"{pair.model_name}: its plates are not nested in each other; it cannot be enumerated")
            return result.flatten()
    raise AssertionError("the images' own plate is always among the factors")


def _sum_out(factors: list[Tensor], prior: Tensor | None, dim: int) -> Tensor:
    """log of the sum over a dimension of the product of some factors.

    :param prior: the one of them that adds up to 1 over it, if there is any.
    """
    total = _add(factors).logsumexp(dim, keepdim=True)
    others = [factor for factor in factors if factor is not prior]
    near = total.abs() < _NEAR
    if prior is None or not others or not bool(near.any()):
        return total
    exact = (prior.exp() * _add(others).expm1()).sum(dim, keepdim=True).log1p()
    return torch.where(near & exact.isfinite(), exact, total)


def _add(terms: list[Tensor]) -> Tensor:
    return sum(terms[1:], terms[0])


class DifferentiableLoss:
    """The rest of an `ELBO` that defines `differentiable_loss`."""

    differentiable_loss: Callable[..., Tensor]

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class TraceEnum(DifferentiableLoss, TraceEnum_ELBO):
    """-log p(x), summed over the images: `TraceEnum_ELBO` of a model whose latent sites are all enumerated and a guide
    that samples none, with the sum over states in one step."""

    def __init__(self, pair: Pair):
        super().__init__(max_plate_nesting=pair.max_plate_nesting)
        self.pair = pair

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return -log_marginal(self.pair, model, *args, **kwargs).sum()


def require_memory(pair: Pair, num_images: int, gradients: bool = False, device: torch.device | str = "cpu") -> None:
    """Refuse an enumeration that does not fit into the memory that is free.

    :param gradients: whether it is a training step.
    :raises BadInput: with the memory that it needs and the memory that there is.
    """
    needed, free = memory_needed(pair, num_images, gradients), free_memory(device)
    if needed > free:
        raise BadInput(
            f"{pair.model_name} has {pair.num_states:,} latent states: a sum over all of them for {num_images} images "
            f"takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; use fewer latent units or smaller "
            "batches, or a guide that samples, such as bernoulli"
        )


def memory_needed(pair: Pair, num_images: int, gradients: bool = False) -> int:
    """Bytes of an enumeration: the states themselves, and arrays [states, images] of their log-joints: three at a time
    forwards (two factors and their sum), in float64 without gradients; in float32 with them, and two more backwards.
    Where the likelihood broadcasts before it sums over pixels, these have its pixels too; where it sums over states by
    itself, it holds a sixteenth of them."""
    assert pair.num_states is not None
    units = sum(math.prod(shape) for shape in pair.event_shapes.values())
    return int(4 * pair.num_states * (4 * units + num_images * pair.width * (5 if gradients else 6)))


def cheap(pair: Pair) -> bool:
    """Whether log p(x) of many images can be enumerated in minutes: up to 2^20 states, fewer where the likelihood
    broadcasts before it sums over pixels."""
    return pair.num_states is not None and pair.num_states * max(1, pair.width) <= _MOST_STATES


def closed_form(model: Any) -> bool:
    """Whether a model says what log p(x) is."""
    return callable(getattr(model, "log_px", None))


def block_size(pair: Pair, posterior: bool = False) -> int:
    """How many images are summed over at a time.

    :param posterior: whether each state of each image is asked for, and not only their sum.
    """
    assert pair.num_states is not None
    return max(1, min(1000, int(_STATES_IMAGES / (pair.num_states * max(pair.width, int(posterior))))))


def exact_blocks(model: Any, guide: Any, pair: Pair, x: Tensor, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
    """log p(x) in nats in float64 on the CPU, for as many images at a time as memory allows, in their order: by the
    model's own `log_px(x)`, if it has one, else by enumeration."""
    keep_freed_memory()
    if closed_form(model):
        with evaluating(model):
            yield from (model.log_px(block).double().cpu() for block in x.split(1000))
        return
    size = block_size(pair)
    with evaluating(model, guide):
        for rows in torch.arange(len(x), device=x.device).split(size):
            batch, batch_args, batch_kwargs = take(rows, x, args, kwargs)
            yield log_marginal(pair, pair.model, batch, *batch_args, **batch_kwargs).double().cpu()


def exact_log_px(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """log p(x) in nats, float64 [images] on the CPU, by enumeration of every latent value.

    Works on any Pyro model with a plate of images whose latent sites have finite support. Memory is bounded by the
    number of states, not by the number of images.

    :param model: a module with a method `model(x, ...)`, or a Pyro function.
    :param x: images [N, ...].
    :param args: further positional arguments; tensors with N rows go along with the images.
    :raises BadInput: for a latent site that cannot be enumerated.
    """

    x = as_images(x, model)
    args, kwargs = as_arguments(len(x), args, kwargs)
    with evaluating(model):
        pair = enumerated_pair(model, x, *args, **kwargs)
        pair.check(x, *args, **kwargs)
        return torch.cat(list(exact_blocks(model, _no_guide, pair, x, *args, **kwargs)))


def enumerated_pair(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> Pair:
    """A model without a guide, as it is read from a few images x [N, ...], every latent site to be enumerated.

    :raises BadInput: for a model that cannot be read.
    """
    marked = config_enumerate(getattr(model, "model", model), "parallel")
    with evaluating(model):
        return Pair(marked, _no_guide, x, *args, **kwargs)


def _no_guide(*args: Any, **kwargs: Any) -> None: ...


def state_posterior(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """p(z | x) of a model with one enumerable latent site: all values of z [states, ...], and probabilities
    [states, images].

    :param model: with methods `prior()` and `likelihood(z)`.
    :param x: images [images, pixels].
    """
    prior = model.prior()
    states = prior.enumerate_support(expand=False)
    log_joint = model.likelihood(states.unsqueeze(1)).log_prob(x) + prior.log_prob(states).unsqueeze(-1)
    return states, log_joint.softmax(0)
