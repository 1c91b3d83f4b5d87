"""Settings of the estimators of log p(x) that have their own. Importing them imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ppl_gen.core.errors import require, require_choices, require_numbers

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 128  # samples of the first step of the pilot of `Settling`


@dataclass(frozen=True)
class Settling:
    """Settings of `--num-samples auto`."""

    tolerance: float = 0.1
    """Error of an image's log p(x), in nats, that at most 5 % of the settled images may exceed."""
    most_samples: int = 2**14
    """Largest number of samples for an image."""

    def __post_init__(self) -> None:
        require_numbers(self, "settling.", most_samples=FEWEST)
        require(self.tolerance > 0, "settling.tolerance", self.tolerance, "must be above 0")

    @property
    def steps(self) -> list[int]:
        """Numbers of samples of the pilot: 128, 256, … up to the most samples."""
        return [FEWEST << step for step in range((self.most_samples // FEWEST).bit_length())]


@dataclass(frozen=True)
class Quadrature:
    """Settings of quadrature."""

    tolerance: float = 0.01
    """Largest change of an image's log p(x), in nats, when the step is halved for the last time. The error is far
    smaller if the decoder is smooth."""

    def __post_init__(self) -> None:
        require_numbers(self, "quadrature.")
        require(self.tolerance > 0, "quadrature.tolerance", self.tolerance, "must be above 0")


@dataclass(frozen=True)
class Annealing:
    """Settings of annealing: temperatures and chains."""

    num_temperatures: int = 1000
    """T, the number of temperatures from the start to p(x, z). With more of them, log p(x) is less biased."""
    num_chains: int = 16
    """Chains per image."""
    leapfrog_steps: int = 10
    """Leapfrog steps of Hamiltonian Monte Carlo at each temperature; each costs a gradient of log p(x|z)."""
    schedule: Literal["adaptive", "sigmoid", "linear"] = "adaptive"
    """Schedule of the temperatures. sigmoid: beta_t goes as 1 / (1 + exp(-4 (2t/T - 1))), finer at both ends (Grosse et
    al. 2015). adaptive: chosen for each image so that every temperature adds the same standard deviation to log w,
    which is estimated by the chains that adapt the step sizes (Gelman and Meng 1998, section 4)."""
    start: Literal["prior", "guide"] = "prior"
    """Distribution that the chains start from."""
    acceptance: float = 0.65
    """Target share of accepted proposals. Step sizes are adapted to it by separate chains."""

    def __post_init__(self) -> None:
        require_choices(self, "annealed.")
        require_numbers(self, "annealed.", num_temperatures=1, num_chains=1, leapfrog_steps=1)
        require(0 < self.acceptance < 1, "annealed.acceptance", self.acceptance, "must be between 0 and 1")

    @property
    def groups(self) -> list[int]:
        """Numbers of chains that run together. An image's chains run in several groups to limit memory."""
        from ppl_gen.inference.chunks import CHUNK_SIZE

        return [min(CHUNK_SIZE, self.num_chains - begun) for begun in range(0, self.num_chains, CHUNK_SIZE)]

    @property
    def work(self) -> int:
        """Temperatures that an image passes, including adaptation; the units of `progress`."""
        return num_adaptation(self.num_temperatures) + self.num_temperatures * len(self.groups)

    @property
    def bidirectional_work(self) -> int:
        """Temperatures that an image passes for bidirectional bounds."""
        return self.work + self.num_temperatures * len(self.groups)

    def betas(self, count: int | None = None) -> "Tensor":
        """beta_0 … beta_T in float64, before adaptation.

        :param count: T; by default the number of temperatures.
        """
        import torch

        position = torch.linspace(0, 1, (count or self.num_temperatures) + 1, dtype=torch.float64)
        if self.schedule == "linear":
            return position
        rising = (4 * (2 * position - 1)).sigmoid()
        return (rising - rising[0]) / (rising[-1] - rising[0])


def num_adaptation(num_temperatures: int) -> int:
    """Number of temperatures of the chains that adapt step sizes."""
    return max(50, num_temperatures // 4)
