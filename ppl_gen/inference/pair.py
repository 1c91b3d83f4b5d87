"""A model and a guide, read and validated once, that draw z and return log-densities image by image.

All inference goes through `Pair`, which turns the traces of guide and model into log-densities per sample and image.
The pair may have any number of latent sites with any names, as long as each is local to the plate of images. A guide
may leave all of them to enumeration in the model (`ppl_gen.inference.enumeration`). Samples then come from the prior.
A guide that samples z and leaves some site y to enumeration has the weights sum_y p(x, y, z) / q(z | x): densities of
the model are then those of x and z. A guide that itself enumerates y draws z_y for each value of y, and has the weights
sum_y p(x, y, z_y) / q(z_y | x, y).
`ppl_gen.inference.reading` makes a `Pair`, and refuses with one sentence a pair that cannot be handled.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn

from ppl_gen.core.contracts import Discretizes, offers
from ppl_gen.core.errors import BadInput, describe
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.densities import (
    Site,
    add,
    kl_divergence,
    masked_log_prob,
    minus_leave_one_out_mean,
    plates_of,
    sample_sites,
    score_function,
    sum_to,
    units_of,
)
from ppl_gen.inference.elimination import ByValue, enumerating, log_sum
from ppl_gen.inference.reached import Held
from ppl_gen.inference.signatures import ByName
from ppl_gen.inference.tracing import (
    SAMPLES,
    PyroFunction,
    Traces,
    conditioned,
    cut_traces,
    frozen_guide_traces,
    replayed,
    trace_of,
    under_samples,
)
from ppl_gen.networks.supports import check_arguments, draws_labels, log_prob_within, without_masks

if TYPE_CHECKING:
    from ppl_gen.inference.direct import Direct

Values = dict[str, Tensor]
"""Values of the latent sites, in the shapes that the sites have."""


@dataclass(frozen=True)
class Terms:
    """Log-densities [samples, images] in nats under z ~ q(z | x)."""

    log_likelihood: Tensor
    """log p(x | z): all observed sites."""
    log_prior: Tensor
    """log p(z): all latent sites."""
    log_guide: Tensor
    """log q(z | x). If the guide enumerates y, each of the three is a mean over q(y | x), at a z for each y."""
    kl: Tensor | None
    """KL(q(z | x) || p(z)) in closed form, if it was asked for; None if Pyro has none, or with several latent sites:
    the divergence of one site given a sample of another is not a term of KL(q || p)."""
    latents: dict[str, Tensor]
    """Values [samples, images, units] of the latent sites."""
    labels: frozenset[str]
    """Names of the latent sites whose values are labels: their mean says nothing."""
    values: Values = field(default_factory=dict)
    """With `frozen_guide` or `cut`, the values at which the densities were evaluated. They are clones: gradients from
    one latent site of the guide to another do not pass through them."""
    drawn: Values = field(default_factory=dict)
    """With `cut`, the values as the guide has drawn them. `values` are leaves with the same numbers."""
    score: Tensor | None = None
    """Log-probability of the guide's discrete choices, if its samples are otherwise reparametrized; its gradient is the
    score of the choices. None for all other guides."""
    penalty: Tensor | None = None
    """Log-densities of the guide's observed sites and factors, which training subtracts as Pyro's ELBOs do; None if
    there are none. They do not belong to log q(z | x)."""
    weight: Tensor | None = None
    """The log weight, if it is not the sum of the densities: if the guide enumerates y, log of sum_y p(x, y, z_y) /
    q(z_y | x, y)."""

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x): the log of an unbiased estimate of p(x)."""
        return self.evidence if self.weight is None else self.weight

    @property
    def evidence(self) -> Tensor:
        """log p(x | z) + log p(z) - log q(z | x), whose mean is the ELBO. The log weight, but for a guide that
        enumerates y: by Jensen's inequality its log weight is larger."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def elbo(self) -> Tensor:
        """The ELBO [images]. Its gradient includes the score of the guide's discrete choices."""
        elbo = self.evidence.mean(0)
        if self.score is not None:
            scored = (minus_leave_one_out_mean(self.evidence) * self.score).mean(0)
            elbo = elbo + scored - scored.detach()
        return elbo


@dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """A model and a guide with their properties, as `Pair.read` finds them on a few images. Log-densities are masked,
    but not scaled: a scale, as of KL warm-up, changes the objective but not p(x, z)."""

    model: PyroFunction
    """Pyro function of x and of further arguments. Arguments that it does not take are dropped."""
    guide: PyroFunction
    """Pyro function of the same arguments."""
    guide_module: nn.Module | None
    """The guide's module; None for a function."""
    model_name: str
    """Name of the model's class or function, for messages."""
    guide_name: str
    """Name of the guide's class or function, for messages."""
    plate: CondIndepStackFrame
    """Plate of the images."""
    max_plate_nesting: int
    """Number of dimensions of plates, including the plate of images."""
    observed: tuple[str, ...]
    """Names of the model's observed sites."""
    image: str
    """Name of the observed site of the images."""
    observes_x: bool
    """False if the value that this site observes has as many numbers as the images, but other ones, such as 255 x."""
    discrete: bool
    """True if p(x | z) is a probability, False if it is a density."""
    event_shapes: dict[str, tuple[int, ...]]
    """Event shape of each latent site, but for those in `summed`."""
    summed: tuple[str, ...]
    """Names of the latent sites that the guide leaves to a sum in the model, while it samples others. They are no part
    of z: log p(z) and log p(x | z) are sums over their values."""
    enumerated_in_guide: tuple[str, ...]
    """Names of the latent sites whose values the guide enumerates (`infer={"enumerate": "parallel"}`)."""
    penalties: tuple[str, ...]
    """Names of the guide's observed sites and factors. Training subtracts their log-densities."""
    left_out: tuple[str, ...]
    """Names of the guide's sites that are left out of q(z | x): observed and auxiliary sites, and factors."""
    masked: bool
    """True if a latent site has a mask."""
    unbounded: bool
    """True if all latent sites are continuous, with any real number as value."""
    num_states: int | None
    """Number of joint values of an image's latent sites, `summed` ones included; None if any has no finite support."""
    enumerated: bool
    """True if the guide samples nothing, and leaves every latent site to enumeration or a sum (`discretized`)."""
    sums_states: bool
    """True if the observed distribution sums over all states of z by itself."""
    pixels_per_state: int
    """Numbers in memory per image and state of z: its pixels, or 1 if the distribution sums over them first."""
    reparametrized: bool
    """True if samples of all sites of the guide are differentiable (`has_rsample`)."""
    scored: tuple[str, ...]
    """Names of the guide's sites whose samples are reparametrized except for a discrete choice, such as a mixture's."""
    scales: Mapping[str, Tensor | float]
    """Scale of each site with a scale other than 1."""
    may_leave_support: frozenset[str]
    """Names of the model's sites that may leave their support: latent, by the guide; observed, if it depends on z."""
    guide_may_miss: frozenset[str]
    """Names of the guide's sites whose support may exclude values of the prior."""
    exceeds_prior: bool = False
    """True if the guide certainly has mass where the prior has none, so that the ELBO is -inf."""
    narrower: tuple[str, ...] = ()
    """Names of latent sites where the guide's support lacks a part of the prior's: estimates lack that part of p(x)."""
    noisy: bool = False
    """True if densities of the same z depend on random numbers, or if the guide scores no z that it has not drawn."""
    vectorized: bool = False
    """True if several samples of z can be drawn in one call, under a plate of samples outside all others."""
    read_by_guide: Held = ()
    """What holds the parameters that the guide can read, except those of `pyro.param` statements."""
    modules: tuple[nn.Module, ...] = ()
    """Every module that model and guide can reach."""
    direct: "Direct | None" = None
    """Methods of model and guide that `terms` calls in place of the functions, to the same effect; None without any."""

    def __repr__(self) -> str:
        latent = ", ".join(f"{name} {list(shape)}" for name, shape in self.event_shapes.items())
        return f"Pair({self.model_name}, {self.guide_name}: latent {latent}; observed {', '.join(self.observed)})"

    @classmethod
    def read(cls, model: Any, guide: Any, x: Tensor, *args: Any, **kwargs: Any) -> "Pair":
        """Run a model and a guide on a few images, validate them, and record their properties.

        :param model: a module with a method `model`, or a Pyro function of x.
        :param guide: a module with a method `guide`, or a Pyro function of x.
        :param x: images [N, ...].
        :param args: further positional arguments, such as labels; a function that takes fewer is given fewer. Tensors
            with N rows are cut into batches along with the images.
        :raises BadInput: for a pair that has no weights of single images.
        """
        from ppl_gen.inference.reading import read  # it imports this module

        return read(model, guide, Batch(x, args, kwargs))

    @property
    def latent(self) -> tuple[str, ...]:
        return tuple(self.event_shapes)

    @property
    def partly_enumerated(self) -> bool:
        """True if some sites are sampled, and others are enumerated in the model or the guide."""
        return bool(self.summed or self.enumerated_in_guide)

    @property
    def joint(self) -> PyroFunction:
        """The model with the sites in `summed` enumerated, for densities. To draw images, take `model`."""
        return enumerating(self.model, self.summed, self.sample_dim - 1) if self.summed else self.model

    @property
    def discretized(self) -> bool:
        """True if the guide samples nothing and gives points of z, over which training sums."""
        return self.enumerated and offers(self.guide_module, Discretizes)

    @property
    def sample_dim(self) -> int:
        """Dimension of the plate of samples."""
        return -1 - self.max_plate_nesting

    # Drawing and scoring ---------------------------------------------------------------------------------------------

    def terms(
        self,
        x: Tensor,
        *args: Any,
        num_samples: int = 1,
        analytic_kl: bool = False,
        detach: bool = False,
        frozen_guide: bool = False,
        cut: bool = False,
        **kwargs: Any,
    ) -> Terms:
        """Draw `num_samples` values of z for each image and return their log-densities. Differentiable.

        :param analytic_kl: compute the KL term in closed form too.
        :param detach: detach z from the parameters that it was drawn with.
        :param frozen_guide: let log q(z | x) depend on the guide's parameters through z only (Roeder et al. 2017).
        :param cut: evaluate the model at leaves, so that gradients stop at `values` and can be passed on to `drawn`.
        """
        if self.direct is not None and not (self.enumerated or args or kwargs):
            return self.direct.terms(x, num_samples, analytic_kl, detach, frozen_guide, cut)
        shape, images = (num_samples, len(x)), Batch(x, args, kwargs)
        if self.enumerated_in_guide:
            return self._terms_by_value(self.by_value(num_samples, images, detach))
        guide, model, batch = self.for_samples(num_samples, images)
        if frozen_guide:
            drawn, traces, values = frozen_guide_traces(self, guide, model, batch, cut)
        else:
            drawn, traces, values = cut_traces(guide, model, self.latent if cut else (), batch, detach)
        terms = self.terms_of(traces, shape, analytic_kl)
        terms = replace(terms, values=values, drawn=self._values(drawn) if cut else {})
        return terms if detach else replace(terms, score=self._score(drawn, shape))

    def draw(
        self,
        x: Tensor,
        *args: Any,
        num_samples: int,
        prior: bool = False,
        transform: Callable[[Values], Values] | None = None,
        **kwargs: Any,
    ) -> tuple[Values, Tensor, Tensor]:
        """Draw values of the latent sites from the guide or the prior. Returns them with log p(x | z) and log p(z)
        [samples, images].

        :param prior: draw from the prior.
        :param transform: a function to apply to the guide's values before the model is run on them.
        """
        images = Batch(x, args, kwargs)
        guide, model, batch = self.for_samples(num_samples, images)
        if not prior:
            values = self._values(trace_of(guide, batch))
            model = poutine.condition(model, values if transform is None else transform(values))
        elif self.summed:
            _, sampling, _ = replace(self, summed=()).for_samples(num_samples, images)
            model = poutine.condition(model, self._values(trace_of(sampling, batch)))
        trace = trace_of(model, batch)
        return self._values(trace), *self._model_totals(trace, (num_samples, len(x)))

    def log_weights_by_value(self, name: str, x: Tensor, *args: Any, num_samples: int, **kwargs: Any) -> Tensor:
        """Log importance weights [values, samples, images] for each value of an enumerated site y: log p(x, y, z) -
        log q(z | x, y). Their log mean over samples is an estimate of log p(x, y).

        :param name: the site; one of `summed`, or the only one in `enumerated_in_guide`.
        """
        images = Batch(x, args, kwargs)
        if name not in self.summed:
            return self.by_value(num_samples, images).log_weight
        guide, model, batch = self.for_samples(num_samples, images)
        traces = replayed(guide, model, batch)
        # The others are summed out; the dimension of this site stays.
        others = replace(self, summed=tuple(other for other in self.summed if other != name))
        joint = others._summed_total(traces.model, (*self.latent, *self.summed, *self.observed), (name,))
        count = len(traces.model.nodes[name]["fn"].enumerate_support(expand=False))
        shape = (num_samples, len(x))
        return joint.reshape(count, *shape) - self._total(traces.guide, self.latent, shape, frozenset())

    def log_guide(self, values: Values, x: Tensor, *args: Any, num_samples: int, **kwargs: Any) -> Tensor:
        """log q(z | x) [samples, images] at values from `draw`; -inf outside of the guide's support."""
        guide, _, batch = self.for_samples(num_samples, Batch(x, args, kwargs))
        trace = trace_of(poutine.condition(guide, values), batch)
        return self._total(trace, self.latent, (num_samples, len(x)), self.guide_may_miss)

    def dream(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log q(z | x') [images] for z and x' drawn from the model, as many as there are in x: the sleep phase of
        wake-sleep. Differentiable with respect to the guide.

        :raises BadInput: for a model that cannot draw images.
        """
        drawn = _drawn_images(self, x, args, kwargs)
        trace = trace_of(poutine.replay(self.guide, trace=drawn), Batch(drawn.nodes[self.image]["value"], args, kwargs))
        return self._total(trace, self.latent, (1, len(x)), self.guide_may_miss).flatten()

    def draw_images(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Values]:
        """Draw as many images from the model as there are in x. Returns them with the values of the latent sites that
        they were drawn with, which are samples of p(z | x).

        :raises BadInput: for a model that cannot draw images.
        """
        drawn = _drawn_images(self, x, args, kwargs)
        return drawn.nodes[self.image]["value"], self._values(drawn)

    def terms_at(self, values: Values, x: Tensor, *args: Any, **kwargs: Any) -> Terms:
        """Log-densities [1, images] at one z for each image, as `draw_images` returns them. log q(z | x) is -inf
        outside of the guide's support, and log p(z) where the guide leaves z to enumeration."""
        traces = conditioned(self.guide, self.joint, values, Batch(x, args, kwargs))
        return self.terms_of(traces, (1, len(x)), may_miss=self.guide_may_miss)

    def log_densities(self, terms: Terms) -> dict[str, Tensor]:
        """Log-densities [samples, images] of terms, by their names in messages."""
        return {
            f"log p(x | z) of {self.model_name}": terms.log_likelihood,
            f"log p(z) of {self.model_name}": terms.log_prior,
            f"log q(z | x) of {self.guide_name}": terms.log_guide,
        }

    # From traces to numbers ------------------------------------------------------------------------------------------

    def for_samples(self, num_samples: int, batch: Batch) -> tuple[PyroFunction, PyroFunction, Batch]:
        """Guide, model and batch for a call that draws several samples. If the pair is not vectorized, the batch is
        repeated: sample s of image i is row s * len(x) + i. Sites in `summed` are enumerated in the model."""
        if self.vectorized:
            guide, model = (under_samples(each, num_samples, self.sample_dim) for each in (self.guide, self.model))
            return guide, replace(self, model=model).joint, batch
        rows = torch.arange(len(batch.x), device=batch.x.device).repeat(num_samples)
        return self.guide, self.joint, take(rows, *batch)

    def terms_of(
        self, traces: Traces, shape: tuple[int, int], analytic_kl: bool = False, may_miss: frozenset[str] = frozenset()
    ) -> Terms:
        """Log-densities of a pair of traces.

        :param shape: numbers of samples and images.
        :param may_miss: sites whose values may be outside of the guide's support.
        """
        drawn = self.proposal(traces)
        if not torch.is_grad_enabled() and not self.may_leave_support.intersection(self.latent):
            for trace, who in ((drawn, self.guide_name), (traces.model, self.model_name)):
                check_arguments(sample_sites(trace), who)
        kl = None
        if analytic_kl and len(self.latent) == 1 and not self.summed:
            q, p = (trace.nodes[self.latent[0]] for trace in (drawn, traces.model))
            # NotImplementedError without a closed form. A formula may also fail on these shapes.
            with suppress(Exception):
                kl = self.per_image(q, kl_divergence(q, p)).reshape(shape)
        latents = {n: units_of(drawn.nodes[n], shape, self.sample_dim, self.plate.dim) for n in self.latent}
        likelihood, prior = self._model_totals(traces.model, shape)
        return Terms(
            likelihood,
            prior,
            self._total(drawn, self.latent, shape, may_miss) if self.latent else torch.zeros_like(prior),
            kl,
            latents,
            frozenset(name for name in self.latent if draws_labels(drawn.nodes[name]["fn"])),
            penalty=self._total(traces.guide, self.penalties, shape, frozenset()) if self.penalties else None,
        )

    def proposal(self, traces: Traces) -> poutine.Trace:
        """The trace in which the latent values were drawn: the guide's, or the model's if it is enumerated."""
        return traces.model if self.enumerated else traces.guide

    def per_image(self, site: Site, log_prob: Tensor) -> Tensor:
        """The log-density of a site, summed over all plates except those of samples and images."""
        return sum_to(site, log_prob, self.sample_dim, self.plate.dim)

    def _values(self, trace: poutine.Trace) -> Values:
        """The values of the latent sites in a trace."""
        return {name: trace.nodes[name]["value"] for name in self.latent}

    def _total(
        self, trace: poutine.Trace, names: Iterable[str], shape: tuple[int, int], checked: frozenset[str]
    ) -> Tensor:
        """The joint log-density [samples, images] of some sites; -inf outside the support of those in `checked`."""
        parts = []
        for name in names:
            site = trace.nodes[name]
            log_prob = log_prob_within(site, masked_log_prob) if name in checked else masked_log_prob(site)
            parts.append(self.per_image(site, log_prob))
        return add(parts).reshape(shape)

    def _model_totals(self, trace: poutine.Trace, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) [samples, images]."""
        checked = self.may_leave_support
        if self.summed:
            prior = self._summed_total(trace, (*self.latent, *self.summed)).reshape(shape)
            likelihood = self._summed_total(trace, (*self.latent, *self.summed, *self.observed)).reshape(shape) - prior
        else:
            likelihood = self._total(trace, self.observed, shape, checked)
            prior = self._total(trace, self.latent, shape, checked) if self.latent else torch.zeros_like(likelihood)
        # Where p(z) = 0, p(x | z) may be NaN. The weight is 0 for any p(x | z).
        if self.summed or checked.intersection(self.latent):
            likelihood = likelihood.masked_fill((prior == -math.inf) & ~likelihood.isfinite(), 0.0)
        return likelihood, prior

    def _summed_total(self, trace: poutine.Trace, names: Iterable[str], unmasked: tuple[str, ...] = ()) -> Tensor:
        """The joint log-density of some sites, with those in `summed` summed over and inner plates added up. Its
        dimensions are those of a log-density in the trace. The masks of sites in `unmasked` are left out."""

        def density(site: Site) -> Tensor:
            checked = site["name"] in self.may_leave_support
            return log_prob_within(site, masked_log_prob) if checked else masked_log_prob(site)

        sites = [without_masks(trace.nodes[name]) if name in unmasked else trace.nodes[name] for name in names]
        kept = (SAMPLES, self.plate.name)
        return log_sum(sites, self.summed, density, kept, -self.sample_dim, self.model_name)

    def by_value(self, num_samples: int, images: Batch, detach: bool = False) -> ByValue:
        """Log-densities [values, samples, images] at a z for each value of the sites that the guide enumerates."""
        guide, model, batch = replace(self, summed=()).for_samples(num_samples, images)
        # The model uses dimensions left of the guide's.
        guide = enumerating(guide, self.enumerated_in_guide, self.sample_dim - 1)
        traces = replayed(guide, enumerating(model, self.summed, None), batch, detach)
        sites = [traces.guide.nodes[name] for name in self.enumerated_in_guide]
        dims = {site["infer"]["_enumerate_dim"]: len(site["fn"].enumerate_support(expand=False)) for site in sites}
        sizes = tuple(dims[dim] for dim in sorted(dims))

        def total(trace: poutine.Trace, *names: str, unmasked: tuple[str, ...] = ()) -> Tensor:
            if not names:
                return torch.zeros((), device=images.x.device)
            found = self._summed_total(trace, names, unmasked)
            whole = broadcast_shape(found.shape, (*sizes, *[1] * -self.sample_dim))
            return found.expand(whole).reshape(math.prod(sizes), num_samples, len(images.x))

        drawn = [name for name in self.latent if name not in self.enumerated_in_guide]
        of_latent = (*self.latent, *self.summed)
        prior = total(traces.model, *of_latent)
        return ByValue(
            trace=traces.guide,
            sizes=sizes,
            log_likelihood=total(traces.model, *of_latent, *self.observed) - prior,
            log_prior=prior,
            log_value=total(traces.guide, *self.enumerated_in_guide),
            log_share=total(traces.guide, *self.enumerated_in_guide, unmasked=self.enumerated_in_guide),
            log_guide=total(traces.guide, *drawn),
            penalty=total(traces.guide, *self.penalties) if self.penalties else None,
            values={name: self._by_value(traces.guide.nodes[name], sizes) for name in self.latent},
        )

    def _by_value(self, site: Site, sizes: tuple[int, ...]) -> Tensor:
        """The value of a site with the values of the enumerated sites as one dimension on the left."""
        value, batch = site["value"], [*sizes, *[1] * -self.sample_dim]
        for frame in plates_of(site):
            batch[frame.dim] = frame.size
        events = value.dim() - site["fn"].event_dim
        whole = broadcast_shape(value.shape[:events], batch)
        return value.expand(*whole, *value.shape[events:]).flatten(0, len(sizes) - 1)

    def _terms_by_value(self, drawn: ByValue) -> Terms:
        """The terms of a guide that enumerates sites: log-densities are means over q of their values."""
        share, never = drawn.log_share.exp(), drawn.log_share == -math.inf

        def mean(value: Tensor) -> Tensor:
            """The mean of values over q, [samples, images]. A value that q never takes counts nothing."""
            return (share * value.masked_fill(never, 0.0)).sum(0)

        latents = {}
        for name in (name for name in self.latent if name not in self.enumerated_in_guide):
            site = drawn.trace.nodes[name]
            shape = (share.shape[1], share.shape[2])
            units = [
                units_of({**site, "value": each}, shape, self.sample_dim, self.plate.dim) for each in drawn.values[name]
            ]
            latents[name] = (share.unsqueeze(-1) * torch.stack(units)).sum(0)
        return Terms(
            log_likelihood=mean(drawn.log_likelihood),
            log_prior=mean(drawn.log_prior),
            log_guide=mean(drawn.log_value + drawn.log_guide),
            kl=None,
            latents=latents,
            labels=frozenset(name for name in latents if draws_labels(drawn.trace.nodes[name]["fn"])),
            penalty=None if drawn.penalty is None else mean(drawn.penalty),
            weight=drawn.log_weight.logsumexp(0),
        )

    def _score(self, drawn: poutine.Trace, shape: tuple[int, int]) -> Tensor | None:
        """The log-probability [samples, images] of the guide's discrete choices, with gradients on; else None."""
        if self.enumerated or not torch.is_grad_enabled():
            return None
        sites = [drawn.nodes[name] for name in self.latent]
        scores = [(site, score_function(site)) for site in sites]
        parts = [self.per_image(site, score) for site, score in scores if score is not None]
        return add(parts).reshape(shape) if parts else None


def require_images(pair: Pair, what: str) -> None:
    """Raise `BadInput` if a model observes other values than the images: what it draws are then no images.

    :param what: what needs images from the model, in the message.
    """
    if not pair.observes_x:
        raise BadInput(
            f"{what}: {pair.model_name} observes other values at '{pair.image}' than its images, such as 255 x, so "
            "that what it draws are no images; let it observe x itself, and let the likelihood be one of x"
        )


def _drawn_images(pair: Pair, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> poutine.Trace:
    """Trace of the model when it draws as many images as there are in x.

    :raises BadInput: if it cannot, or if their shape differs, and for a pair that is given row numbers.
    """
    require_images(pair, "images from the model")
    if any(isinstance(each, ByName) for each in args):
        raise BadInput(f"{pair.guide_name} has parameters for each of its images, but none for images from the model")
    try:
        with torch.no_grad():
            drawn = poutine.trace(pair.model).get_trace(None, *args, n=len(x), **kwargs)
        images = drawn.nodes[pair.image]["value"]
    except Exception as error:
        raise BadInput(f"{pair.model_name} cannot draw images: model(x=None, n={len(x)}): {describe(error)}") from error
    if len(pair.observed) > 1 or images.shape != x.shape:
        raise BadInput(
            f"{pair.model_name}: to draw images, its one observed site must be the images {tuple(x.shape)}; "
            f"it is {', '.join(pair.observed)} {tuple(images.shape)}"
        )
    return drawn
