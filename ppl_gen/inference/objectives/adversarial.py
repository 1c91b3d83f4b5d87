"""The losses of a generator and a discriminator."""

from typing import Any

from torch import Tensor

from ppl_gen.core.contracts import Objective
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.annealed import fit_scale
from ppl_gen.inference.objectives.loss import NOT_RECORDABLE
from ppl_gen.inference.pair import Pair

__all__ = ["Adversarial"]

_NEEDED = ("adversarial_losses", "monitor", "log_scale", "prior", "likelihood")
_SCALE_IMAGES = 50  # to choose the noise of a density on


class Adversarial:
    """The generator's loss plus the discriminator's (Goodfellow et al. 2014), times the images: no bound on log p(x),
    and no guide takes part.

    The model has `adversarial_losses(x)`, which returns the two; `monitor(x)`, the numbers that are written down of
    them; and a density: `prior()`, `likelihood(z)` and its `log_scale`, which is chosen after the last step.
    """

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        for needed in _NEEDED:
            if not hasattr(_model(pair), needed):
                raise BadInput(f"--objective adversarial: {pair.model_name} has no {needed}, as gan has")

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """The sum of both losses, times the images."""
        generator, discriminator = _model(pair).adversarial_losses(x)
        loss: Tensor = (generator + discriminator) * len(x)
        return loss

    def monitor(self, pair: Pair, x: Tensor, *args: Any) -> dict[str, float]:
        """The numbers that the model's `monitor(x)` returns."""
        found: dict[str, float] = _model(pair).monitor(x)
        return found

    def finish(self, model: Any, x: Tensor) -> None:
        """Choose the noise of the density, which was not trained, on the first images of `x`."""
        fit_scale(model, x[:_SCALE_IMAGES])

    def recordable(self, pair: Pair) -> Objective:
        raise BadInput(NOT_RECORDABLE)


def _model(pair: Pair) -> Any:
    """The module behind the pair's model."""
    return getattr(pair.model, "__self__", None)
