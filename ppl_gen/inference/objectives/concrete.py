"""The bound of a model with Concrete variables in the place of discrete ones."""

from typing import Any, ClassVar

from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import (
    Choice,
    check_choices,
    concrete_log_prob,
    noise_for,
    sampled,
    soften,
)

__all__ = ["Concrete"]


class Concrete:
    """The ELBO of the relaxed model, whose z and guide are Concrete variables with the log-probabilities of the
    discrete sites (Maddison, Mnih and Teh 2017, equation 20; densities in logits, appendix C.3). It is reparametrized.

    It bounds log p(x) of the relaxed model, not that of the discrete one. As a gradient of the discrete ELBO it is
    biased, for guide and model. The model must be differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    :param temperature: Temperature of the guide.
    :param prior_temperature: Temperature of the prior.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "biased"

    def __init__(self, *, num_particles: int = 1, temperature: float = 2 / 3, prior_temperature: float = 0.5):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        require(temperature > 0, "objective.temperature", temperature, "must be above 0")
        require(prior_temperature > 0, "objective.prior_temperature", prior_temperature, "must be above 0")
        self.num_particles, self.temperature, self.prior_temperature = num_particles, temperature, prior_temperature

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_choices(self, pair, x, *args, differentiable=True)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """Minus the ELBO of the relaxed model, summed over the images."""
        logits: dict[str, Tensor] = {}

        def draw(choice: Choice) -> Tensor:
            perturbed = choice.logits + noise_for(choice)
            scaled = perturbed / self.temperature
            logits[choice.name] = scaled if choice.kind == "binary" else scaled.log_softmax(-1)
            return soften(choice, perturbed, self.temperature)

        found = sampled(pair, x, *args, num_samples=self.num_particles, draw=draw)
        guide = {n: concrete_log_prob(each, logits[n], self.temperature) for n, each in found.choices.items()}
        prior = {n: concrete_log_prob(each, logits[n], self.prior_temperature) for n, each in found.priors.items()}
        return -(found.log_likelihood + found.sum_of_priors(prior) - found.sum_of(guide)).mean(0).sum()
