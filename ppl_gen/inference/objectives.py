"""Objectives by name.

- `elbo`: E_q[log p(x, z) - log q(z | x)] with every term sampled (Kingma and Welling 2014, eq. 6), by the gradient that
  the pair allows: reparametrized (`Trace_ELBO`); for a guide with a site that cannot be, score function with the
  baseline that the site names, if any (`TraceGraph_ELBO`; Mnih and Gregor 2014); and for a guide that leaves all latent
  sites to enumeration in the model, none of this is needed: the bound is log p(x) itself (`TraceEnum_ELBO`).
- `elbo-analytic-kl`: `TraceMeanField_ELBO`, E_q[log p(x | z)] - KL(q(z | x) || p(z)) with the second term in closed
  form (eq. 7). Refused where Pyro has no closed form, since Pyro would sample it without a word.
- `vimco`, `rws`: bounds of several samples, image by image, for guides of discrete z. Pyro's `RenyiELBO` gives such a
  guide no gradient at alpha = 0, and its `ReweightedWakeSleep` forms one weight for a whole batch.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_gen.errors import BadInput, near_miss, require
from ppl_gen.inference.enumeration import DifferentiableLoss, TraceEnum
from ppl_gen.inference.traces import Pair, Terms, evaluating

Objective = Literal["elbo", "elbo-analytic-kl", "vimco", "rws"]


def objective(name: str, pair: Pair, x: Tensor, *args: Any, num_particles: int = 1) -> ELBO:
    """The Pyro ELBO of that name for a pair, its particles drawn in one call where the pair allows it.

    :param x: a few images to try it on.
    :raises BadInput: for an unknown objective, or one that the pair cannot have.
    """
    if name not in get_args(Objective):
        raise BadInput(f"--objective {name}: unknown{near_miss(name, get_args(Objective))}")
    require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
    if pair.enumerated:
        if name != "elbo" or num_particles > 1:
            raise BadInput(
                f"--objective {name}, --num-particles {num_particles}: {pair.guide_name} leaves {pair.model_name} to "
                "enumeration, where the loss is -log p(x) and nothing is sampled; use elbo with 1 particle"
            )
        return TraceEnum(pair)
    if name in ("vimco", "rws"):
        least = "at least 2 samples; try 50" if name == "vimco" else "at least 2 samples; try 10"
        require(num_particles >= 2, "num_particles", num_particles, f"{name} needs {least}")
        return {"vimco": VIMCO, "rws": ReweightedWakeSleep}[name](pair, num_particles)
    if name == "elbo-analytic-kl":
        if not pair.reparametrized:
            raise BadInput(f"--objective {name}: {pair.guide_name} cannot be reparametrized; use elbo, vimco or rws")
        with evaluating():
            if pair.terms(x, *args, analytic_kl=True).kl is None:
                raise BadInput(
                    f"--objective {name}: no closed-form KL divergence between {pair.guide_name} and the prior of "
                    f"{pair.model_name}; use elbo"
                )
    if not pair.reparametrized:
        return ScoreFunction(num_particles=num_particles, max_plate_nesting=pair.max_plate_nesting)
    vectorized = num_particles > 1 and pair.vectorized
    cls = TraceMeanField_ELBO if name == "elbo-analytic-kl" else Trace_ELBO
    return cls(
        num_particles=num_particles,
        vectorize_particles=vectorized,
        max_plate_nesting=pair.max_plate_nesting if vectorized else float("inf"),
    )


def _surrogate(value: Tensor, surrogate: Tensor) -> Tensor:
    """The number of the one with the gradient of the other."""
    return value.detach() + surrogate - surrogate.detach()


class ScoreFunction(TraceGraph_ELBO):
    """`TraceGraph_ELBO`, with the `differentiable_loss` that Pyro's has not: the value is -ELBO, the gradient that of
    Pyro's surrogate, the squared error of the baselines included."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return _surrogate(-elbo, surrogate)


class _PerImage(DifferentiableLoss, ELBO):
    """-L_K summed over the images: L_K = log (1/K) sum_k w_k, with w_k = p(x, z_k) / q(z_k | x) and z_k ~ q(z | x)
    (Burda et al. 2016, equation 8), and a gradient to be given. Masks are applied, scales are not.

    :param pair: the model and the guide; those given to `SVI` are not looked at again.
    """

    def __init__(self, pair: Pair, num_particles: int):
        super().__init__(num_particles=num_particles, vectorize_particles=True)
        self.pair = pair

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the pair makes the traces")

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        """What is differentiated, to be maximized, [images]; z_k is detached."""
        raise NotImplementedError

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        terms = self.pair.terms(*args, num_samples=self.num_particles, detach=True, **kwargs)
        bound = terms.log_weight.logsumexp(0) - math.log(self.num_particles)
        return _surrogate(-bound.sum(), -self.surrogate(terms, bound).sum())


class VIMCO(_PerImage):
    """An unbiased gradient of L_K for discrete z (Mnih and Rezende 2016): the score function of each sample times what
    that sample adds to the bound,

        sum_k (L - L_-k) grad log q(z_k | x) + sum_k w~_k grad log w_k    (equations 4, 5 and 7 to 10),

    with normalized weights w~, and L_-k the bound with log w_k replaced by the mean of the other log weights, which
    does not depend on z_k.
    """

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        log_w = terms.log_weight
        count = len(log_w)
        weights = log_w.detach()
        others = (weights.sum(0) - weights) / (count - 1)
        replaced = torch.where(torch.eye(count, dtype=torch.bool, device=log_w.device)[..., None], others, weights)
        without = replaced.logsumexp(1) - math.log(count)  # [k, images]: row k has sample k replaced
        return bound + ((bound.detach() - without) * terms.log_guide).sum(0)


class ReweightedWakeSleep(_PerImage):
    """Reweighted wake-sleep with the wake phase for the guide (Bornschein and Bengio 2015, equations 4 and 6): model
    and guide each climb the log-probability of the samples, weighted by w~_k = w_k / sum w. The model's gradient is
    that of L_K; the guide's lowers KL(p(z | x) || q(z | x)) instead of raising a bound, and both are biased at finite
    K."""

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        share = terms.log_weight.detach().softmax(0)
        return (share * (terms.log_likelihood + terms.log_prior + terms.log_guide)).sum(0)


class ScaleLatents(Messenger):
    """Multiplies the log-densities of latent sites, in model and guide alike, by `scale`: KL warm-up (Bowman et al.
    2016). With a scale below 1 the objective is no bound on log p(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def _pyro_sample(self, message: Any) -> None:
        if self.scale != 1 and not message["is_observed"]:
            message["scale"] = message["scale"] * self.scale


def scaled(function: Callable[..., Any], scale: ScaleLatents) -> Callable[..., Any]:
    """The Pyro function under `scale`."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with scale:
            return function(*args, **kwargs)

    return call
