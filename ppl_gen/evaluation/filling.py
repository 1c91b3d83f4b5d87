"""Imputation: fill in the hidden pixels of an image given its visible ones."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_gen.core.contracts import Amortized, HasDensity, offers
from ppl_gen.core.errors import BadInput, near_miss, require, warnings_of
from ppl_gen.core.paths import is_file
from ppl_gen.core.progress import Progress
from ppl_gen.evaluation.estimating import observation
from ppl_gen.evaluation.table import Printed, images, title
from ppl_gen.evaluation.use_options import FillOptions
from ppl_gen.experiment.fitted import Assembled, Fitted
from ppl_gen.experiment.run_directory import Json
from ppl_gen.inference.checks import num_levels
from ppl_gen.inference.estimate import mean_entry, mean_mc_se, mean_se, median_and_least, share
from ppl_gen.inference.imputation import PASSES, Imputation, exact_imputation, importance_imputation
from ppl_gen.inference.observed import takes_missing
from ppl_gen.inference.pair import require_images
from ppl_gen.inference.state_memory import cheap_to_enumerate, require_memory

SIDES = ("left", "right", "top", "bottom")
QUADRANTS = {"three-quadrants": ("top", "right"), "one-quadrant": ("bottom", "right")}
"""Sides of what is hidden: one or the other for three quadrants, both for one."""
_DRAWS = 3
_OWN = "missing"
"""`--hide` for the images' own missing pixels."""


@dataclass(frozen=True)
class Filled(Printed):
    """Images with hidden pixels, their imputation, and the log-probability of the hidden pixels."""

    summary: Json
    """The content of `fill.json`."""
    x: Tensor
    """The images [images, pixels], with NaN where a value is not known."""
    visible: Tensor
    """True for visible pixels, bool [pixels]; [images, pixels] if images have missing pixels of their own."""
    imputation: Imputation

    def __str__(self) -> str:
        return table(self.summary)


def visible_pixels(hide: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A mask of the visible pixels of an image of `shape`: bool [pixels].

    :param hide: the option `--hide`.
    :raises BadInput: for an unknown name, a file that is no mask of such an image, and a mask that hides no pixel or
        all of them.
    """
    if hide == "random":
        hidden = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    elif hide in (*SIDES, *QUADRANTS):
        if hide not in ("left", "right") and len(shape) < 2:
            raise BadInput(f"--hide {hide}: an image of shape {shape} has no height; use left, right, random or a file")
        one, other = (_side(side, shape) for side in QUADRANTS.get(hide, (hide, hide)))
        hidden = one & other if hide == "one-quadrant" else one | other
    elif hide.endswith(".npy"):
        hidden = _mask_file(hide, shape)
    else:
        known = (*SIDES, *QUADRANTS, "random", _OWN, "FILE.npy")
        raise BadInput(f"--hide {hide}: unknown{near_miss(hide, known)}")
    if hidden.all() or not hidden.any():
        raise BadInput(f"--hide {hide}: hides {'every' if hidden.any() else 'no'} pixel; hide some pixels, but not all")
    return ~hidden.flatten()


def _side(side: str, shape: tuple[int, ...]) -> Tensor:
    """True for the pixels of one half of an image of `shape`."""
    axis = -1 if side in ("left", "right") else -2
    first = torch.arange(shape[axis]) < shape[axis] // 2
    chosen = first if side in ("left", "top") else ~first
    return (chosen if axis == -1 else chosen.unsqueeze(-1)).expand(shape)


def _mask_file(name: str, shape: tuple[int, ...]) -> Tensor:
    if not is_file(name, "--hide"):
        raise BadInput(f"--hide {name}: no such file")
    try:
        mask = np.load(name, allow_pickle=False)
    except Exception as error:  # EOF, value and pickle errors all mean a bad file
        raise BadInput(f"--hide {name}: truncated, or not a NumPy file of numbers ({error})") from None
    if not isinstance(mask, np.ndarray) or mask.shape not in (shape, (math.prod(shape),)):
        raise BadInput(f"--hide {name}: the mask has shape {getattr(mask, 'shape', None)}, the images {shape}")
    if mask.dtype.kind not in "buif" or not np.isin(mask, (0, 1)).all():
        raise BadInput(f"--hide {name}: must be true or 1 where a pixel is hidden, and false or 0 elsewhere")
    return torch.from_numpy(mask.astype(bool).reshape(shape))


def impute(
    fitted: Assembled, x: Tensor, visible: Tensor, num_samples: int, quiet: bool = False, known: bool = True
) -> Imputation:
    """Impute hidden pixels: exactly if the states of z are few enough to enumerate, else by importance sampling from
    the guide.

    :param visible: True for visible pixels, bool [pixels] or [images, pixels].
    :param known: x has the values of hidden pixels.
    :raises BadInput: for a model or a guide without the methods that this needs.
    """
    model, guide, pair = fitted.model, fitted.guide, fitted.pair
    if len(pair.latent) != 1 or not offers(model, HasDensity):
        raise BadInput(f"{pair.model_name}: fill needs one latent site and the methods prior() and likelihood(z)")
    require_images(pair, "fill")
    if cheap_to_enumerate(pair) or (pair.num_states is not None and pair.enumerated):
        require_memory(pair, 1, device=x.device)
        return exact_imputation(model, x, visible, _DRAWS, known)
    if not offers(guide, Amortized):
        raise BadInput(
            f"{pair.guide_name}: fill by importance sampling needs the methods encode(x) and posterior(context)"
        )
    with Progress(PASSES * len(x), "image", quiet=quiet) as progress:
        advance = progress.advancing("filling in", f"{num_samples} samples per image")
        # A guide that knows what to do without a pixel is not given a pixel that it would take for observed.
        filler = None if fitted.incomplete or takes_missing(guide) else fitted.data.mean()
        return importance_imputation(model, guide, x, visible, filler, num_samples, _DRAWS, advance, known)


def fill(fitted: Fitted, options: FillOptions, *, quiet: bool = False) -> Filled:
    """Fill in the first images of a split.

    :raises BadInput: for a pair that does not support it.
    """
    data = fitted.data
    split = data.split(options.split)
    most = f"the {options.split} split has {len(split)} images"
    require(options.num_images <= len(split), "num_images", options.num_images, most)
    fitted.require_amortized("fill")
    if fitted.takes_labels:
        raise BadInput(f"{fitted.config.model}: its model or guide takes labels, but fill does not support them")
    first = slice(options.num_images)
    x, missing = data.complete(options.split, first), None if split.missing is None else split.missing[first]
    hide, visible = _visible(options, data.shape, missing)
    visible = visible.to(x.device)
    if bool(visible.all()):
        raise BadInput(
            f"--hide {hide}: the first {len(x)} images of the {options.split} split miss no pixel; take more"
        )
    known = split.values_known or missing is None
    num_samples = options.num_samples or fitted.config.num_samples
    pair = fitted.pair
    with fitted.estimating(options.seed):
        imputation = impute(fitted, x, visible, num_samples, quiet, known)
    hidden = int((~visible).sum()) if visible.dim() == 1 else float((~visible).sum(1).double().mean())
    summary: Json = {
        **fitted.provenance(options),
        "num_images": len(x),
        "observation": observation(pair, split.observed(x, first)),
        "hide": hide,
        "hidden_pixels": hidden,
        "pixels": data.dim,
        "estimator": "exact" if imputation.importance is None else "importance",
        "log_px_visible": mean_entry(imputation.log_px_visible, **_doubt(imputation, 1)),
        **_sampling_entries(imputation, num_samples),
    }
    if not known:
        return Filled(summary, split.observed(x, first), visible, imputation)
    assert imputation.log_px is not None
    log_px = mean_entry(imputation.log_px, **_doubt(imputation, 0))
    summary |= {"log_px": log_px, "log_p_hidden": _hidden_entry(imputation, hidden)}
    found = {"model": imputation.mean}
    if bool((visible | data.ever_observed()).all()):  # else a hidden pixel has no training mean
        found["mean_of_observed"] = data.mean().expand_as(x)
        if pair.discrete:
            terms = torch.where(visible, 0.0, _independent(fitted, x))
            summary["independent_pixels"] = _per_pixel(terms.sum(1).cpu(), hidden)
    binary = pair.discrete and bool(((x == 0) | (x == 1)).all())
    summary["error"] = {name: _error(values, x, visible, binary) for name, values in found.items()}
    return Filled(summary, x, visible, imputation)


def _independent(fitted: Fitted, x: Tensor) -> Tensor:
    """Log-probability of each pixel [images, pixels] by its frequencies among the training images."""
    pixels = x.double()
    if num_levels(fitted.pair, x) is None:
        rate = fitted.data.mean().double()
        return pixels * rate.log() + (1 - pixels) * torch.log1p(-rate)
    frequencies = fitted.data.level_frequencies()
    return frequencies.log().gather(0, (pixels * (len(frequencies) - 1)).round().long())


def _visible(options: FillOptions, shape: tuple[int, ...], missing: Tensor | None) -> tuple[str, Tensor]:
    """The pixels to hide, in words, and the visible ones: bool [pixels], or [images, pixels] with missing pixels."""
    hide = options.hide or ("right" if missing is None else _OWN)
    if hide == _OWN:
        if missing is None:
            raise BadInput(f"--hide {_OWN}: these images have no missing pixels; hide some: {', '.join(SIDES)}, random")
        return hide, ~missing
    visible = visible_pixels(hide, shape, options.seed)
    if missing is None:
        return hide, visible
    return f"{hide}, and the missing", visible.to(missing.device) & ~missing


def _error(imputed: Tensor, x: Tensor, visible: Tensor, binary: bool) -> Json:
    """The error of imputed values over all hidden pixels: their root mean square; for binary pixels also the share of
    wrong ones after rounding, and the F1 score of rounded ones, 2 TP / (2 TP + FP + FN). The standard error of the
    share is that of a ratio of two means over images, which may have different numbers of hidden pixels (Cochran 1977,
    section 2.11)."""
    hidden = (~visible).expand_as(x)
    count = hidden.sum(1).double()

    def summed(values: Tensor) -> Tensor:
        return torch.where(hidden, values.double(), 0.0).sum(1)

    entry: Json = {"rmse": float((summed((imputed - x).square()).sum() / count.sum()).sqrt())}
    if binary:
        guess, one = imputed > 0.5, x > 0.5
        wrong, right = summed(guess != one), summed(guess & one)
        rate = wrong.sum() / count.sum()
        _, se = mean_se(((wrong - rate * count) / count.mean()).cpu())
        f1 = 2 * right.sum() / (2 * right.sum() + wrong.sum()).clamp(min=1.0)
        entry |= {"wrong": {"mean": float(rate), "se": se}, "f1": float(f1)}
    return entry


def _per_pixel(values: Tensor, hidden: float, **more: float | bool) -> Json:
    mean, se = mean_se(values)
    return {"mean": mean, "se": se, "bits_per_hidden_pixel": -mean / math.log(2) / hidden, **more}


def _hidden_entry(imputation: Imputation, hidden: float) -> Json:
    """The entry of log p(hidden | visible), with Monte Carlo errors if it was sampled. It is likely larger if log p(x)
    is, and smaller if log p(visible) is larger."""
    log_prob = imputation.log_prob
    assert log_prob is not None
    if imputation.importance is None:
        return _per_pixel(log_prob, hidden)
    whole, seen = imputation.importance
    assert whole is not None
    mc_se = mean_mc_se(whole.log_px_mc_var + seen.log_px_mc_var)
    bias = float((whole.log_px_bias - seen.log_px_bias).mean())
    doubt = {"at_least": whole.at_least, "at_most": seen.at_least}
    return _per_pixel(log_prob, hidden, mc_se=mc_se, bias=bias, **doubt)


def _doubt(imputation: Imputation, which: int) -> dict[str, bool]:
    """Whether the log p of all (0) or of the visible pixels (1) is likely larger; nothing if it is exact."""
    estimate = None if imputation.importance is None else imputation.importance[which]
    return {} if estimate is None else {"at_least": estimate.at_least}


def _sampling_entries(imputation: Imputation, num_samples: int) -> Json:
    """The number of samples and their diagnostics; nothing if the imputation is exact."""
    if imputation.importance is None:
        return {}
    whole, seen = imputation.importance
    untrusted = seen.untrusted if whole is None else whole.untrusted | seen.untrusted
    return {"num_samples": num_samples, "ess": median_and_least(seen.ess), "untrusted": share(untrusted)}


_DOUBTS = {(False, False): "", (True, False): "at least", (False, True): "at most", (True, True): "about"}
"""Words before a number, by `at_least` and `at_most`."""
_ERRORS = {"model": "error of E[hidden | visible]", "mean_of_observed": "error of the mean training pixel"}
"""Words for the imputations whose errors are in `fill.json`."""


def _error_text(entry: Json) -> str:
    wrong = entry.get("wrong")
    found = [] if wrong is None else [f"{wrong['mean']:.2%} ± {wrong['se']:.2%} of pixels wrong, F1 {entry['f1']:.3f}"]
    return ", ".join([*found, f"RMSE {entry['rmse']:.4f}"])


def table(summary: Json) -> str:
    """The content of `fill.json` as text."""
    s = summary

    def row(name: str, key: str, note: str = "") -> str:
        value = f"{s[key]['mean']:9.2f}" + (f" ± {s[key]['se']:.2f}" if s["num_images"] > 1 else "")
        bits = f"{s[key]['bits_per_hidden_pixel']:.4f}" if "bits_per_hidden_pixel" in s[key] else ""
        doubt = _DOUBTS[s[key].get("at_least", False), s[key].get("at_most", False)]
        name = f"{name:<24} {doubt}".rstrip()
        return f"  {name:<34}{value:<20}{bits:>8}  {note}".rstrip()

    rows = [
        f"{title(s)}: {images(s)}; hidden: {s['hide']}, {s['hidden_pixels']:.10g} of {s['pixels']} pixels",
        "nats per image ± standard error over images; bits per hidden pixel",
        *([row("log p(all pixels)" if "missing" in s else "log p(x)", "log_px")] if "log_px" in s else []),
        row("log p(visible)", "log_px_visible"),
    ]
    if "log_p_hidden" in s:
        how = "exact, by enumeration" if s["estimator"] == "exact" else ""
        rows.append(row("log p(hidden | visible)", "log_p_hidden", how))
    if "independent_pixels" in s:
        rows.append(row("independent pixels, training mean", "independent_pixels"))
    if s["estimator"] == "importance":
        of = s.get("log_p_hidden")
        errors = "" if of is None else f"; Monte Carlo error {of['mc_se']:.2f}, estimated bias {of['bias']:+.2f}"
        rows += [
            f"  S = {s['num_samples']} importance samples each{errors}",
            f"  effective sample size given the visible pixels: median {s['ess']['median']:.1f}, least "
            f"{s['ess']['min']:.1f}; not trusted: {s['untrusted']:.1%} of images",
        ]
    rows += [f"  {_ERRORS[name]:<34}{_error_text(entry)}" for name, entry in s.get("error", {}).items()]
    return "\n".join([*rows, *(f"  {warning}" for warning in warnings_of(s["observation"]))])
