"""Batches of a training epoch. A batch of one image is too small for some pairs: batch normalization divides by the
standard deviation over the images of a batch."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput
from ppl_gen.data.orders import Order
from ppl_gen.inference.arguments import first_rows, rows_at
from ppl_gen.inference.modes import into_training, unchanged

_TOGETHER = 512  # batches whose indices are computed together


def least_images(
    loss: Callable[..., Tensor], model: nn.Module, guide: nn.Module, size: int, batch: Callable[[], tuple[Any, ...]]
) -> int:
    """The smallest number of images in a training step: 1, or 2 if the loss fails or is not finite on one image, and
    works on two. Modules and generators are left unchanged.

    :param loss: the loss, called with the images and the further arguments of a batch.
    :param size: images of a batch, or of the training split if that has fewer.
    :param batch: returns a batch of two or more images, or of all if there are fewer.
    :raises BadInput: if batches have one image, and the pair needs two.
    """

    def works(count: int, images: tuple[Any, ...]) -> bool:
        try:
            with warnings.catch_warnings(action="ignore"):  # about the variance of one image, which is NaN
                return bool(loss(*first_rows(count, *images)).isfinite())
        except Exception:  # user code; if it fails on two images as well, training shows the error
            return False

    with unchanged(nn.ModuleDict({"model": model, "guide": guide})), pyro.validation_enabled(False):
        into_training(model, guide, model=model)
        images = batch()
        two = rows_at(torch.arange(2, device=images[0].device) % len(images[0]), *images)
        if works(1, images) or not works(2, two):
            return 1
    if size == 1:
        raise BadInput(
            f"a training step on one image fails, as with batch normalization in {type(model).__name__} or "
            f"{type(guide).__name__}: use a --batch-size and a --train-size of at least 2"
        )
    return 2


def with_labelled(
    order: Tensor, labelled: Tensor, share: float, size: int, generator: torch.Generator | None = None
) -> Tensor:
    """An order of images in which every batch ends with some that have labels.

    >>> with_labelled(torch.arange(6), torch.tensor([2]), 0.25, 4)
    tensor([0, 1, 2, 2, 3, 4, 5, 2])

    :param order: the order of all images.
    :param labelled: the images that have labels. They are taken in random order, all of them before one comes again.
    :param share: share of them in a batch, rounded to a number from 1 to `size` - 1.
    :param size: images of a batch.
    """
    count = min(max(1, round(share * size)), size - 1)
    parts = order.split(size - count)
    rounds = -(-count * len(parts) // len(labelled))
    repeated = torch.cat([labelled[torch.randperm(len(labelled), generator=generator)] for _ in range(rounds)])
    return torch.cat([part for pair in zip(parts, repeated.split(count), strict=False) for part in pair])


def num_batches(count: int, size: int, least: int) -> int:
    """Number of batches of `count` images. The last batch has the remaining images. If these are fewer than `least`,
    they are added to the batch before.

    >>> num_batches(10, 4, least=1), num_batches(9, 4, least=2)
    (3, 2)
    """
    whole, rest = divmod(count, size)
    return max(1, whole + (rest >= max(1, least)))


def batches(order: Tensor | Order, size: int, least: int, device: Any = "cpu", done: int = 0) -> Iterator[Tensor]:
    """Batches of indices, as many as `num_batches`, on a device. The numbers of a computed order are computed for many
    batches together.

    :param done: number of batches that are left out at the beginning.
    """
    count, last = len(order), num_batches(len(order), size, least) - 1
    for first in range(done, last, _TOGETHER):
        yield from order[first * size : min(first + _TOGETHER, last) * size].to(device).split(size)
    if done <= last:
        yield order[last * size : count].to(device)
