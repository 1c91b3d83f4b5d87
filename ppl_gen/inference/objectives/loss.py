"""Binding of an objective and a pair into an `ELBO` for `pyro.infer.SVI`; checks and functions that objectives
share."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast, get_args

import pyro.distributions as dist
import torch
from pyro.infer.elbo import ELBO
from torch import Tensor

from ppl_gen.core.components import kebab_case
from ppl_gen.core.contracts import (
    ChecksPair,
    Draws,
    HasBackward,
    HasBound,
    HasDraws,
    HasGuideSurrogate,
    HasLossForm,
    Loss,
    Objective,
    Surrogate,
    WrapsELBO,
)
from ppl_gen.core.errors import BadInput, as_bad_input, require
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.densities import add, leave_one_out_mean
from ppl_gen.inference.direct import encoded
from ppl_gen.inference.elbos import min_samples, with_gradient_of
from ppl_gen.inference.enumeration import DifferentiableLoss
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.thinning import check_backward, check_noise, check_thinned, drawn_by, terms_at, weighed
from ppl_gen.inference.tracing import PyroFunction, trace_of
from ppl_gen.networks import supports

_DRAWN: dict[Draws, dict[str, bool]] = {
    "reparametrized": {},
    "detached": {"detach": True},
    "frozen-guide": {"frozen_guide": True},
}
"""Arguments of `Pair.terms` for each way to draw z."""
_WRONG = (dist.MixtureOfDiagNormals, dist.MixtureOfDiagNormalsSharedCovariance)


def bind(objective: Objective, pair: Pair, x: Tensor, *args: Any) -> ELBO:
    """Make an `ELBO` for `pyro.infer.SVI` from an objective and a pair.

    Its `differentiable_loss(model, guide, x, *args)` is minus the sum of the bounds over the images, with the gradient
    of the surrogate. `model` and `guide` are used by objectives that wrap an ELBO of Pyro. All others use the pair.

    :param x: a few images to try the objective on, with their `args`.
    :raises BadInput: for an objective that is not defined for the pair.
    """
    if pair.scales:
        site, scale = next(iter(pair.scales.items()))
        raise BadInput(
            f"site '{site}' has the scale {float(scale):g}: objectives are in nats per image, without scale; leave it "
            "out, or use --kl-warmup or --objective beta"
        )
    if isinstance(objective, ChecksPair):
        objective.check(pair, x, *args)
    if isinstance(objective, WrapsELBO):
        _check_gradients(objective, pair, "reparametrized", x, *args)
    if pair.direct is not None and isinstance(objective, HasLossForm) and (form := objective.loss_form(pair)):
        return _FormELBO(form, pair, _elbo_of(objective, pair, x, *args))
    if isinstance(objective, Loss):
        return _LossELBO(objective, pair)
    if isinstance(objective, WrapsELBO):
        return _elbo_of(objective, pair, x, *args)
    draws = _draws(objective)
    check_draws(objective, pair, draws, x, *args)
    if isinstance(objective, HasBackward) and objective.backward is not None:
        if isinstance(objective, HasGuideSurrogate):
            raise BadInput(
                f"objective {name_of(objective)}: backward goes with one surrogate, not with guide_surrogate"
            )
        check_backward(objective.backward, objective.num_particles)
        check_thinned(pair, x, *args)
        return _ThinnedELBO(objective, pair, draws)
    return _SurrogateELBO(objective, pair, draws)


def name_of(objective: Objective) -> str:
    """Name of an objective: on the command line, if it is of the package; else the name of its class."""
    name = type(objective).__name__
    return kebab_case(name) if is_ours(objective) else name


def is_ours(objective: Objective) -> bool:
    """True for an objective of the package."""
    return type(objective).__module__.startswith(f"{__package__}.")


def has_kl_term(objective: Objective, pair: Pair) -> bool:
    """True if KL warm-up applies: the objective wraps an ELBO of Pyro, and z is sampled."""
    return isinstance(objective, WrapsELBO) and not isinstance(objective, Loss) and not pair.enumerated


# Checks of a pair ----------------------------------------------------------------------------------------------


def check_sampled(objective: Objective, pair: Pair) -> None:
    """Raise `BadInput` for a pair whose latent sites are all enumerated or summed over points."""
    if pair.enumerated:
        to = "a sum over points of z" if pair.discretized else "enumeration"
        raise BadInput(
            f"--objective {name_of(objective)}: {pair.guide_name} leaves {pair.model_name} to {to}: the loss "
            "is -log p(x) and nothing is sampled; use elbo with 1 particle"
        )


def check_draws(objective: Surrogate | Loss, pair: Pair, draws: Draws, x: Tensor, *args: Any) -> None:
    """Raise `BadInput` for a pair whose z cannot be drawn in the way that an objective needs."""
    check_sampled(objective, pair)
    if pair.enumerated_in_guide:
        site = pair.enumerated_in_guide[0]
        raise BadInput(
            f"--objective {name_of(objective)}: {pair.guide_name} enumerates '{site}', so the weights do not depend on "
            f"q({site} | x), which would not be trained; use elbo, or leave '{site}' out of the guide"
        )
    if draws != "detached":
        check_reparametrized(objective, pair)
    _check_gradients(objective, pair, draws, x, *args)
    if draws == "frozen-guide":  # log q is evaluated a second time
        check_noise(f"--objective {name_of(objective)}", pair, x, *args, instead="elbo or iwae")


def _check_gradients(objective: Objective, pair: Pair, draws: Draws, x: Tensor, *args: Any) -> None:
    """Raise `BadInput` for a guide whose score has another mean than 0, or whose samples have a wrong gradient."""
    if pair.enumerated:
        return
    with forked_rng(x), evaluating(pair.guide), torch.enable_grad():
        trace = trace_of(pair.guide, Batch(x, args, {}))
    for name in pair.latent:
        fn = trace.nodes[name]["fn"]
        if draws != "reparametrized" and supports.moves(fn):
            raise BadInput(
                f"--objective {name_of(objective)}: the support of '{name}' in {pair.guide_name} changes with its "
                "parameters, so that the mean of its score is not 0; use elbo or iwae"
            )
        wrong = [part for part in supports.parts(fn) if type(part) in _WRONG and part.component_logits.requires_grad]
        if draws != "detached" and wrong:
            raise BadInput(
                f"--objective {name_of(objective)}: samples of {type(wrong[0]).__name__} ('{name}' in "
                f"{pair.guide_name}) have a wrong gradient of the mixture's weights in Pyro; use rloo or vimco, or "
                "DiagonalMixture of ppl_gen.guides.mixture"
            )


def check_reparametrized(objective: Objective, pair: Pair) -> None:
    """Raise `BadInput` for a guide whose samples are not reparametrized."""
    if not pair.reparametrized:
        name = name_of(objective)
        raise BadInput(f"--objective {name}: {pair.guide_name} cannot be reparametrized; use elbo, vimco or rws")


def _reporting(objective: Objective) -> AbstractContextManager[None]:
    """Context that turns errors of a user's objective into `BadInput`. An error in an objective of the package is a
    bug, and keeps its traceback."""
    return nullcontext() if is_ours(objective) else as_bad_input(f"objective {name_of(objective)} fails")


def _draws(objective: Surrogate) -> Draws:
    """The way that an objective draws z."""
    draws = objective.draws if isinstance(objective, HasDraws) else "reparametrized"
    if draws not in _DRAWN:
        raise BadInput(f"objective {name_of(objective)}: draws = '{draws}': choose from {', '.join(get_args(Draws))}")
    return draws


# Objectives as ELBOs -------------------------------------------------------------------------------------------


def _elbo_of(objective: WrapsELBO, pair: Pair, x: Tensor, *args: Any) -> ELBO:
    """The ELBO of an objective that wraps one of Pyro's."""
    with _reporting(objective):
        elbo = objective.elbo(pair, x, *args)
    if not callable(getattr(elbo, "differentiable_loss", None)):  # not every ELBO of Pyro has it
        raise BadInput(
            f"objective {name_of(objective)}: elbo(pair, x) returns a {type(elbo).__name__}, which has no "
            "differentiable_loss(model, guide, x)"
        )
    return elbo


class _PairELBO(DifferentiableLoss, ELBO):
    """An objective and a pair as an `ELBO`. Masks of the pair are applied, scales are not."""

    def __init__(self, pair: Pair, num_particles: int = 1):
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.pair = pair

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the pair makes the traces")


class _LossELBO(_PairELBO):
    """An objective with a method `loss`."""

    def __init__(self, objective: Loss, pair: Pair):
        super().__init__(pair)
        self.objective = objective

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor, *args: Any) -> Tensor:
        with _reporting(self.objective):
            loss = self.objective.loss(self.pair, x, *args)
            _check_shape(self.objective, "loss(pair, x)", loss, (), "one number, the sum over the images")
        return loss


class _FormELBO(_LossELBO):
    """The loss form of an objective that wraps an ELBO of Pyro. For other functions than the pair's, such as these with
    a handler around them, it is that ELBO."""

    def __init__(self, form: Loss, pair: Pair, of_pyro: ELBO):
        super().__init__(form, pair)
        self.num_particles, self.of_pyro = of_pyro.num_particles, of_pyro

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor, *args: Any) -> Tensor:
        if (model, guide) == (self.pair.model, self.pair.guide):
            return super().differentiable_loss(model, guide, x, *args)
        loss: Tensor = self.of_pyro.differentiable_loss(model, guide, x, *args)
        return loss


class _SurrogateELBO(_PairELBO):
    """An objective with a method `surrogate`, and `guide_surrogate` if the guide has one of its own. The score of the
    guide's discrete choices is added, if it makes any."""

    def __init__(self, objective: Surrogate, pair: Pair, draws: Draws):
        count = objective.num_particles
        whole = isinstance(count, int) and not isinstance(count, bool)
        require(whole and count >= 1, "num_particles", count, "must be a whole number, at least 1")
        super().__init__(pair, max(count, min_samples(pair)))
        self.objective = objective
        self.bound = objective.bound if isinstance(objective, HasBound) else None
        self.of_guide = objective.guide_surrogate if isinstance(objective, HasGuideSurrogate) else None
        self.drawn = _DRAWN[draws] | {"cut": self.of_guide is not None}

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor, *args: Any) -> Tensor:
        terms = self.pair.terms(x, *args, num_samples=self.num_particles, **self.drawn)
        # A guide with a surrogate of its own takes nothing from the model's, not even through log q.
        of_model = terms if self.of_guide is None else replace(terms, log_guide=terms.log_guide.detach())
        with _reporting(self.objective):
            surrogate = bound = self._checked("surrogate", self.objective.surrogate, of_model, len(x))
            if self.bound is not None:
                bound = self._checked("bound", self.bound, terms, len(x))
            signal_of, value = self.bound or self.objective.surrogate, bound
            if self.of_guide is not None:
                signal_of, value = self.of_guide, self._checked("guide_surrogate", self.of_guide, terms, len(x))
            if terms.score is not None:
                surrogate = surrogate + (learning_signal(signal_of, terms, value) * terms.score).sum(0)
            if terms.penalty is not None:
                surrogate, value = surrogate - terms.penalty.mean(0), value - terms.penalty.mean(0)
        total = surrogate.sum()
        if self.of_guide is not None:
            total = total + _through_guide(terms, value.sum())
        return with_gradient_of(-bound.sum(), -total)

    def _checked(self, method: str, function: Callable[[Terms], Tensor], terms: Terms, count: int) -> Tensor:
        """The result of a method of the objective, which must be one number for each image."""
        result = function(terms)
        each = f"one number for each image, [{count}] here"
        _check_shape(self.objective, f"{method}(terms)", result, (count,), each)
        return result


class _ThinnedELBO(_SurrogateELBO):
    """The same for an objective with `backward`: the gradient goes through some of the samples. The derivatives of the
    surrogate in the log-densities of all samples say how much each sample counts."""

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor, *args: Any) -> Tensor:
        objective, images = cast(HasBackward, self.objective), Batch(x, args, {})
        assert objective.backward is not None
        detach = self.drawn.get("detach", False)
        pair = encoded(self.pair, x)
        with torch.set_grad_enabled(not detach):
            values, terms = weighed(pair, images, self.num_particles)
        each_of = (terms.log_likelihood, terms.log_prior, terms.log_guide)
        likelihood, prior, log_q = densities = [each.detach().requires_grad_() for each in each_of]
        at = replace(terms, log_likelihood=likelihood, log_prior=prior, log_guide=log_q)
        with _reporting(self.objective):
            surrogate = self._checked("surrogate", self.objective.surrogate, at, len(x))
            value = surrogate if self.bound is None else self._checked("bound", self.bound, terms, len(x))
        found = torch.autograd.grad(surrogate.sum(), densities, allow_unused=True)
        slopes = [torch.zeros_like(one) if each is None else each for each, one in zip(found, densities, strict=True)]
        # If z is detached, log q(z | x) of all samples is cheap, and may count for samples that the model's does not.
        through = slopes[:2] if detach else slopes
        chosen, factor = drawn_by(add([slope.abs() for slope in through]), objective.backward)
        some = terms_at(pair, images, values, chosen, self.drawn.get("frozen_guide", False))
        ends = (some.log_likelihood, some.log_prior, some.log_guide)
        parts = [(factor * slope.gather(0, chosen) * end).sum() for slope, end in zip(through, ends, strict=False)]
        if detach:
            parts.append((slopes[2] * pair.log_guide(values, x, *args, num_samples=self.num_particles)).sum())
        return with_gradient_of(-value.detach().sum(), -add(parts))


def _through_guide(terms: Terms, surrogate: Tensor) -> Tensor:
    """A number with the gradient of a surrogate in the guide's parameters, and none in the model's. A parameter that
    the guide reads from the model is both: it follows both objectives.

    The surrogate is a function of log q(z | x), and of z through log p(x, z). Its derivatives there are found by a
    backward pass that ends at z, and multiply log q(z | x) and z as the guide has computed them.

    :param terms: terms with `cut`.
    """
    ends = [(terms.log_guide, terms.log_guide), *((terms.values[name], z) for name, z in terms.drawn.items())]
    ends = [(end, source) for end, source in ends if end.requires_grad]
    if not ends or not surrogate.requires_grad:
        return torch.zeros_like(surrogate)
    inputs = [end for end, _ in ends]
    slopes = torch.autograd.grad(surrogate, inputs, retain_graph=True, allow_unused=True)
    parts = [(slope * source).sum() for slope, (_, source) in zip(slopes, ends, strict=True) if slope is not None]
    return torch.stack(parts).sum() if parts else torch.zeros_like(surrogate)


def _check_shape(objective: Objective, method: str, result: Any, shape: tuple[int, ...], needed: str) -> None:
    """Raise `BadInput` if a method of an objective returns anything else than a tensor of this shape."""
    if not isinstance(result, Tensor) or result.shape != shape:
        found = f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise BadInput(f"objective {name_of(objective)}: {method} returns {found}; it must return {needed}")


def broadcast_weights(pair: Pair, weights: Tensor, name: str, value: Tensor) -> Tensor:
    """Reshape weights [samples, images] to broadcast with a value of the latent site `name`."""
    shape = [1] * -pair.sample_dim
    if pair.vectorized:
        shape[pair.sample_dim], shape[pair.plate.dim] = weights.shape
    else:
        shape[pair.plate.dim] = weights.numel()
    shape += [1] * len(pair.event_shapes[name])
    return weights.reshape(shape[len(shape) - value.dim() :])


# Bounds of several samples -------------------------------------------------------------------------------------


def log_mean_weight(log_weight: Tensor, dim: int = 0) -> Tensor:
    """log (1/K) sum_k w_k over a dimension of K log weights; for log weights [samples, images], L_K of each image."""
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def vimco_signal(log_weight: Tensor) -> Tensor:
    """The learning signal of each sample in VIMCO, [samples, images]: L_K minus a baseline that does not depend on the
    sample, L_K with its log weight replaced by the mean of the others' (Mnih and Rezende 2016, equations 8 to 10)."""
    log_weight = log_weight.detach()
    own = torch.eye(len(log_weight), dtype=torch.bool, device=log_weight.device)[..., None]
    # [k, samples, images]: row k has sample k replaced.
    replaced = torch.where(own, leave_one_out_mean(log_weight), log_weight)
    return log_mean_weight(log_weight) - log_mean_weight(replaced, 1)


def learning_signal(bound_of: Callable[[Terms], Tensor], terms: Terms, bound: Tensor) -> Tensor:
    """The learning signal of each sample, as `vimco_signal`, for any bound, [samples, images]: the bound minus the
    bound with the sample's log-densities replaced by the means of the others'.

    :param bound_of: a function from terms to the bound [images].
    :param bound: its value at `terms`.
    """
    with torch.no_grad():
        return bound.detach() - torch.stack([bound_of(each) for each in _replaced(terms)])


def _replaced(terms: Terms) -> Iterator[Terms]:
    """Iterate over samples: terms with the sample's log-densities replaced by the means of the others'."""
    values = [t.detach() for t in (terms.log_likelihood, terms.log_prior, terms.log_guide, terms.log_weight)]
    others = [leave_one_out_mean(value) for value in values]
    for sample in torch.eye(len(terms.log_guide), dtype=torch.bool, device=terms.log_guide.device):
        likelihood, prior, guide, weight = (
            torch.where(sample[:, None], mean, value) for mean, value in zip(others, values, strict=True)
        )
        yield Terms(
            log_likelihood=likelihood,
            log_prior=prior,
            log_guide=guide,
            kl=None,
            latents={},
            labels=frozenset(),
            weight=weight,  # if it were added up again, it would be rounded differently
        )
