"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ppl_gen.experiment.state import tensors_of


class AveragedWeights:
    """The average a_t = d_t a_{t-1} + (1 - d_t) w_t of the weights w_t after each step t, with
    d_t = min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten. With d_t = 1 - 1/t it would be
    the mean of Polyak and Juditsky (1992). Running statistics are averaged, too.

    >>> modules = nn.ModuleDict({"model": nn.Linear(1, 1, bias=False)})
    >>> _ = nn.init.zeros_(modules["model"].weight)
    >>> average = AveragedWeights(modules, decay=0.5)
    >>> _ = nn.init.ones_(modules["model"].weight)
    >>> average.update(step=20)
    >>> with average.in_place():
    ...     modules["model"].weight.item()
    0.5
    >>> modules["model"].weight.item()
    1.0

    :param modules: modules whose parameters and buffers are averaged.
    :param decay: largest share of the average that a step keeps, above 0 and below 1.
    """

    def __init__(self, modules: nn.ModuleDict, decay: float):
        self.decay = decay
        every = {name: each for name, each in tensors_of(modules).items() if each.is_floating_point()}
        # A mask of -inf is no weight, and has no average.
        self.weights = {name: each for name, each in every.items() if bool(each.isfinite().all())}
        self.others = {name: each.clone() for name, each in self.weights.items()}
        """The average; while the average is in place, the weights that steps change."""

    def update(self, step: int) -> None:
        """Move the average towards the weights after a step.

        :param step: number of the step, from 1 on.
        """
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        move(list(self.others.values()), list(self.weights.values()), step)

    def swap(self) -> None:
        """Exchange the weights of the modules and the average. Tensors keep their place in memory."""
        for name, weight in self.weights.items():
            before = weight.clone()
            weight.copy_(self.others[name])
            self.others[name].copy_(before)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the modules have the average."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
