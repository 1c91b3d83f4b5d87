"""Imputation: hidden pixels of an image given its visible ones, for pixels that are independent given one latent site
z.

For x = (x_v, x_h), visible and hidden, p(x | z) = p(x_v | z) p(x_h | z). Hidden pixels are therefore marginalized by
leaving them out, and

    p(z | x_v) is proportional to p(z) p(x_v | z),
    E[x_h | x_v] = sum_z p(z | x_v) E[x_h | z],
    x_h ~ p(x_h | x_v):  z ~ p(z | x_v), then x_h ~ p(x_h | z),
    log p(x_h | x_v) = log p(x) - log p(x_v).

If z has few values, all of this is computed exactly by enumeration. Otherwise it is estimated by importance sampling,
from S samples z_s ~ q(z | c) with weights w_s = p(z_s) p(x_v | z_s) / q(z_s | c). Expectations are self-normalized
sums, draws are resampled by weight (Rubin 1988), and log p(x_v) is the logarithm of the mean weight, as log p(x) in
`ppl_gen.inference.importance`. Both logarithms are biased low. The bias of their difference is the bias of log p(x)
minus that of log p(x_v).

A hidden pixel may be another one in each image, and its value may be unknown: log p(x) is then left out. If the model
was trained on images with missing pixels, these are the imputations of Mattei and Frellsen (2019), equations 12 to 14.

The proposal is an amortized guide. Its input is the image with the hidden pixels replaced by a filler, which differs
from every image that it was trained on. If z can be reparametrized, the guide's context c is therefore refined for each
image by gradient ascent on the ELBO of the visible pixels, E_q[log p(z) + log p(x_v | z) - log q(z | c)], as in
semi-amortized inference (Kim et al. 2018). The weights are correct for any c; a better c makes them less variable.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_gen.core.contracts import Amortized, HasDensity, SelectsPixels, offers
from ppl_gen.core.gradients import gradients
from ppl_gen.core.optimizers import without_compiler
from ppl_gen.core.progress import Advance
from ppl_gen.inference.chunks import pairs_at_a_time
from ppl_gen.inference.densities import minus_leave_one_out_mean, score_function
from ppl_gen.inference.exact import enumerated_pair, exact_log_px, require_broadcasting
from ppl_gen.inference.importance import ImportanceEstimate, log_marginal_likelihood
from ppl_gen.inference.modes import evaluating
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import block_size
from ppl_gen.networks.observed import filled, is_missing, mean_of, observed_part

_STATES_PIXELS = 2**24  # states x pixels that are held at a time
_STEPS, _STEP_SIZE, _PARTICLES = 100, 0.05, 4  # refinement of a context
_REFINED = 100  # images that are refined at a time

PASSES = 3
"""Passes over the images in which `importance_imputation` reports its progress."""


@dataclass(frozen=True)
class Imputation:
    """Distribution of the hidden pixels. Log-probabilities are per image in nats, float64 [images] on the CPU."""

    log_px: Tensor | None
    """log p(x); None if the values of hidden pixels are not known."""
    log_px_visible: Tensor
    """log p(x_v)."""
    mean: Tensor
    """The images with E[x_h | x_v] in place of their hidden pixels, [images, pixels]."""
    draws: Tensor
    """The images with x_h ~ p(x_h | x_v) in place of their hidden pixels, [draws, images, pixels]."""
    importance: tuple[ImportanceEstimate | None, ImportanceEstimate] | None = None
    """Estimates of log p(x) and log p(x_v) with diagnostics; None if both are exact. The first is None where `log_px`
    is."""

    @property
    def log_prob(self) -> Tensor | None:
        """log p(x_h | x_v); None where `log_px` is."""
        return None if self.log_px is None else self.log_px - self.log_px_visible


def exact_imputation(model: Any, x: Tensor, visible: Tensor, num_draws: int = 1, known: bool = True) -> Imputation:
    """Impute hidden pixels exactly, by enumeration of every value of z.

    :param model: with methods `model`, `prior()` and `likelihood(z)`, and one latent site with finite support.
    :param x: images [images, pixels].
    :param visible: True for visible pixels, bool [pixels]; or [images, pixels], where images differ.
    :param num_draws: draws of the hidden pixels per image.
    :param known: x has the values of hidden pixels.
    :raises BadInput: for a latent site that cannot be enumerated, and for pixels that are not independent given z.
    """
    with evaluating(model):
        seen = _visible_images(x, visible)
        log_px = exact_log_px(model, x) if known else None
        log_px_visible = exact_log_px(_visible_model(model), seen)
        prior = model.prior()
        states = prior.enumerate_support(expand=False)
        require_broadcasting(model, states, x)
        size = block_size(enumerated_pair(model, x[:1]), posterior=True)
        blocks = [_exactly(model, prior, states, block, num_draws) for block in seen.split(size)]
    mean, draws = (torch.cat(parts, dim) for parts, dim in zip(zip(*blocks, strict=True), (0, 1), strict=True))
    return Imputation(log_px, log_px_visible, mean, draws)


def _exactly(model: HasDensity, prior: Any, states: Tensor, x: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
    """Mean [images, pixels] and draws [draws, images, pixels] of a block of images with hidden pixels."""
    seen, pixels = visible_part(model.likelihood(states.unsqueeze(1)), x)
    posterior = (seen.log_prob(pixels) + prior.log_prob(states).unsqueeze(-1)).softmax(0)  # [states, images]
    rows = max(1, _STATES_PIXELS // x.shape[1])
    mean = torch.zeros_like(x)
    for weights, z in zip(posterior.split(rows), states.split(rows), strict=True):
        mean += weights.T @ mean_of(model.likelihood(z), "fill")
    chosen = torch.multinomial(posterior.T, num_draws, replacement=True).T  # [draws, images]
    draws = model.likelihood(states[chosen]).sample()
    return torch.where(is_missing(x), mean, x), torch.where(is_missing(x), draws, x)


def importance_imputation(
    model: Any,
    guide: Any,
    x: Tensor,
    visible: Tensor,
    filler: Tensor | None,
    num_samples: int,
    num_draws: int = 1,
    progress: Advance | None = None,
    known: bool = True,
) -> Imputation:
    """Impute hidden pixels by importance sampling from the guide.

    :param model: with methods `model`, `prior()` and `likelihood(z)`, and one latent site.
    :param guide: with methods `guide`, `encode(x)` and `posterior(context)`.
    :param x: images [images, pixels].
    :param visible: True for visible pixels, bool [pixels]; or [images, pixels], where images differ.
    :param filler: replacement of hidden pixels in the guide's input, [pixels], such as the mean training image. None
        for a guide that takes images with missing pixels: it is given these, and contexts are not refined.
    :param num_samples: S, samples of z per image.
    :param num_draws: draws of the hidden pixels per image.
    :param progress: called with the number of images just done, in each of `PASSES` passes over them.
    :param known: x has the values of hidden pixels.
    :raises BadInput: for pixels that are not independent given z.
    """

    def visible_guide(x: Tensor, context: Tensor) -> None:
        """q(z | c)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide.posterior(context))

    visible_model, images = _visible_model(model), _visible_images(x, visible)
    with evaluating(model, guide):
        context = guide.encode(images if filler is None else torch.where(visible, x, filler))
        if filler is not None and guide.posterior(context).has_rsample:
            context = torch.cat([_refine(model, guide, *both) for both in _paired(images, context, _REFINED)])
        how: dict[str, Any] = {"num_samples": num_samples, "progress": progress}
        seen = log_marginal_likelihood(visible_model, visible_guide, images, context, **how)
        whole = log_marginal_likelihood(model, guide, x, **how) if known else None
        pair = Pair.read(visible_model, visible_guide, images, context)
        means, draws = [], []
        for block, contexts in _paired(images, context, max(1, pairs_at_a_time(model, None, x) // num_samples)):
            terms = pair.terms(block, contexts, num_samples=num_samples)
            z = terms.latents["z"].reshape(num_samples, len(block), *pair.event_shapes["z"])
            weights = terms.log_weight.softmax(0)  # [samples, images]
            mean = torch.einsum("si,sid->id", weights, mean_of(model.likelihood(z), "fill"))
            chosen = torch.multinomial(weights.T, num_draws, replacement=True).T  # [draws, images]
            drawn = model.likelihood(z[chosen, torch.arange(len(block), device=x.device)]).sample()
            means.append(torch.where(is_missing(block), mean, block))
            draws.append(torch.where(is_missing(block), drawn, block))
            if progress is not None:
                progress(len(block))
    log_px = None if whole is None else whole.log_px
    return Imputation(log_px, seen.log_px, torch.cat(means), torch.cat(draws, 1), (whole, seen))


def _visible_images(x: Tensor, visible: Tensor) -> Tensor:
    """Images with NaN in place of hidden pixels."""
    return torch.where(visible, x, torch.nan)


def _paired(x: Tensor, context: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Blocks of images with their contexts."""
    return zip(x.split(size), context.split(size), strict=True)


def _refine(model: HasDensity, guide: Amortized, x: Tensor, context: Tensor) -> Tensor:
    """The context [images, …] of images with hidden pixels, after `_STEPS` steps of Adam on the ELBO of the visible
    ones."""
    with gradients("filling in"):
        context = context.detach().clone().requires_grad_()
        optimizer = without_compiler(torch.optim.Adam)([context], lr=_STEP_SIZE)
        for _ in range(_STEPS):
            q = guide.posterior(context)
            z = q(torch.Size([_PARTICLES]))
            seen, pixels = visible_part(model.likelihood(z), x)
            log_weight = model.prior().log_prob(z) + seen.log_prob(pixels) - q.log_prob(z)
            score = score_function({"fn": q, "value": z, "mask": None})
            # A discrete choice in q has no path for its gradient: its score takes part, with a leave-one-out baseline.
            if score is not None:
                log_weight = log_weight + minus_leave_one_out_mean(log_weight) * score
            (context.grad,) = torch.autograd.grad(-log_weight.mean(0).sum(), context)
            optimizer.step()
    return context.detach()


def _visible_model(model: HasDensity) -> Callable[[Tensor], None]:
    """A Pyro model of the visible pixels alone, of images with NaN in place of hidden ones."""

    def visible_model(x: Tensor) -> None:
        """p(x_v, z)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", model.prior())
            seen, pixels = visible_part(model.likelihood(z), x)
            pyro.sample("x", seen, obs=pixels)

    return visible_model


def visible_part(likelihood: Any, x: Tensor) -> tuple[Any, Tensor]:
    """p(x_v | z), and the value [images, …] to score under it. If all images hide the same pixels, the distribution
    may leave them out altogether.

    :param x: images with NaN in place of hidden pixels.
    :raises BadInput: if the pixels are not known to be independent given z.
    """
    visible = ~is_missing(x)
    if offers(likelihood, SelectsPixels) and bool((visible == visible[:1]).all()):
        return likelihood.select(visible[0]), x[:, visible[0]]
    return observed_part(likelihood, visible), filled(likelihood, x, visible)
