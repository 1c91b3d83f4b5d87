"""A search for values of discrete units that the posterior has and the guide's samples do not show.

A guide that is certain of a bit of which the posterior is not loses the other half of p(x). All its weights may then be
alike, and k-hat is fine. Draws from the prior do not show it if the other units have to be right, too. But one unit of
a sample can be changed, and the model and the guide be asked for both values.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_gen.core.memory import is_out_of_memory
from ppl_gen.core.seeds import seed_torch
from ppl_gen.inference.arguments import Batch, take
from ppl_gen.inference.modes import evaluating, forked_rng
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.tracing import trace_of
from ppl_gen.networks.supports import support

_CHANGES = 32  # of each image's sample
_DRAWS = 16  # samples of an image, of which the one with the largest weight is changed
_SHARE = 0.05  # odds of the other value under the model from which on it counts
_PAIRS = 4096  # changed samples at a time
Sizes = dict[str, tuple[int, bool]]
"""Numbers of values of the units of each discrete latent site, and True for one-hot units."""


def missed_values(
    model: Any, guide: Any, x: Tensor, *args: Any, num_samples: int, seed: int = 0, pair: Pair | None = None
) -> Tensor | None:
    """True for images of which a value of a discrete unit is missed, bool [images]; None if no unit is discrete,
    or other values cannot be scored. Noise is drawn from `seed`, and torch's generators are restored.

    At a sample with a large weight, the model gives another value of one unit odds of at least 0.05, and the guide such
    odds that fewer than one of `num_samples` samples has it. Categorical, one-hot and binary units directly in the
    plate of images are looked at, and at most 32 changes of an image.

    :param pair: the pair of both, if it was read before.
    """
    with evaluating(model, guide), forked_rng(x):
        seed_torch(seed)
        pair = Pair.read(model, guide, x, *args) if pair is None else pair
        sizes = _sizes(pair, Batch(x, args, {}))
        if not sizes:
            return None
        blocks = Batch(x, args, {}).blocks(max(1, _PAIRS // _CHANGES))
        try:
            return torch.cat([_missed(pair, batch, sizes, num_samples) for _, batch in blocks]).cpu()
        except Exception as error:  # a flow without inverse beside it, or a model that fails at other values
            if is_out_of_memory(error):
                raise
            return None


def _missed(pair: Pair, batch: Batch, sizes: Sizes, num_samples: int) -> Tensor:
    x, args, _ = batch
    terms = pair.terms(x, *args, num_samples=_DRAWS)
    best, images = terms.log_weight.argmax(0), torch.arange(len(x), device=x.device)
    values = {
        name: each[best, images].reshape(len(x), *pair.event_shapes[name]) for name, each in terms.latents.items()
    }
    changes = [
        (name, unit, step)
        for name, (size, one_hot) in sizes.items()
        for unit in range(math.prod(pair.event_shapes[name]) // (size if one_hot else 1))
        for step in range(1, size)
    ]
    chosen = torch.randperm(len(changes))[:_CHANGES].tolist()
    rows = images.repeat(1 + len(chosen))
    changed = {name: value[rows].clone() for name, value in values.items()}
    for number, (name, unit, step) in enumerate((changes[each] for each in chosen), 1):
        size, one_hot = sizes[name]
        of_images = changed[name][number * len(x) : (number + 1) * len(x)]
        of_unit = of_images.reshape(len(x), -1, *([size] if one_hot else []))[:, unit]
        of_unit.copy_(of_unit.roll(step, -1) if one_hot else (of_unit + step) % size)
    repeated = take(rows, x, args)
    found = pair.terms_at(changed, repeated.x, *repeated.args)
    joint, guide = (
        each.reshape(1 + len(chosen), len(x)) for each in (found.log_likelihood + found.log_prior, found.log_guide)
    )
    likely = joint[1:] - joint[0] >= math.log(_SHARE)
    unseen = guide[1:] - guide[0] <= -math.log(num_samples)
    return (likely & unseen).any(0)


def _sizes(pair: Pair, batch: Batch) -> Sizes:
    """Empty if no latent site is discrete, or if a site lies in another plate."""
    if pair.enumerated or pair.enumerated_in_guide or pair.plate.dim != -1:
        return {}
    trace = trace_of(pair.guide, take(torch.arange(min(2, len(batch.x)), device=batch.x.device), *batch))
    found: Sizes = {}
    for name in pair.latent:
        site = trace.nodes[name]
        if site["value"].shape[1:] != pair.event_shapes[name]:
            return {}
        stated = support(site["fn"])
        base = stated.base_constraint if isinstance(stated, constraints.independent) else stated
        if base is constraints.boolean:
            found[name] = 2, False
        elif base is constraints.one_hot:
            found[name] = pair.event_shapes[name][-1], True
        elif isinstance(base, type(constraints.integer_interval(0, 1))):
            least, most = (torch.as_tensor(bound).unique() for bound in (base.lower_bound, base.upper_bound))
            if len(most) == 1 and not least.any():  # alike for all images
                found[name] = int(most) + 1, False
    return found
