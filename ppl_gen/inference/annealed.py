"""log p(x) by annealed importance sampling, which needs no guide; and bidirectional bounds on data from the model.

A chain z_0 … z_(T-1) of an image leads from f_0(z) = p(z), or q(z | x), to f_T(z) = p(x, z), through

    log f_t(z) = (1 - beta_t) log f_0(z) + beta_t log p(x, z),    0 = beta_0 < beta_1 < … < beta_T = 1,

where z_t is a step of Hamiltonian Monte Carlo from z_(t-1) that leaves f_t invariant. The weight

    log w = sum_t (beta_t - beta_(t-1)) [log p(x, z_(t-1)) - log f_0(z_(t-1))]

has E[w] = p(x) for any number of temperatures T, even if the chains mix badly (Neal 2001, equations 11 to 18). With
more temperatures its variance is smaller. log p(x) is estimated by the logarithm of the mean over an image's chains,
which is biased low, as in `ppl_gen.inference.importance`.

A chain that runs backwards, from a z_(T-1) that was drawn from p(z | x) itself, has E[1/w] = 1/p(x). Minus the
logarithm of the mean of 1/w is therefore biased high: bidirectional Monte Carlo (Grosse, Ghahramani and Adams 2015).
Such a z is known if x was drawn from the model. log p(x) of such data lies between the two means. Their distance shows
the error that the settings make; on real data too, if those are similar to the model's (Wu et al. 2017).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.contracts import AdversarialModel, Amortized, HasDensity, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.gradients import check_gradients
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Advance, skip
from ppl_gen.inference.bidirectional import BidirectionalBounds
from ppl_gen.inference.chunks import pairs_at_a_time
from ppl_gen.inference.estimate import Estimate, Variable, mean_se, median_and_least
from ppl_gen.inference.gathering import gather_blocks
from ppl_gen.inference.importance import log_mean_weight_with_errors
from ppl_gen.inference.integrand import check_without_noise
from ppl_gen.inference.modes import evaluating, forked_rng, frozen
from ppl_gen.inference.options import Annealing, num_adaptation
from ppl_gen.networks.observed import observed_log_prob
from ppl_gen.networks.supports import unbounded

_NARROW = 0.1  # nats by which annealing may be too low and still be trusted


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AnnealedEstimate(Estimate):
    """log p(x) by annealed importance sampling. `num_samples` and `ess` count chains."""

    estimator: str = "annealed"
    words: str = "annealed importance sampling"
    ess: Tensor
    annealing: Annealing
    acceptance: Tensor
    """Share of accepted proposals; NaN with one temperature, where nothing is proposed."""
    bidirectional: BidirectionalBounds | None = None
    """Bounds from the same settings on images from the model, if they were computed."""

    @property
    def corroborated(self) -> bool:
        """True if the bidirectional bounds are close, and the estimated bias is small. An upper bound below the lower
        one supports nothing."""
        if self.bidirectional is None:
            return False
        width, se = mean_se(self.bidirectional.width)
        return abs(width) + 2 * se <= _NARROW and abs(self.bias) <= _NARROW

    def settings_entry(self) -> dict[str, Any]:
        accepted = float(self.acceptance.mean())
        return asdict(self.annealing) | {"accepted": accepted, "ess": median_and_least(self.ess)}

    def more_entries(self, name: str) -> dict[str, Any]:
        return {} if self.bidirectional is None else {"sandwich": self.bidirectional.entry()}

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        return {f"ess{suffix}": Variable(self.ess, "effective number of chains", "chains")}


def annealed_log_px(
    model: Any, x: Tensor, *, guide: Any = None, annealing: Annealing | None = None, progress: Advance | None = None
) -> AnnealedEstimate:
    """log p(x) of images by annealed importance sampling.

    :param model: a module with methods `prior()` and `likelihood(z)`, its latent continuous and unbounded.
    :param x: images [N, data_dim].
    :param guide: a module with methods `encode(x)` and `posterior(context)`, for `start="guide"`.
    :param progress: called with the number of temperatures just passed, times images.
    :raises BadInput: for a model or a guide without these methods.
    """
    annealing = annealing or Annealing()
    check(model, guide, annealing)
    keep_freed_memory()

    def blocks(first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for _, path, adapted in _paths(model, guide, x, annealing, first, annealing.work, progress):
            groups = [path.forward(path.start(count), *adapted, progress) for count in annealing.groups]
            log_w, acceptance = (torch.cat([group[i] for group in groups]).cpu() for i in (0, 1))
            log_px, variance, bias, ess = log_mean_weight_with_errors(log_w)
            found = {"log_px": log_px, "log_px_mc_var": variance, "log_px_bias": bias, "ess": ess}
            yield len(log_px), found | {"acceptance": acceptance.double().mean(0)}

    with evaluating(model, guide), frozen(model, guide):
        whole = gather_blocks(blocks, len(x))
        return AnnealedEstimate(annealing=annealing, num_samples=annealing.num_chains, **whole)


def bidirectional_bounds(
    model: Any,
    num_images: int,
    *,
    guide: Any = None,
    annealing: Annealing | None = None,
    progress: Advance | None = None,
) -> BidirectionalBounds:
    """Bounds of log p(x) by bidirectional Monte Carlo, on images drawn from the model. Arguments are as for
    `annealed_log_px`."""
    annealing = annealing or Annealing()
    check(model, guide, annealing)
    keep_freed_memory()
    with evaluating(model, guide), frozen(model, guide):
        # z and x are drawn jointly, so that z is an exact sample of p(z | x), from which backward chains may start.
        z = model.prior().sample((num_images,))
        x = model.likelihood(z).sample()

        def blocks(first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
            work = annealing.bidirectional_work
            for rows, path, adapted in _paths(model, guide, x, annealing, first, work, progress):
                ends = z[rows]
                groups = annealing.groups
                forward = [path.forward(path.start(count), *adapted, progress)[0] for count in groups]
                backward = [path.backward(ends.expand(count, *ends.shape), *adapted, progress) for count in groups]
                lower, lower_variance, *_ = log_mean_weight_with_errors(torch.cat(forward).cpu())
                inverse, *_ = log_mean_weight_with_errors(-torch.cat(backward).cpu())
                yield len(ends), {"lower": lower, "upper": -inverse, "lower_mc_var": lower_variance}

        return BidirectionalBounds({}, x, z=z, **gather_blocks(blocks, num_images))


def _paths(
    model: Any, guide: Any, x: Tensor, annealing: Annealing, first: int, work: int, progress: Advance | None
) -> Iterator[tuple[slice, "_Path", tuple[Tensor, Tensor]]]:
    """The blocks of images from image number `first` on: their rows, their path, and its adapted steps.

    :param work: temperatures of an image. Those of the images before are reported as passed.
    """
    if progress is not None and first:
        skip(progress, first * work)
    with forked_rng(x):
        check_without_noise(model, model.prior().sample((annealing.num_chains,)), x[0])
    size = _block_size(model, annealing, x)
    for start in range(first, len(x), size):
        rows = slice(start, start + size)
        path = _Path(model, guide, x[rows], annealing)
        yield rows, path, path.adapt(progress)


def fit_scale(model: AdversarialModel, x: Tensor, annealing: Annealing | None = None, rounds: int = 20) -> None:
    """Set `model.log_scale`, the noise of p(x | z) = N(mean(z), scale^2 I), to its maximum-likelihood value, by Monte
    Carlo expectation maximization. No other parameter changes.

    The E-step is a few steps of chains of p(z | x), which start at the end points of annealing. The M-step is
    scale^2 = E[(x - mean(z))^2]. The result is the mean over the second half of the rounds.

    :param model: as for `annealed_log_px`, with a parameter `log_scale` and a normal `likelihood(z)`.
    :param x: images [N, data_dim]; all of them are held in memory at once.
    """
    annealing = annealing or Annealing(num_temperatures=30, num_chains=8, leapfrog_steps=5)
    one = torch.ones((), dtype=x.dtype, device=x.device)
    variances = []
    with evaluating(model), frozen(model):
        path = _Path(model, None, x, annealing)
        betas, step_sizes = path.adapt(None)
        log_w, _, z = path.forward(path.start(annealing.num_chains), betas, step_sizes, None)
        # Resampling by weight makes the end points of the chains approximate samples of p(z | x).
        chosen = log_w.softmax(0).T.multinomial(len(z), replacement=True).T
        now = path.at(z[chosen, torch.arange(len(x), device=x.device)])
        log_size = step_sizes[-1].double().log() if len(step_sizes) else torch.full_like(log_w[0], math.log(0.1))
        for _ in range(rounds):
            for _ in range(3):
                now, accepted = path.step(now, one, log_size.exp().to(one.dtype))
                log_size = log_size + (accepted.double().mean(0) - annealing.acceptance) / 2
            variances.append(float((model.likelihood(now.z).mean - x).double().square().mean()))
            model.log_scale.fill_(math.log(variances[-1]) / 2)
            now = path.at(now.z)  # the density has changed with the noise
    model.log_scale.data.fill_(math.log(sum(variances[rounds // 2 :]) / len(variances[rounds // 2 :])) / 2)


def check(model: object, guide: object, annealing: Annealing) -> None:
    """Raise `BadInput` for a model or a guide that annealing cannot use."""
    name = type(model).__name__
    if not offers(model, HasDensity):
        raise BadInput(f"{name}: annealing needs a model of one latent site, with prior() and likelihood(z)")
    prior = model.prior()
    if not unbounded(prior) or prior.batch_shape:
        raise BadInput(f"{name}: annealing needs a latent that is continuous and unbounded, and one prior() for all")
    if annealing.start == "guide" and not offers(guide, Amortized):
        raise BadInput("--annealed.start guide: needs a guide with encode(x) and posterior(context)")


def _block_size(model: Any, annealing: Annealing, x: Tensor) -> int:
    """Number of images at a time."""
    return max(1, pairs_at_a_time(model, None, x) // annealing.num_chains)


@dataclass
class _Point:
    """A state z [chains, images, …] of all chains, with log f_0(z) and log p(x, z) - log f_0(z) [chains, images] and
    their gradients. The density and gradient at any temperature are linear combinations of these."""

    z: Tensor
    base: Tensor
    rise: Tensor
    base_gradient: Tensor
    rise_gradient: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        return self.base + beta * self.rise

    def gradient(self, beta: Tensor) -> Tensor:
        beta = beta.reshape(*beta.shape, *[1] * (self.z.dim() - self.base.dim())) if beta.dim() else beta
        return self.base_gradient + beta * self.rise_gradient


class _Path:
    """The path of distributions from f_0 to p(x, z) for a block of images, and chains along it."""

    def __init__(self, model: HasDensity, guide: Amortized | None, x: Tensor, annealing: Annealing):
        check_gradients("annealing")
        self.model, self.x, self.annealing = model, x, annealing
        self.prior = model.prior()
        # f_0: the guide's distribution has a batch of images. The prior (None here) is the same for all images.
        self.first = None if guide is None or annealing.start == "prior" else guide.posterior(guide.encode(x))
        self.events = tuple(range(-len(self.prior.event_shape), 0))

    def start(self, chains: int) -> _Point:
        """Draw the first state of some chains from f_0."""
        z = self.prior.sample((chains, len(self.x))) if self.first is None else self.first.sample((chains,))
        return self.at(z)

    @torch.enable_grad()
    def at(self, z: Tensor) -> _Point:
        """Densities and gradients at z [chains, images, …]."""
        z = z.detach().requires_grad_()
        prior = self.prior.log_prob(z)
        likelihood = observed_log_prob(self.model.likelihood(z), self.x)
        if self.first is None:
            base, rise = prior, likelihood
        else:
            base = self.first.log_prob(z)
            rise = prior + likelihood - base
        (base_gradient,) = torch.autograd.grad(base.sum(), z, retain_graph=True)
        (rise_gradient,) = torch.autograd.grad(rise.sum(), z)
        return _Point(z.detach(), base.detach(), rise.detach(), base_gradient, rise_gradient)

    def step(self, now: _Point, beta: Tensor, step_size: Tensor) -> tuple[_Point, Tensor]:
        """A step of Hamiltonian Monte Carlo (Neal 2011, section 5.2): the next state, and the acceptance probability
        [chains, images].

        :param beta: temperature, scalar or [images].
        :param step_size: step sizes [images].
        """
        # With a fixed step size, a trajectory can be periodic and return to its start. Jitter of 10 % prevents that.
        size = step_size * (0.9 + 0.2 * torch.rand_like(now.base))
        size = size.reshape(*size.shape, *[1] * len(self.events))
        momentum = torch.randn_like(now.z)
        energy = self._energy(now, momentum, beta)
        point = now
        momentum = momentum + size / 2 * point.gradient(beta)
        for leap in range(self.annealing.leapfrog_steps):
            point = self.at(point.z + size * momentum)
            last = leap == self.annealing.leapfrog_steps - 1
            momentum = momentum + (size / 2 if last else size) * point.gradient(beta)
        # A proposal whose energy overflows is rejected: NaN becomes probability 0.
        accepted = (energy - self._energy(point, momentum, beta)).exp().clamp(max=1).nan_to_num(0, 0, 0)
        chosen = torch.rand_like(accepted) < accepted
        chosen_z = chosen.reshape(*chosen.shape, *[1] * len(self.events))
        return (
            _Point(
                torch.where(chosen_z, point.z, now.z),
                torch.where(chosen, point.base, now.base),
                torch.where(chosen, point.rise, now.rise),
                torch.where(chosen_z, point.base_gradient, now.base_gradient),
                torch.where(chosen_z, point.rise_gradient, now.rise_gradient),
            ),
            accepted,
        )

    def _energy(self, point: _Point, momentum: Tensor, beta: Tensor) -> Tensor:
        """The Hamiltonian [chains, images]: kinetic energy minus log f_t."""
        return momentum.square().sum(self.events) / 2 - point.log_density(beta)

    def adapt(self, progress: Advance | None) -> tuple[Tensor, Tensor]:
        """Adapt temperatures beta_0 … beta_T [T + 1, images], and step sizes for beta_1 … beta_(T-1), [T - 1, images].

        Separate chains run over fewer temperatures. At each of them, the logarithm of the step size moves by half the
        difference between the acceptance and its target (stochastic approximation). Adapting the chains that count
        would make their weights biased."""
        count = num_adaptation(self.annealing.num_temperatures)
        log_size = torch.full((len(self.x),), math.log(0.3), dtype=torch.float64, device=self.x.device)
        sizes, speeds = [], []
        now = self.start(self.annealing.groups[0])
        tried = self.annealing.betas(count).to(log_size.device)
        for beta in tried[1:].to(now.rise.dtype):
            speed = now.rise.double().std(0) if len(now.rise) > 1 else torch.ones_like(log_size)
            speeds.append(speed.nan_to_num(1, 1, 1))  # NaN if x is impossible in some chain
            now, accepted = self.step(now, beta, log_size.exp().to(now.rise.dtype))
            log_size = log_size + (accepted.double().mean(0) - self.annealing.acceptance) / 2
            sizes.append(log_size)
            if progress is not None:
                progress(len(self.x))
        if self.annealing.schedule == "adaptive":
            # d log w / d beta is log p(x, z) - log f_0(z). Temperatures at equal steps of the cumulative standard
            # deviation add the same amount of noise to log w each.
            lengths = torch.stack(speeds).clamp(min=1e-6) * tried.diff().unsqueeze(1)
            passed = torch.cat([torch.zeros_like(lengths[:1]), lengths.cumsum(0)])
            position = torch.linspace(0, 1, self.annealing.num_temperatures + 1).to(passed)
            betas = _interpolate(position.unsqueeze(1) * passed[-1], passed, tried.unsqueeze(1).expand_as(passed))
        else:
            betas = self.annealing.betas().to(tried.device).unsqueeze(1).expand(-1, len(self.x))
        at = tried[1:].unsqueeze(1).expand(-1, len(self.x)).contiguous()
        return betas, _interpolate(betas[1:-1], at, torch.stack(sizes)).exp().to(now.rise.dtype)

    def forward(
        self, now: _Point, betas: Tensor, step_sizes: Tensor, progress: Advance | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run chains from the state `now`. Returns log w [chains, images] in float64, the mean acceptance
        [chains, images], and the end points z [chains, images, …]."""
        log_w = torch.zeros_like(now.rise, dtype=torch.float64)
        acceptance = torch.zeros_like(now.rise)
        for index in range(1, len(betas)):
            log_w += (betas[index] - betas[index - 1]) * now.rise.double()
            if index < len(betas) - 1:
                now, accepted = self.step(now, betas[index].to(now.rise.dtype), step_sizes[index - 1])
                acceptance += accepted
            if progress is not None:
                progress(len(self.x))
        # With one temperature there is no proposal.
        share = acceptance / (len(betas) - 2) if len(betas) > 2 else torch.full_like(acceptance, math.nan)
        return log_w, share, now.z

    def backward(self, z: Tensor, betas: Tensor, step_sizes: Tensor, progress: Advance | None) -> Tensor:
        """Run chains backwards from z [chains, images, …], which was drawn from p(z | x). Returns log w [chains,
        images] in float64."""
        now = self.at(z)
        log_w = torch.zeros_like(now.rise, dtype=torch.float64)
        for index in range(len(betas) - 1, 0, -1):
            log_w += (betas[index] - betas[index - 1]) * now.rise.double()
            if index > 1:
                now, _ = self.step(now, betas[index - 1].to(now.rise.dtype), step_sizes[index - 2])
            if progress is not None:
                progress(len(self.x))
        return log_w


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate y(x), given at increasing x [points, images], to the points `at` [others, images]: linear between the
    given points, constant outside."""
    at, x, y = at.T.contiguous(), x.T.contiguous(), y.T
    right = torch.searchsorted(x, at).clamp(1, x.shape[1] - 1)
    left = right - 1
    x_left, x_right, y_left, y_right = x.gather(1, left), x.gather(1, right), y.gather(1, left), y.gather(1, right)
    share = ((at - x_left) / (x_right - x_left)).clamp(0, 1)
    return (y_left + share * (y_right - y_left)).T
