"""Images that a run was not fitted to: their evaluation, and their latents."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.convert import convert
from ppl_gen.core.errors import BadInput, require
from ppl_gen.data import arrays
from ppl_gen.data.splits import Split
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.inference.exact import state_posterior
from ppl_gen.inference.state_memory import block_size, cheap_to_enumerate

_IMAGES_PER_BLOCK = 100
_ROUNDING = 1e-3  # of a grey level, in float32


def with_images(fitted: Fitted, given: Any) -> Fitted:
    """The run with a user's images instead of its test images, binarized in the same way.

    :param given: images [N, …] as a tensor or an array, a pair of images and labels, or a `Dataset`. Pixels are in
        [0, 1], or have the run's value of white. Whole numbers of at most 1 are levels if their type is one of whole
        numbers and the run has grey levels; otherwise 1 is white. If the run has missing pixels, those that are NaN or
        masked are missing.
    :raises BadInput: for images of another size, and for pixels that are larger than white.
    """
    if given is None:
        raise BadInput("x None: give images [N, …]")
    fitted.require_amortized("data")
    collected = arrays.collect(given)
    values = collected["train"]
    if len(values) == 0:
        raise BadInput("data: no images; give at least one")
    nan = fitted.incomplete and ("train_missing" in collected or bool(np.isnan(values).any()))
    values = np.nan_to_num(values) if nan else values
    white, top = fitted.data.train.white, max(float(values.max(initial=0)), 1)
    if top > max(white, 1):
        raise BadInput(f"data: pixels up to {top:.9g}, but white is {white} in the run; divide by your value of white")
    whole = bool((values == np.rint(values)).all())
    if 1 < top <= white / 2 and not whole:
        raise BadInput(
            f"data: pixels up to {top:.9g} are neither in [0, 1] nor grey levels up to {white}, the run's white; "
            "divide by your value of white"
        )
    levels = values.dtype.kind in "ui" and fitted.data.binarization in ("none", "dequantized")
    found = arrays.read(collected, 1 if top == 1 and not levels else white, nan)
    images, labels = torch.from_numpy(found.splits["train"]), found.labels.get("train")
    if images.shape[1] != fitted.data.dim:
        one = getattr(given, "shape", None) == fitted.data.shape
        hint = "; give a single image as x[None]" if one else ""
        raise BadInput(
            f"data: images of {images.shape[1]} pixels, but the run was fitted to images of {fitted.data.dim}{hint}"
        )
    if labels is None and fitted.takes_labels and fitted.data.train.labels is not None:
        raise BadInput(f"data: {fitted.pair.model_name} was fitted to images with labels; give both: (x, y)")
    scale = found.scale
    if fitted.data.binarization == "dequantized" and scale == 1:  # noise is added to levels, as to those of test images
        images, scale = _levels(images, white), white
    missing = torch.from_numpy(found.missing["train"]) if nan else None
    given_labels = None if labels is None else torch.from_numpy(labels)
    test = Split(images, given_labels, scale, missing=missing, values_known=found.known)
    data = replace(fitted.data, name=arrays.NAME, test=test.to(fitted.data.train.images.device))
    changed = replace(fitted, data=data)
    changed.pair = fitted.pair  # the cached value: the pair is not read again, on other images
    return changed


def _levels(pixels: Tensor, white: int) -> Tensor:
    """The grey levels of pixels in [0, 1].

    :raises BadInput: for pixels between two levels, such as those that have noise already.
    """
    levels = (pixels * white).round()
    if float((levels - pixels * white).abs().max()) > _ROUNDING:
        raise BadInput(
            f"data: the run adds noise to grey levels, but these pixels lie between levels; give levels 0 … {white}"
        )
    return levels.to(torch.int64)


def latents(fitted: Fitted, given: Any, num_samples: int, seed: int) -> dict[str, Tensor]:
    """Samples [samples, images, units] of each latent site, on the CPU: z ~ q(z | x), or z ~ p(z | x) if the guide
    leaves z to enumeration.

    :param given: images, as for `with_images`.
    :raises BadInput: for a pair that supports neither.
    """
    num_samples, seed = convert("num_samples", num_samples, int), convert("seed", seed, int)
    require(num_samples >= 1, "num_samples", num_samples, "must be at least 1")
    require(0 <= seed < 2**63, "seed", seed, "must be at least 0 and below 2^63")
    changed = with_images(fitted, given)
    pair, (x, *labels) = changed.pair, changed.images("test")
    parts: list[dict[str, Tensor]] = []
    with changed.estimating(seed):
        for rows in torch.arange(len(x), device=x.device).split(_IMAGES_PER_BLOCK):
            batch = [each[rows] for each in (x, *labels)]
            if pair.enumerated:
                parts.append({pair.latent[0]: _from_posterior(changed, batch[0], num_samples)})
            else:
                parts.append(pair.terms(*batch, num_samples=num_samples).latents)
    return {name: torch.cat([part[name] for part in parts], 1).cpu() for name in parts[0]}


def _from_posterior(fitted: Fitted, x: Tensor, num_samples: int) -> Tensor:
    """Samples [samples, images, units] of p(z | x), for one latent site with finite support."""
    pair, model = fitted.pair, fitted.model
    if len(pair.latent) != 1 or not offers(model, HasDensity) or not cheap_to_enumerate(pair):
        raise BadInput(
            f"{pair.model_name}: its guide does not sample z; p(z | x) needs one latent site with few states, prior() "
            "and likelihood(z)"
        )
    parts = []
    for block in x.split(block_size(pair, posterior=True)):
        states, probabilities = state_posterior(model, block)
        chosen = probabilities.T.multinomial(num_samples, replacement=True).T
        parts.append(states[chosen].reshape(num_samples, len(block), -1))
    return torch.cat(parts, 1)
