"""`python -m ppl_gen.quality RUN [RUN …]`: how samples look to a classifier that was trained on the same images.

Fréchet and kernel distance, precision and recall in the classifier's last hidden layer, which is scaled to a mean
square of 1 on the test images; the classes that it sees in the samples; and the training images that are nearest to
them. What as many other real images reach, which the classifier has not seen, stands beside it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ppl_gen import cli
from ppl_gen.data import Data, load_data
from ppl_gen.errors import BadInput, require
from ppl_gen.evaluation.quality_table import quality_table
from ppl_gen.inference.sample_quality import frechet_distance, kernel_distance, nearest, precision_recall
from ppl_gen.loading import Checkpoint, Named, open_fitted, read_pair, restricted
from ppl_gen.nets import encoder
from ppl_gen.progress import Progress
from ppl_gen.report import write_report
from ppl_gen.runs import Run
from ppl_gen.sample import SampleOptions, sample

Images = Literal["draws", "means"]
_SHOWN = 10
_FEATURES = 128
_BATCH = 1000
_LEAST, _MOST = 20, 10_000
_PRESENT = 0.1  # of its share in the data, for a class to count as covered


@dataclass(frozen=True)
class QualityOptions:
    num_images: int | None = None
    """Samples, and test images that they are held against; by default as many as there are of these, 10000 at most."""
    images: Literal["auto", "draws", "means"] = "auto"
    """draws: x ~ p(x), against images as the run sees them. means: E[x | z], against grey values. auto: draws of binary
    images, means of grey ones."""
    classifier_steps: int = 2000
    """Steps of training of the classifier, on 128 images each."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    seed: int = 0
    """Of the samples and the classifier."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        require(
            self.num_images is None or self.num_images >= _LEAST,
            "num_images",
            self.num_images,
            f"must be at least {_LEAST}",
        )
        require(self.classifier_steps >= 1, "classifier_steps", self.classifier_steps, "must be at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")


@dataclass(frozen=True)
class Command:
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN …]")] = ()
    """Run directories; those of the same images share one classifier."""
    options: Annotated[QualityOptions, tyro.conf.arg(name="")] = field(default_factory=QualityOptions)
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)


class Classifier(nn.Module):
    """Two convolutions with stride 2, or none for images without a height, and two linear layers.

    :param num_classes: labels are 0 … num_classes - 1.
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


@dataclass(frozen=True)
class Judge:
    """A trained classifier, with what samples are held against."""

    classifier: Classifier
    steps: int
    accuracy: float
    """Of the classifier, on the test images."""
    train: Tensor
    """Training images [N, data_dim]."""
    test: Tensor
    labels: Tensor
    """Of the test images, as numbers of classes."""
    classes: list[Any]
    """The label of each class."""
    nearest: float
    """Median distance of a test image to the nearest training image."""
    real: dict[str, Any]
    """`scores` of validation images, or of training images that were kept from the classifier."""

    def scores(self, samples: Tensor) -> dict[str, Any]:
        """How samples [images, data_dim] differ from the test images."""
        real, logits_real = self._seen(self.test)
        made, logits = self._seen(samples)
        scale = real.square().mean().sqrt()  # so that no figure depends on what the classifier makes of it
        real, made = real / scale, made / scale
        keys = ("mean", "se")
        precision, recall = precision_recall(real, made)
        count = logits_real.shape[1]
        share = torch.bincount(logits.argmax(1), minlength=count).double() / len(samples)
        expected = torch.bincount(self.labels, minlength=count).double() / len(self.labels)
        divergence = torch.where(share > 0, share * (share / expected.clamp(min=1e-12)).log(), 0.0).sum()
        there = expected > 0
        return {
            "frechet": dict(zip(keys, frechet_distance(real, made), strict=True)),
            "kernel": dict(zip(keys, kernel_distance(real, made), strict=True)),
            "precision": dict(zip(keys, precision, strict=True)),
            "recall": dict(zip(keys, recall, strict=True)),
            "classes": {
                "labels": self.classes,
                "share": share.tolist(),
                "of_the_data": expected.tolist(),
                "covered": int(((share >= _PRESENT * expected) & there).sum()),
                "of": int(there.sum()),
                "divergence": float(divergence),
            },
        }

    def _seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images, on the CPU."""
        with torch.no_grad():
            features = torch.cat([self.classifier.features(each) for each in images.split(_BATCH)])
            return features.cpu(), self.classifier.head(features).cpu()


def train_judge(data: Data, count: int, options: QualityOptions, quiet: bool = False) -> Judge:
    """A classifier of the data's training images, and the first test images.

    :raises BadInput: for images without labels.
    """
    train, test = data.targets("train"), data.targets("test")[:count]
    assert data.train.labels is not None and data.test.labels is not None
    classes, numbers = torch.cat([data.train.labels, data.test.labels]).unique(return_inverse=True)
    labels, test_labels = numbers[: len(train)], numbers[len(train) :][:count].cpu()
    seen, others = len(train), data.targets("validation")[:count] if len(data.validation) >= count else None
    if others is None:
        seen, others = len(train) - count, train[len(train) - count :]
    device = train.device
    with torch.random.fork_rng([device] if train.is_cuda else []), torch.enable_grad():
        torch.manual_seed(options.seed)
        classifier = Classifier(data.shape, len(classes)).to(device)
        optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
        with Progress(options.classifier_steps, "step", quiet=quiet) as progress:
            for _ in range(options.classifier_steps):
                rows = torch.randint(seen, (128,), device=device)
                loss = F.cross_entropy(classifier(train[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.advance()
                progress.note("classifier", "training", every=10)
    apart = float(nearest(test, train)[0].median())
    steps = options.classifier_steps
    judge = Judge(classifier.eval(), steps, 0.0, train, test, test_labels, classes.tolist(), apart, {})
    right = judge._seen(test)[1].argmax(1) == judge.labels
    return replace(judge, accuracy=float(right.double().mean()), real=judge.scores(others))


def check(data: Data, count: int) -> None:
    """Raise `BadInput` for images that no judge can be made of, before any work is done."""
    require(count <= len(data.test), "num_images", count, f"the test split has {len(data.test)}")
    require(count >= _LEAST, "num_images", count, f"must be at least {_LEAST}")
    labels = data.train.labels
    if labels is None or data.test.labels is None:
        raise BadInput(f"{data.name}: has no labels to train a classifier on")
    if len(labels.unique()) > len(labels) / 2:
        raise BadInput(f"{data.name}: has {len(labels.unique())} different labels of {len(labels)} images, no classes")
    if len(data.validation) < count and len(data.train) < 2 * count:
        raise BadInput(f"--num-images {count}: leaves no training images; there are {len(data.train)}, some kept apart")


def judged(run: Run, model: Any, guide: Any, data: Data, kind: Images, judge: Judge, options: QualityOptions) -> Any:
    """Score as many samples of a run as there are test images, write `quality.json` and its pictures, and return the
    former's content."""
    from ppl_gen.figures.canvas import pictures, save
    from ppl_gen.figures.sample_quality import class_shares, neighbours

    started = time.perf_counter()
    pair, _ = read_pair(model, guide, data)
    how = SampleOptions(num_images=len(judge.test), draws=kind == "draws", seed=options.seed)
    samples = sample(model, guide, data, pair, how)
    distances, which = nearest(samples, judge.train)
    scores = judge.scores(samples)
    summary = {
        **{key: run.config[key] for key in ("model", "guide", "prior") if run.config.get(key) is not None},
        "data": data.name,
        "split": "test",
        "num_images": len(judge.test),
        "binarization": data.binarization,
        "images": kind,
        "seed": options.seed,
        "checkpoint": options.checkpoint,
        "training_step": run.loaded,
        "classifier": {"steps": judge.steps, "accuracy": judge.accuracy},
        **scores,
        "nearest": {"samples": float(distances.median()), "test": judge.nearest},
        "real_images": judge.real,
        "seconds": time.perf_counter() - started,
    }
    classes = scores["classes"]
    share, of_the_data = (np.array(classes[key]) for key in ("share", "of_the_data"))
    save(run, "sample_classes", class_shares(share, of_the_data, [f"{label:g}" for label in classes["labels"]]))
    ours, theirs = (pictures(each, data.shape) for each in (samples[:_SHOWN], judge.train[which[:_SHOWN]]))
    save(run, "neighbours", neighbours(ours, theirs, distances[:_SHOWN].tolist()))
    run.write_json("quality.json", summary)
    return summary


def quality(
    paths: Sequence[Path], options: QualityOptions, named: Named | None = None, quiet: bool = False
) -> list[dict[str, Any]]:
    """The content of the `quality.json` that each run is given."""
    opened = []
    for path in paths:
        again = restricted(Run.open(path), named or Named())
        run, config, model, guide, data = open_fitted(path, again, checkpoint=options.checkpoint, device=options.device)
        binary = data.binarization not in ("none", "dequantized")
        kind: Images = options.images if options.images != "auto" else "draws" if binary else "means"
        seen = data
        if kind == "means":
            seen = load_data(replace(config.data, binarization="none")).to(data.train.images.device)
        count = min(len(seen.test), _MOST) if options.num_images is None else options.num_images
        check(seen, count)
        key = (replace(config.data, binarization=seen.binarization), count)
        opened.append((key, seen, kind, (run, model, guide, data)))
    judges: dict[Any, Judge] = {}
    found = []
    for key, seen, kind, parts in opened:
        if key not in judges:
            judges[key] = train_judge(seen, key[1], options, quiet)
        found.append(judged(*parts, kind, judges[key], options))
        write_report(parts[0])
    return found


def command(arguments: list[str]) -> None:
    given = cli.parse(
        Command, arguments, "python -m ppl_gen.quality", "How samples look to a classifier of the same images."
    )
    if not given.runs:
        raise BadInput("name at least one run: python -m ppl_gen.quality RUN")
    found = quality(given.runs, given.options, given.named)
    for path, summary in zip(given.runs, found, strict=True):
        print(quality_table(summary))
        print(f"written to {path / 'quality.json'}, figures/sample_classes.png and figures/neighbours.png")


if __name__ == "__main__":
    cli.main(command)
