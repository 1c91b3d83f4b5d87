"""Neural variational inference and learning: the score function with a baseline that depends on the image."""

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.baseline import ImageBaseline
from ppl_gen.inference.densities import add
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.learning_signals import parts_of, scores_of
from ppl_gen.inference.objectives.loss import check_draws
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Part

__all__ = ["NVIL"]


class NVIL(nn.Module):
    """The ELBO, with the score function for the guide (Mnih and Gregor 2014, equation 5, sections 2.3 and 2.4),

        (log w - C(x) - c) / s grad log q(z | x),

    with log w = log p(x, z) - log q(z | x), a network C of the image, and a running mean c of what is left. C is
    trained by least squares. c is of earlier steps only, so that the gradient is unbiased. Of several discrete sites,
    each has its own signal, the terms of log w that it changes (`Sampled.signal`), and its own C, c and s.

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
        self.baselines = nn.ModuleList([ImageBaseline(hidden_dim=hidden_dim, decay=decay)])
        self.parts: dict[str, Part] = {}

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        """Check the pair, and make the networks."""
        check_draws(self, pair, "detached", x, *args)
        self.parts = parts_of(pair, x, *args)
        for _ in range(len(self.baselines), len(self.parts)):
            self.baselines.append(ImageBaseline(hidden_dim=self.hidden_dim, decay=self.decay))
        for each in self.baselines:
            cast(ImageBaseline, each).make(x)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-ELBO, summed over the images, with the gradient of the networks' squared errors."""
        found = scores_of(pair, x, *args, num_samples=self.num_particles, parts=self.parts)
        surrogate = [found.log_joint]
        for each, (signal, log_q) in zip(self.baselines, found.of_sites, strict=True):
            baseline = cast(ImageBaseline, each)
            error = baseline.error(x, signal)
            scale = baseline.variance.sqrt().clamp(min=1) if self.normalize else 1.0
            surrogate += [error.detach() / scale * log_q, -error.square()]
            baseline.follow(error)
        return with_gradient_of(-found.log_weight.mean(0).sum(), -add(surrogate).mean(0).sum())
