"""No guide: the model's latent sites are summed out."""

from torch import Tensor, nn


class Enumerated(nn.Module):
    """q(z | x) = p(z | x), by enumeration of every z in the model: this guide samples nothing.

    Every latent site of the model must have finite support and be marked `infer={"enumerate": "parallel"}`.
    """

    def guide(self, x: Tensor) -> None:
        """Leaves all latent sites to the model."""
