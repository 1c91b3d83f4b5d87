"""All pictures of a run, into its `figures/`."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.data import Data
from ppl_gen.errors import BadInput, describe
from ppl_gen.figures.adversarial import adversarial_curves
from ppl_gen.figures.bounds import bound_against_k, gap_histogram
from ppl_gen.figures.canvas import pictures, save
from ppl_gen.figures.explorer import explorer
from ppl_gen.figures.images import reconstructions, samples, through_training
from ppl_gen.figures.latent import (
    Points,
    aggregate_posterior,
    equal_mass_grid,
    has_plane,
    interpolations,
    latent_space,
    manifold,
)
from ppl_gen.figures.learning_curves import learning_curves, monitored_curves
from ppl_gen.figures.parts import parts, unit_marginals
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.enumeration import state_posterior
from ppl_gen.inference.traces import Pair, amortized, tells_density
from ppl_gen.runs import Run

_POSTERIOR_SAMPLES = 32  # for its mean and standard deviation
_PAIRS, _STEPS, _GRID, _UNITS = 5, 25, 20, 10


@contextmanager
def _drawing(what: str) -> Iterator[None]:
    """A user's model or guide need not draw everything, but then it says so, and the run goes on."""
    try:
        yield
    except BadInput:  # a full disk
        raise
    except Exception as error:
        print(f"warning: no picture of {what}: {describe(error)}", file=sys.stderr)


def draw_training(run: Run, model: Any, guide: Any, data: Data, pair: Pair, batch: tuple[Tensor, ...]) -> None:
    """Learning curves, samples, reconstructions, and the pictures that the model has of its own."""
    metrics = run.metrics()
    measured = metrics[0]["train"]
    curves = learning_curves if "elbo" in measured else adversarial_curves if "d_real" in measured else monitored_curves
    save(run, "learning_curves", curves(metrics))

    def images(values: Tensor) -> np.ndarray:
        return pictures(values.clamp(0, 1), data.shape)

    with evaluating(model, guide), torch.random.fork_rng([batch[0].device] if batch[0].is_cuda else []):
        torch.manual_seed(0)
        with _drawing("samples: model(n=25) fails"):
            site = poutine.trace(pair.model).get_trace(n=25).nodes[pair.image]
            save(run, "samples", samples(images(site["fn"].mean), images(site["value"])))
        kept = {int(name.removeprefix("epoch_")): values for name, values in run.arrays("samples.npz").items()}
        if kept:
            with _drawing("samples through training"):
                strips = {epoch: images(torch.from_numpy(kept[epoch])) for epoch in sorted(kept)}
                save(run, "through_training", through_training(strips))
        split = "test"
        x = data.targets(split)[:10]
        labels = data.split(split).labels
        args = (labels[:10],) if len(batch) > 1 and labels is not None else ()
        if not pair.enumerated and curves is learning_curves:
            with _drawing("reconstructions"):
                guide_trace = poutine.trace(pair.guide).get_trace(x, *args)
                model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x, *args)
                means = model_trace.nodes[pair.image]["fn"].mean
                save(run, "reconstructions", reconstructions(images(x), images(means), split))
        if hasattr(model, "pictures"):
            with _drawing("the model's own: pictures() fails"):
                for name, (title, values, captions) in model.pictures().items():
                    save(run, name, parts(pictures(values, data.shape), captions, title))
        with _drawing("the latent space"):
            draw_latent(run, model, guide, data, pair)
        with _drawing("the posterior of the units"):
            draw_units(run, model, guide, data, pair, x[:5])


def draw_units(run: Run, model: Any, guide: Any, data: Data, pair: Pair, x: Tensor) -> None:
    """p(z_m = 1 | x) of a few images, exact, and the guide's: of one latent site of up to 16 binary units, of a model
    with `prior()` and `likelihood(z)`."""
    shapes = list(pair.event_shapes.values())
    binary = len(shapes) == 1 and len(shapes[0]) == 1 and tells_density(model)
    if not binary or pair.num_states is None or pair.num_states > 2**16:
        return
    states, probabilities = state_posterior(model, x)
    exact = (probabilities.T @ states).cpu().numpy()
    own = None
    if amortized(guide):
        own = guide.posterior(guide.encode(x)).mean.cpu().numpy()
    prior = model.prior().mean.cpu().numpy()
    save(run, "posterior", unit_marginals(pictures(x.clamp(0, 1), data.shape), exact, own, prior))


def draw_latent(run: Run, model: Any, guide: Any, data: Data, pair: Pair) -> None:
    """Pictures of one continuous latent site of a model with `prior()` and `likelihood(z)`, and of a guide's posterior
    there, if it has `encode` and `posterior`; and what the page's explorer needs."""
    size = has_plane(model, pair)
    if not size:
        return

    def images(z: Tensor) -> np.ndarray:
        return pictures(model.likelihood(z).mean.clamp(0, 1), data.shape)

    def posterior(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = guide.posterior(guide.encode(x)).sample((_POSTERIOR_SAMPLES,))
        return z[0], z.mean(0), z.std(0)

    has_posterior = amortized(guide)
    order = list(range(size))  # the most active units first
    if has_posterior:
        one, mean, _ = posterior(data.targets("test")[:2000])
        order = mean.var(0).argsort(descending=True).tolist()
        ends = mean[: 2 * _PAIRS][: len(mean) // 2 * 2].unflatten(0, (2, -1))
        share = torch.linspace(0, 1, _STEPS, device=mean.device)[:, None, None]
        save(run, "interpolations", interpolations(images(torch.lerp(ends[0], ends[1], share)).swapaxes(0, 1)))
        shown = order[:_UNITS]
        prior = model.prior().sample((len(one),))
        ours, theirs = one[:, shown].cpu().numpy(), prior[:, shown].cpu().numpy()
        save(run, "aggregate_posterior", aggregate_posterior(ours, theirs, shown))
    if size == 1:
        return
    units = order[:2]  # across and up, as in the explorer
    if has_posterior:
        points = {}
        names = ("train", "validation", "test") if len(data.validation) else ("train", "test")
        for name in names:
            x, labels = data.targets(name)[:1000], data.split(name).labels
            means, scales = (each[:, units].cpu().numpy() for each in posterior(x)[1:])
            points[name] = Points(means, scales, None if labels is None else labels[:1000].cpu().numpy())
        save(run, "latent_space", latent_space(points, units))
    grid = equal_mass_grid(model, units, size, _GRID)
    save(run, "manifold", manifold(images(grid), units, size > 2))
    explored = explorer(model, data.shape, order, mean if has_posterior else None, data.test.labels)
    if explored is not None:
        run.write_json("explorer.json", explored)


def draw_evaluation(run: Run) -> None:
    """The bound against k and the histogram of the gap, from the run's evaluation."""
    summary = run.read_json("evaluation.json")
    assert summary is not None
    if "iwae" not in summary:
        return
    images = run.per_image()
    gap, untrusted = images["gap"].values, images["untrusted"].values.astype(bool)
    means = [entry["mean"] for entry in (summary["log_px"], *summary["iwae"].values())]
    if all(mean is not None and math.isfinite(mean) for mean in means):
        save(run, "bound_against_k", bound_against_k(summary))
    save(run, "gap_histogram", gap_histogram(gap, untrusted, bool(summary["gap"]["at_least"])))
