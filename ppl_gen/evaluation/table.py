"""The table of an `evaluation.json`: its rows, and its text."""

from dataclasses import replace
from html import escape

from ppl_gen.core.components import OBJECTS
from ppl_gen.core.errors import ABOVE_ZERO, HEAVY_TAIL, MISSED, NARROWER, UNOPPOSED, warnings_of
from ppl_gen.core.tables import Row, duration, fixed, line, named, small
from ppl_gen.evaluation.entries import KNOWN, entry_of, quantity
from ppl_gen.experiment.run_directory import Json

UNITS = "nats per image ± standard error over images; larger is better"
NEXT = "to settle more images"
"""Label of the command to try next."""
_ROUNDING = 0.01  # nats, by which bounds of float32 may cross
ESTIMATES = {
    "exact": "exact",
    "quadrature": "quadrature",
    "elbo": "ELBO",
    "importance": "importance sampling",
    "settled": "settled importance sampling",
    "mixed": "several proposals",
    "prior": "prior sampling",
    "annealed": "annealing",
    "second_opinion": "second opinion",
}
"""Descriptions of the package's own estimates, by their names in the file. Other estimates are shown by name."""


class Printed:
    """A result whose text is a table. A notebook shows the same text."""

    summary: Json
    """The content of its JSON file."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def title(summary: Json) -> str:
    """Model, guide and prior of a result or a configuration, and its weights if they are not the last."""
    prior = summary.get("prior")
    of_prior = f", prior {shown(prior)}" if prior else ""
    weights = ", weights of the best epoch" if summary.get("checkpoint") == "best" else ""
    return f"{shown(summary['model'])}, guide {shown(summary['guide'])}{of_prior}{weights}"


def shown(name: str) -> str:
    """Short form of the name of a model, guide, prior or objective: `Laplace` for `class:Laplace` and
    `instance:Laplace`, which record that a class or an instance was handed over in Python."""
    origin, _, object_name = name.partition(":")
    return object_name if origin in OBJECTS else name


def images(summary: Json) -> str:
    """The images of an `evaluation.json` or `gaps.json`, as text."""
    s = summary
    count = s["num_images"] if "num_images" in s else s["contexts"]["num_images"]
    return f"{count} {s['split']} images of {s['data']}, binarization {s['binarization']}{missing(s.get('missing'))}"


def missing(share: float | None) -> str:
    """The share of missing pixels in words, after a comma; empty if no pixel is missing."""
    return f", {share:.1%} of the pixels missing, and x_obs the observed ones" if share else ""


def table(summary: Json) -> str:
    """The content of `evaluation.json` as text."""
    found = rows(summary)
    width = max(22, *(len(row.label) + 1 for row in found if row.mean))
    lines = [f"{title(summary)}: {images(summary)}", UNITS, *(line(row, width) for row in found)]
    return "\n".join([*lines, *(f"  {note}" for note in notes(summary))])


def notes(summary: Json) -> list[str]:
    """Sentences below the table of an `evaluation.json`."""
    names = ", ".join(f"'{name}'" for name in summary.get("left_out", ()))
    left_out = [f"left out of q(z | x), to which they do not belong: {names} of the guide"] if names else []
    return [named(note, quantity(summary)) for note in (*left_out, *warnings_of(summary["observation"]))]


def rows(summary: Json) -> list[Row]:
    """The rows of an `evaluation.json`: results with their errors."""
    importance = entry_of(summary, "importance")
    found = [] if importance is None else _bound_rows(summary, importance)
    found += _log_px_rows(summary, importance)
    found += [] if "bits_per_dim" not in summary else [Row("bits per dimension", note=_bits_text(summary))]
    found += _agreement_rows(summary)
    if importance is not None:
        several = sum(row.label == "log p(x)" for row in found) > 1
        found += _gap_rows(summary, importance, several)
    found += _diagnostic_rows(summary)
    name = quantity(summary)
    return [replace(row, label=named(row.label, name), note=named(row.note, name)) for row in found]


def _bits_text(summary: Json) -> str:
    """The ELBO and log p(x) in bits per dimension. A lower bound in nats is an upper bound in bits."""
    bits = summary["bits_per_dim"]
    elbo, log_px = (" ± ".join(fixed(bits[name][key], 3) for key in ("mean", "se")) for name in ("elbo", "log_px"))
    at_most = "at most " if summary["log_px"]["at_least"] else ""
    return f"ELBO {elbo}; log p(x) {at_most}{log_px}; {bits['dim']:,} dimensions; smaller is better"


def _row(label: str, entry: Json, note: str = "", at_least: bool = False) -> Row:
    return Row.of(label, entry["mean"], entry["se"], note, at_least)


def _bound_rows(s: Json, importance: Json) -> list[Row]:
    """The ELBO with its terms, the IWAE bounds, and log p(x) from the same samples."""
    corrected = s["iwae_jackknife"]
    of_the_prior = " from the prior" if s.get("proposal") == "prior" else ""
    return [
        _row("ELBO", s["elbo"], HEAVY_TAIL if "heavy_tail" in s else f"mean of {importance['num_samples']} samples"),
        _row("  reconstruction", s["reconstruction"]),
        _row("  KL", s["kl"], f"analytic {fixed(s['kl_analytic']['mean'])}" if "kl_analytic" in s else ""),
        *(
            _row(f"IWAE bound, k = {k}", entry, f"by the jackknife {fixed(corrected[k]['mean'])}")
            for k, entry in s["iwae"].items()
            if k != "1"
        ),
        _row(
            "log p(x)",
            importance,
            f"S = {importance['num_samples']} importance samples{of_the_prior}; {_errors_text(importance)}",
            importance["at_least"],
        ),
    ]


def _log_px_rows(s: Json, importance: Json | None) -> list[Row]:
    """The other estimates of log p(x), the exact one first."""
    exact = entry_of(s, "exact")
    rows = [] if exact is None else [_row("log p(x)", exact, "exact")]
    for entry in (s["log_px"], *(s[key] for key in s if key.startswith("log_px_"))):
        if entry is not importance and entry is not exact:
            rows.append(_row("log p(x)", entry, _estimator_text(entry), entry["at_least"]))
    if "no_quadrature" in s:
        rows.append(Row("no quadrature:", note=f"{s['no_quadrature']}; --estimator quadrature requests it"))
    return rows


def _errors_text(entry: Json) -> str:
    return f"Monte Carlo error {small(entry['mc_se'])}, estimated bias {small(entry['bias'])}"


def _estimator_text(entry: Json) -> str:
    """The estimator of an entry, with its settings and errors."""
    if "num_chains" in entry:
        chains = f"{entry['num_chains']} chains x {entry['num_temperatures']} temperatures"
        return f"annealed, {chains} from the {entry['start']}; {_errors_text(entry)}"
    if "settled" in entry:
        return f"{_settled_text(entry)}; {_errors_text(entry)}"
    if "points_per_image" in entry:
        points = f"{entry['points_per_image']:,} points of z per image"
        return f"quadrature, {points}; halving the step moves no image by more than {small(entry['largest_change'])}"
    if entry["estimator"] in KNOWN:
        return str(entry["estimator"])
    ess = f"; effective {fixed(entry['ess']['median'], 1)}" if "ess" in entry else ""
    if entry["estimator"] == "prior":
        samples = f"S = {entry['num_samples']} importance samples from the prior"
    elif "proposal" in entry:
        samples = f"S = {entry['num_samples']} importance samples from {_proposal_text(entry['proposal'])}"
    else:
        samples = f"{entry['estimator']}{f', S = {count}' if (count := entry.get('num_samples')) else ''}"
    mean = f"; mean log weight {fixed(entry['elbo'])}" if "elbo" in entry else ""
    return f"{samples}{ess}{mean}; {_errors_text(entry)}"


def _settled_text(entry: Json) -> str:
    """The shares of images that were settled, annealed and left, and their samples."""
    result = entry["settled"]
    shares = [f"{result['fraction_settled']:.1%} of images by importance sampling"]
    shares += [f"{result['fraction_annealed']:.1%} by annealing"] if result["fraction_annealed"] else []
    shares += [f"{result['fraction_left']:.1%} not settled"] if result["fraction_left"] else []
    samples = result["samples"]
    counts = (
        f"S median {samples['median']:,}, largest {samples['largest']:,}, {samples['total']:,} in all, with the pilot's"
    )
    return f"settled to {entry['tolerance']:g} nats: {', '.join(shares)}; {counts}; {duration(result['seconds'])}"


def _proposal_text(proposal: Json) -> str:
    """The distributions that samples came from."""
    if not proposal["guides"]:
        return "the prior"
    parts = [", ".join(proposal["guides"]) if len(proposal["guides"]) > 1 else "guide"]
    parts += [f"temperature {proposal['temperature']:g}"] if proposal["temperature"] != 1 else []
    parts += [f"{proposal['prior_share']:.0%} prior"] if proposal["prior_share"] else []
    return ", ".join(parts)


def _agreement_rows(s: Json) -> list[Row]:
    """Comparisons of the estimates with each other."""
    rows = []
    if "sandwich" in s:
        rows.append(_between("the same annealing", s["sandwich"]))
    if "sandwich_importance" in s:
        bounds = s["sandwich_importance"]
        count = bounds["num_samples"]
        rows.append(_between(f"{count} importance sample{'s' if count > 1 else ''}", bounds))
    if "disagreement" in s:
        apart = s["disagreement"]
        beyond = f"they differ beyond their errors on {apart['fraction_beyond_errors']:.1%} of images"
        rows.append(_row("annealing - importance", apart, beyond))
    if "second_opinion" in s:
        rows.append(Row("second opinion", note=_second_opinion_text(s["second_opinion"])))
    if "missed_values" in s:
        rows.append(Row("discrete units", note=f"on {s['missed_values']:.1%} of the images the guide {MISSED}"))
    if "unopposed" in s:
        rows.append(Row("second opinion", note=f"none: {UNOPPOSED}"))
    for name, others in s.get("below", {}).items():
        above = ", ".join(ESTIMATES.get(other, other) for other in others)
        own = name in ESTIMATES and not any(other in ESTIMATES for other in others)
        note = f"below {above}{', which may also be too high' if own else ''}"
        rows.append(Row(f"{ESTIMATES.get(name, name)} is too low:", note=note))
    for name in s.get("too_high", []):
        known = next((each for each in ("exact", "quadrature") if entry_of(s, each) is not None), None)
        than = ABOVE_ZERO if known is None else f"above log p(x) by {ESTIMATES[known]}"
        rows.append(Row(f"{ESTIMATES.get(name, name)} is too high:", note=f"{than}: it is not low in expectation"))
    return rows


def _between(how: str, bounds: Json) -> Row:
    """Bounds from both sides on images from the model, and the exact value between them if it is known.

    :param how: estimator of the bounds.
    """
    lower, upper = (fixed(bounds[side]["mean"]) for side in ("lower", "upper"))
    width = " ± ".join(fixed(bounds["width"][key], 3) for key in ("mean", "se"))
    exact = f", exactly {fixed(bounds['exact']['mean'])}" if "exact" in bounds else ""
    return Row(
        f"{how} on {bounds['num_images']} images from the model:",
        note=f"log p(x) between {lower} and {upper}, {width} apart{exact}{_wide_text(bounds)}{_wrong_bounds(bounds)}",
    )


def _wrong_bounds(bounds: Json) -> str:
    """Says that the upper bound is below the lower one, or beyond an exact value, by more than four errors."""
    between = [bounds.get(name) for name in ("width", "exact_minus_lower", "upper_minus_exact")]
    crossed = any(each is not None and each["mean"] + 4 * (each["se"] or 0) < -_ROUNDING for each in between)
    return "; the bounds are wrong: they contradict each other or the exact value" if crossed else ""


def _wide_text(bounds: Json) -> str:
    """The number of images whose two bounds are far apart, and an upper limit of their share."""
    wide = bounds["wide"]
    count = f"{wide['num_images']} of {bounds['num_images']}" if wide["num_images"] else "none"
    count += " are" if wide["num_images"] > 1 else " is"
    share = (
        f"at most {wide['fraction_at_most']:.1%} of the model's images are, with {wide['confidence']:.0%} confidence"
    )
    return f"; {count} more than {wide['above']:g} nat apart: {share}"


def _second_opinion_text(opinion: Json) -> str:
    """The modes that the second opinion found, and the limits of its search."""
    seen = ["over all images together"] if opinion["together_beyond_errors"] else []
    if opinion["fraction_beyond_errors"]:
        by = fixed(opinion.get("nats_beyond_errors"))
        seen = [f"on {opinion['fraction_beyond_errors']:.1%} of images by {by} nats", *seen]
    limit = f"sees modes of {opinion['visible_mass']:.1%} of the prior or more"
    above = f"above importance sampling {', and '.join(seen)}" if seen else "not above"
    blind = f"blind on {opinion['fraction_blind']:.1%} of images"
    return f"{opinion['num_samples']} samples, half from the prior: {above}; {limit}; {blind}"


def _gap_rows(s: Json, importance: Json, several: bool) -> list[Row]:
    """The gap, and the effective sample size."""
    ess = f"median {fixed(s['ess']['median'], 1)}, least {fixed(s['ess']['min'], 1)}"
    return [
        _row("gap: log p(x) - ELBO", s["gap"], _gap_note(s, several), s["gap"]["at_least"]),
        Row("effective sample size", note=f"{ess} of {importance['num_samples']}"),
    ]


def _gap_note(summary: Json, several: bool) -> str:
    """The log p(x) that the gap is taken of, if the table has several or none of them is it."""
    gap = summary["gap"]
    others = gap.get("fraction_of_others", 0)
    if not several and not others and gap["of"] == "importance":
        return ""
    means = [summary["elbo"]["mean"], gap["mean"]]
    of = ESTIMATES.get(gap["of"], gap["of"])
    note = f"from log p(x) {fixed(None if None in means else sum(means))} ({of})"
    return note + (f"; on {others:.1%} of images from a larger estimate" if others else "")


def _khat_note(khat: Json) -> str:
    if khat.get("fraction_unknown") == 1:  # so few samples have no tail, and the threshold may be negative
        return "unknown for all images"
    median = fixed(khat["median"]) if khat.get("median") is not None else "unknown"
    above, share = f"above {khat['threshold']:.2f}", f"{khat['fraction_above_threshold']:.1%} of images"
    return (
        f"median {median}; {above}: {share}; unknown: {khat['fraction_unknown']:.1%}; fine: {khat['fraction_fine']:.1%}"
    )


def _diagnostic_rows(s: Json) -> list[Row]:
    """Diagnostics of the guide's samples, sizes and times."""
    rows = []
    if "khat" in s:
        rows.append(Row("Pareto k-hat", note=_khat_note(s["khat"])))
    if "next_options" in s:
        rows.append(Row(NEXT, note=f"python -m ppl_gen.evaluate RUN {s['next_options']}"))
    if "active_units" in s:
        collapsed = "; z is not used: its mean is the same for every image; --kl-warmup may prevent this"
        if s["guide"] == "prior":
            collapsed = "; the guide is the prior"
        active = s["active_units"]
        rows.append(Row("active latent units", note=f"{active}{collapsed if active == 0 else ''}"))
    if "narrower" in s:
        rows.append(Row("support", note=NARROWER))
    if "components" in s:
        used, of = s["components"]["in_use"], s["components"]["of"]
        empty = f"; each of the other {of - used} explains less than one of these images" if used < of else ""
        rows.append(Row("components in use", note=f"{used} of {of}{empty}"))
    rows.append(Row("parameters", note=f"{s['num_parameters']:,}"))
    rows.append(Row("evaluation took", note=duration(s["seconds"])))
    return rows
