"""log p(x) by annealed importance sampling, which needs no guide, and between two bounds on data from the model.

A chain z_0 … z_(T-1) of an image leads from f_0(z) = p(z), or q(z | x), to f_T(z) = p(x, z), over

    log f_t(z) = (1 - beta_t) log f_0(z) + beta_t log p(x, z),    0 = beta_0 < beta_1 < … < beta_T = 1,

with z_t a step of Hamiltonian Monte Carlo from z_(t-1) that leaves f_t as it is. The weight

    log w = sum_t (beta_t - beta_(t-1)) [log p(x, z_(t-1)) - log f_0(z_(t-1))]

has E[w] = p(x) whatever the number of temperatures T and however badly the chains mix (Neal 2001, equations 11 to 18);
more of them make it less variable. log p(x) is the logarithm of the mean over the chains of an image, biased low as in
`ppl_gen.inference.importance`.

Backwards, from a z_(T-1) that was drawn from p(z | x) itself, E[1/w] = 1/p(x), and minus the logarithm of the mean of
1/w is biased high: bidirectional Monte Carlo (Grosse, Ghahramani and Adams 2015). Such a z is there where x was drawn
from the model. log p(x) of such data lies between the means of the two, and their distance says how far off the
settings are, on real data too as far as these are like the model's (Wu et al. 2017).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_gen.core.contracts import Amortized, HasDensity, offers
from ppl_gen.core.errors import BadInput, require, require_choices
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.inference.callables import evaluating, frozen
from ppl_gen.inference.estimate import Estimate, Variable, mean_entry, mean_mc_se, mean_se, median_and_least
from ppl_gen.inference.importance import CHUNK_SIZE, gathered, log_mean_exp
from ppl_gen.inference.supports import unbounded

_NARROW = 0.1  # nats by which annealing may be too low and still be trusted

Advance = Callable[[int], None]
"""Called with the number of temperatures just passed, times images."""


@dataclass(frozen=True)
class Annealing:
    """The temperatures and the chains of annealing."""

    num_temperatures: int = 1000
    """T, between the start and p(x, z): the more, the less low log p(x) is."""
    num_chains: int = 16
    """Chains per image."""
    leapfrog_steps: int = 10
    """Leapfrog steps of Hamiltonian Monte Carlo at each temperature; each costs a gradient of log p(x|z)."""
    schedule: Literal["adaptive", "sigmoid", "linear"] = "adaptive"
    """Schedule of the temperatures. sigmoid: beta_t goes as 1 / (1 + exp(-4 (2t/T - 1))), finer at both ends (Grosse et
    al. 2015). adaptive: for each image so that every temperature adds the same standard deviation to log w, as the
    chains that adapt the step sizes see it (Gelman and Meng 1998, section 4)."""
    start: Literal["prior", "guide"] = "prior"
    """The distribution that the chains start from."""
    acceptance: float = 0.65
    """Share of proposals to be accepted, which step sizes are adapted to before the chains that count."""

    def __post_init__(self) -> None:
        require_choices(self, "annealed.")
        for name in ("num_temperatures", "num_chains", "leapfrog_steps"):
            require(getattr(self, name) >= 1, f"annealed.{name}", getattr(self, name), "must be at least 1")
        require(0 < self.acceptance < 1, "annealed.acceptance", self.acceptance, "must be between 0 and 1")

    @property
    def groups(self) -> list[int]:
        """The chains of an image in as many groups as bound the memory."""
        return [min(CHUNK_SIZE, self.num_chains - begun) for begun in range(0, self.num_chains, CHUNK_SIZE)]

    @property
    def work(self) -> int:
        """Temperatures that an image passes, those of adaptation included, as `Advance` counts them."""
        return _adaptation(self.num_temperatures) + self.num_temperatures * len(self.groups)

    @property
    def bidirectional_work(self) -> int:
        """Likewise forwards and backwards."""
        return self.work + self.num_temperatures * len(self.groups)

    def betas(self, count: int | None = None) -> Tensor:
        """beta_0 … beta_T in float64, with T = `count` or the number of temperatures; before they are adapted."""
        position = torch.linspace(0, 1, (count or self.num_temperatures) + 1, dtype=torch.float64)
        if self.schedule == "linear":
            return position
        rising = (4 * (2 * position - 1)).sigmoid()
        return (rising - rising[0]) / (rising[-1] - rising[0])


@dataclass(frozen=True)
class BidirectionalBounds:
    """Two estimates of log p(x) for images from the model, in nats, float64 on the CPU, [images].

    In expectation lower <= log p(x) <= upper, and for each image P(lower > log p(x) + b) <= exp(-b), and likewise of
    the upper."""

    annealing: Annealing
    x: Tensor
    """The images, [images, data_dim], as the model draws them."""
    lower: Tensor
    upper: Tensor
    lower_mc_var: Tensor
    """Monte Carlo variance of `lower`. The upper's is not known: the chains of an image begin at one z."""

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def entry(self) -> dict[str, Any]:
        """Its entry in `evaluation.json`."""
        return {
            "num_images": len(self.x),
            "lower": mean_entry(self.lower, mc_se=mean_mc_se(self.lower_mc_var)),
            "upper": mean_entry(self.upper),
            "width": mean_entry(self.width),
            "wide": self.wide(),
        }

    def wide(self) -> dict[str, Any]:
        """Number of images with bounds more than a nat apart, and the share of the model's images that may have, by the
        upper 95 % limit of Clopper and Pearson (1934): about 3/n where none of n has."""
        from scipy.stats import beta

        count, wide = len(self.x), int((~(self.width <= 1)).sum())
        most = 1.0 if wide == count else float(beta.ppf(0.95, wide + 1, count - wide))
        return {"above": 1.0, "num_images": wide, "fraction_at_most": most, "confidence": 0.95}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AnnealedEstimate(Estimate):
    """log p(x) by annealed importance sampling; `num_samples` and `ess` are of chains."""

    estimator: str = "annealed"
    words: str = "annealed importance sampling"
    ess: Tensor
    annealing: Annealing
    acceptance: Tensor
    """Share of the proposals that was accepted."""
    bidirectional: BidirectionalBounds | None = None
    """The same settings on images from the model, if they were asked for."""

    @property
    def corroborated(self) -> bool:
        """True if the sandwich is narrow and the estimated bias small."""
        if self.bidirectional is None:
            return False
        width, se = mean_se(self.bidirectional.width)
        return width + 2 * se <= _NARROW and abs(self.bias) <= _NARROW

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
    :param guide: with methods `encode(x)` and `posterior(context)`, to start from, if `annealing` says so.
    :raises BadInput: for a model or a guide without these methods.
    """
    annealing = annealing or Annealing()
    check(model, guide, annealing)
    keep_freed_memory()

    def block(x: Tensor) -> dict[str, Tensor]:
        path = _Path(model, guide, x, annealing)
        adapted = path.adapt(progress)
        groups = [path.forward(path.start(count), *adapted, progress) for count in annealing.groups]
        log_w, acceptance = (torch.cat([group[i] for group in groups]).cpu() for i in (0, 1))
        log_px, variance, bias, ess = log_mean_exp(log_w)
        found = {"log_px": log_px, "log_px_mc_var": variance, "log_px_bias": bias, "ess": ess}
        return found | {"acceptance": acceptance.double().mean(0)}

    with evaluating(model, guide), frozen(model, guide):
        parts = ((len(part), block(part)) for part in x.split(_block_size(annealing)))
        whole = gathered(parts, len(x))
        return AnnealedEstimate(annealing=annealing, num_samples=annealing.num_chains, **whole)


def bidirectional_bounds(
    model: Any,
    num_images: int,
    *,
    guide: Any = None,
    annealing: Annealing | None = None,
    progress: Advance | None = None,
) -> BidirectionalBounds:
    """Bidirectional Monte Carlo on images drawn from the model; arguments as for `annealed_log_px`."""
    annealing = annealing or Annealing()
    check(model, guide, annealing)
    parts = []
    keep_freed_memory()
    with evaluating(model, guide), frozen(model, guide):
        z = model.prior().sample((num_images,))
        x = model.likelihood(z).sample()
        for rows in torch.arange(num_images, device=z.device).split(_block_size(annealing)):
            path = _Path(model, guide, x[rows], annealing)
            adapted = path.adapt(progress)
            groups, ends = annealing.groups, z[rows]
            forward = [path.forward(path.start(count), *adapted, progress)[0] for count in groups]
            backward = [path.backward(ends.expand(count, *ends.shape), *adapted, progress) for count in groups]
            lower, lower_variance, *_ = log_mean_exp(torch.cat(forward).cpu())
            inverse, *_ = log_mean_exp(-torch.cat(backward).cpu())
            parts.append((lower, -inverse, lower_variance))
    return BidirectionalBounds(annealing, x, *(torch.cat(each) for each in zip(*parts, strict=True)))


def fit_scale(model: Any, x: Tensor, annealing: Annealing | None = None, rounds: int = 20) -> None:
    """Set `model.log_scale`, the noise of p(x | z) = N(mean(z), scale^2 I), to what makes images most probable, and
    nothing else: expectation maximization, with chains of p(z | x) that begin where annealing has ended. The mean of
    the second half of the rounds counts.

    :param model: as for `annealed_log_px`, with a parameter `log_scale` and a normal `likelihood(z)`.
    :param x: images [N, data_dim], as many as are to be held at once.
    """
    annealing = annealing or Annealing(num_temperatures=30, num_chains=8, leapfrog_steps=5)
    one = torch.ones((), dtype=x.dtype, device=x.device)
    found = []
    with evaluating(model), frozen(model):
        path = _Path(model, None, x, annealing)
        betas, step_sizes = path.adapt(None)
        log_w, _, z = path.forward(path.start(annealing.num_chains), betas, step_sizes, None)
        chosen = log_w.softmax(0).T.multinomial(len(z), replacement=True).T
        now = path.at(z[chosen, torch.arange(len(x), device=x.device)])
        log_size = step_sizes[-1].double().log() if len(step_sizes) else torch.full_like(log_w[0], math.log(0.1))
        for _ in range(rounds):
            for _ in range(3):
                now, accepted = path.step(now, one, log_size.exp().to(one.dtype))
                log_size = log_size + (accepted.double().mean(0) - annealing.acceptance) / 2
            found.append(float((model.likelihood(now.z).mean - x).double().square().mean()))
            model.log_scale.fill_(math.log(found[-1]) / 2)
            now = path.at(now.z)  # the noise is another
    model.log_scale.data.fill_(math.log(sum(found[rounds // 2 :]) / len(found[rounds // 2 :])) / 2)


def check(model: Any, guide: Any, annealing: Annealing) -> None:
    """Raise `BadInput` for a model or a guide that cannot be annealed."""
    name = type(model).__name__
    if not offers(model, HasDensity):
        raise BadInput(f"{name}: annealing takes a model of one latent site, with prior() and likelihood(z)")
    prior = model.prior()
    if not unbounded(prior) or prior.batch_shape:
        raise BadInput(f"{name}: annealing takes a latent that is continuous and unbounded, and one prior() for all")
    if annealing.start == "guide" and not offers(guide, Amortized):
        raise BadInput("--annealed.start guide: takes a guide with encode(x) and posterior(context)")


def _adaptation(num_temperatures: int) -> int:
    return max(50, num_temperatures // 4)


def _block_size(annealing: Annealing) -> int:
    return max(1, CHUNK_SIZE // annealing.num_chains)


@dataclass
class _Point:
    """A state of all chains [chains, images, …], and at it log f_0 and log p(x, z) - log f_0 [chains, images] with
    their gradients: what any temperature takes."""

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
    """The distributions between f_0 and p(x, z) of a block of images, and the chains along them."""

    def __init__(self, model: Any, guide: Any, x: Tensor, annealing: Annealing):
        self.model, self.x, self.annealing = model, x, annealing
        self.prior = model.prior()
        # The first distribution: the guide's has images as its batch, the prior's is one for all.
        self.first = guide.posterior(guide.encode(x)) if annealing.start == "guide" else None
        self.events = tuple(range(-len(self.prior.event_shape), 0))

    def start(self, chains: int) -> _Point:
        z = self.prior.sample((chains, len(self.x))) if self.first is None else self.first.sample((chains,))
        return self.at(z)

    @torch.enable_grad()
    def at(self, z: Tensor) -> _Point:
        z = z.detach().requires_grad_()
        prior = self.prior.log_prob(z)
        likelihood = self.model.likelihood(z).log_prob(self.x)
        if self.first is None:
            base, rise = prior, likelihood
        else:
            base = self.first.log_prob(z)
            rise = prior + likelihood - base
        (base_gradient,) = torch.autograd.grad(base.sum(), z, retain_graph=True)
        (rise_gradient,) = torch.autograd.grad(rise.sum(), z)
        return _Point(z.detach(), base.detach(), rise.detach(), base_gradient, rise_gradient)

    def step(self, now: _Point, beta: Tensor, step_size: Tensor) -> tuple[_Point, Tensor]:
        """Hamiltonian Monte Carlo at a temperature, of step sizes [images] (Neal 2011, section 5.2); the next point,
        and the probability [chains, images] with which the proposal was accepted."""
        # Chains with steps of one size may return to where they began: a tenth more or less keeps them from it.
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
        # What has left the range of floating point is rejected.
        accepted = (energy - self._energy(point, momentum, beta)).exp().clamp(max=1).nan_to_num(0, 0, 0)
        chosen = torch.rand_like(accepted) < accepted
        each = chosen.reshape(*chosen.shape, *[1] * len(self.events))
        return (
            _Point(
                torch.where(each, point.z, now.z),
                torch.where(chosen, point.base, now.base),
                torch.where(chosen, point.rise, now.rise),
                torch.where(each, point.base_gradient, now.base_gradient),
                torch.where(each, point.rise_gradient, now.rise_gradient),
            ),
            accepted,
        )

    def _energy(self, point: _Point, momentum: Tensor, beta: Tensor) -> Tensor:
        return momentum.square().sum(self.events) / 2 - point.log_density(beta)

    def adapt(self, progress: Advance | None) -> tuple[Tensor, Tensor]:
        """beta_0 … beta_T [T + 1, images], and step sizes for beta_1 … beta_(T-1), [T - 1, images].

        From chains of their own over fewer temperatures: at each the step grows or shrinks by how far the acceptance is
        from what it should be."""
        count = _adaptation(self.annealing.num_temperatures)
        log_size = torch.full((len(self.x),), math.log(0.3), dtype=torch.float64, device=self.x.device)
        sizes, speeds = [], []
        now = self.start(self.annealing.groups[0])
        tried = self.annealing.betas(count).to(log_size.device)
        for beta in tried[1:].to(now.rise.dtype):
            speed = now.rise.double().std(0) if len(now.rise) > 1 else torch.ones_like(log_size)
            speeds.append(speed.nan_to_num(1, 1, 1))  # a chain where x is impossible
            now, accepted = self.step(now, beta, log_size.exp().to(now.rise.dtype))
            log_size = log_size + (accepted.double().mean(0) - self.annealing.acceptance) / 2
            sizes.append(log_size)
            if progress is not None:
                progress(len(self.x))
        if self.annealing.schedule == "adaptive":
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
        """Of chains that begin here: log w [chains, images] in float64, the mean acceptance [chains, images], and where
        they end."""
        log_w = torch.zeros_like(now.rise, dtype=torch.float64)
        acceptance = torch.zeros_like(now.rise)
        for index in range(1, len(betas)):
            log_w += (betas[index] - betas[index - 1]) * now.rise.double()
            if index < len(betas) - 1:
                now, accepted = self.step(now, betas[index].to(now.rise.dtype), step_sizes[index - 1])
                acceptance += accepted
            if progress is not None:
                progress(len(self.x))
        # With one temperature nothing was proposed.
        share = acceptance / (len(betas) - 2) if len(betas) > 2 else torch.full_like(acceptance, math.nan)
        return log_w, share, now.z

    def backward(self, z: Tensor, betas: Tensor, step_sizes: Tensor, progress: Advance | None) -> Tensor:
        """log w [chains, images] in float64 of chains that begin at z [chains, images, …], drawn from p(z | x)."""
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
    """y of x [points, images], rising in x, at other points [others, images]: linear between, constant outside."""
    at, x, y = at.T.contiguous(), x.T.contiguous(), y.T
    right = torch.searchsorted(x, at).clamp(1, x.shape[1] - 1)
    left = right - 1
    x_left, x_right, y_left, y_right = x.gather(1, left), x.gather(1, right), y.gather(1, left), y.gather(1, right)
    share = ((at - x_left) / (x_right - x_left)).clamp(0, 1)
    return (y_left + share * (y_right - y_left)).T
