"""What an evaluation found: as JSON, per image, and as a person reads it."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_gen.errors import warnings_of
from ppl_gen.inference.agreement import Low, above, above_in_mean, bound
from ppl_gen.inference.annealed import Annealed, Sandwich
from ppl_gen.inference.callables import evaluating
from ppl_gen.inference.checks import check_images
from ppl_gen.inference.gaps import Gaps
from ppl_gen.inference.importance import NARROWER, Estimates, LogPx, mean_se
from ppl_gen.inference.pair import Pair
from ppl_gen.inference.proposals import SecondOpinion, visible_mass

if TYPE_CHECKING:
    import xarray

_NAMES = ("exact", "importance", "mixed", "prior", "annealed")
_NARROW = 0.1  # nats by which annealing may be too low and still be trusted


def observation(pair: Pair, x: Tensor, *args: Any) -> str:
    """What p(x) is of these images, as `check_images` says."""
    with evaluating(pair.model, pair.guide):
        return check_images(pair, x, *args)


@dataclass(frozen=True)
class Found:
    """What was estimated for the same images; None is what was not."""

    exact: Tensor | None = None
    """log p(x) [images]."""
    importance: Estimates | None = None
    """From samples of the guide, or, where the model is enumerated, of the prior."""
    mixed: LogPx | None = None
    """From samples of the guide and others."""
    prior: LogPx | None = None
    annealed: Annealed | None = None
    sandwich: Sandwich | None = None
    second_opinion: SecondOpinion | None = None
    """On `importance`, where there is no exact value."""


def first_of(found: Found, asked: str) -> str:
    """The name in `Found` of what the evaluation's log p(x) is."""
    if asked in ("prior", "annealed"):
        return asked
    if found.exact is not None and (asked != "importance" or found.importance is None):
        return "exact"
    return "importance" if found.mixed is None else "mixed"


def _entry(values: Tensor, **more: Any) -> dict[str, Any]:
    mean, se = mean_se(values)
    return {"mean": mean, "se": se, **more}


def _mc_se(variance: Tensor) -> float:
    return float(variance.sum().sqrt() / len(variance))


def _log_px(found: Found, proposal: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every estimate of log p(x) that there is, by its name in `Found`."""
    entries = {} if found.exact is None else {"exact": _entry(found.exact, estimator="exact", at_least=False)}
    sampled: dict[str, tuple[LogPx | Annealed | None, dict[str, Any]]] = {
        "importance": (found.importance, {"estimator": "importance"}),
        "mixed": (found.mixed, {"estimator": "importance", "proposal": proposal}),
        "prior": (found.prior, {"estimator": "prior"}),
        "annealed": (found.annealed, {"estimator": "annealed"}),
    }
    for name, (estimates, more) in sampled.items():
        if estimates is None:
            continue
        entries[name] = _entry(
            estimates.log_px,
            mc_se=_mc_se(estimates.log_px_mc_var),
            bias=float(estimates.log_px_bias.mean()),
            at_least=_at_least(found, name),
            **more,
        )
        if isinstance(estimates, Annealed):
            acceptance = float(estimates.acceptance.mean())
            entries[name] |= asdict(estimates.annealing) | {"accepted": acceptance, **_ess(estimates.ess)}
        else:
            entries[name]["num_samples"] = estimates.num_samples
            if name != "importance":
                too_high = float(estimates.too_high.double().mean())
                entries[name] |= {**_ess(estimates.ess), "fraction_above_threshold": too_high}
    return entries


def _ess(ess: Tensor) -> dict[str, dict[str, float]]:
    return {"ess": {"median": float(ess.median()), "min": float(ess.min())}}


def _khat(estimates: LogPx) -> dict[str, Any]:
    """k-hat over the images, which are of three kinds: too high, unknown, and fine."""
    known = estimates.khat[estimates.khat.isfinite()]
    return {
        **({"median": float(known.median())} if len(known) else {}),
        "fraction_above_0.7": float((estimates.khat > 0.7).double().mean()),
        "threshold": estimates.khat_threshold,
        "fraction_above_threshold": float(estimates.too_high.double().mean()),
        "fraction_unknown": float(estimates.unknown.double().mean()),
        "fraction_fine": float((~estimates.untrusted).double().mean()),
    }


def _lower(found: Found) -> dict[str, Low]:
    """What is known of log p(x) from below, by name. IWAE bounds are not among it: they are below importance sampling
    from the same samples on every image."""
    lower: dict[str, Low | None] = {
        "exact": None if found.exact is None else bound(found.exact),
        "elbo": None if found.importance is None else _elbo(found.importance),
        "importance": found.importance,
        "mixed": found.mixed,
        "prior": found.prior,
        "annealed": found.annealed,
        "second_opinion": found.second_opinion,
    }
    return {name: each for name, each in lower.items() if each is not None}


def _elbo(estimates: Estimates) -> Low:
    return bound(estimates.elbo, estimates.elbo_mc_var, estimates.num_samples)


def _below(found: Found, name: str) -> list[str]:
    """The names of what shows that an estimate of `Found` is too low: all are low in expectation, and those are above
    it beyond chance."""
    lower = _lower(found)
    return [other for other in lower if other != name and above(lower[name], lower[other]).any]


def _at_least(found: Found, name: str) -> bool:
    """Whether log p(x) is likely above an estimate of `Found`: another one is above it beyond chance, its error is not
    known, k-hat is too high or unknown for an image; or, of annealing, nothing vouches for it on these images."""
    estimates: LogPx | Annealed = getattr(found, name)
    if bool(estimates.log_px_mc_var.isnan().any()) or _below(found, name):
        return True
    if isinstance(estimates, Annealed):
        return found.exact is None and not _vouched(found, estimates)
    return bool(estimates.untrusted.any())


def _vouched(found: Found, annealed: Annealed) -> bool:
    """Whether annealing that nothing is above can be trusted. Two bounds on images from the model do not suffice, since
    a share of the images that none of them is of may cost the mean any amount: importance sampling, too, has to be
    trusted on every one of these images. Then two methods that fail for different reasons agree."""
    if found.sandwich is None:
        return False
    width, se = mean_se(found.sandwich.width)
    narrow = width + 2 * se <= _NARROW and float(annealed.log_px_bias.mean().abs()) <= _NARROW
    others = [name for name in ("importance", "mixed") if getattr(found, name) is not None]
    return narrow and any(not _at_least(found, name) for name in others)


def summarize(found: Found, first: str, proposal: dict[str, Any]) -> dict[str, Any]:
    """The means over images, in nats, for `evaluation.json`.

    :param first: the name in `Found` of the evaluation's log p(x).
    :param proposal: what `found.mixed` was drawn from.
    """
    log_px = _log_px(found, proposal)
    entries: dict[str, Any] = {
        "log_px": log_px.pop(first),
        **{f"log_px_{name}": entry for name, entry in log_px.items()},
    }
    if found.sandwich is not None:
        between = found.sandwich
        entries["sandwich"] = {
            "num_images": len(between.x),
            "lower": _entry(between.lower, mc_se=_mc_se(between.lower_mc_var)),
            "upper": _entry(between.upper),
            "width": _entry(between.width),
            "wide": _wide(between),
        }
    estimates = found.importance
    if estimates is None:
        assert found.exact is not None
        return {"elbo": _entry(found.exact), **entries}
    sampled = [name for name in _NAMES[1:] if getattr(found, name) is not None]
    below = {name: others for name in sampled if (others := _below(found, name))}
    if below:
        entries["below"] = below
    if estimates.narrower:
        entries["narrower"] = True
    if found.second_opinion is not None:
        entries["second_opinion"] = _opinion(found.second_opinion, estimates)
    if found.annealed is not None:
        difference, apart = disagreement(found.annealed, estimates)
        entries["disagreement"] = _entry(difference, fraction_beyond_errors=float(apart.double().mean()))
    result: dict[str, Any] = {
        "elbo": _entry(estimates.elbo, mc_se=_mc_se(estimates.elbo_mc_var)),
        "reconstruction": _entry(estimates.reconstruction),
        "kl": _entry(estimates.kl),
    }
    if estimates.kl_analytic is not None:
        result["kl_analytic"] = _entry(estimates.kl_analytic)
        result["elbo_analytic_kl"] = _entry(estimates.reconstruction - estimates.kl_analytic)
    result["iwae"] = {str(k): _entry(values) for k, values in estimates.iwae.items()}
    result["iwae_jackknife"] = {str(k): _entry(values) for k, values in estimates.iwae_jackknife.items()}
    gap, largest = _gap(found, first)
    gap_entry = _entry(gap, at_least=largest.at_least, of=largest.name, fraction_of_others=_share(largest.replaced))
    result |= entries | {"gap": gap_entry, **_ess(estimates.ess), "khat": _khat(estimates)}
    result |= {f"khat_{name}": _khat(getattr(found, name)) for name in ("mixed", "prior") if name in sampled}
    active = estimates.active_units
    if estimates.latent_mean and len(estimates.elbo) > 1 and active is not None:
        result["active_units"] = active
    return result


def _share(chosen: Tensor) -> float:
    return float(chosen.double().mean())


def _wide(between: Sandwich) -> dict[str, Any]:
    """How many images of a sandwich have bounds more than a nat apart, and the share of the model's images that may
    have, by the upper 95 % limit of Clopper and Pearson (1934): about 3/n where none of n has."""
    from scipy.stats import beta

    count, wide = len(between.x), int((~(between.width <= 1)).sum())
    most = 1.0 if wide == count else float(beta.ppf(0.95, wide + 1, count - wide))
    return {"above": 1.0, "num_images": wide, "fraction_at_most": most, "confidence": 0.95}


def _opinion(opinion: SecondOpinion, estimates: Estimates) -> dict[str, Any]:
    """What a second opinion says of importance sampling."""
    found = above(estimates, opinion)
    by = (opinion.log_px - estimates.log_px)[found.images]
    return _entry(
        opinion.log_px,
        mc_se=_mc_se(opinion.log_px_mc_var),
        num_samples=opinion.num_samples,
        at_least=found.any,
        fraction_beyond_errors=_share(found.images),
        **({"nats_beyond_errors": float(by.mean())} if len(by) else {}),
        together_beyond_errors=found.together,
        fraction_blind=_share(opinion.blind),
        visible_mass=visible_mass(opinion.num_samples),
    )


@dataclass(frozen=True)
class _Largest:
    """log p(x) that the gap is taken of."""

    name: str
    """In `Found`."""
    values: Tensor
    replaced: Tensor
    """Images whose value is that of another estimate, which is above this one beyond chance; bool [images]."""
    untrusted: Tensor
    """Images whose value is at least that; bool [images]."""
    at_least: bool


def _gap(found: Found, first: str) -> tuple[Tensor, _Largest]:
    """log p(x) - ELBO [images], and what log p(x) is: exact, or the first estimate. All others are low in expectation,
    too: one whose mean is above its beyond their errors takes its place, the largest first; then, image by image, the
    largest of those that are above it beyond chance. A maximum of all of them would be high by chance.
    Samples of the prior alone are none to judge a guide by: there it begins with the guide's."""
    assert found.importance is not None
    lower = _lower(found)
    name = "exact" if found.exact is not None else "importance" if first == "prior" else first
    none = torch.zeros(len(lower[name].log_px), dtype=torch.bool)
    if name == "exact":
        largest = _Largest(name, lower[name].log_px, none, none, False)
    else:
        better = [other for other in lower if other != name and above_in_mean(lower[name], lower[other])]
        name = max(better, key=lambda other: float(lower[other].log_px.mean()), default=name)
        values, replaced = lower[name].log_px, none
        for other in lower:
            higher = above(lower[name], lower[other]).images
            values = torch.where(higher, torch.maximum(values, lower[other].log_px), values)
            replaced = replaced | higher
        chosen = getattr(found, name, None)
        untrusted = replaced | (chosen.untrusted if isinstance(chosen, LogPx) else none)
        known = isinstance(chosen, LogPx | Annealed)
        at_least = bool(replaced.any()) or not known or _at_least(found, name)
        largest = _Largest(name, values, replaced, untrusted, at_least)
    return largest.values - found.importance.elbo, largest


def disagreement(annealed: Annealed, importance: LogPx) -> tuple[Tensor, Tensor]:
    """log p(x) by annealing less that by importance sampling, in nats [images]; and where that is beyond 4 of their
    Monte Carlo errors and the biases that they know of, bool [images]."""
    difference = annealed.log_px - importance.log_px
    error = (annealed.log_px_mc_var + importance.log_px_mc_var).sqrt()
    allowed = 4 * error + annealed.log_px_bias.abs() + importance.log_px_bias.abs()
    return difference, difference.abs() > allowed  # not where an error is unknown


def dataset(found: Found, labels: Tensor | None, summary: dict[str, Any]) -> "xarray.Dataset":
    """Everything per image, labelled. `log_px` is what the summary's is; `log_px_exact` is there where known."""
    import xarray

    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}

    def add(name: str, values: Tensor, title: str, units: str = "nats") -> None:
        variables[name] = ("image", values.numpy(), {"long_name": title, "units": units})

    def add_log_px(name: str, estimates: Tensor | LogPx | Annealed | SecondOpinion, how: str) -> None:
        """An estimate with its errors, under a name of its own and, if it is the first, as log p(x)."""
        for prefix in (f"log_px_{name}", *(["log_px"] if name == first else [])):
            if isinstance(estimates, Tensor):
                add(prefix, estimates, f"log p(x), {how}")
                continue
            add(prefix, estimates.log_px, f"log p(x) by {how}")
            add(f"{prefix}_mc_se", estimates.log_px_mc_var.sqrt(), f"Monte Carlo standard error of log p(x) by {how}")
            add(f"{prefix}_bias", estimates.log_px_bias, f"jackknife estimate of the bias of log p(x) by {how}")

    estimator = summary["log_px"]["estimator"]
    first = next(name for name in _NAMES if f"log_px_{name}" not in summary and getattr(found, name) is not None)
    estimates = found.importance
    if found.exact is not None:
        add_log_px("exact", found.exact, "exact")
    if estimates is None:
        assert found.exact is not None
        add("elbo", found.exact, "ELBO")
    else:
        add("elbo", estimates.elbo, "ELBO")
        add("reconstruction", estimates.reconstruction, "E[log p(x|z)]")
        add("kl", estimates.kl, "E[log q(z|x) - log p(z)]")
        if estimates.kl_analytic is not None:
            add("kl_analytic", estimates.kl_analytic, "KL(q(z|x) || p(z))")
        add_log_px("importance", estimates, "importance sampling")
        gap, largest = _gap(found, first)
        add("gap", gap, "log p(x) - ELBO")
        add(
            "untrusted",
            largest.untrusted.to(torch.int8),
            "gap at least: k-hat of its log p(x) too high or unknown, or another estimate above it",
            "1",
        )
        add("elbo_mc_se", estimates.elbo_mc_var.sqrt(), "Monte Carlo standard error of ELBO")
        add("ess", estimates.ess, "effective sample size of importance sampling", "samples")
        add("khat", estimates.khat, "Pareto k-hat of importance sampling", "1")
        if estimates.largest is not None:
            add("largest_weight", estimates.largest, "share of the sum of importance weights in the largest", "1")
        if found.second_opinion is not None:
            opinion = found.second_opinion
            add_log_px("second_opinion", opinion, "few samples, half of them from the prior")
            add("blind", opinion.blind.to(torch.int8), "the second opinion could not have seen another mode", "1")
        iwae = torch.stack(list(estimates.iwae.values()), 1).numpy()
        variables["iwae"] = (("image", "k"), iwae, {"long_name": "IWAE bound", "units": "nats"})
        coordinates["k"] = list(estimates.iwae)
    if found.mixed is not None:
        add_log_px("mixed", found.mixed, "importance sampling from several proposals")
        add("khat_mixed", found.mixed.khat, "Pareto k-hat of importance sampling from several proposals", "1")
    if found.prior is not None:
        add_log_px("prior", found.prior, "importance sampling from the prior")
        add("khat_prior", found.prior.khat, "Pareto k-hat of importance sampling from the prior", "1")
    if found.annealed is not None:
        add_log_px("annealed", found.annealed, "annealed importance sampling")
        add("ess_annealed", found.annealed.ess, "effective number of chains", "chains")
        if estimates is not None:
            apart = disagreement(found.annealed, estimates)[1].to(torch.int8)
            add("disagrees", apart, "annealing and importance sampling differ beyond their errors", "1")
    coordinates["image"] = range(len(variables["elbo"][1]))
    if labels is not None:
        coordinates["label"] = ("image", labels.numpy())
    plain = {key: value for key, value in summary.items() if isinstance(value, str | int | float)}
    attributes = plain | {"estimator": estimator}
    if estimates is not None:
        attributes["num_samples"] = estimates.num_samples
    return xarray.Dataset(variables, coordinates, attributes)


# For a reader --------------------------------------------------------------------------------------------------

UNITS = "nats per image ± standard error over images; larger is better"


@dataclass(frozen=True)
class Row:
    """A row of a table: a figure with its standard error and a note, or words alone."""

    label: str
    """Indented where it is a term of the row above."""
    mean: str = ""
    se: str = ""
    note: str = ""
    at_least: bool = False


def title(summary: dict[str, Any]) -> str:
    """Model, guide and prior, of a summary or of a configuration."""
    prior = summary.get("prior")
    return f"{summary['model']}, guide {summary['guide']}{f', prior {prior}' if prior else ''}"


def images(summary: dict[str, Any]) -> str:
    """What images an `evaluation.json` or `gaps.json` is of."""
    s = summary
    count = s["num_images"] if "num_images" in s else s["contexts"]["num_images"]
    return f"{count} {s['split']} images of {s['data']}, binarization {s['binarization']}"


def rows(summary: dict[str, Any]) -> list[Row]:
    """The figures of an `evaluation.json`, with their errors."""
    s = summary
    first = s["log_px"]["estimator"]
    own = "log_px" if first == "importance" and "proposal" not in s["log_px"] else "log_px_importance"
    importance, exact = s.get(own), s["log_px"] if first == "exact" else s.get("log_px_exact")
    corrected = s.get("iwae_jackknife")  # which earlier versions did not write
    found = []

    def at_least(entry: dict[str, Any]) -> bool:
        """As the entry says; earlier versions said it of the gap alone."""
        return bool(entry.get("at_least", s.get("gap", {}).get("at_least", False)))

    if importance is not None:
        found += [
            _row("ELBO", s["elbo"], f"mean of {importance['num_samples']} samples"),
            _row("  reconstruction", s["reconstruction"]),
            _row("  KL", s["kl"], f"analytic {_fixed(s['kl_analytic']['mean'])}" if "kl_analytic" in s else ""),
            *(
                _row(
                    f"IWAE bound, k = {k}",
                    entry,
                    f"by the jackknife {_fixed(corrected[k]['mean'])}" if corrected else "",
                )
                for k, entry in s["iwae"].items()
                if k != "1"
            ),
            _row(
                "log p(x)",
                importance,
                f"S = {importance['num_samples']} importance samples"
                f"{' from the prior' if s.get('proposal') == 'prior' else ''}; Monte Carlo error "
                f"{_small(importance['mc_se'])}, estimated bias {_small(importance['bias'])}",
                at_least(importance),
            ),
        ]
    if exact is not None:
        found.append(_row("log p(x)", exact, "exact"))
    for entry in (s["log_px"], s.get("log_px_mixed"), s.get("log_px_prior"), s.get("log_px_annealed")):
        if entry is not None and entry not in (importance, exact):
            found.append(_row("log p(x)", entry, _how(entry), at_least(entry)))
    if "sandwich" in s:
        between = s["sandwich"]
        lower, upper = (_fixed(between[side]["mean"]) for side in ("lower", "upper"))
        width = " ± ".join(_fixed(between["width"][key], 3) for key in ("mean", "se"))
        found.append(
            Row(
                f"the same settings on {between['num_images']} images from the model:",
                note=f"log p(x) between {lower} and {upper}, {width} apart{_unseen(between)}",
            )
        )
    if "disagreement" in s:
        apart = s["disagreement"]
        beyond = f"beyond their errors: {apart['fraction_beyond_errors']:.1%} of images"
        found.append(_row("annealing - importance", apart, beyond))
    if "second_opinion" in s:
        found.append(Row("second opinion", note=_second(s["second_opinion"])))
    for name, others in s.get("below", {}).items():
        found.append(
            Row(f"{_ESTIMATES[name]} is too low:", note=f"below {', '.join(_ESTIMATES[other] for other in others)}")
        )
    if importance is not None:
        several = sum(row.label == "log p(x)" for row in found) > 1
        found.append(_row("gap: log p(x) - ELBO", s["gap"], _gap_note(s, several), s["gap"]["at_least"]))
        ess = f"median {_fixed(s['ess']['median'], 1)}, least {_fixed(s['ess']['min'], 1)}"
        found.append(Row("effective sample size", note=f"{ess} of {importance['num_samples']}"))
    if "khat" in s:
        found.append(Row("Pareto k-hat", note=_khat_note(s["khat"])))
    if "active_units" in s:
        collapsed = "; z is not used, its mean is the same for every image: --kl-warmup may prevent that"
        if s["guide"] == "prior":
            collapsed = "; the guide is the prior"
        active = s["active_units"]
        found.append(Row("active latent units", note=f"{active}{collapsed if active == 0 else ''}"))
    if "narrower" in s:
        found.append(Row("support", note=NARROWER))
    if "components" in s:
        used, of = s["components"]["in_use"], s["components"]["of"]
        empty = f"; {of - used} explain less than one of these images each" if used < of else ""
        found.append(Row("components in use", note=f"{used} of {of}{empty}"))
    found.append(Row("parameters", note=f"{s['num_parameters']:,}"))
    found.append(Row("evaluation took", note=f"{s['seconds']:.0f} s"))
    return found


_ESTIMATES = {
    "exact": "exact",
    "elbo": "ELBO",
    "importance": "importance sampling",
    "mixed": "several proposals",
    "prior": "prior sampling",
    "annealed": "annealing",
    "second_opinion": "second opinion",
}


def _gap_note(summary: dict[str, Any], several: bool) -> str:
    """Which log p(x) the gap is taken of, where a table has several of them or the gap is of none of them; earlier
    versions did not write it."""
    gap = summary["gap"]
    others = gap.get("fraction_of_others", 0)
    if "of" not in gap or (not several and not others and gap["of"] == "importance"):
        return ""
    means = [summary["elbo"]["mean"], gap["mean"]]
    note = f"of log p(x) {_fixed(None if None in means else sum(means))}: {_ESTIMATES[gap['of']]}"
    return note + (f"; on {others:.1%} of images, a larger estimate" if others else "")


def _unseen(between: dict[str, Any]) -> str:
    """How many images of a sandwich are wide, and what that leaves open; earlier versions did not write it."""
    if "wide" not in between:
        return ""
    wide = between["wide"]
    count = f"{wide['num_images']} of {between['num_images']}" if wide["num_images"] else "none"
    share = f"up to {wide['fraction_at_most']:.1%} of the model's images may be, at {wide['confidence']:.0%} confidence"
    return f"; {count} more than {wide['above']:g} nat apart, so that {share}"


def _second(opinion: dict[str, Any]) -> str:
    """What a second opinion saw, and what it could not see."""
    seen = ["over all images together"] if opinion["together_beyond_errors"] else []
    if opinion["fraction_beyond_errors"]:
        by = _fixed(opinion.get("nats_beyond_errors"))
        seen = [f"on {opinion['fraction_beyond_errors']:.1%} of images by {by} nats", *seen]
    limit = f"sees modes of {opinion['visible_mass']:.1%} of the prior or more"
    above = f"above importance sampling {', and '.join(seen)}" if seen else "not above"
    blind = f"blind on {opinion['fraction_blind']:.1%} of images"
    return f"{opinion['num_samples']} samples, half from the prior: {above}; {limit}; {blind}"


def _khat_note(khat: dict[str, Any]) -> str:
    median = _fixed(khat["median"]) if khat.get("median") is not None else "unknown"
    too_high = f"median {median}; above {khat['threshold']:.2f}: {khat['fraction_above_threshold']:.1%} of images"
    if "fraction_unknown" not in khat:  # earlier versions counted these among the former
        return f"{too_high}, those where it is unknown included"
    return f"{too_high}; unknown: {khat['fraction_unknown']:.1%}; fine: {khat['fraction_fine']:.1%}"


def table(summary: dict[str, Any]) -> str:
    """The summary as a person reads it."""
    lines = [f"{title(summary)}: {images(summary)}", UNITS, *map(_line, rows(summary))]
    return "\n".join([*lines, *(f"  {warning}" for warning in warnings_of(summary["observation"]))])


def _row(label: str, entry: dict[str, Any], note: str = "", at_least: bool = False) -> Row:
    se = entry["se"]
    return Row(label, _fixed(entry["mean"]), _fixed(se) if se is not None and math.isfinite(se) else "", note, at_least)


def _line(row: Row, width: int = 22, value: str = "{:>9}{:>9}{}") -> str:
    """A row as text, with the label `width` wide."""
    if not row.mean:
        return f"  {row.label:<{width}} {row.note}".rstrip()
    written = value.format("at least" if row.at_least else "", row.mean, f" ± {row.se}" if row.se else "")
    return f"  {row.label:<{width}}{written:<28}{row.note}".rstrip()


def _how(entry: dict[str, Any]) -> str:
    """The estimator of an entry, with its errors."""
    errors = f"; Monte Carlo error {_small(entry['mc_se'])}, estimated bias {_small(entry['bias'])}"
    if entry["estimator"] == "annealed":
        chains = f"{entry['num_chains']} chains x {entry['num_temperatures']} temperatures"
        return f"annealed, {chains} from the {entry['start']}{errors}"
    samples = f"S = {entry['num_samples']} importance samples"
    ess = f"; effective {entry['ess']['median']:.1f}"
    proposal = entry.get("proposal")
    if proposal is None or not proposal["guides"]:
        return f"{samples} from the prior{ess}{errors}"
    parts = [", ".join(proposal["guides"]) if len(proposal["guides"]) > 1 else "guide"]
    parts += [f"temperature {proposal['temperature']:g}"] if proposal["temperature"] != 1 else []
    parts += [f"{proposal['prior_share']:.0%} prior"] if proposal["prior_share"] else []
    return f"{samples} from {', '.join(parts)}{ess}{errors}"


def gap_parts(found: Gaps, count: int | None = None) -> dict[str, Any]:
    """The means over the first images, and every image's, in nats."""
    values = {
        name: getattr(found, name)[:count] for name in ("log_px", "elbo", "best_elbo", "approximation", "amortization")
    }
    means: dict[str, dict[str, float]] = {}
    for name, each in values.items():
        mean, se = mean_se(each)
        variance = getattr(found, f"{name}_mc_var")[:count]
        means[name] = {"mean": mean, "se": se, "mc_se": float(variance.sum().sqrt() / len(each))}
    return {
        "num_images": len(values["elbo"]),
        **means,
        "estimator": found.estimator,
        "at_least": bool(found.untrusted[:count].any()),
        "fraction_settled": float(found.settled[:count].double().mean()),
        **({} if found.missed is None else {"fraction_missed": _share(found.missed[:count])}),
        **({} if found.blind is None else {"fraction_blind": _share(found.blind[:count])}),
        "per_image": {name: each.tolist() for name, each in values.items()},
    }


def gap_rows(summary: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """The figures of a `gaps.json` in parts, each with its title; a note is the Monte Carlo error."""
    s = summary
    titles = {
        "contexts": "",
        "contexts_of_these": "the first {} of these",
        "copies": "the same, and a copy of the weights of posterior(context) for each image",
    }
    labels = {
        "log_px": "log p(x)",
        "best_elbo": "ELBO, best context of each image",
        "elbo": "ELBO, the encoder's context",
        "approximation": "approximation gap",
        "amortization": "amortization gap",
    }
    bounded = {"log_px", "approximation"}
    parts = []
    for key, of in titles.items():
        if key not in s:
            continue
        part = s[key]
        estimators = {"importance": "importance sampling", "annealed": "annealed"}
        of_log_px = {"log_px": f", {estimators[part.get('estimator', 'importance')]}"}
        found = [
            _row(
                label + of_log_px.get(name, ""),
                part[name],
                _small(part[name].get("mc_se")),
                part["at_least"] and name in bounded,
            )
            for name, label in labels.items()
        ]
        if part["fraction_settled"] < 1:
            gaining = 1 - part["fraction_settled"]
            found.append(Row(f"{gaining:.0%} of the searches were still gaining when they were ended"))
        if part.get("fraction_missed"):
            of_images = f"{part['fraction_missed']:.0%} of images have a mode that the search did not reach:"
            found += [Row(of_images), Row("how their gap splits is not known")]
        if "fraction_blind" in part:
            found.append(Row(f"blind to other modes than the encoder's: {part['fraction_blind']:.0%} of images"))
        parts.append((of.format(part["num_images"]), found))
    return parts


def gap_units(summary: dict[str, Any]) -> str:
    """What the figures of a `gaps.json` are in."""
    samples = summary["num_samples"]
    return f"nats per image ± standard error over images; log p(x) and bounds from {samples} samples"


def gap_table(summary: dict[str, Any]) -> str:
    """The gaps as a person reads them."""
    lines = [f"{title(summary)}: gaps of {images(summary)}", gap_units(summary), f"{'Monte Carlo error':>72}"]
    for of, found in gap_rows(summary):
        lines += [of] if of else []
        lines += [_line(row, 34, "{:<9}{:>8}{}") for row in found]
    lines.append(f"  this took {summary['seconds']:.0f} s")
    return "\n".join([*lines, *(f"  {warning}" for warning in warnings_of(summary["observation"]))])


QUALITY_UNITS = "± standard error; in brackets, as many other real images in the place of the samples"


def quality_rows(summary: dict[str, Any]) -> list[Row]:
    """The figures of a `quality.json`."""
    s = summary

    def score(label: str, key: str, digits: int) -> Row:
        ours, real = s[key], s["real_images"][key]
        mean, se, of_real, its_se = (_fixed(each[name], digits) for each in (ours, real) for name in ("mean", "se"))
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
        Row("classifier", note=f"right on {s['classifier']['accuracy']:.1%} of the test images"),
        Row("this took", note=f"{s['seconds']:.0f} s, and the classifier's training"),
    ]


def quality_images(summary: dict[str, Any]) -> str:
    """What a `quality.json` compares."""
    what = {"draws": "draws x ~ p(x)", "means": "means E[x | z]"}[summary["images"]]
    against = f"binarization {summary['binarization']}" if summary["images"] == "draws" else "grey values"
    return f"{summary['num_images']} {what} against as many test images of {summary['data']}, {against}"


def quality_table(summary: dict[str, Any]) -> str:
    """The scores of samples as a person reads them."""
    lines = [f"{title(summary)}: {quality_images(summary)}", QUALITY_UNITS]
    return "\n".join([*lines, *(_line(row, 24, "{:>1}{:>8}{}") for row in quality_rows(summary))])


def _small(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.4f}" if abs(value) < 0.01 else f"{value:.2f}"


def _fixed(value: float | None, digits: int = 2) -> str:
    """What is not a number is null in JSON."""
    written = f"{math.nan if value is None else value:.{digits}f}"
    return written.removeprefix("-") if float(written) == 0 else written
