"""The page of several runs side by side. It needs no torch."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ppl_gen.core.calls import of_session, open_call
from ppl_gen.core.commands import fit_command, sweep_command
from ppl_gen.core.errors import warnings_of
from ppl_gen.core.paths import is_weight_file
from ppl_gen.core.tables import fixed
from ppl_gen.evaluation.columns import Layout
from ppl_gen.evaluation.distances import Distances
from ppl_gen.evaluation.reading import Images
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.report.page import Picture, render

_TERMS = {"S": "importance-sampling", "units": "active-units"}
"""Headings that are not words of the glossary, with its terms. `L_k` is found by its form."""


def comparison(
    compared: Json,
    found: Distances,
    table: Layout,
    png: bytes,
    command: Sequence[str],
    further: Sequence[Picture] = (),
) -> str:
    """The page of a comparison.

    :param compared: the result of `ppl_gen.Comparison.to_json`.
    :param found: the content of the picture.
    :param png: the figure, as the content of a .png file.
    :param command: words of the command that makes this page.
    :param further: pictures to show below the figure.
    """
    from ppl_gen.figures.distances import caption

    images = Images(**compared["images"])
    warnings = warnings_of(images.observation)
    paths = [Path(path) for row in compared["rows"] for path in row["runs"]]
    files = [path for path in paths if is_weight_file(path)]
    runs = [RunDirectory.open(path) for path in paths if path not in files]
    notices = [run.config.get("data_notice", "") for run in runs]
    counts = ((len(runs), "run"), (len(files), "file"))
    count = " and ".join(f"{number} {what}{'s' if number > 1 else ''}" for number, what in counts if number)
    count += " of log weights" if files else ""
    return render(
        "comparison.html.jinja",
        images.quantity,
        title=f"{count} compared" + (f" on {images.data}" if images.data else ""),
        lead=_lead(images, count, all(row.paired for row in found.rows)),
        main=_main(compared["rows"], [row.label for row in found.rows]),
        agreed=list(table.common.items()),
        warnings=[text for text in dict.fromkeys([*notices, *warnings]) if text],
        anchors={each: anchor for each in (*table.columns, *table.common) if (anchor := _anchor(each))},
        headings=list(table.columns),
        numbers=set(table.columns) - table.words,
        rows=list(zip(*table.columns.values(), strict=True)),
        pieces=_pieces,
        notes=[note for note in compared["notes"] if note not in warnings],
        pictures=[Picture.of(png, caption(found)), *further],
        again=[
            ("this page", command),
            *(each for run in runs for each in _again(run)),
            *((f"{path}, log weights from elsewhere", []) for path in files),
        ],
        calls=[("", open_call(run.config, run.path)) for run in runs if of_session(run.config)],
    )


def _lead(images: Images, count: str, paired: bool) -> str:
    """The first sentences: which images are compared.

    :param count: the number of runs, in words.
    :param paired: True if all are known to be of the same images.
    """
    split = f"{images.split} " if images.split else ""
    which = f"{images.num_images} {split}images{images.binarized}"
    of = f"the same images: {which}" if paired else f"{which}, and on images that may differ"
    return f"This page compares {count} on {of}. Numbers are nats per image, and larger is better."


def _pieces(cell: str) -> list[str]:
    """A cell in pieces that may stand below each other: a mean with its error, a second error, an interval."""
    mean, *others = re.split(r" (?=± |\[)", cell)
    return [" ".join([mean, *others[:1]]), *others[1:]] if others and others[0][0] == "±" else [mean, *others]


def _anchor(heading: str) -> str:
    return "iwae-bound" if heading.startswith("L_") else _TERMS.get(heading, "")


def _main(rows: Sequence[Json], labels: Sequence[str]) -> list[str]:
    """The result in sentences: the best row, and whether the next one differs from it by more than chance."""
    at_least = [bool(row["log_px"]["at_least"]) for row in rows]
    best = f"{'at least ' if at_least[0] else ''}{fixed(rows[0]['log_px']['mean'])} nats"
    if len(rows) == 1:
        return [f"log p(x) is {best}."]
    sentences = [f"The best log p(x) is {best}: {labels[0]}."]
    difference = rows[1]["log_px_difference"]
    mean, low, high = (difference.get(key) for key in ("mean", "low", "high"))
    if mean is not None:
        digits = 3 if any(value and abs(value) < 0.0095 for value in (mean, low, high)) else 2
        text = f"The next, {labels[1]}, is {fixed(-mean, digits)} nats below it."
        if low is not None and high is not None:
            between = " between these two sets of weights" if difference.get("of") == "weights" else ""
            chance = f"the difference{between} may be chance"
            if not low <= 0 <= high:
                chance = f"chance does not explain the difference{between}"
            text += f" The 95 % interval is {fixed(-high, digits)} to {fixed(-low, digits)} nats: {chance}."
        sentences.append(text)
        if difference.get("paired") is False:
            sentences.append("The two are unpaired: they may be of different images.")
    if any(at_least):
        sentences.append(
            'Where log p(x) reads "at least" (≥), it is likely higher, so the difference and the order of the rows may '
            "change."
        )
    return sentences


def _again(run: RunDirectory) -> Iterator[tuple[str, Sequence[str]]]:
    """Comments, each with the command that makes a run."""
    if made := fit_command(run.config):
        yield str(run.path), made
    elif swept := sweep_command(run.config):
        yield f"{run.path}, and the other runs of its sweep", swept
    else:
        yield f"{run.path}, made from Python: its report.html has the call", []
