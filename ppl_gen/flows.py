"""Invertible transforms for guides and priors: Zuko's and Pyro's, which remember what they have just computed, so that
a sample and its density take one pass together."""

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


class Flowing(dist.TransformedDistribution):
    """Pyro's, but for `sample`, which computes gradients and cuts them at the sample: torch's own would have the
    transforms remember a base sample without any, and the density of z would then have none of theirs."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(torch.Size(sample_shape)).detach()


class _Remembering(zuko.transforms.AutoregressiveTransform):
    """Zuko's, with the log-determinant of the last call kept beside its input and output."""

    def __init__(self, meta: Any, passes: int):
        super().__init__(meta, passes, cache_size=1)
        self._last: tuple[Any, ...] = (None, None, None)

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.call_and_ladj(x)
        self._last = (x, y, log_det)
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last_x, last_y, log_det = self._last
        return log_det if x is last_x and y is last_y else super().log_abs_det_jacobian(x, y)


class _Spline(zuko.transforms.MonotonicRQSTransform):
    """Zuko's, but that what is to sum to one is divided by its sum: the parameters are bounded, and a softmax over a
    few bins took half the time of the flow."""

    def __init__(self, widths: Tensor, heights: Tensor, derivatives: Tensor):
        Transform.__init__(self)
        bound, least = 5.0, math.log(1e-3)  # Zuko's defaults
        self.horizontal, self.vertical = (bound * (2 * _knots(each, least) - 1) for each in (widths, heights))
        slopes = derivatives / (1 + (derivatives / least).abs())
        self.derivatives = F.pad(slopes, (1, 1)).exp()


def _knots(sizes: Tensor, least: float) -> Tensor:
    """0 … 1 [..., bins + 1] from the unconstrained logarithms of what lies between."""
    sizes = (sizes / (1 + (2 * sizes / least).abs())).exp()
    passed = sizes.cumsum(-1)
    return F.pad(passed / passed[..., -1:], (1, 0))


class Autoregressive(nn.Module):
    """y_i = f(x_i; x_1 … x_{i-1}, h): one pass from x to y, `passes` passes back. f is affine (Kingma et al. 2016), or
    a monotonic rational-quadratic spline on [-5, 5] (Durkan et al. 2019).

    :param dim: size of x.
    :param num_features: size of h; 0 for none.
    :param reverse: whether the last unit comes first.
    :param passes: `dim` for a full dependence; 2 for one half given the other.
    :param num_bins: of the spline; None: affine.
    :param hidden_dims: units of the hidden layers of the network that makes f.
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
        if not isinstance(self.lazy, zuko.flows.MaskedAutoregressiveTransform):  # of one unit
            return self.lazy(features)
        return _Remembering(partial(self.lazy.meta, features), self.lazy.passes)


class PlanarTransform(ConditionedPlanar):
    """Pyro's y = x + u tanh(w x + b), with an inverse: w x is the root of a monotonic function of one variable.

    :param parameters: b, u and w in one vector [..., 2 dim + 1].
    """

    def __init__(self, parameters: Tensor):
        dim = (parameters.shape[-1] - 1) // 2
        super().__init__(parameters.split([1, dim, dim], -1))

    def _inverse(self, y: Tensor) -> Tensor:
        b, u, w = self._params
        u = self.u_hat(u, w)
        slope, target = (w * u).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
        # |tanh| < 1 brackets the root.
        a = zuko.utils.bisection(
            lambda a: a + slope * (a + b).tanh(),
            target,
            target - slope.abs() - 1,
            target + slope.abs() + 1,
            n=60,
            phi=[each for each in (slope, b) if each.requires_grad],
        )
        x = y - u * (a + b).tanh()
        self._call(x)  # Pyro's takes the log-determinant of the last call for that of this pair
        return x
