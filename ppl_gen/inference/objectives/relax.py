"""The score function with a relaxed draw and a network as control variate."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_gen.core.contracts import ELBOGradient
from ppl_gen.core.errors import require
from ppl_gen.inference.densities import units_of
from ppl_gen.inference.objectives.rebar import REBAR
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice

__all__ = ["RELAX"]


class RELAX(REBAR):
    """The ELBO with the RELAX gradient (Grathwohl et al. 2018, equations 9 and 10): as `rebar`, with the control
    variate eta f(s) + r(x, s), where r is a network for each site. It is trained to lower the variance, as eta is, and
    begins at 0. It is unbiased. The model must be differentiable with respect to z.

    :param num_particles: K, the number of samples over which it is averaged.
    :param temperature: Temperature of the relaxation.
    :param hidden_dim: Hidden units of each network.
    """

    elbo_gradient: ClassVar[ELBOGradient] = "unbiased"

    def __init__(self, *, num_particles: int = 1, temperature: float = 0.5, hidden_dim: int = 50):
        require(hidden_dim >= 1, "objective.hidden_dim", hidden_dim, "must be at least 1")
        super().__init__(num_particles=num_particles, temperature=temperature)
        self.hidden_dim = hidden_dim
        self.networks = nn.ModuleList()

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        """Check the pair, and make a network for each site, whose size is that of the site and an image."""
        super().check(pair, x, *args)
        if not len(self.networks):
            with torch.no_grad():
                latents = pair.terms(x, *args).latents
            sizes = [latents[name].shape[-1] for name in pair.latent]
            self.networks.extend(_Network(x[0].numel(), size, self.hidden_dim) for size in sizes)
            self.to(x.device, x.dtype if x.is_floating_point() else None)

    def added(self, pair: Pair, x: Tensor, choice: Choice, value: Tensor) -> Tensor:
        shape = (self.num_particles, len(x))
        units = units_of({"fn": choice.fn, "value": value}, shape, pair.sample_dim, pair.plate.dim)
        network = self.networks[pair.latent.index(choice.name)]
        control: Tensor = network(x.flatten(1).nan_to_num().to(units.dtype), units)
        return control


class _Network(nn.Module):
    """A function of an image [images, pixels] and a relaxed value [samples, images, units], in nats
    [samples, images]."""

    def __init__(self, pixels: int, units: int, hidden_dim: int):
        super().__init__()
        self.of_x, self.of_z = nn.Linear(pixels, hidden_dim), nn.Linear(units, hidden_dim, bias=False)
        self.last = nn.Linear(hidden_dim, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, units: Tensor) -> Tensor:
        hidden = (self.of_x(x) + self.of_z(units)).tanh()
        result: Tensor = self.last(hidden).squeeze(-1)
        return result
