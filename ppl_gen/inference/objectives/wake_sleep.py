"""Reweighted wake-sleep, with the sleep phase for the guide."""

from typing import Any

from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.elbos import min_samples, with_gradient_of
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.objectives.loss import check_draws, log_mean_weight
from ppl_gen.inference.pair import Pair

__all__ = ["WakeSleep"]


class WakeSleep:
    """Reweighted wake-sleep (Bornschein and Bengio 2015, equations 4 and 7; with one sample, Hinton et al. 1995). The
    model ascends sum_k w~_k log p(x, z_k) with w~_k = w_k / sum_j w_j, which is the gradient of L_K, biased at finite
    K. The guide ascends log q(z | x) for z and x drawn from the model, as many as the batch. The reported number is
    L_K.

    :param num_particles: K.
    """

    def __init__(self, *, num_particles: int = 1):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        self.num_particles = num_particles

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_draws(self, pair, "detached", x, *args)
        with evaluating():
            pair.dream(x, *args)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-L_K, summed over the images, with the gradients of both phases."""
        dream = pair.dream(x, *args).sum()
        terms = pair.terms(x, *args, num_samples=max(self.num_particles, min_samples(pair)), detach=True)
        share = terms.log_weight.detach().softmax(0)
        wake = (share * (terms.log_likelihood + terms.log_prior)).sum(0)
        loss = with_gradient_of(-log_mean_weight(terms.log_weight).sum(), -wake.sum())
        return loss + with_gradient_of(dream * 0, -dream)
