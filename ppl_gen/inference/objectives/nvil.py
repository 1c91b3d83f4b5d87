"""Neural variational inference and learning: the score function with a baseline that depends on the image."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.baseline import ImageBaseline
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.objectives.loss import check_draws
from ppl_gen.inference.pair import Pair

__all__ = ["NVIL"]


class NVIL(nn.Module):
    """The ELBO, with the score function for the guide (Mnih and Gregor 2014, equation 5, sections 2.3 and 2.4),

        (log w - C(x) - c) / s grad log q(z | x),

    with log w = log p(x, z) - log q(z | x), a network C of the image, and a running mean c of what is left. C is
    trained by least squares. c is of earlier steps only, so that the gradient is unbiased. The signal is that of the
    whole z, also for a guide of several layers.

    :param num_particles: K, the number of samples over which it is averaged.
    :param normalize: Divide the signal by s, the running standard deviation, where that is above 1. The guide's
        gradient is then shorter than that of the ELBO.
    :param hidden_dim: Hidden units of the network C.
    :param decay: Decay of the running mean and variance at a step.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 1, normalize: bool = False, hidden_dim: int = 100, decay: float = 0.8):
        require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
        super().__init__()
        self.num_particles, self.normalize, self.hidden_dim, self.decay = num_particles, normalize, hidden_dim, decay
        self.baseline = ImageBaseline(hidden_dim=hidden_dim, decay=decay)

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        """Check the pair, and make the network."""
        check_draws(self, pair, "detached")
        self.baseline.make(x)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images, with the gradient of the network's squared error."""
        terms = pair.terms(x, *args, num_samples=self.num_particles, detach=True)
        error = self.baseline.error(x, terms.log_weight.detach())
        signal = error.detach()
        if self.normalize:
            signal = signal / self.baseline.variance.sqrt().clamp(min=1)
        self.baseline.follow(error)
        surrogate = terms.log_likelihood + terms.log_prior + signal * terms.log_guide - error.square()
        return with_gradient_of(-terms.log_weight.mean(0).sum(), -surrogate.mean(0).sum())
