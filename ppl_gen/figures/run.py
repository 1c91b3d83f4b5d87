"""All pictures of a run, into its `figures/`."""

import sys
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.data import Data
from ppl_gen.errors import describe
from ppl_gen.figures.adversarial import adversarial_curves
from ppl_gen.figures.bounds import bound_against_k, gap_histogram
from ppl_gen.figures.canvas import pictures, save
from ppl_gen.figures.images import reconstructions, samples
from ppl_gen.figures.learning_curves import learning_curves
from ppl_gen.figures.parts import parts, unit_marginals
from ppl_gen.inference.enumeration import state_posterior
from ppl_gen.inference.traces import Pair, evaluating
from ppl_gen.runs import Run


def draw_training(run: Run, model: Any, guide: Any, data: Data, pair: Pair, batch: tuple[Tensor, ...]) -> None:
    """Learning curves, samples, reconstructions, and the pictures that the model has of its own."""
    metrics = run.metrics()
    curves = learning_curves if "elbo" in metrics[0]["train"] else adversarial_curves
    save(run, "learning_curves", curves(metrics))

    def images(values: Tensor) -> np.ndarray:
        return pictures(values.clamp(0, 1), data.shape)

    with evaluating(model, guide), torch.random.fork_rng([batch[0].device] if batch[0].is_cuda else []):
        torch.manual_seed(0)
        try:
            site = poutine.trace(pair.model).get_trace(n=25).nodes[pair.observed[0]]
            save(run, "samples", samples(images(site["fn"].mean), images(site["value"])))
        except Exception as error:  # a user's model need not draw images, but then it says so
            print(f"warning: no picture of samples: model(n=25) fails: {describe(error)}", file=sys.stderr)
        split = "test"
        x = data.targets(split)[:10]
        labels = data.split(split).labels
        args = (labels[:10],) if len(batch) > 1 and labels is not None else ()
        if not pair.enumerated:
            guide_trace = poutine.trace(pair.guide).get_trace(x, *args)
            model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(x, *args)
            means = model_trace.nodes[pair.observed[0]]["fn"].mean
            save(run, "reconstructions", reconstructions(images(x), images(means), split))
        if hasattr(model, "pictures"):
            for name, (title, values, captions) in model.pictures().items():
                save(run, name, parts(pictures(values, data.shape), captions, title))
        shapes = list(pair.event_shapes.values())
        binary = len(shapes) == 1 and len(shapes[0]) == 1 and hasattr(model, "prior") and hasattr(model, "likelihood")
        if binary and pair.num_states is not None and pair.num_states <= 2**16:
            states, probabilities = state_posterior(model, x[:5])
            exact = (probabilities.T @ states).cpu().numpy()
            own = None
            if hasattr(guide, "encode") and hasattr(guide, "posterior"):
                own = guide.posterior(guide.encode(x[:5])).mean.cpu().numpy()
            prior = model.prior().mean.cpu().numpy()
            save(run, "posterior", unit_marginals(images(x[:5]), exact, own, prior))


def draw_evaluation(run: Run) -> None:
    """The bound against k and the histogram of the gap, from the run's evaluation."""
    import xarray

    summary = run.read_json("evaluation.json")
    assert summary is not None
    if "iwae" not in summary:
        return
    with xarray.open_dataset(run.path / "evaluation.nc", group="evaluation", engine="h5netcdf") as dataset:
        gap, untrusted = dataset["gap"].values, dataset["untrusted"].values.astype(bool)
    save(run, "bound_against_k", bound_against_k(summary))
    save(run, "gap_histogram", gap_histogram(gap, untrusted))
