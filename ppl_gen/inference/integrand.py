"""log p(x, z) of images as a function of z, for models of one latent site with `prior()` and `likelihood(z)`."""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity
from ppl_gen.core.errors import BadInput, as_bad_input
from ppl_gen.core.seeds import with_draws
from ppl_gen.inference.densities import ABSOLUTE, RELATIVE, alike
from ppl_gen.inference.modes import forked_rng
from ppl_gen.inference.reached import modules_of
from ppl_gen.inference.signatures import name_of
from ppl_gen.inference.state_memory import numbers_held
from ppl_gen.networks.observed import observed_log_prob
from ppl_gen.networks.supports import from_unbounded

_PRIOR_SAMPLES = 10_000
_MOST_SPREAD = 200  # of 10,000 samples: 6 for a normal distribution, 30 for Student's t of 3 degrees, thousands for 1
_CALLS = 16  # and as many values of z, to see noise
_NUMBERS = 2**24  # numbers of the decoder's output, or of a broadcast log-density, in memory at a time


def num_parameters(model: Any) -> int:
    """Number of a model's parameters, which is the number of multiplications of a dense decoder."""
    return sum(p.numel() for module in modules_of(model) for p in module.parameters(recurse=False))


def num_pixels(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def check_without_noise(model: HasDensity, z: Tensor, x: Tensor) -> None:
    """Raise `BadInput` if p(x | z) of the same z is another one at each call, as with dropout that is always on.
    Torch's generators are restored.

    :param z: some values [points, ...].
    :param x: an image.
    """

    def log_prob() -> Tensor:
        return observed_log_prob(model.likelihood(z), x.expand(len(z), *x.shape))

    with forked_rng(x), torch.no_grad():
        first, draws = with_draws(log_prob, x.is_cuda)
        if draws and not all(alike(first, log_prob()) for _ in range(_CALLS)):
            raise BadInput(
                f"{name_of(model)}: likelihood(z) draws random numbers, so that the same z has another density at each "
                "call; let it draw none"
            )


class Integrand:
    """log p(x, z) of images as a function of unbounded coordinates u of z, with log |dz / du|. If z may have any real
    values, u is z."""

    def __init__(self, model: HasDensity, x: Tensor):
        self.model, self.prior = model, model.prior()
        with as_bad_input(f"{name_of(model)}: prior() has no unbounded coordinates"):
            self.transform = from_unbounded(self.prior)
            drawn = self.coordinates(self.prior.sample((_PRIOR_SAMPLES,)))
        self.dtype = torch.promote_types(drawn.dtype, x.dtype) if x.is_floating_point() else drawn.dtype
        drawn = torch.where(drawn.isfinite(), drawn, math.nan)  # such as at the ends of an interval, by rounding
        self.units = drawn.shape[1]
        self.low, self.high = (drawn.nan_to_num(nan=sign * math.inf).mul(sign).amin(0).mul(sign) for sign in (1, -1))
        if not bool((self.low < self.high).all()):
            raise BadInput(f"{name_of(model)}: all samples of prior() are equal: it has no density")
        self._check_tails(drawn)
        self.together = self._broadcasts(drawn[:2].nan_to_num(), x[:3])
        check_without_noise(model, self.values(drawn[:_CALLS].nan_to_num()), x[0])
        self.numbers = numbers_held(self._likelihood(drawn[:1].nan_to_num()), 1) if self.together else num_pixels(x)

    def _check_tails(self, drawn: Tensor) -> None:
        """Raise `BadInput` for a prior whose samples spread so far that the cells of a grid over them are wider than
        what is to be seen."""
        kept = drawn[drawn.isfinite().all(1)]
        middle = kept.quantile(0.75, 0) - kept.quantile(0.25, 0)
        if bool((self.high - self.low > _MOST_SPREAD * middle).any()):
            raise BadInput(
                f"{name_of(self.model)}: prior() has tails too heavy for a grid: its samples spread over more than "
                f"{_MOST_SPREAD} times the range of their middle half"
            )

    def coordinates(self, z: Tensor) -> Tensor:
        """u [points, units] of z [points, ...]."""
        return self.transform.inv(z).reshape(len(z), -1)

    def values(self, u: Tensor) -> Tensor:
        """z [points, ...] of u [points, units]."""
        return self.transform(u.reshape(-1, *self.transform.inverse_shape(self.prior.event_shape)))

    def __call__(self, u: Tensor, x: Tensor) -> Tensor:
        """log p(x, z) + log |dz / du| in nats, [points, images]; -inf where p(z) is 0.

        :param u: [points, units].
        :param x: images [images, ...].
        """
        if self.together:
            per_point = max(num_pixels(x), len(x) * self.numbers)
        else:
            per_point = num_pixels(x)
        with as_bad_input(f"{name_of(self.model)}: log p(x, z) on a grid fails"):
            blocks = u.to(self.low.dtype).split(max(1, _NUMBERS // per_point))
            found = [self._block(block, x).to(self.dtype) for block in blocks]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _block(self, u: Tensor, x: Tensor) -> Tensor:
        z = self.values(u)
        log_prior = self.prior.log_prob(z).reshape(len(u))
        inner = u.reshape(-1, *self.transform.inverse_shape(self.prior.event_shape))
        log_prior = log_prior + self.transform.log_abs_det_jacobian(inner, z).reshape(len(u), -1).sum(1)
        # z rounded to an end of the support has a density that may be infinite: `Alone` sees what is lost.
        log_prior = torch.where(self.coordinates(z).isfinite().all(1), log_prior, -math.inf)
        total = self._log_likelihood(u, z, x) + log_prior.unsqueeze(1)
        if bool(total.isnan().any()):  # p(x | z) may be NaN where p(z) is 0
            possible = (log_prior > -math.inf).unsqueeze(1) & total.isnan()
            if bool(possible.any()):
                raise BadInput("log p(x, z) is NaN at a grid point")
            total = total.nan_to_num(nan=-math.inf)
        return total

    def _log_likelihood(self, u: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """log p(x | z) [points, images]."""
        if self.together:
            return observed_log_prob(self._likelihood(u), x)
        alone = self.model.likelihood(z)
        return torch.stack([observed_log_prob(alone, image.expand(len(u), *image.shape)) for image in x], 1)

    def _likelihood(self, u: Tensor) -> Any:
        """p(x | z) with a dimension for images, batch [points, 1]."""
        return self.model.likelihood(self.values(u).unsqueeze(1))

    def _broadcasts(self, u: Tensor, x: Tensor) -> bool:
        """True if `likelihood(z)` supports z [points, 1, ...]. It is compared with z [points, ...] on a few images."""
        z = self.values(u)
        with as_bad_input(f"{name_of(self.model)}: likelihood(z) fails"):
            alone = torch.stack(
                [observed_log_prob(self.model.likelihood(z), image.expand(len(z), *image.shape)) for image in x], 1
            )
        if alone.shape != (len(z), len(x)):
            raise BadInput(
                f"{name_of(self.model)}: likelihood(z).log_prob(x) for {len(z)} values of z and as many images is "
                f"{list(alone.shape[:1])}: its batch must be the values of z, and its event an image"
            )
        try:
            among = observed_log_prob(self._likelihood(u), x)
        except Exception:  # user code
            return False
        return among.shape == alone.shape and torch.allclose(among, alone, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)


class Alone(Integrand):
    """log p(z) of the same prior in place of log p(x, z): its integral is 1, if the grid sees all of the prior."""

    def __init__(self, integrand: Integrand):
        vars(self).update(vars(integrand))

    def _log_likelihood(self, u: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return torch.zeros(len(u), len(x), dtype=self.dtype, device=u.device)
