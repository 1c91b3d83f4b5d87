"""The evidence lower bound, with every term sampled."""

from typing import Any, ClassVar

from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor

from ppl_gen.core.contracts import ELBOGradient, Loss
from ppl_gen.core.errors import BadInput, require
from ppl_gen.inference.discretization import TraceNodes
from ppl_gen.inference.elbos import (
    PartialScoreELBO,
    SampledELBO,
    ScoreFunctionELBO,
    TraceEnumSampled,
    particle_options,
)
from ppl_gen.inference.enumeration import TraceEnum
from ppl_gen.inference.learning_signals import hidden_dependence
from ppl_gen.inference.objectives.loss import check_sampled
from ppl_gen.inference.pair import Pair

__all__ = ["Elbo"]


class Elbo:
    """E_q[log p(x, z) - log q(z | x)] (Kingma and Welling 2014, equation 6), the mean over K samples.

    The gradient depends on the pair. It is reparametrized (`Trace_ELBO`) if all sites of the guide can be. Otherwise it
    is a score function with the baseline that the site specifies, if any (`TraceGraph_ELBO`; Mnih and Gregor 2014). If
    the guide leaves all latent sites to enumeration, nothing is sampled, and the bound is log p(x). If it gives points
    of z, the bound is the log of the sum over them, which is below log p(x) in expectation (`TraceNodes`). If it
    samples some sites and leaves others to enumeration, or enumerates them itself, the bound is a sum over their values
    at each sample (`TraceEnumSampled`).

    :param num_particles: K.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 1):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        self.num_particles = num_particles

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        if self.num_particles > 1:
            check_sampled(self, pair)
        if self._by_graph(pair) and (hidden := hidden_dependence(pair, x, *args)) is not None:
            term, site = hidden
            raise BadInput(
                f"--objective elbo: '{term}' may depend on '{site}' in a way that Pyro does not follow, such as a "
                "value written into a tensor, and the gradient would lack it; use torch.cat or torch.where, or rloo"
            )
        if pair.scored and not pair.reparametrized:
            raise BadInput(
                f"--objective elbo: {pair.guide_name} makes a discrete choice in '{pair.scored[0]}', and samples "
                "other sites without reparametrization; use vimco or rws"
            )

        if pair.enumerated_in_guide and not pair.reparametrized:
            raise BadInput(
                f"--objective elbo: {pair.guide_name} enumerates '{pair.enumerated_in_guide[0]}', and samples other "
                "sites without reparametrization; leave the site out of the guide, so that the model sums over it"
            )

    @staticmethod
    def _by_graph(pair: Pair) -> bool:
        """True for the score function of `TraceGraph_ELBO`, which leaves out terms that do not depend on a site."""
        return not (pair.discretized or pair.enumerated or pair.partly_enumerated or pair.reparametrized)

    def elbo(self, pair: Pair, x: Tensor, *args: Any) -> ELBO:
        """`TraceNodes`, `TraceEnum`, `TraceEnumSampled`, `ScoreFunctionELBO`, `PartialScoreELBO` or `Trace_ELBO`."""
        if pair.discretized:
            return TraceNodes(pair, x, *args)
        if pair.enumerated:
            return TraceEnum(pair, x, *args)
        if pair.partly_enumerated:
            return TraceEnumSampled(pair, self.num_particles)
        if self._by_graph(pair):
            return ScoreFunctionELBO(num_particles=self.num_particles, max_plate_nesting=pair.max_plate_nesting)
        return (PartialScoreELBO if pair.scored else Trace_ELBO)(**particle_options(pair, self.num_particles))

    def loss_form(self, pair: Pair) -> Loss | None:
        if pair.enumerated:
            return pair.direct
        return SampledELBO(pair, self.num_particles) if pair.reparametrized else None
