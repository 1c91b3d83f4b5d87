"""Number of latent states, and the memory and time that a sum over all of them takes."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ppl_gen.core.contracts import CountsStates, SumsPixelsFirst, SumsStates, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import free_memory
from ppl_gen.inference.densities import Site
from ppl_gen.inference.pair import Pair

_MOST_STATES = 2**20  # states x numbers per state of an image, up to which enumeration is the default
_STATES_IMAGES = 2**26  # states x images x numbers per state that are in memory at a time
_BYTES = 4  # size of a float32 number
_COUNTLESS = 10**18  # states, or bytes


# Distributions, while a pair is read -------------------------------------------------------------------------------


def count_states(distributions: Iterable[Any]) -> int | None:
    """Number of joint values of some distributions; None if any has no finite support."""
    total = 1
    for distribution in distributions:
        if not distribution.has_enumerate_support:
            return None
        try:  # `num_states` avoids listing 2^M states
            known = offers(distribution, CountsStates)
            total *= distribution.num_states if known else len(distribution.enumerate_support(expand=False))
        except NotImplementedError:  # such as a Binomial with different numbers of trials
            return None
    return total


def can_sum_states(sites: Sequence[Site]) -> bool:
    """True if there are one latent and one observed site, and the observed distribution can sum over all values of the
    latent one by itself."""
    if [site["is_observed"] for site in sites] not in ([False, True], [True, False]):
        return False
    latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
    if any(site["mask"] is not None or len(site["cond_indep_stack"]) != 1 for site in sites):
        return False
    likelihood = observed["fn"]
    return offers(likelihood, SumsStates) and bool(likelihood.sums_over(latent["fn"], latent["value"]))


def numbers_held(distribution: Any, num_images: int) -> int:
    """Numbers in memory per image and latent state for the log-density of an image: its pixels, or 1 if the
    distribution sums over pixels before it broadcasts.

    :param num_images: number of images in the distribution's batch shape.
    """
    first = offers(distribution, SumsPixelsFirst) and distribution.sums_pixels_first
    pixels = 1 if first else math.prod(distribution.event_shape)
    return math.prod(distribution.batch_shape) * pixels // num_images


# Pairs -------------------------------------------------------------------------------------------------------------


def numbers_per_state(pair: Pair) -> float:
    """Numbers in memory per state and image; a sixteenth if the likelihood sums over states by itself."""
    return 1 / 16 if pair.sums_states else pair.pixels_per_state


def cheap_to_enumerate(pair: Pair) -> bool:
    """True if log p(x) of many images can be enumerated in minutes: up to 2^20 states, or fewer if the likelihood
    broadcasts before it sums over pixels."""
    return pair.num_states is not None and pair.num_states * max(1, numbers_per_state(pair)) <= _MOST_STATES


def block_size(pair: Pair, posterior: bool = False) -> int:
    """Number of images at a time in a sum over states.

    :param posterior: True if p(z | x) of every state is needed, not only the sum.
    """
    assert pair.num_states is not None
    if pair.num_states > _COUNTLESS:
        return 1
    return max(1, min(1000, int(_STATES_IMAGES / (pair.num_states * max(numbers_per_state(pair), int(posterior))))))


def block_size_by_state(pair: Pair) -> int:
    """Number of images at a time, if the model is called for one state after the other."""
    assert pair.num_states is not None
    return max(1, min(10_000, _STATES_IMAGES // (8 * pair.num_states)))


def shown_count(pair: Pair) -> str:
    """The number of latent states in a sentence. One of many digits is a power of ten."""
    assert pair.num_states is not None
    return f"{pair.num_states:,}" if pair.num_states < _COUNTLESS else f"10^{math.log10(pair.num_states):.0f}"


def require_finite(pair: Pair) -> int:
    """The number of states. Raises `BadInput` if a latent site that is left to enumeration has no list of values."""
    if pair.num_states is None:
        sites = ", ".join(f"'{name}'" for name in pair.latent)
        raise BadInput(
            f"{pair.guide_name} leaves {sites} of {pair.model_name} to enumeration, but not every one has a finite "
            "support that Pyro can list (an event of several units has none); use a guide that samples"
        )
    return pair.num_states


def memory_needed(pair: Pair, num_images: int, gradients: bool = False) -> int:
    """Bytes that an enumeration needs. These are the states themselves, and arrays [states, images] of log-joints:
    three at a time in the forward pass (two factors and their sum), in float64 without gradients; in float32 with
    gradients, and two more in the backward pass. The arrays also have a dimension of pixels if the likelihood
    broadcasts before it sums over pixels."""
    assert pair.num_states is not None
    units = sum(math.prod(shape) for shape in pair.event_shapes.values())
    held = num_images * numbers_per_state(pair) * (5 if gradients else 6)
    return math.ceil(_BYTES * (4 * units + held)) * pair.num_states  # in whole numbers: no float holds 2^1100


def require_memory(pair: Pair, num_images: int, gradients: bool = False, device: torch.device | str = "cpu") -> None:
    """Refuse an enumeration that does not fit into free memory.

    :param gradients: True for a training step.
    :raises BadInput: with the memory that is needed and the memory that is free.
    """
    require_finite(pair)
    needed, free = memory_needed(pair, num_images, gradients), free_memory(device)
    if needed > free:
        takes = "more memory than any machine has"
        if needed < _COUNTLESS:
            takes = f"{needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are free"
        raise BadInput(
            f"{pair.model_name} has {shown_count(pair)} latent states: a sum over all of them for {num_images} images "
            f"takes {takes}; use fewer latent units or smaller batches, or a guide that samples, such as bernoulli"
        )
