"""The table of a `gaps.json`: its rows, and its text."""

from ppl_gen.core.errors import warnings_of
from ppl_gen.core.tables import Row, line, small
from ppl_gen.evaluation.table import images, title
from ppl_gen.experiment.run_directory import Json

_PARTS = {
    "contexts": "",
    "contexts_of_these": "the first {} of these",
    "copies": "the same, and a copy of the weights of posterior(context) for each image",
}
_LABELS = {
    "log_px": "log p(x)",
    "best_elbo": "ELBO, best context of each image",
    "elbo": "ELBO, the encoder's context",
    "approximation": "approximation gap",
    "amortization": "amortization gap",
}
_ESTIMATORS = {"importance": "importance sampling", "annealed": "annealed"}
_BOUNDED = ("log_px", "approximation")


def gap_rows(summary: Json) -> list[tuple[str, list[Row]]]:
    """The rows of a `gaps.json` in parts, each with its title. The note of a row is its Monte Carlo error."""
    return [
        (of.format(summary[key]["num_images"]), _part_rows(summary[key]))
        for key, of in _PARTS.items()
        if key in summary
    ]


def _part_rows(part: Json) -> list[Row]:
    estimator = part.get("estimator", "importance")
    of_log_px = {"log_px": f", {_ESTIMATORS.get(estimator, estimator)}"}
    found = [
        Row.of(
            label + of_log_px.get(name, ""),
            part[name]["mean"],
            part[name]["se"],
            small(part[name].get("mc_se")),
            part["at_least"] and name in _BOUNDED,
        )
        for name, label in _LABELS.items()
    ]
    if part["fraction_settled"] < 1:
        gaining = 1 - part["fraction_settled"]
        found.append(Row(f"{gaining:.0%} of the searches were still gaining when they were ended"))
    if part.get("fraction_missed"):
        of_images = f"{part['fraction_missed']:.0%} of images have a mode that the search did not reach:"
        found += [Row(of_images), Row("how their gap splits is not known")]
    if "fraction_blind" in part:
        found.append(Row(f"blind to other modes than the encoder's: {part['fraction_blind']:.0%} of images"))
    return found


def gap_units(summary: Json) -> str:
    """The units of the numbers of a `gaps.json`."""
    samples = summary["num_samples"]
    return f"nats per image ± standard error over images; log p(x) and bounds from {samples} samples"


def gap_table(summary: Json) -> str:
    """The content of `gaps.json` as text."""
    lines = [f"{title(summary)}: gaps of {images(summary)}", gap_units(summary), f"{'Monte Carlo error':>72}"]
    for of, found in gap_rows(summary):
        lines += [of] if of else []
        lines += [line(row, 34, "{:<9}{:>8}{}") for row in found]
    lines.append(f"  this took {summary['seconds']:.0f} s")
    return "\n".join([*lines, *(f"  {warning}" for warning in warnings_of(summary["observation"]))])
