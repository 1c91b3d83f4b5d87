"""The exact ELBO of discrete z, and its exact gradient, by enumeration of every joint state of the guide.

    ELBO = sum_z q(z | x) [log p(x, z) - log q(z | x)]

is a finite sum, and automatic differentiation of it is the gradient that estimators of the ELBO's gradient estimate.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ppl_gen.core.errors import BadInput
from ppl_gen.core.gradients import gradients
from ppl_gen.core.progress import Advance
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.modes import forked_rng
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.relaxations import Choice, sampled

MOST_STATES = 2**20
"""States of an image's z that are enumerated."""
_NUMBERS = 2**22  # states x images x pixels in one piece


def num_states(pair: Pair, x: Tensor, *args: Any) -> int:
    """Number of joint values of an image's latent sites.

    :param pair: a pair that `check_choices` accepts.
    :raises BadInput: for more than `MOST_STATES`.
    """
    counts: list[int] = []

    def draw(choice: Choice) -> Tensor:
        categories, shape = _shape_of(choice)
        counts.append(categories ** (math.prod(shape) // len(x)))
        return choice.sample()

    with torch.no_grad(), forked_rng(x):
        sampled(pair, x, *args, num_samples=1, draw=draw)
    if (count := math.prod(counts)) > MOST_STATES:
        raise BadInput(
            f"{pair.guide_name} has {count:,} values of z, but the exact gradient is a sum over at most "
            f"{MOST_STATES:,}; use fewer latent units"
        )
    return count


def _shape_of(choice: Choice) -> tuple[int, list[int]]:
    """Number of categories of a unit, and the shape of the units of all samples and images."""
    shape = list(choice.logits.shape)
    return (2, shape) if choice.kind == "binary" else (shape[-1], shape[:-1])


def exact_elbo(pair: Pair, x: Tensor, *args: Any, states: Tensor | None = None) -> Tensor:
    """The exact ELBO [images] in nats, differentiable; or its part from some of the states.

    >>> from ppl_gen.guides.bernoulli import Bernoulli
    >>> from ppl_gen.models.belief_net import BeliefNet
    >>> x = torch.ones(2, 4)
    >>> net, guide = BeliefNet(4, latent_dim=3, init_scale=0.0), Bernoulli(4, torch.ones(4), 3, "z")
    >>> _ = torch.nn.init.zeros_(guide.encoder[-1].bias)
    >>> exact_elbo(Pair.read(net, guide, x), x).detach() / math.log(2)  # q = p, and each pixel has one bit
    tensor([-4., -4.])

    :param pair: a pair that `check_choices` accepts.
    :param states: numbers of the states [states]; None for all.
    """
    if states is None:
        states = torch.arange(num_states(pair, x, *args), device=x.device)
    stride, count = 1, len(states)

    def draw(choice: Choice) -> Tensor:
        nonlocal stride
        values, stride = _values(pair, choice, states, len(x), stride)
        return values

    found = sampled(pair, x, *args, num_samples=count, draw=draw)
    log_guide = found.log_guide
    share = log_guide.exp()
    # A state that the guide never draws counts nothing, whatever its log-densities are, which may be infinite.
    return (share * torch.where(share > 0, found.log_joint - log_guide, 0.0)).sum(0)


def _values(pair: Pair, choice: Choice, states: Tensor, images: int, stride: int) -> tuple[Tensor, int]:
    """The values of a site in numbered states, the same for all images, in the shape of the site's value; and the
    stride of the next site. A state is a number with a digit for each unit of each site."""
    categories, shape = _shape_of(choice)
    event = choice.fn.event_dim - (choice.kind == "one-hot")
    plate = len(shape) - event + pair.plate.dim
    # Dimensions besides those of samples and images, which one image has.
    own = list(shape)
    own[plate] = 1
    if pair.vectorized:
        own = own[1:]
    units = torch.Size(own).numel()
    strides = stride * categories ** torch.arange(units, device=states.device)
    digits = (states.unsqueeze(1) // strides % categories).reshape(len(states), *own)
    if not pair.vectorized:  # sample s of image i is row s * images + i
        digits = digits.movedim(0, plate)
        digits = digits.unsqueeze(plate + 1).expand(*digits.shape[: plate + 1], images, *digits.shape[plate + 1 :])
        digits = digits.reshape(shape)
    digits = digits.expand(shape)
    if choice.kind == "binary":
        digits = digits.to(choice.logits.dtype)
    elif choice.kind == "one-hot":
        digits = F.one_hot(digits, categories).to(choice.logits.dtype)
    return digits, stride * categories**units


@gradients("the exact gradient")
def exact_gradient(
    pair: Pair, parameters: Sequence[Tensor], x: Tensor, *args: Any, progress: Advance | None = None
) -> tuple[float, list[Tensor | None]]:
    """The exact ELBO in nats per image, and its gradient with respect to parameters, in float64, as a mean over images.
    The gradient is None for a parameter that the ELBO does not depend on.

    :param progress: called with the number of images after each piece of work.
    :raises BadInput: for too many states.
    """
    total, elbo = num_states(pair, x, *args), 0.0
    gradient: list[Tensor | None] = [None] * len(parameters)
    rows = max(1, _NUMBERS // (x[0].numel() * min(total, 2**10)))
    for _, part in Batch(x, args, {}).blocks(rows):
        size = max(1, _NUMBERS // (x[0].numel() * len(part.x)))
        for states in torch.arange(total, device=x.device).split(size):
            piece = exact_elbo(pair, part.x, *part.args, states=states).sum() / len(x)
            elbo += float(piece.detach())
            found = torch.autograd.grad(piece, parameters, allow_unused=True)
            for index, each in enumerate(found):
                if each is not None:
                    before = gradient[index]
                    gradient[index] = each.double() if before is None else before + each
        if progress is not None:
            progress(len(part.x))
    return elbo, gradient
