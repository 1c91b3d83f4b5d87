"""The page of several runs side by side. It needs no torch."""

from collections.abc import Sequence
from pathlib import Path

from ppl_gen.core.commands import fit_command
from ppl_gen.core.errors import warnings_of
from ppl_gen.evaluation.columns import Layout
from ppl_gen.evaluation.distances import Distances
from ppl_gen.experiment.run_directory import Json, RunDirectory
from ppl_gen.report.page import Picture, render


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

    images, warnings = compared["images"], warnings_of(compared["images"]["observation"])
    runs = [RunDirectory.open(Path(path)) for row in compared["rows"] for path in row["runs"]]
    agreed = ", ".join(f"{heading} {cell}" for heading, cell in table.common.items())
    lead = (
        f"{images['num_images']} {images['split']} images, binarization {images['binarization']}; "
        "nats per image, larger is better"
    )
    notices = [run.config.get("data_notice", "") for run in runs]
    again = [("this page", command)]
    for run in runs:
        made = fit_command(run.config)
        again.append((f"{run.path}{'' if made else ', made from Python'}", made))
    return render(
        "comparison.html.jinja",
        title=f"{len(runs)} run{'s' if len(runs) > 1 else ''} compared on {images['data']}",
        lead=lead + (f"; all rows: {agreed}" if agreed else ""),
        warnings=[text for text in dict.fromkeys([*notices, *warnings]) if text],
        headings=list(table.columns),
        numbers=set(table.columns) - table.words,
        rows=list(zip(*table.columns.values(), strict=True)),
        notes=[note for note in compared["notes"] if note not in warnings],
        pictures=[Picture.of(png, caption(found)), *further],
        again=again,
    )
