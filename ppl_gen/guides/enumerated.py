"""The empty guide, for a model whose latent sites are summed out."""

from torch import Tensor, nn


class Enumerated(nn.Module):
    """q(z | x) = p(z | x), by enumeration of every z in the model. This guide samples nothing.

    Every latent site of the model must have finite support and be marked `infer={"enumerate": "parallel"}`.

    >>> import pyro, torch
    >>> list(pyro.poutine.trace(Enumerated().guide).get_trace(torch.rand(3, 64)).nodes)
    ['_INPUT', '_RETURN']
    """

    def guide(self, x: Tensor) -> None:
        """Leave all latent sites to the model."""
