"""Binary vectors whose units depend on each other: a product of conditional probabilities, one unit after the other."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_gen.networks.distributions import BernoulliVector, expanded

_BLOCK = 16  # units; those before a block are multiplied once for the whole block


class AutoregressiveBernoulli(dist.TorchDistribution):
    """q(z) = prod_m Bernoulli(z_m; log-odds h_m + sum_{j < m} U_mj z_j): a fully visible belief net (Frey et al.
    1996), as in the layers of Gregor et al. (2014) and in the guides of Bornschein and Bengio (2015).

    The log-probability of given values takes one matrix product. A draw takes one unit after the other. With U = 0
    this is `BernoulliVector(h)`.

    >>> q = AutoregressiveBernoulli(torch.zeros(2), torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
    >>> q.log_prob(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).exp()  # the second unit follows the first
    tensor([0.2500, 0.4999])

    :param logits: h [..., units].
    :param between: U [units, units]. Only the entries below the diagonal are used.
    """

    arg_constraints: ClassVar = {"between": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(self, logits: Tensor, between: Tensor, validate_args: bool | None = None):
        units = logits.shape[-1]
        if between.shape != (units, units):
            raise ValueError(f"between [{units}, {units}] expected, not {list(between.shape)}")
        self.alone, self.between = logits, between
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AutoregressiveBernoulli":
        return expanded(self, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            units = shape[-1]
            # All are [units, draws]: the numbers of a unit lie together.
            alone = self.alone.expand(shape).reshape(-1, units).T.contiguous()
            noise = torch.rand(alone.shape, dtype=alone.dtype, device=alone.device).logit_()
            z = torch.empty_like(noise)
            for first in range(0, units, _BLOCK):
                block = slice(first, min(first + _BLOCK, units))
                logits = alone[block] + self.between[block, :first] @ z[:first]
                for m in range(first, block.stop):
                    inside = self.between[m, first:m] @ z[first:m]
                    torch.lt(noise[m], logits[m - first] + inside, out=z[m])
            return z.T.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(value) in nats, [...], for value [..., units]."""
        if self._validate_args:
            self._validate_sample(value)
        before = value.to(self.alone.dtype) @ self.between.tril(-1).T
        return BernoulliVector(self.alone + before, validate_args=False).log_prob(value)
