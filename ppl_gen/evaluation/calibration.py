"""Comparison of every estimator of log p(x) with the exact value.

Three small models with random parameters, whose log p(x) is written out below and not taken from the models. Each
estimator is run many times on the same images, and its errors are compared with what it says of itself.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import seed_torch
from ppl_gen.evaluation.own_estimators import OwnEstimator, find
from ppl_gen.evaluation.use_options import CalibrateOptions
from ppl_gen.experiment.run_directory import warn
from ppl_gen.inference.annealed import Annealing, annealed_log_px
from ppl_gen.inference.exact import closed_form, exact_log_px, state_posterior
from ppl_gen.inference.importance import log_marginal_likelihood
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.models.belief_net import BeliefNet
from ppl_gen.models.factor_analysis import FactorAnalysis
from ppl_gen.models.mixture import Mixture

_PIXELS = 16


@dataclass(frozen=True)
class Row:
    """An estimator's errors, in nats."""

    model: str
    estimator: str
    bias: float
    """Mean of estimate - exact, in nats."""
    bias_se: float
    """Standard error of `bias` over the repetitions."""
    rmse: float
    """Root of the mean square of estimate - exact, in nats."""
    coverage: float | None
    """Share of the estimates whose interval, ± 1.96 Monte Carlo standard errors, holds the exact value; None for an
    exact estimator."""
    seconds: float
    """Time for 1,000 estimates."""


class Marginals(nn.Module):
    """The product of the exact posterior's marginals: a good factorized guide without training."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def encode(self, x: Tensor) -> Tensor:
        return x

    def posterior(self, context: Tensor) -> dist.TorchDistribution:
        if isinstance(self.model, BeliefNet):
            states, probabilities = state_posterior(self.model, context)
            return dist.Bernoulli((probabilities.T @ states).clamp(0.001, 0.999)).to_event(1)
        weight, psi = self.model.weight, self.model.psi
        covariance = torch.linalg.inv(torch.eye(len(weight), dtype=weight.dtype) + weight / psi @ weight.T)
        loc = (context - self.model.loc) / psi @ weight.T @ covariance
        return dist.Normal(loc, covariance.diagonal().sqrt()).to_event(1)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encode(x)))


def _factor_analysis() -> tuple[Any, Callable[[Tensor], Tensor]]:
    model = FactorAnalysis(_PIXELS, latent_dim=4).double()
    with torch.no_grad():
        model.scaled_weight.normal_()
        model.log_psi.normal_(0, 0.3)
        model.loc.normal_()

    def exact(x: Tensor) -> Tensor:
        covariance = model.weight.T @ model.weight + model.psi.diag()
        return dist.MultivariateNormal(model.loc, covariance).log_prob(x)

    return model, exact


def _belief_net() -> tuple[Any, Callable[[Tensor], Tensor]]:
    model = BeliefNet(_PIXELS, latent_dim=6).double()
    with torch.no_grad():
        for parameter, scale in ((model.logits, 1.0), (model.weight, 1.5), (model.bias, 1.0)):
            parameter.normal_(0, scale)

    def exact(x: Tensor) -> Tensor:
        terms = []
        for state in itertools.product((0.0, 1.0), repeat=6):
            z = torch.tensor(state, dtype=torch.float64)
            prior = dist.Bernoulli(logits=model.logits).log_prob(z).sum()
            terms.append(prior + dist.Bernoulli(logits=z @ model.weight + model.bias).log_prob(x).sum(-1))
        return torch.stack(terms).logsumexp(0)

    return model, exact


def _mixture() -> tuple[Any, Callable[[Tensor], Tensor]]:
    model = Mixture(_PIXELS, num_components=5).double()
    with torch.no_grad():
        model.level.normal_(0, 10)
        model.weight.normal_(0, 1.5)

    def exact(x: Tensor) -> Tensor:
        weights = model.prior().probs
        terms = [
            w.log() + dist.Bernoulli(logits=row + model.bias).log_prob(x).sum(-1)
            for w, row in zip(weights, model.weight, strict=True)
        ]
        return torch.stack(terms).logsumexp(0)

    return model, exact


def calibrate(options: CalibrateOptions, quiet: bool = False) -> list[Row]:
    """A row for each model and estimator. A model that an estimator of the user's own fails on is left out, with a
    warning.

    :raises BadInput: for an estimator that fails on every model.
    """
    rows: list[Row] = []
    failed: dict[str, BadInput] = {}
    with torch.random.fork_rng([]), torch.no_grad():
        seed_torch(options.seed)
        models = {"factor analysis": _factor_analysis(), "belief net": _belief_net(), "mixture": _mixture()}
        own = find(options.estimator, options.estimator_options)
        work = [(name, how) for name, (model, _) in models.items() for how in _estimators(model, options, own)]
        images = {name: model.model(n=options.num_images) for name, (model, _) in models.items()}
        with Progress(len(work), "estimator", quiet=quiet) as progress:
            for name, (estimator, estimate) in work:
                progress.note(name, estimator)
                x = images[name]
                exact = models[name][1](x).repeat(options.repetitions)
                started = time.perf_counter()
                try:
                    log_px, variance = estimate(x.repeat(options.repetitions, 1))
                except BadInput as error:
                    failed.setdefault(estimator, error)
                    warn(f"{name}: {error.sentence}")
                else:
                    seconds = time.perf_counter() - started
                    rows.append(_row(name, estimator, log_px - exact, variance, seconds, options.num_images))
                progress.advance()
    for estimator, failure in failed.items():
        if all(row.estimator != estimator for row in rows):
            raise failure
    return rows


Estimator = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Function of images that returns log p(x) and its Monte Carlo variance, if it has one."""


def _estimators(model: Any, options: CalibrateOptions, own: Sequence[OwnEstimator]) -> Iterator[tuple[str, Estimator]]:
    count = options.num_samples

    def exact(x: Tensor) -> tuple[Tensor, None]:
        return model.log_px(x) if closed_form(model) else exact_log_px(model, x), None

    def proposed(guides: list[Any], **how: Any) -> Estimator:
        def estimate(x: Tensor) -> tuple[Tensor, Tensor]:
            estimated = proposal_log_px(model, guides, x, num_samples=count, **how)
            return estimated.log_px, estimated.log_px_mc_var

        return estimate

    def importance(x: Tensor) -> tuple[Tensor, Tensor]:
        estimated = log_marginal_likelihood(model, guide, x, num_samples=count, ask_again=False)
        return estimated.log_px, estimated.log_px_mc_var

    def jackknife(x: Tensor) -> tuple[Tensor, Tensor]:
        estimated = log_marginal_likelihood(model, guide, x, num_samples=count, ask_again=False)
        return estimated.log_px - estimated.log_px_bias, estimated.log_px_mc_var

    def annealed(x: Tensor) -> tuple[Tensor, Tensor]:
        estimated = annealed_log_px(model, x, annealing=Annealing(options.num_temperatures, leapfrog_steps=5))
        return estimated.log_px, estimated.log_px_mc_var

    def users(each: OwnEstimator) -> Estimator:
        def estimate(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.random.fork_rng([]):  # the other rows are the same without it
                estimated = each.estimate(model, guide, x, num_samples=count)
            return estimated.log_px, estimated.log_px_mc_var

        return estimate

    yield "exact, by the package", exact
    yield f"prior, S = {count}", proposed([], prior_share=1)
    if isinstance(model, Mixture):
        return  # its one latent site has no marginals to factorize
    guide = Marginals(model)
    yield f"importance, S = {count}", importance
    yield f"importance, S = {count}, less the jackknife's bias", jackknife
    yield f"importance, S = {count}, 10% from the prior", proposed([guide], prior_share=0.1)
    for each in own:
        yield each.name, users(each)
    if isinstance(model, FactorAnalysis):
        yield f"importance, S = {count}, temperature 1.3", proposed([guide], temperature=1.3)
        yield f"annealed, 16 chains x {options.num_temperatures} temperatures", annealed


def _row(model: str, estimator: str, error: Tensor, variance: Tensor | None, seconds: float, num_images: int) -> Row:
    """The row of an estimator from its errors [repetitions x images], image by image within a repetition."""
    by_repetition = error.reshape(-1, num_images).mean(1)
    coverage = None
    if variance is not None:
        coverage = float((error.abs() < 1.96 * variance.sqrt()).double().mean())
    return Row(
        model,
        estimator,
        bias=float(error.mean()),
        bias_se=float(by_repetition.std()) / math.sqrt(len(by_repetition)),
        rmse=float(error.square().mean().sqrt()),
        coverage=coverage,
        seconds=seconds / len(error) * 1000,
    )


def table(rows: list[Row], options: CalibrateOptions) -> str:
    """The rows as text."""
    lines = [
        f"{options.repetitions} repetitions on {options.num_images} images of {_PIXELS} pixels from each model; errors "
        "in nats; seconds for 1,000 estimates",
        f"{'model':<17}{'estimator':<48}{'bias':>18}{'RMSE':>9}{'coverage of 95 %':>18}{'seconds':>9}",
    ]
    for row in rows:
        bias = f"{row.bias:+.4f} ± {row.bias_se:.4f}"
        coverage = "" if row.coverage is None else f"{row.coverage:.1%}"
        lines.append(f"{row.model:<17}{row.estimator:<48}{bias:>18}{row.rmse:>9.4f}{coverage:>18}{row.seconds:>9.2f}")
    return "\n".join(lines)
