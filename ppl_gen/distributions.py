"""Distributions of binary vectors that are cheap to evaluate."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints


class BernoulliVector(dist.TorchDistribution):
    """Independent Bernoulli pixels as one vector: `dist.Bernoulli(logits=logits).to_event(1)`, with less to do.

    log p(x) = sum_d [x_d l_d - softplus(l_d)], pixel by pixel, so that logits of any size cancel before the sum.
    `expand` is a view, so that a plate costs nothing. Values in (0, 1) are accepted, since course notes use grey
    values as targets; what results is a cross-entropy and no log-probability.

    :param logits: log-odds, [..., pixels].
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "BernoulliVector":
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        return type(self)(self.logits.expand(batch_shape + self.event_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return torch.bernoulli(self.mean.expand(self._extended_shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value) in nats, [...], for value [..., pixels]."""
        # Above the threshold softplus(l) is taken as l: beyond 40 that is exact in float64 too.
        softplus = F.softplus(self.logits, threshold=40)
        if torch.broadcast_shapes(value.shape, self.logits.shape) == softplus.shape:
            return softplus.addcmul_(value, self.logits, value=-1).sum(-1).neg()  # without another large array
        return torch.addcmul(softplus, value, self.logits, value=-1).sum(-1).neg()
