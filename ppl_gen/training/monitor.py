"""What is measured before the first epoch and after each."""

import math
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine

from ppl_gen.data import SplitName
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.importance import elbo_terms
from ppl_gen.inference.traces import Pair
from ppl_gen.progress import Progress

SAMPLES = "samples.npz"
"""The file of a run's samples through training: arrays `epoch_<number>` [samples, data_dim]."""
_TRAINING_IMAGES = 10_000  # that are measured as the validation split is
_SAMPLES_KEPT = 10
_SEED = 11  # the same noise at every epoch, so that curves and the best epoch are comparable


class Monitor:
    """The bounds on training and validation images, with the same noise every time.

    :param pair: as it is trained.
    :param adversarial: whether the model has two losses in the place of a bound.
    """

    def __init__(self, fitted: Fitted, pair: Pair, adversarial: bool):
        self.fitted, self.pair, self.adversarial = fitted, pair, adversarial
        counts: dict[SplitName, int] = {"train": _TRAINING_IMAGES}
        if len(fitted.data.validation):
            counts["validation"] = len(fitted.data.validation)
        self.images = {split: fitted.images(split, count) for split, count in counts.items()}

    def measure(self) -> dict[str, dict[str, float]]:
        """The terms of the ELBO, in nats per image, by split; or what an adversarial model monitors."""
        return {split: self._terms(images) for split, images in self.images.items()}

    def _terms(self, images: tuple[Any, ...]) -> dict[str, float]:
        model, guide = self.fitted.model, self.fitted.guide
        if not self.adversarial:
            return elbo_terms(model, guide, self.pair, *images, seed=_SEED)
        x = images[0]
        with evaluating(model), torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(_SEED)
            monitored: dict[str, float] = model.monitor(x)  # type: ignore[operator]
            return monitored

    def keep_samples(self, epoch: int) -> None:
        """Save means of p(x | z) for the same few z ~ p(z), for the pictures. A model need not draw images."""
        device = next(self.fitted.model.parameters()).device
        with evaluating(self.fitted.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_SEED)
            with suppress(Exception):  # somebody else's code, which is told when pictures are drawn
                site = poutine.trace(self.pair.model).get_trace(n=_SAMPLES_KEPT).nodes[self.pair.image]
                self.fitted.directory.add_array(SAMPLES, f"epoch_{epoch}", site["fn"].mean.cpu().numpy())


def is_finite(terms: dict[str, dict[str, float]]) -> bool:
    """Whether every figure of every split is."""
    return all(math.isfinite(value) for figures in terms.values() for value in figures.values())


def show(progress: Progress, line: dict[str, Any], epochs: int) -> None:
    """Show a line of `metrics.jsonl` to a person."""
    splits = [name for name in ("train", "validation") if name in line]
    if "elbo" in line["train"]:
        what = "ELBO" if "kl" in line["train"] else "log p(x)"  # without a KL term it is exact
        figures = "  ".join(f"{name} {what} {line[name]['elbo']:.2f}" for name in splits)
    else:
        told = "V {value:.3f}, D(x) {d_real:.3f}, D(G(z)) {d_fake:.3f}"
        figures = "  ".join(f"{name} {told.format(**line[name])}" for name in splits)
    progress.note(f"epoch {line['epoch']:>{len(str(epochs))}}/{epochs}", figures)
