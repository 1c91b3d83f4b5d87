"""Learning signals of score functions: for each discrete site, the terms of the log weight that its value changes."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.infer.inspect import get_dependencies
from pyro.ops.provenance import ProvenanceTensor, get_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.densities import alike, masked_log_prob, sample_sites
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, Part, check_choices, choice_of, sampled
from ppl_gen.inference.tracing import conditioned, replayed

_NUMBERS = {"item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__contains__", "__dlpack__"}
_NUMBERS |= {"__array__", "__bool__", "__complex__", "__float__", "__index__", "__int__"}
"""Functions whose results are no tensors, but depend on the values of one."""


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
            guide, model, lost = _dependencies(pair, x, *args)
            with torch.no_grad():
                if lost or any(_hidden(pair, (guide, model), Batch(x, args, {}))):
                    return {}
            found = {}
            for site in pair.latent:
                changed = {site}
                for later, upstream in guide.items():  # in the order of the draws
                    changed |= {later} if changed & set(upstream) else set()
                guided, prior = ([each for each in pair.latent if changed & {each, *of[each]}] for of in (guide, model))
                likelihood = any(changed & set(model[each]) for each in pair.observed)
                found[site] = Part(tuple(guided), tuple(prior), likelihood)
            return found
    except Exception:  # in a user's code, where such tensors are not supported
        return {}


def hidden_dependence(pair: Pair, x: Tensor, *args: Any) -> tuple[str, str] | None:
    """A site whose density may change with the value of another one, and that other one, where the tensors do not show
    it: a value was written into a tensor, or left torch. None if there is no such pair of sites, and where that cannot
    be told, as with noise beside z."""
    try:
        with evaluating(pair.model, pair.guide), forked_rng(x), torch.no_grad():
            guide, model, lost = _dependencies(pair, x, *args)
            found = next(_hidden(pair, (guide, model), Batch(x, args, {})), None)
            return next(_not_shown(pair, (model, guide), lost), None) if found is None else found
    except Exception:  # in a user's code, where such tensors are not supported
        return None


def _not_shown(
    pair: Pair, upstream: tuple[dict[str, Any], dict[str, Any]], lost: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Iterate over the pairs of a later site and one of `lost` that its density does not depend on, as far as is known:
    observed sites first."""
    for of in upstream:
        names = list(of)
        for name in sorted(lost):
            later = names[names.index(name) + 1 :] if name in names else []
            for each in sorted(later, key=lambda each: each not in pair.observed):
                if name not in of[each]:
                    yield each, name


class _Followed(TorchFunctionMode):
    """Handler that sees where the values of tensors leave those that `get_dependencies` follows."""

    drawing = inside = False

    def __init__(self) -> None:
        super().__init__()
        self.lost = set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = get_provenance([args, kwargs])
        if given and not self.drawing:
            name = getattr(func, "__name__", "")
            in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
            if in_place and isinstance(args[0], ProvenanceTensor) and not args[0]._t._is_view():
                args[0]._provenance |= given
            changed = args[0] if in_place else kwargs.get("out", result)
            tensors = [each for each in tree_leaves(changed) if isinstance(each, Tensor)]
            self.lost |= given if name in _NUMBERS else {n for each in tensors for n in given - get_provenance(each)}
        # Inside of `torch.func.vmap` and the like, nothing is followed.
        self.inside |= any(isinstance(each, Tensor) and is_functorch_wrapped_tensor(each) for each in tree_leaves(args))
        return result


class _Draws(Messenger):
    """Handler that tells a `_Followed` when a site is drawn. What happens then does not matter: the site's value is
    followed from there on."""

    def __init__(self, follower: _Followed) -> None:
        super().__init__()
        self.follower = follower

    def _pyro_sample(self, message: Any) -> None:
        self.follower.drawing = True

    def _pyro_post_sample(self, message: Any) -> None:
        self.follower.drawing = False


def _dependencies(pair: Pair, x: Tensor, *args: Any) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """For each site of the guide, and of the model, the sites that its distribution depends on; and the sites whose
    values could not be followed everywhere."""
    found = []
    with _Followed() as follower, _Draws(follower), pyro.validation_enabled(False):
        for each in (pair.guide, pair.model):
            found.append(get_dependencies(each, (x, *args))["prior_dependencies"])
    return *found, set(pair.latent) if follower.inside else follower.lost


def _hidden(pair: Pair, upstream: tuple[dict[str, Any], dict[str, Any]], batch: Batch) -> Iterator[tuple[str, str]]:
    """Iterate over the pairs of sites of `hidden_dependence`: one site after the other gets any other value."""
    drawn = replayed(pair.guide, pair.model, batch)
    values = {site["name"]: site["value"] for site in sample_sites(drawn.guide) if not site["is_observed"]}
    first, again = (conditioned(pair.guide, pair.model, values, batch) for _ in range(2))
    for name in pair.latent:
        fn = drawn.guide.nodes[name]["fn"]
        choice = choice_of(name, fn)
        new = fn.sample() if choice is None else _any_value(choice)
        other = conditioned(pair.guide, pair.model, values | {name: new}, batch)
        for one, same, changed, of in zip(first, again, other, upstream, strict=True):
            for each in (each for each in of if name not in of[each] and each != name):
                before, repeated, after = (masked_log_prob(trace.nodes[each]) for trace in (one, same, changed))
                if alike(before, repeated) and not alike(before, after):
                    yield each, name


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
