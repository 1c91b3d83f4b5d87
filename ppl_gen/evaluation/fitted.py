"""A run as an evaluation works on it: its directory, its configuration, model, guide, data and pair."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ppl_gen.data import Data, SplitName
from ppl_gen.inference.traces import Pair
from ppl_gen.loading import Config, estimating, heading, read_pair
from ppl_gen.runs import Run
from ppl_gen.training import takes_labels


@dataclass
class Fitted:
    """A run with its model, guide and data, on one device."""

    directory: Run
    config: Config
    model: nn.Module
    guide: nn.Module
    data: Data

    @cached_property
    def pair(self) -> Pair:
        """Model and guide, read on a few training images."""
        return read_pair(self.model, self.guide, self.data)[0]

    @property
    def takes_labels(self) -> bool:
        """Whether the model or the guide takes labels y."""
        return takes_labels(self.model, self.guide)

    def images(self, split: SplitName, count: int | None = None) -> tuple[Tensor, ...]:
        """The first targets of a split, with their labels if the pair takes any."""
        x, labels = self.data.targets(split)[:count], self.data.split(split).labels
        return (x,) if labels is None or not self.takes_labels else (x, labels[:count])

    @contextmanager
    def estimating(self, seed: int) -> Iterator[None]:
        """Eval mode, products in full float32 and noise from `seed`; all restored after."""
        with estimating(self.model, self.guide, self.data, seed):
            yield

    def provenance(self, options: Any) -> dict[str, Any]:
        """Which pair a summary is of, and which images."""
        return heading(self.directory, self.config, self.data, options)
