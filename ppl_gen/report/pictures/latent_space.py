"""Pictures of the latent space."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.evaluation.sampling import equal_mass_grid, vector_size
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.latent import Points, aggregate_posterior, interpolations, latent_space, manifold
from ppl_gen.report.explorer import explorer
from ppl_gen.report.pictures import Drawn, as_images

ABOUT = "the latent space"
_POSTERIOR_SAMPLES = 32  # samples for the posterior mean and standard deviation
_PAIRS, _STEPS, _GRID, _UNITS = 5, 25, 20, 10


def draw(fitted: Fitted) -> Drawn:
    """Pictures of one continuous latent site, of a model with `prior()` and `likelihood(z)`, and of the guide's
    posterior if it has `encode` and `posterior`. After the last picture the run's `explorer.json` is written, from the
    same draws."""
    model: Any = fitted.model
    guide: Any = fitted.guide
    data, size = fitted.data, vector_size(fitted.model, fitted.pair)
    if not size:
        return

    def images(z: Tensor) -> np.ndarray:
        return as_images(model.likelihood(z).mean, data)

    def posterior(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = guide.posterior(guide.encode(x)).sample((_POSTERIOR_SAMPLES,))
        return z[0], z.mean(0), z.std(0)

    has_posterior = offers(guide, Amortized)
    order = list(range(size))  # the most active units first
    if has_posterior:
        one, mean, _ = posterior(data.targets("test")[:2000])
    if has_posterior and len(mean) > 1:
        order = mean.var(0).argsort(descending=True).tolist()
        ends = mean[: 2 * _PAIRS][: len(mean) // 2 * 2].unflatten(0, (2, -1))
        share = torch.linspace(0, 1, _STEPS, device=mean.device)[:, None, None]
        yield "interpolations", interpolations(images(torch.lerp(ends[0], ends[1], share)).swapaxes(0, 1))
        shown = order[:_UNITS]
        prior = model.prior().sample((len(one),))
        ours, theirs = one[:, shown].cpu().numpy(), prior[:, shown].cpu().numpy()
        yield "aggregate_posterior", aggregate_posterior(ours, theirs, shown)
    if size == 1:
        return
    units = order[:2]  # across and up, as in the explorer
    if has_posterior:
        points = {}
        for name in ("train", "validation", "test") if len(data.validation) else ("train", "test"):
            x, labels = data.targets(name)[:1000], data.split(name).labels
            means, scales = (each[:, units].cpu().numpy() for each in posterior(x)[1:])
            points[name] = Points(means, scales, None if labels is None else labels[:1000].cpu().numpy())
        yield "latent_space", latent_space(points, units)
    yield "manifold", manifold(images(equal_mass_grid(model, units, size, _GRID)), units, size > 2)
    explored = explorer(model, data.shape, order, mean if has_posterior else None, data.test.labels)
    if explored is not None:
        fitted.directory.write_json("explorer.json", explored)
