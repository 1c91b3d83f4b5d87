"""log p(x) to a stated tolerance (`--num-samples auto`), and the options that settle more than an evaluation did."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.progress import Progress
from ppl_gen.evaluation import verdicts
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.quadrature import why_no_quadrature
from ppl_gen.inference.settling import SettledEstimate, check, settled_log_px


def fixed_samples(fitted: Fitted, options: EvaluationOptions) -> int:
    """Number of samples of the ELBO, the IWAE bounds, and of log p(x) but for `--num-samples auto`."""
    fixed = None if options.num_samples == "auto" else options.num_samples
    return fixed or fitted.config.num_samples


def check_settling(
    fitted: Fitted, options: EvaluationOptions, sampled: bool, x: Tensor, labels: tuple[Tensor, ...]
) -> None:
    """Raise `BadInput` if `--num-samples auto` was asked for and the pair does not support it.

    :param sampled: True if importance samples are drawn.
    """
    if options.num_samples != "auto":
        return
    if not sampled:
        raise BadInput("--num-samples auto: log p(x) is exact, so no importance samples are drawn; give a number")
    with fitted.estimating(0):
        check(fitted.model, fitted.guide, Batch(x, labels, {}))


def settled_estimate(
    fitted: Fitted, options: EvaluationOptions, x: Tensor, *labels: Tensor, anneal: bool, quiet: bool
) -> SettledEstimate:
    """log p(x) to the tolerance of the options, with a progress bar."""
    with Progress(2 * len(x), "image", quiet=quiet) as progress:
        advance = progress.advancing(fitted.quantity(x, *labels), f"to {options.settling.tolerance:g} nats")
        how: dict[str, Any] = {"settling": options.settling, "anneal": anneal, "progress": advance}
        return settled_log_px(fitted.model, fitted.guide, x, *labels, **how)


def next_options(
    fitted: Fitted,
    options: EvaluationOptions,
    estimates: Mapping[str, Estimate],
    primary: str,
    x: Tensor,
    *labels: Tensor,
    quadrature: bool,
    annealing: bool,
) -> str | None:
    """Options of `evaluate` that settle log p(x) where an evaluation says "at least"; None where there is nothing to
    settle, or nothing to try.

    :param quadrature: False if quadrature was tried and refused the model.
    :param annealing: True if the model can be annealed.
    """
    if verdicts.known_of(estimates) or primary == "annealed" or not verdicts.at_least(estimates, primary):
        return None
    if quadrature and why_no_quadrature(fitted.pair, fitted.model, *labels) is None:
        return "--estimator quadrature"
    if options.num_samples != "auto":
        with suppress(BadInput), fitted.estimating(0):
            check(fitted.model, fitted.guide, Batch(x, labels, {}))
            return "--num-samples auto"
    if annealing:
        return "--estimator annealed"
    if options.num_samples == "auto":
        return f"--num-samples auto --settling.most-samples {4 * options.settling.most_samples}"
    return None
