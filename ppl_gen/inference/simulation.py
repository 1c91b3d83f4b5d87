"""Ranks of the z that an image was drawn with, among samples of the guide: simulation-based calibration of an amortized
guide, which needs no refit because one guide serves every image (Talts et al. 2018).

Ranks are taken of each unit of z, and of two functions of all units together:

- `density`: log q(z | x), from above. The rank is the mass of the smallest region of highest density that holds z*. The
  distribution of these ranks is the expected coverage of such regions (Hermans et al. 2022).
- `likelihood`: log p(x | z). A guide that ignores the image, such as the prior, has uniform ranks of every function of
  z alone, and not of this one (Modrák et al. 2023).

With importance weights the same ranks are taken of the weighted samples, with log p(x, z) in the place of log q(z | x).
z* counts as one sample of the mean weight. (With its own weight, its rank would be uniform for every guide.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.errors import BadInput, as_bad_input
from ppl_gen.core.progress import Advance
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.chunks import images_at_a_time, pairs_at_a_time
from ppl_gen.inference.densities import RELATIVE
from ppl_gen.inference.exact import state_posterior
from ppl_gen.inference.pair import Pair, Terms
from ppl_gen.inference.ranks import rank
from ppl_gen.inference.state_memory import block_size, cheap_to_enumerate

JOINT = ("density", "likelihood")
"""Names of the functions of all units together."""
_MOST_VALUES = 4_000_000  # numbers in memory at a time: samples x images x units


@dataclass(frozen=True, eq=False)
class SimulatedRanks:
    """Ranks in (0, 1) of the z that images were drawn with. They are uniform if the posterior is exact."""

    names: tuple[str, ...]
    """The units of z, such as `z[3]`, and then `JOINT`."""
    before: Tensor
    """Ranks among samples of the guide [images, quantities]; in the exact posterior if it was enumerated."""
    after: Tensor | None
    """Ranks among the same samples with importance weights; None if the posterior was enumerated."""
    ess: Tensor | None
    """Effective sample size of the weights [images]."""


def simulated_ranks(
    pair: Pair,
    x: Tensor,
    *args: Tensor,
    num_samples: int,
    chunk_size: int | None = None,
    progress: Advance | None = None,
) -> SimulatedRanks:
    """Draw images from the model, and rank their z among samples of the guide, without and with importance weights.

    :param x: images [N, ...], of which only the number and the shape are used.
    :param args: labels [N], if the pair takes any.
    :param num_samples: samples of the guide for each image.
    :param chunk_size: pairs of image and sample at a time.
    :param progress: called with the number of images just done.
    :raises BadInput: for a model that cannot draw images, and for weights that are not numbers.
    """
    names: tuple[str, ...] = ()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    pairs = pairs_at_a_time(None, chunk_size, x)
    size = max(images_at_a_time(pairs, num_samples, x), pairs // num_samples)
    for _, batch in Batch(x, args, {}).blocks(size):
        images, drawn = pair.draw_images(batch.x, *batch.args)
        own = pair.terms_at(drawn, images, *batch.args)
        if pair.enumerated:
            raise BadInput(f"{pair.guide_name} samples no z")
        step = max(1, pairs // len(images))
        with as_bad_input(f"{pair.model_name} and {pair.guide_name} fail on images from the model"):
            chunks = [
                pair.terms(images, *batch.args, num_samples=min(step, num_samples - start))
                for start in range(0, num_samples, step)
            ]
        names = names or _names({name: value.shape[-1] for name, value in own.latents.items()})
        parts.append(_block(pair, own, chunks))
        if progress is not None:
            progress(len(images))
    before, after, ess = (torch.cat(each) for each in zip(*parts, strict=True))
    return SimulatedRanks(names, before, after, ess)


def _names(units: dict[str, int]) -> tuple[str, ...]:
    """Names of all units of the latent sites, and of the functions of all of them."""
    each = [name if count == 1 else f"{name}[{i}]" for name, count in units.items() for i in range(count)]
    return (*each, *JOINT)


def _block(pair: Pair, own: Terms, chunks: list[Terms]) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks before and after weighting, each [images, quantities], and the effective sample size [images]."""
    guide, prior, likelihood = (
        torch.cat([getattr(terms, f"log_{of}") for terms in chunks]).double() for of in ("guide", "prior", "likelihood")
    )
    log_weight = likelihood + prior - guide
    if bool(log_weight.isnan().any() | own.log_weight.isnan().any()):
        raise BadInput(f"{pair.model_name} and {pair.guide_name}: an image from the model has weights that are NaN")
    count = len(guide)
    weights = log_weight.softmax(0).nan_to_num(nan=1 / count)  # of samples that are all impossible
    equal = torch.full_like(weights, 1 / count)
    units = [(torch.cat([t.latents[name] for t in chunks]), value[0]) for name, value in own.latents.items()]
    noise = torch.rand(guide.shape[1], sum(value.shape[-1] for _, value in units) + len(JOINT), device=guide.device)
    own_joint = own.log_likelihood + own.log_prior
    found = []
    for each, density, its_own in ((equal, guide, own.log_guide), (weights, likelihood + prior, own_joint)):
        joint = torch.stack([-density, likelihood], -1)
        at = torch.stack([-its_own[0], own.log_likelihood[0]], -1)
        ranks, first = [], 0
        for values, value, tolerance in (*((*unit, 0.0) for unit in units), (joint, at, RELATIVE)):
            for columns in torch.arange(value.shape[-1]).split(max(1, _MOST_VALUES // values[..., 0].numel())):
                part = noise[:, first + columns]
                ranks.append(rank(values[..., columns], value[:, columns], part, each, 1 / count, tolerance))
            first += value.shape[-1]
        found.append(torch.cat(ranks, 1).cpu())
    return found[0], found[1], 1 / weights.square().sum(0).cpu()


# With every state of z -----------------------------------------------------------------------------------------------


def enumerated_ranks(pair: Pair, model: object, x: Tensor, progress: Advance | None = None) -> SimulatedRanks:
    """Draw images from the model, and rank their z in the exact posterior, for a model of one latent site with few
    states.

    :param x: images [N, ...], of which only the number and the shape are used.
    :raises BadInput: for a model that does not have prior() and likelihood(z), or has too many states.
    """
    if len(pair.latent) != 1 or not offers(model, HasDensity) or not cheap_to_enumerate(pair):
        raise BadInput(
            f"{pair.model_name}: its guide does not sample z; ranks in p(z | x) need one latent site with few states, "
            "prior() and likelihood(z)"
        )
    names: tuple[str, ...] = ()
    parts: list[Tensor] = []
    for _, batch in Batch(x, (), {}).blocks(block_size(pair, posterior=True)):
        images, drawn = pair.draw_images(batch.x)
        values = pair.terms_at(drawn, images).latents[pair.latent[0]][0]
        states, posterior = state_posterior(model, images)
        prior, flat = model.prior().log_prob(states).double(), states.reshape(len(states), -1)
        # The densities of z* are looked up in the table of all states: computed again, they might differ by rounding.
        chosen = torch.stack([(flat == value).all(-1).int().argmax() for value in values])
        joint = posterior.double().clamp(min=1e-300).log()
        joint = torch.stack([-joint, joint - prior.unsqueeze(-1)], -1)
        at = joint[chosen, torch.arange(len(images))]
        noise = torch.rand(len(images), flat.shape[1] + len(JOINT), device=posterior.device)
        weights = posterior.double() / posterior.double().sum(0)
        units = [
            rank(flat[:, None, [unit]], values[:, [unit]], noise[:, [unit]], weights, 0.0)
            for unit in range(flat.shape[1])
        ]
        both = rank(joint, at, noise[:, flat.shape[1] :], weights, 0.0, RELATIVE)
        parts.append(torch.cat([*units, both], 1).cpu())
        names = names or _names({pair.latent[0]: flat.shape[1]})
        if progress is not None:
            progress(len(images))
    return SimulatedRanks(names, torch.cat(parts), None, None)
