"""Objectives by name.

Of one sample, or the mean over several:

- `elbo`: E_q[log p(x, z) - log q(z | x)] with every term sampled (Kingma and Welling 2014, eq. 6), by the gradient that
  the pair allows: reparametrized (`Trace_ELBO`); for a guide with a site that cannot be, score function with the
  baseline that the site names, if any (`TraceGraph_ELBO`; Mnih and Gregor 2014); and for a guide that leaves all latent
  sites to enumeration in the model, none of this is needed: the bound is log p(x) itself (`TraceEnum_ELBO`).
- `elbo-analytic-kl`: `TraceMeanField_ELBO`, E_q[log p(x | z)] - KL(q(z | x) || p(z)) with the second term in closed
  form (eq. 7). Refused where Pyro has no closed form, since Pyro would sample it without a word, and with several
  latent sites, where the sum of Pyro's divergences is none.
- `stl`: the ELBO, "sticking the landing" (Roeder et al. 2017).
- `beta`: E_q[log p(x | z)] - beta KL (Higgins et al. 2017), by `Trace_ELBO` with the latent sites scaled. A lower bound
  on log p(x) for beta >= 1 only.

Of K samples, image by image:

- `iwae`: L_K (Burda et al. 2016); `dreg`: the same with the doubly reparametrized gradient (Tucker et al. 2019).
- `renyi`: the Rényi bound of order alpha (Li and Turner 2016).
- `vimco`, `rws`, `wake-sleep`: for guides of discrete z, or any.

A guide whose samples are reparametrized but for a choice, as `mixture` chooses a component, says so by Pyro's
`score_parts`. The choice has its score, times what a sample adds to the bound beyond the image's other samples: there
are two samples at least.

And `adversarial`, no bound on log p(x): the two losses of a model with `adversarial_losses(x)`, which also has
`monitor(x)`, what is to be written down of them, and a density: `prior()`, `likelihood(z)` and its `log_scale`.

Pyro's `RenyiELBO` is the bound of each image only where one unscaled plate covers every site, has no
`differentiable_loss`, and gives a guide of discrete z no gradient at alpha = 0; its `ReweightedWakeSleep` forms one
weight for a whole batch. Here every weight is an image's own, masks are applied and scales are not; a pair with scales
of its own is refused.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, get_args

import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_gen.errors import BadInput, near_miss, require
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.densities import above_others, mean_of_others, sample_sites, score_function
from ppl_gen.inference.enumeration import DifferentiableLoss, TraceEnum
from ppl_gen.inference.pair import Pair, Terms

Objective = Literal[
    "elbo", "elbo-analytic-kl", "stl", "beta", "iwae", "dreg", "renyi", "vimco", "rws", "wake-sleep", "adversarial"
]
_REPARAMETRIZED = ("elbo-analytic-kl", "stl", "beta", "iwae", "dreg", "renyi")
_ADVERSARIAL = ("adversarial_losses", "monitor", "log_scale", "prior", "likelihood")
"""What training, its metrics and the choice of the noise after it ask of a model."""
_TRY = {"iwae": 50, "dreg": 50, "renyi": 50, "vimco": 50, "rws": 10}
"""Numbers of samples to suggest for objectives that need more than one."""


def objective(
    name: str,
    pair: Pair,
    x: Tensor,
    *args: Any,
    num_particles: int = 1,
    alpha: float | None = None,
    beta: float | None = None,
) -> ELBO:
    """The Pyro ELBO of that name for a pair, its particles drawn in one call where the pair allows it.

    :param x: a few images to try it on.
    :param alpha: order of `renyi`, and of no other; 0.5 by default.
    :param beta: weight of the KL term in `beta`, and in no other; 4 by default.
    :raises BadInput: for an unknown objective, or one that the pair cannot have.
    """
    check(name, num_particles, alpha, beta)
    for site, scale in pair.scales.items():
        raise BadInput(
            f"site '{site}' has the scale {float(scale):g}: the objectives are nats per image, unscaled; leave it out, "
            "or use --kl-warmup or --objective beta"
        )
    if name == "adversarial":
        model = getattr(pair.model, "__self__", None)
        for needed in _ADVERSARIAL:
            if not hasattr(model, needed):
                raise BadInput(f"--objective adversarial: {pair.model_name} has no {needed}, as gan has")
        return Adversarial(model)
    if pair.enumerated:
        if name != "elbo" or num_particles > 1:
            raise BadInput(
                f"--objective {name}, --num-particles {num_particles}: {pair.guide_name} leaves {pair.model_name} to "
                "enumeration, where the loss is -log p(x) and nothing is sampled; use elbo with 1 particle"
            )
        return TraceEnum(pair, x, *args)
    if name in _REPARAMETRIZED and not pair.reparametrized:
        raise BadInput(f"--objective {name}: {pair.guide_name} cannot be reparametrized; use elbo, vimco or rws")
    if name in ("stl", "dreg"):
        _check_frozen(name, pair)
        return (StickingTheLanding if name == "stl" else DoublyReparametrized)(pair, num_particles)
    if name == "renyi":
        return Renyi(pair, num_particles, 0.5 if alpha is None else alpha)
    if name == "wake-sleep":
        with evaluating():
            pair.dream(x, *args)
    if name in ("iwae", "vimco", "rws", "wake-sleep"):
        classes = {"iwae": IWAE, "vimco": VIMCO, "rws": ReweightedWakeSleep, "wake-sleep": WakeSleep}
        return classes[name](pair, num_particles)
    if name == "elbo-analytic-kl":
        with evaluating():
            if pair.terms(x, *args, analytic_kl=True).kl is None:
                raise BadInput(
                    f"--objective {name}: no closed-form KL divergence between {pair.guide_name} and the prior of "
                    f"{pair.model_name}{', which have several latent sites' if len(pair.latent) > 1 else ''}; use elbo"
                )
    if not pair.reparametrized:
        if pair.scored:
            raise BadInput(
                f"--objective {name}: {pair.guide_name} samples '{pair.scored[0]}' by a choice and a path, and other "
                "sites by neither; use vimco or rws"
            )
        return ScoreFunction(num_particles=num_particles, max_plate_nesting=pair.max_plate_nesting)
    num_particles = max(num_particles, _least(pair))
    vectorized = num_particles > 1 and pair.vectorized
    options: dict[str, Any] = {
        "num_particles": num_particles,
        "vectorize_particles": vectorized,
        "max_plate_nesting": pair.max_plate_nesting if vectorized else float("inf"),
    }
    if name == "beta":
        return (ScoredBeta if pair.scored else Beta)(4.0 if beta is None else beta, **options)
    if pair.scored:
        return Scored(**options)
    return (TraceMeanField_ELBO if name == "elbo-analytic-kl" else Trace_ELBO)(**options)


def check(name: str, num_particles: int, alpha: float | None, beta: float | None) -> None:
    """Raise `BadInput` for an unknown objective, and for what it cannot have with any pair."""
    if name not in get_args(Objective):
        raise BadInput(f"--objective {name}: unknown{near_miss(name, get_args(Objective))}")
    require(num_particles >= 1, "num_particles", num_particles, "must be at least 1")
    least = f"{name} needs at least 2 samples; try {_TRY.get(name)}"
    require(name not in _TRY or num_particles > 1, "num_particles", num_particles, least)
    require(alpha is None or name == "renyi", "alpha", alpha, f"belongs to the objective renyi, not {name}")
    require(alpha != 1, "alpha", alpha, "must be a number other than 1, which is elbo")
    require(beta is None or name == "beta", "beta", beta, f"belongs to the objective beta, not {name}")
    require(beta is None or 0 < beta < math.inf, "beta", beta, "must be above 0")


def _check_frozen(name: str, pair: Pair) -> None:
    """log q is evaluated a second time: noise in it besides z would be another."""
    modules = pair.guide_module.modules() if isinstance(pair.guide_module, nn.Module) else ()
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in modules):
        raise BadInput(f"--objective {name}: {pair.guide_name} has dropout, a noise besides z; use elbo or iwae")


def _surrogate(value: Tensor, surrogate: Tensor) -> Tensor:
    """The number of the one with the gradient of the other."""
    return value.detach() + surrogate - surrogate.detach()


def _least(pair: Pair) -> int:
    """Samples of an image that a gradient takes: a choice is compared with another."""
    return 2 if pair.scored else 1


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

    drawn: ClassVar[dict[str, bool]] = {}
    """How `Pair.terms` draws z: from discrete or reparametrized sites, under live or detached parameters."""

    def __init__(self, pair: Pair, num_particles: int):
        super().__init__(num_particles=max(num_particles, _least(pair)), vectorize_particles=True)
        self.pair = pair

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the pair makes the traces")

    def bound(self, log_weight: Tensor) -> Tensor:
        """[images], of log weights [samples, images]."""
        return log_weight.logsumexp(0) - math.log(len(log_weight))

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        """What is differentiated, to be maximized, [images]."""
        return bound

    def added(self, log_weight: Tensor) -> Tensor:
        """What each sample adds to the bound, [samples, images]: the bound less one in which the sample's log weight is
        the mean of the others', which does not depend on it (Mnih and Rezende 2016, equations 8 to 10)."""
        log_weight = log_weight.detach()
        others = mean_of_others(log_weight)
        own = torch.eye(len(log_weight), dtype=torch.bool, device=log_weight.device)[..., None]
        replaced = torch.where(own, others, log_weight)  # [k, samples, images]: row k has sample k replaced
        return self.bound(log_weight) - self.bound(replaced.transpose(0, 1))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        options: dict[str, Any] = {"num_samples": self.num_particles, **self.drawn, **kwargs}
        terms = self.pair.terms(*args, **options)
        bound = self.bound(terms.log_weight)
        surrogate = self.surrogate(terms, bound)
        if terms.score is not None:
            surrogate = surrogate + (self.added(terms.log_weight) * terms.score).sum(0)
        return _surrogate(-bound.sum(), -surrogate.sum())


class IWAE(_PerImage):
    """The gradient of L_K along reparametrized samples (Burda et al. 2016, equation 13). The signal-to-noise ratio of
    the guide's falls as 1 / sqrt(K) (Rainforth et al. 2018)."""


class Renyi(_PerImage):
    """The variational Rényi bound, 1 / (1 - alpha) log (1/K) sum_k w_k^(1 - alpha), along reparametrized samples (Li
    and Turner 2016, equation 13): L_K at alpha = 0, and the ELBO in the limit alpha = 1. With infinite K it is a lower
    bound on log p(x) for alpha > 0 and an upper one for alpha < 0; with finite K it is lower than that."""

    def __init__(self, pair: Pair, num_particles: int, alpha: float):
        super().__init__(pair, num_particles)
        self.alpha = alpha

    def bound(self, log_weight: Tensor) -> Tensor:
        return super().bound((1 - self.alpha) * log_weight) / (1 - self.alpha)


class StickingTheLanding(_PerImage):
    """The mean of K ELBOs, with the guide's gradient along z only: the score of q, whose mean is zero, is left out. Its
    variance vanishes where the guide is the posterior (Roeder et al. 2017, equation 8)."""

    drawn: ClassVar[dict[str, bool]] = {"frozen_guide": True}

    def bound(self, log_weight: Tensor) -> Tensor:
        return log_weight.mean(0)


class DoublyReparametrized(_PerImage):
    """L_K, with the model's gradient sum_k w~_k grad log w_k and the guide's along z only,

        sum_k w~_k^2 (d log w_k / d z_k) (d z_k / d phi)    (Tucker et al. 2019, equation 8),

    unbiased as `IWAE`'s is; its signal-to-noise ratio rises as sqrt(K). With several latent sites d z_k is that of all,
    along every path in the guide. Where the guide chooses, the score of the choice has a part of -w~_k as well.
    """

    drawn: ClassVar[dict[str, bool]] = {"frozen_guide": True}

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        share = terms.log_weight.detach().softmax(0)
        for name, value in terms.values.items():
            if value.requires_grad:
                value.register_hook(
                    self.pair.spread(share, name, value).mul
                )  # the second factor, on the way to the guide
        return (share * terms.log_weight).sum(0)

    def added(self, log_weight: Tensor) -> Tensor:
        # E[w~_k d log q / d phi], which is left out, is E[d w~_k / d z_k d z_k / d phi + w~_k d log pi / d phi].
        return super().added(log_weight) - log_weight.detach().softmax(0) + 1 / len(log_weight)


class VIMCO(_PerImage):
    """An unbiased gradient of L_K without a path through z (Mnih and Rezende 2016): the score function of each sample
    times what that sample adds to the bound,

        sum_k (L - L_-k) grad log q(z_k | x) + sum_k w~_k grad log w_k    (equations 4, 5 and 7 to 10),

    with normalized weights w~, and L_-k the bound with log w_k replaced by the mean of the other log weights, which
    does not depend on z_k.
    """

    drawn: ClassVar[dict[str, bool]] = {"detach": True}

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        return bound + (self.added(terms.log_weight) * terms.log_guide).sum(0)


class WakeSleep(_PerImage):
    """Reweighted wake-sleep with the sleep phase for the guide (Bornschein and Bengio 2015, equations 4 and 7; with one
    sample, Hinton et al. 1995). The model climbs the log-probability of the samples, weighted by w~_k = w_k / sum w:
    the gradient of L_K, biased at finite K. The guide climbs log q(z | x) of z and x drawn from the model, as many as
    the batch."""

    drawn: ClassVar[dict[str, bool]] = {"detach": True}

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        share = terms.log_weight.detach().softmax(0)
        return (share * (terms.log_likelihood + terms.log_prior)).sum(0)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        dreamt = self.pair.dream(*args, **kwargs).sum()
        return super().differentiable_loss(model, guide, *args, **kwargs) + _surrogate(dreamt * 0, -dreamt)


class ReweightedWakeSleep(_PerImage):
    """The same with the wake phase for the guide, "wake-wake" (equations 4 and 6): it climbs log q(z | x) of the
    samples, weighted. That lowers KL(p(z | x) || q(z | x)) instead of raising a bound, and is biased at finite K
    too."""

    drawn: ClassVar[dict[str, bool]] = {"detach": True}

    def surrogate(self, terms: Terms, bound: Tensor) -> Tensor:
        share = terms.log_weight.detach().softmax(0)
        return (share * (terms.log_likelihood + terms.log_prior + terms.log_guide)).sum(0)


class Recordable(_PerImage):
    """What `Trace_ELBO`, `TraceMeanField_ELBO` and `Beta` compute, without a look at any value on the way."""

    def __init__(self, pair: Pair, num_particles: int, *, analytic_kl: bool = False, beta: float = 1.0):
        super().__init__(pair, num_particles)
        self.analytic_kl, self.beta = analytic_kl, beta

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        terms = self.pair.terms(*args, num_samples=self.num_particles, analytic_kl=self.analytic_kl, **kwargs)
        kl = terms.kl if terms.kl is not None else terms.log_guide - terms.log_prior
        values = terms.log_likelihood - self.beta * kl
        loss = -values.mean(0).sum()
        if terms.score is None:
            return loss
        return _surrogate(loss, loss - (above_others(values) * terms.score).mean(0).sum())


def recordable(elbo: ELBO, pair: Pair) -> ELBO:
    """The same objective as one whose operations can be recorded.

    :raises BadInput: for one that has a gradient of Pyro's own, or none of the pair's.
    """
    if isinstance(elbo, _PerImage):
        return elbo
    if not isinstance(elbo, Trace_ELBO):
        raise BadInput("--capture: is not of enumeration, of a score function with a baseline, or of a GAN")
    analytic, beta = isinstance(elbo, TraceMeanField_ELBO), elbo.scale.scale if isinstance(elbo, Beta) else 1.0
    return Recordable(pair, elbo.num_particles, analytic_kl=analytic, beta=beta)


class Adversarial(DifferentiableLoss, ELBO):
    """Sum of the generator's and the discriminator's loss, times the images: no bound, and no guide takes part.

    :param model: with a method `adversarial_losses(x)`; the functions given to `SVI` are not looked at.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("there are no traces")

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        generator, discriminator = self.model.adversarial_losses(args[0])
        return (generator + discriminator) * len(args[0])


class Beta(Trace_ELBO):
    """`Trace_ELBO` with the log-densities of latent sites, in model and guide, times beta (Higgins et al. 2017,
    equation 4)."""

    def __init__(self, beta: float, **options: Any):
        super().__init__(**options)
        self.scale = ScaleLatents()
        self.scale.scale = beta

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Iterator[Any]:
        return super()._get_traces(scaled(model, self.scale), scaled(guide, self.scale), args, kwargs)


class Scored(Trace_ELBO):
    """`Trace_ELBO` of a guide whose samples are reparametrized but for a choice. Pyro's own has the score of the choice
    times the whole ELBO; here it is what a sample's ELBO is above the mean of the image's others."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        traces = list(self._get_traces(model, guide, args, kwargs))
        total = sum(each.log_prob_sum() - other.log_prob_sum() for each, other in traces)
        for name in [site["name"] for site in sample_sites(traces[0][1])]:
            pairs = []
            for model_trace, guide_trace in traces:
                site = guide_trace.nodes[name]
                if (score := score_function(site)) is not None:
                    pairs.append((_compute_log_r(model_trace, guide_trace).sum_to(site["cond_indep_stack"]), score))
            if pairs:
                # Particles come first, from one trace under a plate outside all others or from a trace each.
                values, scores = (torch.stack(e) if len(e) > 1 else e[0] for e in zip(*pairs, strict=True))
                scored = (above_others(values) * scores).sum()
                total = total + scored - scored.detach()
        return -total / self.num_particles


class ScoredBeta(Scored, Beta):
    """`Beta` of such a guide."""


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
