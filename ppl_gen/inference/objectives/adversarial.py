"""The losses of a generator and a discriminator."""

from typing import Any, cast

from torch import Tensor

from ppl_gen.core.contracts import AdversarialModel, missing
from ppl_gen.core.errors import BadInput
from ppl_gen.inference.annealed import fit_scale
from ppl_gen.inference.pair import Pair

__all__ = ["Adversarial"]

_SCALE_IMAGES = 50  # images from which the noise of the density is estimated


class Adversarial:
    """The generator's loss plus the discriminator's (Goodfellow et al. 2014), times the number of images. It is no
    bound on log p(x), and the guide is not used.

    The model is an `AdversarialModel`: it has `adversarial_losses(x)`; `monitor(x)`, whose numbers are recorded; and a
    density with `prior()`, `likelihood(z)` and a `log_scale`, which is estimated after the last step.
    """

    def check(self, pair: Pair, x: Tensor, *args: Any) -> None:
        if (name := missing(_model(pair), AdversarialModel)) is not None:
            raise BadInput(f"--objective adversarial: {pair.model_name} has no {name}; use the model gan")

    def loss(self, pair: Pair, x: Tensor, *args: Any) -> Tensor:
        """The sum of both losses, times the images."""
        generator, discriminator = _model(pair).adversarial_losses(x)
        return (generator + discriminator) * len(x)

    def monitor(self, pair: Pair, x: Tensor, *args: Any) -> dict[str, float]:
        """The numbers that the model's `monitor(x)` returns."""
        return dict(_model(pair).monitor(x))

    def finish(self, model: AdversarialModel, x: Tensor) -> None:
        """Estimate the noise of the density, which was not trained, from the first images of `x`."""
        fit_scale(model, x[:_SCALE_IMAGES])


def _model(pair: Pair) -> AdversarialModel:
    """The module whose method is the pair's model."""
    return cast(AdversarialModel, getattr(pair.model, "__self__", None))
