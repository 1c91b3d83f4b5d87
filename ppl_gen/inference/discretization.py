"""The sum over points of a continuous z, for a guide that gives them (`ppl_gen.core.contracts.Discretizes`).

The pair's model is p(x, z) with its continuous z, so that whatever samples or evaluates it finds the model as it is.
Only the objective replaces the distribution of z by one with finite support, the points with their masses. The sum
over its states is that of `ppl_gen.inference.enumeration`:

    log p(x) ~ log sum_g exp(log_mass_g + log p(x | z_g)).
"""

from dataclasses import replace
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppl_gen.core.contracts import Discretizes
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.enumeration import StateSum, TraceEnum, sum_over_states
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import block_size
from ppl_gen.inference.tracing import PyroFunction, trace_of

Nodes = tuple[Tensor, Tensor]
"""Points z [points, ...] and the log of their masses [points]."""

TOLERANCE = 0.1
"""Nats; a grid whose mean log p(x) is further from that of a grid of half the step is called too coarse."""
_IMAGES = 500  # on which the two grids are compared
_FEW = 2**12
_POINTS = 2**13  # in memory at a time, without gradients
_SAME = 1e-4  # relative and absolute, of log p(z) of different images


class PointMasses(dist.TorchDistribution):
    """A distribution of finite support: masses at points. They need not add up to 1.

    >>> masses = PointMasses(torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75]).log())
    >>> masses.log_prob(masses.enumerate_support()).exp()
    tensor([0.2500, 0.7500])

    :param values: points [points, ...].
    :param log_mass: log of their masses [points].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_enumerate_support = True

    def __init__(self, values: Tensor, log_mass: Tensor, batch_shape: Any = ()):
        self.values, self.log_mass = values, log_mass
        super().__init__(torch.Size(batch_shape), values.shape[1:], validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PointMasses":
        return PointMasses(self.values, self.log_mass, batch_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The points, [points, ...]."""
        values = self.values.reshape(-1, *(1 for _ in self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, *self.event_shape) if expand else values

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))[: -self.event_dim or None]
        chosen = torch.distributions.Categorical(logits=self.log_mass).sample(shape)
        return self.values[chosen]

    def log_prob(self, value: Tensor) -> Tensor:
        """The log of the mass at a value; -inf where there is no point."""
        count, dims = len(self.values), value.dim() - self.event_dim
        if dims > len(self.batch_shape) and value.numel() == self.values.numel():  # all points, as they were listed
            result = self.log_mass.reshape(count, *(1,) * (dims - 1))
        else:
            same = self.values.reshape(count, *(1,) * dims, *self.event_shape) == value
            same = same.flatten(1 + dims).all(-1) if self.event_dim else same
            result = torch.where(same, self.log_mass.reshape(count, *(1,) * dims), -torch.inf).logsumexp(0)
        return result.expand(broadcast_shape(result.shape, self.batch_shape))


class _AtNodes(Messenger):
    """Handler that replaces the distribution of a latent site by masses at points."""

    def __init__(self, site: str, nodes: Nodes):
        super().__init__()
        self.site, self.nodes = site, nodes

    def _pyro_sample(self, message: Any) -> None:
        if message["name"] == self.site and not message["is_observed"]:
            message["fn"] = PointMasses(*self.nodes, message["fn"].batch_shape)


def at_nodes(model: PyroFunction, site: str, nodes: Nodes) -> PyroFunction:
    """A model whose latent site has masses at points instead of its own distribution."""
    function: PyroFunction = _AtNodes(site, nodes)(model)
    return function


def guide_of(pair: Pair) -> Discretizes:
    """The guide of a pair whose guide gives points of z."""
    guide: Any = pair.guide_module
    return guide


def discretized(pair: Pair, nodes: Nodes | None = None) -> Pair:
    """The pair with masses at points in the place of p(z), to be enumerated. Another pair is returned as it is.

    :param nodes: points and masses; by default those of the guide.
    """
    if not pair.discretized:
        return pair
    nodes = guide_of(pair).nodes() if nodes is None else nodes
    return replace(pair, model=at_nodes(pair.model, pair.latent[0], nodes), num_states=len(nodes[1]))


def few_nodes(pair: Pair) -> tuple[Nodes, int]:
    """Up to 4,096 of the guide's points, to try the model on, and the number of all."""
    z, log_mass = guide_of(pair).nodes()
    # Copies: a view would keep all points in memory.
    return (z[:_FEW].clone(), log_mass[:_FEW].clone()), len(log_mass)


class TraceNodes(TraceEnum):
    """-log sum_g exp(log_mass_g + log p(x | z_g)), summed over the images, with new points at every call.

    :param x: a few images to try the model on, with their `args`.
    :raises BadInput: for a pair whose p(z) differs between images, or has masks or plates, and for points that are not
        finite or do not have the shape of z.
    """

    def __init__(self, pair: Pair, x: Tensor, *args: Any, **kwargs: Any):
        with evaluating(pair.guide_module), torch.no_grad():
            nodes, _ = few_nodes(pair)
        _check(pair, nodes, Batch(x, args, kwargs))
        super().__init__(discretized(pair, nodes), x, *args, **kwargs)
        self.site, self.nodes = pair.latent[0], guide_of(pair).nodes

    def differentiable_loss(self, model: PyroFunction, guide: PyroFunction, *args: Any, **kwargs: Any) -> Tensor:
        return super().differentiable_loss(at_nodes(model, self.site, self.nodes()), guide, *args, **kwargs)


def _check(pair: Pair, nodes: Nodes, batch: Batch) -> None:
    """Refuse a pair whose sum over points is not log p(x)."""
    z, log_mass = nodes
    name, shape = pair.latent[0], pair.event_shapes[pair.latent[0]]
    if z.shape != (*log_mass.shape, *shape):
        raise BadInput(
            f"{pair.guide_name}: nodes() must return points [points, {', '.join(map(str, shape))}] of '{name}' and "
            f"their log masses [points], but returns {tuple(z.shape)} and {tuple(log_mass.shape)}"
        )
    if not z.isfinite().all() or not (log_mass < torch.inf).all():
        raise BadInput(
            f"{pair.guide_name}: nodes() returns points or masses that are not finite; a grid needs a prior with a "
            "standard deviation"
        )
    with forked_rng(batch.x):
        site = trace_of(pair.model, batch).nodes[name]
    if pair.masked or len(site["cond_indep_stack"]) != 1:
        raise BadInput(
            f"{pair.guide_name}: '{name}' of {pair.model_name} has a mask or a plate of its own; use to_event"
        )
    few = z[:: -(-len(z) // 5)]
    each = site["fn"].log_prob(few.unsqueeze(1))
    if not torch.allclose(each, each[:, :1].expand_as(each), rtol=_SAME, atol=_SAME, equal_nan=True):
        raise BadInput(f"{pair.guide_name}: p(z) of {pair.model_name} differs between images, but there is one grid")


# Between epochs ----------------------------------------------------------------------------------------------------


def grid_terms(pair: Pair, x: Tensor, *args: Any) -> dict[str, float]:
    """Means over images, in nats, for a line of `metrics.jsonl`: `elbo`, the log of the sum over the guide's points,
    which are not shifted; and `grid_bias`, its difference on the first 500 images to the sum over twice as many points
    for each unit. Modules must be in eval mode."""
    guide, few = guide_of(pair), Batch(x, args, {}).blocks(min(_IMAGES, len(x)))
    coarse = log_px_at(pair, guide.nodes(), Batch(x, args, {}))
    fine = log_px_at(pair, guide.nodes(finer=2), next(few)[1])
    return {"elbo": float(coarse.mean()), "grid_bias": float((coarse[: len(fine)] - fine).mean())}


def log_px_at(pair: Pair, nodes: Nodes, batch: Batch) -> Tensor:
    """The log of the sum over points [images], in float64, for as many points and images at a time as memory allows.
    Modules must be in eval mode, without gradients.

    :param pair: a pair whose guide gives points.
    :param nodes: the points, those of the guide or others, and the log of their masses.
    """
    parts: list[Tensor] = []
    for z, log_mass in zip(*(each.split(_POINTS) for each in nodes), strict=True):
        summed = discretized(pair, (z, log_mass))
        total: StateSum = sum_over_states(summed, batch.x, *batch.args)
        blocks = batch.blocks(block_size(summed))
        parts.append(torch.cat([total(summed.model, part.x, *part.args) for _, part in blocks]).double())
    return torch.stack(parts).logsumexp(0)
