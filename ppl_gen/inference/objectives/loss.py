"""From an objective and a pair to an `ELBO` that `pyro.infer.SVI` takes, and what the objectives share."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from pyro.infer.elbo import ELBO
from torch import Tensor, nn

from ppl_gen.core.components import kebab_case
from ppl_gen.core.contracts import (
    ChecksPair,
    Draws,
    HasBound,
    HasDraws,
    Loss,
    Objective,
    Recordable,
    Surrogate,
    WrapsELBO,
)
from ppl_gen.core.errors import BadInput, describe
from ppl_gen.inference.densities import leave_one_out_mean
from ppl_gen.inference.elbos import min_samples, with_gradient_of
from ppl_gen.inference.enumeration import DifferentiableLoss
from ppl_gen.inference.pair import Pair, Terms

_DRAWN: dict[Draws, dict[str, bool]] = {
    "reparametrized": {},
    "detached": {"detach": True},
    "frozen-guide": {"frozen_guide": True},
}
"""Arguments of `Pair.terms`."""
NOT_RECORDABLE = "--capture: cannot record enumeration, a score function with a baseline, or the losses of a GAN"


def bind(objective: Objective, pair: Pair, x: Tensor, *args: Any) -> ELBO:
    """An objective of one pair, as `pyro.infer.SVI` takes it.

    Its `differentiable_loss(model, guide, x, *args)` is -sum of the bounds over the images, with the gradient of the
    surrogate. The functions given to it matter to objectives that wrap an ELBO of Pyro only; the others use the pair.

    :param x: a few images to try it on, with their `args`.
    :raises BadInput: for an objective that the pair cannot have.
    """
    for site, scale in pair.scales.items():
        raise BadInput(
            f"site '{site}' has the scale {float(scale):g}: the objectives are nats per image, unscaled; leave it out, "
            "or use --kl-warmup or --objective beta"
        )
    if isinstance(objective, ChecksPair):
        objective.check(pair, x, *args)
    if isinstance(objective, Loss):
        return _OfLoss(objective, pair)
    if isinstance(objective, WrapsELBO):
        return _elbo_of(objective, pair, x, *args)
    draws = _draws(objective)
    check_draws(objective, pair, draws)
    return _OfSurrogate(objective, pair, draws)


def name_of(objective: Objective) -> str:
    """The name of an objective of the package on the command line; the name of the class of any other."""
    name = type(objective).__name__
    return kebab_case(name) if _is_ours(objective) else name


def _is_ours(objective: Objective) -> bool:
    return type(objective).__module__.startswith(f"{__package__}.")


def has_kl_term(objective: Objective, pair: Pair) -> bool:
    """Whether KL warm-up applies: a Pyro ELBO is evaluated, and z is sampled."""
    return isinstance(objective, WrapsELBO) and not isinstance(objective, Loss) and not pair.enumerated


def recordable(objective: Objective, pair: Pair) -> Objective:
    """The same objective as one whose operations can be recorded, for `--capture`.

    :raises BadInput: for an objective that cannot be recorded.
    """
    if isinstance(objective, Recordable):
        return objective.recordable(pair)
    if isinstance(objective, WrapsELBO) and not isinstance(objective, Loss):
        raise BadInput(
            f"--capture: {name_of(objective)} wraps an ELBO of Pyro; give it a method recordable(self, pair)"
        )
    return objective


# What a pair must allow ----------------------------------------------------------------------------------------


def check_sampled(objective: Objective, pair: Pair) -> None:
    """Raise `BadInput` for a pair whose latent sites are all enumerated."""
    if pair.enumerated:
        raise BadInput(
            f"--objective {name_of(objective)}: {pair.guide_name} leaves {pair.model_name} to enumeration, where the "
            "loss is -log p(x) and nothing is sampled; use elbo with 1 particle"
        )


def check_draws(objective: Surrogate | Loss, pair: Pair, draws: Draws) -> None:
    """Raise `BadInput` for a pair whose z cannot be drawn in this way."""
    check_sampled(objective, pair)
    if draws != "detached":
        check_reparametrized(objective, pair)
    if draws == "frozen-guide":
        # log q is evaluated a second time: noise in it besides z would be another.
        modules = pair.guide_module.modules() if isinstance(pair.guide_module, nn.Module) else ()
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modules):
            name = name_of(objective)
            raise BadInput(f"--objective {name}: {pair.guide_name} has dropout, a noise besides z; use elbo or iwae")


def check_reparametrized(objective: Objective, pair: Pair) -> None:
    """Raise `BadInput` for a guide whose samples are not reparametrized."""
    if not pair.reparametrized:
        name = name_of(objective)
        raise BadInput(f"--objective {name}: {pair.guide_name} cannot be reparametrized; use elbo, vimco or rws")


@contextmanager
def _telling(objective: Objective) -> Iterator[None]:
    """The errors of a user's own code as `BadInput`, with the line that they came from."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if _is_ours(objective):
            raise
        raise BadInput(f"objective {name_of(objective)} fails: {describe(error)}") from error


def _draws(objective: Surrogate) -> Draws:
    draws = objective.draws if isinstance(objective, HasDraws) else "reparametrized"
    if draws not in _DRAWN:
        raise BadInput(f"objective {name_of(objective)}: draws = '{draws}': choose from {', '.join(get_args(Draws))}")
    return draws


# Objectives as ELBOs -------------------------------------------------------------------------------------------


def _elbo_of(objective: WrapsELBO, pair: Pair, x: Tensor, *args: Any) -> ELBO:
    with _telling(objective):
        elbo = objective.elbo(pair, x, *args)
    if not callable(getattr(elbo, "differentiable_loss", None)):  # which some of Pyro's have, and some have not
        raise BadInput(
            f"objective {name_of(objective)}: elbo(pair, x) returns a {type(elbo).__name__}, which has no "
            "differentiable_loss(model, guide, x)"
        )
    return elbo


class _OfPair(DifferentiableLoss, ELBO):
    """An objective as an `ELBO`. Masks of the pair are applied, scales are not."""

    def __init__(self, pair: Pair, num_particles: int = 1):
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.pair = pair

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the pair makes the traces")


class _OfLoss(_OfPair):
    """An objective that draws and scores by itself."""

    def __init__(self, objective: Loss, pair: Pair):
        super().__init__(pair)
        self.objective = objective

    def differentiable_loss(self, model: Any, guide: Any, x: Tensor, *args: Any) -> Tensor:
        with _telling(self.objective):
            loss = self.objective.loss(self.pair, x, *args)
            _check_shape(self.objective, "loss(pair, x)", loss, (), "one number, the sum over the images")
        return loss


class _OfSurrogate(_OfPair):
    """An objective that is a function of log-densities, with the score of the guide's choices, if it has any."""

    def __init__(self, objective: Surrogate, pair: Pair, draws: Draws):
        super().__init__(pair, max(objective.num_particles, min_samples(pair)))
        self.objective = objective
        self.bound = objective.bound if isinstance(objective, HasBound) else None
        self.drawn = _DRAWN[draws]

    def differentiable_loss(self, model: Any, guide: Any, x: Tensor, *args: Any) -> Tensor:
        terms = self.pair.terms(x, *args, num_samples=self.num_particles, **self.drawn)
        each = f"one number for each image, [{len(x)}] here"
        with _telling(self.objective):
            surrogate = bound = self.objective.surrogate(terms)
            _check_shape(self.objective, "surrogate(terms)", surrogate, (len(x),), each)
            if self.bound is not None:
                bound = self.bound(terms)
                _check_shape(self.objective, "bound(terms)", bound, (len(x),), each)
            if terms.score is not None:
                changes = added(self.bound or self.objective.surrogate, terms, bound)
                surrogate = surrogate + (changes * terms.score).sum(0)
        return with_gradient_of(-bound.sum(), -surrogate.sum())


def _check_shape(objective: Objective, method: str, result: Any, shape: tuple[int, ...], needed: str) -> None:
    if not isinstance(result, Tensor) or result.shape != shape:
        found = f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise BadInput(f"objective {name_of(objective)}: {method} returns {found}; it must return {needed}")


# Bounds of several samples -------------------------------------------------------------------------------------


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    """log (1/K) sum_k w_k over a dimension of K log weights: L_K of each image, for log weights [samples, images]."""
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def vimco_signal(log_weight: Tensor) -> Tensor:
    """The amount that each sample adds to L_K, [samples, images]: L_K less the L_K in which the sample's log weight is
    the mean of the others', which does not depend on it (Mnih and Rezende 2016, equations 8 to 10)."""
    log_weight = log_weight.detach()
    own = torch.eye(len(log_weight), dtype=torch.bool, device=log_weight.device)[..., None]
    # [k, samples, images]: row k has sample k replaced.
    replaced = torch.where(own, leave_one_out_mean(log_weight), log_weight)
    return log_mean_exp(log_weight) - log_mean_exp(replaced, 1)


def added(bound_of: Callable[[Terms], Tensor], terms: Terms, bound: Tensor) -> Tensor:
    """The amount that each sample adds to any bound, [samples, images]: the bound less the bound in which the sample's
    log-densities are the means of the others'."""
    with torch.no_grad():
        return bound.detach() - torch.stack([bound_of(each) for each in _replaced(terms)])


@dataclass(frozen=True, kw_only=True)
class _Replaced(Terms):
    """Terms with one sample replaced. Their log weight is not added up again: it would be rounded otherwise."""

    replaced_log_weight: Tensor

    @property
    def log_weight(self) -> Tensor:
        return self.replaced_log_weight


def _replaced(terms: Terms) -> Iterator[Terms]:
    """For each sample the terms in which its log-densities are the means of the others'."""
    values = [t.detach() for t in (terms.log_likelihood, terms.log_prior, terms.log_guide, terms.log_weight)]
    others = [leave_one_out_mean(each) for each in values]
    for own in torch.eye(len(terms.log_guide), dtype=torch.bool, device=terms.log_guide.device):
        likelihood, prior, guide, weight = (
            torch.where(own[:, None], mean, each) for mean, each in zip(others, values, strict=True)
        )
        yield _Replaced(
            log_likelihood=likelihood,
            log_prior=prior,
            log_guide=guide,
            kl=None,
            latents={},
            finite=frozenset(),
            replaced_log_weight=weight,
        )
