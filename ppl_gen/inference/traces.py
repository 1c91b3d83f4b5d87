"""Reading a Pyro model/guide pair, image by image.

Everything that judges a pair goes through here: two traces, the guide's and the model's replayed against it, are
reduced to log-densities per sample and image. The pair may have any number of latent sites under any names, as long
as each is local to the plate of images. A guide may leave all of them to the model, to be summed out by enumeration
(`ppl_gen.inference.enumeration`); samples then come from the prior. What cannot be handled is refused with a sentence.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppl_gen.distributions import log_density
from ppl_gen.errors import BadInput, describe
from ppl_gen.inference import supports
from ppl_gen.inference.callables import function_of, matmul_precision, reading
from ppl_gen.inference.supports import inside, is_discrete, log_prob_within, support

_HALF = (torch.float16, torch.bfloat16)
_CHECKED_TOGETHER = 500  # images
_COMPANY = 16  # images, as importance sampling holds at once
_DRAWS = 100  # of z for each of three images

Site = dict[str, Any]
Traces = tuple[poutine.Trace, poutine.Trace]
"""The guide's and the model's."""


@dataclass(frozen=True)
class Terms:
    """Log-densities [samples, images] in nats under z ~ q(z | x)."""

    log_likelihood: Tensor
    """log p(x | z): all observed sites."""
    log_prior: Tensor
    """log p(z): all latent sites."""
    log_guide: Tensor
    """log q(z | x)."""
    kl: Tensor | None
    """Analytic KL(q(z | x) || p(z)), where there is one latent site, Pyro has it, and it was asked for. With several,
    the divergence of one given a sample of another is not a term of KL(q || p)."""
    latents: dict[str, Tensor]
    """Values [samples, images, units] of the latent sites."""
    finite: frozenset[str]
    """Names of the latent sites with finite support."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """With `frozen_guide`: what the densities above were evaluated at, in the shape that the sites have. The guide's
    own path from one latent site to another does not lead through them."""

    score: Tensor | None = None
    """Of a guide that is reparametrized but for a choice: its log-probability, whose gradient is the choice's score."""

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def elbo(self) -> Tensor:
        """The mean log weight [images], with the gradient of the guide's choices."""
        elbo = self.log_weight.mean(0)
        if self.score is not None:
            scored = (above_others(self.log_weight) * self.score).mean(0)
            elbo = elbo + scored - scored.detach()
        return elbo


class Pair:
    """A model and a guide, read on a few images: which sites there are, which plate holds the images, and whether
    many samples of z can be drawn in one call.

    :param model: a module with a method `model`, or a Pyro function of `x`.
    :param guide: a module with a method `guide`, or a Pyro function of `x`.
    :param x: images [N, ...].
    :param args: further positional arguments, such as labels; a function that takes fewer is given fewer. Tensors
        with N rows are cut into batches along with the images.
    :raises BadInput: for a pair whose weights cannot be told apart image by image.
    """

    def __init__(self, model: Any, guide: Any, x: Tensor, *args: Any, **kwargs: Any):
        self.model, self.guide = function_of(model, "model"), function_of(guide, "guide")
        if args:
            _check_positional(self.model, self.guide, 1 + len(args))
            self.model, self.guide = accepting(self.model), accepting(self.guide)
        self.guide_module = guide if isinstance(guide, nn.Module) else getattr(guide, "__self__", None)
        self.model_name, self.guide_name = _name(model), _name(guide)
        self._parameters = pyro.get_param_store().get_state()
        """What the parameter store held before the pair was read."""
        if len(x) == 0:
            raise BadInput("there are no images")
        with (
            reading(model, guide),
            torch.random.fork_rng([x.device] if x.is_cuda else []),
            matmul_precision(),
        ):
            self._read(x, args, kwargs)
            self._check_company(x, args, kwargs)
            self.vectorized = self._can_vectorize(x, args, kwargs)
            self._compare_supports(x, args, kwargs)

    def terms(
        self,
        x: Tensor,
        *args: Any,
        num_samples: int = 1,
        analytic_kl: bool = False,
        detach: bool = False,
        frozen_guide: bool = False,
        **kwargs: Any,
    ) -> Terms:
        """Draw `num_samples` of z for each image and return their log-densities. Differentiable.

        Masks are applied, scales are not: a plate that scales its batch to the data set, or KL warm-up, changes what
        is optimized but not p(x, z).

        :param detach: cut the path from z back to the parameters that it was drawn with.
        :param frozen_guide: leave the guide's parameters out of log q(z | x) but for their path through z, by replaying
            the guide under detached parameters (Roeder et al. 2017).
        """
        count = len(x)
        x, args, kwargs = self._rows(x, args, kwargs, num_samples)
        samples = num_samples if self.vectorized else None
        if frozen_guide:
            drawn, guide_trace, model_trace, values = self._frozen_traces(x, args, kwargs, samples)
            terms = replace(self._terms((guide_trace, model_trace), num_samples, count), values=values)
        else:
            drawn, model_trace = self._trace(x, args, kwargs, samples, detach)
            terms = self._terms((drawn, model_trace), num_samples, count, analytic_kl)
        return terms if detach else replace(terms, score=self._score(drawn, (num_samples, count)))

    def draw(
        self,
        x: Tensor,
        *args: Any,
        num_samples: int,
        prior: bool = False,
        move: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        **kwargs: Any,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Values of the latent sites, from the guide or from the prior, in the shapes that the sites have; and log
        p(x | z) and log p(z) there, [samples, images].

        :param move: what to make of the guide's values before the model sees them.
        """
        count, samples = len(x), num_samples if self.vectorized else None
        x, args, kwargs = self._rows(x, args, kwargs, num_samples)
        model = self._many(self.model, samples)
        if not prior:
            drawn = poutine.trace(self._many(self.guide, samples)).get_trace(x, *args, **kwargs)
            values = {name: drawn.nodes[name]["value"] for name in self.latent}
            model = poutine.condition(model, values if move is None else move(values))
        trace = poutine.trace(model).get_trace(x, *args, **kwargs)
        values = {name: trace.nodes[name]["value"] for name in self.latent}
        return values, *self._model_totals(trace, (num_samples, count))

    def log_guide(self, values: dict[str, Tensor], x: Tensor, *args: Any, num_samples: int, **kwargs: Any) -> Tensor:
        """log q(z | x) [samples, images] at values that `draw` made; -inf outside of the guide's support."""
        count, samples = len(x), num_samples if self.vectorized else None
        x, args, kwargs = self._rows(x, args, kwargs, num_samples)
        guide = poutine.condition(self._many(self.guide, samples), values)
        trace = poutine.trace(guide).get_trace(x, *args, **kwargs)
        return self._total(trace, self.latent, (num_samples, count), self.bounded_guide)

    def spread(self, weights: Tensor, name: str, value: Tensor) -> Tensor:
        """Weights [samples, images] in a shape that broadcasts with a value of the latent site `name`."""
        shape = [1] * -self._sample_dim
        if self.vectorized:
            shape[self._sample_dim], shape[self.plate.dim] = weights.shape
        else:
            shape[self.plate.dim] = weights.numel()
        shape += [1] * len(self.event_shapes[name])
        return weights.reshape(shape[len(shape) - value.dim() :])

    def dream(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """log q(z | x') [images] for z and x' drawn from the model, as many as x. Differentiable with respect to the
        guide.

        :raises BadInput: for a model that does not draw images.
        """
        try:
            with torch.no_grad():
                drawn = poutine.trace(self.model).get_trace(None, *args, n=len(x), **kwargs)
            images = drawn.nodes[self.image]["value"]
        except Exception as error:
            raise BadInput(
                f"{self.model_name} draws no images: model(x=None, n={len(x)}): {describe(error)}"
            ) from error
        if len(self.observed) > 1 or images.shape != x.shape:
            raise BadInput(
                f"{self.model_name}: its one observed site must be the images {tuple(x.shape)}, to be drawn from it; "
                f"it is {', '.join(self.observed)} {tuple(images.shape)}"
            )
        trace = poutine.trace(poutine.replay(self.guide, trace=drawn)).get_trace(images, *args, **kwargs)
        return self._total(trace, self.latent, (1, len(x)), self.bounded_guide).flatten()

    # Reading the pair ------------------------------------------------------------------------------------------

    def _read(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        candidates = []
        for count in (2, 3, 5):  # the plate whose size follows the number of images is the plate of images
            rows = torch.arange(count, device=x.device) % len(x)
            guide_trace, model_trace = self._first_trace(*take(rows, x, args, kwargs), whole=(x, args, kwargs))
            observed = [site for site in sample_sites(model_trace) if site["is_observed"]]
            if not observed:
                raise BadInput(f"{self.model_name} observes nothing: give its image site obs=x")
            frames = set.intersection(*(set(site["cond_indep_stack"]) for site in observed))
            candidates.append({f.name: f for f in frames if f.vectorized and f.size == count})
        names = set.intersection(*(set(found) for found in candidates))
        if len(names) != 1:
            raise BadInput(
                f"{self.model_name}: its observed sites share no plate over the images; sample them in one "
                "vectorized `with pyro.plate('data', len(x)):`"
            )
        self.plate = candidates[-1][names.pop()]
        self.observed = [site["name"] for site in observed]
        self.image = "x" if "x" in self.observed else self.observed[0]
        """Name of the observed site that is the images."""
        self.latent = [site["name"] for site in sample_sites(model_trace) if not site["is_observed"]]
        proposed = [site["name"] for site in sample_sites(guide_trace) if not site["is_observed"]]
        marked = [n for n in self.latent if model_trace.nodes[n]["infer"].get("enumerate") == "parallel"]
        self.enumerated = bool(self.latent) and not proposed and marked == self.latent
        """Whether the guide leaves every latent site to enumeration in the model."""
        for name in [] if self.enumerated else self.latent:
            if not proposed:
                raise BadInput(
                    f"{self.guide_name} does not sample '{name}' of {self.model_name}, and it is not enumerated: that "
                    'takes finite support and infer={"enumerate": "parallel"}'
                )
            if name not in proposed:
                hint = "; a guide samples all latent sites, or none if all are enumerated" if name in marked else ""
                raise BadInput(
                    f"{self.guide_name} does not sample '{name}', a latent site of {self.model_name}, but "
                    f"{', '.join(map(repr, proposed))}{hint}"
                )
        for name in proposed:
            if name not in self.latent:
                raise BadInput(f"{self.guide_name} samples '{name}', which is no latent site of {self.model_name}")
        for trace, who in ((model_trace, self.model_name), (guide_trace, self.guide_name)):
            for name in (name for name in self.latent if name in trace.nodes):
                plates = [frame.name for frame in trace.nodes[name]["cond_indep_stack"]]
                if self.plate.name not in plates:
                    where = f", in '{plates[0]}'" if plates else ""
                    raise BadInput(
                        f"{who}: site '{name}' is outside the plate '{self.plate.name}'{where}; weights of single "
                        "images need latents that are local to an image, and model and guide one name for their "
                        f"plate: with pyro.plate('{self.plate.name}', len(x))"
                    )
        self._check_shapes(guide_trace, model_trace)
        dims = [f.dim for t in (guide_trace, model_trace) for s in sample_sites(t) for f in vectorized(s)]
        self.max_plate_nesting = -min(dims)
        self._sample_dim = min(dims) - 1
        self._check_dimensions(guide_trace, model_trace)
        factors = [site["name"] for site in observed if isinstance(site["fn"], dist.Unit)]  # of pyro.factor
        likelihoods = [model_trace.nodes[name]["fn"] for name in self.observed if name not in factors]
        self.discrete = bool(likelihoods) and all(map(is_discrete, likelihoods))
        """Whether p(x | z) is a probability, not a density."""
        self.event_shapes = {name: tuple(model_trace.nodes[name]["fn"].event_shape) for name in self.latent}
        self.num_states = _num_states([model_trace.nodes[name]["fn"] for name in self.latent])
        """How many values the latent sites of an image have together; None if any has no finite support."""
        self.masked = any(site["mask"] is not None for site in sample_sites(model_trace) if site["name"] in self.latent)
        self.unbounded = all(unbounded(model_trace.nodes[name]["fn"]) for name in self.latent)
        """Whether the latent sites are continuous and take any value."""
        widths = (_width(model_trace.nodes[name]["fn"]) // self.plate.size for name in self.observed)
        self.width = 1 / 16 if states_summed(sample_sites(model_trace)) else max(widths)
        """Numbers, of 4 bytes, that the log-density of an image takes for each latent state: its pixels, or 1 where the
        observed distributions sum over them before they broadcast, or a fraction where they sum over states too."""
        both = [(name, guide_trace.nodes[name]["fn"], model_trace.nodes[name]["fn"]) for name in proposed]
        self.bounded_guide = frozenset(name for name, q, p in both if not supports.covers(q, p))
        """Sites of the guide whose support may not have all values of the prior."""
        self.bounded = self._bounded_sites(guide_trace, model_trace, x, args, kwargs)
        """Sites of the model whose value may be outside their support: latent ones that the guide may draw there, and
        observed ones whose support depends on z."""
        self.reparametrized = all(guide_trace.nodes[name]["fn"].has_rsample for name in proposed)
        self.scored = [name for name in proposed if score_function(guide_trace.nodes[name]) is not None]
        """Sites whose samples are reparametrized but for a choice."""
        self.scales = {
            site["name"]: site["scale"]
            for trace in (guide_trace, model_trace)
            for site in sample_sites(trace)
            if isinstance(site["scale"], Tensor) or site["scale"] != 1
        }
        """Sites with a scale, which no log weight has."""

    def _check_shapes(self, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
        for site in sample_sites(guide_trace):
            name = site["name"]
            if site["is_observed"]:
                raise BadInput(f"{self.guide_name} observes '{name}': a guide samples, without obs=")
            _check_density(site, self.guide_name)
            if name in model_trace.nodes:
                ours, theirs = (tuple(each["fn"].event_shape) for each in (site, model_trace.nodes[name]))
                if ours != theirs:
                    raise BadInput(
                        f"{self.guide_name} does not fit {self.model_name}: site '{name}' has event shape {ours} in "
                        f"the guide and {theirs} in the model"
                    )
                both = (site["fn"], model_trace.nodes[name]["fn"])
                kinds = ["discrete" if is_discrete(each) else "continuous" for each in both]
                if kinds[0] != kinds[1] and all(support(each) is not None for each in both):
                    raise BadInput(
                        f"{self.guide_name} does not fit {self.model_name}: site '{name}' is {kinds[0]} in the guide "
                        f"and {kinds[1]} in the model"
                    )

        for site in sample_sites(model_trace):
            if not site["is_observed"] or any(isinstance(part, dist.Delta) for part in supports.parts(site["fn"])):
                _check_density(site, self.model_name)
            event = tuple(site["fn"].event_shape)
            if site["is_observed"] and event and tuple(site["value"].shape[-len(event) :]) != event:
                raise BadInput(
                    f"{self.model_name}: site '{site['name']}' has event shape {event}, and what it observes the "
                    f"shape {tuple(site['value'].shape)}; a constructor is given data_dim and data_shape if it asks"
                )

    def _first_trace(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        whole: tuple[Tensor, tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> Traces:
        """`_trace`, with the errors of somebody else's code told in a sentence.

        :param whole: the arguments that these are a few rows of.
        """
        who = self.guide_name
        try:
            guide_trace = poutine.trace(self.guide).get_trace(x, *args, **kwargs)
            who = self.model_name
            # Not replayed at first: a model that fails on the guide's values still has shapes to compare.
            self._check_shapes(guide_trace, poutine.trace(self.model).get_trace(x, *args, **kwargs))
            return self._trace(x, args, kwargs)
        except BadInput:
            raise
        except Exception as error:
            hint = "" if whole is None else self._hint_of_rows(who, *whole)
            raise BadInput(f"{who} fails on {len(x)} images: {describe(error)}{hint}") from error

    def _hint_of_rows(self, who: str, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Whether a function fails on a few images because it is made for all of them."""
        try:
            with pyro.get_param_store().scope(self._parameters):
                poutine.trace(self.guide if who == self.guide_name else self.model).get_trace(x, *args, **kwargs)
        except Exception:  # it fails on these as well
            return ""
        return (
            f"; it runs on all {len(x)} images alone, such as with a parameter for each of them: compute what belongs "
            "to an image from x"
        )

    def _trace(
        self,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        num_samples: int | None = None,
        detach: bool = False,
    ) -> Traces:
        """The guide's trace and the model's replayed against it; `num_samples` draws under a plate outside all
        others, if given."""
        with _Detach() if detach else nullcontext():
            guide_trace = poutine.trace(self._many(self.guide, num_samples)).get_trace(x, *args, **kwargs)
        model = poutine.replay(self._many(self.model, num_samples), trace=guide_trace)
        return guide_trace, poutine.trace(model).get_trace(x, *args, **kwargs)

    def _traces_at(self, values: dict[str, Tensor], x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traces:
        """Both traces at given values of the latent sites."""
        guide, model = (poutine.condition(function, values) for function in (self.guide, self.model))
        return poutine.trace(guide).get_trace(x, *args, **kwargs), poutine.trace(model).get_trace(x, *args, **kwargs)

    def _many(self, function: Callable[..., Any], num_samples: int | None) -> Callable[..., Any]:
        """The function under a plate of samples outside all others, if a number is given."""
        return function if num_samples is None else pyro.plate("_samples", num_samples, dim=self._sample_dim)(function)

    def _frozen_traces(
        self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int | None
    ) -> tuple[poutine.Trace, poutine.Trace, poutine.Trace, dict[str, Tensor]]:
        """The guide's trace as it has drawn, its trace under detached parameters and the model's, both at clones of
        these values; and the clones."""
        drawn = poutine.trace(self._many(self.guide, num_samples)).get_trace(x, *args, **kwargs).copy()
        values = {}
        for name in self.latent:
            values[name] = drawn.nodes[name]["value"].clone()
            drawn.nodes[name] = drawn.nodes[name] | {"value": values[name]}
        guide, model = (poutine.replay(self._many(f, num_samples), trace=drawn) for f in (self.guide, self.model))
        with _DetachParameters():
            if isinstance(self.guide_module, nn.Module):
                parameters = {f"module.{n}": p.detach() for n, p in self.guide_module.named_parameters()}
                score = _Call(self.guide_module, self._scored(guide))
                guide_trace = torch.func.functional_call(score, parameters, (x, *args), kwargs)
            else:
                guide_trace = self._scored(guide)(x, *args, **kwargs)
        return drawn, guide_trace, poutine.trace(model).get_trace(x, *args, **kwargs), values

    def _scored(self, guide: Callable[..., Any]) -> Callable[..., poutine.Trace]:
        """The guide's trace with the log-densities in it: some distributions, such as flows, look their parameters up
        when these are asked for, and not when they are made."""

        def trace(*args: Any, **kwargs: Any) -> poutine.Trace:
            made = poutine.trace(guide).get_trace(*args, **kwargs)
            for name in self.latent:
                made.nodes[name]["masked_log_prob"] = masked_log_prob(made.nodes[name])
            return made

        return trace

    def _check_dimensions(self, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
        """Refuse a site with images in a dimension left of all plates: as many densities as there are pairs of images,
        where the shape of a value met that of a distribution."""
        for trace, who in ((model_trace, self.model_name), (guide_trace, self.guide_name)):
            for site in sample_sites(trace):
                try:
                    shape = tuple(log_prob_within(site, masked_log_prob).shape)
                except Exception as error:
                    raise BadInput(f"{who}: site '{site['name']}' has no log-density: {describe(error)}") from error
                for frame in site["cond_indep_stack"]:
                    if frame.name != self.plate.name and getattr(frame, "full_size", None) not in (None, frame.size):
                        raise BadInput(
                            f"{who}: plate '{frame.name}' takes {frame.size} of {frame.full_size}: log p(x) is of all; "
                            "leave out subsample_size"
                        )
                if any(size > 1 for size in shape[: -self.max_plate_nesting]):
                    raise BadInput(
                        f"{who}: site '{site['name']}' has log-densities of shape {shape} for {self.plate.size} images "
                        f"in the plate '{self.plate.name}': all that belongs to an image must be one event, "
                        "by .to_event(n), or in a plate of its own"
                    )

    def _bounded_sites(
        self,
        guide_trace: poutine.Trace,
        model_trace: poutine.Trace,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> frozenset[str]:
        latent = [
            name
            for name in self.latent
            if name in guide_trace.nodes
            and not supports.covers(model_trace.nodes[name]["fn"], guide_trace.nodes[name]["fn"])
        ]
        observed = [name for name in self.observed if not supports.is_fixed(model_trace.nodes[name]["fn"])]
        if observed:  # is the support another for another z?
            x, args, kwargs = _repeated(x, args, kwargs)
            many = poutine.trace(self.model).get_trace(x, *args, **kwargs)
            observed = [name for name in observed if not supports.is_fixed(many.nodes[name]["fn"], constant=True)]
        return frozenset([*latent, *observed])

    def _compare_supports(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where one of guide and prior has mass and the other has none; refuses a guide that never draws z where the
        prior has mass."""
        self.leaves = False
        """Whether the guide certainly has mass where the prior has none, so that the ELBO is -inf."""
        self.narrower: list[str] = []
        """Latent sites where the guide leaves out a part of the prior's support: log p(x) is at least what its samples
        say."""
        if self.enumerated:
            return
        x, args, kwargs = _repeated(x, args, kwargs)
        guide_trace, model_trace = self._trace(x, args, kwargs)
        sites = {name: (guide_trace.nodes[name], model_trace.nodes[name]) for name in self.latent}
        for name, (_, p) in sites.items():
            admitted = inside(p) if name in self.bounded else None
            if admitted is not None and not admitted.any():
                raise BadInput(
                    f"{self.guide_name} never draws '{name}' inside the support of its prior in {self.model_name}, so "
                    "that no sample has a weight; give the guide a distribution of that support"
                )
        self.leaves = any(supports.certainly_narrower(p["fn"], q["fn"]) for q, p in sites.values())
        narrower = {name: supports.certainly_narrower(q["fn"], p["fn"]) for name, (q, p) in sites.items()}
        if None in narrower.values():  # values of the prior have to tell
            drawn = poutine.trace(self.model).get_trace(x, *args, **kwargs)
            for name in [name for name, told in narrower.items() if told is None]:
                with suppress(Exception):  # of a shape that the guide's does not have
                    admitted = inside({**sites[name][0], "value": drawn.nodes[name]["value"]})
                    narrower[name] = admitted is not None and not bool(admitted.all())
        self.narrower = [name for name in self.latent if narrower[name]]

    def _check_company(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a pair in which one image changes the log-densities of another: a batch is scored, and some of its
        images again alone, with the same z. Where that cannot be, since noise besides z would be another for an image
        alone, or since the guide cannot score a z that it has not drawn, they are scored in other company."""
        count = min(len(x), _COMPANY)
        rows = torch.linspace(0, len(x) - 1, max(count, 3), device=x.device).round().long()  # from all over
        arguments = take(rows, x, args, kwargs)
        seed = int(torch.randint(2**31, ()))
        traces = self._trace(*arguments)
        sites = {name: self._proposal(traces).nodes[name] for name in self.latent}

        def scored(rows: Tensor, condition: bool = True, seed: int = seed) -> tuple[Terms, list[Tensor]]:
            def of_rows(site: Site) -> Tensor:
                dim = site["value"].dim() - site["fn"].event_dim + self.plate.dim
                one = dim < 0 or site["value"].shape[dim] == 1
                return site["value"] if one else site["value"].index_select(dim, rows)

            torch.manual_seed(seed)
            of = take(rows, *arguments)
            if condition:
                found = self._traces_at({name: of_rows(site) for name, site in sites.items()}, *of)
            else:
                found = self._trace(*of)
            return self._terms(found, 1, len(rows)), [found[1].nodes[name]["value"] for name in self.observed]

        everyone = torch.arange(len(rows), device=x.device)
        condition = True
        try:
            together, values = scored(everyone)
        except Exception:  # a guide that cannot score a z that it has not drawn
            condition = False
            together, values = scored(everyone, condition)
        again, _ = scored(everyone, condition)
        if not _all_alike(together, again):
            raise BadInput(
                f"{self.model_name} and {self.guide_name} score the same z twice, with the same random numbers, and "
                "find another density: keep nothing from one call to the next, and draw all noise by torch"
            )
        other, other_values = scored(everyone, condition, seed + 1)
        if not all(bool(((one == two) | one.isnan()).all()) for one, two in zip(values, other_values, strict=True)):
            raise BadInput(
                f"{self.model_name} observes other values at every call, such as torch.bernoulli(x): draw them once, "
                "and give them as x"
            )
        noisy = not condition or not _all_alike(together, other)
        for image in everyone[:: max(1, len(everyone) // 3)][:3]:
            if noisy:  # in the same place of a batch of the same size, where the noise is the same
                company = everyone.flip(0) if len(everyone) % 2 == 0 else everyone.roll(1)
                company = company.clone()
                company[image] = image
                alone, where, how = scored(company, condition)[0], image, "in other company"
            else:
                try:
                    alone = scored(image.reshape(1))[0]
                except Exception as error:
                    hint = "; sites must be the same for every batch" if isinstance(error, KeyError) else ""
                    raise BadInput(
                        f"{self.model_name} and {self.guide_name} fail on one image alone: {describe(error)}{hint}"
                    ) from error
                where, how = everyone[0], "alone"
            whats = ("log p(x | z)", "log p(z)", "log q(z | x)")
            for what, one, many in zip(whats, _parts(alone), _parts(together), strict=True):
                if not _alike(one[0, where], many[0, image]):
                    owner = self.guide_name if what == "log q(z | x)" else self.model_name
                    raise BadInput(
                        f"{owner}: images change each other's densities: {what} of image {int(rows[image])} is "
                        f"{float(one[0, where]):.6g} {how} and {float(many[0, image]):.6g} among {len(rows)}; let no "
                        "statistic or event, such as of batch normalization or .to_event(n), reach across the plate "
                        f"'{self.plate.name}'"
                    )

    def log_densities(self, terms: Terms) -> dict[str, Tensor]:
        """The log-densities [samples, images] of terms, by what messages call them."""
        return {
            f"log p(x | z) of {self.model_name}": terms.log_likelihood,
            f"log p(z) of {self.model_name}": terms.log_prior,
            f"log q(z | x) of {self.guide_name}": terms.log_guide,
        }

    def check(self, x: Tensor, *args: Any, **kwargs: Any) -> str:
        """Look at all images with Pyro's checks on, which are off where weights are computed.

        :returns: what p(x) is: `probability`; `density`; `cross-entropy` of grey values under a Bernoulli; or
            `unchecked`, where values are outside the likelihood's support, whose `validate_args=False` allows them.
        :raises BadInput: for an argument that a distribution does not admit, and for an image that is impossible
            whatever z is.
        """
        found = {"density" if not self.discrete else "probability"}
        with torch.random.fork_rng([x.device] if x.is_cuda else []), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is told here as an error
            for rows in torch.arange(len(x), device=x.device).split(_CHECKED_TOGETHER):
                found |= self._check_block(int(rows[0]), *take(rows, x, args, kwargs))
        return next(kind for kind in ("unchecked", "cross-entropy", "density", "probability") if kind in found)

    def _check_block(self, first: int, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[str]:
        who = self.guide_name
        try:
            with pyro.validation_enabled(True):
                guide_trace = poutine.trace(self.guide).get_trace(x, *args, **kwargs)
                who = self.model_name
                # What a z of weight zero would make of the likelihood is none of the model's faults.
                anywhere = bool(self.bounded.intersection(self.latent))
                model = self.model if anywhere else poutine.replay(self.model, trace=guide_trace)
                model_trace = poutine.trace(model).get_trace(x, *args, **kwargs)
                lax = {name for name in self.observed if supports.unchecked(model_trace.nodes[name]["fn"])}
        except Exception as error:
            missing = x.reshape(len(x), -1).isnan().any(1)
            if missing.any():
                raise BadInput(f"image {first + int(missing.nonzero()[0])} has pixels that are not numbers") from error
            raise BadInput(
                f"{who}: {describe(error)}; Pyro's checks, which are on here, say what it must be"
            ) from error
        for name in (name for name in self.latent if name in guide_trace.nodes):
            ours, theirs = (
                [mask for mask in supports.masks(trace.nodes[name], of_events=True) if not mask.all()]
                for trace in (model_trace, guide_trace)
            )
            if len(ours) != len(theirs) or not all(map(_equal, ours, theirs)):
                raise BadInput(
                    f"site '{name}' is masked in one way in {self.model_name} and in another in {self.guide_name}: "
                    "give both the same mask"
                )
        found = set()
        for name in self.observed:
            site = model_trace.nodes[name]
            strictly = None if name in self.bounded else inside(site)
            if strictly is None or strictly.all():
                continue
            admitted = inside(site, grey=True)
            assert admitted is not None
            if admitted.all():
                found.add("cross-entropy")
            elif name in lax:
                found.add("unchecked")
            else:
                outside = self._per_image(site, (~admitted).to(x.dtype if x.is_floating_point() else torch.float32))
                image = int(outside.flatten().nonzero()[0])
                values = site["value"].detach()
                raise BadInput(
                    f"{self.model_name}: image {first + image} is impossible whatever z is: values of site '{name}' "
                    f"lie in [{float(values.min()):g}, {float(values.max()):g}], and {_name(site['fn'])} has the "
                    f"support {support(site['fn'])}; rescale x, or use another likelihood"
                )
        return found

    def leaves_support(self, x: Tensor, *args: Any, num_samples: int = 100, **kwargs: Any) -> str | None:
        """The name of a latent site that the guide draws where its prior has no mass; None if there is none."""
        if not self.bounded.intersection(self.latent):
            return None
        if self.leaves:
            return min(self.bounded.intersection(self.latent))
        traces = self._trace(*self._rows(x, args, kwargs, num_samples), num_samples if self.vectorized else None)
        for name in self.bounded.intersection(self.latent):
            found = inside(traces[1].nodes[name])
            if found is not None and not found.all():
                return name
        return None

    def _can_vectorize(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether an outer plate draws independent samples and changes no density.

        A function that reshapes by the batch size, or that has fixed shapes in it, fails under an outer plate, or
        is silently wrong. So two samples of three images are drawn together, and each is scored again on its own.
        """
        x, args, kwargs = take(torch.arange(3, device=x.device) % len(x), x, args, kwargs)
        try:
            traces = self._trace(x, args, kwargs, num_samples=2)
            together = self._terms(traces, 2, 3)
            for sample in range(2):
                values = {n: self._left_aligned(self._proposal(traces).nodes[n])[sample] for n in self.latent}
                alone = self._terms(self._traces_at(values, x, args, kwargs), 1, 3)
                for name in ("log_likelihood", "log_prior", "log_guide"):
                    one, many = getattr(alone, name)[0], getattr(together, name)[sample]
                    if not torch.allclose(one, many, rtol=1e-4, atol=1e-3, equal_nan=True):
                        return False
        except Exception:  # whatever a function that does not broadcast stumbles on
            return False
        return True

    # From traces to numbers ------------------------------------------------------------------------------------

    def _rows(
        self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], num_samples: int
    ) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call for many samples. Where the pair is not vectorized the batch is repeated: sample s of
        image i is row s * count + i."""
        if self.vectorized:
            return x, args, kwargs
        return take(torch.arange(len(x), device=x.device).repeat(num_samples), x, args, kwargs)

    def _total(
        self, trace: poutine.Trace, names: list[str], shape: tuple[int, int], bounded: set[str] | frozenset[str]
    ) -> Tensor:
        """The log-density [samples, images] of some sites, -inf where one that may be is outside its support."""
        parts = []
        for name in names:
            site = trace.nodes[name]
            log_prob = log_prob_within(site, masked_log_prob) if name in bounded else masked_log_prob(site)
            parts.append(self._per_image(site, log_prob))
        return sum(parts[1:], parts[0]).reshape(shape)

    def _model_totals(self, trace: poutine.Trace, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """log p(x | z) and log p(z) [samples, images]."""
        likelihood, prior = (self._total(trace, names, shape, self.bounded) for names in (self.observed, self.latent))
        if self.bounded.intersection(self.latent):  # where p(z) = 0, p(x | z) may be anything, and counts for nothing
            likelihood = likelihood.masked_fill((prior == -math.inf) & ~likelihood.isfinite(), 0.0)
        return likelihood, prior

    def _terms(self, traces: Traces, num_samples: int, count: int, analytic_kl: bool = False) -> Terms:
        guide_trace, model_trace = self._proposal(traces), traces[1]
        shape = (num_samples, count)
        if not torch.is_grad_enabled() and not self.bounded.intersection(self.latent):
            self._check_arguments(guide_trace, model_trace)

        kl = None
        if analytic_kl and len(self.latent) == 1:
            q, p = guide_trace.nodes[self.latent[0]], model_trace.nodes[self.latent[0]]
            with suppress(Exception):  # NotImplementedError, and what formulas for other shapes or with gradients raise
                kl = scale_and_mask(torch.distributions.kl_divergence(q["fn"], p["fn"]), mask=q["mask"])
                kl = self._per_image(q, kl).reshape(shape)
        latents = {}
        for name in self.latent:
            site = guide_trace.nodes[name]
            value = self._left_aligned(site)
            value = value.movedim(value.dim() - site["fn"].event_dim + self.plate.dim, 1)
            value = value.reshape(*shape, *value.shape[2:])
            latents[name] = value.flatten(2) if value.dim() > 2 else value.unsqueeze(2)
        return Terms(
            *self._model_totals(model_trace, shape),
            self._total(guide_trace, self.latent, shape, frozenset()),
            kl,
            latents,
            frozenset(name for name in self.latent if guide_trace.nodes[name]["fn"].has_enumerate_support),
        )

    def _check_arguments(self, guide_trace: poutine.Trace, model_trace: poutine.Trace) -> None:
        """Refuse a scale that is negative, and the like, at one of the z that were drawn."""
        for trace, who in ((guide_trace, self.guide_name), (model_trace, self.model_name)):
            for site in sample_sites(trace):
                if (bad := supports.bad_argument(site["fn"])) is not None:
                    raise BadInput(f"{who}: site '{site['name']}': {bad}, and for some z it is something else")

    def _score(self, guide_trace: poutine.Trace, shape: tuple[int, int]) -> Tensor | None:
        """What a gradient along z misses, [samples, images]; None if it is nothing."""
        if self.enumerated or not torch.is_grad_enabled():
            return None
        sites = [guide_trace.nodes[name] for name in self.latent]
        scores = [(site, score_function(site)) for site in sites]
        parts = [self._per_image(site, score) for site, score in scores if score is not None]
        return sum(parts[1:], parts[0]).reshape(shape) if parts else None

    def _proposal(self, traces: Traces) -> poutine.Trace:
        """The trace that the latent values were drawn in."""
        return traces[1] if self.enumerated else traces[0]

    def _per_image(self, site: Site, log_prob: Tensor) -> Tensor:
        """Sum over every plate but those of samples and images, counting each element of a plate."""
        shape = [1] * -self._sample_dim
        for frame in vectorized(site):
            shape[frame.dim] = frame.size
        log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(shape)))
        others = [d for d in range(-log_prob.dim(), 0) if d not in (self._sample_dim, self.plate.dim)]
        return log_prob.sum(others) if others else log_prob

    def _left_aligned(self, site: Site) -> Tensor:
        """A latent's value with its batch dimensions padded up to that of the samples."""
        value: Tensor = site["value"]
        missing = site["fn"].event_dim - self._sample_dim - value.dim()
        return value.reshape([1] * missing + list(value.shape))


class _Detach(Messenger):
    def _pyro_post_sample(self, message: Any) -> None:
        message["value"] = message["value"].detach()


class _DetachParameters(Messenger):
    """For a guide with `pyro.param` statements; the parameters of a module are replaced in it."""

    def _pyro_post_param(self, message: Any) -> None:
        message["value"] = message["value"].detach()


class _Call(nn.Module):
    """A function that uses a module, as a module: `torch.func.functional_call` takes no other."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@contextmanager
def frozen(*modules: Any) -> Iterator[None]:
    """No parameter asks for a gradient, which saves half of the work; restored after."""
    parts = [module for module in modules if isinstance(module, nn.Module)]
    parameters = [p for module in parts for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _check_density(site: Site, who: str) -> None:
    if supports.has_no_density(site["fn"]) and not any(not mask.any() for mask in supports.masks(site)):
        kind = [type(part).__name__ for part in supports.parts(site["fn"]) if supports.has_no_density(part)][-1]
        raise BadInput(
            f"{who}: site '{site['name']}' is a {kind}, which has no density, so that there is no ELBO and no "
            "importance weight; use a distribution with a spread, such as Normal"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool((one == other).all())


def _all_alike(one: Terms, other: Terms) -> bool:
    return all(_alike(a, b) for a, b in zip(_parts(one), _parts(other), strict=True))


def _parts(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    return terms.log_likelihood, terms.log_prior, terms.log_guide


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether log-densities are the same but for the rounding of float32, which may be within those in float64 too."""
    return torch.allclose(one, other, rtol=2e-5, atol=5e-4, equal_nan=True)


def _repeated(
    x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Three images, many times each: for what shows in a few of many draws of z."""
    return take((torch.arange(3, device=x.device) % len(x)).repeat(_DRAWS), x, args, kwargs)


def take(
    rows: Tensor, x: Tensor, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The images at `rows`, and with them the rows of every argument that has one for each image."""

    def pick(value: Any) -> Any:
        follows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x)
        return value[rows] if follows else value

    return x[rows], tuple(map(pick, args)), {name: pick(value) for name, value in (kwargs or {}).items()}


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def accepting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called with as many of the positional arguments as it takes."""
    count = len(_positional(function))
    return function if count >= _ANY else lambda *args, **kwargs: function(*args[:count], **kwargs)


_ANY = 100  # of a function with *args


def _positional(function: Callable[..., Any]) -> list[str]:
    """Names of the positional arguments that a function takes; those of *args have none."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names + [""] * _ANY * any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _check_positional(model: Any, guide: Any, given: int) -> None:
    """Refuse an argument by position that would be dropped: neither function takes it, or one of them takes it only by
    its name."""
    both = (model, guide)
    names = max(map(_positional, both), key=len)
    if len(names) < given:
        raise BadInput(
            f"{' and '.join(map(_name, both))} take {len(names)} by position, x included, and {given} arguments are "
            "given: give the others by name, such as y=labels"
        )
    for function in both:
        parameters = inspect.signature(function).parameters.values()
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        for name in names[len(_positional(function)) : given]:
            if by_name and (not name or name in by_name):
                which = name or by_name[0]
                raise BadInput(f"{_name(function)} takes {which} only by its name: give {which}=…, not by position")


def sample_sites(trace: poutine.Trace) -> list[Site]:
    """Sample statements, without the book-keeping of plates and `pyro.deterministic`."""
    return [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site) and not site["infer"].get("_deterministic")
    ]


def vectorized(site: Site) -> list[Any]:
    """The plates around a site that are dimensions: a loop over a plate is none."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def amortized(guide: Any) -> bool:
    """Whether a guide splits `encode(x)`, from images to contexts, from `posterior(context)`, the distribution of z."""
    return hasattr(guide, "encode") and hasattr(guide, "posterior")


def tells_density(model: Any) -> bool:
    """Whether a model of one latent site offers `prior()` and `likelihood(z)`, its two distributions."""
    return hasattr(model, "prior") and hasattr(model, "likelihood")


def states_summed(sites: list[Site]) -> bool:
    """Whether there is one observed distribution, which can sum over all values of the one latent site by itself."""
    if [site["is_observed"] for site in sites] not in ([False, True], [True, False]):
        return False
    latent, observed = sorted(sites, key=lambda site: bool(site["is_observed"]))
    plain = all(site["mask"] is None and len(site["cond_indep_stack"]) == 1 for site in sites)
    return (
        plain and hasattr(observed["fn"], "sums_over") and bool(observed["fn"].sums_over(latent["fn"], latent["value"]))
    )


def unbounded(distribution: Any) -> bool:
    """Whether a distribution is of continuous values without bounds."""
    constraint = support(distribution)
    if constraint is None or constraint.is_discrete:
        return False
    far = torch.full_like(distribution.sample(), 1e4)
    return all(bool(constraint.check(value).all()) for value in (far, -far))


def _width(distribution: Any) -> int:
    pixels = 1 if getattr(distribution, "sums_pixels_first", False) else math.prod(distribution.event_shape)
    return math.prod(distribution.batch_shape) * pixels


def _num_states(distributions: list[Any]) -> int | None:
    total = 1
    for distribution in distributions:
        if not distribution.has_enumerate_support:
            return None
        known = getattr(distribution, "num_states", None)  # spares the list of 2^M states
        try:
            total *= known if known is not None else len(distribution.enumerate_support(expand=False))
        except NotImplementedError:  # such as of numbers of trials that differ
            return None
    return total


def score_function(site: Site) -> Tensor | None:
    """What a distribution that is reparametrized in part leaves to its score, by Pyro's `score_parts`; with the mask
    of the site, without its scale. None for all others."""
    fn = site["fn"]
    if not fn.has_rsample or type(fn).score_parts is dist.Distribution.score_parts:
        return None
    score = fn.score_parts(site["value"].detach()).score_function
    return None if is_identically_zero(score) else scale_and_mask(score, mask=site["mask"])


def mean_of_others(values: Tensor) -> Tensor:
    """For each of values [samples, ...] the mean of the other samples'."""
    return (values.sum(0) - values) / (len(values) - 1)


def above_others(values: Tensor) -> Tensor:
    """Values [samples, ...] less the mean of the other samples', without a gradient: a score times it has less noise,
    and the same mean."""
    values = values.detach()
    return values - mean_of_others(values)


def masked_log_prob(site: Site, wide: bool = False) -> Tensor:
    """The log-density of a site with its mask and without its scale, before any sum.

    :param wide: in float64, if it is of binary values.
    """
    if "masked_log_prob" in site:
        return site["masked_log_prob"]
    value = site["value"]
    if value.dtype in _HALF:  # its pixels would be added up in half precision
        value = value.float()
    log_prob = supports.own_log_prob(site["fn"], value)
    if log_prob is None:
        log_prob = log_density(site["fn"], value, *site["args"], wide=wide, **site["kwargs"])
    return scale_and_mask(log_prob.float() if log_prob.dtype in _HALF else log_prob, mask=site["mask"])
