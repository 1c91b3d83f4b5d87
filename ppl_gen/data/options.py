"""Options of a data set. This module imports no torch, so that commands that only read runs start fast."""

import math
from dataclasses import dataclass
from typing import Literal

from ppl_gen.core.errors import require, require_choices, require_numbers

Binarization = Literal["dynamic", "static", "threshold", "none", "dequantized"]
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class DataOptions:
    """The images, and the way they become targets."""

    data: str = "auto"
    """Images. A name: mnist, fashion-mnist, kmnist, emnist, digits, binarized-mnist, omniglot, omniglot-burda,
    caltech-silhouettes, cifar10, svhn. auto: MNIST if it is on disk or can be downloaded, else scikit-learn's 8x8
    digits. A file: .npy, .npz, .mat, .csv, or IDX (MNIST's own format), each also as .gz. A folder of .npy files.
    FILE:ARRAY: one array of an .npz or .mat file. file.py:function: your own function, which returns an array,
    (images, labels), a Dataset, or a dictionary of these by split."""
    binarization: Binarization = "dynamic"
    """Treatment of grey pixels. dynamic: binary, drawn again at every use in training; validation and test images are
    drawn once. static: binary, drawn once. threshold: binary, pixel > 0.5. none: grey values as they are, such as 8-bit
    levels. dequantized: grey values with uniform noise of one level."""
    train_size: int | None = None
    """Number of training images: the first N. By default all that are not validation images. With all 60000 images of
    MNIST there is no validation split."""
    labelled: int | None = None
    """Number of training images that keep their labels, the same number of each class, for semi-supervised learning.
    Models and guides that take labels are given -1 for all other images. By default every image has its label."""
    largest_pixel: int | None = None
    """Value of white in a file, such as 255 or 16. Black is 0. By default it follows from the largest pixel: 1 if the
    largest is at most 1; 255 if it is 128 to 255; else the largest pixel itself."""
    missing: float | str | None = None
    """Missing pixels. A share such as 0.5: each pixel of each image is missing with this probability, drawn once with a
    fixed seed. FILE.npy or FILE.npz: true, or 1, where a pixel is missing. nan: pixels that are NaN. Training and
    evaluation use the other pixels alone, in every split: log p(x) is of the observed pixels. By default no pixel is
    missing."""

    def __post_init__(self) -> None:
        if isinstance(self.missing, float) and math.isnan(self.missing):  # the word nan, as a number
            object.__setattr__(self, "missing", "nan")
        require_choices(self)
        require_numbers(self, largest_pixel=1, labelled=0)
        if isinstance(self.missing, int | float):
            require(0 < self.missing < 1, "missing", f"{self.missing:g}", "must be a share above 0 and below 1")
