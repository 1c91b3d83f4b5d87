"""Estimates of the same 20 images, whose figures are written out."""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_gen.inference.annealed import AnnealedEstimate, Annealing, BidirectionalBounds
from ppl_gen.inference.estimate import Estimate
from ppl_gen.inference.importance import ImportanceEstimate

ONE = torch.ones(20, dtype=torch.float64)
ABOUT: dict[str, Any] = {
    "model": "vae",
    "guide": "normal",
    "data": "digits",
    "split": "test",
    "binarization": "dynamic",
    "checkpoint": "last",
    "seed": 0,
    "training_seed": 0,
    "num_images": 20,
    "observation": "probability",
    "num_parameters": 1,
    "seconds": 1.0,
    "options": {},
}
"""What else a summary has."""


def low(log_px: float | Tensor, mc_var: float = 1e-4, bias: float = 0.0, **more: Any) -> Estimate:
    """log p(x) of an estimator without diagnostics."""
    values = log_px * ONE if isinstance(log_px, float) else log_px
    variance, biases = torch.full_like(values, mc_var), torch.full_like(values, bias)
    more = {"estimator": "test"} | more
    return Estimate(log_px=values, log_px_mc_var=variance, log_px_bias=biases, **more)


def sampled(log_px: float, **more: Any) -> Estimate:
    """log p(x) from 1000 samples that k-hat trusts."""
    diagnostics = {"num_samples": 1000, "ess": 500 * ONE, "khat": 0.1 * ONE}
    return low(log_px, 1e-4, -1e-4, **(diagnostics | more))


def importance(log_px: float, elbo: float, mc_var: float = 1e-4, khat: float = 0.1) -> ImportanceEstimate:
    return ImportanceEstimate(
        num_samples=1000,
        log_px=log_px * ONE,
        log_px_mc_var=mc_var * ONE,
        log_px_bias=-mc_var / 2 * ONE,
        ess=500 * ONE,
        khat=khat * ONE,
        elbo=elbo * ONE,
        reconstruction=elbo * ONE,
        kl=0 * ONE,
        elbo_mc_var=1e-4 * ONE,
        elbo_tail=math.nan * ONE,
        kl_analytic=None,
        iwae={1: elbo * ONE},
        iwae_jackknife={},
        latent_mean={},
        latent_mc_var={},
    )


def annealed(
    log_px: float, mc_var: float = 0.04, bias: float = -0.02, bidirectional: BidirectionalBounds | None = None
) -> AnnealedEstimate:
    return AnnealedEstimate(
        annealing=Annealing(),
        num_samples=16,
        log_px=log_px * ONE,
        log_px_mc_var=mc_var * ONE,
        log_px_bias=bias * ONE,
        ess=8 * ONE,
        acceptance=0.6 * ONE,
        bidirectional=bidirectional,
    )


def bidirectional(wide: int = 0, count: int = 100) -> BidirectionalBounds:
    """Bounds a hundredth of a nat apart on `count` images, and 2 nats on some of them."""
    width = torch.full((count,), 0.01, dtype=torch.float64)
    width[:wide] = 2.0
    return BidirectionalBounds({}, torch.zeros(count, 1), -50 - width, torch.full_like(width, -50), 1e-4 * width)
