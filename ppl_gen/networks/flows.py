"""Invertible transforms for guides and priors, made of Zuko's and Pyro's.

A transform keeps the input, the output and the log-determinant of its last call. A sample and the density of the same
sample then take one pass together.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
import zuko
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor, nn
from torch.distributions import Transform


class FlowDistribution(dist.TransformedDistribution):
    """Pyro's `TransformedDistribution` with another `sample`, which computes gradients and cuts them at the sample.

    The transforms keep what they compute while they sample. Torch's `sample` computes without gradients, and the
    density of that sample would then lack the gradients with respect to the transforms.

    >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> transform = Autoregressive(2, 0, reverse=False, passes=2, num_bins=None, hidden_dims=[8])
    >>> flow = FlowDistribution(base, [transform()])
    >>> z = flow.sample((3,))
    >>> z.requires_grad, flow.log_prob(z).requires_grad
    (False, True)
    """

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(torch.Size(sample_shape)).detach()


class _CachedAutoregressive(zuko.transforms.AutoregressiveTransform):
    """Zuko's `AutoregressiveTransform`, which keeps the log-determinant of the last call beside input and output. The
    network of the transform would otherwise run twice, for the sample and for its density."""

    def __init__(self, meta: Any, passes: int):
        super().__init__(meta, passes, cache_size=1)
        self._last: tuple[Any, ...] = (None, None, None)

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.call_and_ladj(x)
        self._last = (x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        """x with f(x) = y by passes x <- f^-1(y; x), the Jacobi iteration of Song et al. (2021, section 3.1). Each pass
        sets at least one more unit, but most converge together: of 50 units of a trained flow, after 7 or 8 passes.
        When a pass changes nothing, no later one does. Gradients follow the values, and get as many passes again."""
        x, left = torch.zeros_like(y), self.passes
        settled = False
        while left:
            before, x = x, self.meta(x).inv(y)
            left -= 1
            if not settled and x.equal(before):
                settled, left = True, min(left, self.passes - left) if x.requires_grad else 0
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last_x, last_y, log_det = self._last
        return log_det if x is last_x and y is last_y else super().log_abs_det_jacobian(x, y)


class _Spline(zuko.transforms.MonotonicRQSTransform):
    """Zuko's monotonic rational-quadratic spline (Durkan et al. 2019), with widths and heights that are divided by
    their sum. Zuko's softmax over a few bins took half the time of the flow. Its protection from overflow is not needed
    here, because the exponents are bounded."""

    def __init__(self, widths: Tensor, heights: Tensor, derivatives: Tensor):
        Transform.__init__(self)
        bound, least = 5.0, math.log(1e-3)  # Zuko's defaults
        self.horizontal, self.vertical = (bound * (2 * _knots(each, least) - 1) for each in (widths, heights))
        # A soft bound, as in Zuko: |slopes| < -log 1e-3, so that every derivative is between 1e-3 and 1e3. Outside of
        # [-5, 5] the spline continues as the identity, with the derivatives exp(0) at both ends.
        slopes = derivatives / (1 + (derivatives / least).abs())
        self.derivatives = F.pad(slopes, (1, 1)).exp()


def _knots(sizes: Tensor, least: float) -> Tensor:
    """Knots from 0 to 1 [..., bins + 1], from unconstrained logarithms [..., bins] of the distances between them."""
    sizes = (sizes / (1 + (2 * sizes / least).abs())).exp()
    passed = sizes.cumsum(-1)
    return F.pad(passed / passed[..., -1:], (1, 0))


class Autoregressive(nn.Module):
    """y_i = f(x_i; x_1 … x_{i-1}, h), with f increasing in x_i. f is affine (Kingma et al. 2016, section 3), or a
    monotonic rational-quadratic spline on [-5, 5] (Durkan et al. 2019). One pass of the network leads from x to y, and
    `passes` passes lead back.

    >>> transform = Autoregressive(3, 4, reverse=False, passes=3, num_bins=8, hidden_dims=[16])(torch.rand(5, 4))
    >>> x = torch.randn(5, 3)
    >>> y = transform(x)
    >>> y.shape, transform.log_abs_det_jacobian(x, y).shape
    (torch.Size([5, 3]), torch.Size([5]))

    :param dim: size of x.
    :param num_features: size of h; 0 without h.
    :param reverse: put the last unit first in the order.
    :param passes: `dim`: every unit depends on all units before it; 2: one half depends on the other, a coupling.
    :param num_bins: bins of the spline; None for an affine f.
    :param hidden_dims: units of each hidden layer of the network that makes f.
    """

    def __init__(
        self,
        dim: int,
        num_features: int,
        *,
        reverse: bool,
        passes: int,
        num_bins: int | None,
        hidden_dims: Sequence[int],
    ):
        super().__init__()
        order = torch.arange(dim)
        spline: dict[str, Any] = {}
        if num_bins is not None:
            spline["univariate"] = _Spline
            spline["shapes"] = [(num_bins,), (num_bins,), (num_bins - 1,)]
        self.lazy = zuko.flows.MaskedAutoregressiveTransform(
            dim, num_features, passes, order.flip(0) if reverse else order, hidden_features=tuple(hidden_dims), **spline
        )

    def forward(self, features: Tensor | None = None) -> Transform:
        """The transform given h [..., num_features]."""
        if not isinstance(self.lazy, zuko.flows.MaskedAutoregressiveTransform):
            return self.lazy(features)  # Zuko makes an elementwise transform of a single unit
        return _CachedAutoregressive(partial(self.lazy.meta, features), self.lazy.passes)


class PlanarTransform(ConditionedPlanar):
    """Pyro's y = x + u tanh(w . x + b) (Rezende and Mohamed 2015, equation 10) with an inverse. With a = w . x,

        w . y = a + (w . u) tanh(a + b),

    whose right side increases with a, because Pyro chooses u with w . u > -1. The root a is found by bisection.

    >>> transform = PlanarTransform(torch.randn(5, 7))
    >>> x = torch.randn(5, 3)
    >>> torch.allclose(transform.inv(transform(x).clone()), x, atol=1e-4)
    True

    :param parameters: b, u and w in one vector [..., 2 dim + 1].
    """

    def __init__(self, parameters: Tensor):
        dim = (parameters.shape[-1] - 1) // 2
        super().__init__(parameters.split([1, dim, dim], -1))

    def _inverse(self, y: Tensor) -> Tensor:
        b, u, w = self._params
        u = self.u_hat(u, w)
        slope, target = (w * u).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
        # |tanh| < 1 brackets the root. `phi`: the parameters for which Zuko differentiates the root implicitly.
        a = zuko.utils.bisection(
            lambda a: a + slope * (a + b).tanh(),
            target,
            target - slope.abs() - 1,
            target + slope.abs() + 1,
            n=60,
            phi=[each for each in (slope, b) if each.requires_grad],
        )
        x = y - u * (a + b).tanh()
        self._call(x)  # Pyro's log_abs_det_jacobian returns that of the last call, whatever its arguments are
        return x
