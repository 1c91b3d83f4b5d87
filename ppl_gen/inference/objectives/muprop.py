"""The score function with a Taylor expansion of the log weight as control variate."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.baseline import ImageBaseline
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.learning_signals import parts_of
from ppl_gen.inference.objectives.loss import broadcast_weights
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, Part, check_choices, given, loss_with, sampled, slope_at

__all__ = ["Muprop"]


class Muprop(nn.Module):
    """The ELBO with the gradient of MuProp (Gu et al. 2016, equation 6): for f = log p(x, z) - log q(z | x), the mean m
    of the guide, and h(z) = f(m) + f'(m) (z - m),

        (f(z) - h(z)) grad log q(z | x) + f'(m) grad m.

    It is unbiased. For several layers, each layer has its own expansion, at its mean given the samples of the layers
    before it, and with the layers after it at their means; f is then the terms that the layer changes
    (`Sampled.signal`). The model must be differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    :param baseline: Subtract the baseline of nvil from f(z) - h(z), one for each layer.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 1, baseline: bool = False):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        super().__init__()
        self.num_particles, self.baseline = num_particles, baseline
        self.baselines = nn.ModuleList()
        self.parts: dict[str, Part] = {}

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        """Check the pair, and make the baselines."""
        check_choices(self, pair, x, *args, differentiable=True)
        self.parts = parts_of(pair, x, *args)
        if self.baseline and not len(self.baselines):
            made = [ImageBaseline() for _ in pair.latent]
            for each in made:
                each.make(x)
            self.baselines.extend(made)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images."""
        count = self.num_particles
        found = sampled(pair, x, *args, num_samples=count, draw=Choice.sample, parts=self.parts)
        gradients, before = {}, dict[str, Tensor]()
        errors: list[Tensor] = []
        for name, choice in found.choices.items():
            mean, value = choice.mean.detach(), found.values[name]
            others = given(before, lambda later: later.mean)
            how: dict[str, Any] = {"name": name, "value": mean, "others": others, "parts": self.parts}
            at_mean, slope = slope_at(pair, x, *args, num_samples=count, **how)
            linear = found.sum_of({name: choice.total(_units(choice, slope * (value - mean)))})
            left = found.signal(name).detach() - at_mean - linear
            if self.baseline:
                own: Any = self.baselines[pair.latent.index(name)]
                errors.append(own.error(x, left))
                own.follow(errors[-1])
                left = errors[-1].detach()
            left = broadcast_weights(pair, left, name, value)
            # The derivative of log q(z) with respect to the log-odds is z - m, that of m is m (1 - m).
            gradients[name] = left * (value - mean) + _through_mean(choice, slope)
            before[name] = value
        loss = loss_with(found, gradients)
        return with_gradient_of(loss, loss + torch.stack(errors).square().mean(1).sum()) if errors else loss


def _units(choice: Choice, terms: Tensor) -> Tensor:
    """Numbers of each unit, without the dimension of categories."""
    return terms.sum(-1) if choice.kind == "one-hot" else terms


def _through_mean(choice: Choice, slope: Tensor) -> Tensor:
    """The derivative with respect to the logits of a function with this derivative with respect to the mean."""
    mean = choice.mean.detach()
    if choice.kind == "binary":
        return slope * mean * (1 - mean)
    return mean * (slope - (slope * mean).sum(-1, keepdim=True))
