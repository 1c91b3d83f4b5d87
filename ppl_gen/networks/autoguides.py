"""Pyro's AutoNormal as a guide that can be run on any of its images."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.distributions import biject_to

from ppl_gen.core.errors import BadInput


def by_rows(auto: AutoNormal) -> Callable[..., None]:
    """The guide of an AutoNormal for the images at some rows: the same q, written as one distribution for each latent
    site. (AutoNormal itself samples an auxiliary site and a Delta, which has no density at another z.)

    >>> import torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> auto = AutoNormal(model)
    >>> _ = auto(torch.zeros(5))  # sets up parameters of five images
    >>> trace = pyro.poutine.trace(by_rows(auto)).get_trace(torch.zeros(2), index=torch.tensor([4, 0]))
    >>> trace.nodes["z"]["fn"]
    Normal(loc: torch.Size([2]), scale: torch.Size([2]))

    :raises BadInput: when called, for one that has not been set up, and for latents outside of a plate of images.
    """

    def guide(x: Any, *args: Any, index: Tensor, **kwargs: Any) -> None:
        """q(z | x) of the images with row numbers `index`."""
        images, sites = _plate_of_images(auto), list(auto.prototype_trace.iter_stochastic_nodes())
        frames = {frame.name: frame for _, site in sites for frame in site["cond_indep_stack"] if frame.vectorized}
        sizes = {name: len(index) if name == images.name else frame.size for name, frame in frames.items()}
        plates = {name: pyro.plate(name, sizes[name], dim=frame.dim) for name, frame in frames.items()}
        for name, site in sites:
            dim = images.dim - auto._event_dims[name]
            loc, scale = (each.index_select(each.dim() + dim, index) for each in auto._get_loc_and_scale(name))
            q: Any = dist.Normal(loc, scale).to_event(auto._event_dims[name])
            transform = biject_to(site["fn"].support)
            if not _is_identity(transform):
                q = dist.TransformedDistribution(q, [transform])
            with ExitStack() as around:
                for frame in site["cond_indep_stack"]:
                    if frame.vectorized:
                        around.enter_context(plates[frame.name])
                pyro.sample(name, q)

    return guide


def check_rows(guide: Any, count: int, index: Any = None) -> None:
    """Raise `BadInput` for an AutoNormal that was set up with another number of images than `count`, or for row numbers
    that are not among its own.

    :param index: row numbers of the images; None if they are 0 … `count` - 1.
    """
    if not isinstance(guide, AutoNormal):
        return
    who, size = type(guide).__name__, _plate_of_images(guide).size
    if index is None and size != count:
        raise BadInput(
            f"{who} was set up with {size} images, but x has {count}: give the row numbers of these images among "
            "those by name, index=…"
        )
    if index is not None:
        whole = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64) and index.shape == (count,)
        if not whole or not bool(((index >= 0) & (index < size)).all()):
            raise BadInput(
                f"index: {who} has rows 0 … {size - 1}: give the row number of each of the {count} images, as whole "
                "numbers"
            )


def _plate_of_images(auto: AutoNormal) -> Any:
    """The plate around all sites."""
    who = type(auto).__name__
    if auto.prototype_trace is None:
        raise BadInput(f"{who} has no parameters yet: train it, or call it once with all images")
    sites = [site for site in auto.prototype_trace.nodes.values() if site["type"] == "sample" and "fn" in site]
    sites = [site for site in sites if type(site["fn"]).__name__ != "_Subsample"]
    stacks = [{frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized} for site in sites]
    shared = set.intersection(*map(set, stacks))
    if len(shared) != 1:
        raise BadInput(
            f"{who}: its sites share {len(shared)} plates instead of one over the images; leave latent sites outside "
            "of it to a guide of your own: pyro.poutine.block(model, hide=[…])"
        )
    return stacks[0][shared.pop()]


def _is_identity(transform: Any) -> bool:
    """True for the transform of an unbounded site."""
    return not getattr(getattr(transform, "base_transform", transform), "parts", [None])
