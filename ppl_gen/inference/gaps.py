"""The split of the gap between the ELBO and log p(x): Cremer, Li and Duvenaud (2018), section 3.

    log p(x) - ELBO = (log p(x) - ELBO*)  +  (ELBO* - ELBO)
                       approximation gap     amortization gap

ELBO* is the ELBO of the best member of the guide's family {posterior(c)} for each image. It is found by optimizing the
context c of the image, starting from the encoder's. The approximation gap is due to the family, the amortization gap to
the encoder. A family whose `posterior` has weights of its own, such as a flow, has members that no context gives: with
`own_weights`, a copy of the weights is optimized for each image too.

The optimization is local. If p(z | x) has several modes, it stays in the mode of the encoder, and so do the importance
samples. Neither k-hat nor a small amortization gap shows that another mode has more mass. A second opinion with samples
from the prior (`ppl_gen.inference.proposals.second_opinion`) shows it if the prior reaches that mode. Then
log p(x) - ELBO is larger than the estimate, and its split is unknown.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.gradients import check_gradients
from ppl_gen.core.optimizers import without_compiler
from ppl_gen.core.parallel import joined
from ppl_gen.core.progress import Advance
from ppl_gen.inference.agreement import above, above_in_mean, bound
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.importance import ImportanceEstimate, log_marginal_likelihood
from ppl_gen.inference.modes import evaluating, frozen
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import SecondOpinion, second_opinion, second_opinion_samples
from ppl_gen.inference.tracing import PyroFunction

_IMAGES_PER_BLOCK = 50
_TRAVELS = 0.3  # share of the way of as many steps in one direction, above which a context travels


@dataclass(frozen=True)
class Search:
    """Settings of the optimization of contexts, by default those of Cremer et al.: steps of Adam, until the mean ELBO
    of a window of steps has not exceeded its best for some windows."""

    learning_rate: float = 1e-3
    num_samples: int = 50
    """Samples of z per image and step."""
    window: int = 100
    """Steps in a window."""
    patience: int = 10
    """Windows without improvement before an image's context has converged."""
    most_windows: int = 200
    """Largest number of windows."""


@dataclass(frozen=True, eq=False)
class Gaps:
    """The two gaps of each image, in nats. Every tensor is [images] on the CPU, float64 or bool."""

    estimate: Estimate
    """log p(x) by importance sampling with the encoder's or with the best contexts, the one with the larger mean. On
    images where another estimate is significantly above it, that one."""
    elbo: Tensor
    """ELBO with the encoder's contexts."""
    best_elbo: Tensor
    """ELBO* with the best contexts; with the encoder's if their ELBO is significantly larger."""
    elbo_mc_var: Tensor
    """Monte Carlo variance of `elbo`."""
    best_elbo_mc_var: Tensor
    """Monte Carlo variance of `best_elbo`."""
    settled: Tensor
    """True if the optimization converged before its last window; bool."""
    missed: Tensor | None = None
    """Images for which a second opinion is significantly above importance sampling; bool. Another mode has more mass,
    and the split of the gap is unknown. All images, if only all together show it."""
    blind: Tensor | None = None
    """Images for which the second opinion could not have found another mode; bool."""

    @property
    def log_px(self) -> Tensor:
        """log p(x)."""
        return self.estimate.log_px

    @property
    def log_px_mc_var(self) -> Tensor:
        """Monte Carlo variance of `log_px`."""
        return self.estimate.log_px_mc_var

    @property
    def estimator(self) -> str:
        """Name of the estimator of `log_px`."""
        return self.estimate.estimator

    @property
    def untrusted(self) -> Tensor:
        """True if log p(x) is unreliable, because k-hat is too high or unknown, or another estimate was above it; bool.
        The true sum of the gaps is then at least the reported one."""
        return self.estimate.untrusted

    @property
    def approximation(self) -> Tensor:
        """The approximation gap, log p(x) - ELBO*."""
        return self.log_px - self.best_elbo

    @property
    def amortization(self) -> Tensor:
        """The amortization gap, ELBO* - ELBO."""
        return self.best_elbo - self.elbo

    @property
    def approximation_mc_var(self) -> Tensor:
        """Upper bound of the Monte Carlo variance of `approximation`: samples that both estimates share lower it."""
        return self.log_px_mc_var + self.best_elbo_mc_var

    @property
    def amortization_mc_var(self) -> Tensor:
        """Monte Carlo variance of `amortization`."""
        return self.best_elbo_mc_var + self.elbo_mc_var

    def compared_with(self, other: Estimate) -> "Gaps":
        """Return the gaps with log p(x) from another estimate: on all images if its mean is larger, else on the images
        where it is significantly larger. Both estimates are low in expectation, so the larger one is better."""
        if other.mean > self.estimate.mean:
            larger = replace(other, doubted=torch.ones_like(self.untrusted))
            return replace(self, estimate=larger)._raised(bound(self.log_px, self.log_px_mc_var))
        return self._raised(other)

    def _raised(self, other: Estimate) -> "Gaps":
        """Return the gaps with log p(x) from another estimate on the images where that is significantly larger; on all
        images, if only all together show it."""
        ours = bound(self.log_px, self.log_px_mc_var)
        larger = above(ours, other)
        whole = larger.together and not larger.images.any() and above_in_mean(ours, other)
        chosen = torch.ones_like(larger.images) if whole else larger.images
        raised = replace(
            self.estimate,
            log_px=torch.where(chosen, other.log_px, self.log_px),
            log_px_mc_var=torch.where(chosen, other.log_px_mc_var, self.log_px_mc_var),
            log_px_bias=torch.where(chosen, other.log_px_bias, self.estimate.log_px_bias),
            doubted=self.untrusted | larger.images | larger.together,
        )
        return replace(self, estimate=raised)

    def _with_second_opinion(self, opinion: SecondOpinion) -> "Gaps":
        """Return the gaps with the result of a second opinion."""
        larger = above(bound(self.log_px, self.log_px_mc_var), opinion)
        missed = larger.images if larger.images.any() else larger.images | larger.together
        return replace(self._raised(opinion), missed=missed, blind=opinion.blind)


class _ContextGuide(nn.Module):
    """A guide whose contexts [images, …] are an argument: posterior(context)."""

    def __init__(self, posterior: Any, pair: Pair):
        super().__init__()
        self.posterior, self.name, self.plate = posterior, pair.latent[0], pair.plate

    def guide(self, x: Tensor, context: Tensor) -> None:
        """q(z | context) over the plate of images."""
        with pyro.plate(self.plate.name, len(x), dim=self.plate.dim):
            pyro.sample(self.name, self.posterior(context))


def gaps(
    model: Any,
    guide: Any,
    x: Tensor,
    *,
    num_samples: int = 5000,
    search: Search | None = None,
    own_weights: bool = False,
    seed: int = 0,
    progress: Advance | None = None,
) -> Gaps:
    """Split the gap of each image.

    :param model: a module with a method `model(x)`.
    :param guide: a module with methods `encode(x)` and `posterior(context)`, of one latent site that can be
        reparametrized.
    :param x: images [N, data_dim].
    :param num_samples: samples of z per image for the bounds and log p(x), after the search.
    :param own_weights: optimize a copy of the weights of `posterior` for each image too.
    :param seed: seed of the second opinion. All other noise comes from the caller's generator.
    :param progress: called with the number of images just done.
    :raises BadInput: for another kind of guide.
    """
    with evaluating(model, guide):
        pair = Pair.read(model, guide, x)
        check_guide(pair, guide)
        parts = []
        for block in x.split(1 if own_weights else _IMAGES_PER_BLOCK):
            parts.append(_block(model, guide, pair, block, num_samples, search or Search(), own_weights))
            if progress is not None:
                progress(len(block))
    amortized, best, settled = zip(*parts, strict=True)
    split = _gaps_of(*_joined(amortized), *_joined(best), torch.cat(settled).cpu())
    few = second_opinion_samples(num_samples)
    opinion = second_opinion(model, guide, x, num_samples=few, seed=seed, pair=pair)
    return split if opinion is None else split._with_second_opinion(opinion)


def _joined(blocks: Sequence[ImportanceEstimate]) -> tuple[Estimate, Estimate]:
    """Join the estimates of blocks of images into log p(x) and the ELBO of all images."""
    whole = joined(blocks)
    log_px = Estimate(**{each.name: getattr(whole, each.name) for each in fields(Estimate)})
    return replace(log_px, narrower=any(block.narrower for block in blocks)), bound(whole.elbo, whole.elbo_mc_var)


def _gaps_of(amortized: Estimate, elbo: Estimate, best: Estimate, best_elbo: Estimate, settled: Tensor) -> Gaps:
    """Combine log p(x) and the ELBO with the encoder's contexts, and with the best ones."""
    better, other = (best, amortized) if best.mean > amortized.mean else (amortized, best)
    # The encoder's context is a member of the family, too. If it is better than the result of the search, it is the
    # best one.
    kept = above(best_elbo, elbo).images | above_in_mean(best_elbo, elbo)
    split = Gaps(
        estimate=better,
        elbo=elbo.log_px,
        best_elbo=torch.where(kept, elbo.log_px, best_elbo.log_px),
        elbo_mc_var=elbo.log_px_mc_var,
        best_elbo_mc_var=torch.where(kept, elbo.log_px_mc_var, best_elbo.log_px_mc_var),
        settled=settled,
    )
    return split._raised(bound(other.log_px, other.log_px_mc_var))


def check_guide(pair: Pair, guide: Any) -> None:
    """Raise `BadInput` for a guide whose contexts cannot be optimized."""
    check_gradients("the split of the gap")
    if not offers(guide, Amortized) or len(pair.latent) != 1:
        raise BadInput(
            f"{pair.guide_name}: the gaps need a guide of one latent site, with the methods encode(x), from images to "
            "contexts, and posterior(context)"
        )
    if not pair.reparametrized:
        raise BadInput(f"{pair.guide_name}: the gaps need a guide that can be reparametrized, to move its contexts")


def has_own_weights(guide: Any, x: Tensor) -> bool:
    """True if the `posterior` of a guide has parameters of its own besides the context."""
    with evaluating(guide):
        return bool(_weights_of_posterior(copy.deepcopy(guide), guide.encode(x[:1])))


def _block(
    model: Any, guide: Any, pair: Pair, x: Tensor, num_samples: int, search: Search, own_weights: bool
) -> tuple[ImportanceEstimate, ImportanceEstimate, Tensor]:
    """A block of images: the estimate with the encoder's contexts, the estimate with the best contexts, and True for
    each image whose optimization converged."""
    amortized = log_marginal_likelihood(model, guide, x, num_samples=num_samples, ask_again=False)
    start = guide.encode(x).detach()
    local = copy.deepcopy(guide) if own_weights else guide
    at = _ContextGuide(local.posterior, pair)

    def model_of_x(x: Tensor, context: Tensor) -> Any:  # the model takes no context
        return pair.model(x)

    with frozen(model, guide), torch.enable_grad():
        weights = _weights_of_posterior(local, start) if own_weights else []
        context, settled = optimize_contexts(model_of_x, at, x, start, weights, search)
    best = log_marginal_likelihood(model_of_x, at, x, context, num_samples=num_samples, ask_again=False)
    return amortized, best, settled


def _weights_of_posterior(guide: Any, context: Tensor) -> list[nn.Parameter]:
    """Parameters of the guide that log q(z | context) depends on. Afterwards all parameters require gradients."""
    parameters = [parameter.requires_grad_() for parameter in guide.parameters()]
    with torch.enable_grad():
        posterior = guide.posterior(context.detach().requires_grad_())
        z = posterior()
        value = (posterior.log_prob(z) + z.sum(-1)).sum()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True) if parameters else ()
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _select_rows(adam: torch.optim.Adam, contexts: Tensor, chosen: Tensor) -> Tensor:
    """Replace the contexts in an Adam optimizer by some of their rows, with the rows of their moments."""
    selected = contexts.detach()[chosen].requires_grad_()
    state = adam.state.pop(contexts)
    # The moments are tensors like the contexts; the number of steps is a scalar.
    adam.state[selected] = {name: value[chosen] if value.dim() else value for name, value in state.items()}
    adam.param_groups[0]["params"][0] = selected
    return selected


def optimize_contexts(
    model: PyroFunction, at: _ContextGuide, x: Tensor, start: Tensor, weights: list[nn.Parameter], search: Search
) -> tuple[Tensor, Tensor]:
    """Maximize the ELBO of each image over its context by Adam. Returns the contexts [images, …], averaged over the
    best window of each image, and True for each image that converged: its mean ELBO has not exceeded the best for some
    windows, and its context does not travel. Each step of Adam is about the learning rate long, so that a context far
    from its optimum may gain less than the noise of a window for long, but goes in one direction.

    Adam updates every element separately, so that images do not interact, and images that have converged can be left
    out of the batch.

    :param start: contexts to start from, [images, …].
    :param weights: weights of `posterior` to optimize along with the context of a single image; changed in place.
    """
    moving = [start.clone().requires_grad_(), *weights]
    adam = without_compiler(torch.optim.Adam)(moving, lr=search.learning_rate)
    pair = Pair.read(model, at, x, start)
    kept = [parameter.detach().clone() for parameter in moving]
    best = torch.full_like(x[:, 0], -math.inf)
    waited, travels = torch.zeros_like(best), torch.zeros_like(best, dtype=torch.bool)
    trail: list[Tensor] = []  # mean contexts of the last windows
    rows = torch.arange(len(x), device=x.device)  # images that have not converged
    for _ in range(search.most_windows):
        bound = torch.zeros_like(rows, dtype=x.dtype)
        averages = [torch.zeros_like(parameter) for parameter in moving]
        for _ in range(search.window):
            elbo = pair.terms(x[rows], moving[0], num_samples=search.num_samples).elbo
            bound += elbo.detach() / search.window
            for average, parameter in zip(averages, moving, strict=True):
                average += parameter.detach() / search.window
            adam.zero_grad()
            (-elbo.sum()).backward(inputs=moving)
            adam.step()
        improved = bound > best[rows]
        best[rows[improved]] = bound[improved]
        waited[rows] = torch.where(improved, 0, waited[rows] + 1)
        kept[0][rows[improved]] = averages[0][improved]
        if weights and bool(improved):
            kept[1:] = averages[1:]
        trail = [*trail[-search.patience :], averages[0]]
        steps = search.window * (len(trail) - 1)
        moved = (trail[-1] - trail[0]).abs().flatten(1).amax(1)
        travels[rows] = moved > _TRAVELS * search.learning_rate * max(steps, 1)
        active = (waited[rows] < search.patience) | travels[rows]
        if not active.any():
            break
        if not active.all():
            rows = rows[active]
            moving[0] = _select_rows(adam, moving[0], active)
            trail = [each[active] for each in trail]
    with torch.no_grad():
        for weight, value in zip(weights, kept[1:], strict=True):
            weight.copy_(value)
    return kept[0], (waited >= search.patience) & ~travels
