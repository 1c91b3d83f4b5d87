"""log p(x) by quadrature over z, for models whose z has one to three continuous units.

A grid over z is a finite support, so that a sum over states is log p(x) up to the error of the grid:

    log p(x) = log integral p(z) p(x | z) dz ~ log sum_g h p(z_g) p(x | z_g)

with the midpoints z_g of cells of volume h. For a smooth integrand that vanishes at the ends, the error of the midpoint
rule decreases exponentially with 1 / h (Trefethen and Weideman 2014, section 5): halving the step raises it to the
fourth power. p(x | z_g) of many images is a matrix product of images and grid points.

1. The range of the grid is that of samples of the prior. It is extended while a cell at its end has a part of p(x, z)
   of some image that is not negligible.
2. Cells are halved along every unit. Those that are negligible for an image keep their coarse value. "Negligible"
   allows for a peak between the midpoints: the differences among neighboring cells say how steep log p(x, z) is there.
3. Neighboring cells form a tile, with the images that need any of its cells. The decoder runs once for a tile.
4. An image is settled when its log p(x) moves by less than the tolerance.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.errors import BadInput
from ppl_gen.core.memory import keep_freed_memory
from ppl_gen.core.progress import Advance
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.agreement import too_high
from ppl_gen.inference.arguments import as_images
from ppl_gen.inference.estimate import Estimate, Variable
from ppl_gen.inference.integrand import Alone, Integrand, num_parameters, num_pixels
from ppl_gen.inference.modes import evaluating, forked_rng, matmul_precision
from ppl_gen.inference.options import Quadrature
from ppl_gen.inference.pair import Pair, require_images
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.refinement import NoEnd, Refinement, TooMuchWork
from ppl_gen.inference.signatures import ByName, asks_for_index, name_of
from ppl_gen.networks.supports import is_discrete

__all__ = ["Quadrature", "QuadratureEstimate", "TooMuchWork", "importance_work", "quadrature_log_px"]

MOST_UNITS = 3
_DOUBTED, _PRIOR_SAMPLES = 20, 100_000  # images on which samples of the prior decide, and their number
_MASS = 1e-3  # change of log p(x), in nats, below which the rounding of a prior in float32 is not looked into


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class QuadratureEstimate(Estimate):
    """log p(x) by quadrature. It has no Monte Carlo error."""

    estimator: str = "quadrature"
    words: str = "quadrature"
    change: Tensor
    """Change of log p(x) when the step was halved for the last time, in nats [images]. The error is smaller for a
    smooth integrand, and of this size where it has kinks, as with splines; unless the grid misses a peak."""
    evaluations: int
    """Number of evaluations of p(x | z): pairs of image and grid point."""

    def settings_entry(self) -> dict[str, Any]:
        return {**self.settings, "largest_change": float(self.change.max()), "points_per_image": self.points_per_image}

    def diagnostic_variables(self, suffix: str) -> dict[str, Variable]:
        title = "change of log p(x) when the step of quadrature was halved for the last time"
        return {f"change{suffix}": Variable(self.change, title)}

    @property
    def points_per_image(self) -> int:
        """Mean number of grid points for an image."""
        return self.evaluations // max(1, len(self.log_px))


def quadrature_log_px(
    model: Any,
    x: Tensor,
    *,
    quadrature: Quadrature | None = None,
    most_work: float = math.inf,
    progress: Advance | None = None,
) -> QuadratureEstimate:
    """log p(x) in nats by quadrature, to a stated tolerance.

    The result does not depend on torch's generator, which is left as it was.

    >>> from ppl_gen.models.factor_analysis import FactorAnalysis
    >>> model = FactorAnalysis(16, latent_dim=2).double()
    >>> x = torch.randn(3, 16, dtype=torch.float64)
    >>> (quadrature_log_px(model, x).log_px - model.log_px(x)).abs().max() < 1e-9
    tensor(True)

    :param model: a module with `prior()` and `likelihood(z)` for one latent site of one to three continuous units.
        `likelihood(z)` is called with z [points, 1, units], or with z [points, units] if it does not support that.
    :param x: images [N, ...].
    :param most_work: operations that may be spent, in multiplications; see `importance_work`.
    :param progress: called with the number of images just done.
    :raises BadInput: for a model that does not fit, and for log p(x) that does not settle.
    :raises TooMuchWork: if `most_work` does not suffice.
    """
    quadrature = quadrature or Quadrature()
    x = as_images(x, model)
    keep_freed_memory()
    with evaluating(model), matmul_precision(), forked_rng(x):
        check(model)
        seed_torch(0)  # of the prior's samples, which set the range
        integrand = Integrand(model, x)
        refinement = Refinement(integrand, x, quadrature.tolerance, most_work, progress)
        refinement.run()
        _check_mass(integrand, x[:1], quadrature.tolerance)
    return QuadratureEstimate(
        log_px=refinement.log_px,
        log_px_mc_var=torch.zeros_like(refinement.log_px),
        log_px_bias=torch.zeros_like(refinement.log_px),
        change=refinement.change,
        evaluations=refinement.pairs,
        settings={"tolerance": quadrature.tolerance},
    )


def _check_mass(integrand: Integrand, x: Tensor, tolerance: float) -> None:
    """Raise `BadInput` if the prior does not integrate to 1 on a grid of its own: the rest is nearer to an end of its
    support than the numbers of its dtype are, or its density is not normalized. The same part of p(x) may be lost."""
    mass = Refinement(Alone(integrand), x, tolerance, math.inf, None)
    try:
        mass.run()
    except NoEnd:
        raise BadInput(
            f"{name_of(integrand.model)}: the density of prior() does not fall beyond its samples: it is not "
            "normalized, or has values outside of its support; estimate log p(x) by --estimator importance"
        ) from None
    except BadInput:  # the prior is too rough for a grid where no image needs it: nothing is known
        return
    if float(mass.log_px.abs()) > max(2 * tolerance, _MASS):
        raise BadInput(
            f"{name_of(integrand.model)}: prior() integrates to {float(mass.log_px.exp()):.4g} on a grid: its density "
            f"is not normalized, or a part of it is too near to an end of its support for {integrand.dtype}; estimate "
            "log p(x) by --estimator importance"
        )


def check_grid(model: Any, x: Tensor, estimate: QuadratureEstimate, sampled: Estimate) -> None:
    """Raise `BadInput` if the grid misses a part of p(x, z). Where importance sampling from a guide is above quadrature
    beyond chance, either this is so, or q(z | x) is not the density of what the guide draws. Samples of the prior,
    which need no guide, decide it. Torch's generators are restored.

    :param x: images [N, ...].
    :param sampled: log p(x) of the images by importance sampling.
    """
    most = estimate.log_px + estimate.change
    doubted = too_high(sampled, most)
    if not doubted.any:
        return
    difference = (sampled.log_px - most).nan_to_num(nan=-math.inf)
    chosen = doubted.images if doubted.images.any() else ~doubted.images
    rows = difference.where(chosen, -math.inf).topk(min(_DOUBTED, len(x))).indices
    with matmul_precision(), forked_rng(x):
        seed_torch(0)
        by_prior = proposal_log_px(model, [], x[rows.to(x.device)], num_samples=_PRIOR_SAMPLES, prior_share=1.0)
    higher = by_prior.log_px - most[rows]
    if too_high(by_prior, most[rows]).any:
        at = int(higher.argmax())
        raise BadInput(
            f"{name_of(model)}: the grid misses a part of p(x, z): log p(x) of image {int(rows[at])} is "
            f"{float(estimate.log_px[rows[at]]):.6g} by quadrature, and {float(by_prior.log_px[at]):.6g} by "
            f"{_PRIOR_SAMPLES:,} samples of the prior"
        )


def check(model: Any) -> None:
    """Raise `BadInput` for a model that quadrature does not support."""
    name = name_of(model)
    if not offers(model, HasDensity):
        raise BadInput(f"{name}: quadrature needs a model of one latent site, with prior() and likelihood(z)")
    prior = model.prior()
    units = math.prod(prior.event_shape)
    if is_discrete(prior):
        raise BadInput(f"{name}: quadrature needs a continuous latent; enumerate a finite one")
    if not 1 <= units <= MOST_UNITS or prior.batch_shape:
        what = f"{units} units" if not prior.batch_shape else f"a batch {list(prior.batch_shape)} of priors"
        raise BadInput(
            f"{name}: quadrature needs a latent of 1 to {MOST_UNITS} units and one prior() for all, not {what}"
        )


def why_no_quadrature(pair: Pair, model: Any, *args: Any) -> str | None:
    """The reason why quadrature does not support a pair, as a sentence; None if it does.

    :param args: further arguments of the pair. Row numbers, of a guide alone, do not matter.
    """
    name = pair.model_name
    if any(not isinstance(each, ByName) for each in args):
        return f"{name}: quadrature needs a model and a guide without labels"
    if asks_for_index(model):
        return f"{name}: quadrature needs a model without parameters for each image"
    if len(pair.latent) != 1 or len(pair.observed) != 1 or pair.max_plate_nesting != 1 or pair.masked:
        has = f"{', '.join(pair.latent)} and observes {', '.join(pair.observed)}"
        return f"{name}: quadrature needs one latent and one observed site, in the plate of images alone; it has {has}"
    try:
        require_images(pair, "quadrature")
        with evaluating(model):
            check(model)
    except BadInput as error:
        return error.sentence
    return None


def importance_work(model: Any, x: Tensor, num_samples: int) -> float:
    """Multiplications that importance sampling of images x takes, roughly: a decoder's parameters and an image's pixels
    for every sample."""
    return float(len(x)) * num_samples * (num_parameters(model) + num_pixels(x))
