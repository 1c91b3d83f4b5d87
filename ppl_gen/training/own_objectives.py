"""What an objective of a user's own may do that its contract does not say: keep numbers, or return a mean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Loss
from ppl_gen.core.seeds import seed_torch
from ppl_gen.experiment.fitted import Assembled
from ppl_gen.experiment.state import unchanged
from ppl_gen.inference.callables import take
from ppl_gen.inference.objectives.loss import is_ours
from ppl_gen.training.loop import objective_for

_REPEATS = 5  # of a loss, whose mean is looked at


def loss_of(assembled: Assembled) -> Callable[..., Tensor]:
    """The loss, as a function of a batch, from the functions of the pair."""
    pair = replace(assembled.pair, direct=None)
    elbo: Any = objective_for(assembled.config.training, assembled.objective, pair, *assembled.batch)
    return partial(elbo.differentiable_loss, pair.model, pair.guide)


def is_a_mean(assembled: Assembled) -> bool:
    """True if the `loss` of a user's own objective is a mean over the images, where the contract is a sum."""
    if not isinstance(assembled.objective, Loss) or is_ours(assembled.objective):
        return False
    (x, *args), compute = assembled.batch, loss_of(assembled)
    rows = torch.arange(len(x), device=x.device)
    with pyro.get_param_store().scope(), unchanged(assembled.trained), pyro.validation_enabled(False):
        seed_torch(0)
        once, twice = (
            sum(float(compute(batch.x, *batch.args).detach()) for _ in range(_REPEATS)) / _REPEATS
            for batch in (take(each, x, tuple(args), {}) for each in (rows, rows.repeat(2)))
        )
    return abs(twice - once) < 0.2 * abs(once)


@contextmanager
def numbers_kept(assembled: Assembled) -> Iterator[list[str]]:
    """Context in which a loss is computed. The numbers of Python that model, guide and objective have as attributes are
    restored, such as a count of steps. Yields a list that gets the names of those that were changed."""
    own = assembled.objective
    objects: list[Any] = [*assembled.model.modules(), *assembled.guide.modules()]
    objects += own.modules() if isinstance(own, nn.Module) else [own]
    before = [(each, dict(_numbers(each))) for each in objects]
    changed: list[str] = []
    yield changed
    for each, numbers in before:
        now = dict(_numbers(each))
        for name, number in numbers.items():
            if now.get(name, number) != number:
                setattr(each, name, number)
                changed.append(f"{type(each).__name__}.{name}")
    changed[:] = dict.fromkeys(changed)


def _numbers(owner: Any) -> Iterator[tuple[str, float]]:
    """The attributes of an object that are numbers, by name."""
    attributes = vars(owner) if hasattr(owner, "__dict__") else {}
    yield from ((name, each) for name, each in attributes.items() if type(each) in (int, float) and each == each)
