"""The exact posterior of a plane of z, with the guide's over it."""

from collections.abc import Sequence

import numpy as np
import torch

from ppl_gen.core.errors import BadInput
from ppl_gen.evaluation.sampling import vector_size
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.posteriors import MASSES, Posteriors, Regions, posteriors
from ppl_gen.inference.posterior_grid import GridDensity, posterior_grids
from ppl_gen.inference.quadrature import why_no_quadrature
from ppl_gen.report.pictures import Drawn, as_images
from ppl_gen.report.posteriors import write_posteriors

ABOUT = "the posterior"
_IMAGES = 6


def draw(fitted: Fitted) -> Drawn:
    """p(z | x) of the first six test images, and the guide's q(z | x) if it has a density, for a latent vector of two
    units. `posteriors.npz` is written too, which `compare` reads. There are none if training has no ELBO."""
    model, pair, (x, *args) = fitted.model, fitted.pair, fitted.images("test", _IMAGES)
    if vector_size(model, pair) != 2 or "elbo" not in fitted.directory.last.get("train", {}):
        return
    if why_no_quadrature(pair, model, *args) is not None:
        return
    try:
        grids = posterior_grids(model, pair, x, *args)
    except BadInput as error:  # which would end the run
        raise ValueError(error.sentence) from error
    guides = [each.guide for each in grids if each.guide is not None]
    kl = np.array([[each.guide_to_exact, each.exact_to_guide] for each in grids])
    exact = _regions([each.exact for each in grids])
    found = Posteriors(as_images(x, fitted.data), exact, _regions(guides) if guides else None, kl)
    write_posteriors(fitted.directory, found)
    yield "posteriors", posteriors({"": found})


def _regions(densities: Sequence[GridDensity]) -> Regions:
    """Densities as arrays, each with the same number of cells: with fewer, where its own grid has more."""
    cells = min(each.axes.shape[1] for each in densities)
    steps = [each.axes.shape[1] // cells for each in densities]
    pairs = list(zip(densities, steps, strict=True))
    axes = torch.stack([each.axes[:, ::step] for each, step in pairs])
    log_density = torch.stack([each.log_density[::step, ::step] for each, step in pairs])
    levels = torch.stack([each.levels(MASSES) for each in densities])
    return Regions(axes.numpy(), log_density.float().numpy(), levels.numpy())
