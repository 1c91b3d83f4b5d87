"""The evidence lower bound, with the KL term in closed form."""

from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from ppl_gen.core.contracts import Loss
from ppl_gen.core.errors import BadInput, require
from ppl_gen.inference.densities import contradicted
from ppl_gen.inference.elbos import PartialScoreELBO, SampledELBO, particle_options
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.objectives.loss import check_reparametrized, check_sampled
from ppl_gen.inference.pair import Pair

__all__ = ["ElboAnalyticKL"]

_SAMPLES = 1000


class ElboAnalyticKL:
    """E_q[log p(x | z)] - KL(q(z | x) || p(z)) with the second term in closed form (Kingma and Welling 2014, equation
    7), by `TraceMeanField_ELBO`.

    Pairs without a closed form in Pyro are refused, because Pyro would silently sample the term. So are pairs with
    several latent sites, for which the sum of Pyro's divergences is not the divergence.

    :param num_particles: K, the number of samples over which the first term is averaged.
    """

    def __init__(self, *, num_particles: int = 1):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        self.num_particles = num_particles

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_sampled(self, pair)
        check_reparametrized(self, pair)
        with evaluating(), forked_rng(x), torch.no_grad():
            terms = pair.terms(x, *args, num_samples=_SAMPLES, analytic_kl=True)
        if terms.kl is None:
            several = ", which have several latent sites" if len(pair.latent) > 1 else ""
            raise BadInput(
                f"--objective elbo-analytic-kl: no closed-form KL divergence between {pair.guide_name} and the "
                f"prior of {pair.model_name}{several}; use elbo"
            )
        sampled, kl = terms.log_guide - terms.log_prior, terms.kl.mean(0)
        wrong = contradicted(kl, sampled)
        if bool(wrong.any()):
            image = int(wrong.nonzero()[0])
            raise BadInput(
                f"--objective elbo-analytic-kl: Pyro's KL divergence of image {image} is {float(kl[image]):.4g}, but "
                f"the mean of log q(z | x) - log p(z) over samples is {float(sampled.mean(0)[image]):.4g}; use elbo"
            )

    def elbo(self, pair: Pair, x: Tensor, *args: Any) -> ELBO:
        """`TraceMeanField_ELBO`."""
        return (PartialScoreELBO if pair.scored else TraceMeanField_ELBO)(**particle_options(pair, self.num_particles))

    def loss_form(self, pair: Pair) -> Loss | None:
        return SampledELBO(pair, self.num_particles, analytic_kl=True)
