"""Log-densities of a pair without Pyro's handlers.

A model of one latent site that offers `prior()` and `likelihood(z)`, and a guide that offers `encode(x)` and
`posterior(context)`, say all that `Pair.terms` needs. If z is enumerated, the model alone says it. Pyro's handlers
around the same distributions take a fifth of a training step of a small pair, and a third of an importance-sampling
estimate.

The functions `model` and `guide` remain what a pair is. The methods are used only where they give the same
log-densities and gradients as the functions do, from the same noise. This is found out on a few images when a pair is
read, and by the training loop once an epoch.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import Amortized, HasDensity, SumsStates, offers
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import Site, alike, kl_divergence, masked_log_prob, score_function
from ppl_gen.inference.enumeration import sum_over_states
from ppl_gen.inference.modes import aside, forked_rng, frozen
from ppl_gen.inference.observed import observes_pixels
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.reached import Held
from ppl_gen.inference.signatures import name_of
from ppl_gen.inference.tracing import leaf
from ppl_gen.networks.log_density import is_normal_vector
from ppl_gen.networks.supports import check_arguments

_RELATIVE, _OF_ALL, _ROUNDING = 1e-3, 1e-5, 1e-6
"""Limits of the difference between two gradients of a parameter, as norms: relative to the parameter's gradient, to
the gradient of all parameters, and for each number."""
_MOST_SUMMED = 2**12  # states


@dataclass(frozen=True)
class Direct:
    """The methods of a model and a guide that `Pair.terms` calls in place of their functions. If z is enumerated, these
    of the model for log p(x), whose negative is the loss of `elbo`."""

    model: HasDensity
    guide: Amortized
    name: str
    """Name of the latent site."""
    image: str
    """Name of the observed site."""
    read_by_guide: Held = ()
    """As `Pair.read_by_guide`; empty if q(z | context) depends on no parameter beside the context. A flow does."""
    context: Any = None
    """The context of the images, if it is known."""

    def sampled(self, x: Tensor, num_samples: int) -> Tensor:
        """Values of z [samples, images, …]."""
        return _drawn(self.guide.posterior(self._context(x)), num_samples, len(x))[1]

    def terms(
        self,
        x: Tensor,
        num_samples: int,
        analytic_kl: bool = False,
        detach: bool = False,
        frozen_guide: bool = False,
        cut: bool = False,
        at: Tensor | None = None,
    ) -> Terms:
        """As `Pair.terms`, or at given values of z."""
        context = self._context(x)
        guide: Any = self.guide
        with aside(guide.modules() if frozen_guide and isinstance(guide, nn.Module) else ()):  # it is called once more
            posterior = self.guide.posterior(context)
        q = _site(self.name, *(_drawn(posterior, num_samples, len(x)) if at is None else (posterior, at)))
        z = at = q["value"].detach() if detach else q["value"]
        if cut or frozen_guide:
            at = leaf(z) if cut else z.clone()
        q["value"] = at
        inner = at.squeeze(0) if num_samples == 1 else at  # a network is faster without the dimension of samples
        p, seen = _site(self.name, self.model.prior(), at), _site(self.image, self.model.likelihood(inner), x)
        kl, score = None, None
        if torch.is_grad_enabled():
            score = None if detach else score_function(q | {"value": z})
        else:
            check_arguments([q], name_of(self.guide))
            check_arguments([p, seen], name_of(self.model))
        if analytic_kl:
            # NotImplementedError without a closed form. A formula may also fail on these shapes.
            with suppress(Exception):
                kl = kl_divergence(q, p).expand(num_samples, len(x))
        log_guide = self._frozen(context, at) if frozen_guide else masked_log_prob(q)
        return Terms(
            masked_log_prob(seen).reshape(num_samples, len(x)),
            masked_log_prob(p),
            log_guide,
            kl,
            {self.name: z.flatten(2) if z.dim() > 2 else z.unsqueeze(2)},
            frozenset([self.name]) if q["fn"].has_enumerate_support else frozenset(),
            values={self.name: at} if frozen_guide or cut else {},
            drawn={self.name: z} if cut else {},
            score=score,
        )

    def log_px(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [images], by a sum over all values of z."""
        prior = self.model.prior()
        values = prior.enumerate_support(expand=False)
        z = values.unsqueeze(1)
        likelihood = self.model.likelihood(z)
        if offers(likelihood, SumsStates) and likelihood.sums_over(prior, z):
            summed = likelihood.log_marginal(x, prior)
            if summed is not None:
                return summed
        return (likelihood.log_prob(x) + prior.log_prob(values).unsqueeze(1)).logsumexp(0)

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """-log p(x), summed over the images."""
        return -self.log_px(x).sum()

    def _context(self, x: Tensor) -> Any:
        return self.guide.encode(x) if self.context is None else self.context

    def _frozen(self, context: Tensor, z: Tensor) -> Tensor:
        """log q(z | x) at detached parameters of the guide. The context depends on x and on parameters alone."""
        with frozen(*self.read_by_guide):
            return masked_log_prob(_site(self.name, self.guide.posterior(context.detach()), z))


def encoded(pair: Pair, x: Tensor) -> Pair:
    """The pair for these images alone, whose encoder runs once for all chunks of samples; the same pair if it has none.
    An encoder that draws noise is no encoder here: its samples cannot be drawn together."""
    if pair.direct is None or pair.enumerated:
        return pair
    return replace(pair, direct=replace(pair.direct, context=pair.direct.guide.encode(x)))


def _drawn(fn: Any, num_samples: int, count: int) -> tuple[Any, Tensor]:
    """A distribution of each image and its samples [samples, images, …], with the noise that they have under a plate of
    samples."""
    if is_normal_vector(fn):  # it needs no expansion to have the same noise
        return fn, fn.rsample((num_samples,))
    fn = fn.expand((num_samples, count))
    return fn, fn()


def _site(name: str, fn: Any, value: Tensor | None = None) -> Site:
    """A distribution and a value as a site of a trace without plates."""
    return {"name": name, "fn": fn, "value": value, "args": (), "kwargs": {}, "mask": None}


# Does it say what the functions do? ----------------------------------------------------------------------------


def with_direct(pair: Pair, model: Any, guide: Any, batch: Batch) -> Pair:
    """The pair, with `direct` if its methods give what its functions give on a few images."""
    if not _may_be_direct(pair, model, guide, batch):
        return pair
    if pair.enumerated:
        return _with_direct_sum(pair, model, guide, batch)
    few = take(torch.arange(5, device=batch.x.device) % len(batch.x), *batch)
    name = pair.latent[0]
    try:
        with torch.enable_grad(), forked_rng(batch.x):
            context = guide.encode(few.x).detach()
            q = guide.posterior(context)
            depends = masked_log_prob(_site(name, q, q().detach())).requires_grad
        changed = replace(pair, direct=Direct(model, guide, name, pair.image, pair.read_by_guide if depends else ()))
        with torch.enable_grad():
            modules = nn.ModuleList(each for each in (model, guide) if isinstance(each, nn.Module))
            return changed if _agree(changed, pair, modules, few.x) else pair
    except Exception:  # methods of a user, which the pair may do without
        return pair


def _with_direct_sum(pair: Pair, model: Any, guide: Any, batch: Batch) -> Pair:
    """The same for a pair whose latent site is enumerated, if it has few states: a sum over many takes so long that
    the handlers do not count."""
    if pair.num_states is None or pair.num_states > _MOST_SUMMED:
        return pair
    try:
        few = take(torch.arange(5, device=batch.x.device) % len(batch.x), *batch).x
        direct = Direct(model, guide, pair.latent[0], pair.image)
        trained = [each for each in model.parameters() if each.requires_grad]
        with torch.enable_grad():
            ours, theirs = direct.log_px(few), sum_over_states(pair, few)(pair.model, few)
            slopes = (torch.autograd.grad(each.sum(), trained, allow_unused=True) for each in (ours, theirs))
            same = ours.shape == theirs.shape and alike(ours, theirs) and same_gradients(*slopes)
        return replace(pair, direct=direct) if same else pair
    except Exception:  # as in `with_direct`
        return pair


def _may_be_direct(pair: Pair, model: Any, guide: Any, batch: Batch) -> bool:
    """True for a pair of one latent site whose classes offer the methods that it needs, without arguments beside x,
    masks, scales, further sites of the guide, or a support that depends on z."""
    return (
        offers(model, HasDensity)
        and (isinstance(model, nn.Module) if pair.enumerated else offers(guide, Amortized))
        and isinstance(guide, nn.Module)
        and not pair.discretized
        and not any(observes_pixels(each) for each in (model, guide))
        and not (batch.args or batch.kwargs or batch.x.isnan().any())
        and len(pair.latent) == len(pair.observed) == pair.max_plate_nesting == 1
        and (pair.vectorized or pair.enumerated)
        and not (pair.partly_enumerated or pair.masked or pair.scales or pair.left_out)
        and not pair.may_leave_support
    )


def minus_elbo(pair: Pair, num_samples: int, x: Tensor) -> Tensor:
    """Minus the ELBO of the pair's terms, in nats per image: what two ways to compute them are compared by."""
    return -_differentiated(pair.terms(x, num_samples=num_samples)).mean()


def _differentiated(terms: Terms) -> Tensor:
    """Log weights [samples, images], with the score of the guide's discrete choices."""
    return terms.log_weight if terms.score is None else terms.log_weight + terms.score


def _agree(ours: Pair, theirs: Pair, modules: nn.ModuleList, x: Tensor) -> bool:
    """True if two pairs have the same log-densities and gradients of 2 samples from the same noise."""
    trained, densities, gradients = [each for each in modules.parameters() if each.requires_grad], [], []
    for pair in (ours, theirs):
        with forked_rng(x):
            terms = pair.terms(x, num_samples=2)
        total = _differentiated(terms).sum()
        gradients.append(torch.autograd.grad(total, trained, allow_unused=True) if total.requires_grad else ())
        densities.append([each.detach() for each in (terms.log_likelihood, terms.log_prior, terms.log_guide)])
    same = all(one.shape == two.shape and alike(one, two) for one, two in zip(*densities, strict=True))
    return same and same_gradients(*gradients)


def same_gradients(ours: Any, theirs: Any) -> bool:
    """True if two lists of gradients are equal up to rounding. None stands for a parameter without one."""
    if len(ours) != len(theirs) or any((one is None) != (two is None) for one, two in zip(ours, theirs, strict=True)):
        return False
    pairs = [(one.double(), two.double()) for one, two in zip(ours, theirs, strict=True) if one is not None]
    of_all = math.sqrt(sum(float(two.square().sum()) for _, two in pairs))
    for one, two in pairs:
        limit = _RELATIVE * two.norm() + _OF_ALL * of_all + _ROUNDING * math.sqrt(two.numel())
        if not bool((one - two).norm() <= limit):
            return False
    return True
