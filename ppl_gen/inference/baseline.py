"""A baseline of learning signals for the score function."""

import torch
from torch import Tensor, nn

from ppl_gen.core.errors import require
from ppl_gen.networks.nets import mlp


class ImageBaseline(nn.Module):
    """C(x) + c, what a learning signal is expected to be: a network C of the image, trained by least squares, and a
    running mean c of what is left (Mnih and Gregor 2014, section 2.3).

    :param hidden_dim: hidden units of the network.
    :param decay: decay of the running mean and variance at a step.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, *, hidden_dim: int = 100, decay: float = 0.8):
        require(hidden_dim >= 1, "objective.hidden_dim", hidden_dim, "must be at least 1")
        require(0 <= decay < 1, "objective.decay", decay, "must be at least 0 and below 1")
        super().__init__()
        self.hidden_dim, self.decay = hidden_dim, decay
        self.network: nn.Module | None = None
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))

    def make(self, x: Tensor) -> None:
        """Make the network, whose size is that of an image, unless there is one."""
        if self.network is None:
            self.network = mlp([x[0].numel(), self.hidden_dim, 1], "tanh")
            self.to(x.device, x.dtype if x.is_floating_point() else None)

    def error(self, x: Tensor, signal: Tensor) -> Tensor:
        """The signal [samples, images] minus C(x) + c. c is of earlier steps only, so that it does not depend on z."""
        assert self.network is not None
        images = x.flatten(1).nan_to_num().to(self.mean.dtype)
        # The signal is of the order of the number of pixels: see `ppl_gen.guides.bernoulli`.
        return signal - images.shape[1] * self.network(images).squeeze(-1) - self.mean

    def follow(self, error: Tensor) -> None:
        """Update the running mean and variance after a step of training."""
        if self.training:
            for kept, new in ((self.mean, error.mean() + self.mean), (self.variance, error.var(correction=0))):
                kept.mul_(self.decay).add_(new.detach(), alpha=1 - self.decay)
