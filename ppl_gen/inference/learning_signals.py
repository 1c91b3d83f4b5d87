"""Learning signals of score functions: for each discrete site, the terms of the log weight that its value changes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pyro.infer.inspect import get_dependencies
from torch import Tensor

from ppl_gen.inference.callables import evaluating, forked_rng
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, Part, check_choices, given, sampled


def parts_of(pair: Pair, x: Tensor, *args: Any) -> dict[str, Part]:
    """The part of the log weight that each latent site changes, found by how tensors depend on each other. Empty for a
    pair of one latent site or of others than discrete ones, and where it cannot be found: the whole log weight is then
    the learning signal of every site.

    >>> from ppl_gen.guides.hierarchical_bernoulli import HierarchicalBernoulli
    >>> from ppl_gen.models.hierarchical_belief_net import HierarchicalBeliefNet
    >>> model, x = HierarchicalBeliefNet(64, latent_dims=(5, 2)), torch.zeros(3, 64)
    >>> pair = Pair.read(model, HierarchicalBernoulli(64, torch.full((64,), 0.5), model), x)
    >>> parts_of(pair, x)["z2"]
    Part(guide=('z2',), prior=('z1', 'z2'), likelihood=False)
    """
    if len(pair.latent) < 2:
        return {}
    try:
        check_choices("", pair, x, *args, kinds=("binary", "one-hot", "index"))
        with evaluating(pair.model, pair.guide), forked_rng(x):
            guide, model = (
                get_dependencies(each, (x, *args))["prior_dependencies"] for each in (pair.guide, pair.model)
            )
            found = {}
            for site in pair.latent:
                changed = {site}
                for later, upstream in guide.items():  # in the order of the draws
                    changed |= {later} if changed & set(upstream) else set()
                guided, prior = ([each for each in pair.latent if changed & {each, *of[each]}] for of in (guide, model))
                likelihood = any(changed & set(model[each]) for each in pair.observed)
                found[site] = Part(tuple(guided), tuple(prior), likelihood)
            return found if _hold(found, pair, x, *args) else {}
    except Exception:  # in a user's code, where such tensors are not supported
        return {}


def _hold(parts: Mapping[str, Part], pair: Pair, x: Tensor, *args: Any) -> bool:
    """False if any value of a site changes a term that is no part of it: a user's code may hide a dependence, such as
    in an array of numpy."""
    with torch.no_grad():
        first = sampled(pair, x, *args, num_samples=1, draw=Choice.sample)
        for part in parts.values():
            fixed = {each: value for each, value in first.values.items() if each not in part.guide}
            other = sampled(pair, x, *args, num_samples=1, draw=given(fixed, _any_value))
            ends = [
                [found.log_likelihood] * (not part.likelihood)
                + [found.priors[each].log_prob(found.values[each]) for each in pair.latent if each not in part.prior]
                + [found.choices[each].log_prob(found.values[each]) for each in fixed]
                for found in (first, other)
            ]
            if not all(torch.equal(one, two) for one, two in zip(*ends, strict=True)):
                return False
    return True


def _any_value(choice: Choice) -> Tensor:
    """A value of a site, each as probable as the others."""
    if choice.kind == "binary":
        return torch.randint_like(choice.logits, 2)
    count, shape = choice.logits.shape[-1], choice.logits.shape[:-1]
    index = torch.randint(count, shape, device=choice.logits.device)
    return index if choice.kind == "index" else F.one_hot(index, count).to(choice.logits.dtype)


class Scores(NamedTuple):
    """What score functions are made of, at z ~ q(z | x): all [samples, images], in nats."""

    log_joint: Tensor
    """log p(x, z), with the gradient of the model; less the log-densities of the guide's observed sites and factors."""
    log_weight: Tensor
    """log p(x, z) - log q(z | x), less the same."""
    of_sites: list[tuple[Tensor, Tensor]]
    """The learning signal, without gradient, and log q of each site; without parts, of all sites together."""


def scores_of(pair: Pair, x: Tensor, *args: Any, num_samples: int, parts: Mapping[str, Part]) -> Scores:
    """Draw z from the guide, without a gradient through it."""
    if not parts:
        terms = pair.terms(x, *args, num_samples=num_samples, detach=True)
        log_joint, log_weight = terms.log_likelihood + terms.log_prior, terms.log_weight
        if terms.penalty is not None:
            log_joint, log_weight = log_joint - terms.penalty, log_weight - terms.penalty
        return Scores(log_joint, log_weight, [(log_weight.detach(), terms.log_guide)])
    found = sampled(pair, x, *args, num_samples=num_samples, draw=Choice.sample, parts=parts)
    signals = {name: found.signal(name).detach() for name in found.choices}
    log_q = {name: found.sum_of({name: each.log_prob(found.values[name])}) for name, each in found.choices.items()}
    return Scores(found.log_joint, found.log_weight, [(signals[name], log_q[name]) for name in signals])
