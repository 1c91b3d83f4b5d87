"""Orders of images that are computed number by number, so that no array of all numbers is held.

A permutation of 0 … N - 1 is a Feistel network on pairs of numbers below the root of N. A number that the network maps
to N or above is mapped again, until it is below N (Black and Rogaway 2002, *Ciphers with arbitrary finite domains*,
cycle walking). Its keys and the hash of its rounds are SplitMix64 (Steele, Lea and Flood 2014).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROUNDS = 8
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Order:
    """Numbers in an order that is computed where it is read: a part of a random permutation of 0 … total - 1.

    >>> Order(6, seed=1)[:].sort().values
    tensor([0, 1, 2, 3, 4, 5])
    >>> len(Order(10**12, seed=1)), Order(5, seed=None)[1:3]
    (1000000000000, tensor([1, 2]))
    """

    total: int
    """Number of the numbers that are permuted."""
    seed: int | None
    """Seed of the permutation, at least 0; None for the numbers in their own order."""
    start: int = 0
    """Place of the first number of this part."""
    stop: int | None = None
    """Place after the last one; None for the end."""

    def __len__(self) -> int:
        return (self.total if self.stop is None else self.stop) - self.start

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The numbers at some places of this part, int64 [n], on the CPU."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        places = index.cpu() + self.start
        return places if self.seed is None else torch.from_numpy(permuted(places.numpy(), self.total, self.seed))

    def cut(self, start: int, stop: int) -> "Order":
        """The part from one place up to another."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return replace(self, start=self.start + start, stop=self.start + max(start, stop))


def permuted(places: np.ndarray, total: int, seed: int) -> np.ndarray:
    """The numbers at some places of a pseudo-random permutation of 0 … total - 1, int64 [n].

    >>> sorted(permuted(np.arange(5), 5, seed=0).tolist())
    [0, 1, 2, 3, 4]

    :param places: places in 0 … total - 1, [n].
    :param seed: seed of the permutation, at least 0.
    """
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)
    side = np.uint64(math.isqrt(max(total - 1, 0)) + 1)  # the least one with side² >= total
    found = _network(places.astype(np.uint64), side, keys)
    while len(outside := np.flatnonzero(found >= total)):
        found[outside] = _network(found[outside], side, keys)
    return found.astype(np.int64)


def uniform(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Pseudo-random float32 in [0, 1), one for each number: the output of SplitMix64 at that place of its sequence.

    :param numbers: uint64, of any shape.
    """
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return (_mixed(numbers * _GAMMA + key) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _network(numbers: np.ndarray, side: Any, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers below side²."""
    left: Any = numbers // side
    right: Any = numbers % side
    for key in keys:
        left, right = right, (left + _mixed(right + key) % side) % side
    return left * side + right


def _mixed(found: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: a bijection of 64 bits in which every bit depends on all."""
    for shift, factor in _STEPS:
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))
