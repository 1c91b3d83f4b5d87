"""Options of the commands that use a fitted model, and of `calibrate`. Importing them imports no torch.

`ppl_gen.evaluation.options` has the options of `evaluate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from ppl_gen.core.convert import convert_fields, converted
from ppl_gen.core.errors import require, require_numbers, shown
from ppl_gen.data.options import SplitName
from ppl_gen.experiment.options import Checkpoint

IN_PYTHON = (tyro.conf.Fixed, tyro.conf.Suppress)
"""Marks of a field that is no option of the command line."""
NUM_EXAMPLES = 5
"""Images of each kind that `responsibilities` shows."""
NUM_SPLICED = 10
"""Spliced images that `splice` shows, and needs at least."""
LEAST_JUDGED = 20
"""Samples that `quality` needs at least."""
LEAST_RANKED = 20
"""Images, and samples of each, that a test of the guide's calibration needs at least."""
LEAST_DRAWN = 20
"""Draws of a gradient that its bias and variance are estimated from, at least."""


T = TypeVar("T")


def options_from(cls: type[T], options: T | None, chosen: Mapping[str, Any]) -> T:
    """Options from an instance of their dataclass, from single fields by name, or from both.

    :param options: the instance; None for the defaults.
    :param chosen: fields that replace those of the instance.
    :raises BadInput: for an object of another class, a name that is no field, and a value of another type.
    """
    chosen = convert_fields(cls, chosen)
    if options is None:
        return cls(**chosen)
    rule = f"must be {cls.__name__}(…); single options are given by name, such as seed=1"
    require(isinstance(options, cls), "options", shown(options), rule)
    return converted(replace(options, **chosen))  # type: ignore[type-var]


@dataclass(frozen=True)
class SampleOptions:
    """Source and number of the images."""

    source: Literal["prior", "image", "grid"] = "prior"
    """Source of z. prior: z ~ p(z). image: z ~ q(z | x) of one image. grid: a grid over two units of z in steps of
    equal prior mass, with the other units at 0."""
    num_images: int = 25
    """Number of images. A grid takes a square number; its first row is the top one."""
    draws: bool = False
    """Draw x ~ p(x | z) instead of taking its mean."""
    image: int = 0
    """Index of the image x in its split, for --source image."""
    split: SplitName = "test"
    """Split of the image x, for --source image."""
    units: tuple[int, int] = (0, 1)
    """Indices of the two units of z, for --source grid."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=1, image=0)


@dataclass(frozen=True)
class FillOptions:
    """The images, and the pixels to hide in them."""

    hide: str | None = None
    """Pixels to hide. left, right, top or bottom: that half. three-quadrants: all but the lower left quadrant.
    one-quadrant: the lower right one. random: each pixel with probability 1/2, the same in every image. FILE.npy: an
    array with the shape of an image that is true, or 1, where a pixel is hidden. missing: the images' own missing
    pixels, others in each image. By default missing for a run with --missing, else right. Missing pixels are always
    hidden."""
    num_images: int = 10
    """Number of images: the first N of the split. The picture shows the first 10."""
    num_samples: int | None = None
    """Importance samples of z per image, where z cannot be enumerated. By default as many as after training."""
    split: SplitName = "test"
    """Split to take images from."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    seed: int = 0
    """Seed of the samples and of a random mask."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=1, num_samples=1)


@dataclass(frozen=True)
class SpliceOptions:
    """The images to splice, and the test that compares them with natural ones."""

    num_images: int | None = None
    """Number of spliced images. Each is made of two images; twice as many natural images are compared with them. By
    default 1000, or a quarter of the split if that is less."""
    num_samples: int | None = None
    """Importance samples of z per image. By default as many as after training."""
    estimator: Literal["auto", "exact", "importance"] = "auto"
    """Estimator of log p(x). auto: exact if every z can be enumerated or there is a closed form, else importance."""
    false_alarm_rate: float = 0.05
    """False-alarm rate of the two-sample test: the share of natural batches that it may call unnatural."""
    num_batches: int = 500
    """Random batches of each size that the power is estimated from."""
    split: SplitName = "test"
    """Split to take images from."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    seed: int = 0
    """Seed of the choice of images, the samples and the batches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=NUM_SPLICED, num_samples=1, num_batches=1)
        rate = self.false_alarm_rate
        require(0 < rate < 1, "false_alarm_rate", rate, "must be between 0 and 1")


@dataclass(frozen=True)
class ResponsibilityOptions:
    """The images to explain."""

    num_images: int | None = None
    """Number of images: the first N of the split. By default all."""
    split: SplitName = "test"
    """Split to take images from."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    num_samples: int = 200
    """Importance samples per image, if the guide samples other sites; no samples are needed for a mixture."""
    seed: int = 0
    """Seed of samples, and of the shuffled labels that chance agreement is estimated from."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=2 * NUM_EXAMPLES, num_samples=2)


@dataclass(frozen=True)
class QualityOptions:
    """The samples to judge, and the classifier that judges them."""

    num_images: int | None = None
    """Number of samples, and of the test images that they are compared with. By default all test images, at most
    10000."""
    images: Literal["auto", "draws", "means"] = "auto"
    """Kind of samples. draws: x ~ p(x), compared with the images that the run was fitted to. means: E[x | z], compared
    with grey values. auto: draws for binary images, means for grey ones."""
    classifier_steps: int = 2000
    """Steps of training of the classifier, on 128 images each."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    seed: int = 0
    """Seed of the choice of images, the samples and the classifier."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=LEAST_JUDGED, classifier_steps=1)


@dataclass(frozen=True)
class GuideCalibrationOptions:
    """The images from the model, the samples of the guide, and the test of their ranks."""

    num_images: int | None = None
    """Number of images to draw from the model. By default 1000; with labels at most as many as the split has."""
    num_samples: int | None = None
    """Samples of the guide per image, which are weighted too. By default as many as after training."""
    false_alarm_rate: float = 0.05
    """False-alarm rate of the test: the share of exact guides that it may call anything but calibrated."""
    split: SplitName = "test"
    """Split to take labels from, if the model or the guide takes labels."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    seed: int = 0
    """Seed of the images and the samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=LEAST_RANKED, num_samples=LEAST_RANKED)
        rate = self.false_alarm_rate
        require(0 < rate < 1, "false_alarm_rate", rate, "must be between 0 and 1")


@dataclass(frozen=True)
class GradientOptions:
    """The objectives to compare, the images, and the number of draws of each gradient."""

    objectives: tuple[str, ...] = ()
    """Objectives whose gradient stands for that of the ELBO: names, or file.py:Class. :K sets the number of particles,
    as in rloo:4; after a comma are options of the objective, as in gumbel-softmax,temperature=0.1. By default all
    objectives of the package that the run's model and guide can have."""
    initial: bool = False
    """Compare them at the weights before training too."""
    num_images: int = 100
    """Number of images in a step: the first N of the split."""
    draws: int = 500
    """Draws of each gradient, for the same images and weights."""
    warm_up: int = 600
    """Steps of training of baselines and control variates alone, before the draws. Model and guide do not change."""
    false_alarm_rate: float = 0.01
    """False-alarm rate of the test for bias: the probability that any of the unbiased gradients in a table is called
    biased."""
    split: SplitName = "train"
    """Split to take images from."""
    checkpoint: Checkpoint = "last"
    """Weights to use. last: after the last epoch. best: after the epoch with the best validation ELBO."""
    seed: int = 0
    """Seed of the draws."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on. auto: cuda if there is one, else cpu."""

    def __post_init__(self) -> None:
        require_numbers(self, num_images=1, draws=LEAST_DRAWN, warm_up=0)
        rate = self.false_alarm_rate
        require(0 < rate < 1, "false_alarm_rate", rate, "must be between 0 and 1")


@dataclass(frozen=True)
class CalibrateOptions:
    """Numbers of repetitions, images and samples."""

    repetitions: int = 200
    """Repetitions of every estimate, for each image."""
    num_images: int = 5
    """Images drawn from each model."""
    num_samples: int = 500
    """Importance samples per image."""
    num_temperatures: int = 100
    """Temperatures of annealing, with 16 chains."""
    estimator: tuple[str, ...] = ()
    """file.py:Class or file.py:function of estimators of your own, which are compared with the exact value, too.
    Options of their constructors are --estimator.NAME."""
    estimator_options: Annotated[Mapping[str, Any], *IN_PYTHON] = field(default_factory=dict)
    """Options of the constructors of those estimators."""
    seed: int = 0
    """Seed of the models, the images and the samples."""
    out: Path | None = None
    """Directory to write calibration.json and calibration.png to. By default nothing is written."""

    def __post_init__(self) -> None:
        require_numbers(self, repetitions=2, num_images=1, num_samples=25, num_temperatures=1)
