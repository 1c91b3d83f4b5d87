"""Pairs that know nothing of missing pixels, on images with missing pixels.

A missing pixel is NaN in x, so that it travels with its image through every batch, and a function that forgets it
returns NaN instead of a wrong number. `observe` changes the methods of a model and a guide:

- the model's sample statements of images count observed pixels alone;
- the guide is given 0 in place of missing pixels (Mattei and Frellsen 2019, equations 5 to 9), unless its class says
  `takes_missing = True`.

With them, log p(x) of every estimator, and the bound of every objective, is that of the observed pixels, log p(x_obs).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_gen.core.contracts import Amortized, ClosedForm, TakesMissing, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.densities import alike
from ppl_gen.inference.modes import forked_rng
from ppl_gen.networks.observed import any_missing, filled, is_missing, observed_part

_OBSERVES = "observes_pixels"
"""Attribute of the classes that `observe` makes: what the module is, `model` or `guide`."""


class ObservedPixels(Messenger):
    """Handler that leaves missing pixels out of the density of observed sites: those where the observed value is NaN.
    It is outside of the function's own plates."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[Tensor] = []
        """Number of missing pixels at each observed site."""

    def _pyro_sample(self, message: Any) -> None:
        value = message["value"]
        floating = isinstance(value, Tensor) and value.is_floating_point()
        if not message["is_observed"] or not floating or message["infer"].get("_deterministic"):
            return
        missing = is_missing(value)
        try:
            part = observed_part(message["fn"], ~missing)
        except BadInput:
            if bool(missing.any()):
                raise
            return  # such as a factor, or a vector that is no image
        self.missing.append(missing.sum())
        message["value"] = filled(message["fn"], value, ~missing)
        message["fn"] = part


class _Densities(Messenger):
    """Handler that keeps the log-densities of observed pixels alone."""

    def __init__(self, observed: Tensor) -> None:
        super().__init__()
        self.observed, self.found = observed, list[Tensor]()

    def _pyro_post_sample(self, message: Any) -> None:
        value = message["value"]
        if message["is_observed"] and isinstance(value, Tensor) and value.shape == self.observed.shape:
            self.found.append(observed_part(message["fn"], self.observed).log_prob(value))


def observe(model: nn.Module, guide: nn.Module) -> None:
    """Let a model and a guide take images with missing pixels. A closed form `log_px(x)` of the model is withdrawn,
    unless its class says `takes_missing = True`.

    The changed methods belong to a subclass of the module's class, so that a copy of the module has them too. `restore`
    undoes this.
    """
    kind: Any = type(model)
    of_model: dict[str, Any] = {"model": _observing(kind.model)}
    if offers(model, ClosedForm) and not takes_missing(model):
        of_model["log_px"] = None
    _change(model, "model", of_model)
    if not takes_missing(guide):
        names = ["guide", *(["encode"] if offers(guide, Amortized) else [])]
        _change(guide, "guide", {name: _zero_filled(getattr(type(guide), name)) for name in names})


def restore(module: Any) -> None:
    """Undo what `observe` has done to a module."""
    while isinstance(module, nn.Module) and _OBSERVES in vars(type(module)):
        module.__class__ = type(module).__mro__[1]


def observes_pixels(module: object) -> bool:
    """True for a module that `observe` has changed."""
    return any(_OBSERVES in vars(kind) for kind in type(module).__mro__)


def takes_missing(module: object) -> bool:
    """True for a guide whose methods take images with missing pixels, and for a model whose `log_px(x)` does."""
    return offers(module, TakesMissing) and module.takes_missing


def _change(module: nn.Module, role: str, methods: dict[str, Any]) -> None:
    """Give a module a subclass of its class with other methods; nothing if that was done before, because a second
    handler would see no NaN.

    :param role: `model` or `guide`; one module may be both.
    """
    kind = type(module)
    if any(vars(each).get(_OBSERVES) == role for each in kind.__mro__):
        return
    make: Any = type(kind)
    module.__class__ = make(kind.__name__, (kind,), {**methods, "__module__": kind.__module__, _OBSERVES: role})


def _observing(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method `model` of a class in `ObservedPixels`."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs.get("x")
        if not isinstance(x, Tensor):
            return method(self, *args, **kwargs)
        with ObservedPixels() as handler:
            result = method(self, *args, **kwargs)
        if is_validation_enabled() and int(sum(handler.missing)) != int(is_missing(x).sum()):
            raise BadInput(
                f"{type(self).__name__} observes {int(sum(handler.missing))} missing pixels (NaN) of "
                f"{int(is_missing(x).sum())} in x: with missing pixels, observe the images as they are, once: obs=x"
            )
        if is_validation_enabled() and any_missing(x):
            _check_apart(method, self, x, args, kwargs)
        return result

    return call


def _check_apart(method: Callable[..., Any], model: Any, x: Tensor, args: Any, kwargs: Any) -> None:
    """Raise `BadInput` if densities of observed pixels change with the values of missing ones, at the same z."""
    missing, densities = is_missing(x), []
    for value in (0.0, 1.0):
        whole = torch.where(missing, value, x)
        with forked_rng(x), torch.no_grad(), poutine.block(), _Densities(~missing) as kept:
            seed_torch(0)
            if args:
                method(model, whole, *args[1:], **kwargs)
            else:
                method(model, **kwargs | {"x": whole})
        densities.append(kept.found)
    if not all(alike(one, two) for one, two in zip(*densities, strict=True)):
        raise BadInput(
            f"{type(model).__name__} computes the density of observed pixels from missing ones: with missing pixels, "
            "p(x | z) must be of pixels that are independent given z, and p(z) must not depend on x"
        )


def _zero_filled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a guide's class so that missing pixels are 0."""

    @functools.wraps(method)
    def call(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return method(self, torch.where(is_missing(x), 0.0, x), *args, **kwargs)

    return call
