"""Bounds of log p(x) from both sides on images from a run's model, beside the estimates of the run's images."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core import parallel
from ppl_gen.core.errors import BadInput
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import seed_torch
from ppl_gen.evaluation.options import EvaluationOptions
from ppl_gen.evaluation.verdicts import known_of
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.inference.annealed import AnnealedEstimate
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.bidirectional import cycled, importance_bounds, why_no_bounds
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.exact import exact_blocks
from ppl_gen.inference.importance import ImportanceEstimate
from ppl_gen.inference.modes import forked_rng
from ppl_gen.inference.proposals import scores_others
from ppl_gen.inference.quadrature import quadrature_log_px


def check_bounds(fitted: Fitted, options: EvaluationOptions, sampled: bool, x: Tensor, *labels: Tensor) -> None:
    """Raise `BadInput` if `--sandwich` was asked for and the pair has no such bounds. With annealing there are those of
    the chains in any case.

    :param sampled: True if importance samples are drawn.
    :param x: a few images, with their labels.
    """
    count = options.num_from_model
    if count:
        fitted.require_complete(f"--sandwich {count}")
    if count == 0 or options.estimator == "annealed":
        return
    if not sampled:
        raise BadInput(
            f"--sandwich {count}: log p(x) is exact, so no importance samples are drawn; add --estimator importance"
        )
    if (reason := why_no_bounds(fitted.pair, x, *labels)) is not None:
        raise BadInput(f"--sandwich {count}: {reason}")


def with_bounds(
    fitted: Fitted,
    estimates: Mapping[str, Estimate],
    options: EvaluationOptions,
    x: Tensor,
    *labels: Tensor,
    quiet: bool = False,
) -> dict[str, Estimate]:
    """Estimates with bounds on images from the model: by importance sampling, and exact values where they are known.
    Noise is drawn from the seed of the options, and torch's generators are restored.

    :param estimates: estimates by name; an annealed one has its bounds already, and its images are used again.
    :param x: images. Those of the model have their shape and their labels, which are repeated if they are too few.
    """
    found, count, known = dict(estimates), options.num_from_model, known_of(estimates)
    guided, annealed = found.get("importance"), found.get("annealed")
    drawn = exact = None
    if isinstance(annealed, AnnealedEstimate) and annealed.bidirectional is not None:
        chains = annealed.bidirectional
        exact = _known_log_px(fitted, known, options, chains.x)
        found["annealed"] = replace(annealed, bidirectional=replace(chains, exact=exact))
        assert chains.z is not None
        x, drawn = chains.x, (chains.x, {fitted.pair.latent[0]: chains.z})
        # Inner plates may give the z of the model another shape than that of prior().
        if fitted.pair.max_plate_nesting > 1 or not scores_others(fitted.pair, Batch(x[:1], (), {})):
            return found
    if count == 0 or not isinstance(guided, ImportanceEstimate):
        return found
    x, *labels = cycled(count, x, *labels)  # type: ignore[assignment]
    with forked_rng(x), Progress(count, "image", quiet=quiet) as progress:
        seed_torch(parallel.rank_seed(options.seed))
        advance = progress.advancing("log p(x) on images from the model", f"{guided.num_samples} samples per image")
        how: dict[str, Any] = {"num_samples": guided.num_samples, "drawn": drawn, "progress": advance}
        bounds = importance_bounds(fitted.model, fitted.guide, x, *labels, **how)
    if drawn is None:
        exact = _known_log_px(fitted, known, options, bounds.x, *labels)
    return found | {"importance": replace(guided, bidirectional=replace(bounds, exact=exact))}


def _known_log_px(
    fitted: Fitted, known: str | None, options: EvaluationOptions, x: Tensor, *labels: Tensor
) -> Tensor | None:
    """log p(x) of images from the model, float64 on the CPU [images], where it is known; else None.

    :param known: name of the estimate without a Monte Carlo error.
    """
    if known == "quadrature":
        return quadrature_log_px(fitted.model, x, quadrature=options.quadrature).log_px
    return None if known is None else torch.cat(list(exact_blocks(fitted.model, fitted.guide, fitted.pair, x, *labels)))
