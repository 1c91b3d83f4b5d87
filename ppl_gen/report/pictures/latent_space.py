"""Pictures of the latent space."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.contracts import Amortized, offers
from ppl_gen.evaluation.sampling import vector_size
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.latent import Points, aggregate_posterior, interpolations, latent_space, manifold
from ppl_gen.report.explorer import explorer
from ppl_gen.report.pictures import Drawn, as_images

ABOUT = "the latent space"
_POSTERIOR_SAMPLES = 32  # samples for the posterior mean and standard deviation
_PAIRS, _STEPS, _GRID, _UNITS, _RANGE = 5, 13, 20, 10, 2000


def draw(fitted: Fitted) -> Drawn:
    """Pictures of one continuous latent site, of a model with `prior()` and `likelihood(z)`, and of the guide's
    posterior if it has `encode` and `posterior`. Images on a grid of z are drawn for two units alone: with more, those
    at 0 make hardly any likely image. After the last picture the run's `explorer.json` is written, from the same draws.
    """
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
    order = list(range(size))
    if has_posterior:
        x = data.targets("test")[:2000]
        one, mean, scale = posterior(x)
    prior = model.prior().sample((len(one) if has_posterior else _RANGE,))
    low, high = _range(prior, *([one, mean] if has_posterior else []))  # of every unit, in all of these pictures
    if has_posterior and len(mean) > 1:
        if size > 2:  # the most active units first; two are always drawn across and up in their order
            order = mean.var(0).argsort(descending=True).tolist()
        ends = mean[: 2 * _PAIRS][: len(mean) // 2 * 2].unflatten(0, (2, -1))
        share = torch.linspace(0, 1, _STEPS, device=mean.device)[:, None, None]
        yield "interpolations", interpolations(images(torch.lerp(ends[0], ends[1], share)).swapaxes(0, 1))
        shown = order[:_UNITS]
        ours, theirs = one[:, shown].cpu().numpy(), prior[:, shown].cpu().numpy()
        yield "aggregate_posterior", aggregate_posterior(ours, theirs, shown, low, high)
    if size == 1:
        return
    units = order[:2]  # across and up, as in the explorer
    if has_posterior:
        labels = None if data.test.labels is None else data.test.labels[: len(x)].cpu().numpy()
        points = Points(mean[:, units].cpu().numpy(), scale[:, units].cpu().numpy(), labels)
        yield "latent_space", latent_space(points, units, low, high)
    if size == 2:
        yield "manifold", manifold(images(_grid(low, high).to(prior)), units, low, high)
    explored = explorer(model, data.shape, order, mean if has_posterior else None, data.test.labels)
    if explored is not None:
        fitted.directory.write_json("explorer.json", explored)


def _range(*values: Tensor) -> tuple[float, float]:
    """The ends of the axis of every unit, which has room for all but the outermost z [n, size]."""
    quantiles = torch.tensor([0.001, 0.999], device=values[0].device)
    ends = torch.stack([each.quantile(quantiles.to(each), 0) for each in values])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    pad = 0.04 * (high - low) or 1.0
    return low - pad, high + pad


def _grid(low: float, high: float) -> Tensor:
    """z of the middle of each cell of a square grid, [rows, columns, 2]. Along a row the first unit rises."""
    middles = torch.linspace(low, high, 2 * _GRID + 1)[1::2]
    up, across = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([across, up], -1)
