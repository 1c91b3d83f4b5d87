"""Quality of samples, by a classifier that is trained on the same images.

Scores are Fréchet and kernel distance, precision and recall in the classifier's last hidden layer, which is scaled to a
mean square of 1 on the test images; the classes that the classifier sees in the samples; and the distances to the
nearest training images. Each score is also computed for as many real images that the classifier has not seen.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.gradients import gradients
from ppl_gen.core.optimizers import without_compiler
from ppl_gen.core.progress import Progress
from ppl_gen.core.seeds import seed_torch
from ppl_gen.core.tables import Row, duration, fixed, line
from ppl_gen.data.loading import load_data
from ppl_gen.data.splits import Data
from ppl_gen.evaluation.sampling import sample
from ppl_gen.evaluation.table import Printed, title
from ppl_gen.evaluation.use_options import LEAST_JUDGED, QualityOptions, SampleOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.estimate import median
from ppl_gen.inference.modes import forked_rng
from ppl_gen.inference.sample_quality import frechet_distance, kernel_distance, nearest, precision_recall
from ppl_gen.networks.nets import encoder

Images = Literal["draws", "means"]
QUALITY_UNITS = "±: standard error; in brackets: the score of as many other real images"
_SHOWN = 10
_FEATURES = 128
_BATCH = 1000
_MOST = 10_000
_PRESENT = 0.1  # a class is covered if its share reaches this part of its share in the data


@dataclass(frozen=True)
class Quality(Printed):
    """Scores of a run's samples, compared with test images."""

    summary: Json
    """The content of `quality.json`."""
    samples: Tensor
    """A few samples [images, pixels]."""
    neighbours: Tensor
    """The nearest training image of each of the samples. `distances` has their distances."""
    distances: list[float]

    def __str__(self) -> str:
        return quality_table(self.summary)


class Classifier(nn.Module):
    """Two convolutions with stride 2 (none for images without a height), and two linear layers.

    :param num_classes: number of classes; labels are 0 … num_classes - 1.
    """

    def __init__(self, data_shape: tuple[int, ...], num_classes: int):
        super().__init__()
        network = "conv" if len(data_shape) > 1 else "mlp"
        shared: dict[str, Any] = {"activation_name": "relu", "network": network, "channels": (32, 64)}
        self.body = encoder(data_shape, _FEATURES, hidden_dims=(), **shared)
        self.head = nn.Linear(_FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer [images, 128] of images [images, data_dim]."""
        return self.body(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [images, classes]."""
        return self.head(self.features(x))

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images, a batch at a time, on the CPU."""
        with torch.no_grad():
            features = torch.cat([self.features(batch) for batch in images.split(_BATCH)])
            return features.cpu(), self.head(features).cpu()


@dataclass(frozen=True)
class Judge:
    """A trained classifier, with the images that samples are compared with."""

    classifier: Classifier
    steps: int
    accuracy: float
    """Accuracy of the classifier on the test images."""
    train: Tensor
    """Training images [N, data_dim]."""
    test: Tensor
    labels: Tensor
    """Classes of the test images, as indices into `classes`."""
    classes: list[Any]
    """The label of each class."""
    nearest: float
    """Median distance of a test image to the nearest training image."""
    real: Json
    """The `scores` of validation images, or of training images that were held out from the classifier."""

    def scores(self, samples: Tensor) -> Json:
        """Scores of samples [images, data_dim], compared with the test images."""
        return _scores(self.classifier, samples, self.test, self.labels, self.classes)


def _scores(classifier: Classifier, samples: Tensor, test: Tensor, labels: Tensor, classes: list[Any]) -> Json:
    """Scores of samples, compared with test images of known classes."""
    real, logits_real = classifier.features_and_logits(test)
    made, logits = classifier.features_and_logits(samples)
    scale = real.square().mean().sqrt()  # removes the arbitrary scale of the features
    real, made = real / scale, made / scale
    keys = ("mean", "se")
    precision, recall = precision_recall(real, made)
    count = logits_real.shape[1]
    share = torch.bincount(logits.argmax(1), minlength=count).double() / len(samples)
    expected = torch.bincount(labels, minlength=count).double() / len(labels)
    divergence = torch.where(share > 0, share * (share / expected).log(), 0.0).sum()
    there = expected > 0
    return {
        "frechet": dict(zip(keys, frechet_distance(real, made), strict=True)),
        "kernel": dict(zip(keys, kernel_distance(real, made), strict=True)),
        "precision": dict(zip(keys, precision, strict=True)),
        "recall": dict(zip(keys, recall, strict=True)),
        "classes": {
            "labels": classes,
            "share": share.tolist(),
            "of_the_data": expected.tolist(),
            "covered": int(((share >= _PRESENT * expected) & there).sum()),
            "of": int(there.sum()),
            "divergence": float(divergence),
        },
    }


def train_judge(data: Data, count: int, options: QualityOptions, quiet: bool = False) -> Judge:
    """A classifier trained on the training images, with `count` test images at random: a file may have its images in
    the order of their classes.

    :raises BadInput: for images without labels.
    """
    train, device = data.targets("train"), data.train.images.device
    generator = torch.Generator().manual_seed(options.seed)

    def shuffled(number: int) -> Tensor:
        return torch.randperm(number, generator=generator).to(device)

    assert data.train.labels is not None and data.test.labels is not None
    classes, numbers = torch.cat([data.train.labels, data.test.labels]).unique(return_inverse=True)
    chosen, seen = shuffled(len(data.test))[:count], shuffled(len(train))
    labels, test_labels = numbers[: len(train)], numbers[len(train) :][chosen].cpu()
    test = data.targets("test")[chosen]
    if len(data.validation) >= count:
        others = data.targets("validation")[shuffled(len(data.validation))[:count]]
    else:
        others, seen = train[seen[:count]], seen[count:]
    with forked_rng(train), gradients("the classifier's training"):
        seed_torch(options.seed)
        classifier = Classifier(data.shape, len(classes)).to(device)
        optimizer = without_compiler(torch.optim.Adam)(classifier.parameters(), 1e-3)
        with Progress(options.classifier_steps, "step", quiet=quiet) as progress:
            advance = progress.advancing("classifier", "training")
            for _ in range(options.classifier_steps):
                rows = seen[torch.randint(len(seen), (128,), device=device)]
                loss = F.cross_entropy(classifier(train[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                advance(1)
    right = classifier.eval().features_and_logits(test)[1].argmax(1) == test_labels
    return Judge(
        classifier,
        steps=options.classifier_steps,
        accuracy=float(right.double().mean()),
        train=train,
        test=test,
        labels=test_labels,
        classes=classes.tolist(),
        nearest=median(nearest(test, train)[0]),
        real=_scores(classifier, others, test, test_labels, classes.tolist()),
    )


def check(data: Data, count: int) -> None:
    """Raise `BadInput` for images that do not suffice for a classifier, before any work is done."""
    require(count <= len(data.test), "num_images", count, f"the test split has {len(data.test)} images")
    require(count >= LEAST_JUDGED, "num_images", count, f"must be at least {LEAST_JUDGED}")
    labels = data.train.labels
    if labels is None or data.test.labels is None:
        raise BadInput(f"{data.name}: has no labels, but the classifier needs them")
    if len(labels.unique()) > len(labels) / 2:
        raise BadInput(
            f"{data.name}: has {len(labels.unique())} different labels for {len(labels)} images; the "
            "classifier needs several images in a class"
        )
    if len(data.validation) < count and len(data.train) < 2 * count:
        raise BadInput(
            f"--num-images {count}: there are {len(data.train)} training images, too few for the comparison and the "
            "classifier; choose a smaller number"
        )


def judge_samples(fitted: Fitted, kind: Images, judge: Judge, options: QualityOptions) -> Quality:
    """Scores of as many samples of a run as there are test images."""
    started = time.perf_counter()
    run, data = fitted.directory, fitted.data
    how = SampleOptions(num_images=len(judge.test), draws=kind == "draws", seed=options.seed)
    samples = sample(fitted, how)
    distances, which = nearest(samples, judge.train)
    summary = {
        **{key: run.config[key] for key in ("model", "guide", "prior") if run.config.get(key) is not None},
        "data": data.name,
        "split": "test",
        "num_images": len(judge.test),
        "binarization": data.binarization,
        "images": kind,
        "seed": options.seed,
        "checkpoint": options.checkpoint,
        "options": asdict(replace(options, num_images=len(judge.test), images=kind)),
        "training_step": fitted.step,
        "classifier": {"steps": judge.steps, "accuracy": judge.accuracy},
        **judge.scores(samples),
        "nearest": {"samples": median(distances), "test": judge.nearest},
        "real_images": judge.real,
        "seconds": time.perf_counter() - started,
    }
    shown = slice(_SHOWN)
    return Quality(summary, samples[shown], judge.train[which[shown]], distances[shown].tolist())


def quality(runs: Sequence[Fitted], options: QualityOptions, *, quiet: bool = False) -> list[Quality]:
    """Scores of the samples of each run. Runs of the same images share one classifier.

    :raises BadInput: for images without labels, before any work is done.
    """
    prepared = []
    for fitted in runs:
        fitted.require_complete("quality")
        data = fitted.data
        binary = data.binarization not in ("none", "dequantized")
        kind: Images = options.images if options.images != "auto" else "draws" if binary else "means"
        if kind == "means":
            grey = replace(fitted.config.data, binarization="none")
            data = load_data(grey, fitted.given.data).to(data.train.images.device)
        count = min(len(data.test), _MOST) if options.num_images is None else options.num_images
        check(data, count)
        prepared.append((fitted, data, kind, count))
    judges: dict[Any, Judge] = {}
    scored = []
    for fitted, data, kind, count in prepared:
        key = (replace(fitted.config.data, binarization=data.binarization), data.sha256, count)
        if key not in judges:
            judges[key] = train_judge(data, count, options, quiet)
        scored.append(judge_samples(fitted, kind, judges[key], options))
    return scored


# Their table ---------------------------------------------------------------------------------------------------


def quality_rows(summary: Json) -> list[Row]:
    """The rows of a `quality.json`."""
    s = summary

    def score(label: str, key: str, digits: int) -> Row:
        ours, real = s[key], s["real_images"][key]
        mean, se, of_real, its_se = (fixed(each[name], digits) for each in (ours, real) for name in ("mean", "se"))
        return Row(label, mean, se, f"({of_real} ± {its_se})")

    classes, distance = s["classes"], s["nearest"]
    seen = ", ".join(f"{share:.1%}" for share in classes["share"])
    return [
        score("Fréchet distance", "frechet", 2),
        score("kernel distance", "kernel", 3),
        score("precision", "precision", 3),
        score("recall", "recall", 3),
        Row("classes covered", note=f"{classes['covered']} of {classes['of']}"),
        Row("their shares", note=f"{seen}; KL to the data's {classes['divergence']:.3f} nats"),
        Row(
            "nearest training image",
            note=f"median distance {distance['samples']:.2f}; of test images {distance['test']:.2f}",
        ),
        Row("classifier", note=f"correct on {s['classifier']['accuracy']:.1%} of the test images"),
        Row("this took", note=f"{duration(s['seconds'])}, plus the classifier's training"),
    ]


def quality_images(summary: Json) -> str:
    """The images that a `quality.json` compares, as text."""
    what = {"draws": "draws x ~ p(x)", "means": "means E[x | z]"}[summary["images"]]
    against = f"binarization {summary['binarization']}" if summary["images"] == "draws" else "grey values"
    return f"{summary['num_images']} {what} compared with as many test images of {summary['data']}, {against}"


def quality_table(summary: Json) -> str:
    """The content of `quality.json` as text."""
    lines = [f"{title(summary)}: {quality_images(summary)}", QUALITY_UNITS]
    return "\n".join([*lines, *(line(row, 24, "{:>1}{:>8}{}") for row in quality_rows(summary))])
