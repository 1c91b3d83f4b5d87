"""Notes below the table of a comparison, a sentence each."""

from collections.abc import Sequence

from ppl_gen.core.errors import ABOVE_ZERO, warnings_of
from ppl_gen.evaluation import entries
from ppl_gen.evaluation.reading import Evaluated
from ppl_gen.evaluation.rows import Row
from ppl_gen.evaluation.table import ESTIMATES


def notes_of(runs: Sequence[Evaluated], rows: Sequence[Row]) -> list[str]:
    """The notes below the table of a comparison.

    :param rows: the rows of the runs.
    """
    unpaired = _on_unknown_images(runs) if any(map(_is_unpaired, rows)) else []
    warnings = warnings_of(runs[0].images.observation)
    told = [*_on_training(runs), *_on_errors(rows), *unpaired, *_on_estimates(rows), *_on_own(runs, rows)]
    return [*told, *_on_too_high(runs), *warnings]


def _on_too_high(runs: Sequence[Evaluated]) -> list[str]:
    return [
        f"{run.path}: {', '.join(ESTIMATES.get(name, name) for name in run.summary['too_high'])} is too high: "
        f"{ABOVE_ZERO}, or above a log p(x) that is known"
        for run in runs
        if run.summary.get("too_high")
    ]


def _is_unpaired(row: Row) -> bool:
    return row.log_px_difference.paired is False


def _on_unknown_images(runs: Sequence[Evaluated]) -> list[str]:
    """Notes on the differences between rows that are not known to be of the same images."""
    lacking = [f"{run.path} ({run.images.num_images} images)" for run in runs if run.images_sha256 is None]
    return [
        f"no images_sha256: {', '.join(lacking)}",
        "unpaired: nothing says that this row and the first are of the same images; the interval is for two "
        "independent sets of images of one kind",
    ]


def _on_training(runs: Sequence[Evaluated]) -> list[str]:
    unstopped = [run for run in runs if run.last.get("stopped") != run.config.get("training.epochs")]
    counts = [(run.path, run.last.get("epoch"), run.config.get("training.epochs")) for run in unstopped]
    best = [str(run.path) for run in runs if run.config.get("evaluation.checkpoint") == "best"]
    notes = [f"weights of the best epoch: {', '.join(best)}"] if best else []
    return notes + [
        f"{path} stopped after {done} of {epochs} epochs"
        for path, done, epochs in counts
        if done is not None and epochs is not None and done < epochs
    ]


def _on_errors(rows: Sequence[Row]) -> list[str]:
    notes = ["±: standard error over images, for these weights"]
    if any(len(row.seeds) > 1 for row in rows):
        notes.append(
            "second ±: standard error over seeds of the row's mean; all numbers of a row are means over its seeds"
        )
    if len(rows) > 1:
        unless = " unless it reads unpaired" if any(map(_is_unpaired, rows)) else ""
        notes += [
            f"Δ: mean of this row minus the first row, paired by image{unless}, with the errors of that mean",
            "[low, high]: 95 % interval of Δ; if it contains 0, the difference may be chance",
        ]
    if len(rows) > 2:
        notes.append(
            f"the 95 % are for all intervals of a column together, whichever of the {len(rows)} rows came out best"
        )
    of = {row.difference_of for row in rows}
    if "methods" in of:
        where = "if this row and the first have several seeds, " if "weights" in of else ""
        notes.append(f"{where}the interval compares two methods: it is for other seeds and other images of this kind")
    if "weights" in of:
        where = " in this row or in the first" if any(len(row.seeds) > 1 for row in rows) else ""
        notes.append(
            f"one seed{where}: Δ compares two sets of weights, not two methods; the interval is for other images of "
            "this kind"
        )
    return notes


def _on_estimates(rows: Sequence[Row]) -> list[str]:
    notes, k = [], rows[0].k
    doubted = {row.settings["estimator"] for row in rows if row.log_px.at_least}
    doubted |= {name for row in rows for name, mean in row.own.items() if mean.at_least}
    if doubted - {"annealed"}:
        notes.append("≥ at least: k-hat is too high or unknown for some images, or another estimate of them is larger")
    if "annealed" in doubted:
        notes.append(
            "≥ at least: bidirectional Monte Carlo and importance sampling do not both support the annealed value"
        )
    if k is not None:
        notes.append(f"L_{k}: IWAE bound with the largest k that all runs with such bounds have below S")
    if len({row.settings["num_samples"] for row in rows} - {None}) > 1:
        notes.append(
            "importance-sampled log p(x) with different S are not comparable: more samples give a higher value"
        )
    kinds = {row.settings["estimator"] for row in rows}
    if len(kinds) > 1 and kinds - entries.KNOWN:
        notes.append("a sampled log p(x) is biased low; an exact one, or one by quadrature, is not")
    if any(row.calibration for row in rows):
        notes.append("calibration: verdict on the guide's samples → with importance weights, on images from the model")
    split = {row.gap_images for row in rows if row.gap_images is not None}
    if split:
        counts = " or ".join(f"{count:g}" for count in sorted(split))
        notes.append(f"approximation and amortization gap: on the first {counts} images")
    if any(mean is not None for row in rows for mean in (row.width_importance, row.width_annealed)):
        notes.append(
            "width: distance between the two bounds of log p(x), on images that each model draws, not on these"
        )
    return notes


def _on_own(runs: Sequence[Evaluated], rows: Sequence[Row]) -> list[str]:
    """Notes on estimators of the user's own with settings that are not the same in all runs."""
    notes = []
    for name in dict.fromkeys(name for row in rows for name in row.own):
        used = [run.summary for run in runs if name in run.estimates]
        settings = [(each[f"log_px_{name}"].get("num_samples"), each.get("options", {})) for each in used]
        settings = [(count, options.get("estimator_options")) for count, options in settings]
        if any(each != settings[0] for each in settings):
            notes.append(f"log p(x) by {name}: its number of samples or its options differ between the runs")
    return notes
