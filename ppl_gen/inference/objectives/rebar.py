"""The score function with a relaxed draw as control variate."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.learning_signals import parts_of
from ppl_gen.inference.objectives.loss import broadcast_weights
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import (
    Choice,
    Part,
    check_choices,
    given,
    hard,
    loss_with,
    noise_for,
    perturbed_given,
    relaxed,
    sampled,
    slope_at,
    soften,
)

__all__ = ["REBAR"]


class REBAR(nn.Module):
    """The ELBO with the REBAR gradient (Tucker et al. 2017, equation 5): for f = log p(x, z) - log q(z | x), perturbed
    logits y that choose z, others y' given z, and relaxed values s,

        (f(z) - eta f(s(y'))) grad log q(z | x) + eta grad f(s(y)) - eta grad f(s(y')).

    It is unbiased. eta is trained to lower the variance of the derivatives with respect to the logits (section 3.2).
    The temperature is an option and not trained. For several layers, each layer is relaxed given the samples of the
    layers before it, and those after it are relaxed from the same noise both times; f is then the terms that the layer
    changes (`Sampled.signal`). The model must be differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    :param temperature: Temperature of the relaxation.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 1, temperature: float = 0.5):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        super().__init__()
        self.num_particles, self.temperature = num_particles, temperature
        self.eta = nn.Parameter(torch.tensor(1.0))
        self.parts: dict[str, Part] = {}

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_choices(self, pair, x, *args, differentiable=True)
        self.parts = parts_of(pair, x, *args)

    def added(self, pair: Pair, x: Tensor, choice: Choice, value: Tensor) -> Tensor | None:
        """A learned part of the control variate [samples, images] at a relaxed value; None without one."""
        return None

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images, with the gradient of the variance for the objective's own parameters."""
        noise: dict[str, Tensor] = {}

        def draw(choice: Choice) -> Tensor:
            noise[choice.name] = noise_for(choice)
            return hard(choice, noise[choice.name])

        count, parts = self.num_particles, self.parts
        found = sampled(pair, x, *args, num_samples=count, draw=draw, parts=parts)
        gradients, before = {}, dict[str, Tensor]()
        for name, choice in found.choices.items():
            value, leaf = found.values[name], choice.logits.detach().requires_grad_()
            logits = leaf if choice.kind == "binary" else leaf.log_softmax(-1)
            others = given(before, lambda later: relaxed(later, noise[later.name], self.temperature))
            perturbed = (logits + noise[name], perturbed_given(choice, logits, value))
            at, paths = [], []
            for each in perturbed:
                soft = soften(choice, each, self.temperature)
                how: dict[str, Any] = {"name": name, "value": soft, "others": others, "parts": parts}
                f, slope = slope_at(pair, x, *args, num_samples=count, **how)
                f, slope = self.eta * f, self.eta * slope
                free = soft.detach().requires_grad_()
                if (more := self.added(pair, x, choice, free)) is not None:
                    f, slope = f + more, slope + torch.autograd.grad(more.sum(), free, create_graph=True)[0]
                at.append(f)
                paths.append(torch.autograd.grad(soft, leaf, slope, retain_graph=True, create_graph=True)[0])
            score = value - choice.mean.detach()  # the derivative of log q(z) with respect to the logits
            left = broadcast_weights(pair, found.signal(name).detach() - at[1], name, value)
            gradients[name] = left * score + paths[0] - paths[1]
            before[name] = value
        loss = loss_with(found, gradients)
        # E[gradient]^2 does not depend on these parameters, so the mean square falls as the variance does.
        own = [each for each in self.parameters() if each.requires_grad]
        if not own:
            return loss
        spread = torch.stack([each.square().sum() for each in gradients.values()]).sum() / count
        slopes = torch.autograd.grad(spread, own)
        learned = torch.stack([(slope * each).sum() for slope, each in zip(slopes, own, strict=True)]).sum()
        return with_gradient_of(loss, loss + learned)
