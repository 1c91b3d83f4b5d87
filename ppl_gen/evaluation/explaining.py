"""Responsibilities: the component of a mixture that explains each image, compared with the labels.

The responsibility of component k for an image is p(z = k | x) (Bishop 2006, equation 9.23), here exact. The model has
not seen the labels. Purity and normalized mutual information measure how well its components match them (Manning,
Raghavan and Schütze 2008, section 16.3).
"""

from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.progress import Progress
from ppl_gen.evaluation.table import Printed, images, title
from ppl_gen.evaluation.use_options import NUM_EXAMPLES, ResponsibilityOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.estimate import mean_se
from ppl_gen.inference.exact import state_posterior
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.state_memory import block_size, cheap_to_enumerate, require_memory

_SHUFFLES = 100
_ROWS = 20  # rows to print


@dataclass(frozen=True)
class Responsibilities(Printed):
    """p(z | x) of a mixture's components, compared with the labels."""

    summary: Json
    """The content of `responsibilities.json`."""
    x: Tensor
    """The images [images, pixels]."""
    probabilities: Tensor
    """p(z | x), float64 [images, components] on the CPU."""
    weights: np.ndarray
    """p(z) [components]."""
    means: Tensor
    """E[x | z] [components, pixels]."""
    counts: np.ndarray | None
    """Number of images of each label in each component [components, labels]; None without labels."""
    labels: list[str]

    def __str__(self) -> str:
        return table(self.summary)


def contingency(components: np.ndarray, labels: np.ndarray, num_components: int, num_labels: int) -> np.ndarray:
    """Number of images of each label in each component, [num_components, num_labels].

    :param components: component of each image, 0 … num_components - 1.
    :param labels: label of each image, 0 … num_labels - 1.
    """
    counts = np.zeros((num_components, num_labels), int)
    np.add.at(counts, (components, labels), 1)
    return counts


def purity(counts: np.ndarray) -> float:
    """The share of images whose label is the most frequent one in their component.

    :param counts: numbers of images as `contingency` returns them.
    """
    return float(counts.max(1).sum() / counts.sum())


def agreement(components: np.ndarray, labels: np.ndarray, seed: int = 0) -> Json:
    """Purity and normalized mutual information of components and labels, each with its value by chance: the mean over
    shuffled labels, with components of the same sizes. Both purity and its value by chance grow with the number of
    components.

    :param components: component of each image, 0, 1, 2, …
    :param labels: label of each image, 0, 1, 2, …
    """
    from sklearn.metrics import normalized_mutual_info_score

    sizes = (components.max() + 1, labels.max() + 1)
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(labels) for _ in range(_SHUFFLES)]
    return {
        "purity": {
            "mean": purity(contingency(components, labels, *sizes)),
            "chance": float(np.mean([purity(contingency(components, each, *sizes)) for each in shuffled])),
            "most_frequent_label": float(np.bincount(labels).max() / len(labels)),
        },
        "normalized_mutual_information": {
            "mean": float(normalized_mutual_info_score(labels, components)),
            "chance": float(np.mean([normalized_mutual_info_score(each, components) for each in shuffled])),
        },
    }


def explain(fitted: Fitted, options: ResponsibilityOptions, *, quiet: bool = False) -> Responsibilities:
    """Compute the responsibilities of a mixture's components for images.

    :raises BadInput: for a model that is no mixture.
    """
    x = _images(fitted, options)
    model: Any = fitted.model
    pair = fitted.pair
    with fitted.estimating(options.seed):
        probabilities = _responsibilities(model, pair, x, quiet)
        states = model.prior().enumerate_support(expand=False)
        weights = model.prior().log_prob(states).exp().double().cpu().numpy()
        means = model.likelihood(states).mean
    components = probabilities.argmax(1).numpy()
    sizes = np.bincount(components, minlength=len(weights))
    rows: list[Json] = [
        {"component": int(k), "weight": float(weights[k]), "images": int(sizes[k])}
        for k in np.argsort(-weights, kind="stable")
    ]
    mean, se = mean_se(torch.special.entr(probabilities).sum(1))
    summary: Json = {
        **fitted.provenance(options),
        "num_images": len(x),
        "entropy": {"mean": mean, "se": se},
        "components": {"in_use": int((probabilities.sum(0) >= 1).sum()), "of": len(weights)},
    }
    counts, names = None, np.array([])
    labels_of_split = fitted.data.split(options.split).labels
    if labels_of_split is not None:
        names, labels = np.unique(labels_of_split[: len(x)].cpu().numpy(), return_inverse=True)
        counts = contingency(components, labels, len(weights), len(names))
        for row in rows:
            of_label = counts[row["component"]]
            if row["images"]:
                row["majority_label"] = names[of_label.argmax()].item()
                row["purity"] = float(of_label.max() / row["images"])
        summary |= agreement(components, labels, options.seed)
    summary["table"] = rows
    return Responsibilities(summary, x, probabilities, weights, means, counts, [str(name) for name in names])


def _images(fitted: Fitted, options: ResponsibilityOptions) -> Tensor:
    """The images to explain.

    :raises BadInput: for too few images, and for a model that is no mixture.
    """
    split, name = fitted.data.split(options.split), fitted.config.model
    count = len(split) if options.num_images is None else options.num_images
    rule = f"the {options.split} split has {len(split)} images, and at least {2 * NUM_EXAMPLES} are needed"
    require(2 * NUM_EXAMPLES <= count <= len(split), "num_images", count, rule)
    if fitted.takes_labels:
        raise BadInput(f"{name}: its model or guide takes labels; responsibilities need a model without labels")
    x = fitted.data.targets(options.split)[:count]
    if not is_mixture(fitted.model, fitted.pair):
        raise BadInput(
            f"{name}: has no components; responsibilities need one latent site with finite support and event shape (), "
            "such as a Categorical, and the methods prior() and likelihood(z)"
        )
    require_memory(fitted.pair, 1, device=x.device)
    return x


def is_mixture(model: object, pair: Pair) -> TypeGuard[HasDensity]:
    """True for a model of one categorical z whose responsibilities can be enumerated."""
    return list(pair.event_shapes.values()) == [()] and offers(model, HasDensity) and cheap_to_enumerate(pair)


def _responsibilities(model: Any, pair: Pair, x: Tensor, quiet: bool) -> Tensor:
    """p(z | x), float64 [images, states] on the CPU."""
    assert pair.num_states is not None
    blocks = []
    with Progress(len(x), "image", quiet=quiet) as progress:
        advance = progress.advancing("responsibilities", f"{pair.num_states:,} components")
        for block in x.split(block_size(pair, posterior=True)):
            blocks.append(state_posterior(model, block)[1].T.double().cpu())
            advance(len(block))
    return torch.cat(blocks)


def table(summary: Json) -> str:
    """The content of `responsibilities.json` as text."""
    s = summary
    used, of = s["components"]["in_use"], s["components"]["of"]
    rows = [
        f"{title(s)}: {images(s)}",
        f"  components in use       {used} of {of}",
        f"  entropy of p(z | x)     {s['entropy']['mean']:.3f} ± {s['entropy']['se']:.3f} nats per image, exact",
    ]
    if "purity" in s:
        share, information = s["purity"], s["normalized_mutual_information"]
        rows += [
            f"  purity                  {share['mean']:.3f}   chance {share['chance']:.3f}",
            f"  normalized mutual information  {information['mean']:.3f}   chance {information['chance']:.3f}",
        ]
    rows.append("  component   p(z = k)   images" + ("   majority label   purity" if "purity" in s else ""))
    for row in s["table"][:_ROWS]:
        line = f"  {row['component']:>9}   {row['weight']:8.2%}   {row['images']:>6}"
        if "purity" in row:
            line += f"   {row['majority_label']:>14}   {row['purity']:6.3f}"
        rows.append(line)
    if of > _ROWS:
        rows.append(f"  … and {of - _ROWS} more in responsibilities.json")
    return "\n".join(rows)
