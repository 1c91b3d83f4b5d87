"""Responsibilities: the component of a mixture that explains each image, compared with the labels.

The responsibility of component k for an image is p(z = k | x) (Bishop 2006, equation 9.23). It is exact for a mixture.
If the guide samples other sites and leaves a site y to enumeration, p(y | x) is estimated from importance weights for
each y. The model has not seen the labels. Purity and normalized mutual information measure how well its components
match them (Manning, Raghavan and Schütze 2008, section 16.3).
"""

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.core.contracts import HasDensity, offers
from ppl_gen.core.errors import BadInput, require
from ppl_gen.core.progress import Progress
from ppl_gen.evaluation.own_estimators import of_log_weights
from ppl_gen.evaluation.table import Printed, images, title
from ppl_gen.evaluation.use_options import NUM_EXAMPLES, ResponsibilityOptions
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.arguments import Batch
from ppl_gen.inference.chunks import pairs_at_a_time
from ppl_gen.inference.estimate import mean_se, median_and_least, share
from ppl_gen.inference.exact import state_posterior
from ppl_gen.inference.pair import Pair, require_images
from ppl_gen.inference.state_memory import block_size, cheap_to_enumerate, require_memory
from ppl_gen.networks.observed import mean_of

_SHUFFLES = 100
_ROWS = 20  # rows to print
_DRAWS, _TIMES = 500, 200  # of the model, and times of so many for all components together: weights and mean images


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
    x, *unknown = _images(fitted, options)
    model: Any = fitted.model
    pair = fitted.pair
    exactly, classified, trust = is_mixture(model, pair), None, dict[str, Any]()
    site = pair.latent[0] if exactly else str(_site_of_components(pair))
    with fitted.estimating(options.seed):
        if exactly:
            probabilities = _responsibilities(model, pair, x, quiet)
            states = model.prior().enumerate_support(expand=False)
            weights = model.prior().log_prob(states).exp().double().cpu().numpy()
            means = model.likelihood(states).mean
        else:
            probabilities, classified, log_weights = _estimated(pair, options.num_samples, quiet, x, *unknown)
            trust = _trust(log_weights)
            weights, means = _from_model(pair)
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
        "site": site,
        **trust,
        "entropy": {"mean": mean, "se": se},
        "components": {"in_use": int((probabilities.sum(0) >= 1).sum()), "of": len(weights)},
    }
    counts, names = None, np.array([])
    labels_of_split = fitted.data.split(options.split).labels
    if labels_of_split is not None:
        values = labels_of_split[: len(x)].cpu().numpy()
        names, labels = np.unique(values, return_inverse=True)
        counts = contingency(components, labels, len(weights), len(names))
        for row in rows:
            of_label = counts[row["component"]]
            if row["images"]:
                row["majority_label"] = names[of_label.argmax()].item()
                row["purity"] = float(of_label.max() / row["images"])
        summary |= agreement(components, labels, options.seed)
        if unknown and np.isin(names, np.arange(len(weights))).all():
            summary["error"] = _errors(site, probabilities, classified, values)
    summary["table"] = rows
    return Responsibilities(summary, x, probabilities, weights, means, counts, [str(name) for name in names])


def _images(fitted: Fitted, options: ResponsibilityOptions) -> tuple[Tensor, ...]:
    """The images to explain, with labels that are unknown, -1, if the model takes any.

    :raises BadInput: for too few images, and for a model that is no mixture.
    """
    split, name = fitted.data.split(options.split), fitted.config.model
    count = len(split) if options.num_images is None else options.num_images
    rule = f"the {options.split} split has {len(split)} images, and at least {2 * NUM_EXAMPLES} are needed"
    require(2 * NUM_EXAMPLES <= count <= len(split), "num_images", count, rule)
    x, *known = fitted.images(options.split, count)
    if any(isinstance(each, Tensor) and bool((each >= 0).any()) for each in known):
        raise BadInput(
            f"{name}: is given the labels of the {options.split} split; responsibilities need images without labels, "
            "as after fit --labelled N"
        )
    if is_mixture(fitted.model, fitted.pair):
        require_memory(fitted.pair, 1, device=x.device)
    elif _site_of_components(fitted.pair) is None:
        raise BadInput(
            f"{name}: has no components; responsibilities need one latent site with finite support and event shape (), "
            "such as a Categorical, and the methods prior() and likelihood(z); or one site that is enumerated while "
            "the guide samples others"
        )
    else:
        require_images(fitted.pair, "responsibilities")
    return x, *known


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


def _errors(site: str, probabilities: Tensor, classified: Tensor | None, labels: np.ndarray) -> Json:
    """Shares of images whose most probable class is not their label: by p(y | x), and by q(y | x) if there is one. The
    site of the components has its own name."""
    of = {f"p({site} | x)": probabilities} | ({} if classified is None else {f"q({site} | x)": classified})
    wrong = {name: each.argmax(1).numpy() != labels for name, each in of.items()}
    return {
        name: {"mean": float(each.mean()), "se": float(each.std(ddof=1) / len(each) ** 0.5)}
        for name, each in wrong.items()
    }


def _site_of_components(pair: Pair) -> str | None:
    """Name of the one enumerated site of a pair whose guide samples others; None if there is none, or several."""
    sites = (*pair.summed, *pair.enumerated_in_guide)
    return sites[0] if len(sites) == 1 else None


def _trust(log_weights: Tensor) -> Json:
    """The number of importance samples, and what their log weights [samples, images] say about them, as `fill` records
    it."""
    found = of_log_weights("responsibilities", log_weights)
    assert found.ess is not None
    return {"num_samples": len(log_weights), "ess": median_and_least(found.ess), "untrusted": share(found.untrusted)}


def _estimated(
    pair: Pair, num_samples: int, quiet: bool, x: Tensor, *unknown: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """p(y | x) of the enumerated site by importance sampling, and q(y | x) if the guide enumerates it; each float64
    [images, values] on the CPU. Last, the log weights [samples, images] of all values together."""
    name, blocks, classified, together = _site_of_components(pair), [], [], []
    assert name is not None
    with Progress(len(x), "image", quiet=quiet) as progress:
        advance = progress.advancing("responsibilities", f"{num_samples} samples per image")
        for _, (block, args, _) in Batch(x, unknown, {}).blocks(max(1, pairs_at_a_time(None, None, x) // num_samples)):
            log_w = pair.log_weights_by_value(name, block, *args, num_samples=num_samples)
            blocks.append(log_w.double().logsumexp(1).softmax(0).T.cpu())
            together.append(log_w.double().logsumexp(0).cpu())
            if pair.enumerated_in_guide:
                log_q = pair.by_value(1, Batch(block, args, {})).log_value
                classified.append(log_q[:, 0].double().exp().T.cpu())
            advance(len(block))
    return torch.cat(blocks), torch.cat(classified) if classified else None, torch.cat(together, 1)


def _from_model(pair: Pair) -> tuple[np.ndarray, Tensor]:
    """p(y) [values] and E[x | y] [values, pixels] of the enumerated site, from draws of the model. Where y depends on
    another latent z, p(y) is the mean of p(y | z), and these are the weights of x. z is from the prior."""
    name = _site_of_components(pair)
    assert name is not None
    site = poutine.trace(pair.model).get_trace(n=_DRAWS).nodes[name]
    values = site["fn"].enumerate_support(expand=False)
    weights, means = [], []
    for value in values:
        given = poutine.condition(pair.model, {name: value.expand(_DRAWS, *site["fn"].event_shape)})
        shares, sums = [], []
        for _ in range(math.ceil(_TIMES / len(values))):
            nodes = poutine.trace(given).get_trace(n=_DRAWS).nodes
            shares.append(nodes[name]["fn"].log_prob(nodes[name]["value"]).exp().double().expand(_DRAWS))
            images = mean_of(nodes[pair.image]["fn"], "responsibilities")
            if len(images) != _DRAWS:
                raise BadInput(f"{pair.model_name}: responsibilities need images [n, ...], not {list(images.shape)}")
            sums.append(torch.einsum("i,i...->...", shares[-1].to(images), images))
        share = torch.cat(shares)
        weights.append(float(share.mean()))
        means.append(torch.stack(sums).sum(0) / float(share.sum().clamp(min=torch.finfo(torch.float64).tiny)))
    return np.array(weights) / sum(weights), torch.stack(means)


def names(summary: Json) -> tuple[str, str]:
    """The names of the site of the components and of the images, in a `responsibilities.json`. Earlier versions did not
    record the site."""
    return str(summary.get("site", "z")), "x_obs" if summary.get("missing") else "x"


def table(summary: Json) -> str:
    """The content of `responsibilities.json` as text."""
    s = summary
    used, of = s["components"]["in_use"], s["components"]["of"]
    site, x = names(s)
    entropy = f"entropy of p({site} | {x})"
    how = f"by {s['num_samples']} importance samples" if "num_samples" in s else "exact"
    rows = [
        f"{title(s)}: {images(s)}",
        f"  components in use       {used} of {of}",
        f"  {entropy:<24}{s['entropy']['mean']:.3f} ± {s['entropy']['se']:.3f} nats per image, {how}",
    ]
    if "untrusted" in s:
        rows.append(
            f"  effective sample size   median {s['ess']['median']:.1f}, least {s['ess']['min']:.1f}; not trusted "
            f"(k-hat too high or unknown): {s['untrusted']:.1%} of images"
        )
    if "purity" in s:
        pure, information = s["purity"], s["normalized_mutual_information"]
        rows += [
            f"  purity                  {pure['mean']:.3f}   chance {pure['chance']:.3f}",
            f"  normalized mutual information  {information['mean']:.3f}   chance {information['chance']:.3f}",
        ]
    for name, error in s.get("error", {}).items():
        named = f"error of {name.replace('| x)', f'| {x})')}"
        rows.append(f"  {named:<24}{error['mean']:.2%} ± {error['se']:.2%} of the images have another label")
    weight = f"p({site} = k)"
    rows.append(f"  component   {weight}   images" + ("   majority label   purity" if "purity" in s else ""))
    for row in s["table"][:_ROWS]:
        digits = 1 if "num_samples" in s else 2  # p(y) of draws, where y depends on another latent
        line = f"  {row['component']:>9}   {row['weight']:{len(weight)}.{digits}%}   {row['images']:>6}"
        if "purity" in row:
            line += f"   {row['majority_label']:>14}   {row['purity']:6.3f}"
        rows.append(line)
    if of > _ROWS:
        rows.append(f"  … and {of - _ROWS} more in responsibilities.json")
    return "\n".join(rows)
