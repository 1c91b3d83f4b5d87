"""The main result of a run in words: the ELBO, log p(x) and the gap, whether to trust them, and what to do next."""

import math
from dataclasses import dataclass, replace

from ppl_gen.core.calls import arguments_of, method_call
from ppl_gen.core.commands import command
from ppl_gen.core.errors import NARROWER
from ppl_gen.core.tables import fixed, named
from ppl_gen.evaluation.entries import KNOWN, entry_of, quantity
from ppl_gen.evaluation.table import ESTIMATES
from ppl_gen.experiment.run_directory import Json

_HOW = {
    "exact": "which is exact",
    "mixed": "by importance sampling from several proposals",
    "second_opinion": "by the second opinion",
    "elbo": "by the ELBO",
}
"""Words for how log p(x) was computed, where they are not those of the table."""


@dataclass(frozen=True)
class MainResult:
    """Sentences at the top of a page."""

    text: str
    """The numbers."""
    reason: str
    """The reason to trust log p(x), or not to."""
    command: list[str]
    """Words of the command that may settle log p(x); empty if there is none."""
    call: str
    """The same in Python."""


def main_result(summary: Json, arguments: list[object]) -> MainResult:
    """The main result in an `evaluation.json`, with the name of what was evaluated.

    :param arguments: the run directory, and the options that name its own classes again.
    """
    found, name = _main_result(summary, arguments), quantity(summary)
    if "bits_per_dim" in summary:
        found = replace(found, text=f"{found.text} {_bits(summary)}")
    return replace(found, text=named(found.text, name), reason=named(found.reason, name))


def _main_result(summary: Json, arguments: list[object]) -> MainResult:
    further = summary.get("next_options")
    words = command("evaluate", *arguments, *further.split()) if further else []
    call = method_call("evaluate", arguments_of(further.split())) if further else ""
    if "gap" not in summary or "iwae" not in summary:
        return MainResult(_known(summary), "", words, call)
    if not all(mean is not None and math.isfinite(mean) for mean in (summary["elbo"]["mean"], summary["gap"]["mean"])):
        return MainResult(f"The ELBO is not finite, and neither is the gap. {_estimated(summary)}", "", words, call)
    gap, name = summary["gap"], _of(summary)
    at_least = "at least " if gap["at_least"] else ""
    guide = ", with the prior as the guide," if summary["guide"] == "prior" else ""
    text = (
        f"The ELBO{guide} is {_nats(summary['elbo']['mean'])} per image. "
        f"log p(x) is {at_least}{_nats(summary['elbo']['mean'] + gap['mean'])}, {_how(name)}. "
        f"So the gap, {_divergence(summary)}, is {at_least}{_nats(gap['mean'])}."
    )
    reason = _doubts(summary, name) if gap["at_least"] else _trust(summary, name)
    return MainResult(text, reason, words, call)


def _bits(summary: Json) -> str:
    """The ELBO and log p(x) in bits per dimension. A lower bound in nats is an upper bound in bits."""
    elbo, log_px = (fixed(summary["bits_per_dim"][name]["mean"], 3) for name in ("elbo", "log_px"))
    at_most = "at most " if summary["log_px"]["at_least"] else ""
    return f"In bits per dimension, where smaller is better, the ELBO is {elbo}, and log p(x) is {at_most}{log_px}."


def _divergence(summary: Json) -> str:
    """The divergence that the gap is. It stays on one line."""
    given = quantity(summary)
    x = ("x_obs" if "x_obs" in given else "x") + (", y" if "y" in given else "")
    return f"KL(q(z | {x}) ‖ p(z | {x}))".replace(" ", "\N{WORD JOINER}\N{NO-BREAK SPACE}")


def _nats(value: float | None) -> str:
    return f"{fixed(value)} nats"


def _how(name: str) -> str:
    """How log p(x) was computed."""
    return _HOW.get(name, f"by {ESTIMATES.get(name, name)}")


def _known(summary: Json) -> str:
    """The sentence of an evaluation without samples of the guide."""
    entry = summary["log_px"]
    if entry["estimator"] == "exact":
        how = "It is exact"
        if summary["guide"] == "enumerated":
            how += ": every value of z is summed over. The ELBO is the same number"
        return f"log p(x) is {_nats(entry['mean'])} per image. {how}, so there is no gap."
    return _estimated(summary)


def _estimated(summary: Json) -> str:
    """The sentence of log p(x) alone."""
    entry = summary["log_px"]
    at_least = "at least " if entry.get("at_least") else ""
    return f"log p(x) is {at_least}{_nats(entry['mean'])} per image, {_how(entry['estimator'])}."


def _of(summary: Json) -> str:
    """Name of the estimate that the gap is taken of."""
    return str(summary["gap"]["of"])


def _doubts(summary: Json, name: str) -> str:
    """The reasons for "at least", and what may help if no command does."""
    entry: Json = entry_of(summary, name) or {}
    found: list[str] = []
    khat: Json = summary.get("khat", {}) if name in ("importance", "prior", "second_opinion") else {}
    for key, words in (("fraction_above_threshold", "too high"), ("fraction_unknown", "unknown")):
        if khat.get(key):
            found.append(f"k-hat is {words} on {khat[key]:.1%} of the images")
    if left := (entry.get("settled") or {}).get("fraction_left"):
        found.append(f"{left:.1%} of the images are not settled")
    if above := summary.get("below", {}).get(name):
        found.append(f"another estimate is above it ({', '.join(ESTIMATES.get(each, each) for each in above)})")
    if others := summary["gap"].get("fraction_of_others"):
        found.append(f"another estimate is above it on {others:.1%} of the images")
    if name == "second_opinion":
        found.append("the second opinion, from few samples, is above importance sampling")
    if summary.get("narrower"):
        found.append(NARROWER)
    if name == "annealed" and not found:
        found.append("no other method supports the annealed value")
    reasons = " and ".join(found) or "not every image is settled"
    more = "" if "next_options" in summary else " A better guide may settle more images."
    return f'It reads "at least" because {reasons}. log p(x) is likely higher, and the gap larger.{more}'


def _trust(summary: Json, name: str) -> str:
    """The reasons to trust a value."""
    if name == "quadrature" and (change := (entry_of(summary, name) or {}).get("largest_change")) is not None:
        return (
            f"It has no Monte Carlo error: halving the step of its grid moves no image by more than {change:.2g} nats."
        )
    if name in KNOWN:
        return ""
    if name != "importance":
        agreed = ", and importance sampling agrees with it" if name == "annealed" else ""
        return f"No diagnostic doubts it: no other estimate is above it beyond chance{agreed}."
    blind = summary.get("second_opinion", {}).get("fraction_blind")
    unseen = f" The second opinion is blind on {blind:.1%} of the images: modes there may be missing." if blind else ""
    trusted = "No diagnostic doubts it: k-hat is fine on every image, and no other estimate is above it beyond chance."
    return trusted + unseen
