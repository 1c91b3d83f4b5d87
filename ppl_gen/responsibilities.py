"""`python -m ppl_gen.responsibilities RUN`: which component of a mixture explains which image, and what the labels say.

The responsibility of component k for an image is p(z = k | x) (Bishop 2006, equation 9.23), here exact. The model has
seen no label; purity and normalized mutual information say how much its components know of them (Manning, Raghavan and
Schütze 2008, section 16.3).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from ppl_gen import cli
from ppl_gen.data import Data, SplitName
from ppl_gen.errors import BadInput, require
from ppl_gen.evaluation.table import images, title
from ppl_gen.inference.enumeration import block_size, cheap, require_memory, state_posterior
from ppl_gen.inference.estimate import mean_se
from ppl_gen.inference.traces import Pair, tells_density
from ppl_gen.loading import Checkpoint, Config, Named, estimating, heading, open_fitted, read_pair
from ppl_gen.progress import Progress
from ppl_gen.report import write_report
from ppl_gen.runs import Run
from ppl_gen.training import takes_labels

_SHUFFLES = 100
_EXAMPLES, _MOST = 5, 4  # images of either kind, and components of each
_ROWS = 20  # of the table that are printed


@dataclass(frozen=True)
class ResponsibilityOptions:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    num_images: int | None = None
    """The first N of the split; all by default."""
    split: SplitName = "test"
    """Images to use."""
    checkpoint: Checkpoint = "last"
    """The last weights, or those of the epoch with the best validation ELBO."""
    seed: int = 0
    """Of the shuffled labels that chance is estimated from."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    named: Annotated[Named, tyro.conf.arg(name="")] = field(default_factory=Named)

    def __post_init__(self) -> None:
        least = 2 * _EXAMPLES
        require(
            self.num_images is None or self.num_images >= least,
            "num_images",
            self.num_images,
            f"must be at least {least}",
        )
        require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and below 2^63")


def contingency(components: np.ndarray, labels: np.ndarray, num_components: int, num_labels: int) -> np.ndarray:
    """How many images of each label each component has, [num_components, num_labels].

    :param components: of each image, in 0 … num_components - 1.
    :param labels: of each image, in 0 … num_labels - 1.
    """
    counts = np.zeros((num_components, num_labels), int)
    np.add.at(counts, (components, labels), 1)
    return counts


def purity(counts: np.ndarray) -> float:
    """The share of images whose label is the most frequent one of their component.

    :param counts: of `contingency`.
    """
    return float(counts.max(1).sum() / counts.sum())


def agreement(components: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Purity and normalized mutual information of components and labels, each with what chance gives: the mean over
    shuffled labels, with components as large as they are. Purity grows with their number; so does chance.

    :param components: of each image, in 0, 1, 2, …
    :param labels: of each image, likewise.
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


def explain(
    run: Run,
    config: Config,
    model: nn.Module,
    guide: nn.Module,
    data: Data,
    options: ResponsibilityOptions,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compute the responsibilities, draw, write `responsibilities.json`, and return its content."""
    split = data.split(options.split)
    count = len(split) if options.num_images is None else options.num_images
    rule = f"the {options.split} split has {len(split)}, and at least {2 * _EXAMPLES} are needed"
    require(2 * _EXAMPLES <= count <= len(split), "num_images", count, rule)
    if takes_labels(model, guide):
        raise BadInput(
            f"{config.model}: its model or guide takes labels; responsibilities are of models of images alone"
        )
    x = data.targets(options.split)[:count]
    pair, _ = read_pair(model, guide, data)
    if not _is_mixture(model, pair):
        raise BadInput(
            f"{config.model}: has no components; responsibilities take one latent site with finite support and event "
            "shape (), such as a Categorical, and the methods prior() and likelihood(z)"
        )
    require_memory(pair, 1, device=x.device)
    with estimating(model, guide, data, options.seed):
        probabilities = _responsibilities(model, pair, x, quiet)
        states = model.prior().enumerate_support(expand=False)  # type: ignore[operator]
        weights = model.prior().log_prob(states).exp().double().cpu().numpy()  # type: ignore[operator]
        means = model.likelihood(states).mean  # type: ignore[operator]
    components = probabilities.argmax(1).numpy()
    entropy = torch.special.entr(probabilities).sum(1)
    sizes = np.bincount(components, minlength=len(weights))
    order = np.argsort(-weights, kind="stable")
    table_rows: list[dict[str, Any]] = [
        {"component": int(k), "weight": float(weights[k]), "images": int(sizes[k])} for k in order
    ]
    mean, se = mean_se(entropy)
    summary: dict[str, Any] = {
        **heading(run, config, data, options),
        "num_images": count,
        "entropy": {"mean": mean, "se": se},
        "components": {"in_use": int((probabilities.sum(0) >= 1).sum()), "of": len(weights)},
    }
    counts, names = None, np.array([])
    if split.labels is not None:
        names, labels = np.unique(split.labels[:count].cpu().numpy(), return_inverse=True)
        counts = contingency(components, labels, len(weights), len(names))
        for row in table_rows:
            of_label = counts[row["component"]]
            if row["images"]:
                row |= {
                    "majority_label": names[of_label.argmax()].item(),
                    "purity": float(of_label.max() / row["images"]),
                }
        summary |= agreement(components, labels, options.seed)
    summary["table"] = table_rows
    _draw(run, data, x, probabilities, entropy, means, weights, order, counts, [str(name) for name in names])
    run.write_json("responsibilities.json", summary)
    return summary


def _is_mixture(model: nn.Module, pair: Pair) -> bool:
    return cheap(pair) and list(pair.event_shapes.values()) == [()] and tells_density(model)


def _responsibilities(model: nn.Module, pair: Pair, x: Tensor, quiet: bool) -> Tensor:
    """p(z | x), float64 [images, states] on the CPU."""
    assert pair.num_states is not None
    blocks = []
    with Progress(len(x), "image", quiet=quiet) as progress:
        for block in x.split(block_size(pair, posterior=True)):
            blocks.append(state_posterior(model, block)[1].T.double().cpu())
            progress.advance(len(block))
            progress.note("responsibilities", f"{pair.num_states:,} components", every=10)
    return torch.cat(blocks)


def _draw(
    run: Run,
    data: Data,
    x: Tensor,
    probabilities: Tensor,
    entropy: Tensor,
    means: Tensor,
    weights: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray | None,
    labels: list[str],
) -> None:
    from ppl_gen.figures.canvas import pictures, save
    from ppl_gen.figures.responsibilities import MOST, components_by_label, examples

    components = pictures(means, data.shape)
    if counts is not None:
        first = order[:MOST]
        names = [f"{k}: {weights[k]:.1%}" for k in first]
        figure = components_by_label(counts[first], labels, names, components[first], len(weights))
        save(run, "components_by_label", figure)
    uncertain = entropy.argsort(descending=True, stable=True)[:_EXAMPLES]
    shown = torch.cat([torch.arange(_EXAMPLES), uncertain])
    top, index = probabilities[shown].topk(min(_MOST, probabilities.shape[1]))
    names_of = [[str(int(k)) for k in row] for row in index]
    images = pictures(x[shown.to(x.device)], data.shape)
    save(run, "responsibilities", examples(images, components[index.numpy()], top.numpy(), names_of))


def table(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
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


def command(arguments: list[str]) -> None:
    options = cli.parse(
        ResponsibilityOptions,
        arguments,
        "python -m ppl_gen.responsibilities",
        "Which component of a mixture explains which image, and what the labels say.",
    )
    fitted = open_fitted(options.run, options.named, checkpoint=options.checkpoint, device=options.device)
    print(table(explain(*fitted, options)))
    write_report(fitted[0])
    print(f"written to {options.run / 'responsibilities.json'} and figures/")


if __name__ == "__main__":
    cli.main(command)
