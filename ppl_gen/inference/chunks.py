"""How many pairs of image and sample are computed at a time."""

import math
from typing import Any

from torch import Tensor

from ppl_gen.core.contracts import SeveralNumbersPerPixel, offers
from ppl_gen.inference.arguments import whole_number

CHUNK_SIZE = 2048
"""On a CPU: the decoder's output fits into the cache, and Python's overhead is small."""
_NUMBERS_ON_GPU = 2**26  # of the decoder's output; a GPU waits for Python where these are few
IMAGES_PER_BLOCK = 16
"""On a CPU."""
_MOST_IMAGES, _PAIRS_OF_BLOCK = 128, 2**19  # of a block on a GPU


def pairs_at_a_time(model: Any, chunk_size: int | None, x: Tensor) -> int:
    """Pairs of image and sample at a time, for a model whose decoder may have several numbers for each pixel.

    >>> import torch
    >>> pairs_at_a_time(None, None, torch.zeros(5, 784)), pairs_at_a_time(None, 100, torch.zeros(5, 784))
    (2048, 100)

    :param chunk_size: pairs at one number for each pixel; by default 2,048, and on a GPU as many as have 2^26 pixels.
    :param x: images [N, ...].
    :raises BadInput: for a `chunk_size` that is no whole number, at least 1.
    """
    if chunk_size is not None:
        chunk_size = whole_number("chunk_size", chunk_size)
    else:
        chunk_size = _NUMBERS_ON_GPU // max(1, math.prod(x.shape[1:])) if x.is_cuda else CHUNK_SIZE
    return max(1, chunk_size // (model.numbers_per_pixel if offers(model, SeveralNumbersPerPixel) else 1))


def images_at_a_time(chunk_size: int, num_samples: int, x: Tensor) -> int:
    """Images of a block, all of whose samples are held before they are summed up.

    >>> import torch
    >>> images_at_a_time(2048, 1000, torch.zeros(5, 784))
    16
    """
    most = min(_MOST_IMAGES, _PAIRS_OF_BLOCK // num_samples) if x.is_cuda else IMAGES_PER_BLOCK
    return max(1, min(most, chunk_size))
