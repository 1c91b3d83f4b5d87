"""Draws of discrete latent sites that gradients can pass through, or that are given, site by site.

A gradient estimator for discrete z says how each site of the guide is drawn: as itself, relaxed, straight-through, with
the noise of another draw, or at a given value. `sampled` runs the guide with such draws, whatever the number of its
sites, and the model at their values. A site's distribution depends on the values of earlier sites, so estimators are
written for one site and hold for layers of them.

A site is a `Choice`: binary, with log-odds l; one-hot, with normalized log-probabilities l [..., categories]; or an
index of a category. The log-probability of a binary or one-hot value is linear in the value,

    log p(z) = sum_m [z_m l_m - softplus(l_m)]    or    sum_k z_k l_k,

and this formula continues it to values between 0 and 1, as derivatives with respect to z need it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, OneHotCategorical

from ppl_gen.core.errors import BadInput, describe
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.densities import add, masked_log_prob
from ppl_gen.inference.elbos import with_gradient_of
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.objectives.loss import check_sampled, name_of
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.tracing import trace_of
from ppl_gen.networks.distributions import BernoulliVector

_CERTAIN = 1e4  # log-odds in the place of infinite ones
_LARGEST = 80.0  # whose exponential is finite in float32
Kind = Literal["binary", "one-hot", "index"]


@dataclass(frozen=True)
class Choice:
    """The distribution of a discrete site, with the full batch shape that its plates give it."""

    name: str
    fn: Any
    kind: Kind
    logits: Tensor
    """Log-odds, in the shape of the value; for categories, normalized log-probabilities [..., categories]."""

    @property
    def mean(self) -> Tensor:
        """E[z]: the probability of 1, or of each category."""
        return self.logits.sigmoid() if self.kind == "binary" else self.logits.exp()

    def sample(self) -> Tensor:
        """A draw of the site itself, without gradient."""
        value: Tensor = self.fn.sample()
        return value.detach()

    def log_prob(self, value: Tensor, *, at: Tensor | None = None) -> Tensor:
        """The log-probability in nats, continued to values between 0 and 1; before any sum over plates.

        :param at: logits in the place of the site's own, such as detached ones.
        """
        logits = self.logits if at is None else at
        if self.kind == "index":
            terms = logits.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)
        elif self.kind == "binary":
            terms = value * logits - F.softplus(logits, threshold=40)
        else:
            terms = (value * logits).sum(-1)
        return self.total(terms)

    def total(self, terms: Tensor) -> Tensor:
        """Numbers of each unit, summed over the units of an event."""
        units = self.fn.event_dim - (self.kind == "one-hot")
        return terms.flatten(-units).sum(-1) if units else terms


def choice_of(name: str, fn: Any) -> Choice | None:
    """The distribution of a site as a `Choice`; None for all but Bernoulli and categorical distributions.

    >>> import pyro.distributions as dist
    >>> choice_of("z", dist.Bernoulli(torch.tensor([0.5, 0.5])).to_event(1)).mean
    tensor([0.5000, 0.5000])
    >>> choice_of("z", dist.Normal(0.0, 1.0)) is None
    True
    """
    base = fn
    while isinstance(base, Independent):
        base = base.base_dist
    if isinstance(base, Bernoulli | BernoulliVector):
        return Choice(name, fn, "binary", _finite(base.logits).expand(fn.batch_shape + fn.event_shape))
    if isinstance(base, OneHotCategorical):
        return Choice(name, fn, "one-hot", _finite(base.logits).expand(fn.batch_shape + fn.event_shape))
    if isinstance(base, Categorical):
        return Choice(name, fn, "index", _finite(base.logits).expand(fn.batch_shape + fn.event_shape + (-1,)))
    return None


def _finite(logits: Tensor) -> Tensor:
    """Logits with large numbers for infinities, whose product with a value of 0 would be NaN. The probability is 0 with
    either."""
    return logits.nan_to_num(nan=math.nan, posinf=_CERTAIN, neginf=-_CERTAIN)


Draw = Callable[[Choice], Tensor]
"""Function that returns the value of a site."""


class _Drawing(Messenger):
    """Handler that gives latent sites the values that a function returns, and keeps their distributions in the order of
    the draws."""

    def __init__(self, latent: Iterable[str], draw: Draw):
        super().__init__()
        self.latent, self.draw = set(latent), draw
        self.choices: dict[str, Choice] = {}

    def _pyro_sample(self, message: Any) -> None:
        if message["name"] in self.latent:
            choice = choice_of(message["name"], message["fn"])
            assert choice is not None  # `check_choices` refuses all others
            self.choices[choice.name] = choice
            message["value"], message["done"] = self.draw(choice), True


class Part(NamedTuple):
    """The terms of log p(x, z) - log q(z | x) that the value of a site changes."""

    guide: tuple[str, ...]
    """Sites of the guide: the site, and those that depend on it."""
    prior: tuple[str, ...]
    """Latent sites of the model: those of these sites, and those that depend on them."""
    likelihood: bool
    """True if observed sites depend on them."""


@dataclass(frozen=True)
class Sampled:
    """Values of the latent sites, and log-densities [samples, images] in nats at these values."""

    choices: dict[str, Choice]
    """Distributions of the guide's sites, in the order of its draws."""
    priors: dict[str, Choice]
    """Distributions of the model's latent sites."""
    values: dict[str, Tensor]
    log_likelihood: Tensor
    sum_of: Callable[[Mapping[str, Tensor]], Tensor] = field(repr=False)
    """Sums terms of each site of the guide, before any sum over plates, to [samples, images]."""
    sum_of_priors: Callable[[Mapping[str, Tensor]], Tensor] = field(repr=False)
    """The same for sites of the model."""
    parts: Mapping[str, Part] = field(default_factory=dict, repr=False)
    """The part of each site, as `ppl_gen.inference.learning_signals` finds it."""

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z)."""
        terms = {name: each.log_prob(self.values[name]) for name, each in self.priors.items()}
        return self.log_likelihood + self.sum_of_priors(terms)

    @property
    def log_guide(self) -> Tensor:
        """log q(z | x)."""
        return self.sum_of({name: each.log_prob(self.values[name]) for name, each in self.choices.items()})

    @property
    def log_guide_along_z(self) -> Tensor:
        """log q(z | x), with the gradient of each site's value alone. The derivatives with respect to the logits, which
        are left out, have the mean 0 where z is distributed as q(z | x)."""
        terms = {name: each.log_prob(self.values[name], at=each.logits.detach()) for name, each in self.choices.items()}
        return self.sum_of(terms)

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x)."""
        return self.log_joint - self.log_guide

    def signal(self, name: str) -> Tensor:
        """The learning signal of a site: the terms of the log weight that its value changes, or all without `parts`.
        The others do not depend on it, so that their product with its score has the mean 0 (Ranganath et al. 2014,
        section 3.1; the local learning signals of Mnih and Gregor 2014)."""
        if name not in self.parts:
            return self.log_weight
        part = self.parts[name]
        prior = self.sum_of_priors({each: self.priors[each].log_prob(self.values[each]) for each in part.prior})
        guide = self.sum_of({each: self.choices[each].log_prob(self.values[each]) for each in part.guide})
        return prior - guide + self.log_likelihood if part.likelihood else prior - guide


def sampled(
    pair: Pair, x: Tensor, *args: Any, num_samples: int, draw: Draw, parts: Mapping[str, Part] | None = None
) -> Sampled:
    """Run the guide with a function that draws its sites, and the model at the values.

    :param draw: called with the `Choice` of each latent site, in the order of the guide.
    :param parts: the part of each site, for learning signals.
    """
    shape = (num_samples, len(x))
    guide, model, batch = pair.for_samples(num_samples, Batch(x, args, {}))
    with pyro.validation_enabled(False):  # values between 0 and 1 are no binary values
        with _Drawing(pair.latent, draw) as drawing:
            drawn = trace_of(guide, batch)
        trace = trace_of(poutine.replay(model, trace=drawn), batch)
        observed = [pair.per_image(trace.nodes[n], masked_log_prob(trace.nodes[n])) for n in pair.observed]
    priors = {name: choice_of(name, trace.nodes[name]["fn"]) for name in pair.latent}

    def sum_over(sites: poutine.Trace, terms: Mapping[str, Tensor]) -> Tensor:
        return add([pair.per_image(sites.nodes[name], each) for name, each in terms.items()]).reshape(shape)

    return Sampled(
        choices=drawing.choices,
        priors={name: prior for name, prior in priors.items() if prior is not None},
        values={name: drawn.nodes[name]["value"] for name in pair.latent},
        log_likelihood=add(observed).reshape(shape),
        sum_of=partial(sum_over, drawn),
        sum_of_priors=partial(sum_over, trace),
        parts=parts or {},
    )


def slope_at(
    pair: Pair,
    x: Tensor,
    *args: Any,
    num_samples: int,
    name: str,
    value: Tensor,
    others: Draw,
    parts: Mapping[str, Part],
) -> tuple[Tensor, Tensor]:
    """The learning signal [samples, images] of a site at a given value, and its derivative with respect to that value,
    through the later sites too; both without gradient.

    :param others: draws the other sites. Those before must not depend on the site, those after may.
    """
    at = value.detach().requires_grad_()
    with torch.enable_grad():
        draw = given({name: at}, others)
        found = sampled(pair, x, *args, num_samples=num_samples, draw=draw, parts=parts).signal(name)
    return found.detach(), torch.autograd.grad(found.sum(), at)[0]


# Draws ---------------------------------------------------------------------------------------------------------


def given(values: Mapping[str, Tensor], otherwise: Draw) -> Draw:
    """A function that draws sites at given values, and all other sites by another function."""
    return lambda choice: values[choice.name] if choice.name in values else otherwise(choice)


def noise_for(choice: Choice) -> Tensor:
    """Logistic noise for a binary site, Gumbel noise for a one-hot one, in the shape of the logits. `hard(choice,
    noise)` is then distributed as the site."""
    tiny = torch.finfo(choice.logits.dtype).tiny
    u = torch.rand(choice.logits.shape, dtype=choice.logits.dtype, device=choice.logits.device).clamp(min=tiny)
    if choice.kind == "binary":
        return u.log() - torch.log1p(-u)  # u < 1
    return -(-u.log()).clamp(min=tiny).log()


def hard(choice: Choice, noise: Tensor) -> Tensor:
    """The value that noise of `noise_for` chooses (the Gumbel-max trick), without gradient."""
    perturbed = (choice.logits + noise).detach()
    if choice.kind == "binary":
        return (perturbed > 0).to(perturbed.dtype)
    return F.one_hot(perturbed.argmax(-1), perturbed.shape[-1]).to(perturbed.dtype)


def soften(choice: Choice, perturbed: Tensor, temperature: float | Tensor) -> Tensor:
    """Perturbed logits as a relaxed value: their sigmoid or softmax at a temperature."""
    scaled = perturbed / temperature
    return scaled.sigmoid() if choice.kind == "binary" else scaled.softmax(-1)


def relaxed(choice: Choice, noise: Tensor, temperature: float) -> Tensor:
    """A relaxed value between 0 and 1, a differentiable function of the logits (Jang et al. 2017, equation 2; Maddison
    et al. 2017, equation 10). It is `hard` in the limit of temperature 0."""
    return soften(choice, choice.logits + noise, temperature)


def perturbed_given(choice: Choice, logits: Tensor, value: Tensor) -> Tensor:
    """A new draw of the perturbed logits given the value that they choose, differentiable with respect to the logits
    (Tucker et al. 2017, appendix C; Grathwohl et al. 2018, appendix B).

    :param logits: the logits of the site, as leaves or otherwise.
    :param value: a value of the site, binary or one-hot.
    """
    tiny = torch.finfo(logits.dtype).tiny
    v = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device).clamp(min=tiny)
    if choice.kind == "binary":
        # Logistic noise beyond the threshold. -log(1 - p) = softplus(l); a 0 is a 1 with the sign of l turned.
        sign = 2 * value - 1
        return sign * F.softplus(v.log() - torch.log1p(-v) + F.softplus(sign * logits))
    exponential = -v.log()
    top = (value * exponential).sum(-1, keepdim=True)  # of the chosen category, whose perturbed logit is the maximum
    others = exponential * (-logits).clamp(max=_LARGEST).exp() + top
    return -torch.where(value > 0, exponential, others).clamp(min=tiny).log()


# Losses --------------------------------------------------------------------------------------------------------


def loss_with(found: Sampled, gradients: Mapping[str, Tensor]) -> Tensor:
    """-ELBO at samples, a mean over samples and a sum over images. The model's gradient is that of log p(x, z) at these
    samples, and the guide's is given.

    :param found: samples whose values have no gradient.
    :param gradients: for each site, an estimate of d E[log weight] / d logits, in the shape of the logits.
    """
    through = add([(gradients[name].detach() * each.logits).sum() for name, each in found.choices.items()])
    log_joint = found.log_joint
    bound = (log_joint - found.log_guide).mean(0).sum()
    return with_gradient_of(-bound, -(log_joint.mean(0).sum() + through / len(log_joint)))


def loss_through(pair: Pair, x: Tensor, *args: Any, num_samples: int, draw: Draw) -> Tensor:
    """-ELBO at samples that gradients pass through, a mean over samples and a sum over images.

    :param draw: returns values of a site, with a gradient that stands for theirs.
    """
    found = sampled(pair, x, *args, num_samples=num_samples, draw=draw)
    return -(found.log_joint - found.log_guide_along_z).mean(0).sum()


# Checks --------------------------------------------------------------------------------------------------------


def check_choices(
    objective: Any,
    pair: Pair,
    x: Tensor,
    *args: Any,
    kinds: tuple[Kind, ...] = ("binary", "one-hot"),
    differentiable: bool = False,
) -> None:
    """Raise `BadInput` for a pair whose latent sites are not all discrete and of these kinds.

    :param objective: an objective; or another user of these sites, by its name in messages.
    :param differentiable: also for a model whose log p(x, z) has no derivative with respect to z.
    """
    name, instead = objective, ""
    if not isinstance(objective, str):
        name, instead = f"--objective {name_of(objective)}", "; use rloo"
        check_sampled(objective, pair)
    if pair.enumerated:
        raise BadInput(f"{name}: {pair.guide_name} samples nothing; use a run with another guide, such as bernoulli")
    for sites, what in (
        (pair.summed, "leaves '{}' to a sum in the model"),
        (pair.enumerated_in_guide, "enumerates '{}'"),
        (pair.penalties, "has the observed site or factor '{}'"),
    ):
        if sites:
            raise BadInput(f"{name}: {pair.guide_name} {what.format(sites[0])}, which is not supported here{instead}")
    if pair.masked:
        raise BadInput(f"{name}: a latent site has a mask, which is not supported here{instead}")
    with evaluating(pair.model, pair.guide), forked_rng(x):
        trace = trace_of(pair.guide, Batch(x, args, {}))
        for site in pair.latent:
            fn = trace.nodes[site]["fn"]
            choice = choice_of(site, fn)
            if choice is None or choice.kind not in kinds:
                raise BadInput(
                    f"{name}: needs {' or '.join(_WORDS[kind] for kind in kinds)} latent sites, but '{site}' of "
                    f"{pair.guide_name} is {_described(fn)}{instead}"
                )
        model = trace_of(poutine.replay(pair.model, trace=trace), Batch(x, args, {}))
        for site in pair.latent:
            prior = choice_of(site, model.nodes[site]["fn"])
            if prior is None or prior.kind != choice_of(site, trace.nodes[site]["fn"]).kind:  # type: ignore[union-attr]
                of = _described(model.nodes[site]["fn"])
                raise BadInput(f"{name}: the prior of '{site}' in {pair.model_name} is {of}{instead}")
        if differentiable:
            _check_differentiable(name, pair, x, *args)


_WORDS: dict[Kind, str] = {"binary": "Bernoulli", "one-hot": "one-hot categorical", "index": "categorical"}


def _described(fn: Any) -> str:
    """Name of the innermost distribution."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return type(fn).__name__


def _check_differentiable(name: str, pair: Pair, x: Tensor, *args: Any) -> None:
    """Raise `BadInput` if log p(x, z) cannot be computed between the values of z, or does not depend on z there."""
    reason = "does not depend on it"
    for site in pair.latent:
        leaves: list[Tensor] = []

        def draw(choice: Choice, site: str = site, leaves: list[Tensor] = leaves) -> Tensor:
            mean = choice.mean.detach()
            if choice.name == site:
                leaves.append(mean.requires_grad_())
            return mean

        try:
            with torch.enable_grad():
                found = sampled(pair, x, *args, num_samples=1, draw=draw)
                # Its own prior is left out: that is linear in z in any case.
                others = {n: each.log_prob(found.values[n]) for n, each in found.priors.items() if n != site}
                total = found.log_likelihood.sum() + sum(each.sum() for each in others.values())
                slope = torch.autograd.grad(total, leaves, allow_unused=True)[0] if total.requires_grad else None
        except Exception as error:
            slope, reason = None, f"fails there: {describe(error)}"
        if slope is None or not bool(slope.isfinite().all()):
            raise BadInput(
                f"{name}: needs log p(x, z) between the values of z, but {pair.model_name} at a relaxed '{site}' "
                f"{reason}; use rloo or disarm"
            )


def concrete_log_prob(choice: Choice, logits_of: Tensor, temperature: float) -> Tensor:
    """The log-density of a binary or categorical Concrete variable at the logits of its value, in nats, before any sum
    over plates (Maddison et al. 2017, appendix C.3.2, and equation 22 for the logistic variable).

    In these coordinates log p(z) - log q(z | x) is that of the relaxed values, because the change of variables is the
    same for both.

    :param choice: site of the guide or of the model.
    :param logits_of: perturbed logits, divided by the temperature of the guide; normalized for categories.
    """
    u = choice.logits - temperature * logits_of
    if choice.kind == "binary":
        return choice.total(math.log(temperature) + u - 2 * F.softplus(u))
    n = u.shape[-1]
    constant = math.lgamma(n) + (n - 1) * math.log(temperature)
    return choice.total(constant + u.sum(-1) - n * u.logsumexp(-1))
