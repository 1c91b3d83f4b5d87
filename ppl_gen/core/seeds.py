"""The seed of torch's generators, and their states."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

T = TypeVar("T")
MANY_DRAWS = 64
"""Draws that are compared to find noise: noise that is 0 on 99 images of 100 is seen, too."""


def seed_torch(number: int) -> None:
    """Seed torch's generators, of the CPU and of GPUs, as `torch.manual_seed` does. Without a GPU that takes 100 times
    as long: it notes three call stacks, for devices that may be found later.

    >>> seed_torch(0)
    >>> torch.rand(2)
    tensor([0.4963, 0.7682])
    """
    if torch.cuda.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def random_states(gpu: bool) -> dict[str, torch.Tensor]:
    """The states of torch's generators, by device.

    >>> states = random_states(gpu=False)
    >>> first = torch.rand(1)
    >>> set_random_states(states)
    >>> bool(torch.rand(1) == first)
    True

    :param gpu: with the state of the current GPU.
    """
    return {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if gpu else {})


def with_draws(function: Callable[[], T], gpu: bool, seed: int = 0) -> tuple[T, bool]:
    """What a function returns, and True if it draws random numbers of torch. Afterwards the generators are where it has
    left them.

    >>> with_draws(lambda: torch.rand(2), gpu=False)
    (tensor([0.4963, 0.7682]), True)
    >>> with_draws(lambda: torch.zeros(2), gpu=False)
    (tensor([0., 0.]), False)

    :param gpu: with the generator of the current GPU.
    :param seed: seed of the generators before the call.
    """
    seed_torch(seed)
    before = random_states(gpu)
    found = function()
    return found, any(not state.equal(before[device]) for device, state in random_states(gpu).items())


def set_random_states(states: Mapping[str, torch.Tensor]) -> None:
    """Put states of `random_states` back."""
    for device, state in states.items():
        torch.set_rng_state(state) if device == "cpu" else torch.cuda.set_rng_state(state)
