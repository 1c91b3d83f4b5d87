"""Log importance weights from elsewhere, judged as those of a Pyro pair.

The ELBO, the IWAE bounds, log p(x) and their diagnostics need nothing but the weights, which may come from another
package or from code of one's own. What needs the pair itself is missing: the terms of the ELBO and the second opinion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput, require_choice, words_of
from ppl_gen.core.progress import Advance
from ppl_gen.inference.estimate import Variable
from ppl_gen.inference.gathering import gather_blocks
from ppl_gen.inference.importance import (
    ImportanceEstimate,
    block_bounds,
    jackknife_bounds,
    powers_of_ten,
    weight_statistics,
)
from ppl_gen.inference.pareto import lower_tail

Observation = Literal["probability", "density", "cross-entropy", "unchecked", "unnormalized", "unstated"]
"""Kinds of p(x) that weights may be of."""
_BLOCK = 2**20  # weights at a time
_STEP, _STEP_OF_SD = 1e-3, 0.1  # steps of float32 in nats, and as a part of the weights' spread, that are too coarse
_TERMS = ("reconstruction", "kl")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Judged(ImportanceEstimate):
    """log p(x) with the ELBO and the IWAE bounds, from log weights alone. The two terms of the ELBO are unknown:
    `reconstruction` and `kl` are NaN. There is no second opinion."""

    zeros: Tensor
    """Number of weights that are zero, [images]."""

    def more_entries(self, name: str) -> dict[str, Any]:
        return {key: entry for key, entry in super().more_entries(name).items() if key not in _TERMS}

    def variables(self, name: str) -> dict[str, Variable]:
        return {key: variable for key, variable in super().variables(name).items() if key not in _TERMS}

    def notes(self) -> list[str]:
        """Warnings. Those on zero weights say why a mean is -inf."""
        told = super().notes()
        some, all_of_them = int((self.zeros > 0).sum()), int((self.zeros == self.num_samples).sum())
        if some:
            told.append(f"the ELBO is -inf for {some} of {len(self.zeros)} images: some of their weights are zero")
        if all_of_them:
            told.append(f"log p(x) is -inf for {all_of_them} of {len(self.zeros)} images: all their weights are zero")
        if not self.at_least:
            told.append("a mode that the guide misses may be unseen: weights alone have no second opinion")
        return told


def judge(log_weights: Any, *, observation: Observation = "unstated", progress: Advance | None = None) -> Judged:
    """Judge log importance weights log p(x, z) - log q(z | x), z ~ q(z | x), from any source: ELBO, IWAE bounds, log
    p(x), effective sample size and k-hat of each image.

    >>> print(judge(np.random.default_rng(0).normal([-91, -90, -89], 1.0, size=(1000, 3))))
    3 images, nats per image ± standard error over images
    ELBO      -90.03 ± 0.60
    log p(x)  -89.55 ± 0.60 by importance sampling, S = 1000
    gap       0.49 ± 0.01
    a mode that the guide misses may be unseen: weights alone have no second opinion

    The arithmetic is in float64, in blocks of images.

    :param log_weights: log weights in nats, [samples, images], in float32 or float64: an array of NumPy or JAX, a
        tensor, or nested lists. All samples are independent, also between images. -inf is the logarithm of a weight of
        zero.
    :param observation: kind of p(x): `probability`, of binary or whole-number pixels; `density`; `cross-entropy`, of
        grey values under a Bernoulli.
    :param progress: called with the number of images just done.
    :raises BadInput: for an array of another shape or type, for fewer than two samples, for NaN or +inf, and for log
        weights of float32 that are so large that its steps hide how they differ.
    """
    require_choice("observation", observation, Observation)
    array = _as_array(log_weights)
    count, images = array.shape
    whole = gather_blocks(
        lambda first: ((block.shape[1], _summarize(block)) for block in _blocks(array[:, first:])), images, progress
    )
    return Judged(num_samples=count, observation=observation, **whole)


def check_layout(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
    """Raise `BadInput` unless an array of this shape and type can be log weights."""
    if dtype.kind != "f" or dtype.itemsize < 4:
        raise BadInput(f"log_weights: must be numbers in float32 or float64, not {dtype}")
    if len(shape) != 2:
        raise BadInput(f"log_weights: must have the shape [samples, images], not {list(shape)}")
    if 0 in shape:
        raise BadInput(f"log_weights: has no {'samples' if shape[0] == 0 else 'images'}: its shape is {list(shape)}")
    if shape[0] == 1:
        raise BadInput("log_weights: has one sample for each image; the error of log p(x) needs at least two")


def _as_array(given: Any) -> np.ndarray:
    """Log weights as an array [samples, images]."""
    if np.ma.is_masked(given):
        raise BadInput("log_weights: a masked array would lose its mask; fill it in first: log_weights.filled(-inf)")
    if isinstance(given, Tensor) and given.dtype == torch.bfloat16:  # which NumPy does not have
        raise BadInput("log_weights: must be numbers in float32 or float64, not bfloat16")
    try:
        array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except Exception as error:  # rows of different lengths, or a type that NumPy does not have
        kind = type(given).__name__
        raise BadInput(f"log_weights: is of type {kind}, not an array of numbers ({words_of(error)})") from error
    check_layout(array.shape, array.dtype)
    return array


def _blocks(array: np.ndarray) -> Iterator[Tensor]:
    """Blocks of images of log weights, [samples, images of the block] in float64."""
    step = max(1, _BLOCK // len(array))
    for first in range(0, array.shape[1], step):
        block = array[:, first : first + step].astype(np.float64)
        _check_steps(block, array.dtype, first)
        for bad, why in ((np.isnan(block), "NaN"), (block == np.inf, "+inf")):
            if bad.any():
                sample, image = (int(at[0]) for at in bad.nonzero())
                raise BadInput(f"log_weights: is {why} for image {first + image}, sample {sample}")
        yield torch.from_numpy(block)


def _check_steps(block: np.ndarray, dtype: "np.dtype[Any]", first: int) -> None:
    """Raise `BadInput` for log weights so large that numbers of this type beside them are too far apart."""
    finite = np.where(np.isfinite(block), block, 0.0)
    steps = np.spacing(np.abs(finite).max(0).astype(dtype)).astype(np.float64)
    coarse = (steps > _STEP) & (steps > _STEP_OF_SD * finite.std(0))
    if coarse.any():
        image = int(coarse.argmax())
        raise BadInput(
            f"log_weights: about {finite[:, image].mean():.3g} for image {first + image}, where numbers of {dtype} are "
            f"{steps[image]:.2g} nats apart; compute them in float64"
        )


def _summarize(log_w: Tensor) -> dict[str, Any]:
    """The tensors of a `Judged` from log weights [samples, images] in float64."""
    count, images = log_w.shape
    unknown = torch.full((images,), torch.nan, dtype=torch.float64)
    zeros = (log_w == -torch.inf).sum(0)

    def bound(values: Tensor, k: int) -> Tensor:
        # All k weights of a block may be zero, even if those of no block here are: E[L_k] is -inf.
        return values if k == count else values.masked_fill(zeros > 0, -torch.inf)

    ks = powers_of_ten(count)
    return {
        "elbo": log_w.mean(0),
        "elbo_mc_var": log_w.var(0) / count,
        "elbo_tail": lower_tail(log_w, images),
        "reconstruction": unknown,
        "kl": unknown,
        "kl_analytic": None,
        "iwae": {k: bound(block_bounds(log_w, k), k) for k in ks},
        "iwae_jackknife": {k: bound(jackknife_bounds(log_w, k), k) for k in ks[1:]},
        "latent_mean": {},
        "latent_mc_var": {},
        "zeros": zeros,
        **weight_statistics(log_w),
    }
