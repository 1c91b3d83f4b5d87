"""Training that has diverged: how it is told, and the sentence that says where."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from ppl_gen.core.errors import Failed
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.training.optimizer import OneOptimizer

_ABSURD = 10_000  # times as bad as before the first step, or nats per pixel
_ADVICE = "A lower --learning-rate or --clip-grad-norm may help"


class Diverged(Failed):
    """A loss that is not finite, or an ELBO that training has made worse by an absurd amount. The last checkpoint is
    kept."""


def lost(elbo: float, first: float, pixels: int) -> bool:
    """True if the ELBO of the training images is so much worse than before the first step that training has diverged,
    although every number is finite.

    The threshold is 10,000 nats per pixel, and 10,000 times the ELBO before the first step, below the latter. A model
    that learns is never that far below a start of random weights: a density of grey pixels would have to miss every
    pixel of its own training images by more than 100 standard deviations.
    """
    return elbo < first - _ABSURD * (abs(first) + pixels)


def worse(elbo: float, first: float, epoch: int, run: RunDirectory) -> str:
    """The message for an ELBO that is finite and absurd."""
    return (
        f"training has diverged: the ELBO of the training images is {elbo:.2g} after epoch {epoch}, and was "
        f"{first:.2g} at the start; {_kept(run)}{_ADVICE}"
    )


def largest(parameters: Iterable[Tensor]) -> float:
    """The largest size of a number in the parameters."""
    return max((float(each.detach().abs().max()) for each in parameters if each.numel()), default=0.0)


def outgrown(size: float, first: float, step: int, run: RunDirectory) -> str | None:
    """The message for parameters that are finite, and a billion times as large as at the start or as 1; None for
    others. An adversarial objective has no ELBO to tell it by."""
    if size <= 1e9 * max(1.0, first):
        return None
    return (
        f"training has diverged: the largest weight is {size:.2g} after step {step}, and was {first:.2g} at the start; "
        f"{_kept(run)}{_ADVICE}"
    )


def _kept(run: RunDirectory) -> str:
    return f"the last good checkpoint is kept in {run.path}. "


def not_finite(parameters: Mapping[str, Tensor], optimizer: OneOptimizer) -> str | None:
    """The parameters that are not finite, in a clause; None if all are."""
    names = [name for name, each in parameters.items() if not each.isfinite().all()]
    if not names:
        return None
    more = f" and {len(names) - 1} more of {len(parameters)} parameters" if len(names) > 1 else ""
    states = [optimizer.state_of(parameters[names[0]]), *map(optimizer.state_of, parameters.values())]
    if all(each.isfinite().all() for state in states for each in state):
        return f"{names[0]}{more}: its numbers are too large for float32"
    spread = "; --clip-grad-norm spreads it to all: name the first by a run without" if optimizer.clip_grad_norm else ""
    return f"{names[0]}{more}: a gradient was not finite, although its loss was, as where sqrt meets 0{spread}"


def diverged(step: int, run: RunDirectory, found: str | None = None, impossible: bool = False) -> str:
    """The message for a loss that is not finite.

    :param found: the site or the parameter that is not finite.
    :param impossible: True if the ELBO is -inf.
    """
    kept = _kept(run)
    if impossible:
        return (
            f"the ELBO is -inf after step {step}: the guide draws z where p(x, z) = 0; {kept}"
            "Give the guide a distribution of the prior's support"
        )
    where = f": {found}" if found else ""
    # The constraint of a parameter is a matter of the code of the pair.
    also = "; so may a parameter that cannot leave its range, such as a scale of softplus(…) + 1e-3"
    return f"the loss is not finite at step {step}{where}; {kept}{_ADVICE}{also if 'must be' in where else ''}"
