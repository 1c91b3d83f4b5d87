"""Why is there a gap between the ELBO and log p(x)? Cremer, Li and Duvenaud (2018), section 3.

    log p(x) - ELBO = (log p(x) - ELBO*)  +  (ELBO* - ELBO)
                       approximation gap     amortization gap

ELBO* is that of the best member of the guide's family {posterior(c)} for each image, found by optimizing the context c
of the image, from the encoder's. What is left is what the family cannot represent. A family whose `posterior` has
weights of its own, such as a flow, has members that no context reaches: `own_weights` optimizes a copy of the weights,
too, for each image.

The search climbs from where the encoder is. Where p(z | x) has several modes it stays in the encoder's, and so do the
importance samples: neither k-hat nor a small amortization gap tells that another mode holds more. A second opinion with
samples from the prior (`ppl_gen.inference.proposals.second_opinion`) tells, where the prior reaches that mode. Then
log p(x) - ELBO is larger than both searches saw, and how it splits is not known.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.agreement import above, above_in_mean, bound
from ppl_gen.inference.callables import evaluating, frozen
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.importance import ImportanceEstimate, log_marginal_likelihood
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import SecondOpinion, second_opinion, second_opinion_samples

_IMAGES_PER_BLOCK = 50
Advance = Callable[[int], None]
"""Called with the number of images just done."""


@dataclass(frozen=True)
class Search:
    """The search of the best context of an image. The defaults are those of Cremer et al.: Adam, until the mean
    bound of a window of steps has not risen above its best for some windows."""

    learning_rate: float = 1e-3
    num_samples: int = 50
    """Samples of z per image and step."""
    window: int = 100
    """Steps."""
    patience: int = 10
    """Windows without gain."""
    most_windows: int = 200


@dataclass(frozen=True, eq=False)
class Gaps:
    """Per image, in nats, float64 on the CPU; every tensor is [images]."""

    estimate: Estimate
    """log p(x) by importance sampling with the encoder's contexts or with the best ones, the one that has the larger
    mean; where another estimate is above it beyond chance, that one."""
    elbo: Tensor
    """With the encoder's contexts."""
    best_elbo: Tensor
    """With the best contexts; with the encoder's where their bound is the larger beyond the errors."""
    elbo_mc_var: Tensor
    """Monte Carlo variance of `elbo`."""
    best_elbo_mc_var: Tensor
    settled: Tensor
    """True where the search ended by itself, not at its last window; bool."""
    missed: Tensor | None = None
    """Images for which a second opinion is above importance sampling beyond chance: another mode holds more than both
    searches saw, and how the gap splits is not known; bool. All of them where only all together show it."""
    blind: Tensor | None = None
    """Images for which the second opinion could not have seen another mode; bool."""

    @property
    def log_px(self) -> Tensor:
        return self.estimate.log_px

    @property
    def log_px_mc_var(self) -> Tensor:
        return self.estimate.log_px_mc_var

    @property
    def estimator(self) -> str:
        """Name of the estimator of `log_px`."""
        return self.estimate.estimator

    @property
    def untrusted(self) -> Tensor:
        """True where log p(x) is not settled, since k-hat is too high or unknown or another estimate was above it. The
        sum of the gaps is then at least what is reported; bool."""
        return self.estimate.untrusted

    @property
    def approximation(self) -> Tensor:
        return self.log_px - self.best_elbo

    @property
    def amortization(self) -> Tensor:
        return self.best_elbo - self.elbo

    @property
    def approximation_mc_var(self) -> Tensor:
        """At most: samples that both estimates share make it less."""
        return self.log_px_mc_var + self.best_elbo_mc_var

    @property
    def amortization_mc_var(self) -> Tensor:
        return self.best_elbo_mc_var + self.elbo_mc_var

    def compared_with(self, other: Estimate) -> "Gaps":
        """With another estimate of log p(x): on every image if its mean is the larger, else on the images where it is
        above this one beyond chance. Each is low in expectation."""
        if other.mean > self.estimate.mean:
            doubted = replace(other, doubted=torch.ones_like(self.untrusted))
            return replace(self, estimate=doubted)._raised(bound(self.log_px, self.log_px_mc_var))
        return self._raised(other)

    def _raised(self, other: Estimate) -> "Gaps":
        """With another estimate of log p(x) on the images where it is above this one beyond chance; on all where only
        all of them together show it."""
        own = bound(self.log_px, self.log_px_mc_var)
        found = above(own, other)
        whole = found.together and not found.images.any() and above_in_mean(own, other)
        chosen = torch.ones_like(found.images) if whole else found.images
        raised = replace(
            self.estimate,
            log_px=torch.where(chosen, other.log_px, self.log_px),
            log_px_mc_var=torch.where(chosen, other.log_px_mc_var, self.log_px_mc_var),
            log_px_bias=torch.where(chosen, other.log_px_bias, self.estimate.log_px_bias),
            doubted=self.untrusted | found.images | found.together,
        )
        return replace(self, estimate=raised)

    def _judged(self, opinion: SecondOpinion) -> "Gaps":
        """With what a second opinion says."""
        found = above(bound(self.log_px, self.log_px_mc_var), opinion)
        missed = found.images if found.images.any() else found.images | found.together
        return replace(self._raised(opinion), missed=missed, blind=opinion.blind)


class _At(nn.Module):
    """A guide of given contexts [images, …], one for each image."""

    def __init__(self, posterior: Any, pair: Pair):
        super().__init__()
        self.posterior, self.name, self.plate = posterior, pair.latent[0], pair.plate

    def guide(self, x: Tensor, context: Tensor) -> None:
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
    """The two gaps of each image.

    :param model: a module with a method `model(x)`.
    :param guide: a module with methods `encode(x)` and `posterior(context)`, of one latent site that can be
        reparametrized.
    :param x: images [N, data_dim].
    :param num_samples: samples of z per image for the bounds and log p(x), after the search.
    :param own_weights: give each image a copy of the weights that `posterior` has, and optimize it too.
    :param seed: of the second opinion; all other noise is the caller's to seed.
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
    found = _found(*_joined(amortized), *_joined(best), torch.cat(settled).cpu())
    opinion = second_opinion(model, guide, x, num_samples=second_opinion_samples(num_samples), seed=seed)
    return found if opinion is None else found._judged(opinion)


def _joined(blocks: Sequence[ImportanceEstimate]) -> tuple[Estimate, Estimate]:
    """log p(x) and the ELBO of all images, from the estimates of a few images each."""

    def all_of(name: str) -> Tensor:
        return torch.cat([getattr(each, name) for each in blocks])

    first = blocks[0]
    log_px = Estimate(
        estimator=first.estimator,
        words=first.words,
        num_samples=first.num_samples,
        narrower=any(each.narrower for each in blocks),
        log_px=all_of("log_px"),
        log_px_mc_var=all_of("log_px_mc_var"),
        log_px_bias=all_of("log_px_bias"),
        ess=all_of("ess"),
        khat=all_of("khat"),
        largest=all_of("largest"),
    )
    return log_px, bound(all_of("elbo"), all_of("elbo_mc_var"))


def _found(amortized: Estimate, elbo: Estimate, best: Estimate, best_elbo: Estimate, settled: Tensor) -> Gaps:
    """The gaps, from log p(x) and ELBO with the encoder's contexts, and with the best ones."""
    better, other = (best, amortized) if best.mean > amortized.mean else (amortized, best)
    # The encoder's context is a member of the family like any other.
    kept = above(best_elbo, elbo).images | above_in_mean(best_elbo, elbo)
    found = Gaps(
        estimate=better,
        elbo=elbo.log_px,
        best_elbo=torch.where(kept, elbo.log_px, best_elbo.log_px),
        elbo_mc_var=elbo.log_px_mc_var,
        best_elbo_mc_var=torch.where(kept, elbo.log_px_mc_var, best_elbo.log_px_mc_var),
        settled=settled,
    )
    return found._raised(bound(other.log_px, other.log_px_mc_var))


def check_guide(pair: Pair, guide: Any) -> None:
    """Raise `BadInput` for a guide whose context cannot be optimized."""
    if not offers(guide, Amortized) or len(pair.latent) != 1:
        raise BadInput(
            f"{pair.guide_name}: the gaps take a guide of one latent site, with the methods encode(x), from images to "
            "contexts, and posterior(context)"
        )
    if not pair.reparametrized:
        raise BadInput(f"{pair.guide_name}: the gaps take a guide that can be reparametrized, to move its contexts")


def has_own_weights(guide: Any, x: Tensor) -> bool:
    """Whether the `posterior` of a guide has parameters of its own, beside the context."""
    with evaluating(guide):
        return bool(_weights_of_posterior(copy.deepcopy(guide), guide.encode(x[:1])))


def _block(
    model: Any, guide: Any, pair: Pair, x: Tensor, num_samples: int, search: Search, own_weights: bool
) -> tuple[ImportanceEstimate, ImportanceEstimate, Tensor]:
    """For a few images: estimates with the encoder's contexts, with the best ones, and whether the search settled."""
    amortized = log_marginal_likelihood(model, guide, x, num_samples=num_samples, ask_again=False)
    start = guide.encode(x).detach()
    local = copy.deepcopy(guide) if own_weights else guide
    at = _At(local.posterior, pair)

    def alone(x: Tensor, context: Tensor) -> Any:  # the context is not the model's
        return pair.model(x)

    with frozen(model, guide), torch.enable_grad():
        weights = _weights_of_posterior(local, start) if own_weights else []
        context, settled = optimize_contexts(alone, at, x, start, weights, search)
    return amortized, log_marginal_likelihood(alone, at, x, context, num_samples=num_samples, ask_again=False), settled


def _weights_of_posterior(guide: Any, context: Tensor) -> list[nn.Parameter]:
    """The parameters that `posterior` has of its own; all of the guide's ask for a gradient afterwards."""
    parameters = [parameter.requires_grad_() for parameter in guide.parameters()]
    with torch.enable_grad():
        posterior = guide.posterior(context.detach().requires_grad_())
        z = posterior()
        value = (posterior.log_prob(z) + z.sum(-1)).sum()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True) if parameters else ()
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _fewer(adam: torch.optim.Adam, contexts: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows of the contexts, with their moments, in place of all of them."""
    fewer = contexts.detach()[chosen].requires_grad_()
    state = adam.state.pop(contexts)
    adam.state[fewer] = {name: value[chosen] if value.dim() else value for name, value in state.items()}
    adam.param_groups[0]["params"][0] = fewer
    return fewer


def optimize_contexts(
    model: Any, at: _At, x: Tensor, start: Tensor, weights: list[nn.Parameter], search: Search
) -> tuple[Tensor, Tensor]:
    """The contexts that climb the ELBO of their images, averaged over the best window of each, and whether each has
    settled. Adam moves every element by itself, so that images do not interact, and those that have settled are left
    out; `weights`, of one image, move along."""
    moving = [start.clone().requires_grad_(), *weights]
    adam = torch.optim.Adam(moving, lr=search.learning_rate)
    pair = Pair.read(model, at, x, start)
    kept = [each.detach().clone() for each in moving]
    best = torch.full_like(x[:, 0], -math.inf)
    waited = torch.zeros_like(best)
    rows = torch.arange(len(x), device=x.device)  # still climbing
    for _ in range(search.most_windows):
        bound = torch.zeros_like(rows, dtype=x.dtype)
        averages = [torch.zeros_like(each) for each in moving]
        for _ in range(search.window):
            elbo = pair.terms(x[rows], moving[0], num_samples=search.num_samples).elbo
            bound += elbo.detach() / search.window
            for average, each in zip(averages, moving, strict=True):
                average += each.detach() / search.window
            adam.zero_grad()
            (-elbo.sum()).backward(inputs=moving)
            adam.step()
        gained = bound > best[rows]
        best[rows[gained]] = bound[gained]
        waited[rows] = torch.where(gained, 0, waited[rows] + 1)
        kept[0][rows[gained]] = averages[0][gained]
        if weights and bool(gained):
            kept[1:] = averages[1:]
        climbing = waited[rows] < search.patience
        if not climbing.any():
            break
        if not climbing.all():
            rows = rows[climbing]
            moving[0] = _fewer(adam, moving[0], climbing)
    with torch.no_grad():
        for weight, value in zip(weights, kept[1:], strict=True):
            weight.copy_(value)
    return kept[0], waited >= search.patience
