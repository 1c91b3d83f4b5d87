"""How often an estimate of log p(x) is trusted and wrong: `python -m benchmarks.trusted`.

A few VAEs with two and three units of z are trained. log p(x) of their test images by quadrature is the truth. Every
other estimate is held against it, image by image: importance sampling, the same less the jackknife's bias, importance
sampling with a tenth of the samples from the prior, annealing, the second opinion, the bounds from both sides, and the
log p(x) by which the gap is split. Models that were trained before are used again.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_gen.core import cli
from ppl_gen.evaluation.verdicts import at_least, vouched
from ppl_gen.experiment.config import Given, check_same, configure
from ppl_gen.experiment.fitted import Fitted
from ppl_gen.experiment.run_directory import RunDirectory
from ppl_gen.inference.agreement import above
from ppl_gen.inference.annealed import Annealing, annealed_log_px, bidirectional_bounds
from ppl_gen.inference.bidirectional import BidirectionalBounds, importance_bounds
from ppl_gen.inference.estimate import Estimate, mean_se, share
from ppl_gen.inference.gaps import Gaps, Search, gaps
from ppl_gen.inference.importance import ImportanceEstimate, log_marginal_likelihood
from ppl_gen.inference.proposals import proposal_log_px
from ppl_gen.inference.quadrature import Quadrature, QuadratureEstimate, quadrature_log_px
from ppl_gen.run import Run
from ppl_gen.training.loop import train

Json = dict[str, Any]

CASES: dict[str, Json] = {
    "normal-5": {"epochs": 5},
    "normal-20": {"epochs": 20},
    "flow-10": {"epochs": 10, "guide": "flow"},
    "three-10": {"epochs": 10, "latent_dim": 3},
}
"""Options of each model's training, besides those that all share."""
FAR, FARTHER = 0.1, 0.5
"""Nats from the truth beyond which an estimate counts as wrong."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything is computed."""

    num_images: int = 2000
    """Test images."""
    samples: tuple[int, ...] = (50, 500, 5000)
    """Importance samples per image."""
    annealed_images: int = 128
    """Test images that are annealed, and images from the model for the bounds by annealing."""
    annealing: Annealing = field(default_factory=lambda: Annealing(num_temperatures=200, leapfrog_steps=5))
    model_images: int = 1000
    """Images from the model for the bounds by importance sampling."""
    gap_images: int = 100
    """Test images whose gap is split."""
    gap_samples: int = 1000
    search: Search = field(default_factory=lambda: Search(3e-3, window=50, patience=5, most_windows=40))

    @classmethod
    def of(cls, num_images: int) -> "Sizes":
        """Sizes in proportion to the number of test images."""
        part = max(2, num_images // 10)
        return cls(num_images, annealed_images=min(128, part), model_images=5 * part, gap_images=min(100, part))


SMALL = Sizes(
    20, (50, 100), 10, Annealing(num_temperatures=10, leapfrog_steps=2), 20, 5, 50, Search(window=10, most_windows=1)
)


# The models and their truth ----------------------------------------------------------------------------------------


def trained(name: str, given: argparse.Namespace) -> Fitted:
    """A model and its guide, from the run directory of that name if it is there."""
    chosen = dict(CASES[name])
    guide = chosen.pop("guide", "normal")
    options: Json = {"latent_dim": 2, "hidden_dims": (500,), "activation": "tanh", "batch_size": 250} | chosen
    if given.small:
        options |= {"hidden_dims": (8,), "epochs": 1}
    options |= {"data": given.data, "device": given.device, "seed": given.seed}
    config, classes = configure(Given("vae", guide), **options)
    path: Path = given.out / name
    assembled = Run.dry_run(config, classes).assembled
    if path.exists():
        directory = RunDirectory.open(path)
        check_same(directory, config, classes)
    else:
        directory = RunDirectory.create(path, name, config.to_json(assembled.data, classes))
    fitted = assembled.within(directory)
    train(fitted, quiet=True)
    return fitted


def truth(model: Any, x: Tensor) -> QuadratureEstimate:
    """log p(x) by quadrature."""
    return quadrature_log_px(model, x, quadrature=Quadrature(tolerance=1e-3))


# Estimates against the truth ---------------------------------------------------------------------------------------


def held_against(exact: Tensor, estimate: Estimate, trusted: Tensor | None = None) -> Json:
    """Errors of an estimate of log p(x), in nats.

    :param exact: the truth [images].
    :param trusted: images on which the estimate is trusted; bool [images]. None if nothing is said of single images:
        then all images count.
    """
    error = estimate.log_px - exact
    allowed = 4 * estimate.log_px_mc_var.sqrt() + estimate.log_px_bias.abs()
    found: Json = {
        "estimator": estimate.estimator,
        "num_samples": estimate.num_samples,
        "images": len(error),
        "trusted": None if trusted is None else share(trusted),
        "mean_error": float(error.mean()),
    }
    chosen = torch.ones_like(error, dtype=torch.bool) if trusted is None else trusted
    if not bool(chosen.any()):
        return found
    error, allowed = error[chosen], allowed[chosen]
    return {
        **found,
        "low": {str(nats): share(error < -nats) for nats in (FAR, FARTHER)},
        "high": {str(nats): share(error > nats) for nats in (FAR, FARTHER)},
        "beyond_its_error": share(error.abs() > allowed),
        "worst": float(error[error.abs().argmax()]),
        "mean_error_of_trusted": float(error.mean()),
    }


def by_khat(estimate: Estimate) -> Tensor:
    """Images that k-hat trusts; bool [images]."""
    return ~(estimate.khat_too_high | estimate.khat_unknown)


def sampled_rows(fitted: Fitted, x: Tensor, exact: Tensor, num_samples: int) -> Iterator[Json]:
    """Rows of importance sampling with S samples from the guide, and from guide and prior."""
    guided = log_marginal_likelihood(fitted.model, fitted.guide, x, num_samples=num_samples)
    how: Json = {"num_samples": num_samples, "prior_share": 0.1}
    mixed = proposal_log_px(fitted.model, [fitted.guide], x, **how)
    estimates, trusted = {"importance": guided, "mixed": mixed}, by_khat(guided)
    mean = {"trusted_by": "k-hat", "at_least": at_least(estimates, "importance")}
    yield {**held_against(exact, guided, trusted), **mean}
    if guided.second_opinion is not None:
        agreed = trusted & ~above(guided, guided.second_opinion).images
        both = {"trusted_by": "k-hat and second opinion", "second_opinion": opinion_row(guided, exact)}
        yield {**held_against(exact, guided, agreed), **mean, **both}
    corrected = replace(guided, log_px=guided.log_px - guided.log_px_bias)
    yield {**held_against(exact, corrected, trusted), **mean, "estimator": "importance, less the jackknife's bias"}
    mean = {"estimator": "importance, 10 % from the prior", "at_least": at_least(estimates, "mixed")}
    yield {**held_against(exact, mixed, by_khat(mixed)), "trusted_by": "k-hat", **mean}


def opinion_row(guided: ImportanceEstimate, exact: Tensor) -> Json:
    """What the second opinion says of the images that k-hat trusts although they are far too low, and of the others."""
    opinion = guided.second_opinion
    assert opinion is not None
    trusted, flagged = by_khat(guided), above(guided, opinion).images
    low = trusted & (guided.log_px - exact < -FARTHER)
    return {
        "num_samples": opinion.num_samples,
        "blind": share(opinion.blind),
        "low_and_trusted": int(low.sum()),
        "flagged_of_these": int((low & flagged).sum()),
        "blind_of_these": int((low & opinion.blind).sum()),
        "flagged_but_less_than_a_tenth_low": int((flagged & (guided.log_px - exact > -FAR)).sum()),
    }


def annealed_row(fitted: Fitted, x: Tensor, exact: Tensor, sizes: Sizes) -> Json:
    """The row of annealing. It is trusted as a mean over images, as an evaluation says."""
    model, annealing = fitted.model, sizes.annealing
    bounds = bidirectional_bounds(model, sizes.annealed_images, annealing=annealing)
    estimate = replace(annealed_log_px(model, x, annealing=annealing), bidirectional=bounds)
    guided = log_marginal_likelihood(model, fitted.guide, x, num_samples=max(sizes.samples))
    estimates = {"importance": guided, "annealed": estimate}
    return {
        **held_against(exact, estimate),
        "num_temperatures": annealing.num_temperatures,
        "leapfrog_steps": annealing.leapfrog_steps,
        "trusted_by": "",
        "at_least": at_least(estimates, "annealed"),
        "corroborated": estimate.corroborated,
        "vouched": vouched(estimates, "annealed"),
        "mc_se": estimate.mc_se,
        "sandwich": bounds_row(bounds, truth(model, bounds.x).log_px),
    }


def bounds_row(bounds: BidirectionalBounds, exact: Tensor) -> Json:
    """Bounds from both sides, against the truth of the same images."""
    outside = (exact < bounds.lower - FAR) | (exact > bounds.upper + FAR)
    return {
        "images": len(exact),
        **bounds.settings,
        "exact_minus_lower": mean_se(exact - bounds.lower),
        "upper_minus_exact": mean_se(bounds.upper - exact),
        "width": mean_se(bounds.width),
        "more_than_a_nat_apart": share(~(bounds.width <= 1)),
        "outside": share(outside),
    }


def gaps_row(fitted: Fitted, x: Tensor, exact: Tensor, sizes: Sizes) -> Json:
    """The split of the gap, against the gap that the truth gives."""
    split: Gaps = gaps(fitted.model, fitted.guide, x, num_samples=sizes.gap_samples, search=sizes.search)
    none = torch.zeros_like(split.untrusted)
    missed, blind = (none if each is None else each for each in (split.missed, split.blind))
    trusted = ~(split.untrusted | missed)
    return {
        **held_against(exact, split.estimate, trusted),
        "settled": share(split.settled),
        "missed": int(missed.sum()),
        "blind": share(blind),
        "approximation": mean_se(split.approximation),
        "approximation_by_quadrature": mean_se(exact - split.best_elbo),
        "amortization": mean_se(split.amortization),
        "gap": mean_se(split.log_px - split.elbo),
        "gap_by_quadrature": mean_se(exact - split.elbo),
    }


_OPINION = (
    "num_samples",
    "blind",
    "low_and_trusted",
    "flagged_of_these",
    "blind_of_these",
    "flagged_but_less_than_a_tenth_low",
)
_BOUNDS = ("images", "exact_minus_lower", "upper_minus_exact", "width", "more_than_a_nat_apart", "outside")


# Together ----------------------------------------------------------------------------------------------------------


def measure(name: str, fitted: Fitted, sizes: Sizes, seed: int) -> Json:
    """Everything of one model."""
    say = partial(print, f"{name}:", flush=True)
    (x,) = fitted.images("test", sizes.num_images)
    with fitted.estimating(seed):
        started = time.perf_counter()
        quadrature = truth(fitted.model, x)
        exact, seconds = quadrature.log_px, time.perf_counter() - started
        say(f"log p(x) {quadrature.mean:.3f} by quadrature, {len(x)} images, {seconds:.1f} s")
        found: Json = {
            "model": name,
            "images": len(x),
            "exact": mean_se(exact),
            "largest_change": float(quadrature.change.max()),
            "points_per_image": quadrature.points_per_image,
            "rows": [],
            "sandwich": [],
        }
        for num_samples in sizes.samples:
            found["rows"] += sampled_rows(fitted, x, exact, num_samples)
            say(f"{num_samples} samples, {time.perf_counter() - started:.0f} s")
        few = slice(sizes.annealed_images)
        found["rows"].append(annealed_row(fitted, x[few], exact[few], sizes))
        say(f"annealed, {time.perf_counter() - started:.0f} s")
        for num_samples in sizes.samples:
            torch.manual_seed(seed)  # the same images from the model for every S, whose truth takes longest
            bounds = importance_bounds(fitted.model, fitted.guide, x[: sizes.model_images], num_samples=num_samples)
            if not found["sandwich"]:
                exact_of_model = truth(fitted.model, bounds.x).log_px
            found["sandwich"].append(bounds_row(bounds, exact_of_model))
        say(f"bounds from both sides, {time.perf_counter() - started:.0f} s")
        few = slice(sizes.gap_images)
        found["gaps"] = gaps_row(fitted, x[few], exact[few], sizes)
        say(f"gaps, {time.perf_counter() - started:.0f} s")
    return found | {"seconds": time.perf_counter() - started}


def table(found: Json) -> str:
    """The results of one model, in markdown."""
    sides = [f"{nats:g} {side}" for nats in (FAR, FARTHER) for side in ("low", "high")]
    errors = ["estimate", "S", "trusted by", "images trusted", f"of these {sides[0]}", *sides[1:]]
    errors += ["beyond its error", "worst", "mean error, all", "mean error, trusted", "the mean reads"]
    opinions = [
        [row["num_samples"], *row["second_opinion"].values()] for row in found["rows"] if "second_opinion" in row
    ]
    annealed = next(row for row in found["rows"] if row["estimator"] == "annealed")
    bounds = [("annealed", annealed["sandwich"]), *((f"S = {row['num_samples']}", row) for row in found["sandwich"])]
    return "\n\n".join(
        [
            f"{found['model']}: log p(x) by quadrature {_with_error(found['exact'])}, {found['images']} images",
            _markdown(errors, [_error_cells(row) for row in found["rows"]]),
            _markdown(["S", *(key.replace("_", " ") for key in _OPINION)], opinions),
            _markdown(
                ["bounds", *(key.replace("_", " ") for key in _BOUNDS)], [_bound_cells(*each) for each in bounds]
            ),
            _gap_sentence(found["gaps"]) + "\n",
        ]
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _error_cells(row: Json) -> list[object]:
    """The cells of one row of the table of errors."""
    cells: list[object] = [row["estimator"], row["num_samples"], row["trusted_by"]]
    cells.append("" if row["trusted"] is None else f"{row['trusted']:.1%}")
    if "low" in row:
        cells += [f"{row[side][str(nats)]:.1%}" for nats in (FAR, FARTHER) for side in ("low", "high")]
        cells.append(f"{row['beyond_its_error']:.1%}")
    else:
        cells += [""] * 5
    cells += [f"{row[key]:+.3f}" if key in row else "" for key in ("worst", "mean_error", "mean_error_of_trusted")]
    return [*cells, "at least" if row["at_least"] else ""]


def _bound_cells(title: str, row: Json) -> list[object]:
    """The cells of one row of the table of bounds."""
    values = [row[key] for key in _BOUNDS]
    shown = [
        _with_error(each) if isinstance(each, tuple) else f"{each:.1%}" if isinstance(each, float) else each
        for each in values
    ]
    return [title, *shown]


def _with_error(value: tuple[float, float]) -> str:
    mean, se = value
    return f"{mean:.3f} ± {se:.3f}"


def _gap_sentence(row: Json) -> str:
    """The results of the split of the gap."""
    parts = {key: _with_error(row[key]) for key in ("approximation", "approximation_by_quadrature", "amortization")}
    wrong = "" if "low" not in row else f", of which {row['low'][str(FARTHER)]:.1%} are half a nat low"
    return (
        f"Gaps of {row['images']} images: approximation {parts['approximation']}, by quadrature "
        f"{parts['approximation_by_quadrature']}; amortization {parts['amortization']}. {row['missed']} images have a "
        f"mode that the search missed; {row['trusted']:.1%} of images are trusted{wrong}; {row['settled']:.0%} of the "
        "searches converged."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trusted", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--num-images", type=int, default=2000, help="test images")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--small", action="store_true", help="digits and few images, to try it")
    parser.add_argument("--out", type=Path, default=Path("runs/trusted"), help="where models and trusted.json go")
    given = parser.parse_args(arguments)
    sizes = SMALL if given.small else Sizes.of(given.num_images)
    given.data = "digits" if given.small else given.data
    results = []
    for name in given.models:
        started = time.perf_counter()
        fitted = trained(name, given)
        print(f"{name}: trained, {time.perf_counter() - started:.0f} s", flush=True)
        results.append(measure(name, fitted, sizes, given.seed))
        (given.out / "trusted.json").write_text(json.dumps(results))
        print(f"\n{table(results[-1])}", flush=True)


if __name__ == "__main__":
    cli.main(lambda _: main())
