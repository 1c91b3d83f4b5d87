"""Detection of spliced digits by log p(x).

A spliced image joins the left half of one digit and the right half of a digit of another class. Each half is natural;
the whole is not.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.errors import BadInput, require, warnings_of
from ppl_gen.evaluation.estimating import estimators, exact_estimate, importance_estimate, observation
from ppl_gen.evaluation.table import Printed, title
from ppl_gen.evaluation.use_options import NUM_SPLICED, SpliceOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.estimate import mean_entry, share

BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100)
_EXACT_UP_TO = 8  # images in a batch, for the exact distribution of the test


@dataclass(frozen=True)
class Spliced(Printed):
    """log p(x) of natural and of spliced images."""

    summary: Json
    """The content of `splice.json`."""
    images: Tensor
    """The natural images, followed by the spliced ones, [images, pixels]."""
    natural: Tensor
    """log p(x) of the natural images, in nats [images]."""
    spliced: Tensor

    def __str__(self) -> str:
        return table(self.summary)


def splice(left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The left half of one image joined to the right half of another, [images, pixels], for images of `shape`."""
    width = shape[-1]
    from_left = (torch.arange(width, device=left.device) < width // 2).expand(shape).flatten()
    return torch.where(from_left, left, right)


def pair_up(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pairs of images of different classes. Every image is in one pair.

    :param labels: classes of the images [2 pairs].
    :returns: indices [pairs] of the first and of the second image of each pair.
    :raises BadInput: if more than half of the images are of one class.
    """
    labels = labels.cpu()
    left, right = torch.randperm(len(labels), generator=generator).chunk(2)
    for pair in (labels[left] == labels[right]).nonzero().flatten().tolist():
        same = labels[left[pair]]
        if labels[right[pair]] != same:
            continue  # an earlier swap has resolved it
        others = ((labels[left] != same) & (labels[right] != same)).nonzero().flatten()
        if len(others) == 0:
            raise BadInput("more than half of the images are of one class; a spliced image needs two classes")
        other = int(others[torch.randint(len(others), (), generator=generator)])
        right[pair], right[other] = right[other].clone(), right[pair].clone()
    return left, right


def log_px(fitted: Fitted, x: Tensor, estimator: str, num_samples: int, quiet: bool) -> tuple[Tensor, Json]:
    """log p(x) in nats, float64 [images] on the CPU, and the settings of its estimator.

    :raises BadInput: for `exact` if a latent site has no finite support, or memory does not suffice.
    """
    if estimator != "importance" and estimators(fitted.model, fitted.pair, estimator, x.device)[0]:
        return exact_estimate(fitted, x, quiet=quiet).log_px, {"estimator": "exact"}
    found = importance_estimate(fitted, x, num_samples=num_samples, quiet=quiet)
    settings = {"estimator": "importance", "num_samples": num_samples, "untrusted": share(found.untrusted)}
    return found.log_px, settings


def roc_auc(natural: np.ndarray, spliced: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve of -log p(x) as a detector of spliced images, and its standard error.

    The error is that of DeLong, DeLong and Clarke-Pearson (1988). The area is a mean over pairs of a spliced and a
    natural image. Its variance is the sum of the variances of its mean over either.
    """
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([0, 1], [len(natural), len(spliced)])
    area = roc_auc_score(truth, -np.concatenate([natural, spliced]))
    # For each image, the share of the images of the other kind on the right side of it; a tie counts half.
    below, upto = (np.searchsorted(np.sort(natural), spliced, side) for side in ("left", "right"))
    of_spliced = 1 - (below + upto) / 2 / len(natural)
    below, upto = (np.searchsorted(np.sort(spliced), natural, side) for side in ("left", "right"))
    of_natural = (below + upto) / 2 / len(spliced)
    return float(area), float(np.sqrt(of_spliced.var(ddof=1) / len(spliced) + of_natural.var(ddof=1) / len(natural)))


def rejections(
    natural: np.ndarray, spliced: np.ndarray, size: int, rate: float, num_batches: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Decisions of a one-sided Mann-Whitney test that log p(x) of a batch is lower than that of natural images: True
    for a rejection, [num_batches] for spliced batches and [num_batches] for natural ones.

    For every batch the natural images are divided at random into a reference set, which is half of them, and the rest,
    which natural batches are drawn from. So a natural batch is exchangeable with its reference, as the test assumes,
    and false alarms occur at no more than the nominal rate.

    :param natural: log p(x) of natural images [n].
    :param spliced: log p(x) of at least `size` other images.
    :param size: images in a batch.
    :param rate: false-alarm rate.
    """
    from scipy.stats import mannwhitneyu

    order = rng.permuted(np.tile(np.arange(len(natural)), (num_batches, 1)), axis=1)
    half = len(natural) // 2
    reference, natural_batches = natural[order[:, :half]], natural[order[:, half : half + size]]
    spliced_batches = spliced[rng.permuted(np.tile(np.arange(len(spliced)), (num_batches, 1)), axis=1)[:, :size]]
    # For a batch of one the normal approximation has half of the nominal 5 %. The exact distribution assumes no ties.
    # float32 makes a few, which makes the test conservative.
    method = "exact" if size <= _EXACT_UP_TO else "asymptotic"
    power, false_alarms = (
        mannwhitneyu(batch, reference, alternative="less", axis=1, method=method).pvalue <= rate
        for batch in (spliced_batches, natural_batches)
    )
    return power, false_alarms


def two_sample_test(
    natural: np.ndarray,
    spliced: np.ndarray,
    rate: float,
    num_batches: int,
    seed: int,
) -> Json:
    """Shares of `rejections` with their standard errors, for every batch size that the number of images allows."""
    rng = np.random.default_rng(seed)
    result: Json = {
        "test": "Mann-Whitney U of log p(x), one-sided",
        "false_alarm_rate": rate,
        "reference": len(natural) // 2,
        "num_batches": num_batches,
        "power": {},
        "false_alarms": {},
    }
    for size in BATCH_SIZES:
        if size <= min(len(spliced), len(natural) - len(natural) // 2):
            decisions = rejections(natural, spliced, size, rate, num_batches, rng)
            for key, rejected in zip(("power", "false_alarms"), decisions, strict=True):
                mean = float(rejected.mean())
                result[key][str(size)] = {"mean": mean, "se": float(np.sqrt(mean * (1 - mean) / num_batches))}
    return result


def detect(fitted: Fitted, options: SpliceOptions, *, quiet: bool = False) -> Spliced:
    """Splice images, estimate log p(x) of spliced and natural ones, and test whether the former is lower.

    :raises BadInput: for images without labels, and for a pair that takes labels.
    """
    count = _count(fitted, options)
    data, split = fitted.data, fitted.data.split(options.split)
    x = data.targets(options.split)
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(len(split), generator=generator)[: 4 * count].to(x.device)
    parents = chosen[2 * count :]
    assert split.labels is not None
    left, right = (parents[part] for part in pair_up(split.labels[parents], generator))
    images = torch.cat([x[chosen[: 2 * count]], splice(x[left], x[right], data.shape)])
    kind = observation(fitted.pair, x)
    with fitted.estimating(options.seed):
        num_samples = options.num_samples or fitted.config.num_samples
        values, estimated = log_px(fitted, images, options.estimator, num_samples, quiet)
    natural, spliced = values[: 2 * count], values[2 * count :]
    auc, auc_se = roc_auc(natural.numpy(), spliced.numpy())
    test = two_sample_test(
        natural.numpy(), spliced.numpy(), options.false_alarm_rate, options.num_batches, options.seed
    )
    summary = {
        **fitted.provenance(options),
        "observation": kind,
        "num_natural": 2 * count,
        "num_spliced": count,
        **estimated,
        "log_px": {"natural": mean_entry(natural), "spliced": mean_entry(spliced)},
        "roc_auc": {"mean": auc, "se": auc_se, "se_by": "DeLong"},
        "two_sample_test": test,
    }
    return Spliced(summary, images, natural, spliced)


def _count(fitted: Fitted, options: SpliceOptions) -> int:
    """The number of spliced images.

    :raises BadInput: if the images cannot be spliced, or there are too few.
    """
    fitted.require_complete("splice")
    fitted.require_amortized("splice")
    data, split = fitted.data, fitted.data.split(options.split)
    if split.labels is None:
        raise BadInput(f"{data.name}: has no labels; a spliced image needs two images of different classes")
    if len(data.shape) != 2:
        raise BadInput(
            f"{data.name}: its images have shape {data.shape}; only images with a height and a width can be spliced"
        )
    if fitted.takes_labels:
        raise BadInput(f"{fitted.config.model}: its model or guide takes labels, but a spliced image has none")
    most = len(split) // 4
    count = min(1000, most) if options.num_images is None else options.num_images
    rule = f"the {options.split} split has {len(split)} images, and each spliced image needs four"
    require(NUM_SPLICED <= count <= most, "num_images", count, rule)
    return count


def table(summary: Json) -> str:
    """The content of `splice.json` as text."""
    s, test = summary, summary["two_sample_test"]
    how = "exact"
    if s["estimator"] == "importance":
        how = f"S = {s['num_samples']} importance samples; k-hat too high or unknown: {s['untrusted']:.1%} of images"
    rows = [
        f"{title(s)}: {s['num_spliced']} spliced and {s['num_natural']} natural {s['split']} "
        f"images of {s['data']}, binarization {s['binarization']}",
        f"log p(x) in nats per image ± standard error over images, {how}",
        *(f"  {name:<10}{entry['mean']:9.2f} ± {entry['se']:.2f}" for name, entry in s["log_px"].items()),
        f"ROC AUC of -log p(x) as a detector of spliced images: {s['roc_auc']['mean']:.3f} ± {s['roc_auc']['se']:.3f} "
        "(standard error by DeLong)",
        f"{test['test']}, of a batch against {test['reference']} natural images, false-alarm rate "
        f"{test['false_alarm_rate']:g}, {test['num_batches']} batches",
        "  images in a batch   power           false alarms",
    ]
    for size, power in test["power"].items():
        alarms = test["false_alarms"][size]
        rows.append(
            f"  {size:>17}   {power['mean']:.3f} ± {power['se']:.3f}   {alarms['mean']:.3f} ± {alarms['se']:.3f}"
        )
    return "\n".join([*rows, *(f"  {warning}" for warning in warnings_of(s["observation"]))])
