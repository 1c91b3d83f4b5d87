"""The pictures of a run: what to compute for each, and the files in its `figures/`."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.contracts import Amortized, HasDensity, HasPictures, offers
from ppl_gen.core.errors import BadInput, describe
from ppl_gen.data.splits import Data
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.figures.adversarial import adversarial_curves
from ppl_gen.figures.bounds import bound_against_k, gap_histogram
from ppl_gen.figures.canvas import Figure, pictures
from ppl_gen.figures.images import reconstructions, samples, through_training
from ppl_gen.figures.latent import Points, aggregate_posterior, interpolations, latent_space, manifold
from ppl_gen.figures.learning_curves import learning_curves, monitored_curves
from ppl_gen.figures.parts import parts, unit_marginals
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.exact import state_posterior
from ppl_gen.inference.latent_grid import equal_mass_grid, vector_size
from ppl_gen.inference.pair import Pair
from ppl_gen.report.explorer import explorer

_POSTERIOR_SAMPLES = 32  # for its mean and standard deviation
_PAIRS, _STEPS, _GRID, _UNITS = 5, 25, 20, 10

Drawn = Iterator[tuple[str, Figure]]
"""Pictures with their names. Whatever they are made of is computed when the next one is asked for."""


def save(run: RunDirectory, name: str, figure: Figure) -> None:
    """Put a picture into `figures/` of a run."""
    run.write_file(f"figures/{name}.png", lambda path: figure.savefig(path, dpi=120))


def draw_evaluation(run: RunDirectory) -> None:
    """Save the pictures of the run's evaluation."""
    for name, figure in of_evaluation(run):
        save(run, name, figure)


def draw_training(fitted: Fitted) -> None:
    """Save learning curves, samples, reconstructions, pictures of the latent space, and those that the model has of its
    own. What cannot be drawn is told on standard error."""
    run, data, device = fitted.directory, fitted.data, fitted.batch[0].device
    metrics = run.metrics()
    measured = metrics[0]["train"]
    bounded = "elbo" in measured
    curves = learning_curves if bounded else adversarial_curves if "d_real" in measured else monitored_curves
    save(run, "learning_curves", curves(metrics))
    # Each is computed as it is saved, in this order, which is that of the random draws.
    kinds: dict[str, Drawn] = {
        "samples: model(n=25) fails": of_samples(fitted.pair, data),
        "samples through training": of_training(run, data),
        "reconstructions": of_reconstructions(fitted) if bounded else iter(()),
        "the model's own: pictures() fails": of_model(fitted.model, data),
        "the latent space": of_latent_space(fitted),
        "the posterior of the units": of_units(fitted),
    }
    with evaluating(fitted.model, fitted.guide), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for what, drawn in kinds.items():
            with _drawing(what):
                for name, figure in drawn:
                    save(run, name, figure)


@contextmanager
def _drawing(what: str) -> Iterator[None]:
    """A user's model or guide need not draw everything, but then it says so, and the run goes on."""
    try:
        yield
    except BadInput:  # a full disk
        raise
    except Exception as error:
        print(f"warning: no picture of {what}: {describe(error)}", file=sys.stderr)


# What is drawn -------------------------------------------------------------------------------------------------


def _images(values: Tensor, data: Data) -> np.ndarray:
    """Images [..., pixels] in [0, 1], as they are shown."""
    return pictures(values.clamp(0, 1), data.shape)


def of_evaluation(run: RunDirectory) -> Drawn:
    """The bound against k and the histogram of the gap, from the run's evaluation; none if every z was summed out."""
    summary = run.read_json("evaluation.json")
    assert summary is not None
    if "iwae" not in summary:
        return
    images = run.per_image()
    means = [entry["mean"] for entry in (summary["log_px"], *summary["iwae"].values())]
    if all(mean is not None and math.isfinite(mean) for mean in means):
        yield "bound_against_k", bound_against_k(summary)
    gap, untrusted = images["gap"].values, images["untrusted"].values.astype(bool)
    yield "gap_histogram", gap_histogram(gap, untrusted, bool(summary["gap"]["at_least"]))


def of_samples(pair: Pair, data: Data) -> Drawn:
    """Images from the model."""
    site = poutine.trace(pair.model).get_trace(n=25).nodes[pair.image]
    yield "samples", samples(_images(site["fn"].mean, data), _images(site["value"], data))


def of_training(run: RunDirectory, data: Data) -> Drawn:
    """Samples from the same noise that were kept before, during and after training, if any were."""
    kept = {int(name.removeprefix("epoch_")): values for name, values in run.arrays("samples.npz").items()}
    if kept:
        images = {epoch: _images(torch.from_numpy(kept[epoch]), data) for epoch in sorted(kept)}
        yield "through_training", through_training(images)


def of_reconstructions(fitted: Fitted) -> Drawn:
    """Test images beside what the model makes of the guide's z; none where the guide draws no z."""
    pair, data = fitted.pair, fitted.data
    if pair.enumerated:
        return
    x, *labels = fitted.images("test", 10)
    guide_trace = poutine.trace(pair.guide).get_trace(x, *labels)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x, *labels)
    means = model_trace.nodes[pair.image]["fn"].mean
    yield "reconstructions", reconstructions(_images(x, data), _images(means, data), "test")


def of_model(model: Any, data: Data) -> Drawn:
    """The pictures that a model has of its own, if it has any."""
    if offers(model, HasPictures):
        for name, (title, values, captions) in model.pictures().items():
            yield name, parts(pictures(values, data.shape), captions, title)


def of_latent_space(fitted: Fitted) -> Drawn:
    """One continuous latent site of a model with `prior()` and `likelihood(z)`, and a guide's posterior there, if it
    has `encode` and `posterior`. The last picture is followed by the file `explorer.json` of the run, which is computed
    from the same draws."""
    model: Any = fitted.model
    guide: Any = fitted.guide
    data, size = fitted.data, vector_size(fitted.model, fitted.pair)
    if not size:
        return

    def images(z: Tensor) -> np.ndarray:
        return _images(model.likelihood(z).mean, data)

    def posterior(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = guide.posterior(guide.encode(x)).sample((_POSTERIOR_SAMPLES,))
        return z[0], z.mean(0), z.std(0)

    has_posterior = offers(guide, Amortized)
    order = list(range(size))  # the most active units first
    if has_posterior:
        one, mean, _ = posterior(data.targets("test")[:2000])
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


def of_units(fitted: Fitted) -> Drawn:
    """p(z_m = 1 | x) of five test images, exact, and the guide's: of one latent site of up to 16 binary units, of a
    model with `prior()` and `likelihood(z)`."""
    model: Any = fitted.model
    guide: Any = fitted.guide
    data, pair, x = fitted.data, fitted.pair, fitted.data.targets("test")[:5]
    shapes = list(pair.event_shapes.values())
    binary = len(shapes) == 1 and len(shapes[0]) == 1 and offers(model, HasDensity)
    if not binary or pair.num_states is None or pair.num_states > 2**16:
        return
    states, probabilities = state_posterior(model, x)
    exact = (probabilities.T @ states).cpu().numpy()
    own = guide.posterior(guide.encode(x)).mean.cpu().numpy() if offers(guide, Amortized) else None
    prior = model.prior().mean.cpu().numpy()
    yield "posterior", unit_marginals(_images(x, data), exact, own, prior)
