"""Measurements before the first epoch and after each."""

import math
from contextlib import suppress
from typing import Any

from pyro import poutine

from ppl_gen.core.contracts import Monitors
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import seed_torch
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.discretization import TOLERANCE
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.pair import Pair

SAMPLES = "samples.npz"
"""File of a run's samples through training: arrays `epoch_<number>` [samples, data_dim]."""
_TRAINING_IMAGES = 10_000  # most training images to measure on
_SAMPLES_KEPT = 10
_ADVERSARIAL = {"value": "V", "d_real": "D(x)", "d_fake": "D(G(z))"}  # names of a GAN's terms in print
_SEED = 11  # the same noise at every epoch, so that curves and the best epoch are comparable


class Monitor:
    """Bounds on training and validation images, with the same noise at every epoch. A guide with parameters for each
    image has none for validation images.

    :param pair: the pair that is trained.
    """

    def __init__(self, fitted: Fitted, pair: Pair):
        self.fitted, self.pair = fitted, pair
        data = fitted.data
        # A file of one's own may have its images in the order of their classes; a named data set has not.
        step = 1 if data.sha256 is None else math.ceil(len(data.train) / _TRAINING_IMAGES)
        self.images = {"train": fitted.images("train", _TRAINING_IMAGES, step)}
        if len(data.validation) and not fitted.per_image:
            self.images["validation"] = fitted.images("validation")

    def measure(self, pair: Pair | None = None) -> dict[str, dict[str, float]]:
        """The terms of the ELBO in nats per image, by split, or the numbers that the objective measures instead.

        :param pair: measures this pair in place of its own.
        """
        return {split: self._terms(pair or self.pair, images) for split, images in self.images.items()}

    def _terms(self, pair: Pair, images: tuple[Any, ...]) -> dict[str, float]:
        model, guide, objective = self.fitted.model, self.fitted.guide, self.fitted.objective
        if not isinstance(objective, Monitors):
            return elbo_terms(model, guide, pair, *images, seed=_SEED)
        with evaluating(model, guide), forked_rng(images[0]):
            seed_torch(_SEED)
            return objective.monitor(pair, *images)

    def keep_samples(self, epoch: int) -> None:
        """Save the means of p(x | z) for a few z ~ p(z), the same at every epoch. A model that draws no images saves
        none."""
        if not self.pair.observes_x:
            return
        with evaluating(self.fitted.model), forked_rng(next(self.fitted.modules.parameters())):
            seed_torch(_SEED)
            with suppress(Exception):  # a user's code, whose errors are shown when pictures are drawn
                site = poutine.trace(self.pair.model).get_trace(n=_SAMPLES_KEPT).nodes[self.pair.image]
                self.fitted.directory.add_array(SAMPLES, f"epoch_{epoch}", site["fn"].mean.cpu().numpy())


def is_finite(terms: dict[str, dict[str, float]]) -> bool:
    """True if all measurements of all splits are finite."""
    return all(math.isfinite(value) for figures in terms.values() for value in figures.values())


def show(progress: Progress, line: Json, epochs: int, quantity: str = "log p(x)") -> None:
    """Show a line of `metrics.jsonl` beside the progress bar.

    :param quantity: the name of log p(x), which is measured where there is no KL term: it is exact, or of a grid.
    """
    splits = [name for name in ("train", "validation") if name in line]
    if "elbo" in line["train"]:
        what = "ELBO" if "kl" in line["train"] else quantity
        figures = "  ".join(f"{name} {what} {line[name]['elbo']:.2f}" for name in splits)
        bias = line[splits[-1]].get("grid_bias")
        if bias is not None:
            figures += f"  grid bias {round(bias, 3) + 0.0:.3f}"
            if line["epoch"] == epochs and abs(bias) > TOLERANCE:
                figures += f", above {TOLERANCE} nats: train with more points, such as a larger --guide.points"
    else:
        shown = _ADVERSARIAL if _ADVERSARIAL.keys() <= line["train"].keys() else {key: key for key in line["train"]}
        texts = {split: ", ".join(f"{name} {line[split][key]:.3f}" for key, name in shown.items()) for split in splits}
        figures = "  ".join(f"{split} {text}" for split, text in texts.items())
    progress.note(f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}", figures)
