"""Variants of Pyro's ELBOs: a `differentiable_loss` for `TraceGraph_ELBO`, a gradient of lower variance for mixtures, a
weight of the KL term, and an ELBO of a pair's terms."""

from dataclasses import replace
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.ops.provenance import extract_provenance, get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_gen.inference.densities import minus_leave_one_out_mean, sample_sites, score_function
from ppl_gen.inference.enumeration import DifferentiableLoss
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.tracing import PyroFunction


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor with the value of `value`, exactly, and the gradient of `surrogate`."""
    return value.detach() + (surrogate - surrogate.detach())


def min_samples(pair: Pair) -> int:
    """Least number of samples per image for a gradient: 2 for a guide whose score has a leave-one-out baseline, else
    1."""
    return 2 if pair.scored else 1


def particle_options(pair: Pair, num_particles: int) -> dict[str, Any]:
    """Arguments of a Pyro `ELBO` for a number of samples, which are drawn in one call if the pair allows it."""
    num_particles = max(num_particles, min_samples(pair))
    vectorized = num_particles > 1 and pair.vectorized
    return {
        "num_particles": num_particles,
        "vectorize_particles": vectorized,
        "max_plate_nesting": pair.max_plate_nesting if vectorized else float("inf"),
    }


class ScoreFunctionELBO(TraceGraph_ELBO):
    """`TraceGraph_ELBO` with a `differentiable_loss`, which Pyro's class lacks. Its value is -ELBO. Its gradient is
    that of Pyro's surrogate, which includes the squared error of the baselines.

    A site's learning signal has the terms that its value changes. Pyro follows values through tensors. A sampler that
    writes into a tensor loses what it has drawn from, and terms of later sites would be missing. Here a value depends
    on all that its log-density under the guide depends on."""

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> Any:
        with _ByName():
            traces = super()._get_trace(model, guide, args, kwargs)
        changed_by: dict[str, frozenset[str]] = {}  # names of sites that change a value, those without `rsample` alone
        for name, site in traces[1].nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site):
                own = frozenset() if site["fn"].has_rsample else frozenset([name])
                before = get_provenance(site["log_prob_sum"]) - {name}
                changed_by[name] = own.union(*(changed_by.get(each, ()) for each in before))
        for site in (site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"):
            total, names = extract_provenance(site["log_prob_sum"])
            every = frozenset().union(*(changed_by.get(each, ()) for each in names))
            site["log_prob_sum"] = track_provenance(total, every)
        return traces

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> Tensor:
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        return with_gradient_of(-elbo, surrogate)


class _ByName(Messenger):
    """Handler that marks every value drawn by its site's name, so that tensors computed from it can be told."""

    def _pyro_post_sample(self, message: Any) -> None:
        if not (message["is_observed"] or site_is_subsample(message)):
            message["value"] = track_provenance(message["value"], frozenset([message["name"]]))


class PartialScoreELBO(Trace_ELBO):
    """`Trace_ELBO` for a guide whose samples are reparametrized except for a discrete choice, such as the component of
    `mixture`. Pyro's class multiplies the score of the choice by the whole ELBO. This class multiplies it by the
    difference between a sample's ELBO and the mean over the image's other samples, which has a lower variance."""

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> Tensor:
        traces = list(self._get_traces(model, guide, args, kwargs))
        total = sum(each.log_prob_sum() - other.log_prob_sum() for each, other in traces)
        for name in [site["name"] for site in sample_sites(traces[0][1])]:
            pairs = []
            for model_trace, guide_trace in traces:
                site = guide_trace.nodes[name]
                if (score := score_function(site)) is not None:
                    pairs.append((_compute_log_r(model_trace, guide_trace).sum_to(site["cond_indep_stack"]), score))
            if pairs:
                # Particles are the first dimension: of one trace under an outer plate, or of one trace for each.
                values, scores = (torch.stack(e) if len(e) > 1 else e[0] for e in zip(*pairs, strict=True))
                scored = (minus_leave_one_out_mean(values) * scores).sum()
                total = total + scored - scored.detach()
        return -total / self.num_particles


class ScaleLatents(Messenger):
    """Handler that multiplies the log-densities of latent sites, in model and guide, by `scale`: KL warm-up (Bowman et
    al. 2016). With a scale below 1 the objective is no bound on log p(x)."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def _pyro_sample(self, message: Any) -> None:
        if self.scale != 1 and not message["is_observed"]:
            message["scale"] = message["scale"] * self.scale


class WeightedKL(DifferentiableLoss, ELBO):
    """An ELBO in which the log-densities of latent sites, in model and guide, are multiplied by `weight`."""

    def __init__(self, elbo: ELBO, weight: float):
        super().__init__(num_particles=elbo.num_particles)
        self.elbo, self.scale = elbo, ScaleLatents(weight)

    def _get_trace(self, model: PyroFunction, guide: PyroFunction, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the wrapped ELBO makes the traces")

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = self.elbo.differentiable_loss(self.scale(model), self.scale(guide), *args, **kwargs)
        return loss


class SampledELBO:
    """E_q[log p(x | z)] - beta KL(q(z | x) || p(z)), the objective of `Trace_ELBO`, `TraceMeanField_ELBO` or
    `WeightedKL`, from `Pair.terms`.

    :param num_particles: samples of z per image.
    :param analytic_kl: True for the KL term in closed form.
    :param beta: weight of the KL term.
    """

    def __init__(self, pair: Pair, num_particles: int, *, analytic_kl: bool = False, beta: float = 1.0):
        self.num_particles = max(num_particles, min_samples(pair))
        self.analytic_kl, self.beta = analytic_kl, beta

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """Minus the objective, summed over the images."""
        terms = pair.terms(x, *args, num_samples=self.num_particles, analytic_kl=self.analytic_kl)
        return _minus_elbo(terms, self.beta, terms.score)


def _minus_elbo(terms: Terms, beta: float, score: Tensor | None) -> Tensor:
    """Minus the ELBO with a weight of the KL term, summed over the images.

    :param score: log-probability [samples, images] whose gradient is the score of what is not reparametrized. The
        baseline of a sample is the mean of the image's other samples.
    """
    kl = terms.kl if terms.kl is not None else terms.log_guide - terms.log_prior
    values = torch.sub(terms.log_likelihood, kl, alpha=beta)
    if terms.penalty is not None:
        values = values - terms.penalty
    loss = values.sum() / -len(values)
    if score is None:
        return loss
    return with_gradient_of(loss, loss - (minus_leave_one_out_mean(values) * score).mean(0).sum())


class TraceEnumSampled(DifferentiableLoss, TraceEnum_ELBO):
    """-ELBO, summed over the images: `TraceEnum_ELBO` for a guide that samples some sites and leaves others to
    enumeration, or enumerates them itself, with the sums of `ppl_gen.inference.elimination`.

    :param num_particles: samples of z per image; at least 2 if they are not reparametrized.
    """

    def __init__(self, pair: Pair, num_particles: int):
        least = min_samples(pair) if pair.reparametrized else 2
        super().__init__(num_particles=max(num_particles, least), max_plate_nesting=pair.max_plate_nesting)
        self.pair = pair

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, x: Tensor, *args: Any) -> Tensor:
        pair, reparametrized = replace(self.pair, model=model, guide=guide), self.pair.reparametrized
        with _ReadScale() as latents:
            terms = pair.terms(x, *args, num_samples=self.num_particles, detach=not reparametrized)
        return _minus_elbo(terms, latents.scale, terms.score if reparametrized else terms.log_guide)


class _ReadScale(Messenger):
    """Handler that reads the scale of latent sites, which `ScaleLatents` sets."""

    scale = 1.0

    def _pyro_post_sample(self, message: Any) -> None:
        if not message["is_observed"] and not site_is_subsample(message):
            self.scale = float(message["scale"])
