"""The importance-weighted bound with the doubly reparametrized gradient."""

from typing import Any

from torch import Tensor

from ppl_gen.core.errors import require
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.direct import encoded
from ppl_gen.inference.elbos import min_samples, with_gradient_of
from ppl_gen.inference.objectives.loss import broadcast_weights, check_draws, log_mean_weight, vimco_signal
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.thinning import check_backward, check_thinned, drawn_by, terms_at, weighed

__all__ = ["DREG"]


class DREG:
    """L_K, as `IWAE`, with the model's gradient sum_k w~_k grad log w_k, and the guide's gradient through z only,

        sum_k w~_k^2 (d log w_k / d z_k) (d z_k / d phi)    (Tucker et al. 2019, equation 8),

    with normalized weights w~_k. It is unbiased, as that of `IWAE`, and its signal-to-noise ratio grows as sqrt(K).
    With several latent sites, d z_k is the derivative of all of them, through every path in the guide.

    :param num_particles: K.
    :param backward: Samples that the gradient goes through, fewer than K, drawn by weight: the expected gradient is the
        same (Burda et al. 2016, section 3). All by default.
    """

    def __init__(self, *, num_particles: int = 50, backward: int | None = None):
        require(num_particles > 1, "num_particles", num_particles, "dreg needs at least 2 samples; try 50")
        check_backward(backward, num_particles)
        self.num_particles, self.backward = num_particles, backward

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        check_draws(self, pair, "frozen-guide", x, *args)
        if self.backward is not None:
            check_thinned(pair, x, *args)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-L_K, summed over the images."""
        num_samples = max(self.num_particles, min_samples(pair))
        factor: Tensor | float = 1.0
        if self.backward is None:
            terms = pair.terms(x, *args, num_samples=num_samples, frozen_guide=True)
            log_weight, share = terms.log_weight, terms.log_weight.detach().softmax(0)
        else:
            log_weight, share, factor, terms = self._some(pair, Batch(x, args, {}), self.backward)
        for name, value in terms.values.items():
            if value.requires_grad:
                # Backward from the surrogate, d log w_k / d z_k has one factor w~_k. The hook multiplies the second.
                value.register_hook(broadcast_weights(pair, share, name, value).mul)
        surrogate = (share * factor * terms.log_weight).sum(0)
        if terms.score is not None:
            # Frozen parameters drop the term E[w~_k d log q / d phi]. If the guide makes a discrete choice, it equals
            # E[d w~_k / d z_k d z_k / d phi + w~_k d log pi / d phi]: the score of the choice gets a term -w~_k for it.
            added = vimco_signal(terms.log_weight) - share + 1 / num_samples
            surrogate = surrogate + (added * terms.score).sum(0)
        return with_gradient_of(-log_mean_weight(log_weight).sum(), -surrogate.sum())

    def _some(self, pair: Pair, images: Batch, backward: int) -> tuple[Tensor, Tensor, Tensor, Terms]:
        """Log weights of all samples; w~_k, the factor 1 / pi_k and the log-densities of some of them."""
        pair = encoded(pair, images.x)
        values, weighted = weighed(pair, images, self.num_particles)
        share = weighted.log_weight.softmax(0)
        chosen, factor = drawn_by(share, backward)
        terms = terms_at(pair, images, values, chosen, frozen_guide=True)
        return weighted.log_weight, share.gather(0, chosen), factor, terms
