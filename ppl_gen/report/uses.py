"""Pictures for the uses of a run, written to its `figures/`."""

import numpy as np
import torch

from ppl_gen.evaluation.explaining import Responsibilities
from ppl_gen.evaluation.filling import Filled
from ppl_gen.evaluation.gradient_quality import JudgedGradients
from ppl_gen.evaluation.guide_calibration import Calibrated
from ppl_gen.evaluation.quality import Quality
from ppl_gen.evaluation.splicing import Spliced
from ppl_gen.evaluation.use_options import NUM_EXAMPLES
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.figures.canvas import pictures
from ppl_gen.figures.gradient_quality import bias_against_variance
from ppl_gen.figures.guide_calibration import coverage, rank_ecdfs
from ppl_gen.figures.imputations import imputations
from ppl_gen.figures.responsibilities import MOST, components_by_label, examples
from ppl_gen.figures.sample_quality import class_shares, neighbours
from ppl_gen.figures.spliced import power_against_size, spliced_images
from ppl_gen.inference.ranks import band
from ppl_gen.report.pictures import as_images, save

_SHOWN = slice(10)
_COMPONENTS = 4  # components to show beside each image


def draw_calibration(fitted: Fitted, found: Calibrated) -> None:
    """Draw the ECDFs of ranks with their band, and coverage against its nominal level."""
    summary, ranks = found.summary, found.ranks
    low, high = band(summary["num_images"], summary["false_alarm_rate"])
    after = None if ranks.after is None else ranks.after.numpy()
    figure = rank_ecdfs(ranks.names, ranks.before.numpy(), after, low, high, summary)
    save(fitted.directory, "calibration_ranks", figure)
    save(fitted.directory, "calibration_coverage", coverage(summary))


def draw_gradients(fitted: Fitted, found: JudgedGradients) -> None:
    """Draw the squared bias of gradient estimators against their variance."""
    save(fitted.directory, "gradients", bias_against_variance(found.summary))


def draw_filled(fitted: Fitted, found: Filled) -> None:
    """Draw images, their visible pixels, and their imputations."""
    shape, log_prob = fitted.data.shape, found.imputation.log_prob
    visible = found.visible if found.visible.dim() == 1 else found.visible[_SHOWN]
    figure = imputations(
        pictures(found.x[_SHOWN], shape),
        pictures(visible, shape),
        pictures(found.imputation.mean[_SHOWN], shape),
        pictures(found.imputation.draws[:, _SHOWN], shape),
        [] if log_prob is None else [f"{value:.1f}" for value in log_prob[_SHOWN]],
    )
    save(fitted.directory, "fill", figure)


def draw_spliced(fitted: Fitted, found: Spliced) -> None:
    """Draw natural and spliced images, and the power of a test against the size of a batch."""
    shape = fitted.data.shape
    shown, foreign = (pictures(part[_SHOWN], shape) for part in (found.images, found.images[len(found.natural) :]))
    values = found.natural[_SHOWN].numpy(), found.spliced[_SHOWN].numpy()
    bound = found.summary["estimator"] != "exact"
    save(fitted.directory, "spliced", spliced_images(shown, foreign, values, bound))
    save(fitted.directory, "splice_power", power_against_size(found.summary["two_sample_test"]))


def draw_responsibilities(fitted: Fitted, explained: Responsibilities) -> None:
    """Draw components beside the labels of their images, and images beside the components that explain them."""
    shape, weights = fitted.data.shape, explained.weights
    components = pictures(explained.means, shape)
    if explained.counts is not None:
        first = np.argsort(-weights, kind="stable")[:MOST]
        names = [f"{k}: {weights[k]:.1%}" for k in first]
        site, counts = explained.summary["site"], explained.counts[first]
        figure = components_by_label(counts, explained.labels, names, components[first], len(weights), site)
        save(fitted.directory, "components_by_label", figure)
    entropy = torch.special.entr(explained.probabilities).sum(1)
    uncertain = entropy.argsort(descending=True, stable=True)[:NUM_EXAMPLES]
    shown = torch.cat([torch.arange(NUM_EXAMPLES), uncertain])
    top, index = explained.probabilities[shown].topk(min(_COMPONENTS, len(weights)))
    names_of = [[str(int(k)) for k in row] for row in index]
    images = as_images(explained.x[shown.to(explained.x.device)], fitted.data)
    save(fitted.directory, "responsibilities", examples(images, components[index.numpy()], top.numpy(), names_of))


def draw_quality(fitted: Fitted, found: Quality) -> None:
    """Draw the classes of samples beside those of the data, and samples beside their nearest training images."""
    classes, shape = found.summary["classes"], fitted.data.shape
    share, of_the_data = (np.array(classes[key]) for key in ("share", "of_the_data"))
    labels = [f"{label:g}" for label in classes["labels"]]
    save(fitted.directory, "sample_classes", class_shares(share, of_the_data, labels, found.summary["num_images"]))
    ours, theirs = (pictures(each, shape) for each in (found.samples, found.neighbours))
    save(fitted.directory, "neighbours", neighbours(ours, theirs, found.distances))
